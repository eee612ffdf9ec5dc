"""What every stage promises, as checks that take any stage, its options and some input.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(Trial(MyStage, {"by": "name"}, [b'{"name":1}', b'{"name":null}']))

or `check_all(Trial(...))`, which runs them in turn. A run that a stage ends on purpose, with a FindingsError, is an outcome
like any other: it must come however the input is cut.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from itertools import cycle
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from etlcli.core.batch import Batch, Reject, Span
from etlcli.core.files import Files
from etlcli.core.ledger import StepCount
from etlcli.core.stage import DEFAULT_MEMORY, Context, Prepared, Stage, State
from etlcli.errors import FindingsError
from etlcli.io.kept import KeptSpill
from etlcli.io.spill import SpillFile
from etlcli.io.stepfiles import StepFiles

_SPLITS = 5


class Trial(NamedTuple):
    """A stage and what to try it with."""

    stage: type[Stage]
    options: Mapping[str, Any]
    """Option values, as a recipe's `with:` has them."""
    lines: Sequence[bytes]
    """Input records, a line each, without newline: good ones, and ones this stage rejects or drops."""
    memory: int = DEFAULT_MEMORY
    base_dir: str = ""


class Outcome(NamedTuple):
    """What a run of a stage came to. `origins` are where the records it put out were read, as far as they know."""

    lines: list[bytes]
    rejects: list[Reject]
    counts: StepCount
    origins: list[tuple[int, ...]]
    error: str = ""

    def visible(self) -> tuple[Any, ...]:
        """What must not depend on how the input was cut. Of the discards only the total: a record that is both a duplicate
        and beyond the first N is dropped for whichever is found first."""
        return self.lines, self.rejects, self.error, None if self.error else self.counts.discarded.total()


class _Lasting(StepFiles):
    """Files that another instance finds as they are."""

    keeps = True

    def __init__(self, resources: ExitStack) -> None:
        super().__init__("contract", resources, _no_log)
        self._directory = resources.enter_context(TemporaryDirectory())
        self._spills: dict[str, KeptSpill] = {}

    def claim(self, path: str) -> None:
        """The other instance may have it."""

    def spill(self, directory: str | None = None, name: str = "") -> SpillFile:
        if name not in self._spills:
            spill = self._spills[name] = KeptSpill(os.path.join(self._directory, f"{name}.spill"))
            self._resources.callback(spill.close)
        return self._spills[name]


