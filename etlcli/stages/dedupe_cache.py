"""`dedupe-cache`: one record a key, in this run or, with a cache file, in all runs.

`prepare` makes the keys of a batch; `apply` asks the store for all of them at once, so that nearly all of the work is done
by sets. A worker sends no key twice, as far as it remembers: where keys are few, most duplicates are dropped there. Keys
that outgrow the memory go to a table on disk, and so do the records that --keep last must hold: all of them one after
another in a spill file, with a byte each in memory that says whether the record is still the last of its key.

A run that another process may go on with keeps a journal in its spill file: what the store was told, in order. Telling it
that again makes the same store. Of --keep last the records themselves say it all.

The keys of a run are committed to the cache file when its output is published, never before: a run that fails or dies
leaves the cache as it was, and the next one sees its records as new. A crash in the moment between the two lets
records through twice, and loses none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import compress, islice
from operator import lt
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from etlcli.core import params
from etlcli.core.batch import Batch, Reject
from etlcli.core.explain import told
from etlcli.core.fields import MISSING, Path, are_labels, kinds_of, parse_path, picked, pointer
from etlcli.core.files import Output, Run, Spill
from etlcli.core.keys import Key, keys_of, packed, texts_of, texts_of_records
from etlcli.core.stage import Context, Prepared, Stage, State
from etlcli.errors import CheckpointError, DataError, EtlError
from etlcli.state.store import RecentStore, Store

if TYPE_CHECKING:
    from etlcli.state.sqlite import CacheFile

T = TypeVar("T")
# What a record that is held costs beside its bytes: the line's header and list slot.
_OVERHEAD = 64
_OUT = 4096
_BLOCK = 1 << 20
_REMEMBERED = 1 << 16
"""Keys that a worker remembers to have sent."""


class DedupeCache(Stage):
    help = """Let the first record of each key pass, and drop the others as duplicates.

The key is the value of a field, or of several; without --key it is the whole record. Values are compared, not their
spelling: 1 is 1.0, and {"a":1,"b":2} is {"b":2,"a":1}; integers of any size compare exactly, and 1 is neither "1" nor true.
Null is a value like any other. A record that lacks a key field is rejected (missing_field), since nothing says what it is
the same as.

--cache keeps the keys in a file, for the next run. They are written when this run's output is complete and published, so
a run that fails has seen nothing. Runs that share the file take turns: one that waits five seconds gives up (exit 75). With
--ttl a key is forgotten that long after the record that passed; later duplicates do not extend it. With --max-entries only
so many keys are kept, and the one whose last use is longest ago goes first; runs without the option do not count as use.

--keep last lets the last record of each key pass instead, at the end of the input, in the order of those records. It works
on one run's input, so it goes with no cache.

