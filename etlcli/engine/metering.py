"""The meters that a recipe declares, at the steps of its run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from etlcli.core.edit import encode
from etlcli.core.stage import State
from etlcli.observe.status import CustomMetric, CustomSeries
from etlcli.recipe.model import Recipe

if TYPE_CHECKING:
    from etlcli.core.meters import Meter
    from etlcli.observe.metrics import CustomSpec

_WHOLE = 1 << 53
_LARGEST = sys.float_info.max


class Metering:
    """Made before the steps, each of which asks once for the meters `at` it."""

    def __init__(
        self, recipe: Recipe, now: float, before: Mapping[str, State] | None, log: Callable[..., None]
    ) -> None:
        """`now` is the start of the run; `before` what `snapshot` returned, in a run that is gone on with. A metric that
        is declared otherwise since then begins anew."""
        default = recipe.steps[-1].id if recipe.steps else recipe.source.id
        self._meters = [(spec, spec.step or default, _meter(spec, now, before, log)) for spec in recipe.custom]
        self._free = list(self._meters)

    def at(self, step: str) -> list[Meter]:
        mine = [meter for _, place, meter in self._free if place == step]
        self._free = [each for each in self._free if each[1] != step]
        return mine

    def snapshot(self) -> dict[str, State]:
        """Called while no step is at work."""
        return {spec.name: {**meter.snapshot(), "of": _digest(spec)} for spec, _, meter in self._meters}

    def status(self) -> list[CustomMetric]:
        """Any thread may ask."""
        return [
            CustomMetric(
                name=spec.name,
                type=spec.type,
                help=spec.help,
                step=step,
                labels=list(spec.labels),
                bounds=list(spec.buckets),
                skipped=meter.skipped,
                series=[_series(spec.type, list(labels), cell) for labels, cell in meter.values()],
            )
            for spec, step, meter in self._meters
        ]


def _meter(spec: CustomSpec, now: float, before: Mapping[str, State] | None, log: Callable[..., None]) -> Meter:
    from etlcli.core.meters import Counter, Gauge, Histogram

    state = before.get(spec.name) if before else None
    if before is not None and (state is None or state["of"] != _digest(spec)):
        log(
            "warning",
            "metric_begins_anew",
            metric=spec.name,
            reason="the checkpoint does not have it as it is declared",
        )
        state = None
    declared: dict[str, Any] = {
        "value": spec.value,
        "when": spec.when,
        "labels": list(spec.labels.values()),
        "most": spec.max_labels,
        "now": now,
        "state": state,
    }
    if spec.type == "histogram":
        return Histogram(bounds=spec.buckets, **declared)
    return Counter(**declared) if spec.type == "counter" else Gauge(**declared)


def _digest(spec: CustomSpec) -> str:
    from hashlib import blake2b

    return blake2b(encode(spec.values() | {"help": None}), digest_size=8).hexdigest()


def _series(kind: str, labels: list[str], cell: Any) -> CustomSeries:
    if kind == "histogram":
        return CustomSeries(labels, _shown(cell.sum), list(cell.buckets), cell.falls)
    return CustomSeries(labels, _shown(cell))


def _shown(number: Any) -> float:
    """The nearest double; an int as long as doubles have it."""
    if isinstance(number, int) and abs(number) <= _WHOLE:
        return number
    try:
        return max(-_LARGEST, min(_LARGEST, float(number)))
    except OverflowError:
        return _LARGEST if number > 0 else -_LARGEST
