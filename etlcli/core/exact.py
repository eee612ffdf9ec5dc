"""Arithmetic on JSON numbers that is exact until its result is rounded, once.

A number's value is what is spelled: 0.1 is a tenth. Integers stay Python integers; anything else is added up as Decimals in
a context that never rounds. So a sum depends neither on the order of the numbers nor on how they were dealt out.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact, localcontext
from math import isinf, isqrt
from operator import mul
from typing import cast

Number = int | float | Decimal
Exact = int | Decimal
"""An int as long as only integers went in."""

LIMIT = 10_000
"""Digits before or after the point that a number may have: exact sums of larger ones would fill the memory."""
_EXACT = Context(prec=10 * LIMIT, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact])
_NEAREST = Context(prec=17, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_TENTH = Decimal("0.1")
_MOST_PLACES = 6
_SAMPLE = 8
_FEW_DIGITS = 10**15
_PLAIN_DIGITS = 16
_ROOT_BITS = 128
_MOST_BITS = 14_000
"""Python writes no integer of more than 4300 digits."""


def is_countable(number: Number) -> bool:
    """Whether a number is of a size that can be added up exactly."""
    if not isinstance(number, Decimal):
        return True
    return number.adjusted() < LIMIT and cast(int, number.as_tuple().exponent) > -LIMIT


def exact(number: Number) -> Exact:
    return Decimal(repr(number)) if isinstance(number, float) else number


def add(one: Exact, other: Exact) -> Exact:
    return one + other if isinstance(one, int) and isinstance(other, int) else _EXACT.add(one, other)


def total(numbers: Sequence[Number]) -> Exact:
    kinds = set(map(type, numbers))
    if kinds == {int}:
        return sum(cast("Sequence[int]", numbers))
    found = _scaled(numbers, kinds)
    if found:
        scaled, places = found
        return Decimal(sum(scaled)).scaleb(-places, _EXACT)
    with localcontext(_EXACT):
        return sum(map(exact, numbers))


def squares(numbers: Sequence[Number]) -> Exact:
    """The sum of the squares."""
    kinds = set(map(type, numbers))
    if kinds == {int}:
        integral = cast("Sequence[int]", numbers)
        return sum(one * one for one in integral)
    found = _scaled(numbers, kinds)
    if found:
        scaled, places = found
        return Decimal(sum(map(mul, scaled, scaled))).scaleb(-2 * places, _EXACT)
    with localcontext(_EXACT):
        spelled = list(map(exact, numbers))
        return sum(one * one for one in spelled)


def _scaled(numbers: Sequence[Number], kinds: set[type]) -> tuple[list[int], int] | None:
    """The numbers as integers, times a power of ten, where they have few decimals: ten times faster to add. A double that
    is the nearest to n / 10**places is spelled so if n has at most 15 digits."""
    if Decimal in kinds or len(numbers) < _SAMPLE:
        return None
    found = cast("Sequence[float]", numbers)
    try:
        for places in range(1, _MOST_PLACES + 1):
            power = 10.0**places
            if all(round(number * power) / power == number for number in found[:_SAMPLE]):
                scaled = [round(number * power) for number in found]
                if max(scaled) >= _FEW_DIGITS or min(scaled) <= -_FEW_DIGITS:
                    return None
                if [number / power for number in scaled] == found:
                    return scaled, places
    except OverflowError:
        pass
    return None


def ratio(number: Exact, count: int) -> Number:
    """number / count, the nearest double; beyond the doubles a Decimal of 17 digits."""
    above, below = number.as_integer_ratio()
    try:
        return above / (below * count)
    except OverflowError:
        return _NEAREST.divide(Decimal(above), Decimal(below * count))


def deviation(count: int, sum_: Exact, squares_: Exact) -> Number:
    """The standard deviation of a sample (n - 1) of two or more, from sum and sum of squares; rounded as `ratio` is."""
    with localcontext(_EXACT):
        above, below = (count * squares_ - sum_ * sum_).as_integer_ratio()
    return _root(above, below * count * (count - 1))


def _root(above: int, below: int) -> Number:
    """The square root of a fraction. With more bits than a double has and the last one odd where anything was cut off, the
    one rounding is right."""
    shift = max(0, _ROOT_BITS + below.bit_length() - above.bit_length())
    shift += shift % 2
    quotient, rest = divmod(above << shift, below)
    root = isqrt(quotient)
    if rest or root * root != quotient:
        root |= 1
    try:
        return root / (1 << shift // 2)
    except OverflowError:
        return _NEAREST.divide(Decimal(root), Decimal(1 << shift // 2))


def quantile(numbers: list[Number], part: Decimal) -> Number:
    """The number that `part` of them lie below, between neighbours in proportion (SQL's PERCENTILE_CONT). `numbers` is not
    empty, and is sorted."""
    numbers.sort(key=exact if Decimal in set(map(type, numbers)) else None)
    with localcontext(_EXACT):
        place = part * (len(numbers) - 1)
        at = int(place)
        low = numbers[at]
        if place == at or numbers[at + 1] == low:
            return low
        between = Decimal(exact(low)) + (place - at) * (Decimal(exact(numbers[at + 1])) - Decimal(exact(low)))
    nearest = float(between)
    return _NEAREST.plus(between) if isinf(nearest) else nearest


def spelled(number: Exact) -> Exact:
    """The one way a result is written: without needless zeros, but with a decimal where not all were integers."""
    if isinstance(number, int):
        return number if number.bit_length() < _MOST_BITS else Decimal(number)
    number = number.normalize(_EXACT)
    exponent = cast(int, number.as_tuple().exponent)
    if exponent == 0 or (exponent > 0 and number.adjusted() < _PLAIN_DIGITS):
        return number.quantize(_TENTH, context=_EXACT)
    return number
