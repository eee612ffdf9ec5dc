"""Changing fields of a record. That all other bytes stay: tests/properties/test_intake.py."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from etlcli.core.edit import edit

LINE = b'{"a": 1.10, "b": {"c": [1, {"d": 1e400}, "\\u00e9"]}, "a2": -0}'


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("a",), 2, b'{"a":2,"b":{"c": [1, {"d": 1e400}, "\\u00e9"]},"a2":-0}'),
        (("new",), None, b'{"a":1.10,"b":{"c": [1, {"d": 1e400}, "\\u00e9"]},"a2":-0,"new":null}'),
        (("b", "c", "1", "d"), True, b'{"a":1.10,"b":{"c":[1,{"d":true},"\\u00e9"]},"a2":-0}'),
        (("b", "c", "0"), "\n", b'{"a":1.10,"b":{"c":["\\n",{"d": 1e400},"\\u00e9"]},"a2":-0}'),
        (("b", "e"), {"x": [1.5]}, b'{"a":1.10,"b":{"c":[1, {"d": 1e400}, "\\u00e9"],"e":{"x":[1.5]}},"a2":-0}'),
        (("a",), msgspec.Raw(b"1.100"), b'{"a":1.100,"b":{"c": [1, {"d": 1e400}, "\\u00e9"]},"a2":-0}'),
        (("a",), Decimal("1e400"), b'{"a":1E+400,"b":{"c": [1, {"d": 1e400}, "\\u00e9"]},"a2":-0}'),
    ],
)
def test_one_change(path: tuple[str, ...], value: object, expected: bytes) -> None:
    assert edit(LINE, [(path, value)]) == expected


def test_changes_apply_in_order() -> None:
    assert edit(b'{"a":{"b":1}}', [(("a", "b"), 2), (("a", "c"), 3), (("a", "b"), 4)]) == b'{"a":{"b":4,"c":3}}'
    assert edit(b"{}", [(("a",), {}), (("a", "b"), 1)]) == b'{"a":{"b":1}}'


def test_without_a_change_only_space_goes() -> None:
    assert edit(b' {"a" : 1.10 } ', []) == b'{"a":1.10}'


def test_of_duplicate_keys_the_last_stays() -> None:
    assert edit(b'{"a":1.0,"b":1,"a":2.0}', [(("b",), 0)]) == b'{"a":2.0,"b":0}'


@pytest.mark.parametrize("path", [("x", "y"), ("b", "c", "7", "d"), ("b", "c", "7")])
def test_the_parent_must_be_there(path: tuple[str, ...]) -> None:
    with pytest.raises((KeyError, IndexError)):
        edit(LINE, [(path, 1)])
