"""Retry and fallback, through the engine, with a clock of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from etlcli.core import params
from etlcli.core.batch import Batch, Reject
from etlcli.core.policy import ErrorBudget, Retry
from etlcli.core.stage import Prepared, Sink, Stage
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import FindingsError, TryLaterError
from etlcli.observe.logs import Log
from etlcli.recipe.model import Fallback, OnError, Recipe, StepSpec
from etlcli.registry import COMPONENTS, Entry, load

LINES = [b'{"n":%d}' % number for number in range(6)]
calls: list[int] = []


def refused(batch: Batch, failures: dict[int, int], code: str) -> list[Reject]:
    """Rejects record n for its first `failures[n]` tries."""
    rejects = []
    for index, record in enumerate(batch.records()):
        calls.append(record["n"])
        if calls.count(record["n"]) <= failures.get(record["n"], 0):
            rejects.append(batch.reject(index, code, [{"message": f"try {calls.count(record['n'])}"}]))
    return rejects


class Flaky(Stage):
    class Params(params.Declared):
        code = params.text("Reject code.", default="timeout")

    failures: ClassVar[dict[int, int]] = {}

    def prepare(self, batch: Batch) -> Prepared:
        rejects = refused(batch, self.failures, self.params.code)
        return Prepared(batch.without({reject.index: None for reject in rejects if reject.index is not None}), rejects)


class FlakyLater(Flaky):
    """Rejects in `apply`."""

    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch)

    def apply(self, prepared: Prepared) -> list[Batch]:
        good, rejects, *_ = super().prepare(prepared.batch)
        for reject in rejects:
            reject.final = self.params.code == "hook_failed"
        self.ctx.reject(rejects)
        return [good]


class FlakySink(Sink):
    class Params(params.Declared):
        pass

    failures: ClassVar[dict[int, int]] = {}
    written: ClassVar[list[bytes]] = []

    def write(self, batch: Batch) -> Sequence[Reject]:
        rejects = refused(batch, self.failures, "sink_refused")
        self.written += batch.without({reject.index: None for reject in rejects if reject.index is not None}).lines
        return rejects

    def commit(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setitem(COMPONENTS, "flaky", Entry("stage", f"{__name__}:Flaky", ""))
    monkeypatch.setitem(COMPONENTS, "flaky-later", Entry("stage", f"{__name__}:FlakyLater", ""))
    monkeypatch.setitem(COMPONENTS, "flaky-sink", Entry("sink", f"{__name__}:FlakySink", ""))
    monkeypatch.setattr(FlakySink, "written", [])
    for flaky in (Flaky, FlakySink):
        monkeypatch.setattr(flaky, "failures", {})
    calls.clear()
    return clock


def spec(uses: str, on_error: OnError | None = None, **options: Any) -> StepSpec:
    return StepSpec(uses, uses, load(COMPONENTS[uses].target).Params(**options), on_error or OnError())


def run(tmp_path: Path, failures: dict[int, int], on_error: OnError, *, at: str = "flaky", code: str = "timeout",
        steps: tuple[StepSpec, ...] = ()) -> tuple[list[bytes], Pipeline]:  # fmt: skip
    (tmp_path / "in").write_bytes(b"\n".join(LINES))
    Flaky.failures = failures if at.startswith("flaky") else {}
    FlakySink.failures = failures if at == "sink" else {}
    stages = (spec(at, on_error, code=code),) if at.startswith("flaky") else ()
    sink = spec("flaky-sink", on_error if at == "sink" else None)
    source = spec("read", paths=str(tmp_path / "in"))
    recipe = Recipe("r", source, (*stages, *steps), sink, ErrorBudget(), str(tmp_path / "quarantine"))
    pipeline = Pipeline(recipe, Log("error"))
    pipeline.run()
    return FlakySink.written, pipeline


def test_a_try_that_heals(clock: Clock, tmp_path: Path) -> None:
    written, pipeline = run(tmp_path, {2: 3, 4: 1}, OnError(Retry(attempts=5, backoff="100ms..300ms")))
    assert written == LINES
    assert clock.waits == [0.1, 0.2, 0.3, 0.1]
    count = pipeline.ledger.steps[1]
    assert (count.healed, count.retries, count.rejected.total()) == ({"retry": 2}, 3 + 1, 0)


def test_tries_that_do_not(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(TryLaterError, match=r"timeout: try 3 \(tried 3 times\)"):
        run(tmp_path, {2: 9}, OnError(Retry(attempts=3, backoff="1s")))
    assert clock.waits == [1, 1]


def test_what_another_try_cannot_heal_is_not_tried(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(FindingsError, match="rule: try 1"):
        run(tmp_path, {2: 1}, OnError(Retry(attempts=3)), code="rule")
    assert calls.count(2) == 1 and not clock.waits


def test_no_try_begins_after_the_longest_time(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(TryLaterError):
        run(tmp_path, {2: 99}, OnError(Retry(attempts=99, backoff="1s..8s", max_elapsed="10s")))
    assert clock.waits == [1, 2, 4]  # the next would end after 15 s


def test_jitter_waits_a_part(clock: Clock, tmp_path: Path) -> None:
    run(tmp_path, {2: 4}, OnError(Retry(attempts=5, backoff="1s..3s", jitter=True)))
    assert [wait <= limit for wait, limit in zip(clock.waits, [1, 2, 3, 3], strict=True)] == [True] * 4
    assert len(set(clock.waits)) == 4


def test_first_the_tries_then_the_fallback_then_the_last_word(clock: Clock, tmp_path: Path) -> None:
    changed = OnError(Retry(attempts=2), Fallback(set=((("n",), -1),)))
    written, pipeline = run(tmp_path, {0: 9, 2: 1, 5: 9}, changed)
    assert written == [b'{"n":-1}', *LINES[1:5], b'{"n":-1}']
    count = pipeline.ledger.steps[1]
    assert (count.healed, count.retries, count.received, count.sent) == ({"retry": 1, "fallback": 2}, 3, 6, 6)


def test_what_is_lost_after_all_says_how_often_it_was_tried(clock: Clock, tmp_path: Path) -> None:
    nowhere = Fallback(set=((("a", "b"), 1),))
    written, _ = run(tmp_path, {3: 9}, OnError(Retry(attempts=4, backoff="0s"), nowhere, "quarantine"))
    assert written == LINES[:3] + LINES[4:]
    envelope = json.loads((tmp_path / "quarantine").read_bytes())
    assert (envelope["attempts"], envelope["raw"], envelope["code"]) == (4, LINES[3].decode(), "timeout")
    assert envelope["origin"] == {"path": str(tmp_path / "in"), "line": 4, "offset": 3 * 8}
    assert envelope["errors"] == [{"message": "try 4"}]


def test_steps_that_run_instead(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "schema").write_text('{"properties": {"n": {"maximum": 3}}}')
    steps = Fallback(steps=(spec("validate", schema=str(tmp_path / "schema")),))
    written, pipeline = run(tmp_path, {1: 9, 5: 9}, OnError(fallback=steps, then="skip"))
    assert written == LINES[:5]
    assert pipeline.ledger.steps[1].rejected == {"timeout": 1}


def test_a_sink_that_refuses(clock: Clock, tmp_path: Path) -> None:
    written, pipeline = run(tmp_path, {2: 1}, OnError(Retry(attempts=2, backoff="1s")), at="sink")
    assert sorted(written) == LINES and clock.waits == [1]
    assert pipeline.ledger.steps[1].sent == 6


def test_a_sink_that_refuses_the_fallback_too(clock: Clock, tmp_path: Path) -> None:
    written, pipeline = run(
        tmp_path, {2: 1, 7: 9}, OnError(fallback=Fallback(value=b'{"n":7}'), then="skip"), at="sink"
    )
    assert written == LINES[:2] + LINES[3:]
    assert (pipeline.ledger.steps[1].sent, pipeline.ledger.steps[1].rejected) == (5, {"sink_refused": 1})


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_fallback_stands_where_the_record_stood(clock: Clock, tmp_path: Path, size: int) -> None:
    """Whatever the steps before made of the batches."""
    lines = [b'{"n":%d}' % number for number in range(40)]
    failures = {number: 9 for number in range(40) if number % 3 == 0 or number > 35}
    Flaky.failures = failures
    (tmp_path / "in").write_bytes(b"\n".join(lines))
    recipe = Recipe(
        "r",
        spec("read", paths=str(tmp_path / "in")),
        (spec("sort", by="n"), spec("flaky", OnError(fallback=Fallback(set=((("f",), True),))))),
        spec("flaky-sink"),
        ErrorBudget(),
        memory=100 * size,
    )
    Pipeline(recipe, Log("error")).run()
    assert FlakySink.written == [
        line[:-1] + b',"f":true}' if number in failures else line for number, line in enumerate(lines)
    ]


@pytest.mark.parametrize("value", ["x", "3s..1s", "..", "1s..", -1])
def test_backoffs_that_are_none(value: Any) -> None:
    with pytest.raises(ValueError, match="backoff"):
        Retry(backoff=value)


# -- What a stage rejects in `apply` -------------------------------------------------------------------------------------


def test_apply_a_try_that_heals(clock: Clock, tmp_path: Path) -> None:
    written, pipeline = run(tmp_path, {2: 2, 4: 1}, OnError(Retry(attempts=3)), at="flaky-later")
    assert written == LINES
    assert pipeline.ledger.steps[1].healed == {"retry": 2}


def test_apply_tries_that_do_not(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(TryLaterError, match="timeout: try 3"):
        run(tmp_path, {2: 9}, OnError(Retry(attempts=3)), at="flaky-later")
    written, _ = run(tmp_path, {0: 99, 3: 99}, OnError(Retry(attempts=2), then="skip"), at="flaky-later")
    assert written == [LINES[1], LINES[2], LINES[4], LINES[5]]


def test_apply_a_fallback_takes_the_record_s_place(clock: Clock, tmp_path: Path) -> None:
    written, pipeline = run(tmp_path, {0: 9, 3: 9}, OnError(fallback=Fallback(value=b'{"n":9}')), at="flaky-later")
    assert written == [b'{"n":9}', *LINES[1:3], b'{"n":9}', *LINES[4:]]
    assert pipeline.ledger.steps[1].healed == {"fallback": 2}


def test_what_is_final_is_not_tried_again(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(FindingsError, match="hook_failed: try 1"):
        run(tmp_path, {2: 1}, OnError(Retry(attempts=3)), at="flaky-later", code="hook_failed")
    assert not clock.waits


def test_a_fallback_step_that_rejects_in_apply(clock: Clock, tmp_path: Path) -> None:
    later = Fallback(steps=(spec("flaky-later", code="timeout"),))
    _, pipeline = run(tmp_path, {2: 9}, OnError(fallback=later, then="skip"))
    step = pipeline.ledger.steps[1]
    assert (step.rejected.total(), dict(step.healed)) == (1, {})


class Ending(Stage):
    """Has something to say at the end, and something to keep."""

    ended: ClassVar[list[str]] = []

    def finish(self) -> list[Batch]:
        self.ended.append("finish")
        return []

    def commit(self) -> None:
        self.ended.append("commit")


def test_the_steps_of_a_fallback_are_ended_too(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPONENTS, "ending", Entry("stage", f"{__name__}:Ending", ""))
    monkeypatch.setattr(Ending, "ended", [])
    run(tmp_path, {2: 9}, OnError(fallback=Fallback(steps=(spec("ending"),))))
    assert Ending.ended == ["finish", "commit"]
