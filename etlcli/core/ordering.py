"""Keys that sort as the values do: any JSON values in, bytes out, to be compared with memcmp.

The order across types: false, true, numbers, strings (by code point), arrays, objects. Numbers compare by their value,
exactly, whatever their size and spelling: 1 = 1.0, and 2**53 + 1 is not 2**53. Arrays compare element by element, objects
as their members sorted by name. Null and missing are equal to each other and stand outside the order: last, or first, in
both directions.

Encoding of one value, after the idea of FoundationDB's tuple layer: a type byte, then a self-delimiting body. Numbers are
the sign, the nearest double's bits (inverted for negatives), then how far the value is from the shortest decimal that
this double is the nearest to: usually nothing.
Descending is the same with all bits inverted, which works because no encoding is a prefix of another.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from itertools import chain
from math import inf, isinf
from typing import Any, TypeVar

import msgspec

from etlcli.core.fields import LIKE_KEYS, MISSING, Kinds, exact_number, kinds_of, picked

T = TypeVar("T")
_INVERT = bytes(range(255, -1, -1))
_NULLS_FIRST, _PRESENT, _NULLS_LAST = b"\x01", b"\x02", b"\x03"
_END, _FALSE, _TRUE, _NUMBER, _STRING, _ARRAY, _OBJECT, _NULL = (bytes([code]) for code in range(8))
_NEGATIVE, _POSITIVE, _NOTHING = b"\x01", b"\x02", b"\x80"
_MEMO_LIMIT = 1 << 16
_EXACT_INT = 1 << 53
_EXACTLY = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_decode_number = msgspec.json.Decoder(float_hook=exact_number).decode


class KeyMaker:
    """Makes one bytes key a record from its key columns.

    `descending[i]` says for each column which way it runs. Repeated values are encoded once: real keys are often few
    (carriers, dates), and a look-up costs a tenth of an encoding; when they turn out not to be, the memo is left alone.
    """

    def __init__(self, descending: Sequence[bool], *, nulls_first: bool = False, numeric: bool = False) -> None:
        self._descending = tuple(descending)
        self._null = _NULLS_FIRST if nulls_first else _NULLS_LAST
        self._numeric = numeric
        self._memo = _Memo(self._encode_row)
        self.unique = False
        """Whether keys have turned out to be mostly different, so that each is an object of its own."""

    def keys(self, columns: Sequence[list[Any]]) -> list[bytes]:
        if self._numeric:
            columns = [list(map(as_number, column)) for column in columns]
        kinds = [kinds_of(column) for column in columns]
        plain = all(kind <= LIKE_KEYS for kind in kinds)
        if plain and not self.unique:
            before = len(self._memo)
            keys = list(map(self._memo.__getitem__, zip(*columns, strict=True)))
            grown = len(self._memo) - before
            self.unique = grown > len(keys) // 2 > 500
            if len(self._memo) > _MEMO_LIMIT:
                self._memo.clear()
            return keys
        encoded = [self._column(*item) for item in zip(columns, kinds, self._descending, strict=True)]
        return encoded[0] if len(encoded) == 1 else list(map(b"".join, zip(*encoded, strict=True)))

    def _column(self, column: list[Any], kinds: Kinds, descending: bool) -> list[bytes]:
        if kinds <= {int, float} and column and min(column) > -_EXACT_INT and max(column) < _EXACT_INT:
            return _pack_numbers(column, descending)
        return [self._encode_value(value, descending) for value in column]

    def _encode_row(self, row: tuple[Any, ...]) -> bytes:
        return b"".join(map(self._encode_value, row, self._descending))

    def _encode_value(self, value: Any, descending: bool) -> bytes:
        if value is None or value is MISSING:
            return self._null
        encoded = encode(value)
        return _PRESENT + (encoded.translate(_INVERT) if descending else encoded)


class _Memo(dict[Any, bytes]):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: Any) -> bytes:
        value: bytes = self._make(key)
        self[key] = value
        return value


def encode(value: Any) -> bytes:
    """The ascending encoding of one JSON value."""
    if isinstance(value, str):
        return _STRING + _text(value)
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, int | float | Decimal):
        return _NUMBER + _number(value)
    if value is None:
        return _NULL
    if isinstance(value, list):
        return _ARRAY + b"".join(map(encode, value)) + _END
    return _OBJECT + b"".join(_STRING + _text(name) + encode(item) for name, item in sorted(value.items())) + _END


def as_number(value: Any) -> Any:
    """A string that spells a JSON number as that number; any other value as it is."""
    if isinstance(value, str) and value == value.strip():
        try:
            number = _decode_number(value)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return value
        return number if isinstance(number, int | float | Decimal) and not isinstance(number, bool) else value
    return value


def _text(value: str) -> bytes:
    return value.encode().replace(b"\0", b"\0\xff") + b"\0\0"


def _number(value: int | float | Decimal) -> bytes:
    try:
        nearest = float(value) + 0.0  # -0.0 + 0.0 is 0.0
    except OverflowError:
        nearest = inf if value > 0 else -inf
    bits = struct.pack(">d", nearest)
    return (_NEGATIVE + bits.translate(_INVERT) if nearest < 0 else _POSITIVE + bits) + _rest(value, nearest)


def _rest(value: int | float | Decimal, nearest: float) -> bytes:
    """What the double left out, as an order-preserving suffix; nearly always nothing."""
    if isinstance(value, float) or (isinstance(value, int) and -_EXACT_INT <= value <= _EXACT_INT):
        return _NOTHING
    rest = Decimal(value) if isinf(nearest) else _EXACTLY.subtract(Decimal(value), Decimal(repr(nearest)))
    if not rest:
        return _NOTHING
    digits = "".join(map(str, rest.as_tuple().digits)).rstrip("0")
    body = struct.pack(">Q", rest.adjusted() + (1 << 63)) + digits.encode() + b"\0"
    return b"\x81" + body if rest > 0 else b"\x7f" + body.translate(_INVERT)


def _pack_numbers(column: list[Any], descending: bool) -> list[bytes]:
    """The keys of many numbers that doubles hold exactly, packed by one call."""
    packed = struct.pack(f">{len(column)}d", *map((0.0).__add__, map(float, column)))
    inverted = packed.translate(_INVERT)
    head, tail = _NUMBER, _NOTHING
    if descending:
        packed, inverted = inverted, packed
        head, tail = head.translate(_INVERT), tail.translate(_INVERT)
    positive, negative = _POSITIVE, _NEGATIVE
    if descending:
        positive, negative = positive.translate(_INVERT), negative.translate(_INVERT)
    above, below = _PRESENT + head + positive, _PRESENT + head + negative
    return [
        above + packed[at : at + 8] + tail if number >= 0 else below + inverted[at : at + 8] + tail
        for at, number in zip(range(0, len(packed), 8), column, strict=True)
    ]


def order_of(keys: list[bytes]) -> list[int]:
    """The stable order of `keys`: indices, smallest key first."""
    return sorted_by(keys, range(len(keys)))


def sorted_by(keys: list[bytes], items: Sequence[T]) -> list[T]:
    """The items in the stable order of their keys, smallest first."""
    distinct = set(keys)
    if len(distinct) * 4 > len(keys):
        return picked(items, sorted(range(len(keys)), key=keys.__getitem__))
    # Few keys: sorting the distinct ones and dealing the items out is linear.
    piles: dict[bytes, list[T]] = {key: [] for key in sorted(distinct)}
    deque(map(list.append, map(piles.__getitem__, keys), items), maxlen=0)
    return list(chain.from_iterable(piles.values()))
