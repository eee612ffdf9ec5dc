"""Exact arithmetic: sums that depend on nothing but the numbers, results rounded once."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etlcli.core import exact
from etlcli.core.aggregates import parse_call
from etlcli.core.edit import encode

NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.integers(), st.integers(-9, 9), st.decimals(-100, 100, places=2).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False).filter(exact.is_countable),
    st.sampled_from([Decimal("0.1000000000000000055511151231257827"), Decimal("1e400"), Decimal("-1e-400"), 10**4000]),
)  # fmt: skip


def value_of(number: Any) -> Fraction:
    """What is spelled."""
    return Fraction(Decimal(repr(number)) if isinstance(number, float) else number)


@settings(max_examples=150, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=30), st.randoms(use_true_random=False))
@example([0.1] * 10, random.Random(1))
@example([12345678901234.5] * 10 + [Decimal("0.00000000000000000001")], random.Random(1))
def test_sums(numbers: list[Any], generator: random.Random) -> None:
    """Exact, and the same in any order and however they are cut."""
    assert Fraction(exact.total(numbers)) == sum(map(value_of, numbers))
    assert Fraction(exact.squares(numbers)) == sum(value_of(number) ** 2 for number in numbers)
    shuffled = generator.sample(numbers, len(numbers))
    cut = generator.randint(1, len(shuffled))
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if part]
    merged = exact.total(parts[0])
    for part in parts[1:]:
        merged = exact.add(merged, exact.total(part))
    assert str(exact.spelled(merged)) == str(exact.spelled(exact.total(numbers)))


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_states_survive_the_disk(numbers: list[Any]) -> None:
    for name in ("sum", "mean", "stddev", "median", "list", "distinct", "count"):
        aggregate = parse_call(f"x={name}(v)").aggregate
        state = aggregate.maker(set(map(type, numbers)))(numbers)
        loaded = aggregate.load(aggregate.dump(state))
        json.loads(aggregate.dump(state).decode(), parse_int=Decimal)
        assert encode(aggregate.results([loaded])) == encode(aggregate.results([state])), name


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([1, 2], "3"), ([0.1, 0.2], "0.3"), ([1.5, 1.5], "3.0"), ([1, 2.0], "3.0"), ([-0.0], "0.0"), ([1e22, 1], "10000000000000000000001.0"),
        ([1e300], "1E+300"), ([0.5, -0.5], "0.0"), ([1e15, 0.5], "1000000000000000.5"), ([Decimal("1.10"), 1], "2.1"),
    ],
)  # fmt: skip
def test_one_spelling(numbers: list[Any], text: str) -> None:
    assert str(exact.spelled(exact.total(numbers))) == text


def test_what_is_too_large_is_not_countable() -> None:
    assert exact.is_countable(Decimal("1e9999")) and exact.is_countable(Decimal("1e-9999"))
    assert not exact.is_countable(Decimal("1e10000")) and not exact.is_countable(Decimal("1e-10000"))
    assert not exact.is_countable(Decimal("1e999999999"))


@pytest.mark.parametrize(
    "text",
    ["", "x", "x=", "=sum(a)", "x=sum", "x=sum()", "x=p(a)", "x=p100.1(a)", "x=p-1(a)", "x.=sum(a)", "x=sum(a.)"],
)
def test_what_is_no_aggregate(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_call(text)


def test_aggregates_are_written_with_or_without_space() -> None:
    call = parse_call(" in.total = sum ( a.b ) ")
    assert (call.name, call.field) == (("in", "total"), ("a", "b"))
    assert parse_call("x=sum(/a(b) c)").field == ("a(b) c",)
