"""What the operators and functions of expressions do to values: the semantics, one plain function each.

Null in, null out, unless a function says otherwise (`exists`, `coalesce`, `hash`). A value of a type that an operation does
not take raises `Refused` with the reason; so does a result that is no JSON number or out of bounds. Integers are exact up
to MAX_DIGITS digits; as soon as a number with a fraction or an exponent takes part, arithmetic is that of doubles (IEEE
754), while comparing is exact for all numbers. Booleans are no numbers.

Times are seconds since 1970-01-01T00:00:00Z, as numbers, so that they compare and subtract; all parts are in UTC.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache, wraps
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from etlcli.core.edit import encode
from etlcli.core.fields import exact_number

Operation = Callable[..., Any]
Types = frozenset[type]

MAX_DIGITS = 4000
INT_BOUND = 10**MAX_DIGITS
MAX_TEXT = 1 << 20
"""Characters a concatenation may have."""

NULL: Types = frozenset({type(None)})
BOOL: Types = frozenset({bool})
TEXT: Types = frozenset({str})
PLAIN: Types = frozenset({int, float})
NUMBER: Types = PLAIN | {Decimal}
ANY: Types = NULL | BOOL | TEXT | NUMBER | {list, dict}
KINDS: dict[type, str] = {
    type(None): "null", bool: "boolean", str: "string", int: "number", float: "number", Decimal: "number", list: "list",
    dict: "object",
}  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:[Tt ](?:[01]\d|2[0-3]):\d\d(?::\d\d(?:\.\d{1,9})?)?(?: ?(?:[Zz]|[+-]\d\d:?\d\d))?)?", re.ASCII
)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_decode_number = msgspec.json.Decoder(float_hook=exact_number).decode


class Refused(Exception):
    """An operation does not take these values; says which, and why."""


def described(value: Any) -> str:
    """A value for a message: its type and, of a scalar, itself."""
    kind = KINDS[type(value)]
    if value is None or kind in ("list", "object"):
        return kind
    shown = encode(value if kind != "string" else value[:41]).decode()
    return f"{kind} {shown if len(shown) <= 40 else shown[:39] + '…'}"


def strict(operation: Operation) -> Operation:
    """Null in, null out."""

    @wraps(operation)
    def called(*values: Any) -> Any:
        for value in values:
            if value is None:
                return None
        return operation(*values)

    return called


def truth(value: Any) -> Any:
    """A condition's value: true, false or null."""
    if value is None or value is True or value is False:
        return value
    raise Refused(f"{described(value)} is neither true nor false")


# -- Comparing --------------------------------------------------------------------------------------------------------


def _comparison(compare: Operation) -> Operation:
    def called(a: Any, b: Any) -> bool:
        kind = KINDS[type(a)]
        if kind != KINDS[type(b)]:
            raise Refused(f"cannot compare {described(a)} with {described(b)}")
        if kind in ("list", "object"):
            raise Refused(f"{kind}s are not compared")
        return bool(compare(a, b))

    return strict(called)


def chain(operations: tuple[Operation, ...], *values: Any) -> Any:
    """a < b < c: each with the next, as if joined by `and`."""
    found: Any = True
    for compare, a, b in zip(operations, values, values[1:], strict=False):
        outcome = compare(a, b)
        if outcome is False:
            return False
        found = found and outcome
    return found


COMPARISONS: dict[str, Operation] = {
    "Eq": _comparison(operator.eq),
    "NotEq": _comparison(operator.ne),
    "Lt": _comparison(operator.lt),
    "LtE": _comparison(operator.le),
    "Gt": _comparison(operator.gt),
    "GtE": _comparison(operator.ge),
}


class Members:
    """A list of literals, to look values up in."""

    def __init__(self, items: list[Any]) -> None:
        self.types: Types = frozenset(map(type, items))
        self.kinds = {KINDS[kind] for kind in self.types} - {"null"}
        self.has_null = None in items
        # By kind, since True and 1 are the same member of a set.
        self.sets = {kind: {item for item in items if KINDS[type(item)] == kind} for kind in self.kinds}

    def has(self, value: Any) -> Any:
        if value is None:
            return None
        kind = KINDS[type(value)]
        if kind not in self.kinds and (self.kinds or kind in ("list", "object")):
            raise Refused(f"cannot look for {described(value)} among {_listed(self.kinds)}")
        if value in self.sets.get(kind, ()):
            return True
        return None if self.has_null else False


