"""Where records leave the trunk of a pipeline: into a sink, or at a fork into several, each behind steps of its own.

Everything before is pulled; here batches are pushed, to one outlet after the other. Each has taken a batch entirely before
the next part of the input is asked for, so that a checkpoint finds all of them at the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from etlcli.core.batch import Batch
from etlcli.core.ledger import StepCount
from etlcli.core.policy import Policy
from etlcli.engine.step import SinkStep, StageStep

if TYPE_CHECKING:
    from etlcli.core.expressions import Expression

_TICK = Batch.of_lines([])


class Outlet:
    """Some steps and a sink."""

    def __init__(self, stages: Sequence[StageStep], sink: SinkStep) -> None:
        self.stages = stages
        self.sinks = [sink]
        self._sink = sink

    def put(self, batch: Batch) -> None:
        self._put([batch], 0)

    def finish(self) -> None:
        """The end of input."""
        for at, stage in enumerate(self.stages):
            self._put(stage.finished(), at + 1)

    def _put(self, batches: Iterable[Batch], at: int) -> None:
        for stage in self.stages[at:]:
            batches = stage.each(batches)
        for batch in batches:
            if batch.count:
                self._sink.write(batch)


class Route(NamedTuple):
    """`condition` says which records go to the outlet, None that all do; `policy` is for those of which it cannot."""

    outlet: Outlet
    condition: Expression | None
    policy: Policy


class Fork:
    """Several outlets: every record goes to the first whose condition is true (`routed`), or to each of them."""

    def __init__(self, routes: Sequence[Route], count: StepCount, *, routed: bool) -> None:
        self._routes = routes
        self._routed = routed
        self._count = count
        self.stages = [stage for route in routes for stage in route.outlet.stages]
        self.sinks = [sink for route in routes for sink in route.outlet.sinks]

    def put(self, batch: Batch) -> None:
        self._count.received += batch.count
        if self._routed:
            self._deal(batch)
            return
        self._count.made += batch.count * (len(self._routes) - 1)
        self._count.sent += batch.count * len(self._routes)
        for route in self._routes:
            route.outlet.put(batch)

    def finish(self) -> None:
        for route in self._routes:
            route.outlet.finish()

    def _deal(self, batch: Batch) -> None:
        for outlet, condition, policy in self._routes:
            mine, rest = batch, _TICK
            if condition is not None and batch.count:
                kept, errors = condition.select(batch.count, batch.columns(condition.paths))
                policy.reject(
                    self._count, [batch.reject(index, "bad_type", [error]) for index, error in errors.items()]
                )
                if len(kept) < batch.count:
                    mine, rest = batch.take(kept), batch.without({*kept, *errors})
            self._count.sent += mine.count
            outlet.put(mine)
            batch = rest
        if batch.count:
            self._count.discarded["no_route"] += batch.count
