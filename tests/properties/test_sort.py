"""`sort` against `sorted`, with any JSON values; in memory and spilled, which must be the same."""

from __future__ import annotations

import json
from contextlib import ExitStack
from decimal import Decimal
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etlcli.core.batch import Batch, Span
from etlcli.core.fields import MISSING
from etlcli.core.ledger import StepCount
from etlcli.core.ordering import KeyMaker, encode, order_of
from etlcli.core.stage import Context
from etlcli.errors import FindingsError
from etlcli.io import spill as spilling
from etlcli.io.stepfiles import StepFiles
from etlcli.stages import sort
from etlcli.stages.sort import Sort

# -- Values, as they are spelled -------------------------------------------------------------------------------------

NUMBERS = ["0", "-0", "0.0", "-0.0", "1", "1.0", "1e0", "10E-1", "-1", "1.10", "2", "10", "1e2", "0.1", "0.30000000000000004",
           "9007199254740992", "9007199254740993", "9007199254740993.0", "-9007199254740993", "18446744073709551615",
           "18446744073709551616", "18446744073709551617", "123456789012345678901234567890", "1e400", "1e401", "-1e400",
           "1e308", "1.7976931348623157e308", "5e-324", "-5e-324", "1e-400", "1" + "0" * 400, "1" + "0" * 399 + "1", "9" * 5000,
           "1700000000.123456788", "1700000000.123456789", "0.1000000000000000055511151231257827021181583404541015625",
           "1e23", "99999999999999991611392", "100000000000000000000000", "1.2345e-320", "9007199254740992.5", "-9007199254740993.5",
           "-" + "9" * 5000, "9" * 4999 + "8"]  # fmt: skip
TEXTS = ["", "a", "A", "aa", "ab", "b", "\0", "a\0", "a\0b", "\0\0", "é", "z", "\u2028", "\uffff", "\ue000", "🙂", "10", "9", "1.0", " 1", "-1", "1e400",
         "NaN", "true", "x" * 300]  # fmt: skip


def spell(text: str) -> st.SearchStrategy[str]:
    """The text as JSON, plain and escaped: one value, two spellings."""
    return st.sampled_from([json.dumps(text), json.dumps(text, ensure_ascii=False)])


numbers = st.one_of(
    st.sampled_from(NUMBERS), st.integers().map(str), st.integers(-3, 3).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(min_value=-(2**70), max_value=2**70).map(str),
)  # fmt: skip
texts = st.one_of(
    st.sampled_from(TEXTS), st.text(max_size=4, alphabet=st.characters(exclude_categories=["Cs"]))
).flatmap(spell)
scalars = st.one_of(numbers, texts, st.sampled_from(["true", "false", "null"]))


def arrays(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=3).map(lambda found: "[" + ", ".join(found) + "]")


