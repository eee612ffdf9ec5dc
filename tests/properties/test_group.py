"""`group` against a dictionary of lists and exact fractions; in memory, spilled and sorted, which must be the same."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_sort import rank, texts

from etlcli.io import spill
from etlcli.stages import group
from etlcli.stages.group import Group
from etlcli.testing.contract import Outcome, Trial, cut, run

NUMBERS = st.one_of(
    st.integers(-5, 5).map(str), st.integers().map(str), st.integers(min_value=-(2**80), max_value=2**80).map(str),
    st.decimals(-1000, 1000, places=2).map(str), st.decimals(-9, 9, places=7).map(str),
    st.sampled_from(["0.1", "0.2", "0.3", "1.0", "1.10", "-0.0", "-0", "1e3", "1E-7", "2.5e15", "1e22", "1e300", "-1e300", "5e-324",
                     "1e400", "-1e400", "9007199254740993", "1" * 400, "1e308", "0.30000000000000004", "3.14159265358979323846",
                     "0.1000000000000000055511151231257827", "0.10000000000000000000"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(["1", "1.0", "2", "0", "-0", "0.0", "null", "true", "false", '"a"', '"\\u0061"', '"é"', "[1, 2]", "[1,2.0]",
                     '{"x": 1}', "9007199254740993", "9007199254740992", "9007199254740992.0"]),
    texts,
)  # fmt: skip
ANY = st.one_of(NUMBERS, KEYS)


def records(value: st.SearchStrategy[str], max_size: int = 30) -> st.SearchStrategy[list[dict[str, str]]]:
    """Records as texts of their fields, any of them missing."""
    fields = st.fixed_dictionaries({}, optional={"k": KEYS, "in": KEYS.map(lambda text: f'{{"k":{text}}}'), "v": value})
    return st.lists(fields, max_size=max_size)


def lines_of(found: list[dict[str, str]]) -> list[bytes]:
    return [
        ("{" + "".join(f'"{name}":{text}, ' for name, text in fields.items()) + f'"n":{number}}}').encode()
        for number, fields in enumerate(found)
    ]


# -- The model -------------------------------------------------------------------------------------------------------


def decoded(text: str | bytes) -> Any:
    return json.loads(text, parse_float=Decimal)


def ranked(value: Any) -> Any:
    return rank(json.loads(value, parse_int=Decimal, parse_float=Decimal) if isinstance(value, str) else value)


def groups_of(found: list[dict[str, str]], by: list[str]) -> list[list[int]]:
    """Indices, in first-seen order of the groups."""
    groups: list[tuple[Any, list[int]]] = []
    for index, fields in enumerate(found):
        key = [ranked(text_at(fields, name) or "null") for name in by]
        for known, members in groups:
            if known == key:
                members.append(index)
                break
        else:
            groups.append((key, [index]))
    return [members for _, members in groups]


def text_at(fields: dict[str, str], name: str) -> str | None:
    """The field's text, None for null and missing."""
    if name == "in.k":
        inner = fields.get("in")
        text = inner[5:-1] if inner else None
    else:
        text = fields.get(name)
    return None if text == "null" else text


def check_number(got: Any, exactly: Fraction) -> None:
    """The nearest double, or 17 digits beyond them."""
    try:
        assert float(got) == float(exactly)
    except OverflowError:
        assert abs(Fraction(got) - exactly) <= abs(exactly) / 10**16