Keys beyond --memory go to a temporary file (in TMPDIR, else /tmp) without a name; the result is the same."""
    examples = (
        ("etl dedupe-cache --key id flights.ndjson", "the first record of each id"),
        ("etl dedupe-cache --key carrier,flight --keep last flights.ndjson", "the last of each carrier and flight"),
        (
            "etl dedupe-cache --key id --cache seen.db --ttl 30d flights.ndjson",
            "what no run of the last 30 days has seen",
        ),
        ("etl dedupe-cache --dupes again.ndjson flights.ndjson", "whole records; the duplicates into a file"),
    )
    scope = "all"
    rewrites = False

    class Params(params.Declared):
        key = params.fields("Fields that make the key; by default the whole record.")
        cache = params.path("File that keeps the keys for the next run; made if it is not there.", written=True)
        ttl = params.duration("How long a key is remembered.")
        max_entries = params.integer("Most keys that are remembered; the least recently used go first.", minimum=1)
        keep = params.choice(("first", "last"), "Which record of a key passes.", default="first")
        dupes = params.path("Write the duplicates to FILE, as NDJSON, published with the output.", written=True)

        def verify(self) -> None:
            if self.keep == "last" and (self.cache or self.ttl is not None or self.max_entries):
                raise ValueError("keep: last goes with neither cache, ttl nor max_entries")
            if self.ttl == 0:
                raise ValueError("ttl: must be more than 0")
            try:
                tuple(map(parse_path, self.key))
            except ValueError as error:
                raise ValueError(f"key: {error}") from None

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self._paths = tuple(map(parse_path, params.key))
        self._cache: CacheFile | None = None
        self._path = os.path.join(ctx.base_dir, params.cache) if params.cache else ""
        self._about = {"stage": "dedupe-cache", "key": list(map(pointer, self._paths))}
        if self._path and os.path.lexists(self._path):
            from etlcli.state.sqlite import check_cache

            check_cache(self._path, self._about)
        self._store: Store[Any] | None = None
        # A store that forgets keys, and a look into a cache file, know them by their text.
        by_text = params.max_entries or ctx.trial
        self._keys_of: Callable[[list[list[Any]]], list[Any]] = texts_of if by_text else keys_of
        self._last = _Last(ctx) if params.keep == "last" else None
        # Not where every use of a key counts, nor where every record has to be placed.
        self._asks_once = not (params.max_entries or self._last)
        self._repeats = self._asks_once
        """Whether many keys come again in the same batch, so that it pays to find that out before they are made."""
        self._sent: set[Any] | None = set() if self._asks_once and params.ttl is None and not params.dupes else None
        """Keys, by this worker, as far as it remembers; None where a record counts whose key has been there."""
        self._journal = _Journal(ctx) if ctx.files.keeps and not self._last else None
        self._dupes: Output | None = None
        if state:
            self._resume(state)

    def reads(self) -> tuple[Path, ...]:
        return self._paths

    def prepare(self, batch: Batch) -> Prepared:
        columns = batch.columns(self._paths)
        rejects: list[Reject] = []
        if any(type(MISSING) in kinds_of(column) and MISSING in column for column in columns):
            rejects = list(self._lacking(batch, columns))
            batch = batch.without({reject.index for reject in rejects if reject.index is not None})
            columns = batch.columns(self._paths)
        return Prepared(batch, rejects, extra=self._questions(batch, columns))

    def _questions(self, batch: Batch, columns: list[list[Any]]) -> _Questions:
        """The keys that the store is to be asked about: of all records, or if it `asks_once` of the first with each key."""
        if self._repeats and columns and are_labels(map(kinds_of, columns)):
            places = _firsts(columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)))
            keys = self._keys_of([_at(places, column) for column in columns])
        else:
            keys = self._keys_of(columns) if columns else texts_of_records(batch)
            if not self._asks_once:
                return _Questions(keys, range(batch.count))
            if keys and _rise(keys):
                self._repeats = False
                return _Questions(packed(keys), range(batch.count), (keys[0], keys[-1]))
            places = _firsts(keys)
            keys = _at(places, keys)
        self._repeats = len(places) < batch.count // 4 * 3
        return _Questions(packed(keys), places, _bounds(keys))

    def unsent(self, prepared: Prepared) -> Prepared:
        """Without the records whose keys were sent before, or come before in this batch: they are duplicates."""
        batch, (keys, places, *_) = prepared.batch, prepared.extra
        if self._sent is None or not keys or len(keys) > batch.count // 4 * 3:
            return prepared
        new = set(keys).difference(self._sent)
        asked = [place for place, key in enumerate(keys) if key in new] if new else []
        keys = picked(keys, asked)
        if len(self._sent) < _REMEMBERED:
            self._sent |= new
        questions = _Questions(packed(keys), range(len(keys)), _bounds(keys), more=batch.count - len(keys))
        return prepared._replace(batch=batch.take(picked(places, asked)), extra=questions)

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        batch, (keys, places, bounds, more) = prepared.batch, prepared.extra
        if not batch.count + more:
            return
        self._open_dupes()
        if self._last:
            self._last.add(keys, batch.whole)
            return
        new = self._new(keys, bounds) if keys else ()
        hits = batch.count + more - len(new)
        self.ctx.looked_up(hits, len(new))
        if hits:
            new = picked(places, new)
            self._drop(batch.without(set(new)) if self._dupes else None, hits)
        if len(new) == batch.count:
            yield batch
        elif new:
            yield batch.take(new)

    def finish(self) -> Iterable[Batch]:
        self._open_dupes()
        if self._last:
            for lines, last in self._last.parts():
                kept = list(compress(lines, last))
                if len(kept) < len(lines):
                    dropped = [line for line, is_last in zip(lines, last, strict=True) if not is_last]
                    self._drop(Batch.of_whole(dropped), len(dropped))
                yield Batch.of_whole(kept)
        if self._cache and self._store:
            self._cache.settle()
            self._store.flush()
        if self._dupes:
            self._dupes.flush()

    def commit(self) -> None:
        try:
            if self._dupes:
                self._dupes.commit()
            if self._cache and self._store:
                self._store.flush()
                self._cache.commit()
        except EtlError as error:
            error.hint = "the output was published all the same; the next run may let its records through once more"
            raise

    def snapshot(self) -> State | None:
        if self._last:
            return {"runs": self._last.stored_runs()}
        return {"journal": self._journal.end} if self._journal else None

    def _resume(self, state: State) -> None:
        if self._last:
            for run in state["runs"]:
                self._last.restore(Run(*run), lambda batch: self.prepare(batch).extra.keys)
        if self._journal:
            store = self._store = self._open_store()
            for seen, keys in self._journal.restored(state["journal"]):
                value = {"seen": seen}
                if isinstance(store, RecentStore):
                    store.use(keys, value, partial(self._is_fresh, seen))
                else:
                    store.put(dict.fromkeys(keys, value))

    def _lacking(self, batch: Batch, columns: list[list[Any]]) -> Iterator[Reject]:
        for index, values in enumerate(zip(*columns, strict=True)):
            if MISSING in values:
                lacking = [path for path, value in zip(self._paths, values, strict=True) if value is MISSING]
                errors = [{"pointer": pointer(path), "message": "the key field is missing"} for path in lacking]
                yield batch.reject(index, "missing_field", errors)

    def _new(self, keys: Sequence[Any], bounds: tuple[Any, Any] | None) -> Sequence[int]:
        """The places of the keys that were not there."""
        store = self._store = self._store or self._open_store()
        if self.ctx.trial:
            store.put(self._cached(keys))
        now = round(time(), 3)
        value, is_fresh = {"seen": now}, partial(self._is_fresh, now)
        if isinstance(store, RecentStore):
            if self._journal:
                self._journal.add(now, keys)
            return store.use(keys, value, is_fresh)
        if self.params.ttl is None:
            new = store.admit(keys, bounds, value)
        else:
            fresh = {key for key, held in store.get(keys).items() if is_fresh(held)}
            new = [place for place, key in enumerate(keys) if key not in fresh]
            store.put(dict.fromkeys(picked(keys, new), value))
        if self._journal and new:
            self._journal.add(now, picked(keys, new))
        return new

    def explain(self, record: Batch) -> list[str]:
        (key,) = texts_of(record.columns(self._paths)) if self._paths else texts_of_records(record)
        lines = [f"the key is {key}" + (f": {told(record, self._paths)}" if self._paths else ", of the whole record")]
        for held in self._cached([key]).values():
            age = "" if self._is_fresh(time(), held) else ", too long ago to count"
            lines.append(f"the cache has seen it, in this record or another{_since(held)}{age}")
        return [*lines, "whether another record of the input has it, too, cannot be told from this record alone"]

    def _cached(self, keys: Iterable[str]) -> dict[str, Any]:
        """What the cache file has of these keys, for a look at it that takes no lock."""
        if not (self._path and os.path.lexists(self._path)):
            return {}
        from etlcli.state.inspect import Inspection

        found = {}
        with Inspection(self._path) as cache:
            for key in keys:
                with suppress(KeyError):
                    found[key] = cache.get(key)
        return found

    def _is_fresh(self, now: float, held: Any) -> bool:
        if self.params.ttl is None:
            return True
        try:
            return bool(now - held["seen"] < self.params.ttl)
        except (TypeError, KeyError):
            raise DataError(f"{self._path} holds a value without the time it was seen: {held!r}") from None

    def _open_store(self) -> Store[Any]:
        """At the first record, not before: a dry run makes no cache file, and does not wait for one."""
        ctx, table = self.ctx, None
        if self._path and not ctx.trial:
            from etlcli.state.sqlite import CacheFile

            self._cache = CacheFile(self._path, self._about)
            ctx.resources.callback(self._cache.close)
            table = self._cache.table
        memory = ctx.memory // 4 * 3
        if self.params.max_entries:
            return RecentStore(self.params.max_entries, memory, ctx.resources, table)
        return Store(memory, ctx.resources, table)

    def _open_dupes(self) -> None:
        if self.params.dupes and self._dupes is None:
            self._dupes = self.ctx.files.output(os.path.join(self.ctx.base_dir, self.params.dupes))

    def _drop(self, duplicates: Batch | None, count: int) -> None:
        self.ctx.discard("duplicate", count)
        if self._dupes and duplicates:
            self._dupes.write(duplicates.chunk)


class _Questions(NamedTuple):
    """Keys, the places of their records, and the smallest and the greatest key, where these are known; how many `more`
    records there were, which are duplicates."""

    keys: Sequence[Any]
    places: Sequence[int]
    bounds: tuple[Any, Any] | None = None
    more: int = 0


def _bounds(keys: list[Any]) -> tuple[Any, Any] | None:
    """The smallest key and the greatest, if it looks as if keys rose: then those of the next batch may be greater still."""
    with suppress(TypeError):  # that cannot be compared
        if keys and keys[0] <= keys[len(keys) // 2] <= keys[-1]:
            return min(keys), max(keys)
    return None


def _rise(labels: list[Any]) -> bool:
    """Whether each is greater than the one before."""
    with suppress(TypeError):
        return all(map(lt, labels, islice(labels, 1, None)))
    return False


def _firsts(labels: list[Any]) -> Sequence[int]:
    """The places of the first of each."""
    seen = set(labels)
    if len(seen) == len(labels):
        return range(len(labels))
    firsts = []
    for place, label in enumerate(labels):
        if label in seen:
            seen.remove(label)
            firsts.append(place)
    return firsts


def _at(places: Sequence[int], items: list[T]) -> list[T]:
    """The items at some places, each of which is named once, in order."""
    return items if len(places) == len(items) else picked(items, places)


def _since(held: Any) -> str:
    """Whoever made the file may have put anything there."""
    try:
        return f", at {datetime.fromtimestamp(held['seen'], UTC).isoformat(timespec='seconds')}"
    except (TypeError, KeyError, ValueError, OverflowError, OSError):
        return ""


class _Journal:
    """When the store was told of which keys, a line a batch."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._spill: Spill | None = None
        self.end = 0
        """Bytes of the spill file."""

    def add(self, seen: float, keys: Iterable[Key]) -> None:
        self._spill = self._spill or self._ctx.files.spill()
        self.end += self._spill.write_run([msgspec.json.encode((seen, list(keys))) + b"\n"]).size

    def restored(self, end: int) -> Iterator[tuple[float, list[Any]]]:
        self.end = end
        if not end:
            return
        self._spill = self._ctx.files.spill()
        for chunk in self._spill.read_run(Run(0, end), _BLOCK):
            try:
                entries = _told(chunk)
            except msgspec.MsgspecError:
                raise CheckpointError(
                    f"the spill file of step {self._ctx.step} is damaged", hint="--fresh begins again"
                ) from None
            yield from entries