def _listed(kinds: set[str]) -> str:
    return " and ".join(f"{kind}s" for kind in sorted(kinds)) or "nothing"


@strict
def member(value: Any, whole: Any) -> Any:
    """`value in whole`: of a list, a part of a string, a name in an object."""
    kind = KINDS[type(value)]
    if isinstance(whole, list) and kind not in ("list", "object"):
        if any(KINDS[type(item)] == kind and item == value for item in whole):
            return True
        return None if None in whole else False
    if isinstance(whole, str | dict) and kind == "string":
        return value in whole
    raise Refused(f"cannot look for {described(value)} in {described(whole)}")


# -- Arithmetic -------------------------------------------------------------------------------------------------------


def bounded(number: Any) -> Any:
    if not -INT_BOUND < number < INT_BOUND:
        raise Refused(f"the result is no number of at most {MAX_DIGITS} digits")
    return number


def _double(number: Any) -> float:
    try:
        double = float(number)
    except OverflowError:
        double = float("inf")
    if not isfinite(double):
        raise Refused(f"{described(number)} is out of the range of doubles")
    return double


def _arithmetic(sign: str, compute: Operation) -> Operation:
    def called(a: Any, b: Any) -> Any:
        if type(a) not in NUMBER or type(b) not in NUMBER:
            raise Refused(f"{sign} does not take {described(a)} and {described(b)}")
        if type(a) is not int or type(b) is not int:
            a, b = _double(a), _double(b)
        try:
            return bounded(compute(a, b))
        except ZeroDivisionError:
            raise Refused("division by zero") from None
        except OverflowError:
            raise Refused("the result is out of the range of doubles") from None

    return strict(called)


_add = _arithmetic("+", operator.add)


def add(a: Any, b: Any) -> Any:
    """Numbers are added, strings joined."""
    if type(a) is str and type(b) is str:
        if len(a) + len(b) > MAX_TEXT:
            raise Refused(f"the result is longer than {MAX_TEXT} characters")
        return a + b
    return _add(a, b)


ARITHMETIC: dict[str, Operation] = {
    "Add": add,
    "Sub": _arithmetic("-", operator.sub),
    "Mult": _arithmetic("*", operator.mul),
    "Div": _arithmetic("/", operator.truediv),
    "FloorDiv": _arithmetic("//", operator.floordiv),
    "Mod": _arithmetic("%", operator.mod),
}


@strict
def negative(value: Any) -> Any:
    return _number("-", value).copy_negate() if isinstance(value, Decimal) else -_number("-", value)


def _number(name: str, value: Any) -> Any:
    if type(value) not in NUMBER:
        raise Refused(f"{name} takes a number, not {described(value)}")
    return value


# -- Functions --------------------------------------------------------------------------------------------------------


@strict
def item(value: Any, key: int | str) -> Any:
    """`value[key]`: of a list from 0, or from the end with a minus; of an object by name. Null where there is none."""
    if isinstance(value, list) and isinstance(key, int):
        return value[key] if -len(value) <= key < len(value) else None
    if isinstance(value, dict) and isinstance(key, str):
        return value.get(key)
    raise Refused(f"{described(value)} has no [{encode(key).decode()}]")


@strict
def _len(value: Any) -> int:
    if isinstance(value, str | list | dict):
        return len(value)
    raise Refused(f"len takes a string, a list or an object, not {described(value)}")


def _on_text(name: str, compute: Operation) -> Operation:
    def called(*values: Any) -> Any:
        for value in values:
            if type(value) is not str:
                raise Refused(f"{name} takes strings, not {described(value)}")
        return compute(*values)

    return strict(called)


def _split(text: str, separator: str) -> list[str]:
    if not separator:
        raise Refused("split needs a separator that is not empty")
    return text.split(separator)


