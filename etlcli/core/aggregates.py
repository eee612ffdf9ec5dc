"""What `group` works out about the values of a field: `sum(amount)`, `p99(latency)`.

An aggregate makes a *state* of some values, merges the states of values that came one after another, and tells the result
from the state. So parts of the input can be worked on apart, in any process, and be merged in their order; the result is
the same however they were cut. Null and missing values are left out before; where none is left the state is None.

    field values -> states (a list for a group each) -> merge ... -> result
                          dump and load: the state as JSON, for disks and snapshots
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import partial
from operator import itemgetter
from sys import getsizeof
from typing import Any, NamedTuple

import msgspec

from etlcli.core import exact
from etlcli.core.batch import decode_record
from etlcli.core.edit import encode
from etlcli.core.fields import Kinds, Path, parse_path
from etlcli.core.ordering import KeyMaker
from etlcli.core.ordering import encode as key_of
from etlcli.errors import nearest

NUMBERS = frozenset({int, float, Decimal})
_COMPARABLE: tuple[set[type], ...] = ({int, float}, {str})
_CALL = re.compile(r"\s*([^=]+?)\s*=\s*(\w+(?:\.\d+)?)\s*\(\s*(.*?)\s*\)\s*", re.DOTALL)
_QUANTILE = re.compile(r"p(\d{1,3}(?:\.\d{1,12})?)")
_open = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Aggregate:
    """Of the values of one field in one group. A state that was given to `merge` second, or to `start`, stays as it is."""

    numeric = False
    """Whether it takes only numbers."""
    grows = False
    """Whether a state grows with the number of values."""

    nothing: Any = None
    """The result where there is no value."""

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], Any]:
        """What makes a state of one or more values of these types."""
        raise NotImplementedError

    def start(self, state: Any) -> Any:
        """A state that may be merged into."""
        return state

    def merge(self, first: Any, second: Any) -> Any:
        raise NotImplementedError

    def results(self, states: list[Any]) -> list[Any]:
        return [self.nothing if state is None else self.result(state) for state in states]

    def result(self, state: Any) -> Any:
        return state

    def size(self, state: Any) -> int:
        """Bytes of memory, nearly."""
        return 0

    def dump(self, state: Any) -> bytes:
        return encode(state)

    def load(self, text: bytes) -> Any:
        raise NotImplementedError


class Count(Aggregate):
    nothing = 0

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], int]:
        return len

    def merge(self, first: int, second: int) -> int:
        return first + second

    def load(self, text: bytes) -> int:
        return int(text)


class Sum(Aggregate):
    numeric = True

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], exact.Exact]:
        return sum if kinds == {int} else exact.total

    def merge(self, first: exact.Exact, second: exact.Exact) -> exact.Exact:
        return exact.add(first, second)

    def result(self, state: exact.Exact) -> exact.Exact:
        return exact.spelled(state)

    def dump(self, state: exact.Exact) -> bytes:
        return _dump_number(state)

    def load(self, text: bytes) -> Any:
        return _load_number(text)


class Mean(Aggregate):
    """State: count and sum."""

    numeric = True

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], tuple[Any, ...]]:
        return lambda values: (len(values), exact.total(values))

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(exact.add, first, second))

    def result(self, state: tuple[Any, ...]) -> Any:
        count, total = state
        return exact.ratio(total, count)

    def dump(self, state: tuple[Any, ...]) -> bytes:
        return _dump_numbers(state)

    def load(self, text: bytes) -> tuple[Any, ...]:
        return tuple(_load_numbers(text))


class Stddev(Mean):
    """State: count, sum and sum of squares."""

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], tuple[Any, ...]]:
        return lambda values: (len(values), exact.total(values), exact.squares(values))

    def result(self, state: tuple[Any, ...]) -> Any:
        return exact.deviation(*state) if state[0] > 1 else None


class First(Aggregate):
    def maker(self, kinds: Kinds) -> Callable[[list[Any]], Any]:
        return itemgetter(0)

    def merge(self, first: Any, second: Any) -> Any:
        return first

    def load(self, text: bytes) -> Any:
        return decode_record(b'{"v":%b}' % text)["v"]


class Last(First):
    def maker(self, kinds: Kinds) -> Callable[[list[Any]], Any]:
        return itemgetter(-1)

    def merge(self, first: Any, second: Any) -> Any:
        return second


class Min(First):
    """By the order of `sort`; the first of equal ones."""

    best: Callable[..., Any] = staticmethod(min)

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], Any]:
        return self.best if any(map(kinds.__le__, _COMPARABLE)) else partial(self.best, key=key_of)

    def merge(self, first: Any, second: Any) -> Any:
        return self.maker({type(first), type(second)})([first, second])


class Max(Min):
    best = staticmethod(max)


class Distinct(Aggregate):
    """State: the keys of the values, by which `sort` finds them equal."""

    grows = True
    nothing = 0

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], set[bytes]]:
        keys = KeyMaker([False]).keys
        return lambda values: set(keys([values]))

    def start(self, state: set[bytes]) -> set[bytes]:
        return set(state)

    def merge(self, first: set[bytes], second: set[bytes]) -> set[bytes]:
        first |= second
        return first

    def result(self, state: set[bytes]) -> int:
        return len(state)

    def size(self, state: set[bytes]) -> int:
        return getsizeof(state) + sum(map(getsizeof, state))

    def dump(self, state: set[bytes]) -> bytes:
        return encode([key.hex() for key in sorted(state)])

    def load(self, text: bytes) -> set[bytes]:
        return {bytes.fromhex(str(key)) for key in msgspec.json.decode(text)}


class List(Aggregate):
    """State: the values as JSON."""

    grows = True
    nothing: Any = ()

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], list[Any]]:
        return lambda values: list(map(encode, values))

    def start(self, state: list[Any]) -> list[Any]:
        return list(state)

    def merge(self, first: list[Any], second: list[Any]) -> list[Any]:
        first += second
        return first

    def result(self, state: list[Any]) -> Any:
        return list(map(msgspec.Raw, state))

    def size(self, state: list[Any]) -> int:
        return getsizeof(state) + sum(map(getsizeof, state))

    def dump(self, state: list[Any]) -> bytes:
        return b"[%b]" % b",".join(state)

    def load(self, text: bytes) -> list[Any]:
        return list(map(bytes, _open(text)))


class Quantile(List):
    """State: the numbers."""

    numeric = True
    nothing = None

    def __init__(self, part: Decimal) -> None:
        self._part = part

    def maker(self, kinds: Kinds) -> Callable[[list[Any]], list[Any]]:
        return list

    def result(self, state: list[Any]) -> Any:
        return exact.quantile(list(state), self._part)

    def dump(self, state: list[Any]) -> bytes:
        return _dump_numbers(state)

    def load(self, text: bytes) -> list[Any]:
        return _load_numbers(text)


_KINDS: dict[str, Callable[[], Aggregate]] = {
    "count": Count,
    "sum": Sum,
    "mean": Mean,
    "min": Min,
    "max": Max,
    "first": First,
    "last": Last,
    "distinct": Distinct,
    "list": List,
    "stddev": Stddev,
    "median": lambda: Quantile(Decimal("0.5")),
}


class Call(NamedTuple):
    """`name = function(field)`; no field for the count of records."""

    name: Path
    aggregate: Aggregate
    field: Path | None


def parse_call(text: str) -> Call:
    """Raises ValueError when the text is no such thing."""
    match = _CALL.fullmatch(text)
    if not match:
        raise ValueError(f"expected name=function(field), such as total=sum(amount), not {text!r}")
    name, function, field = match.groups()
    if not field and function != "count":
        raise ValueError(f"{function} needs a field: {name}={function}(amount)")
    return Call(parse_path(name), _aggregate(function), parse_path(field) if field else None)


def _aggregate(name: str) -> Aggregate:
    if name in _KINDS:
        return _KINDS[name]()
    match = _QUANTILE.fullmatch(name)
    if match and Decimal(match[1]) <= 100:
        return Quantile(Decimal(match[1]).scaleb(-2))
    raise ValueError(f"no aggregate is called {name!r}; {nearest(name, [*_KINDS, 'p50', 'p99', 'p99.9'])}")


def _dump_number(number: exact.Number) -> bytes:
    """A JSON number, or a string: a Decimal as it is, and with an i an integer that is too long for Python to write."""
    if isinstance(number, float):
        return repr(number).encode()
    if isinstance(number, Decimal):
        return b'"%b"' % str(number).encode()
    try:
        return b"%d" % number
    except ValueError:
        return b'"i%b"' % str(Decimal(number)).encode()


def _load_number(text: bytes) -> Any:
    if text[:1] != b'"':
        return float(text) if b"." in text or b"e" in text else int(text)
    found = text[1:-1].decode()
    return int(Decimal(found[1:])) if found[0] == "i" else Decimal(found)


def _dump_numbers(numbers: Iterable[exact.Number]) -> bytes:
    return b"[%b]" % b",".join(map(_dump_number, numbers))


def _load_numbers(text: bytes) -> list[Any]:
    return [_load_number(bytes(item)) for item in _open(text)]