_told = msgspec.json.Decoder(tuple[float, list[Key]]).decode_lines


class _Last:
    """All records of the input, as lines with their newlines, and which of them is the last of its key."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._places: Store[Key] = Store(ctx.memory // 2, ctx.resources)
        self._is_last = bytearray()
        self._lines: list[bytes] = []
        self._size = 0
        self._spill: Spill | None = None
        self._runs: list[Run] = []

    def add(self, keys: Sequence[Key], lines: list[bytes]) -> None:
        self._place(keys)
        self._lines += lines
        self._size += sum(map(len, lines)) + _OVERHEAD * len(lines)
        if self._size + len(self._is_last) > self._ctx.memory // 4:
            self._write_run()

    def parts(self) -> Iterator[tuple[list[bytes], bytearray]]:
        """The records, in order, each with whether it is the last of its key."""
        start = 0
        for lines in self._stored():
            yield lines, self._is_last[start : start + len(lines)]
            start += len(lines)

    def stored_runs(self) -> list[Run]:
        """Where all records are."""
        if self._lines:
            self._write_run()
        return self._runs

    def restore(self, run: Run, keys_of: Callable[[Batch], Sequence[Key]]) -> None:
        self._spill = self._spill or self._ctx.files.spill()
        self._runs.append(run)
        for chunk in self._spill.read_run(run, _BLOCK):
            self._place(keys_of(Batch.of_chunk(chunk)))

    def _place(self, keys: Sequence[Key]) -> None:
        start = len(self._is_last)
        here = dict(zip(keys, range(start, start + len(keys)), strict=True))
        is_last = self._is_last
        is_last += bytes(len(keys))
        for place in here.values():
            is_last[place] = 1
        for place in self._places.get(here.keys()).values():
            is_last[place] = 0
        self._places.put(here)

    def _stored(self) -> Iterator[list[bytes]]:
        for run in self._runs:
            assert self._spill is not None
            for chunk in self._spill.take_run(run, _BLOCK):
                yield Batch.of_chunk(chunk).whole
        for start in range(0, len(self._lines), _OUT):
            yield self._lines[start : start + _OUT]

    def _write_run(self) -> None:
        self._spill = self._spill or self._ctx.files.spill()
        blocks = (self._lines[start : start + _OUT] for start in range(0, len(self._lines), _OUT))
        self._runs.append(self._spill.write_run(map(b"".join, blocks)))
        self._lines, self._size = [], 0
