"""Outside bytes: what is believed and what is rejected, against a model that knows nothing of chunks; and `Batch` and
`edit` against models made of plain lists and dicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etlcli.core import intake
from etlcli.core.batch import Batch, Span, decode_record
from etlcli.core.edit import edit
from etlcli.core.fields import MISSING, Path, exact_number, parse_path
from etlcli.core.projection import projection

LONG = b"1" * 5000
PROJECTIONS: list[tuple[Path, ...]] = [(), (("a",),), (("b", "c"), ("x",)), (("a",), ('q"',))]


def nested(depth: int, kind: bytes = b"[") -> bytes:
    """One record with that many levels."""
    if kind == b"[":
        return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    return b'{"a":' * depth + b"1" + b"}" * depth


GOOD = [
    b"{}",
    b'{"a":1}',
    b' {"a" : 1.10 , "b":{"c":[1, 2]}}\t',
    b'{"a":"}\\n{"}',
    b'{"a":"\\u0000\\u00e9\\ud83d\\ude00\\/"}',
    b'{"a":"\xe2\x80\xa8\xc3\xa9\xf0\x9f\x98\x80"}',
    b'{"a":1e400,"x":-0,"b":-1e99999999999999999999}',
    b'{"a":' + LONG + b',"x":123456789012345678901234567890}',
    b'{"a":1,"a":2}',
    b'{"\\u0061":1,"":{"":null}}',
    b'{"b":{"c":"[[[{{{"},"x":[{}]}',
    nested(intake.MAX_DEPTH),
    nested(intake.MAX_DEPTH, b"{"),
    b'{"pad":"' + b"x" * 500 + b'"}',
    b'{"a":"\x7f"}\r',
]
BAD = [
    b"{",
    b"}",
    b'{"a":1',
    b'"b":2}',
    b'{"a":1}{"b":2}',
    b'{"a":1} {"b":2}',
    b"{}{",
    b"[]",
    b"[1",
    b'[{"a":1}]',
    b"1",
    b"null",
    b"nul",
    b'"text"',
    b'\xef\xbb\xbf{"a":1}',
    b'{"a":"\xff"}',
    b'{"a":"\xc3"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"a":"\\ud800"}',
    b'{"a":"\\udc00\\ud800"}',
    b'{"a":"\x00"}',
    b'{"a":1}\x00',
    b"\x00",
    b'{"a":NaN}',
    b'{"a":-Infinity}',
    b'{"a":01}',
    b'{"a":+1}',
    b"{'a':1}",
    b'{"a":1,}',
    b'{"a":' + LONG + b',"b":NaN}',
    b'{"a":' + LONG + b',"b":"\\ud800"}',
    b'{"a":' + LONG + b"}}",
    LONG,
    b"1e400",
    nested(intake.MAX_DEPTH + 1),
    nested(intake.MAX_DEPTH + 1, b"{"),
    b"[" * 100_000,
    b'{"a":' * 2000,
    b'{"pad":"' + b"x" * 2000 + b'"}',
    b'\x0b{"a":1}',
    b'{"a":1}//',
]
BLANK = [b"", b" ", b"\t\r"]
MAX_LINE = 1500


def verdict(line: bytes, max_line: int) -> tuple[str, ...]:
    """The codes a line may have, from the definition; "good" and "blank" among them."""
    line = line.removesuffix(b"\r")
    if not line.strip(b" \t\r"):
        return ("blank",)
    if len(line) > max_line:
        return ("line_too_long",)
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return ("bad_utf8",)
    if depth(text) > intake.MAX_DEPTH:
        return ("too_deep",)
    try:
        value = json.loads(text, parse_int=Decimal, parse_float=str, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False, default=str).encode()  # lone surrogates are no text
    except ValueError:
        # What begins like another value may be refused for that before its end is seen.
        return ("bad_json",) if text.lstrip(" \t\r").startswith("{") else ("bad_json", "not_object")
    return ("good",) if isinstance(value, dict) else ("not_object",)


def _refuse(name: str) -> Any:
    raise ValueError(name)


def depth(text: str) -> int:
    """How deep the brackets outside strings nest."""
    level = deepest = 0
    quoted = escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted:
            level += (char in "{[") - (char in "}]")
            deepest = max(deepest, level)
    return deepest


def parsed(lines: Sequence[bytes], paths: tuple[Path, ...], max_line: int) -> intake.Intake:
    chunk = b"".join(line + b"\n" for line in lines)
    return intake.parse(chunk, Span("in", 11, 1000, chunk), projection(paths), max_line)


def agrees_with_the_model(lines: Sequence[bytes], max_line: int = MAX_LINE) -> None:
    verdicts = [verdict(line, max_line) for line in lines]
    starts = [1000 + sum(len(line) + 1 for line in lines[:number]) for number in range(len(lines))]
    origins = [("in", 11 + number, start) for number, start in enumerate(starts)]
    good = [number for number, codes in enumerate(verdicts) if codes == ("good",)]
    bad = [number for number, codes in enumerate(verdicts) if codes not in (("good",), ("blank",))]
    for paths in PROJECTIONS:
        result = parsed(lines, paths, max_line)
        assert result.batch.lines == [lines[number].removesuffix(b"\r") for number in good]
        assert result.batch.count == len(good)
        assert result.batch.chunk == b"".join(line + b"\n" for line in result.batch.lines)
        assert [result.batch.origin(index) for index in range(len(good))] == [origins[number] for number in good]
        assert [reject.origin for reject in result.rejects] == [origins[number] for number in bad]
        for reject, number in zip(result.rejects, bad, strict=True):
            raw = lines[number].removesuffix(b"\r")
            assert reject.raw == (raw[:max_line] if reject.code == "line_too_long" else raw)
            assert reject.code in verdicts[number]
            assert reject.message
        assert result.blank == verdicts.count(("blank",))
        # What was decoded on the way in is what would be decoded from the lines.
        if paths:
            again = Batch.of_lines(result.batch.lines).columns(paths)
            assert repr(result.batch.columns(paths)) == repr(again)


@pytest.mark.parametrize("line", [*GOOD, *BAD, *BLANK], ids=lambda line: repr(line[:20]))
def test_every_line_alone_and_among_good_ones(line: bytes) -> None:
    agrees_with_the_model([line])
    agrees_with_the_model([line], max_line=1 << 24)
    agrees_with_the_model([b'{"a":0}', line, b'{"a":2}\r', line + b"\r", b"{}"], max_line=1 << 24)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*GOOD, *BAD, *BLANK]).flatmap(lambda line: st.sampled_from([line, line + b"\r"])), max_size=8),
       st.sampled_from([MAX_LINE, 1 << 24]))  # fmt: skip
def test_any_mix_of_lines(lines: list[bytes], max_line: int) -> None:
    agrees_with_the_model(lines, max_line)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([piece for line in [*GOOD[:6], *GOOD[7:11], *BAD[:25]] for piece in (line, line[:5], line[5:])]
                                + [b"\n", b"\r\n", b"{", b"}", b"[", b"]", b",", b" ", b'"', b"\\", b"}\n{"]), max_size=12))  # fmt: skip
@example([b'{"a":{"b":1}', b"\n", b"}", b"\n", b"{}{}"])
@example([b'{"a":1}', b"{", b"\n", b"}"])
@example([b'{"a":1}{"a":1}', b"\n", b"\n"])
def test_any_bytes(pieces: list[bytes]) -> None:
    """Records over two lines, two on one, pieces of records: the newline decides."""
    agrees_with_the_model(b"".join(pieces).split(b"\n"))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*GOOD[:11], *BAD[:30]]), st.data())
def test_one_byte_changed(line: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, max(0, len(line) - 1)))
    byte = data.draw(
        st.sampled_from([b"", b"\n", b"\r", b'"', b"{", b"}", b"\\", b"\x00", b"\xff", b"\x1f", b"0", b"-", b".", b"e"])
    )
    changed = line[:at] + byte + line[at + 1 :]
    agrees_with_the_model([b'{"a":1}', *changed.split(b"\n"), b'{"b":2}'])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*GOOD, *BAD, *BLANK]), max_size=6), st.sampled_from(PROJECTIONS))
def test_the_fast_path_is_the_slow_one(lines: list[bytes], paths: tuple[Path, ...]) -> None:
    fast = parsed(lines, paths, 1 << 24)
    with mock.patch.object(intake, "_clean_batch", return_value=None):
        slow = parsed(lines, paths, 1 << 24)
    assert fast.batch.lines == slow.batch.lines
    assert repr(fast.batch.columns(paths or (("a",),))) == repr(slow.batch.columns(paths or (("a",),)))
    assert (fast.rejects, fast.blank) == (slow.rejects, slow.blank)
    count = range(fast.batch.count)
    assert [fast.batch.origin(index) for index in count] == [slow.batch.origin(index) for index in count]


# -- Batch ---------------------------------------------------------------------------------------------------------

PATHS = ["a", "b.c", "b.c.1", "x", "/", "/a~1b", "a.0.a"]
RECORDS = [line for line in GOOD if len(line) < 5000 and line not in (GOOD[11], GOOD[12])] + [
    b'{"a":[{"a":1}],"a/b":null}',
    b'{"b":{"c":[1,{"d":2}]},"x":true}',
    b'{"b":[1],"a":null}',
]
OPERATIONS = st.one_of(
    st.tuples(st.just("take"), st.lists(st.integers(0, 30), max_size=8)),
    st.tuples(st.just("without"), st.lists(st.integers(0, 30), max_size=4)),
    st.tuples(st.just("replace"), st.dictionaries(st.integers(0, 30), st.sampled_from(RECORDS), max_size=3)),
    st.tuples(st.just("look"), st.sampled_from(["chunk", "lines", "records", "columns"])),
)


def walked(record: Any, path: Path) -> Any:
    """The value at a path, by the definition."""
    for part in path:
        if isinstance(record, dict) and part in record:
            record = record[part]
        elif isinstance(record, list) and part.isdigit() and int(part) < len(record):
            record = record[int(part)]
        else:
            return MISSING
    return record


def looks_like(batch: Batch, rows: list[tuple[bytes, int]]) -> None:
    paths = tuple(map(parse_path, PATHS))
    lines = [line for line, _ in rows]
    records = [json.loads(line, parse_float=exact_number) for line in lines]
    assert len(batch) == batch.count == len(rows)
    assert batch.lines == lines
    assert batch.chunk == b"".join(line + b"\n" for line in lines)
    assert repr(batch.records()) == repr(records)
    assert repr(batch.columns(paths)) == repr([[walked(record, path) for record in records] for path in paths])
    assert [batch.origin(index) for index in range(len(rows))] == [("in", 5 + row, 7 + START[row]) for _, row in rows]


START = [sum(len(line) + 1 for line in (RECORDS * 3)[:row]) for row in range(len(RECORDS * 3))]


@settings(max_examples=200, deadline=None)
@given(st.lists(OPERATIONS, max_size=6), st.booleans(), st.sampled_from([None, PATHS[:1], PATHS]))
def test_batch_against_a_list(operations: list[tuple[str, Any]], of_lines: bool, decoded: list[str] | None) -> None:
    given_lines = RECORDS * 3
    chunk = b"".join(line + b"\n" for line in given_lines)
    span = Span("in", 5, 7, chunk)
    if of_lines:
        batch = Batch(len(given_lines), lines=list(given_lines), span=span)
    else:
        batch = Batch(len(given_lines), chunk=chunk, span=span)
    if decoded:
        batch.columns(tuple(map(parse_path, decoded)))
    rows = list(zip(given_lines, range(len(given_lines)), strict=True))
    history = [(batch, rows)]
    for name, argument in operations:
        if name == "look":
            attribute = getattr(batch, argument)
            if callable(attribute):
                attribute(*[(("x",),)] * (argument == "columns"))
            continue
        if name == "take":
            indices = [index % len(rows) for index in argument if rows]
            batch, rows = batch.take(indices), [rows[index] for index in indices]
        elif name == "without":
            gone = {index % len(rows) for index in argument if rows}
            batch, rows = batch.without(gone), [row for index, row in enumerate(rows) if index not in gone]
        else:
            changes = {index % len(rows): line for index, line in argument.items() if rows}
            batch = batch.replace(changes)
            rows = [(changes.get(index, line), row) for index, (line, row) in enumerate(rows)]
        history.append((batch, rows))
    for each, expected in history:  # the ones it was made from are as they were
        looks_like(each, expected)


# -- edit ----------------------------------------------------------------------------------------------------------

VALUES = [
    b"1.10",
    b"1e400",
    b"-0",
    b"1" * 40,
    b'"\\u00e9\\/"',
    b'"\xc3\xa9"',
    b"[1,  2]",
    b'{"k" : 1.0}',
    b"null",
    LONG,
]
NAMES = ["a", "b", "é", "a/b", "", 'q"\\']


@st.composite
def raw_objects(draw: st.DrawFn) -> dict[str, bytes]:
    return draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=5))


def spelled(members: dict[str, bytes], space: str = "") -> bytes:
    pieces = [
        json.dumps(name, ensure_ascii=False).encode() + space.encode() + b":" + value for name, value in members.items()
    ]
    return b"{" + (b"," + space.encode()).join(pieces) + b"}"


@settings(max_examples=200, deadline=None)
@given(raw_objects(), raw_objects(), st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(["", " "]),
       st.sampled_from([(2, b"2"), ("é\n", b'"\xc3\xa9\\n"'), (None, b"null"), ({"z": [1.5]}, b'{"z":[1.5]}'), (10**30, b"1" + b"0" * 30)]))  # fmt: skip
def test_edit_keeps_the_other_bytes(
    outer: dict[str, bytes], inner: dict[str, bytes], name: str, at: str, space: str, change: tuple[Any, bytes]
) -> None:
    value, encoded = change
    assert edit(spelled(outer, space), [((name,), value)]) == spelled({**outer, name: encoded})
    deeper = {**outer, "in": spelled(inner, space), "list": b"[1.0,  " + spelled(inner, space) + b", 2]"}
    changed = {**deeper, "in": spelled({**inner, at: encoded})}
    assert edit(spelled(deeper, space), [(("in", at), value)]) == spelled(changed)
    changed["list"] = b"[1.0," + spelled({**inner, at: encoded}) + b",2]"
    both = [(("in", at), value), (("list", "1", at), value)]
    assert edit(spelled(deeper, space), both) == spelled(changed)
    assert decode_record(spelled(changed)).keys() == changed.keys()
