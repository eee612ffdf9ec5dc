"""`batch` against a loop over records, and `unbatch`, which gives back every byte."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from etlcli.core.batch import Batch
from etlcli.core.ledger import StepCount
from etlcli.core.stage import Context
from etlcli.io.stepfiles import StepFiles
from etlcli.stages.batch import Batcher
from etlcli.stages.unbatch import Unbatch
from etlcli.testing.contract import Outcome, Trial, cut, run

TEXTS = ["1", "1.0", "1.10", "2", "null", '"a"', '"\\u00e9,]}"', "[1, {}]", "1e400", "{}", '{"records":[{}]}', "true"]
SPACE = st.sampled_from(["", "", "", " ", "\t ", "  "])


@st.composite
def records(draw: st.DrawFn) -> list[bytes]:
    """Lines with the fields k and t (a time) and space in odd places."""
    lines = []
    for number in range(draw(st.integers(0, 25))):
        fields = draw(
            st.fixed_dictionaries({}, optional={"k": st.sampled_from(TEXTS), "t": st.integers(-900, 3000).map(str)})
        )
        members = ",".join(f'"{name}": {text}' for name, text in {**fields, "n": number}.items())
        lines.append(f"{draw(SPACE)}{{{members}{draw(SPACE)}}}{draw(SPACE)}".encode())
    return lines


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "size": st.integers(1, 6),
        "bytes": st.integers(1, 200),
        "key": st.just("k"),
        "window": st.sampled_from(["t:5m", "t:1s", "t:1d", "t:90s"]),
    },
).filter(bool)


def model(lines: list[bytes], limits: dict[str, Any]) -> tuple[list[list[bytes]], bool]:
    """The batches, and whether the last was closed by the end of the input."""
    widths = {"5m": 300, "1s": 1, "1d": 86400, "90s": 90}
    batches: list[list[bytes]] = []
    held: list[bytes] = []
    before: Any = None
    for line in lines:
        record = json.loads(line, parse_float=float)
        mark = [repr(spelled(record.get("k"))) if "key" in limits else 0]
        if "window" in limits:
            mark.append(record["t"] // widths[limits["window"][2:]])
        size = sum(len(each) + 1 for each in held) + len(line) + 1
        if held and (mark != before or size > limits.get("bytes", size)):
            batches.append(held)
            held = []
        held.append(line)
        before = mark
        if len(held) == limits.get("size"):
            batches.append(held)
            held = []
    return ([*batches, held], True) if held else (batches, False)


def spelled(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def batched(lines: list[bytes], size: int, memory: int = 1 << 30, /, **limits: Any) -> Outcome:
    sizes = [min(size, len(lines) - start) for start in range(0, len(lines), size)]
    outcome = run(Trial(Batcher, limits, lines, memory), cut(lines, sizes))
    assert outcome.counts.missing() == 0
    return outcome


def unbatched(lines: list[bytes]) -> Outcome:
    outcome = run(Trial(Unbatch, {}, lines), cut(lines, [len(lines)]))
    assert outcome.counts.missing() == 0
    return outcome


@settings(max_examples=150, deadline=None)
@given(records(), LIMITS, st.integers(1, 9))
@example([b"{}"] * 4, {"size": 2}, 3)
@example([b'{"k":1}', b'{"k":1.0}', b"{}", b'{"k":null}'], {"key": "k"}, 2)
def test_batches(lines: list[bytes], limits: dict[str, Any], size: int) -> None:
    outcome = batched(lines, size, **limits)
    good = [line for line in lines if "window" not in limits or "t" in json.loads(line)]
    assert [reject.code for reject in outcome.rejects] == ["missing_field"] * (len(lines) - len(good))
    expected, partial = model(good, limits)
    assert outcome.lines == [
        b'{"batch":%d,"size":%d,%b"records":[%b]}'
        % (number, len(batch), b'"partial":true,' if partial and number == len(expected) else b"", b",".join(batch))
        for number, batch in enumerate(expected, 1)
    ]
    assert (outcome.counts.made, outcome.counts.absorbed["batched"]) == (len(expected), len(good))
    assert unbatched(outcome.lines).lines == good


@settings(max_examples=50, deadline=None)
@given(records(), st.integers(1, 9), st.integers(1, 2000))
def test_memory_bounds_a_batch(lines: list[bytes], size: int, memory: int) -> None:
    outcome = batched(lines, size, memory, every="1h")
    assert unbatched(outcome.lines).lines == lines
    for line in outcome.lines:
        batch = json.loads(line)
        assert batch["size"] == 1 or len(line) <= memory // 4 + 60


def test_what_is_no_batch_is_rejected() -> None:
    lines = [b"{}", b'{"records":1}', b'{"records":[{},2]}', b'{"records":{}}', b'{"records":null}', b'{"records":[] }']
    outcome = unbatched(lines)
    assert [(reject.code, reject.errors[0]["pointer"]) for reject in outcome.rejects] == [
        ("missing_field", "/records"), ("bad_type", "/records"), ("bad_type", "/records/1"), ("bad_type", "/records"),
        ("bad_type", "/records"),
    ]  # fmt: skip
    assert (outcome.counts.absorbed["unbatched"], outcome.counts.made) == (1, 0)


def test_records_know_the_batch_they_came_from() -> None:
    outcome = unbatched([b'{"records":[{"a":1},{"a":2}]}', b'{"records":[{"a":3}]}'])
    assert [line for line, _ in outcome.origins] == [1, 1, 2]


def test_what_would_be_too_deep_in_a_batch_is_rejected() -> None:
    deep = [b'{"a":' + b"[" * depth + b"]" * depth + b"}" for depth in (247, 248, 249)]
    outcome = batched(deep, 3, size=3)
    assert [reject.code for reject in outcome.rejects] == ["too_deep", "too_deep"]
    assert unbatched(outcome.lines).lines == deep[:1]


# -- Windows ---------------------------------------------------------------------------------------------------------


def windows(texts: list[str], width: str = "1s") -> list[list[str]]:
    """The times, window by window."""
    outcome = batched([f'{{"t":{text}}}'.encode() for text in texts], 100, window=f"t:{width}")
    assert not outcome.rejects
    return [[record[5:-1].decode() for record in unbatched([line]).lines] for line in outcome.lines]


def test_windows_are_counted_from_1970() -> None:
    assert windows(["0", "299", "300", "599.999", "600"], "5m") == [["0", "299"], ["300", "599.999"], ["600"]]
    assert windows(["-1", "-300", "-301", "-0.5"], "5m") == [["-1", "-300"], ["-301"], ["-0.5"]]


def test_times_are_spelled_in_many_ways() -> None:
    same = ['"2013-01-01T10:00:00Z"', '"2013-01-01T11:00:00+01:00"', '"2013-01-01t10:00:00.999999z"', "1357034400",
            "1357034400.5", "1.3570344e9", "1357034400.999999999999999999999999999999"]  # fmt: skip
    assert windows(same) == [same]


def test_narrow_windows_are_exact() -> None:
    assert windows(["0.1", "0.2", "0.3", "0.30", "0.6", "0.7"], "100ms") == [
        ["0.1"],
        ["0.2"],
        ["0.3", "0.30"],
        ["0.6"],
        ["0.7"],
    ]


def test_what_is_no_time_is_rejected() -> None:
    bad = ['"2013-01-01"', '"2013-01-01T10:00:00"', '"yesterday"', "true", "[]", "{}", "1e400", "1e15", "-1e15", '""']
    outcome = batched([f'{{"t":{text}}}'.encode() for text in [*bad, "null", "0"]], 5, window="t:5m")
    assert [reject.code for reject in outcome.rejects] == ["bad_type"] * len(bad) + ["missing_field"]
    assert outcome.counts.made == 1


# -- Time passing ----------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every() -> None:
    """A batch is as old as its first record, and is closed when it is due, by a tick or by the records that come next."""
    clock, count = Clock(), StepCount("batch")
    with ExitStack() as resources:
        ctx = Context(
            count,
            resources=resources,
            files=StepFiles("step", resources, lambda *a, **k: None),
            log=lambda *a, **k: None,
            reject=lambda rejects: None,
            clock=clock,
        )
        stage = Batcher(Batcher.Params(every="10s"), ctx)

        def apply(*lines: bytes) -> list[bytes]:
            return [line for batch in stage.apply(stage.prepare(Batch.of_lines(list(lines)))) for line in batch.lines]

        def tick() -> list[bytes]:
            return [line for batch in stage.tick() for line in batch.lines]

        assert stage.due() is None and tick() == []
        assert apply(b"{}") == []
        clock.now += 4
        assert apply(b'{"a":1}') == [] and stage.due() == 6 and tick() == []
        clock.now += 6
        assert stage.due() == 0
        assert tick() == [b'{"batch":1,"size":2,"records":[{},{"a":1}]}']
        assert stage.due() is None and tick() == []
        clock.now += 100
        assert apply(b"{}") == [] and stage.due() == 10
        clock.now += 11
        assert apply(b'{"b":2}') == [b'{"batch":2,"size":1,"records":[{}]}']
        assert stage.due() == 10
        assert [line for batch in stage.finish() for line in batch.lines] == [
            b'{"batch":3,"size":1,"partial":true,"records":[{"b":2}]}'
        ]
