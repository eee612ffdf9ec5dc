"""Batch: its forms, and where its records came from. Against a model: tests/properties/test_intake.py."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from etlcli.core.batch import Batch, Origin, Reject, Span, decode_record
from etlcli.core.fields import MISSING, Derived

CHUNK = b'{"a":1}\n{"a":null,"b":{"c":[5,6]}}\n{}\n'
LINES = CHUNK.split(b"\n")[:-1]


@pytest.fixture(params=["chunk", "lines"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch.of_chunk(CHUNK) if request.param == "chunk" else Batch.of_lines(list(LINES))


def test_forms(batch: Batch) -> None:
    assert len(batch) == 3
    assert batch.lines == LINES
    assert batch.chunk == CHUNK
    assert batch.records() == [{"a": 1}, {"a": None, "b": {"c": [5, 6]}}, {}]
    assert batch.records() is batch.records()


def test_missing_and_null_are_different(batch: Batch) -> None:
    assert batch.columns((("a",), ("b", "c", "1"))) == [[1, None, MISSING], [MISSING, 6, MISSING]]
    assert batch.columns((("b", "c"),)) == [[MISSING, [5, 6], MISSING]]


def test_an_empty_batch() -> None:
    for batch in (Batch.of_chunk(b""), Batch.of_lines([]), Batch.of_chunk(CHUNK).take([])):
        assert (len(batch), batch.chunk, batch.lines, batch.records()) == (0, b"", [], [])
        assert batch.columns((("a",), ("b",))) == [[], []]
        assert batch.take([]).chunk == b""


def test_take_and_without_keep_the_bytes(batch: Batch) -> None:
    batch.columns((("a",),))
    assert batch.take([2, 0, 0]).lines == [LINES[2], LINES[0], LINES[0]]
    assert batch.take([2, 0, 0]).columns((("a",),)) == [[MISSING, 1, 1]]
    assert batch.without({0, 2}).lines == [LINES[1]]
    assert batch.lines == LINES


def test_replace_leaves_the_first_batch_alone(batch: Batch) -> None:
    batch.columns((("a",),))
    changed = batch.replace({1: b'{"a":9}'})
    assert changed.chunk == b'{"a":1}\n{"a":9}\n{}\n'
    assert changed.columns((("a",),)) == [[1, 9, MISSING]]
    assert batch.chunk == CHUNK
    assert batch.replace({}) is batch


def test_origins_follow_the_records() -> None:
    batch = Batch(3, chunk=CHUNK, span=Span("in", 10, 100, CHUNK))
    origins = [Origin("in", 10, 100), Origin("in", 11, 108), Origin("in", 12, 135)]
    assert [batch.origin(index) for index in range(3)] == origins
    taken = batch.take([2, 1]).replace({0: b"{}"}).take([1, 0, 1])
    assert [taken.origin(index) for index in range(3)] == [origins[1], origins[2], origins[1]]
    assert str(origins[0]) == "in:10"
    assert Batch.of_lines(LINES).origin(0) is None


def test_a_format_may_know_lines_and_offsets_better() -> None:
    span = Span("in.csv", 1, 0, b"", lines=[2, 5], offsets=[10, 70])
    assert Batch(2, lines=[b"{}", b"{}"], span=span).take([1]).origin(0) == Origin("in.csv", 5, 70)


def test_offsets_are_of_the_bytes_that_were_read() -> None:
    raw = b'{"a":1}\r\n{"a":2}\r\n'
    batch = Batch(2, chunk=raw.replace(b"\r", b""), span=Span("in", 1, 3, raw))
    assert batch.origin(1) == Origin("in", 2, 12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1e400", Decimal("1e400")),
        (b"-1e400", Decimal("-1e400")),
        (b"1.10", 1.1),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b"9" * 5000, Decimal("9" * 5000)),
        (b"-0", 0),
        (b"1700000000.123456789", Decimal("1700000000.123456789")),
        (b"1700000000.1234567", 1700000000.1234567),
        (b"1e23", 10**23),
        (b"1.2345e-320", Decimal("1.2345e-320")),
        (b"1e-400", Decimal("1e-400")),
        (b"[0.1000000000000000055511151231257827]", [Decimal("0.1000000000000000055511151231257827")]),
        (b'{"x":1e23}', {"x": 10**23}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_stay_exact(text: bytes, value: object) -> None:
    line = b'{"a":' + text + b"}"
    expected = decode_record(line)["a"]
    assert expected == value
    batch = Batch.of_lines([b'{"a":0}', line])
    assert batch.columns((("a",),)) == [[0, expected]]
    assert batch.records() == [{"a": 0}, {"a": expected}]


def test_what_a_reject_says() -> None:
    origin = Origin("in", 1, 0)
    assert Reject("rule", [{"message": "too small"}], b"{}", origin).message == "too small"
    errors = [{"message": "too small", "pointer": "/a"}, {"message": "odd"}, {"message": "old"}]
    assert Reject("rule", errors, b"{}", None).message == "too small at /a (and 2 more)"
    assert Batch(3, chunk=CHUNK, span=Span("in", 1, 0, CHUNK)).reject(2, "rule", errors) == Reject(
        "rule", errors, b"{}", Origin("in", 3, 35)
    )


def test_what_one_process_has_derived_another_does_not_derive_again(batch: Batch) -> None:
    asked: list[int] = []

    def spelled(columns: Sequence[list[Any]]) -> list[Any]:
        asked.append(len(columns[0]))
        return [value if value is MISSING else str(value) for value in columns[0]]

    column = Derived("spellings", (("a",),), spelled)
    expected = spelled(batch.columns((("a",),)))
    sent = pickle.loads(pickle.dumps(batch.bare((("a",), column)))).clothed(batch.chunk)
    asked.clear()
    assert sent.derived(column) == expected
    assert sent.take([2, 0]).derived(column) == [expected[2], expected[0]]
    assert sent.columns((("a",),)) == batch.columns((("a",),))
    assert sent.lines == batch.lines
    assert asked == []
    assert batch.take([1]).derived(column) == [expected[1]]
    assert asked == [1]