def objects(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.lists(st.tuples(st.sampled_from(["a", "b", "\0", "", "é"]).flatmap(spell), items), max_size=3)
    return members.map(lambda found: "{" + ",".join(f"{name}:{value}" for name, value in found) + "}")


values = st.recursive(scalars, lambda inner: st.one_of(arrays(inner), objects(inner)), max_leaves=5)


def records(value: st.SearchStrategy[str], max_size: int = 25) -> st.SearchStrategy[list[bytes]]:
    """Records with the fields k, s and `in.k`, any of them missing, each with a number of its own."""
    members = st.fixed_dictionaries({}, optional={"k": value, "s": value, "in": value.map(lambda v: f'{{"k":{v}}}')})

    def record(number: int, fields: dict[str, str]) -> bytes:
        return ("{" + "".join(f'"{name}":{text}, ' for name, text in fields.items()) + f'"n":{number}' + "}").encode()

    return st.lists(members, max_size=max_size).map(lambda found: [record(*item) for item in enumerate(found)])


few = st.one_of(st.sampled_from(["1", "1.0", "2", "null", '"a"', '"b"', "true", "[]", "9" * 5000]))

# -- The model -------------------------------------------------------------------------------------------------------


def rank(value: Any) -> tuple[Any, ...]:
    """What orders any values: the type first, then as Python has it."""
    if value is False:
        return (0,)
    if value is True:
        return (1,)
    if isinstance(value, float | Decimal):
        return (2, value)
    if isinstance(value, str):
        return (3, [ord(char) for char in value])
    if isinstance(value, list):
        return (4, [rank(item) for item in value])
    if isinstance(value, dict):
        return (5, [(name, rank(item)) for name, item in sorted(value.items())])
    return (6,)  # null, inside another value


def field(record: Any, path: str, numeric: bool) -> Any:
    for part in path.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    if numeric and isinstance(record, str) and record == record.strip():
        try:
            found = json.loads(record, parse_int=Decimal, parse_float=Decimal, parse_constant=lambda name: None)
        except ValueError:
            return record
        return found if isinstance(found, float | Decimal) else record
    return record


def model(lines: list[bytes], by: list[str], *, nulls: str = "last", unique: bool = False, top: int | None = None,
          numeric: bool = False) -> list[bytes]:  # fmt: skip
    """Stable sorts from the last field to the first, one a direction."""
    decoded = [(json.loads(line, parse_int=Decimal, parse_float=Decimal), line) for line in lines]

    def key_of(record: Any, name: str) -> Any:
        value = field(record, name.lstrip("-"), numeric)
        return None if value is None else rank(value)

    for name in reversed(by):
        keyed = [(key_of(record, name), record, line) for record, line in decoded]
        absent = [(record, line) for key, record, line in keyed if key is None]
        present = sorted(
            (item for item in keyed if item[0] is not None), key=lambda item: item[0], reverse=name[0] == "-"
        )
        there = [(record, line) for _, record, line in present]
        decoded = absent + there if nulls == "first" else there + absent
    if unique:
        seen: list[Any] = []
        kept = []
        for record, line in decoded:
            keys = [key_of(record, name) for name in by]
            if not seen or keys != seen[-1]:
                kept.append((record, line))
            seen.append(keys)
        decoded = kept
    return [line for _, line in decoded][:top]


# -- The stage -------------------------------------------------------------------------------------------------------


def run(lines: list[bytes], size: int, memory: int, **options: Any) -> tuple[list[bytes], StepCount, int]:
    """Sorted lines, the counts, and how many runs were spilled. `size`: records a batch."""
    count = StepCount("sort")
    with ExitStack() as resources:
        ctx = Context(
            count,
            resources=resources,
            files=StepFiles("step", resources, lambda *a, **k: None),
            log=lambda *a, **k: None,
            reject=lambda rejects: None,
            memory=memory,
        )
        stage = Sort(Sort.Params(**options), ctx)
        out: list[bytes] = []
        offset = 0
        for start in range(0, len(lines), size):
            chunk = b"".join(line + b"\n" for line in lines[start : start + size])
            batch = Batch(len(lines[start : start + size]), chunk=chunk, span=Span("in", start + 1, offset, chunk))
            offset += len(chunk)
            count.received += batch.count
            for made in stage.apply(stage.prepare(batch)):
                out += made.lines
        runs = len(stage._piles.runs if stage._piles else stage._runs)
        for made in stage.finish():
            out += made.lines
    count.sent = len(out)
    return out, count, runs


BY = st.lists(
    st.sampled_from(["k", "-k", "s", "-s", "in.k", "-in.k"]),
    min_size=1,
    max_size=3,
    unique_by=lambda name: name.lstrip("-"),
)
OPTIONS = st.fixed_dictionaries(
    {"by": BY, "nulls": st.sampled_from(["last", "first"]), "unique": st.booleans(), "numeric": st.booleans()},
    optional={"top": st.integers(1, 12)},
)
Spill = tuple[int, int, int, int, int]
"""Memory, bytes of a block, runs that are merged at once, records of a batch, and how many share a key where keys are few."""
SPILLS = st.sampled_from(
    [
        (1, 64, 2, 1, 4),
        (300, 1, 2, 2, 4),
        (3000, 64, 3, 3, 4),
        (1, 4096, 256, 4096, 4),
        (1, 64, 2, 1, 1),
        (300, 1, 2, 2, 2),
        (1, 4096, 256, 4096, 1),
    ]
)


def sorts_as_the_model(lines: list[bytes], options: dict[str, Any], size: int, spill: Spill) -> None:
    expected = model(lines, **options)
    memory, block, fan_in, out, shared = spill
    in_memory, count, runs = run(lines, size, 1 << 30, **options)
    assert in_memory == expected
    assert count.missing() == 0
    assert not runs
    with (
        mock.patch.object(spilling, "_MIN_BLOCK", block),
        mock.patch.object(spilling, "_MAX_FAN_IN", fan_in),
        mock.patch.object(sort, "_OUT", out),
        mock.patch.object(sort, "_PARCEL", out * 50),
        mock.patch.object(sort, "_SHARED", shared),
    ):
        spilled, count, runs = run(lines, size, memory, **options)
    assert spilled == expected
    assert count.missing() == 0
    assert runs or len(lines) <= 12 or memory > 1 or options.get("top")


@settings(max_examples=250, deadline=None)
@given(records(values), OPTIONS, st.integers(1, 9), SPILLS)
@example(
    [b'{"k":1,"n":0}', b'{"k":1.0,"n":1}', b'{"k":true,"n":2}'], {"by": ["k"], "unique": True}, 1, (1, 64, 2, 1, 4)
)
@example(
    [b'{"k":" 1","n":0}', b'{"k":"2","n":1}', b'{"k":3,"n":2}'], {"by": ["k"], "numeric": True}, 1, (1, 64, 2, 1, 4)
)
@example([b'{"k":-0,"n":0}', b'{"k":0,"n":1}', b'{"k":-0.0,"n":2}'], {"by": ["-k"]}, 1, (1, 64, 2, 1, 1))
def test_any_values(lines: list[bytes], options: dict[str, Any], size: int, spill: Spill) -> None:
    sorts_as_the_model(lines, options, size, spill)


@settings(max_examples=150, deadline=None)
@given(records(few, max_size=60), OPTIONS, st.integers(1, 20), SPILLS)
def test_many_equal_keys(lines: list[bytes], options: dict[str, Any], size: int, spill: Spill) -> None:
    """Equal keys across runs, blocks and merging passes: stable, and unique keeps the first."""
    sorts_as_the_model(lines, options, size, spill)


def test_many_runs_and_passes() -> None:
    lines = [
        b'{"k":%d,"n":%d,"pad":"%s"}' % (number * 7919 % 257, number, b"x" * (number % 50)) for number in range(3000)
    ]
    sorts_as_the_model(lines, {"by": ["k"]}, 10, (4000, 256, 2, 8, 4))
    sorts_as_the_model(lines, {"by": ["-k"], "unique": True, "top": 100}, 10, (4000, 256, 3, 8, 4))


@pytest.mark.parametrize("fan_in", [2, 3, 256])
def test_runs_of_piles(fan_in: int) -> None:
    """Keys that are few at first and then not; piles that are larger than what is read and put out at a time."""
    few = [b'{"k":%d,"n":%d}' % (number % 3, number) for number in range(900)]
    many = [b'{"k":%d,"n":%d}' % (number * 7919 % 1009, number) for number in range(900, 2500)]
    for lines in (few + many, few + many + few[::-1], few):
        sorts_as_the_model(lines, {"by": ["-k"]}, 100, (9000, 64, fan_in, 8, 4))


@given(st.lists(st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"") + b"\n"), max_size=9)))
def test_blocks_become_batches(blocks: list[list[bytes]]) -> None:
    """However they are cut, and without a change to the blocks, which may belong to somebody."""
    before = [list(block) for block in blocks]
    with mock.patch.multiple(sort, _FIRST=3, _OUT=5, _PARCEL=20):
        batches = list(sort._batches(blocks))
    assert blocks == before
    assert [line for batch in batches for line in batch.whole] == [line for block in blocks for line in block]
    assert all(0 < batch.count == len(batch.whole) <= 5 and batch.chunk == b"".join(batch.whole) for batch in batches)


