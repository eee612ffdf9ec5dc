"""The contract checks themselves: a stage that breaks a rule is found by the check of that rule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from etlcli.core import params
from etlcli.core.batch import Batch
from etlcli.core.stage import Prepared, Stage
from etlcli.errors import FindingsError
from etlcli.testing import contract
from etlcli.testing.contract import Trial, check_all

LINES = [b'{"n":%d}' % number for number in range(9)]


class Plain(Stage):
    class Params(params.Declared):
        pass


class Held(Plain):
    """Holds everything back, and goes on from a snapshot."""

    scope = "all"

    def __init__(self, params: Any, ctx: Any, state: Any = None) -> None:
        super().__init__(params, ctx, state)
        self.kept: list[str] = list(state["kept"]) if state else []

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        self.kept += [line.decode() for line in prepared.batch.lines]
        return ()

    def finish(self) -> Iterable[Batch]:
        yield Batch.of_lines([line.encode() for line in self.kept])

    def snapshot(self) -> Any:
        return {"kept": self.kept}


class Drops(Plain):
    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch.take(range(1, len(batch), 2)), discards={"even": (len(batch) + 1) // 2})


class Loses(Plain):
    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch.take([i for i, line in enumerate(batch.lines) if line != b'{"n":4}']))


class Scribbles(Plain):
    def prepare(self, batch: Batch) -> Prepared:
        batch.records()[0]["n"] = 0
        return Prepared(batch)


class Extends(Held):
    """Keeps the first batch's own list and adds to it."""

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        self.rows = getattr(self, "rows", None) or prepared.batch.lines
        if self.rows is not prepared.batch.lines:
            self.rows += prepared.batch.lines
        return super().apply(prepared)


class NeedsARecord(Plain):
    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch, extra=batch.lines[0])


class Numbers(Plain):
    """Counts in `prepare`, which has no business to remember."""

    seen = 0

    def prepare(self, batch: Batch) -> Prepared:
        self.seen += 1
        return Prepared(batch, extra=self.seen)


class Forgets(Held):
    def snapshot(self) -> Any:
        return {"kept": self.kept[:3]}


class Unsaid(Held):
    def snapshot(self) -> Any:
        return {"kept": {b"bytes"}}


class Reverses(Plain):
    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch.take(range(len(batch) - 1, -1, -1)))


class Tails(Plain):
    """Puts out a record more when there was an empty batch."""

    def finish(self) -> Iterable[Batch]:
        yield from self.more

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.more: list[Batch] = []

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        if not prepared.batch.count:
            self.more = [Batch.of_lines([b"{}"])]
        yield prepared.batch


class Differs(Held):
    runs = 0

    def finish(self) -> Iterable[Batch]:
        type(self).runs += 1
        yield Batch.of_lines([*(line.encode() for line in self.kept), b'{"run":%d}' % type(self).runs])


class Stops(Plain):
    """Ends the run at one record, however the input is cut."""

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        if b'{"n":5}' in prepared.batch.lines:
            raise FindingsError("five")
        self.ctx.discard("seen", len(prepared.batch))
        return ()


@pytest.mark.parametrize("stage", [Plain, Held, Stops])
def test_a_good_stage_passes(stage: type[Stage]) -> None:
    check_all(Trial(stage, {}, LINES))
    check_all(Trial(stage, {}, []))


@pytest.mark.parametrize(
    ("stage", "check"),
    [
        (Drops, "check_batching"),
        (Loses, "check_ledger"),
        (Scribbles, "check_input_kept"),
        (Extends, "check_input_kept"),
        (Numbers, "check_prepare_pure"),
        (Forgets, "check_snapshot"),
        (Reverses, "check_order"),
        (Tails, "check_nothing"),
        (Tails, "check_empty_batch"),
        (Differs, "check_finish"),
    ],
)
def test_a_broken_rule_is_found(stage: type[Stage], check: str) -> None:
    with pytest.raises(AssertionError):
        getattr(contract, check)(Trial(stage, {}, LINES))


@pytest.mark.parametrize(
    ("stage", "check", "error"),
    [(NeedsARecord, "check_empty_batch", IndexError), (Unsaid, "check_snapshot", TypeError)],
)
def test_what_a_stage_raises_is_not_hidden(stage: type[Stage], check: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        getattr(contract, check)(Trial(stage, {}, LINES))
