"""Field paths, columns of values, and numbers that are what the record says.

A path is `a.b.c`, or for names with odd characters a JSON Pointer (RFC 6901) such as `/a.b/c`. Each segment is an
object key; on an array a segment of digits is an index. *Missing* and *null* are different: a missing field decodes
as `MISSING`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from decimal import MAX_EMAX, Decimal, InvalidOperation
from itertools import chain
from math import isinf
from typing import Any, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")
Path = tuple[str, ...]
Kinds = AbstractSet[type]
MISSING = msgspec.UNSET
_INFINITE = Decimal((0, (9,), MAX_EMAX))
# Between these, a number of at most so many characters is the only one of its length with that double.
_SMALLEST, _LARGEST, _SAFE_LENGTH = 1e-290, 2.0**53, 16
_DIGITS = bytes(48 if byte in b"0123456789." else 32 for byte in range(256))
_LONG = b"0" * _SAFE_LENGTH
_EXPONENT = re.compile(rb"[eE][-+]?[0-9]")
NULLS: Kinds = {type(None), type(MISSING)}
LIKE_KEYS: Kinds = {int, float, str, *NULLS}
"""Types of which Python finds those values equal that have equal keys, except that to keys null is missing. Not bool: to
Python True is 1. Not Decimal: rare."""
_check_syntax = msgspec.json.Decoder(msgspec.Raw).decode


def parse_path(text: str) -> Path:
    """The segments of a field path. Raises ValueError when the text is not a path."""
    if text.startswith("/"):
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/"))
    parts = tuple(text.split("."))
    if not all(parts):
        raise ValueError(f"{text!r} is not a field path; write a.b.c, or /a.b/c for a name with odd characters")
    return parts


def pointer(path: Sequence[str | int]) -> str:
    """The JSON Pointer of a path: `` for the record itself, `/a/b` for a field."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def walk(value: Any, path: Path) -> Any:
    """The value a path leads to from `value`, or MISSING."""
    for part in path:
        if isinstance(value, dict):
            value = value.get(part, MISSING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


class Column(list[Any]):
    """The values of a field, a record each. Nobody changes them, so which types they have is looked at once, or is known:
    `kinds` are the types that they may have."""

    __slots__ = ("_kinds",)

    def __init__(self, values: Iterable[Any], kinds: frozenset[type] | None = None) -> None:
        super().__init__(values)
        self._kinds = kinds

    @property
    def kinds(self) -> frozenset[type]:
        if self._kinds is None:
            self._kinds = frozenset(map(type, self))
        return self._kinds


def kinds_of(values: Sequence[Any]) -> frozenset[type]:
    """The types that some values may have; of a plain list, those they have."""
    return values.kinds if isinstance(values, Column) else frozenset(map(type, values))


def are_labels(kinds: Iterable[Kinds]) -> bool:
    """Whether values of these types, of a field each, can be looked up in place of their keys."""
    return all(each <= LIKE_KEYS and not each >= NULLS for each in kinds)


def picked(items: Sequence[T], places: Sequence[int]) -> list[T]:
    """The items at these places."""
    return list(map(items.__getitem__, places))


class Derived(NamedTuple):
    """A column that is made of fields, record by record: where those are at hand, perhaps in another process. `name` is its
    own in a pipeline."""

    name: str
    paths: tuple[Path, ...]
    make: Callable[[Sequence[list[Any]]], list[Any]]


def fields_of(columns: Iterable[Path | Derived]) -> tuple[Path, ...]:
    """The fields that these columns are, or are made of."""
    paths = (column.paths if isinstance(column, Derived) else (column,) for column in columns)
    return tuple(dict.fromkeys(chain.from_iterable(paths)))


def decode_long(line: bytes) -> dict[str, Any]:
    """A JSON object, integers beyond Python's limit of digits as Decimals. For the rare line that needs it. Raises
    msgspec.DecodeError."""
    import json

    _check_syntax(line)  # Python's own decoder takes NaN and halves of surrogate pairs
    try:
        record: dict[str, Any] = json.loads(line, parse_int=_any_integer, parse_float=exact_number)
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from None
    return record


def _any_integer(text: str) -> int | Decimal:
    return int(text) if len(text) < 4000 else Decimal(text)


def exact_number(text: str) -> float | Decimal:
    """A JSON number with a fraction or exponent: a float where Python writes that float with the number's value and no
    integer is its neighbour, a Decimal otherwise (1e400, 1e23, more digits than a double has)."""
    number = float(text)
    if len(text) <= _SAFE_LENGTH and _SMALLEST < abs(number) < _LARGEST:
        return number
    try:
        exact = Decimal(text)
    except InvalidOperation:  # an exponent of 19 digits: larger, or smaller, than anything else is all that can be said
        return _INFINITE.copy_sign(Decimal(number)) if isinf(number) else number
    return number if abs(number) < _LARGEST and exact == Decimal(repr(number)) else exact


def may_be_inexact(values: list[Any], chunk: bytes) -> bool:
    """Whether some float among `values`, decoded from `chunk` as the nearest double, may not be what `exact_number` says.
    Numbers of 15 digits never share a double unless they are as small as doubles get."""
    kinds = kinds_of(values)
    if not kinds.isdisjoint((list, dict)):
        return _has_long_number(chunk) or _EXPONENT.search(chunk) is not None
    if float not in kinds:
        return False
    sizes = [abs(value) for value in values if type(value) is float]
    if max(sizes) >= _LARGEST or (min(sizes) <= _SMALLEST and _EXPONENT.search(chunk)):
        return True
    return _has_long_number(chunk)


def _has_long_number(chunk: bytes) -> bool:
    return _LONG in chunk.translate(_DIGITS)
