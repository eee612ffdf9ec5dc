"""The newest keys in memory, the others in a table: of the run, or of a cache file.

`Store` is asked and told in whole batches. Keys that rise from batch to batch are only laid aside, until one comes that
might be among them. `RecentStore` forgets the key that was not used for longest when there are more
than a number of them; that depends on every single use, so it goes through a batch key by key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from etlcli.core.fields import picked

if TYPE_CHECKING:
    from etlcli.core.keys import Key
    from etlcli.state.sqlite import Table  # a run whose keys fit into memory never loads SQLite

# What a key in memory costs beside its characters (CPython, 64 bit): the string's header, its place in a dict that may
# just have grown, its share of a copy while it grows.
_OVERHEAD = 200


K = TypeVar("K", bound="Key")


class Store(Generic[K]):
    """Keyed values. Without a `table`, where a key is its text, one is made, for this run only, when `memory` bytes do not
    hold them all."""

    def __init__(
        self,
        memory: int,
        resources: ExitStack,
        table: Table | None = None,
        weigh: Callable[[Any], int] | None = None,
    ) -> None:
        """`weigh` says how many bytes of memory a value takes, where values are not shared."""
        self._weigh = weigh
        self._newest: dict[K, Any] = {}
        nothing_there = table is None or not table.oldest(1)
        self._rising: list[tuple[Sequence[K], Any]] | None = [] if nothing_there else None
        """Keys with their value of which nobody asked, since those of each entry are greater than all before; None once
        there were others."""
        self._greatest: K | None = None
        self._size = 0
        self._limit = memory
        self._resources = resources
        self._table = table

    def get(self, keys: Collection[K]) -> dict[K, Any]:
        """The values of those keys that are known."""
        self._settle()
        newest = self._newest
        found = {key: newest[key] for key in newest.keys() & keys}
        if self._table is not None and len(found) < len(keys):
            found.update(self._in_table(self._table, set(keys).difference(found)))
        return found

    def admit(self, keys: Sequence[K], bounds: tuple[K, K] | None, value: Any) -> Sequence[int]:
        """The places of those keys, all different, that it did not have; now they have the value. `bounds` are the smallest
        and the greatest, where somebody knows. As long as keys rise, as numbers and times given out in order do, they need
        neither be looked up nor be put in their places, which is most of the work."""
        if self._rising is not None and bounds and self._is_beyond(bounds[0]):
            self._greatest = bounds[1]
            self._rising.append((keys, value))
            self._size += _OVERHEAD * len(keys)
            if self._size > self._limit:
                self.flush()
            return range(len(keys))
        new = self._unknown(keys)
        self.put(dict.fromkeys(keys if len(new) == len(keys) else picked(keys, new), value))
        return new

    def _is_beyond(self, key: K) -> bool:
        """Whether it is greater than all there are, to which it can be compared."""
        greatest = self._greatest
        return greatest is None or (type(greatest) is type(key) and greatest < key)  # type: ignore[operator]

    def _settle(self) -> None:
        """From here on any key may be asked for."""
        rising, self._rising = self._rising or (), None
        self._size -= sum(_OVERHEAD * len(keys) for keys, _ in rising)
        for keys, value in rising:
            self.put(dict.fromkeys(keys, value))

    def _unknown(self, keys: Sequence[K]) -> Sequence[int]:
        """The places of those keys that it does not have."""
        self._settle()
        newest = self._newest
        places: Sequence[int] = range(len(keys))
        if not newest.keys().isdisjoint(keys):
            places = [place for place, key in enumerate(keys) if key not in newest]
        if self._table is None or not places:
            return places
        stored = self._in_table(self._table, picked(keys, places))
        return [place for place in places if keys[place] not in stored]

    @staticmethod
    def _in_table(table: Table, keys: Collection[K]) -> dict[K, Any]:
        names = {str(key): key for key in keys}
        return {names[name]: value for name, value in table.get(names).items()}

    def put(self, entries: Mapping[K, Any]) -> None:
        self._settle()
        self._newest.update(entries)
        self._grow(entries)

    def in_memory(self) -> Mapping[K, Any] | None:
        """All entries, if none is in a table."""
        self._settle()
        return self._newest if self._table is None else None

    def flush(self) -> None:
        """Everything into the table, in the order of the keys: much faster than as they came."""
        newest = self._newest
        if self._rising:
            for keys, value in self._rising:
                newest.update(dict.fromkeys(keys, value))
            self._rising = []
        self._write((str(key), newest[key]) for key in sorted(newest, key=str))

    def _write(self, entries: Iterable[tuple[str, Any]]) -> None:
        if self._table is None:
            from etlcli.state.sqlite import temporary_table

            self._table = temporary_table()
            self._resources.callback(self._table.close)
        self._table.put(entries)
        self._newest.clear()
        self._size = 0

    def _grow(self, entries: Mapping[K, Any]) -> None:
        self._size += self._weight(entries)
        if self._size > self._limit:
            self.flush()

    def _weight(self, entries: Mapping[K, Any]) -> int:
        values = sum(map(self._weigh, entries.values())) if self._weigh else 0
        return self._length(entries) + _OVERHEAD * len(entries) + values

    def _length(self, keys: Iterable[K]) -> int:
        """Characters of their texts, and a few more. To add up the length of each takes eight times as long."""
        return len(msgspec.json.encode(list(keys)))


class RecentStore(Store[str]):
    """At most `most` keys: a new one drives out the one whose last use is longest ago.

    The keys in memory, in the order of their last use, are newer than all of the table, whose rows are in that order too.
    A key of the table that is used moves to memory.
    """

    _newest: OrderedDict[str, Any]

    def __init__(
        self,
        most: int,
        memory: int,
        resources: ExitStack,
        table: Table | None = None,
        weigh: Callable[[Any], int] | None = None,
    ) -> None:
        super().__init__(memory, resources, table, weigh)
        self._newest = OrderedDict()
        self._rising = None  # every use of a key counts
        self._most = most
        self._stored = 0
        if table is not None:
            self._stored = len(table)
            self._forget(table, table.oldest(self._stored - most) if self._stored > most else [])

    def get(self, keys: Collection[str]) -> dict[str, Any]:
        """The values of those keys that are known, which are used by that, in this order."""
        newest = self._newest
        found = {key: newest[key] for key in keys if key in newest}
        if self._table is not None and self._stored and len(found) < len(keys):
            found.update(self._table.get(set(keys).difference(found)))
        self.put({key: found[key] for key in keys if key in found})
        return found

    def put(self, entries: Mapping[str, Any]) -> None:
        """These are used, in this order."""
        newest, table = self._newest, self._table
        if table is not None and self._stored:
            self._forget(table, table.get([key for key in entries if key not in newest]))
        for key in [key for key in entries if key in newest]:
            self._drop(key)
        newest.update(entries)
        self._size += self._weight(entries)
        excess = self._stored + len(newest) - self._most
        if table is not None and self._stored and excess > 0:
            self._forget(table, table.oldest(min(excess, self._stored)))
        while len(newest) > self._most:
            self._drop(next(iter(newest)))
        if self._size > self._limit:
            self.flush()

    def _length(self, keys: Iterable[str]) -> int:
        """Exactly, since they are taken away one by one."""
        return sum(map(len, keys))

    def _drop(self, key: str) -> None:
        self._size -= self._weight({key: self._newest.pop(key)})

    def use(self, keys: Sequence[str], value: Any, good: Callable[[Any], bool]) -> list[int]:
        """The places of the keys that are not known by then, with a `good` value. Those get `value`."""
        newest = self._newest
        # Not as a difference of sets: that would go through all of `newest`, which is no plain dict.
        asked = {key for key in keys if key not in newest} if self._stored else ()
        stored = self._table.get(asked) if self._table is not None and asked else {}
        moved, dropped = set[str](), set[str]()
        # More than this cannot have to go.
        most_ageing = len(set(keys)) + len(stored) if self._stored + len(newest) + len(keys) > self._most else 0
        ageing = iter(self._table.oldest(most_ageing) if self._table is not None and most_ageing else ())
        left, new = self._stored, []
        for place, key in enumerate(keys):
            if key in newest:
                newest.move_to_end(key)
                held = newest[key]
            else:
                held = stored.pop(key, None)
                newest[key] = held
                if held is not None:
                    moved.add(key)
                    left -= 1
                self._size += len(key) + _OVERHEAD
            if held is None or not good(held):
                new.append(place)
                newest[key] = value
            if left + len(newest) > self._most:
                oldest = next((old for old in ageing if old not in moved), None)
                if oldest is None:
                    self._size -= len(newest.popitem(last=False)[0]) + _OVERHEAD
                else:
                    dropped.add(oldest)
                    stored.pop(oldest, None)
                    left -= 1
        if self._table is not None:
            self._forget(self._table, moved | dropped)
        if self._size > self._limit:
            self.flush()
        return new

    def flush(self) -> None:
        """Everything into the table, the least recently used first."""
        self._stored += len(self._newest)
        self._write(self._newest.items())

    def _forget(self, table: Table, keys: Collection[str]) -> None:
        if keys:
            table.delete(keys)
            self._stored -= len(keys)
