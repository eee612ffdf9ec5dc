"""Groups of records as columns: dealing values out, rows of aggregate states, the bytes of what groups are named by.

A `Part` has a row for each group of some records; a `Table` merges parts. Both are columns, since what is done to
them is done to whole columns.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import compress
from operator import attrgetter, ne
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from etlcli.core.aggregates import Call
from etlcli.core.batch import Batch
from etlcli.core.edit import encode, open_object, raw_at
from etlcli.core.fields import MISSING, Path
from etlcli.core.projection import projected_struct

# Bytes of memory beside what is counted (CPython, 64 bit): headers of bytes objects, places in lists and dictionaries.
ROW_OVERHEAD = 280
STATE_OVERHEAD = 100
open_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
T = TypeVar("T")


class Part(NamedTuple):
    """Groups, a row each: key, by values as a JSON array (the first record's), number of records, and a column of states
    for each aggregate."""

    keys: list[bytes]
    heads: list[bytes]
    counts: list[int]
    states: list[list[Any]]

    def first(self, count: int) -> Part:
        return Part(self.keys[:count], self.heads[:count], self.counts[:count], [each[:count] for each in self.states])

    def records(self, names: Sequence[Path], calls: Sequence[Call], rows: Iterable[int]) -> list[bytes]:
        """Some rows as records: by values, then results."""
        heads = [open_array(self.heads[row]) for row in rows]
        results = [
            call.aggregate.results([states[row] for row in rows])
            for call, states in zip(calls, self.states, strict=True)
        ]
        return nested(names, [*zip(*heads, strict=True), *results])

    def dump(self, calls: Sequence[Call], rows: Iterable[int]) -> Iterator[bytes]:
        """Some rows as lines: the key in hex, a tab, and the rest as a JSON array."""
        for row in rows:
            states = [
                b"null" if column[row] is None else call.aggregate.dump(column[row])
                for call, column in zip(calls, self.states, strict=True)
            ]
            rest = b",".join([self.heads[row], b"%d" % self.counts[row], *states])
            yield b"%b\t[%b]" % (self.keys[row].hex().encode(), rest)

    @classmethod
    def load(cls, lines: Iterable[bytes], calls: Sequence[Call]) -> Part:
        """What `dump` wrote."""
        split = [line.partition(b"\t") for line in lines]
        rows = [list(map(bytes, open_array(rest))) for _, _, rest in split]
        heads, counts, *columns = map(list, zip(*rows, strict=True)) if rows else ([], [], *([] for _ in calls))
        states = [
            [None if state == b"null" else call.aggregate.load(state) for state in column]
            for call, column in zip(calls, columns, strict=True)
        ]
        return cls([bytes.fromhex(key.decode()) for key, _, _ in split], heads, list(map(int, counts)), states)

    def size(self, calls: Sequence[Call]) -> int:
        """Bytes of memory, nearly, what grows with the values aside."""
        rows = len(self.keys) * (ROW_OVERHEAD + STATE_OVERHEAD * len(calls))
        return rows + sum(map(len, self.keys)) + sum(map(len, self.heads))

    def growth(self, calls: Sequence[Call]) -> int:
        """Bytes of memory of what grows with the values."""
        return sum(
            call.aggregate.size(state)
            for call, states in zip(calls, self.states, strict=True)
            if call.aggregate.grows
            for state in states
            if state is not None
        )


class Table:
    """The rows so far. Parts are merged into it, which stay as they are."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self.rows = Part([], [], [], [[] for _ in calls])

    @property
    def keys(self) -> list[bytes]:
        return self.rows.keys

    def append(self, part: Part) -> list[int]:
        """Merges a part whose equal keys are neighbours, the first perhaps of the last row. Returns the rows' numbers."""
        row = len(self.keys) - 1
        last = self.keys[-1] if self.keys else None
        numbers = []
        for key in part.keys:
            if key != last:
                last = key
                row += 1
            numbers.append(row)
        self.merge(part, numbers)
        return numbers

    def merge(self, part: Part, numbers: Sequence[int]) -> None:
        """Merges each row of the part into the row of that number, or appends it where the numbers go on."""
        keys, heads, counts, columns = self.rows
        if numbers and numbers[-1] == len(keys) + len(numbers) - 1:
            self._extend(part)
            return
        for number, key, head, count in zip(numbers, part.keys, part.heads, part.counts, strict=True):
            if number < len(keys):
                counts[number] += count
            else:
                keys.append(key)
                heads.append(head)
                counts.append(count)
        for call, column, states in zip(self._calls, columns, part.states, strict=True):
            start, merge = call.aggregate.start, call.aggregate.merge
            for number, state in zip(numbers, states, strict=True):
                if number == len(column):
                    column.append(None if state is None else start(state))
                elif state is not None:
                    own = column[number]
                    column[number] = start(state) if own is None else merge(own, state)

    def _extend(self, part: Part) -> None:
        """Takes over rows that are all new."""
        keys, heads, counts, columns = self.rows
        keys += part.keys
        heads += part.heads
        counts += part.counts
        for call, column, states in zip(self._calls, columns, part.states, strict=True):
            start = call.aggregate.start
            column += [None if state is None else start(state) for state in states] if call.aggregate.grows else states

    def take(self, count: int) -> Part:
        """The first rows, which the table has no longer."""
        taken = self.rows.first(count)
        for column in (self.rows.keys, self.rows.heads, self.rows.counts, *self.rows.states):
            del cast("list[Any]", column)[:count]
        return taken

    def size(self) -> int:
        return self.rows.size(self._calls) + self.rows.growth(self._calls)


class Heads:
    """Takes the bytes of the by fields out of records, as a JSON array each; null for what is missing."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths
        self._tops = {path[0]: f"f{number}" for number, path in enumerate(paths)}
        struct = projected_struct(self._tops, kind=msgspec.Raw | msgspec.UnsetType)
        self._decode = struct and msgspec.json.Decoder(struct).decode_lines

    def of(
        self, batch: Batch, count: int, columns: Sequence[list[Any]], rows: Callable[[], Sequence[int]]
    ) -> list[bytes]:
        """Of so many of the batch's records: `columns` are the values of the by fields in them. `rows` is asked which they
        are where those can be spelled in several ways."""
        if not self._paths:
            return [b"[]"] * count
        if all(_has_one_spelling(column, batch) for column in columns):
            return list(map(encode, zip(*columns, strict=True)))
        raws = self._raws(batch.take(rows()))
        spelled = [
            [_raw_of(raw, path[1:], value) for raw, value in zip(raws[path[0]], column, strict=True)]
            for path, column in zip(self._paths, columns, strict=True)
        ]
        return [b"[%b]" % b",".join(row) for row in zip(*spelled, strict=True)]

    def _raws(self, batch: Batch) -> dict[str, list[Any]]:
        """The members of the records that the paths begin with."""
        if self._decode is None:  # a name that no struct takes
            opened = list(map(open_object, batch.lines))
            return {top: [members.get(top) for members in opened] for top in self._tops}
        structs = self._decode(batch.chunk)
        return {top: list(map(attrgetter(name), structs)) for top, name in self._tops.items()}


def _has_one_spelling(column: list[Any], batch: Batch) -> bool:
    """Whether encoding the values gives their bytes back, so that the records need not be looked at: integers (0 may have
    been -0) and, where there is no escape, strings."""
    kinds = set(map(type, column))
    return kinds <= {int, str} and not (int in kinds and 0 in column) and not (str in kinds and b"\\" in batch.chunk)


def _raw_of(raw: Any, path: Path, value: Any) -> bytes:
    if value is None or value is MISSING:
        return b"null"
    return raw_at(bytes(raw), path) if path else bytes(raw)


def runs_of(keys: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Where each run of equal keys starts and ends."""
    if keys:
        starts = [0, *compress(range(1, len(keys)), map(ne, keys, keys[1:]))]
        yield from zip(starts, [*starts[1:], len(keys)], strict=True)


def piles_of(labels: Iterable[Hashable], items: Iterable[T]) -> list[list[T]]:
    """The items in piles of equal labels, by their first."""
    piles: dict[Hashable, list[T]] = defaultdict(list)
    deque(map(list.append, map(piles.__getitem__, labels), items), 0)
    return list(piles.values())


def nested(names: Sequence[Path], columns: Sequence[Sequence[Any]]) -> list[bytes]:
    """Records with the columns' values at these paths."""
    rows = zip(*columns, strict=True)
    if all(len(path) == 1 for path in names):
        tops = [path[0] for path in names]
        return [encode(dict(zip(tops, row, strict=True))) for row in rows]
    return [encode(_nest(names, row)) for row in rows]


def _nest(names: Sequence[Path], values: Sequence[Any]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for path, value in zip(names, values, strict=True):
        target = record
        for part in path[:-1]:
            target = target.setdefault(part, {})
        target[path[-1]] = value
    return record
