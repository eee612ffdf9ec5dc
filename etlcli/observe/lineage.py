"""A run as OpenLineage events: START, then COMPLETE or FAIL, with the data sets it reads and writes.

They are appended to a file, a line each, or sent to a server while the run goes on. COMPLETE says how many records and
bytes there were; of a run that failed nothing was published, so FAIL says why instead.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit
from uuid import NAMESPACE_URL, uuid5

from etlcli.errors import UsageError
from etlcli.io.inputs import STDIN, is_url
from etlcli.io.masking import masked, without_secrets
from etlcli.observe.courier import PATIENCE, Courier, hush
from etlcli.observe.status import SUCCEEDED, Look, Observer, Status, StepStatus

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent
    from openlineage.client.transport.transport import Transport

_ENDPOINT = "api/v1/lineage"
"""Where servers take events, of a URL that names no path."""
_SEND_SECONDS = 5.0
_RETRY = {"total": 2, "backoff_factor": 0.3, "status_forcelist": [500, 502, 503, 504], "allowed_methods": ["POST"]}


class Dataset(NamedTuple):
    """What a step reads or writes, under the name that OpenLineage has for it."""

    step: str
    namespace: str
    name: str


def dataset_of(step: str, path: str) -> Dataset | None:
    """Of a file or URL as seen from here; None for standard input and output, which nobody else can find."""
    if path == STDIN:
        return None
    if is_url(path):
        parts = urlsplit(path)
        host = parts.netloc.rpartition("@")[2]
        return Dataset(step, f"{parts.scheme}://{host}", without_secrets(parts.path or "/"))
    name = os.fsencode(os.path.abspath(path)).decode(errors="backslashreplace")
    return Dataset(step, "file", without_secrets(name))


class Lineage(Observer):
    """Raises UsageError where the library is not there, or the URL is none."""

    waits = True

    def __init__(
        self,
        log: Callable[..., None],
        *,
        inputs: Sequence[Dataset],
        outputs: Sequence[Dataset],
        file: str | None = None,
        url: str | None = None,
        namespace: str = "etl",
        patience: float = PATIENCE,
    ) -> None:
        """Either `file` or `url` is given. `namespace` is the job's, whose name is the recipe's. OPENLINEAGE_API_KEY is
        sent to the server, if it is set."""
        try:
            from openlineage.client import event_v2, facet_v2
        except ImportError:
            raise UsageError("lineage needs openlineage-python", hint="pip install 'etlcli[lineage]'") from None
        hush("openlineage", "urllib3")
        self._events, self._facets = event_v2, facet_v2
        self._started = False
        self._inputs = inputs
        self._outputs = outputs
        self._namespace = namespace
        self._transport = _to_file(file) if file else _to_server(str(url))
        self._courier = Courier("lineage", log, file or masked(str(url)), patience)

    def begin(self, look: Look) -> None:
        self._look = look

    def running(self) -> None:
        self._start(self._look())

    def end(self, last: Status) -> None:
        if not self._started:
            self._start(last)
        self._courier.send(lambda: self._emit("COMPLETE" if last.state == SUCCEEDED else "FAIL", last))
        self._courier.close()

    def _start(self, status: Status) -> None:
        self._started = True
        self._courier.send(lambda: self._emit("START", status))

    def _emit(self, kind: str, status: Status) -> None:
        self._transport.emit(self._event(kind, status))

    def _event(self, kind: str, status: Status) -> RunEvent:
        events, facets = self._events, self._facets
        producer = f"urn:x-etlcli:{status.version}"
        events.set_producer(producer)
        of_run: dict[str, Any] = {
            "processing_engine": facets.processing_engine_run.ProcessingEngineRunFacet(status.version, name="etl")
        }
        if kind == "FAIL":
            message = status.error or "the run failed"
            of_run["errorMessage"] = facets.error_message_run.ErrorMessageRunFacet(message, "Python")
        of_job = {"jobType": facets.job_type_job.JobTypeJobFacet("BATCH", "ETL", "JOB")}
        at = status.started if kind == "START" else status.now
        steps = {step.id: step for step in status.steps} if kind == "COMPLETE" else {}
        event: RunEvent = events.RunEvent(
            eventTime=datetime.fromtimestamp(at, UTC).isoformat(),
            producer=producer,
            # A run that is gone on with by another process is the same run.
            run=events.Run(str(uuid5(NAMESPACE_URL, f"urn:x-etlcli:run:{status.run}")), of_run),
            job=events.Job(self._namespace, status.recipe, of_job),
            eventType=events.RunState[kind],
            inputs=[
                events.InputDataset(each.namespace, each.name, inputFacets=self._read(steps.get(each.step), each))
                for each in self._inputs
            ],
            outputs=[
                events.OutputDataset(each.namespace, each.name, outputFacets=self._written(steps.get(each.step), each))
                for each in self._outputs
            ],
        )
        return event

    def _read(self, step: StepStatus | None, own: Dataset) -> dict[str, Any]:
        """How much was read of a data set, if it is the only one of its step: else nobody has counted it."""
        if step is None or not _alone(self._inputs, own):
            return {}
        records = step.received - step.discarded.get("blank", 0)
        facet = self._facets.input_statistics_input_dataset.InputStatisticsInputDatasetFacet
        return {"inputStatistics": facet(records, step.bytes_in)}

    def _written(self, step: StepStatus | None, own: Dataset) -> dict[str, Any]:
        if step is None or not _alone(self._outputs, own):
            return {}
        facet = self._facets.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
        return {"outputStatistics": facet(step.sent, step.bytes_out)}


def _alone(all_of: Sequence[Dataset], own: Dataset) -> bool:
    return [each.step for each in all_of].count(own.step) == 1


def _to_file(path: str) -> Transport:
    from openlineage.client.transport.file import FileConfig, FileTransport

    return FileTransport(FileConfig(os.path.abspath(path), append=True))


def _to_server(url: str) -> Transport:
    """Credentials go into a header, so that no message of a library can show them."""
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"lineage.url: {masked(url)} is no http or https URL")
    account, _, host = parts.netloc.rpartition("@")
    path = parts.path.strip("/") or _ENDPOINT
    config = HttpConfig(
        urlunsplit((parts.scheme, host, "/", "", "")),
        endpoint=urlunsplit(("", "", path, parts.query, "")),
        timeout=_SEND_SECONDS,
        retry=_RETRY,
    )
    if account:
        config.custom_headers["Authorization"] = "Basic " + b64encode(unquote(account).encode()).decode()
    elif key := os.environ.get("OPENLINEAGE_API_KEY"):
        config.auth = ApiKeyTokenProvider({"api_key": key})
    transport = HttpTransport(config)
    transport.session.max_redirects = 0  # it would follow one with a GET, which says nothing
    return transport
