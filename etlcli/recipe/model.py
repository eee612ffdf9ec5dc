"""The resolved plan of a pipeline. A subcommand is a recipe with one step, so that there is one way to run anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from etlcli.core import params
from etlcli.core.fields import Path
from etlcli.core.policy import ErrorBudget, Retry
from etlcli.core.stage import DEFAULT_MEMORY, DEFAULT_QUEUE
from etlcli.observe.doors import check_server
from etlcli.observe.logs import EVERY, SAMPLE

if TYPE_CHECKING:
    from etlcli.observe.metrics import CustomSpec


class Fallback(NamedTuple):
    """What goes on instead of a rejected record: another record, the record with some fields set, or what some steps make
    of it. One of the three is given."""

    value: bytes | None = None
    """A line of JSON."""
    set: tuple[tuple[Path, Any], ...] = ()
    steps: tuple[StepSpec, ...] = ()


class OnError(NamedTuple):
    """A step's policy, in the order in which it is applied."""

    retry: Retry = Retry()
    fallback: Fallback | None = None
    then: str = "fail"


class StepSpec(NamedTuple):
    """A source, step or sink: which component, with which options, and what to do with its rejects."""

    id: str
    uses: str
    params: Any
    """An instance of the component's `Params`."""
    on_error: OnError = OnError()


class Branch(NamedTuple):
    """A sink and the steps before it, where records go to several."""

    steps: tuple[StepSpec, ...]
    sink: StepSpec
    when: str | None = None
    """The condition of the records that go there; None for all."""
    then: str = "fail"
    """What to do with records of which the condition cannot be told."""


class CheckpointSpec(NamedTuple):
    dir: str
    every: float = 30.0
    """Seconds."""
    keep: int = 3
    """How many there are at most."""


class TracingSpec(params.Declared):
    otel = params.flag("Send spans of the run and its steps by OpenTelemetry, as the OTEL_* variables say.")


class LineageSpec(params.Declared):
    file = params.text("A file that OpenLineage events are appended to.", metavar="FILE")
    url = params.text("A server that takes OpenLineage events.", metavar="URL")
    namespace = params.text("The namespace of the job, whose name is the recipe's.", default="etl")

    def verify(self) -> None:
        if bool(self.file) == bool(self.url):
            raise ValueError("file: lineage needs a file or a url, one of them")
        try:
            if self.url:
                check_server(self.url)
        except ValueError as error:
            raise ValueError(f"url: {error}") from None


class LoggingSpec(NamedTuple):
    level: str = "warning"
    format: str = "auto"
    file: str | None = None
    """Where lines go instead of stderr."""
    per_step: tuple[tuple[str, str], ...] = ()
    """Levels by the ids of steps."""
    sample: int = SAMPLE
    """Of how many records an event and step show lines before they are only counted."""
    every: float = EVERY
    """Seconds between lines about progress, and about what repeats."""


class Recipe(NamedTuple):
    name: str
    source: StepSpec
    steps: tuple[StepSpec, ...]
    sink: StepSpec | None
    """None where there are `branches`."""
    budget: ErrorBudget
    quarantine: str | None = None
    base_dir: str = ""
    """What relative paths are relative to."""
    memory: int = DEFAULT_MEMORY
    workers: int | None = None
    """Processes for the head of the pipeline; None for as many as pay."""
    ordered: bool = True
    """Whether records go on in the order of the input, whatever worked on them."""
    queue: int = DEFAULT_QUEUE
    """Bytes of input that may be in flight."""
    limit: int | None = None
    """Records to read, at most."""
    timeout: float | None = None
    """Seconds that a run may take."""
    checkpoint: CheckpointSpec | None = None
    incremental: bool = False
    """Whether a run reads only what the last one has not."""
    branches: tuple[Branch, ...] = ()
    routed: bool = False
    """Whether a record goes to the first branch whose condition is true, instead of to all."""
    metrics: Any = None
    """A `MetricsSpec`, where there are metrics."""
    tracing: Any = None
    """A `TracingSpec`, if there is one, as `lineage` a `LineageSpec`."""
    lineage: Any = None
    custom: tuple[CustomSpec, ...] = ()
    """Metrics that the recipe declares."""
    path: str | None = None
    """Of the recipe's file; None for a subcommand."""
    logging: LoggingSpec = LoggingSpec()
    digest: str | None = None
    """Of the recipe's text, for the quarantine; None for a subcommand."""

    @property
    def outlets(self) -> tuple[Branch, ...]:
        return (Branch((), self.sink),) if self.sink else self.branches

    @property
    def stages(self) -> tuple[StepSpec, ...]:
        """All steps between the source and the sinks."""
        return (*self.steps, *(step for branch in self.branches for step in branch.steps))

    @property
    def sinks(self) -> tuple[StepSpec, ...]:
        return tuple(branch.sink for branch in self.outlets)

    @property
    def quarantines(self) -> bool:
        """Whether any step puts records into quarantine."""
        policies = [spec.on_error.then for spec in self.specs] + [branch.then for branch in self.branches]
        return "quarantine" in policies

    @property
    def specs(self) -> tuple[StepSpec, ...]:
        return (self.source, *self.stages, *self.sinks)
