"""What Prometheus gets to see of a run, through three doors: a Pushgateway, a text file, an endpoint to scrape.

All series are made from a `Status` when somebody asks for them; while nobody does they cost nothing. Every series has the
label `recipe`, most have `step`. Labels come from data only in metrics that the recipe declares (`CustomSpec`), and no more
of them than it says. Names and units are those that Prometheus recommends
(https://prometheus.io/docs/practices/naming/).

Nothing that goes wrong here fails a run: it is said once, in the log, and again when it has healed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from etlcli.core import params
from etlcli.core.effort import BUCKETS
from etlcli.core.params import Declared
from etlcli.errors import CannotCreateError, EtlError
from etlcli.observe.periodic import Periodic
from etlcli.observe.status import STARTING, SUCCEEDED, CustomMetric, CustomSeries, Look, Observer, Status, StepStatus

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

Log = Callable[..., None]
_LAST_SUCCESS = "etl_last_success_timestamp_seconds"
_PATIENCE = 1.0
_LEAST = 0.2
_LARGEST = 16 << 20
"""Bytes of a text file that is looked at for what an earlier run has left."""


class MetricsSpec(Declared):
    pushgateway = params.text("A Pushgateway, http://HOST:PORT or http://USER:PASSWORD@HOST:PORT.", metavar="URL")
    textfile = params.text("A file for node_exporter's textfile collector.", metavar="FILE")
    listen = params.text("Where to be scraped while the run lasts.", metavar="HOST:PORT")
    every = params.duration("Time between two pushes, and between two versions of the text file.", default=15.0)
    timeout = params.duration("Longest time that a push may take.", default=5.0)

    def verify(self) -> None:
        for name, check in (("pushgateway", _check_gateway), ("listen", _address)):
            try:
                if value := getattr(self, name):
                    check(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if not (self.pushgateway or self.textfile or self.listen):
            raise ValueError("metrics needs one of pushgateway, textfile and listen")


_TYPES = ("counter", "gauge", "histogram")
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ENDINGS = ("_total", "_bucket", "_sum", "_count", "_created", "_info")
_TAKEN = ("recipe", "step", "job", "le", "quantile")
"""Labels that the program, a Pushgateway or Prometheus gives a meaning."""


class CustomSpec(Declared):
    """A metric that a recipe declares: what is observed of the records that leave a step."""

    name = params.text("Its name; a counter's ends in _total.", required=True)
    type = params.choice(
        _TYPES, "What becomes of the values: their sum, the last, or how many lie where.", required=True
    )
    help = params.text("What it says, for whoever meets it in Prometheus.", default="A metric of the recipe.")
    step = params.text("The step whose output is looked at; of a sink its input. By default all that leaves the steps.")
    value = params.text("Expression for what is observed; a counter's is 1 by default.", metavar="EXPR")
    when = params.text("Condition of the records that are observed.", metavar="EXPR")
    labels = params.mapping("Expressions for the values of labels.")
    max_labels = params.integer(
        "Combinations of label values; what is beyond them counts as other.", default=100, minimum=1
    )
    buckets = params.numbers("Upper bounds of a histogram's buckets, which rise.")

    def verify(self) -> None:
        from etlcli.core.expressions import Expression, check_condition

        self._verify_name()
        if not self.value and self.type != "counter":
            raise ValueError(f"value: a {self.type} needs one")
        if self.type == "histogram" and not self.buckets:
            raise ValueError("buckets: a histogram needs them, for example [0.1, 1, 10]")
        if self.type != "histogram" and self.buckets:
            raise ValueError(f"buckets: a {self.type} has none")
        _verify("value", Expression, self.value)
        _verify("when", check_condition, self.when)
        for label, text in self.labels.items():
            place = f"labels.{label}"
            if not _NAME.fullmatch(label) or label.startswith("__"):
                raise ValueError(f"{place}: a label's name has only letters, digits and _, and does not begin with __")
            if label in _TAKEN:
                raise ValueError(f"{place}: the label {label} has a meaning of its own")
            if not isinstance(text, str):
                raise ValueError(f"{place}: expected an expression, as text, not {text!r}")
            _verify(place, Expression, text)

    def _verify_name(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: {self.name!r} is no name for a metric: letters, digits and _, no digit first")
        if self.name.startswith("etl_"):
            raise ValueError("name: those that begin with etl_ are the program's own")
        if self.type == "counter":
            if not self.name.removesuffix("_total") or not self.name.endswith("_total"):
                raise ValueError(f"name: a counter's ends in _total, for example {self.name.strip('_')}_total")
        elif self.name.endswith(_ENDINGS):
            raise ValueError(
                f"name: no {self.type}'s ends in {', '.join(_ENDINGS)}: to Prometheus it is something else"
            )

    def series(self) -> tuple[str, ...]:
        """The names of all that comes of it, in any format: no other metric can have one of them."""
        if self.type == "counter":
            stem = self.name.removesuffix("_total")
            return self.name, stem, f"{stem}_created"
        more = ("_bucket", "_sum", "_count", "_created") if self.type == "histogram" else ()
        return self.name, *(self.name + ending for ending in more)


def _verify(place: str, check: Callable[[str], Any], text: str | None) -> None:
    try:
        if text is not None:
            check(text)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


_COUNTERS: tuple[tuple[str, str, tuple[str, ...], Callable[[StepStatus], Iterable[tuple[str, float]]]], ...] = (
    ("etl_records", "Records by step: in + made = out + discarded + rejected + absorbed.", ("outcome",), lambda step: (
        ("in", step.received), ("made", step.made), ("out", step.sent), ("discarded", sum(step.discarded.values())),
        ("rejected", sum(step.rejected.values())), ("absorbed", sum(step.absorbed.values())),
        ("healed", sum(step.healed.values())))),
    ("etl_rejected", "Records rejected, by code.", ("code",), lambda step: step.rejected.items()),
    ("etl_discarded", "Records dropped on purpose, by reason.", ("reason",), lambda step: step.discarded.items()),
    ("etl_bytes", "Bytes of records by step; of the source what it has read, of a sink what it has written.",
     ("direction",), lambda step: (("in", step.bytes_in), ("out", step.bytes_out))),
    ("etl_blocked_seconds", "Time a step spent waiting: for input, output, a command, a database, workers or a sink.",
     ("on",), lambda step: step.blocked.items()),
    ("etl_retries", "Tries beyond the first.", (), lambda step: (("", step.retries),)),
    ("etl_cache_hits", "Keys that a step's cache knew.", (), lambda step: (("", step.cache_hits),)),
    ("etl_cache_misses", "Keys that a step's cache did not know.", (), lambda step: (("", step.cache_misses),)),
)  # fmt: skip


class Collector:
    """Makes the series of a run, for a registry of prometheus-client. Counters never go back while a run lasts, even if it
    goes on from a checkpoint behind what was shown before: `shown` remembers that, in a file, where there is one."""

    def __init__(self, look: Look, shown: str | None = None) -> None:
        self._look = look
        self._file = shown
        self._run = ""
        self._floor: dict[str, float] = {}
        self._lock = Lock()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            status = self._look()
            families = list(_gauges(status))
            if status.state != STARTING:  # until then a checkpoint may be found, and which run this is with it
                if status.run != self._run:
                    self._run, self._floor = status.run, self._read(status.run)
                families += [*self._counters(status), self._histogram(status), *self._custom(status)]
                self._write(status.run)
        yield from families

    def _counters(self, status: Status) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        for name, help, own, values in _COUNTERS:
            family = CounterMetricFamily(name, help, labels=("recipe", "step", *own))
            for step in status.steps:
                for label, value in values(step):
                    labels = (status.recipe, step.id, *((label,) if own else ()))
                    family.add_metric(labels, self._risen(name, labels, value))
            yield family

    def _histogram(self, status: Status) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        name = "etl_step_seconds"
        family = HistogramMetricFamily(name, "Time a step took for a batch.", labels=("recipe", "step"))
        for step in status.steps:
            labels, sofar, buckets = (status.recipe, step.id), 0, []
            for end, count in zip((*map(str, BUCKETS), "+Inf"), step.buckets, strict=True):
                sofar += count
                buckets.append((end, self._risen(name, (*labels, end), sofar)))
            family.add_metric(labels, buckets=buckets, sum_value=self._risen(name, labels, step.seconds))
        return family

    def _custom(self, status: Status) -> Iterator[Metric]:
        """What the recipe declares, and what was skipped of it."""
        from prometheus_client.core import CounterMetricFamily

        if not status.custom:
            return
        make = {"counter": self._custom_counter, "gauge": self._custom_gauge, "histogram": self._custom_histogram}
        skipped = CounterMetricFamily(
            "etl_custom_skipped", "Records of which a metric of the recipe has no value.", labels=("recipe", "metric")
        )
        for metric in status.custom:
            labels = (status.recipe, metric.name)
            skipped.add_metric(labels, self._risen("etl_custom_skipped", labels, metric.skipped))
            yield make[metric.type](status.recipe, metric)
        yield skipped

    def _custom_counter(self, recipe: str, metric: CustomMetric) -> Metric:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(metric.name, metric.help, labels=("recipe", *metric.labels))
        for each in metric.series:
            labels = (recipe, *each.labels)
            family.add_metric(labels, self._risen(metric.name, labels, each.value))
        return family

    def _custom_gauge(self, recipe: str, metric: CustomMetric) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(metric.name, metric.help, labels=("recipe", *metric.labels))
        for each in metric.series:
            family.add_metric((recipe, *each.labels), each.value)
        return family

    def _custom_histogram(self, recipe: str, metric: CustomMetric) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        # Sample by sample: of a histogram with bounds below 0 the library shows neither sum nor count.
        family = HistogramMetricFamily(metric.name, metric.help)
        for each in metric.series:
            values = (recipe, *each.labels)
            labels = dict(zip(("recipe", *metric.labels), values, strict=True))
            count = 0.0
            for end, count in self._heaped(metric.name, values, metric.bounds, each.buckets):
                family.add_sample(f"{metric.name}_bucket", {**labels, "le": end}, count)
            family.add_sample(f"{metric.name}_count", labels, count)
            family.add_sample(f"{metric.name}_sum", labels, self._sum(metric.name, values, each))
        return family

    def _heaped(
        self, name: str, labels: tuple[str, ...], bounds: Iterable[float], buckets: Iterable[int]
    ) -> Iterator[tuple[str, float]]:
        """The buckets as they are shown: how many values there are up to each bound."""
        from prometheus_client.utils import floatToGoString

        sofar = 0
        for end, count in zip((*map(floatToGoString, bounds), "+Inf"), buckets, strict=True):
            sofar += count
            yield end, self._risen(name, (*labels, end), sofar)

    def _sum(self, name: str, labels: tuple[str, ...], series: CustomSeries) -> float:
        """One that may fall cannot be kept from it."""
        return series.value if series.falls else self._risen(name, labels, series.value)

    def _risen(self, name: str, labels: tuple[str, ...], value: float) -> float:
        key = repr((name, *labels))
        self._floor[key] = value = max(value, self._floor.get(key, 0))
        return value

    def _read(self, run: str) -> dict[str, float]:
        import msgspec

        if self._file:
            with suppress(OSError, msgspec.MsgspecError):
                with open(self._file, "rb") as file:
                    of, floor = msgspec.json.decode(file.read(), type=tuple[str, dict[str, float]])
                return floor if of == run else {}
        return {}

    def _write(self, run: str) -> None:
        """Before it is shown to anybody. Lost with the machine, not with the process: so it need not be durable."""
        import msgspec

        if self._file:
            with suppress(OSError):
                with open(self._file + ".new", "wb") as file:
                    file.write(msgspec.json.encode((run, self._floor)))
                os.replace(self._file + ".new", self._file)


def _gauges(status: Status) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    def gauge(name: str, help: str, value: float, **labels: str) -> Metric:
        family = GaugeMetricFamily(name, help, labels=("recipe", *labels))
        family.add_metric((status.recipe, *labels.values()), value)
        return family

    yield gauge("etl_queue_bytes", "Bytes that were read and wait for their turn.", status.queued)
    yield gauge("etl_workers", "Processes that read and prepare records.", status.workers)
    if status.size is not None:
        yield gauge("etl_input_bytes", "Bytes of the input, as far as they are known.", status.size)
    if status.checkpoint_every is not None:
        last = status.checkpoints[-1].at if status.checkpoints else status.started
        yield gauge("etl_checkpoint_age_seconds", "Time since the last checkpoint.", max(0.0, status.now - last))
    yield gauge("etl_config_generation", "How many configurations the run has had.", status.generation)
    yield gauge("etl_run_duration_seconds", "How long the run has lasted.", status.now - status.started)
    yield gauge("etl_last_run_timestamp_seconds", "When the last run was seen last.", status.now)
    if status.state == SUCCEEDED:
        yield gauge(_LAST_SUCCESS, "When a run was good last.", status.now)
    if status.exit_code is not None:
        yield gauge("etl_run_exit_code", "How the last run ended; 0 is good.", status.exit_code)
    yield gauge("etl_build_info", "The program.", 1, version=status.version)


class Pushing:
    """Pushes to a Pushgateway, grouped by the job, which is the recipe. While the run lasts, and when it fails, series are
    added to the group (POST), so that the moment of the last success stays; at success they replace it (PUT)."""

    def __init__(self, url: str, every: float, timeout: float, log: Log) -> None:
        self._url, self._user, self._password = _credentials(url)
        self._every = every
        self._timeout = timeout
        self._log = log
        self._failing = False
        self._periodic: Periodic | None = None

    def open(self, registry: CollectorRegistry, job: str) -> None:
        self._registry = registry
        self._job = job

    def start(self) -> None:
        self._periodic = Periodic(self._every, lambda: self._push("POST", self._timeout))

    def close(self, last: Status) -> None:
        """A push that is going on and the last one have the time of one together."""
        end = monotonic() + self._timeout
        if self._periodic and not self._periodic.stop(self._timeout):
            self._say("the gateway does not answer")
            return
        left = max(_LEAST, end - monotonic())
        method = "PUT" if last.state == SUCCEEDED else "POST"
        final = Thread(target=self._push, args=(method, left), daemon=True)
        final.start()
        final.join(left + _PATIENCE)
        if final.is_alive():
            self._say("the gateway does not answer")

    def _push(self, method: str, timeout: float) -> None:
        from prometheus_client import push_to_gateway, pushadd_to_gateway
        from prometheus_client.exposition import basic_auth_handler, default_handler

        def handler(url: str, method: str, timeout: float | None, headers: Any, data: bytes) -> Callable[[], None]:
            if self._user is None:
                return default_handler(url, method, timeout, headers, data)
            return basic_auth_handler(url, method, timeout, headers, data, self._user, self._password)

        push = push_to_gateway if method == "PUT" else pushadd_to_gateway
        try:
            push(self._url, self._job, self._registry, timeout=timeout, handler=handler)
        except Exception as error:  # urllib's, http.client's and the socket's
            self._say(str(error) or type(error).__name__)
        else:
            if self._failing:
                self._failing = False
                self._log("info", "push_works_again", url=self._url)

    def _say(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            self._log("warning", "push_failed", url=self._url, reason=reason, hint="the run goes on without it")


class TextFile:
    """Keeps a file for node_exporter's textfile collector, replaced as a whole (by rename)."""

    def __init__(self, path: str, every: float, log: Log) -> None:
        self._path = path
        self._every = every
        self._log = log
        self._failing = False
        self._periodic: Periodic | None = None

    def open(self, registry: CollectorRegistry, job: str) -> None:
        self._registry = registry
        self._success = _last_success(self._path)

    def start(self) -> None:
        self._periodic = Periodic(self._every, self._replace)

    def close(self, last: Status) -> None:
        if self._periodic:
            self._periodic.stop(_PATIENCE)
        if last.state == SUCCEEDED:
            self._success = b""
        self._replace()

    def _replace(self) -> None:
        from prometheus_client import generate_latest

        from etlcli.io.files import AtomicFile

        try:
            if os.path.exists(self._path) and not os.path.isfile(self._path):
                raise CannotCreateError(f"{self._path} is not a plain file", where=self._path)
            file = AtomicFile(self._path)
            try:
                file.write(generate_latest(self._registry) + self._success)
                file.commit()
            finally:
                file.abort()
            self._failing = False
        except EtlError as error:
            if not self._failing:
                self._failing = True
                self._log("warning", "textfile_failed", path=self._path, reason=error.message)


