"""One source, stage or sink at work: what it puts out, what it counts, and what becomes of its rejects.

An empty batch is a tick: it says that time has passed, and goes through all steps. A source that has nothing to give yields
one when a `Timed` stage is due, and a step that puts nothing out passes one on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from etlcli.core.batch import Batch, Reject
from etlcli.core.fields import Path
from etlcli.core.ledger import StepCount
from etlcli.core.policy import Policy
from etlcli.core.stage import Asks, Prepared, Sink, Source, Stage, Timed
from etlcli.engine.recovery import Outcome, Recovery
from etlcli.engine.window import Window
from etlcli.recipe.model import OnError

if TYPE_CHECKING:
    from etlcli.core.meters import Meter
    from etlcli.observe.control import Tap

_TICK = Batch.of_lines([])
Healed = list[tuple[int | None, list[Batch]]]
"""What goes on for rejected records: the row that each stood on, and the records in its place."""


class Step:
    """What all three kinds share. `fallback` are the stages of a fallback's steps."""

    def __init__(
        self, component: Any, on_error: OnError, count: StepCount, policy: Policy, fallback: Sequence[Stage] = ()
    ) -> None:
        self.component = component
        self.count = count
        self.taps: dict[str, list[Tap]] = {"in": [], "out": []}
        """Who wants to see what comes in, and what goes out."""
        self.meters: Sequence[Meter] = ()
        """They see all that goes out; at a sink, what comes in."""
        self._policy = policy
        self._fallback = fallback
        self._recovery: Recovery | None = None
        if on_error.fallback or on_error.retry.attempts > 1:
            # What `apply` rejects waits here until it can be healed.
            self._rejected: list[Reject] = []
            component.ctx.reject = self._rejected.extend
            self._recovery = Recovery(on_error, self._again, self._delivered, fallback, count, self._rejected)

    @property
    def heals(self) -> bool:
        """Whether a reject of this step may yet be a record that goes on."""
        return self._recovery is not None

    @property
    def commits(self) -> bool:
        """Whether it has state that becomes durable when the output is published."""
        return False

    def finish_fallback(self) -> None:
        """At the end of input: what a fallback's stage finds only then is an error."""
        for stage in self._fallback:
            deque(stage.finish(), maxlen=0)

    def commit_state(self) -> None:
        """Everything is published: what the stages remember may be durable."""
        for stage in self._fallback:
            stage.commit()

    def _again(self, record: Batch) -> Outcome:
        """Another try of one record."""
        raise NotImplementedError

    def _delivered(self, batches: list[Batch]) -> Outcome:
        """Takes what a fallback made, which goes on as it is."""
        return batches

    def _settle(self, rejects: Sequence[Reject], batch: Batch | None = None) -> Healed:
        """Heals what can be healed and puts the others through the policy. `batch` is what the rejects were records of."""
        if not self._recovery:
            self._policy.reject(self.count, rejects)
            return []
        healed: Healed = []
        lost: list[Reject] = []
        for reject in rejects:
            outcome = self._recovery.heal(reject)
            if isinstance(outcome, list):
                row = reject.index if batch is None or reject.index is None else batch.row(reject.index)
                healed.append((row, outcome))
                continue
            lost.append(outcome)
            if self._policy.then == "fail":
                break
        self._policy.reject(self.count, lost)
        return healed

    def timed(self, outputs: Iterable[Batch], prepared: float = 0.0) -> Iterator[Batch]:
        """What goes on of a batch; how long that takes is noted. It has taken so many seconds to prepare."""
        effort = self.count.effort
        before = effort.spent()
        yield from effort.clock.timed(effort.at_work, outputs)
        effort.took(prepared + effort.spent() - before)

    def show(self, side: str, batch: Batch) -> None:
        """To whoever wants to see it. Of a batch that has come without its lines there is nothing to see."""
        for tap in list(self.taps[side]) if batch.size else ():
            tap.put(batch)

    @property
    def measured(self) -> tuple[Path, ...]:
        """The fields that its meters look at."""
        return tuple(dict.fromkeys(path for meter in self.meters for path in meter.paths))

    def measure(self, batch: Batch) -> None:
        for meter in self.meters:
            meter.see(batch)

    def pass_on(self, prepared: Prepared, received: int, passed: int, size: int) -> None:
        """Counts a part that another process has taken through this step, which has nothing to heal in it."""
        self.show("out", prepared.batch)
        self.measure(prepared.batch)
        self.count.received += received
        self._policy.reject(self.count, prepared.rejects)
        self.count.discarded.update(prepared.discards or {})
        self.count.sent += passed
        self.count.effort.bytes_out += size

    def _sent_or_tick(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        sent = self.count.sent
        yield from self._sent(batches)
        if self.count.sent == sent:
            yield _TICK

    def _sent(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if batch.count:
                self.count.sent += batch.count
                self.count.effort.bytes_out += batch.size
                self.show("out", batch)
                self.measure(batch)
                yield batch


class SourceStep(Step):
    component: Source

    def outputs(self, prepared: Prepared, received: int, before: Batch) -> Iterator[Batch]:
        """What goes on of a part."""
        self.count.received += received
        self.count.discarded.update(prepared.discards or {})
        healed = self._settle(prepared.rejects) if prepared.rejects else []
        yield from self._sent_or_tick(_in_place([prepared.batch], healed, prepared.batch))


class StageStep(Step):
    component: Stage

    def __init__(
        self,
        component: Stage,
        on_error: OnError,
        count: StepCount,
        policy: Policy,
        fallback: Sequence[Stage] = (),
        *,
        ordered: bool = True,
    ) -> None:
        """Not `ordered`: where the stage can give records another order, it may."""
        super().__init__(component, on_error, count, policy, fallback)
        self._timed = component if isinstance(component, Timed) else None
        self._asks: Asks | None = None
        if isinstance(component, Asks) and component.at_once > 1:
            self._asks = component
            self._window = Window(component.at_once, ordered=ordered)
            component.ctx.resources.callback(self._window.stop)

    @property
    def is_pure(self) -> bool:
        """Whether all of the stage is `prepare`."""
        own = type(self.component)
        return own.apply is Stage.apply and own.finish is Stage.finish and not self._timed

    def through(self, upstream: Iterable[Batch]) -> Iterator[Batch]:
        yield from self.each(upstream)
        yield from self.finished()

    def each(self, upstream: Iterable[Batch]) -> Iterator[Batch]:
        for batch in upstream:
            if batch.count:
                self.count.effort.bytes_in += batch.size
                self.show("in", batch)
                yield from self.timed(self._through(batch))
            else:
                effort = self.count.effort
                yield from effort.clock.timed(effort.at_work, self._tick())

    def drained(self) -> Iterator[Batch]:
        """What goes on of records that somebody is asked about; none is then."""
        effort = self.count.effort
        if self._asks:
            yield from effort.clock.timed(effort.at_work, self._answered(self._asks, all_of_them=True))

    def _through(self, batch: Batch) -> Iterator[Batch]:
        if not self._asks:
            yield from self.outputs(self.component.prepare(batch), batch.count, batch)
            return
        sent = self.count.sent
        for question in self._asks.questions(batch):
            yield from self._answered(self._asks)
            self._window.put(question)
        yield from self._answered(self._asks)
        if self.count.sent == sent:
            yield _TICK

    def _tick(self) -> Iterator[Batch]:
        if self._asks:
            yield from self._answered(self._asks)
        yield from self._sent_or_tick(self._timed.tick() if self._timed else ())

    def _answered(self, asks: Asks, *, all_of_them: bool = False) -> Iterator[Batch]:
        """What goes on of records that somebody was asked about: as far as it is there, and until there is room for
        another question."""
        window, effort = self._window, self.count.effort
        while not window.is_empty:
            question = window.take()
            if question is None:
                if not (all_of_them or window.is_full):
                    return
                with effort.clock.during(effort.waiting_for("command")):
                    question = window.wait()
            yield from self.outputs(asks.answered(question), question.batch.count, question.batch)

    def outputs(self, prepared: Prepared, received: int, before: Batch) -> Iterator[Batch]:
        """What goes on of a batch, from what was prepared of it. `before` is that batch; it is looked at only if this
        step heals."""
        self.count.received += received
        yield from self._sent_or_tick(self._made(prepared, before))

    def finished(self) -> Iterator[Batch]:
        """The rest, at the end of input."""
        yield from self.drained()
        yield from self.count.effort.clock.timed(self.count.effort.at_work, self._sent(self._finish()))

    @property
    def commits(self) -> bool:
        return type(self.component).commit is not Stage.commit

    def due(self) -> float | None:
        """Seconds until a tick has something to do."""
        if self._asks:
            return self._window.due()
        return self._timed.due() if self._timed else None

    def commit_state(self) -> None:
        self.component.commit()
        super().commit_state()

    def _made(self, prepared: Prepared, before: Batch) -> Iterable[Batch]:
        healed = self._settle(prepared.rejects, before) if prepared.rejects else []
        if not self._recovery:
            return self._apply(prepared)
        outputs = list(self._apply(prepared))
        healed += self._settle(self._take_rejected(), prepared.batch)
        return _in_place(outputs, sorted(healed, key=_row), before)

    def _finish(self) -> Iterator[Batch]:
        yield from self.component.finish()
        for _, batches in self._settle(self._take_rejected()) if self._recovery else ():
            yield from batches

    def _take_rejected(self) -> list[Reject]:
        taken = self._rejected.copy()
        self._rejected.clear()
        return taken

    def _again(self, record: Batch) -> Outcome:
        prepared = self.component.prepare(record)
        if prepared.rejects:
            return prepared.rejects[0]
        outputs = list(self._apply(prepared))
        rejected = self._take_rejected()
        return rejected[0] if rejected else outputs

    def _apply(self, prepared: Prepared) -> Iterable[Batch]:
        self.count.discarded.update(prepared.discards or {})
        return self.component.apply(prepared)


class SinkStep(Step):
    component: Sink

    def write(self, batch: Batch) -> None:
        effort = self.count.effort
        effort.bytes_in += batch.size
        self.show("in", batch)
        before = effort.spent()
        with effort.clock.during(effort.at_work):
            self.measure(batch)
            self._write(batch)
        effort.took(effort.spent() - before)

    def finish(self) -> None:
        """Everything was written."""
        with self.count.effort.clock.during(self.count.effort.at_work):
            self.component.finish()

    def _write(self, batch: Batch) -> None:
        self.count.received += batch.count
        rejects = self.component.write(batch)
        self.count.sent += batch.count - len(rejects)
        for _, written in self._settle(rejects, batch) if rejects else ():
            self.count.sent += sum(map(len, written))

    def _again(self, record: Batch) -> Outcome:
        return self._delivered([record])

    def _delivered(self, batches: list[Batch]) -> Outcome:
        for batch in batches:
            rejects = self.component.write(batch)
            if rejects:
                return rejects[0]
        return batches


def _row(healed: tuple[int | None, list[Batch]]) -> float:
    return inf if healed[0] is None else healed[0]


def _in_place(outs: Iterable[Batch], healed: Healed, batch: Batch) -> Iterable[Batch]:
    """What a step puts out for `batch`, with what goes on for its rejects where they stood. Behind a batch that did not
    come from `batch` all of them follow."""
    return _merged(outs, healed, batch) if healed else outs


def _merged(outs: Iterable[Batch], healed: Healed, batch: Batch) -> Iterator[Batch]:
    waiting = list(reversed(healed))
    for out in outs:
        start = 0
        while waiting and out.is_kin(batch) and (row := waiting[-1][0]) is not None:
            place = out.place_of(row)
            if place == out.count:
                break
            yield out.take(range(start, place))
            yield from waiting.pop()[1]
            start = place
        yield out.take(range(start, out.count)) if start else out
    while waiting:
        yield from waiting.pop()[1]