class Bench:
    """One instance of a trial's stage, driven as the engine drives it."""

    def __init__(
        self, trial: Trial, resources: ExitStack, state: State | None = None, files: Files | None = None
    ) -> None:
        self.count = StepCount("contract")
        self.rejects: list[Reject] = []
        self.out: list[Batch] = []
        context = Context(
            self.count,
            resources=resources,
            files=files or StepFiles("contract", resources, _no_log),
            log=_no_log,
            reject=self._reject,
            memory=trial.memory,
            base_dir=trial.base_dir,
        )
        self.stage = trial.stage(trial.stage.Params(**trial.options), context, state)

    def prepare(self, batch: Batch) -> Prepared:
        self.count.received += batch.count
        return self.stage.prepare(batch)

    def apply(self, prepared: Prepared) -> None:
        self._reject(prepared.rejects)
        self.count.discarded.update(prepared.discards or {})
        self._take(self.stage.apply(prepared))

    def run(self, prepared: Iterable[Prepared]) -> Outcome:
        """Applies each in turn and finishes."""
        try:
            for part in prepared:
                self.apply(part)
            self._take(self.stage.finish())
        except FindingsError as error:
            return self.outcome(f"{error.where}: {error.message}")
        return self.outcome()

    def outcome(self, error: str = "") -> Outcome:
        lines = [line for batch in self.out for line in batch.lines]
        origins = [batch.origin(index) for batch in self.out for index in range(batch.count)]
        return Outcome(
            lines, self.rejects, self.count, [(origin.line, origin.offset) for origin in origins if origin], error
        )

    def _take(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self.count.sent += batch.count
            self.out.append(batch)

    def _reject(self, rejects: Sequence[Reject]) -> None:
        self.rejects += rejects
        self.count.rejected.update(reject.code for reject in rejects)


def check_nothing(trial: Trial) -> None:
    """Without input, and with empty batches only, a stage works, and both come to the same."""
    nothing = run(trial, [])
    _same(run(trial, cut([], [0, 0])).visible(), nothing.visible(), "two empty batches, and no batch at all")


def check_empty_batch(trial: Trial) -> None:
    """A batch without records changes nothing, wherever it comes."""
    whole = len(trial.lines)
    for sizes in ([0, whole], [whole, 0], [whole // 2, 0, 0, whole - whole // 2]):
        _same(run(trial, cut(trial.lines, sizes)).visible(), _plain(trial).visible(), f"batches of {sizes} records")


def check_batching(trial: Trial) -> None:
    """However the input is cut into batches, the same records come out, and the same are rejected."""
    for sizes in splits(len(trial.lines)):
        _same(run(trial, cut(trial.lines, sizes)).visible(), _plain(trial).visible(), f"batches of {sizes} records")


def check_input_kept(trial: Trial) -> None:
    """A stage leaves the batches it is given as they were, in every form they have."""
    batches = list(cut(trial.lines, [len(trial.lines) // 2, len(trial.lines) - len(trial.lines) // 2]))
    before = [_forms(batch) for batch in batches]
    run(trial, batches)
    for batch, forms in zip(batches, before, strict=True):
        _same(_forms(batch), forms, "an input batch, before and after")


def check_prepare_pure(trial: Trial) -> None:
    """`prepare` gives the same for the same batch, whatever was prepared or applied in between, in any instance and in any
    order: that is what lets workers share the input out. `extra` must compare by its content."""
    sizes = [1] * min(4, len(trial.lines))
    sizes.append(len(trial.lines) - len(sizes))
    with ExitStack() as resources:
        one, other = Bench(trial, resources), Bench(trial, resources)
        fresh = [one.prepare(batch) for batch in cut(trial.lines, sizes)]
        try:
            for prepared in fresh:
                one.apply(prepared)
        except FindingsError:
            pass
        for bench in (one, other):
            again = [bench.prepare(batch) for batch in reversed(list(cut(trial.lines, sizes)))]
            for first, second in zip(map(_content, fresh), map(_content, reversed(again)), strict=True):
                _same(second, first, "prepare of one batch, twice")


def check_workers(trial: Trial) -> None:
    """Prepared in other instances and out of order, sent and applied in order: the same comes out."""
    for sizes in splits(len(trial.lines)):
        with ExitStack() as resources:
            workers, coordinator = cycle([Bench(trial, resources), Bench(trial, resources)]), Bench(trial, resources)
            given = list(zip(workers, cut(trial.lines, sizes), strict=False))
            prepared = [(worker, worker.prepare(batch)) for worker, batch in reversed(given)]
            coordinator.count.received = len(trial.lines)
            outcome = coordinator.run(worker.stage.unsent(one) for worker, one in reversed(prepared))
        _same(outcome.visible(), _plain(trial).visible(), f"batches of {sizes} records, prepared elsewhere and here")


def check_combined(trial: Trial) -> None:
    """Of a stage that combines: no records are left, and what was prepared of several batches, one after another, comes to
    the same when it is applied as one."""
    with ExitStack() as resources:
        if not Bench(trial, resources).stage.combines:
            return
    for sizes in splits(len(trial.lines)):
        with ExitStack() as resources:
            bench = Bench(trial, resources)
            apart: list[Prepared] = []
            for batch in cut(trial.lines, sizes):
                prepared = bench.prepare(batch)
                _same(prepared.batch.count, 0, "records that are left of a batch")
                if apart and not apart[-1].rejects and not prepared.rejects:
                    before = apart.pop()
                    discards = Counter(before.discards) + Counter(prepared.discards)
                    extra = bench.stage.combined([before.extra, prepared.extra])
                    prepared = prepared._replace(discards=discards, extra=extra)
                apart.append(prepared)
            outcome = bench.run(apart)
        _same(outcome.visible(), _plain(trial).visible(), f"batches of {sizes} records, combined")


def check_snapshot(trial: Trial) -> None:
    """Where a stage has a snapshot it is JSON, and a new instance that is given it goes on as the old one would have, with
    the spill files of that one."""
    whole = _plain(trial)
    batches = list(cut(trial.lines, [1] * len(trial.lines)))
    for edge in range(len(batches) + 1):
        with ExitStack() as resources:
            files = _Lasting(resources)
            with ExitStack() as own:
                first = Bench(trial, own, files=files)
                try:
                    for batch in batches[:edge]:
                        first.apply(first.prepare(batch))
                except FindingsError:
                    return
                state = first.stage.snapshot()
            if state is None:
                continue
            second = Bench(trial, resources, json.loads(json.dumps(state)), files)
            after = second.run(map(second.prepare, batches[edge:]))
            before = first.outcome()
            _same(before.lines + after.lines, whole.lines, f"resumed after {edge} records, and in one go")
            _same(before.rejects + after.rejects, whole.rejects, f"rejects, resumed after {edge} records")
            _same(after.error, whole.error, f"how it ended, resumed after {edge} records")


def check_finish(trial: Trial) -> None:
    """The same input gives the same output and the same counts, each time."""
    one, other = _plain(trial), _plain(trial)
    _same(one.visible(), other.visible(), "two runs")
    _same(one.counts.as_dict(), other.counts.as_dict(), "the counts of two runs")


def check_ledger(trial: Trial) -> None:
    """in + made = out + discarded + rejected + absorbed."""
    for sizes in splits(len(trial.lines)):
        outcome = run(trial, cut(trial.lines, sizes))
        if not outcome.error:
            _same(outcome.counts.missing(), 0, f"records unaccounted for: {outcome.counts.as_dict()}")


def check_order(trial: Trial) -> None:
    """Records leave a stage that says it keeps their order as they came in."""
    if trial.stage.order == "kept":
        outcome = _plain(trial)
        _same(outcome.origins, sorted(outcome.origins), "where the records come from")


CHECKS: tuple[Callable[[Trial], None], ...] = (
    check_nothing,
    check_empty_batch,
    check_batching,
    check_input_kept,
    check_prepare_pure,
    check_workers,
    check_combined,
    check_snapshot,
    check_finish,
    check_ledger,
    check_order,
)


def check_all(trial: Trial) -> None:
    for check in CHECKS:
        check(trial)


def run(trial: Trial, batches: Iterable[Batch]) -> Outcome:
    """The trial's stage over these batches, from start to end."""
    with ExitStack() as resources:
        bench = Bench(trial, resources)
        return bench.run(map(bench.prepare, batches))


def cut(lines: Sequence[bytes], sizes: Sequence[int]) -> Iterator[Batch]:
    """The lines as batches of so many records each, which know where they come from."""
    start = offset = 0
    for size in sizes:
        chunk = b"".join(line + b"\n" for line in lines[start : start + size])
        yield Batch(size, chunk=chunk, span=Span("input", start + 1, offset, chunk))
        start += size
        offset += len(chunk)
    assert start == len(lines), "the sizes make up the input"


def splits(count: int) -> list[list[int]]:
    """Ways to cut `count` records: singly, in halves, and at random (the same at random each time)."""
    found = [[1] * count, [count // 2, count - count // 2]]
    for seed in range(_SPLITS):
        generator = random.Random(seed)
        edges = sorted(generator.randint(0, count) for _ in range(generator.randint(1, 6)))
        found.append([end - start for start, end in zip([0, *edges], [*edges, count], strict=True)])
    return found


def _plain(trial: Trial) -> Outcome:
    return run(trial, cut(trial.lines, [len(trial.lines)]))


def _forms(batch: Batch) -> Any:
    # repr, because 1, 1.0 and True are equal.
    origins = [batch.origin(index) for index in range(batch.count)]
    return batch.count, batch.chunk, deepcopy(batch.lines), repr(batch.records()), origins


def _content(prepared: Prepared) -> tuple[Any, ...]:
    return _forms(prepared.batch), list(prepared.rejects), Counter(prepared.discards or {}), deepcopy(prepared.extra)


def _same(got: Any, expected: Any, what: str) -> None:
    if got != expected:
        raise AssertionError(f"{what}:\n  got      {_short(got)}\n  expected {_short(expected)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 2000 else text[:2000] + " ..."


def _no_log(level: str, event: str, **fields: Any) -> None:
    pass