@settings(max_examples=150, deadline=None)
@given(records(values, max_size=12), OPTIONS.map(lambda options: {**options, "top": None}), st.integers(1, 5))
def test_check_agrees_with_sort(lines: list[bytes], options: dict[str, Any], size: int) -> None:
    """--check passes exactly what sort would leave as it is, and names the first line that is out of order."""
    made = model(lines, **options)
    run(made, size, 1 << 30, **options, check=True)
    if made == lines:
        run(lines, size, 1 << 30, **options, check=True)
        return
    with pytest.raises(FindingsError) as caught:
        run(lines, size, 1 << 30, **options, check=True)
    at = int(caught.value.where.split(":")[1])
    assert model(lines[: at - 1], **options) == lines[: at - 1]
    assert model(lines[:at], **options) != lines[:at]


# -- Keys ------------------------------------------------------------------------------------------------------------


def decoded(text: str) -> Any:
    from etlcli.core.batch import decode_record

    return decode_record(b'{"v":' + text.encode() + b"}")["v"]


@settings(max_examples=500, deadline=None)
@given(values, values)
@example("0.1", "0.1000000000000000055511151231257827")
@example("9007199254740993", "9007199254740992.0")
@example("[1]", "[1,null]")
@example('{"a":1}', '{"a":1,"b":2}')
@example('"a"', '"a\\u0000"')
@example("1e400", "1" + "0" * 400)
def test_keys_compare_as_the_values_do(one: str, other: str) -> None:
    keys = [encode(decoded(text)) for text in (one, other)]
    ranks = [rank(json.loads(text, parse_int=Decimal, parse_float=Decimal)) for text in (one, other)]
    assert (keys[0] < keys[1], keys[0] == keys[1]) == (ranks[0] < ranks[1], ranks[0] == ranks[1])
    assert keys[0] == keys[1] or not keys[1].startswith(
        keys[0]
    )  # what makes descending, and columns side by side, right


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, max_size=30), st.booleans())
def test_numbers_packed_at_once_are_those_packed_singly(found: list[str], descending: bool) -> None:
    column = [decoded(text) for text in found]
    together = KeyMaker([descending])
    together.unique = True  # as after a column of distinct keys
    assert together.keys([column]) == [KeyMaker([descending]).keys([[value]])[0] for value in column]
    rest = [value for value in column if isinstance(value, int | float) and abs(value) < 1e15]
    assert together.keys([rest]) == [KeyMaker([descending]).keys([[value]])[0] for value in rest]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["1", "1.0", "true", "null", '"1"', "[1]", "missing"]), scalars), max_size=40)
)
def test_what_was_seen_before_changes_no_key(rows: list[tuple[str, str]]) -> None:
    """1, 1.0 and true are one dictionary key in Python; the memo must not take them for one value."""
    columns = [
        [MISSING if text == "missing" else decoded(text) for text in column] for column in zip(*rows, strict=True)
    ] or [[], []]
    one = KeyMaker([False, True])
    whole = one.keys(columns)
    assert whole == one.keys(columns)
    assert whole == [
        KeyMaker([False, True]).keys([[first], [second]])[0] for first, second in zip(*columns, strict=True)
    ]


@given(st.lists(st.sampled_from([b"a", b"b", b"c", b""]), max_size=50), st.lists(st.binary(max_size=2), max_size=50))
def test_order_of_is_stable(few: list[bytes], many: list[bytes]) -> None:
    for keys in (few, many):
        assert order_of(keys) == sorted(range(len(keys)), key=lambda index: (keys[index], index))