def _contains(whole: Any, value: Any) -> Any:
    return member(value, whole)


@strict
def _abs(value: Any) -> Any:
    return value.copy_abs() if isinstance(value, Decimal) else abs(_number("abs", value))


@strict
def _round(value: Any) -> int:
    return round(value if type(value) is int else _double(_number("round", value)))


def _rounding(digits: Any) -> Operation:
    if type(digits) is not int or not -300 <= digits <= 300:
        raise ValueError("round: the digits are a whole number from -300 to 300")

    @strict
    def to_digits(value: Any) -> Any:
        return bounded(round(value if type(value) is int else _double(_number("round", value)), digits))

    return to_digits


def _extreme(name: str, beyond: Operation) -> Operation:
    def called(*values: Any) -> Any:
        kind = KINDS[type(values[0])]
        found = values[0]
        if kind not in ("number", "string"):
            raise Refused(f"{name} takes numbers or strings, not {described(found)}")
        for value in values[1:]:
            if KINDS[type(value)] != kind:
                raise Refused(f"{name} does not take {described(found)} and {described(value)}")
            found = value if beyond(value, found) else found
        return found

    return strict(called)


@strict
def _int(value: Any) -> int:
    """Of a number what stands before its point; of a string the whole number it spells."""
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value) or len(value) > MAX_DIGITS:
            raise Refused(f"{described(value)} does not spell a whole number")
        return int(value)
    if isinstance(value, list | dict):
        raise Refused(f"int takes a number, a string or a boolean, not {described(value)}")
    if isinstance(value, Decimal) and value.adjusted() >= MAX_DIGITS:
        raise Refused(f"{described(value)} has more than {MAX_DIGITS} digits")
    return int(value)


@strict
def _float(value: Any) -> float:
    """The nearest double; of a string, of the JSON number it spells."""
    if isinstance(value, str):
        try:
            number = _decode_number(value) if value == value.strip() else None
        except (msgspec.DecodeError, UnicodeEncodeError):
            number = None
        if type(number) not in NUMBER:
            raise Refused(f"{described(value)} does not spell a number")
        return _double(number)
    if isinstance(value, list | dict):
        raise Refused(f"float takes a number, a string or a boolean, not {described(value)}")
    return _double(value)


@strict
def _str(value: Any) -> str:
    """A string as it is, anything else as its JSON; a number's exponent always as in 1e+300."""
    if isinstance(value, Decimal):
        return str(value).lower()
    return value if isinstance(value, str) else encode(value).decode()


def _matching(pattern: Any) -> Operation:
    """Searches anywhere in a text. The pattern is the recipe's, never the data's, and compiled at the start; one that
    backtracks without end, such as (a+)+$, can hold a run up, until a signal ends it."""
    if not isinstance(pattern, str):
        raise ValueError("matches: the pattern is a string")
    try:
        search = re.compile(pattern).search
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"matches: {pattern[:60]!r} is not a regular expression: {error}") from None
    return _on_text("matches", lambda text: search(text) is not None)


def _hash(*values: Any) -> str:
    """128 bits of BLAKE2b over the values' sort keys: the same in any process, 1 and 1.0 alike, null a value too."""
    from hashlib import blake2b

    from etlcli.core.ordering import encode as sort_key

    return blake2b(b"".join(map(sort_key, values)), digest_size=16).hexdigest()


# -- Times ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 12)
def _parse_time(text: str) -> datetime:
    if not _TIME.fullmatch(text):
        raise Refused(f"{described(text)} is not a date such as 2013-01-31 or 2013-01-31T10:00:00Z")
    try:
        return _as_utc(datetime.fromisoformat(text.upper().replace(" Z", "Z").replace(" +", "+").replace(" -", "-")))
    except (ValueError, OverflowError):
        raise Refused(f"{described(text)} is not a date there is") from None


