"""Where records leave the trunk of a pipeline: into a sink, or at a fork into several, each behind steps of its own.

Everything before is pulled; here batches are pushed. One of several outlets that waits for somebody else, as a database,
has a thread and a queue of its own, so that the others go on while it is slow, until its queue is full: then the whole
pipeline waits for it. (Those that compute would only fight for the interpreter's lock.) Before a checkpoint all queues are
emptied, so that it finds all outlets at the same place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from threading import Condition, Thread
from typing import TYPE_CHECKING, NamedTuple

from etlcli.core.batch import Batch
from etlcli.core.effort import Clock
from etlcli.core.ledger import StepCount
from etlcli.core.policy import Policy
from etlcli.engine.step import SinkStep, StageStep

if TYPE_CHECKING:
    from etlcli.core.expressions import Expression

_TICK = Batch.of_lines([])
_PATIENCE = 2.0
"""Seconds for a thread to end when the run does."""


class Outlet:
    """Some steps and a sink."""

    def __init__(self, stages: Sequence[StageStep], sink: SinkStep) -> None:
        self.stages = stages
        self.sinks = [sink]
        self.waits = sink.component.waits or any(stage.component.waits for stage in stages)
        self._sink = sink

    def use(self, clock: Clock) -> None:
        """That of the thread in which it works."""
        for step in (*self.stages, *self.sinks):
            step.count.effort.clock = clock

    def put(self, batch: Batch) -> None:
        self._put([batch], 0)

    def finish(self) -> None:
        """The end of input."""
        for at, stage in enumerate(self.stages):
            self._put(stage.finished(), at + 1)

    def settle(self) -> None:
        """Returns when what was put has arrived."""
        for at, stage in enumerate(self.stages):
            self._put(stage.drained(), at + 1)

    def _put(self, batches: Iterable[Batch], at: int) -> None:
        for stage in self.stages[at:]:
            batches = stage.each(batches)
        for batch in batches:
            if batch.count:
                self._sink.write(batch)


class Queue:
    """An outlet behind a queue of `limit` bytes, or one batch. What goes wrong in its thread is raised where the next batch
    is put, or by `settle`. `stop` it however the run ends."""

    def __init__(
        self, outlet: Outlet, limit: int, waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Whoever puts something is `waiting` while the queue is full."""
        self._outlet = outlet
        self._waiting_for_it = waiting
        self._limit = limit
        self._waiting: deque[Batch | Callable[[], None]] = deque()
        """Batches, and what else is to be done with the outlet in its turn."""
        self._size = 0
        self._busy = False
        self._stopped = False
        self._error: BaseException | None = None
        self._changed = Condition()
        self._thread: Thread | None = None

    def put(self, batch: Batch) -> None:
        size = batch.size
        with self._waiting_for_it(), self._changed:
            self._changed.wait_for(lambda: self._error or not self._size or self._size + size <= self._limit)
            self._add(batch.twin())

    def finish(self) -> None:
        with self._changed:
            self._add(self._outlet.finish)

    def settle(self) -> None:
        with self._changed:
            if self._thread:
                self._add(self._outlet.settle)
        with self._waiting_for_it(), self._changed:
            self._changed.wait_for(lambda: self._error or not (self._waiting or self._busy))
            self._check()

    def size(self) -> int:
        """Bytes that wait."""
        return self._size

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(_PATIENCE)  # it may be waiting for somebody who never comes

    def _add(self, item: Batch | Callable[[], None]) -> None:
        self._check()
        if isinstance(item, Batch):
            if not item.count and self._waiting:  # time passes for it anyway
                return
            self._size += item.size
        self._waiting.append(item)
        if self._thread is None:
            self._thread = Thread(target=self._work, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _check(self) -> None:
        if self._error:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._stopped or self._waiting)
                if self._stopped:
                    return
                item, self._busy = self._waiting.popleft(), True
            try:
                if isinstance(item, Batch):
                    self._outlet.put(item)
                else:
                    item()
            except BaseException as error:
                with self._changed:
                    self._error, self._busy = error, False
                    self._changed.notify_all()
                return
            with self._changed:
                self._size -= item.size if isinstance(item, Batch) else 0


class Route(NamedTuple):
    """`condition` says which records go to the outlet, None that all do; `policy` is for those of which it cannot."""

    outlet: Outlet
    condition: Expression | None
    policy: Policy


class Fork:
    """Several outlets: every record goes to the first whose condition is true (`routed`), or to each of them."""

    def __init__(
        self, routes: Sequence[Route], count: StepCount, *, routed: bool, queue: int, resources: ExitStack
    ) -> None:
        """`queue`: bytes that may wait in all queues together."""
        self._routes = routes
        self._routed = routed
        self._count = count
        self._outlets: list[Outlet | Queue] = []
        self.queued: list[Callable[[], int]] = []
        """How many bytes wait in each queue."""
        for route in routes:
            self._outlets.append(route.outlet)
            if route.outlet.waits:
                route.outlet.use(Clock())
                account = count.effort.waiting_for(route.outlet.sinks[0].count.step)
                waiting = partial(count.effort.clock.during, account)
                queued = self._outlets[-1] = Queue(route.outlet, queue // len(routes), waiting)
                self.queued.append(queued.size)
                resources.callback(queued.stop)
        self.stages = [stage for route in routes for stage in route.outlet.stages]
        self.sinks = [sink for route in routes for sink in route.outlet.sinks]

    def put(self, batch: Batch) -> None:
        effort = self._count.effort
        self._count.received += batch.count
        effort.bytes_in += batch.size
        with effort.clock.during(effort.at_work):
            if self._routed:
                self._deal(batch)
            else:
                self._copy(batch)

    def finish(self) -> None:
        for each in self._outlets:
            each.finish()
        self.settle()

    def settle(self) -> None:
        for each in self._outlets:
            each.settle()

    def _copy(self, batch: Batch) -> None:
        self._count.made += batch.count * (len(self._routes) - 1)
        self._count.sent += batch.count * len(self._routes)
        self._count.effort.bytes_out += batch.size * len(self._routes)
        for each in self._outlets:
            each.put(batch)

    def _deal(self, batch: Batch) -> None:
        for each, (_, condition, policy) in zip(self._outlets, self._routes, strict=True):
            mine, rest = batch, _TICK
            if condition is not None and batch.count:
                kept, errors = condition.select(batch.count, batch.columns(condition.paths))
                policy.reject(
                    self._count, [batch.reject(index, "bad_type", [error]) for index, error in errors.items()]
                )
                if len(kept) < batch.count:
                    mine, rest = batch.take(kept), batch.without({*kept, *errors})
            self._count.sent += mine.count
            self._count.effort.bytes_out += mine.size
            each.put(mine)
            batch = rest
        if batch.count:
            self._count.discarded["no_route"] += batch.count