class Listening:
    """Answers whoever scrapes."""

    def __init__(self, address: str, log: Log) -> None:
        self._host, self._port = _address(address)
        self._log = log
        self._server: Any = None

    def open(self, registry: CollectorRegistry, job: str) -> None:
        from prometheus_client import start_http_server

        try:
            self._server, _ = start_http_server(self._port, self._host, registry)
        except OSError as error:
            where = f"{self._host}:{self._port}"
            self._log("warning", "listen_failed", address=where, reason=error.strerror or str(error))
            return
        self._log("info", "listening", address="{}:{}".format(*self._server.server_address[:2]))

    def start(self) -> None:
        """It has answered from the beginning."""

    def close(self, last: Status) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()


def _address(text: str) -> tuple[str, int]:
    """HOST:PORT; brackets for an IPv6 host. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"expected HOST:PORT, for example 127.0.0.1:9464, not {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_gateway(url: str) -> None:
    """Raises ValueError for what is no URL of a Pushgateway."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a URL, for example http://127.0.0.1:9091")


def _credentials(url: str) -> tuple[str, str | None, str | None]:
    """The URL without them, user and password."""
    from urllib.parse import unquote, urlsplit, urlunsplit

    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    bare = urlunsplit(parts._replace(netloc=host)).rstrip("/")
    if parts.username is None:
        return bare, None, None
    return bare, unquote(parts.username), unquote(parts.password or "")