def _as_utc(time: datetime) -> datetime:
    """A time without a zone is in UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _seconds(time: datetime) -> int | float:
    since = time - _EPOCH
    return since / _SECOND if since.microseconds else since // _SECOND


_date = _on_text("date", lambda text: _seconds(_parse_time(text)))


def _date_by(form: Any) -> Operation:
    if not isinstance(form, str) or len(form) > 100:
        raise ValueError("date: the form is a string such as %d/%m/%Y")

    def parse(text: str) -> Any:
        try:
            return _seconds(_as_utc(datetime.strptime(text, form)))
        except (ValueError, OverflowError):
            raise Refused(f"{described(text)} is not a date of the form {form!r}") from None

    try:
        datetime.strptime("", form)
    except re.error:
        raise ValueError(f"date: {form!r} names a part twice") from None
    except ValueError as error:
        if "does not match" not in str(error):
            raise ValueError(f"date: {error}") from None
    return _on_text("date", parse)


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        return _parse_time(value)
    try:
        return _EPOCH + timedelta(
            seconds=_number("a time", value) if type(value) is int else _double(_number("a time", value))
        )
    except OverflowError:
        raise Refused(f"{described(value)} is no time in the years 1 to 9999") from None


def _part(of: Callable[[datetime], Any]) -> Operation:
    return strict(lambda value: of(_moment(value)))


# -- The closed list --------------------------------------------------------------------------------------------------


class Function(NamedTuple):
    operation: Operation
    least: int
    most: int
    types: Types
    """What it may give, beside null for null."""
    bind: Callable[[Any], Operation] | None = None
    """Where the second argument must be a literal: the operation on the first, given that."""
    inline: str = ""
    """The same in Python for arguments A and B of the types in `takes`; it cannot fail."""
    takes: Types = TEXT


_MANY = 20
_TIMES = frozenset({int, float})

FUNCTIONS: dict[str, Function] = {
    "len": Function(_len, 1, 1, frozenset({int}), inline="len(A)", takes=TEXT | {list, dict}),
    "lower": Function(_on_text("lower", str.lower), 1, 1, TEXT, inline="A.lower()"),
    "upper": Function(_on_text("upper", str.upper), 1, 1, TEXT, inline="A.upper()"),
    "strip": Function(_on_text("strip", str.strip), 1, 1, TEXT, inline="A.strip()"),
    "split": Function(_on_text("split", _split), 2, 2, frozenset({list})),
    "startswith": Function(_on_text("startswith", str.startswith), 2, 2, BOOL, inline="A.startswith(B)"),
    "endswith": Function(_on_text("endswith", str.endswith), 2, 2, BOOL, inline="A.endswith(B)"),
    "contains": Function(_contains, 2, 2, BOOL | NULL, inline="B in A"),
    "matches": Function(truth, 2, 2, BOOL, bind=_matching),
    "abs": Function(_abs, 1, 1, NUMBER),
    "round": Function(_round, 1, 2, PLAIN, bind=_rounding),
    "min": Function(_extreme("min", operator.lt), 2, _MANY, TEXT | NUMBER),
    "max": Function(_extreme("max", operator.gt), 2, _MANY, TEXT | NUMBER),
    "int": Function(_int, 1, 1, frozenset({int})),
    "float": Function(_float, 1, 1, frozenset({float})),
    "str": Function(_str, 1, 1, TEXT),
    "hash": Function(_hash, 1, _MANY, TEXT),
    "date": Function(_date, 1, 2, _TIMES, bind=_date_by),
    "iso": Function(_part(lambda time: time.isoformat().replace("+00:00", "Z")), 1, 1, TEXT),
    "year": Function(_part(lambda time: time.year), 1, 1, frozenset({int})),
    "month": Function(_part(lambda time: time.month), 1, 1, frozenset({int})),
    "day": Function(_part(lambda time: time.day), 1, 1, frozenset({int})),
    "hour": Function(_part(lambda time: time.hour), 1, 1, frozenset({int})),
    "minute": Function(_part(lambda time: time.minute), 1, 1, frozenset({int})),
    "second": Function(_part(lambda time: time.second), 1, 1, frozenset({int})),
    "weekday": Function(_part(lambda time: time.isoweekday()), 1, 1, frozenset({int})),
}
"""`exists`, `coalesce`, `now` and `field` are the compiler's own."""
