"""The head of a pipeline: the source, and the steps up to the first that holds state.

What the head does to a part of the input depends on nothing but that part: it is read, and every step prepares what the
one before passes on. So any process may do it, again if need be, and what comes of it is settled here, in order: counts,
rejects, and the `apply` of the step that holds state. In a run that does not keep order it is settled as it comes, and only
the source is told in order how far the input was read: where nothing was settled ahead of its turn, that is a barrier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import zip_longest
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from etlcli.core.batch import Batch, Errors, Reject
from etlcli.core.fields import Derived, Path
from etlcli.core.stage import Prepared
from etlcli.engine.step import SourceStep, StageStep

T = TypeVar("T")
_NOTHING = Batch.of_lines([])


class Worked(NamedTuple):
    """What came of a part: what each step prepared, the source first, and how many records each passed on. It ends with
    the step that holds state, or earlier: where nothing is left, or a reject may yet be healed."""

    prepared: list[Prepared]
    passed: list[int]
    sizes: list[int]
    """Bytes of what each passed on, as lines."""
    seconds: list[float]
    """What each took."""


Result = tuple[int, list[Worked]]
"""The number of a part, in the order of the input, and what came of it."""


class Head:
    """`steps` are those that hold no state, and the first that does."""

    def __init__(self, source: SourceStep, steps: Sequence[StageStep], behind: tuple[Path | Derived, ...] = ()) -> None:
        """`behind` are columns that are read, or measured, of the records as they leave the head."""
        self._source = source
        self._steps = steps
        self._behind = behind
        self._measured = [step.measured if step.meters else None for step in (source, *steps)]
        looked_at = any(step.heals or step.meters for step in (source, *steps))
        self.combines = bool(steps) and steps[-1].component.combines and not looked_at
        """Whether what comes of the blocks of a part can be made one."""
        self._turn = 0
        self._ahead: dict[int, list[Prepared]] = {}
        """What the source has not been told of yet, by the number of the part, without the records."""

    # -- in any process -----------------------------------------------------------------------------------------------

    def steps_of(self, part: Any) -> Iterator[Prepared]:
        """What each step makes of the part."""
        prepared = part if isinstance(part, Prepared) else self._source.component.prepare(part)
        yield prepared
        for at, step in enumerate(self._steps):
            if self._ends(at, prepared):
                return
            prepared = step.component.prepare(prepared.batch)
            yield prepared

    def _ends(self, at: int, prepared: Prepared) -> bool:
        """Whether this is the last of what is prepared, by the step that stands there; the source is 0."""
        step = (self._source, *self._steps)[at]
        return at == len(self._steps) or not prepared.batch.count or bool(prepared.rejects and step.heals)

    def is_whole(self, worked: Worked) -> bool:
        """Whether all was done to the part."""
        return self._ends(len(worked.prepared) - 1, worked.prepared[-1])

    def work(self, part: Any) -> Worked:
        prepared, seconds = [], []
        since = perf_counter()
        for one in self.steps_of(part):
            prepared.append(one)
            now = perf_counter()
            seconds.append(now - since)
            since = now
        return _worked(prepared, seconds)

    def work_on_blocks(self, part: Any, *, seen: bool) -> list[Worked]:
        """What came of each block of a part. Where nothing was rejected, and no records are to be `seen`, what came of
        several is made one."""
        blocks = [] if isinstance(part, Prepared) else self._source.component.blocks(part)
        if len(blocks) < 2:
            return [self.work(part)]
        made: list[Worked] = []
        for block in blocks:
            worked = self.work(block)
            if self.combines and not seen and _is_clean(worked):
                before = [made.pop()] if made and _is_clean(made[-1]) else []
                worked = self._combined([*before, worked])
            made.append(worked)
        return made

    def _combined(self, made: list[Worked]) -> Worked:
        """Without their records. Some may not have come as far as the last step."""
        ends = {0: self._source.component, len(self._steps): self._steps[-1].component}
        prepared = []
        for at, ones in enumerate(_side_by_side([worked.prepared for worked in made])):
            extra = ends[at].combined([one.extra for one in ones]) if at in ends else None
            discards = sum((Counter(one.discards) for one in ones), Counter[str]())
            prepared.append(Prepared(_NOTHING, (), discards, extra))
        return Worked(
            prepared,
            list(map(sum, _side_by_side([worked.passed for worked in made]))),
            list(map(sum, _side_by_side([worked.sizes for worked in made]))),
            list(map(sum, _side_by_side([worked.seconds for worked in made]))),
        )

    def work_up_to(self, limit: int, parts: Iterable[Any]) -> Iterator[Worked]:
        """Of the parts in order, up to so many records."""
        for part in parts:
            prepared = next(self.steps_of(part))
            if prepared.batch.count >= limit:
                yield self.work(_up_to(limit, prepared))
                return
            limit -= prepared.batch.count
            yield self.work(prepared)

    def growing(self, part: Any) -> Iterator[Worked]:
        """What came of the part so far, after each step."""
        prepared: list[Prepared] = []
        for step in self.steps_of(part):
            prepared.append(step)
            yield _worked(prepared)

    def wanted(self) -> frozenset[int]:
        """Of which steps somebody wants to see what they put out; the source is 0."""
        steps: list[SourceStep | StageStep] = [self._source, *self._steps]
        out = {at for at, step in enumerate(steps) if step.taps["out"]}
        return frozenset(out | {at - 1 for at, step in enumerate(steps) if at and step.taps["in"]})

    def packed(
        self, worked: Worked, wanted: frozenset[int] = frozenset(), *, in_turn: bool = False
    ) -> tuple[Worked, bytes]:
        """To be sent: without what the coordinator has no use for, or can work out when somebody asks, but what is wanted;
        and the bytes of the last batch, which are most of it. Where there are meters, what they look at goes along. Only
        if it is `in_turn` was everything that this process has sent before of an earlier part, and is it applied before."""
        last = len(worked.prepared) - 1
        kept = {last, last - 1, *wanted} if last and self._steps[last - 1].heals else {last, *wanted}
        packed = []
        for at, prepared in enumerate(worked.prepared):
            for reject in prepared.rejects:
                reject.leave_unexplained()
            packed.append(prepared if at in kept else prepared._replace(batch=self._for_meters(at, prepared.batch)))
        if last and in_turn:
            packed[last] = self._steps[last - 1].component.unsent(packed[last])
        placed = any(prepared.batch.count or prepared.rejects for prepared in packed)
        packed[0] = self._source.component.packed(packed[0], placed=placed)
        batch = packed[last].batch
        packed[last] = packed[last]._replace(batch=batch.bare(self._behind))
        return worked._replace(prepared=packed), batch.chunk

    def _for_meters(self, at: int, batch: Batch) -> Batch:
        measured = self._measured[at]
        return _NOTHING if measured is None else batch.columns_only(measured)

    @staticmethod
    def unpacked(worked: Worked, chunk: bytes) -> Worked:
        last = worked.prepared[-1]
        return worked._replace(prepared=[*worked.prepared[:-1], last._replace(batch=last.batch.clothed(chunk))])

    # -- in the coordinator -------------------------------------------------------------------------------------------

    @property
    def is_level(self) -> bool:
        """Whether nothing was settled ahead of its turn, so that where the source is tells what was worked on."""
        return not self._ahead

    def batches(
        self, results: Iterable[Result], at_work: Callable[[], AbstractContextManager[None]], rest: Callable[[], None]
    ) -> Iterator[Batch]:
        """What the head puts out, from what came of the parts. Each part is settled `at_work`; then, when what came of it
        has gone all the way, `rest` is called."""
        for number, made in results:
            with at_work():
                self._tell(number, [worked.prepared[0] for worked in made])
                for worked in made:
                    yield from self._settled(worked)
                rest()
        for at, step in enumerate(self._steps):
            batches: Iterable[Batch] = step.finished()
            for behind in self._steps[at + 1 :]:
                batches = behind.each(batches)
            yield from batches

    def refused(self, part: Any, before: Worked | None, code: str, message: str) -> Worked:
        """What stands for a single record that no process survives: rejected by the step after those of which it is known
        what came `before`."""
        if not before:
            return _worked([self._source.component.refused(part, code, message)])
        step = self._steps[len(before.prepared) - 1].component
        reject = before.prepared[-1].batch.reject(0, code, [{"message": message}])
        # Of a batch without records, so that `apply` finds what it needs.
        last = step.prepare(_NOTHING)._replace(rejects=[reject])
        prepared, passed, sizes, seconds = before
        return Worked([*prepared, last], [*passed, 0], [*sizes, 0], [*seconds, 0.0])

    def _tell(self, number: int, made: list[Prepared]) -> None:
        """Tells the source of a part, if it is its turn, and of those that have waited for it."""
        source = self._source.component
        if number != self._turn:
            for prepared in made:
                source.ahead(prepared)
            self._ahead[number] = [prepared._replace(batch=_NOTHING, rejects=()) for prepared in made]
            return
        while True:
            for prepared in made:
                source.apply(prepared)
            self._turn += 1
            if self._turn not in self._ahead:
                return
            made = self._ahead.pop(self._turn)

    def _settled(self, worked: Worked) -> Iterator[Batch]:
        steps: list[SourceStep | StageStep] = [self._source, *self._steps]
        last = len(worked.prepared) - 1
        received, size, before = 0, 0, _NOTHING
        outputs: Iterable[Batch] = ()
        for at, (step, prepared, passed, sent, seconds) in enumerate(zip(steps, *worked, strict=False)):
            effort = step.count.effort
            effort.at_work.seconds += seconds
            effort.bytes_in += size
            if at:
                step.show("in", before)
            if at == 0:
                received = passed + len(prepared.rejects) + sum((prepared.discards or {}).values())
            for reject in prepared.rejects:
                reject.explain(partial(_explained, step.component))
            if at < last:
                step.pass_on(prepared, received, passed, sent)
                effort.took(seconds)
            else:
                outputs = step.timed(step.outputs(prepared, received, before), seconds)
            received, size, before = passed, sent, prepared.batch
        for behind in self._steps[last:]:
            outputs = behind.each(outputs)
        yield from outputs


def _up_to(limit: int, prepared: Prepared) -> Prepared:
    """The first records of a part, with the rejects that stood before the last of them."""
    batch = prepared.batch.take(range(limit))
    last = batch.row(limit - 1)
    return prepared._replace(batch=batch, rejects=[reject for reject in prepared.rejects if (reject.index or 0) < last])


def _worked(prepared: list[Prepared], seconds: list[float] | None = None) -> Worked:
    batches = [one.batch for one in prepared]
    return Worked(
        prepared,
        [batch.count for batch in batches],
        [batch.size for batch in batches],
        seconds or [0.0] * len(prepared),
    )


def _side_by_side(rows: Iterable[Sequence[T]]) -> Iterator[list[T]]:
    """Columns of rows that need not be of one length."""
    return ([one for one in column if one is not None] for column in zip_longest(*rows))


def _is_clean(worked: Worked) -> bool:
    return not any(prepared.rejects for prepared in worked.prepared)


def _explained(stage: Any, reject: Reject) -> Errors:
    """The errors of a record that the stage rejects."""
    errors: Errors = stage.prepare(Batch.of_lines([reject.raw])).rejects[0].errors
    return errors
