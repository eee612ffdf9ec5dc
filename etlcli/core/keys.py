"""Keys that say whether values are the same: any JSON values in, one short text each out.

The text is the value's canonical JSON: members sorted by name, no space, a number always spelled the same way, so that
1, 1.0 and 10e-1 are one key, as they are to `sort`, and integers of any size keep every digit. A person who looks into a
cache file can read it. What is longer than 64 characters is replaced by its 128-bit hash (xxh3). Two different keys
get the same hash by accident never; somebody who may choose the records can make it happen, as with any hash without a
secret.

In memory an integer that is not so long is its own key (`keys_of`): it takes less of everything than its digits, which are
its text.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
from xxhash import xxh3_128_hexdigest

from etlcli.core.batch import Batch
from etlcli.core.fields import exact_number, kinds_of

Key = int | str
_LONGEST = 64
_LARGEST = 10 ** (_LONGEST - 1)
_HASHED = "xxh3:"
"""No JSON text begins so."""
_EXACT = 1 << 53
_MOST_DIGITS = 4300
"""Of an integer that comes as one: the decoder's limit, which is Python's."""
_encode_lines = msgspec.json.Encoder(order="deterministic").encode_lines
_REWRITTEN = {float, Decimal, list, dict}


def keys_of(columns: Sequence[list[Any]]) -> list[Key]:
    """A key a record, from its key columns: of the value itself of one column, of the array of the values of several."""
    if len(columns) > 1:
        return list(texts_of(columns))
    values = _respelled(columns[0])
    kinds = kinds_of(values)
    if kinds == {int} and (packed(values) is not values or (min(values) > -_LARGEST and max(values) < _LARGEST)):
        return values
    texts = _texts(values)
    if int not in kinds:
        return list(texts)
    return [
        value if type(value) is int and -_LARGEST < value < _LARGEST else text
        for value, text in zip(values, texts, strict=True)
    ]


def packed(keys: Sequence[Key]) -> Sequence[Key]:
    """The same keys in a fifth of the memory, and of the time to be sent, where they are integers of 64 bits."""
    try:
        return array("q", struct.pack(f"{len(keys)}q", *keys))  # takes half the time of array("q", keys)
    except struct.error:
        return keys


def texts_of(columns: Sequence[list[Any]]) -> list[str]:
    """The same keys as text; `str` makes it of any key."""
    columns = [_respelled(column) for column in columns]
    return _texts(columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)))


def texts_of_records(batch: Batch) -> list[str]:
    """A key a record, from all of it."""
    try:
        return _texts(_decode_canonical(batch.chunk))
    except msgspec.DecodeError:  # an integer of thousands of digits
        return _texts(_respelled(batch.records()))


def _texts(values: Sequence[Any]) -> list[str]:
    texts = _encode_lines(values).decode().split("\n")
    texts.pop()
    if texts and max(map(len, texts)) > _LONGEST:
        return [text if len(text) <= _LONGEST else _HASHED + xxh3_128_hexdigest(text.encode()) for text in texts]
    return texts


def _respelled(values: list[Any]) -> list[Any]:
    return values if _REWRITTEN.isdisjoint(kinds_of(values)) else list(map(_canonical, values))


def _canonical(value: Any) -> Any:
    """The value with each number in the form that its equals have, too."""
    kind = type(value)
    if kind is float:
        if not value.is_integer():
            return value
        return int(value) if -_EXACT < value < _EXACT else _number(Decimal(repr(value)))
    if kind is dict:
        return {name: _canonical(item) for name, item in value.items()}
    if kind is list:
        return list(map(_canonical, value))
    return _number(value) if kind is Decimal else value


def _number(number: Decimal) -> Any:
    """An integer as such, unless it has so many digits that it came as a Decimal in any spelling."""
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    significant = text.rstrip("0")
    if not significant:
        return 0
    power = int(exponent) + len(text) - len(significant)
    if power >= 0 and power + len(significant) <= _MOST_DIGITS:
        return int(number)
    return msgspec.Raw(f"{'-' if sign else ''}{significant}e{power}".encode())


_decode_canonical = msgspec.json.Decoder(
    dict[str, Any], float_hook=lambda text: _canonical(exact_number(text))
).decode_lines
