"""The order of any values. Against a model: tests/properties/test_sort.py."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from etlcli.core.fields import MISSING
from etlcli.core.ordering import KeyMaker, as_number, encode, order_of

# In the order of the design, each strictly before the next.
ASCENDING: list[Any] = [
    False,
    True,
    -Decimal("1e400"),
    -(10**400),
    -1e308,
    -(2**64) - 1,
    -(2**64),
    -(2**53) - 1,
    -(2**53),
    -1.5,
    -1,
    -5e-324,
    -Decimal("1e-400"),
    0,
    Decimal("1e-400"),
    5e-324,
    Decimal("0.09999999999999999999"),
    0.1,
    Decimal("0.1000000000000000055511151231257827"),
    1,
    1.5,
    2,
    10,
    2**53,
    Decimal("9007199254740992.5"),
    2**53 + 1,
    2**53 + 2,
    2**64,
    2**64 + 1,
    10**30,
    10**30 + 1,
    1.7976931348623157e308,
    10**309,
    10**309 + 1,
    Decimal("1e401"),
    Decimal("9" * 5000),
    "",
    "\0",
    "\0\0",
    "\0a",
    "1",
    "10",
    "9",
    "A",
    "a",
    "a\0",
    "a\0b",
    "aa",
    "é",
    "\uffff",
    "🙂",
    [],
    [False],
    [1],
    [1, 2],
    [1, None],
    [2],
    ["a"],
    [[]],
    [{}],
    [None],
    {},
    {"": 1},
    {"a": 1},
    {"a": 1, "b": 0},
    {"a": 2},
    {"a": None},
    {"b": 0},
]
# 10**400 and 1e400 are one number.
ASCENDING.remove(-(10**400))


def keys(values: list[Any], **options: bool) -> list[bytes]:
    descending = options.pop("descending", False)
    return KeyMaker([descending], **options).keys([values])


@pytest.mark.parametrize(("one", "other"), list(pairwise(ASCENDING)), ids=lambda value: str(value)[:12])
def test_the_order_across_types(one: Any, other: Any) -> None:
    assert encode(one) < encode(other)
    up, down = keys([one, other]), keys([one, other], descending=True)
    assert up[0] < up[1]
    assert down[0] > down[1]


@pytest.mark.parametrize(
    "equal",
    [[1, 1.0, Decimal(1)], [0, -0.0, 0.0], [10**400, Decimal("1e400")], [10**23, Decimal("1e23")], [{"a": 1, "b": 2.0}, {"b": 2, "a": 1.0}], [None, MISSING]],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("descending", [False, True])
def test_equal_values_have_equal_keys(equal: list[Any], descending: bool) -> None:
    assert len(set(keys(equal, descending=descending))) == 1


@pytest.mark.parametrize("descending", [False, True])
def test_null_and_missing_stand_outside_the_order(descending: bool) -> None:
    values = [None, *ASCENDING, MISSING]
    last, first = keys(values, descending=descending), keys(values, descending=descending, nulls_first=True)
    assert min(last[0], last[-1]) > max(last[1:-1])
    assert max(first[0], first[-1]) < min(first[1:-1])


def test_several_columns_do_not_run_into_each_other() -> None:
    rows = [("a", "b"), ("ab", ""), ("a", "c"), ("", "ab"), ("a\0", "b"), ("b", "a")]
    made = KeyMaker([False, True]).keys([list(column) for column in zip(*rows, strict=True)])
    expected = sorted(rows, key=lambda row: row[1], reverse=True)
    expected.sort(key=lambda row: row[0])
    assert [rows[index] for index in order_of(made)] == expected


def test_a_key_does_not_depend_on_what_came_before() -> None:
    """Many distinct values turn the memo off, and other types turn packing off; keys are the same."""
    many: list[Any] = list(range(-5000, 5000))
    maker = KeyMaker([True])
    assert maker.keys([many]) == maker.keys([many]) == [KeyMaker([True]).keys([[value]])[0] for value in many]
    mixed = [True, 1, 1.0, "1", None, [1], 2**70]
    assert maker.keys([mixed]) == [KeyMaker([True]).keys([[value]])[0] for value in mixed]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("-1.50", -1.5), ("1e400", Decimal("1e400")), ("1" * 30, int("1" * 30)), ("0", 0)],
)
def test_numeric_reads_strings_that_spell_a_number(text: str, number: Any) -> None:
    assert keys([text], numeric=True) == keys([number])


@pytest.mark.parametrize(
    "value",
    ["", " 1", "1\n", "abc", "1x", "0x10", "١", "NaN", "true", "null", '"1"', "[1]", "1 2", "+1", "01", "\ud800"],
)
def test_numeric_leaves_other_strings(value: str) -> None:
    assert as_number(value) is value
    json.dumps(value)


def test_numeric_leaves_other_values() -> None:
    values = [True, None, MISSING, [1], {"a": "1"}]
    assert keys(values, numeric=True) == keys(values)


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_order_of(count: int) -> None:
    few = [b"%d" % (number * 7 % 3) for number in range(count)]
    many = [b"%d" % (number * 7919 % 1009) for number in range(count)]
    for made in (few, many):
        assert order_of(made) == sorted(range(count), key=lambda index: (made[index], index))