def _last_success(path: str) -> bytes:
    """What a text file says of the last good run, as lines: the series must stay while later ones fail."""
    if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST:
        return b""
    with suppress(OSError):
        with open(path, "rb") as file:
            lines = re.findall(rb"^(?:# (?:HELP|TYPE) )?%b[ {].*\n" % _LAST_SUCCESS.encode(), file.read(), re.MULTILINE)
        return b"".join(lines)
    return b""


class Metrics(Observer):
    """The doors that a recipe asks for, as one observer."""

    def __init__(self, spec: Any, base_dir: str, log: Log, shown: str | None) -> None:
        """`spec` is a MetricsSpec; `shown` the file in which a run that may be gone on with remembers what it has shown."""
        self._shown = shown
        self._doors: list[Pushing | TextFile | Listening] = []
        if spec.pushgateway:
            self._doors.append(Pushing(spec.pushgateway, spec.every, spec.timeout, log))
        if spec.textfile:
            self._doors.append(TextFile(os.path.join(base_dir, spec.textfile), spec.every, log))
        if spec.listen:
            self._doors.append(Listening(spec.listen, log))

    def begin(self, look: Look) -> None:
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry()
        registry.register(Collector(look, self._shown))
        for door in self._doors:
            door.open(registry, look().recipe)

    def running(self) -> None:
        for door in self._doors:
            door.start()

    def end(self, last: Status) -> None:
        for door in self._doors:
            door.close(last)
