"""Code that takes the values of fields out of many decoded records.

An attribute that code names itself is found by the interpreter's inline cache (PEP 659) in a third of the time that
`operator.attrgetter` takes, which goes by the type each time. So there is code for each attribute that is asked for, and
for each type of records code of its own, since a cache knows one type. What it names are attributes of ours: a field's
name is never part of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import msgspec

from etlcli.core.code import filled, function

Piles = list[list[Any]]
_ABSENT = {"None": type(None), "missing": type(msgspec.UNSET)}


class Access:
    """To records of one type, by field paths."""

    __slots__ = ("_made", "_names", "_terms")

    def __init__(self, terms: Mapping[tuple[str, ...], str], **names: Any) -> None:
        """`terms` are what the value of a path is called in code that has the record as `row`, and perhaps these names."""
        self._terms = terms
        self._names = {"missing": msgspec.UNSET, **names}
        self._made: dict[str, Callable[..., Any]] = {}

    def values(self, path: tuple[str, ...]) -> Callable[[Iterable[Any]], list[Any]]:
        """From records to their values of a path."""
        return self._code(f"lambda rows: [{self._terms[path]} for row in rows]")

    def present(self, path: tuple[str, ...], kinds: Set[type]) -> Callable[[Iterable[Any]], list[Any]]:
        """From records to their values of a path, which have these types, where they are neither null nor missing."""
        absent = [name for name, kind in _ABSENT.items() if kind in kinds]
        if not absent:
            return self.values(path)
        # A name that a comprehension loops over is a local variable, and one that := gives is not.
        conditions = " and ".join(f"value is not {name}" for name in absent)
        return self._code(f"lambda rows: [value for row in rows for value in ({self._terms[path]},) if {conditions}]")

    def dealer(self, paths: Sequence[tuple[str, ...]]) -> Callable[[Iterable[Any]], Piles]:
        """From records to piles of those that have equal values of one or more paths, by the first of each. The values
        must be hashable."""
        pile = "piles" + "".join(f"[{self._terms[path]}]" for path in paths)
        return partial(_dealt, self._code(f"lambda piles, rows: [{pile}.append(row) for row in rows]"), len(paths))

    def _code(self, source: str) -> Callable[..., Any]:
        if source not in self._made:
            self._made[source] = function(filled(source), self._names)
        return self._made[source]


def _dealt(deal: Callable[..., Any], levels: int, rows: Iterable[Any]) -> Piles:
    """Piles lie in nested dictionaries, a level each value: that is faster than to make a tuple of them."""
    ordered: Piles = []

    def pile() -> list[Any]:
        ordered.append([])
        return ordered[-1]

    make: Callable[[], Any] = pile
    for _ in range(levels - 1):
        make = partial(defaultdict, make)
    deal(defaultdict(make), rows)
    return ordered
