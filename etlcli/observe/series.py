"""The series that Prometheus gets to see of a run, made from a `Status`.

Every series has the label `recipe`, most have `step`. Labels come from data only in metrics that the recipe declares, and
no more of them than it says. Names and units are those that Prometheus recommends
(https://prometheus.io/docs/practices/naming/).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from etlcli.core.effort import BUCKETS
from etlcli.core.ledger import ABANDONED
from etlcli.observe.status import STARTING, SUCCEEDED, CustomMetric, CustomSeries, Look, Status, StepStatus

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_Floor = dict[str, dict[tuple[str, ...], float]]
"""What was shown, by the name of the counter and its labels' values."""
_Shown = tuple[str, list[tuple[str, tuple[str, ...], float]]]
"""The same in a file, behind the run's id."""
LAST_SUCCESS = "etl_last_success_timestamp_seconds"
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
        self._floor: _Floor = {}
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

        # What a run abandons when it ends before its time another process may take up.
        steps = status.steps if status.checkpoint_every is None else list(map(_without_abandoned, status.steps))
        for name, help, own, values in _COUNTERS:
            family = CounterMetricFamily(name, help, labels=("recipe", "step", *own))
            shown = set()
            for step in steps:
                for label, value in values(step):
                    labels = (status.recipe, step.id, *((label,) if own else ()))
                    family.add_metric(labels, self._risen(name, labels, value))
                    shown.add(labels)
            for labels, value in self._floor.get(name, {}).items():
                if labels not in shown:
                    family.add_metric(labels, value)
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
        floor = self._floor.setdefault(name, {})
        floor[labels] = value = max(value, floor.get(labels, 0))
        return value

    def _read(self, run: str) -> _Floor:
        floor: _Floor = {}
        if self._file:
            with suppress(OSError, msgspec.MsgspecError):
                with open(self._file, "rb") as file:
                    of, shown = msgspec.json.decode(file.read(), type=_Shown)
                for name, labels, value in shown if of == run else ():
                    floor.setdefault(name, {})[labels] = value
        return floor

    def _write(self, run: str) -> None:
        """Before it is shown to anybody. Lost with the machine, not with the process: so it need not be durable."""
        if self._file:
            with suppress(OSError):
                with open(self._file + ".new", "wb") as file:
                    shown = [(name, *each) for name, floor in self._floor.items() for each in floor.items()]
                    file.write(msgspec.json.encode((run, shown)))
                os.replace(self._file + ".new", self._file)


def _without_abandoned(step: StepStatus) -> StepStatus:
    left = {reason: count for reason, count in step.discarded.items() if reason != ABANDONED}
    return msgspec.structs.replace(step, discarded=left)


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
        yield gauge(LAST_SUCCESS, "When a run was good last.", status.now)
    if status.exit_code is not None:
        yield gauge("etl_run_exit_code", "How the last run ended; 0 is good.", status.exit_code)
    yield gauge("etl_build_info", "The program.", 1, version=status.version)