def check_aggregates(record: dict[str, Any], texts: list[str], count: int) -> None:
    """`record` against the texts of the numbers in one group, null and missing left out."""
    values = [Fraction(Decimal(text)) for text in texts]
    integral = all(isinstance(decoded(text), int) for text in texts)
    assert record["records"] == count
    assert record["n"] == len(values)
    assert record["different"] == len(set(values))
    assert list(map(Fraction, record["all"])) == values
    if not values:
        names = ("total", "mean", "low", "high", "first", "last", "sd", "median", "p90", "p99")
        assert [record[name] for name in names] == [None] * len(names)
        return
    assert Fraction(record["total"]) == sum(values)
    assert isinstance(record["total"], int) == integral
    assert [Fraction(record[name]) for name in ("low", "high", "first", "last")] == [
        min(values), max(values), values[0], values[-1]]  # fmt: skip
    check_number(record["mean"], sum(values) / len(values))
    for name, part in (("median", Fraction(1, 2)), ("p90", Fraction(9, 10)), ("p99", Fraction("0.999"))):
        check_number(record[name], interpolated(sorted(values), part))
    if len(values) < 2:
        assert record["sd"] is None
    else:
        mean = sum(values) / len(values)
        check_root(record["sd"], sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def interpolated(values: list[Fraction], part: Fraction) -> Fraction:
    place = part * (len(values) - 1)
    low = values[math.floor(place)]
    return low + (place - math.floor(place)) * (values[math.ceil(place)] - low)


def check_root(got: Any, square: Fraction) -> None:
    """No double is nearer to the square root."""
    if square > Fraction(1e308) ** 2:
        assert abs(Fraction(got) ** 2 - square) <= square / 10**15
        return
    below, above = (math.nextafter(float(got), limit) for limit in (-math.inf, math.inf))
    assert max(Fraction(0), Fraction(below) + Fraction(float(got))) ** 2 / 4 <= square
    assert square <= (Fraction(above) + Fraction(float(got))) ** 2 / 4


# -- The stage -------------------------------------------------------------------------------------------------------

AGGREGATES = ["records=count()", "n=count(v)", "total=sum(v)", "mean=mean(v)", "low=min(v)", "high=max(v)", "first=first(v)",
              "last=last(v)", "different=distinct(v)", "all=list(v)", "sd=stddev(v)", "median=median(v)", "p90=p90(v)",
              "p99=p99.9(v)"]  # fmt: skip
BY = st.sampled_from([["k"], ["in.k"], ["k", "in.k"]])
SIZES = st.integers(1, 9)


def grouped(lines: list[bytes], size: int, memory: int = 1 << 30, **options: Any) -> Outcome:
    sizes = [min(size, len(lines) - start) for start in range(0, len(lines), size)]
    with mock.patch.object(spill, "_MIN_BLOCK", 64), mock.patch.object(spill, "_MAX_FAN_IN", 3):
        outcome = run(Trial(Group, options, lines, memory), cut(lines, sizes))
    assert outcome.counts.missing() == 0
    return outcome


@settings(max_examples=150, deadline=None)
@given(records(st.one_of(NUMBERS, NUMBERS, st.just("null"))), BY, SIZES, st.sampled_from([1, 2000, 20_000]))
@example([{"v": "0.1"}, {"v": "0.2"}], ["k"], 1, 1)
@example([{"v": "1e300"}, {"v": "1"}, {"v": "-1e300"}], ["k"], 2, 1)
@example([{"v": "0.1"}] * 10 + [{"v": "1.25"}, {"v": "3"}] * 8, ["k"], 30, 1)
@example([{"v": "9" * 4000}] * 20, ["k"], 7, 1)
def test_summaries(found: list[dict[str, str]], by: list[str], size: int, memory: int) -> None:
    lines = lines_of(found)
    in_memory = grouped(lines, size, by=by, agg=AGGREGATES)
    assert grouped(lines, size, memory, by=by, agg=AGGREGATES).lines == in_memory.lines
    assert grouped(lines, len(lines) or 1, by=by, agg=AGGREGATES).lines == in_memory.lines
    groups = groups_of(found, by)
    assert len(in_memory.lines) == len(groups)
    assert in_memory.counts.made == len(groups)
    assert in_memory.counts.absorbed.total() == len(lines)
    for line, members in zip(in_memory.lines, groups, strict=True):
        texts = [text for member in members if (text := text_at(found[member], "v")) is not None]
        check_aggregates(decoded(line), texts, len(members))
        first = found[members[0]]
        if by == ["k"]:
            assert line.startswith(f'{{"k":{text_at(first, "k") or "null"},'.encode())


@settings(max_examples=150, deadline=None)
@given(records(ANY), SIZES, st.sampled_from([1, 3000]))
def test_any_values(found: list[dict[str, str]], size: int, memory: int) -> None:
    """min, max, first, last, list, distinct and count take values of any type, by the order of sort."""
    lines = lines_of(found)
    aggregates = ["low=min(v)", "high=max(v)", "first=first(v)", "last=last(v)", "all=list(v)", "different=distinct(v)"]
    in_memory = grouped(lines, size, by="k", agg=aggregates)
    assert grouped(lines, size, memory, by="k", agg=aggregates).lines == in_memory.lines
    for line, members in zip(in_memory.lines, groups_of(found, ["k"]), strict=True):
        record = json.loads(line, parse_int=Decimal, parse_float=Decimal)
        ranks = [ranked(text) for member in members if (text := text_at(found[member], "v")) is not None]
        assert list(map(rank, record["all"])) == ranks
        if ranks:
            assert [rank(record[name]) for name in ("low", "high", "first", "last")] == [
                min(ranks), max(ranks), ranks[0], ranks[-1]]  # fmt: skip
        assert record["different"] == len({repr(plain(each)) for each in ranks})


def plain(value: Any) -> Any:
    """Numbers in one spelling, so that equal ones look alike."""
    if isinstance(value, Decimal | int | float):
        return Fraction(value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@settings(max_examples=100, deadline=None)
@given(records(ANY), SIZES)
def test_what_is_no_number_is_rejected(found: list[dict[str, str]], size: int) -> None:
    """It takes part in no aggregate, not in a count either."""
    lines = lines_of(found)
    outcome = grouped(lines, size, by="k", agg=["n=count()", "total=sum(v)"])
    bad = [
        index
        for index, fields in enumerate(found)
        if (text := text_at(fields, "v")) is not None
        and (isinstance(decoded(text), bool) or not isinstance(decoded(text), int | Decimal))
    ]
    assert [reject.raw for reject in outcome.rejects] == [lines[index] for index in bad]
    assert {reject.code for reject in outcome.rejects} <= {"bad_type"}
    good = [line for index, line in enumerate(lines) if index not in bad]
    assert outcome.lines == grouped(good, size, by="k", agg=["n=count()", "total=sum(v)"]).lines


@settings(max_examples=150, deadline=None)
@given(records(ANY), BY, SIZES, st.sampled_from([1, 600, 3000]), st.sampled_from([1, 3, 4096]))
def test_records_of_groups(found: list[dict[str, str]], by: list[str], size: int, memory: int, out: int) -> None:
    lines = lines_of(found)
    groups = groups_of(found, by)
    with mock.patch.object(group, "_OUT", out):
        for limit in (1 << 30, memory):
            stream = grouped(lines, size, limit, by=by, emit="stream")
            assert stream.lines == [lines[member] for members in groups for member in members]
            assert not stream.counts.absorbed
            lists = grouped(lines, size, limit, by=by, emit="list")
            assert [line.partition(b'"records":')[2] for line in lists.lines] == [
                b"[%b]}" % b",".join(lines[member] for member in members) for members in groups
            ]
            assert (lists.counts.made, lists.counts.absorbed.total()) == (len(groups), len(lines))


@settings(max_examples=100, deadline=None)
@given(records(NUMBERS), SIZES, st.sampled_from(["summary", "list", "stream"]))
def test_sorted_input(found: list[dict[str, str]], size: int, emit: str) -> None:
    """What is grouped already: --assume-sorted gives the same, group by group."""
    lines = lines_of(found)
    options: dict[str, Any] = {"by": "k", "emit": emit, "agg": AGGREGATES if emit == "summary" else ()}
    together = grouped(lines, 5, by="k", emit="stream").lines
    outcome = grouped(together, size, **options, assume_sorted=True)
    assert not outcome.error
    assert outcome.lines == grouped(lines, 5, **options).lines


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=12), SIZES, st.sampled_from(["summary", "list", "stream"]))
def test_a_group_that_comes_back(keys: list[str], size: int, emit: str) -> None:
    """An error, after all that came before it; the same however the input is cut."""
    lines = [b'{"k":"%b"}' % key.encode() for key in keys]
    options: dict[str, Any] = {
        "by": "k",
        "emit": emit,
        "agg": "n=count()" if emit == "summary" else (),
        "assume_sorted": True,
    }
    runs = [key for index, key in enumerate(keys) if index == 0 or keys[index - 1] != key]
    outcome = run(
        Trial(Group, options, lines), cut(lines, [min(size, len(lines) - at) for at in range(0, len(lines), size)])
    )
    assert bool(outcome.error) == (len(set(runs)) < len(runs))
    whole = run(Trial(Group, options, lines), cut(lines, [len(lines)]))
    assert outcome.visible() == whole.visible()


@pytest.mark.parametrize("keys", [20, 3001])
@pytest.mark.parametrize("emit", ["summary", "list", "stream"])
def test_many_groups_on_disk(emit: str, keys: int) -> None:
    lines = [b'{"v":%d,"k":"%d","pad":"%s"}' % (n * 31 % 97, n * n * 7919 % keys, b"x" * (n % 50)) for n in range(9000)]
    options: dict[str, Any] = {
        "by": "k",
        "emit": emit,
        "agg": ["n=count()", "all=list(v)"] if emit == "summary" else (),
    }
    assert grouped(lines, 500, 200_000, **options).lines == grouped(lines, 500, **options).lines


def test_spelling_of_by_values() -> None:
    """The first record's bytes, whatever they are."""
    for text in ["1.10", "-0", "1E2", '"\\u00e9"', '"a\\/b"', "1e400", "[ 1 ]", "12345678901234567890123", '"é\x7f"']:
        lines = [f'{{"k": {text} ,"in":{{"k":{text}}}}}'.encode()]
        [line] = grouped(lines, 1, by="k,in.k", agg="n=count()").lines
        assert line == f'{{"k":{text},"in":{{"k":{text}}},"n":1}}'.encode()
