"""`sort`: stable, typed, external.

`prepare` makes a key for each record; `apply` keeps keys and lines and, when they outgrow the memory, writes them to disk
as a sorted run; `finish` sorts what is in memory and merges the runs. Where keys are few, as in most data, runs are piles
of equal keys, which are merged without a look at the records (`io.piles`). Otherwise the merge goes block by block: all
records up to the smallest last key among the loaded blocks are there, so they can be sorted together and put out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etlcli.core import params
from etlcli.core.batch import Batch, Origin
from etlcli.core.explain import told
from etlcli.core.fields import Derived, Path, parse_path, picked
from etlcli.core.files import Run, Spill
from etlcli.core.groups import runs_of
from etlcli.core.ordering import KeyMaker, order_of, sorted_by
from etlcli.core.stage import Context, Prepared, Stage, State
from etlcli.errors import FindingsError
from etlcli.io.piles import Pile, PiledRun, Piles
from etlcli.io.spill import merged_down, share_of

# What a record costs beside its bytes (CPython, 64 bit): the line's header, list slots, an index while sorting; a key
# object, and its place in the set that finds out whether keys are few; a key's pile.
_OVERHEAD = 112
_KEY_OVERHEAD = 96
_PILE_OVERHEAD = 256
_FEW = 4096
_SHARED = 4
"""Records a key, on average, where keys are few."""
_FIRST, _OUT = 64, 4096
_PARCEL = 1 << 20

Block = tuple[list[bytes], list[bytes]]
"""Keys and lines of some records, in order."""


class Sort(Stage):
    help = """Sort records by one or more fields.

Values sort by type first: false, true, numbers, strings (by code point), arrays, objects. Records whose field is null or
missing come last in either direction, unless --nulls first. Integers of any size compare exactly. The sort is stable:
records with equal keys keep their order, and every record keeps its bytes.

Input larger than --memory is sorted in runs in a temporary file (--temp-dir, else TMPDIR, else /tmp) that has no name, so
that nothing can be left behind. On Linux it shrinks while the result grows: the disk need not hold both, unless a
checkpoint needs the runs."""
    examples = (
        ("etl sort --by=-dep_delay,carrier flights.ndjson", "latest departures first, then by carrier"),
        ("etl sort --by carrier --top 3 flights.ndjson", "the first three"),
        ("etl sort --by id --check flights.ndjson", "exit 1 at the first record out of order"),
        ("etl sort --by id --merge monday.ndjson tuesday.ndjson", "merge files that are sorted already"),
    )
    order = "made"
    scope = "all"

    class Params(params.Declared):
        by = params.fields("Fields to sort by, the most significant first; a minus before a name sorts it descending.",
                           required=True)  # fmt: skip
        nulls = params.choice(("last", "first"), "Where null and missing go, in both directions.", default="last")
        numeric = params.flag("Compare strings that spell a JSON number as numbers.")
        unique = params.flag("Keep the first of the records with equal keys.")
        top = params.integer("Keep only the first N records of the result.", minimum=1)
        check = params.flag("Only check the order: no output, exit 1 at the first record out of order.")
        merge = params.flag("Merge inputs that are sorted already; an input that is not is an error.")
        temp_dir = params.path("Directory for runs that do not fit into memory.", metavar="DIR")

        @property
        def needs_order(self) -> bool:
            return bool(self.check or self.merge)

        def verify(self) -> None:
            if self.check and (self.merge or self.top):
                raise ValueError("check: goes with neither merge nor top")
            try:
                _paths(self.by)
            except ValueError as error:
                raise ValueError(f"by: {error}") from None

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self.reports = params.check
        self._paths = _paths(params.by)
        descending = [name.startswith("-") for name in params.by]
        self._key_maker = KeyMaker(descending, nulls_first=params.nulls == "first", numeric=params.numeric)
        self._keys = Derived(f"{ctx.step} keys", self._paths, self._key_maker.keys)
        self._kept = self._nothing()
        self._limit = ctx.memory // 16 * 15
        self._spill: Spill | None = None
        self._runs: list[Run] = []
        self._piles: Piles | None = None
        self._spilled = 0
        self._last: bytes | None = None
        self._last_origin: Origin | None = None
        self._emitted = 0
        if state:
            self._resume(state)

    def reads(self) -> tuple[Derived, ...]:
        return (self._keys,)

    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch, extra=batch.derived(self._keys))

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        batch = prepared.batch
        if self.params.check:
            self._check(batch, prepared.extra)
            return ()
        if self.params.merge:
            self._check_input(batch, prepared.extra)
        self._kept.add(prepared.extra, batch.whole, batch.size)
        if self._kept.size > self._limit:
            self._make_room()
        return ()

    def finish(self) -> Iterable[Batch]:
        if self._piles:
            yield from self._joined(self._piles)
            return
        for batch in _batches(self._merged()):
            if self.params.top:
                count = max(0, min(batch.count, self.params.top - self._emitted))
                self.ctx.discard("beyond_top", batch.count - count)
                self._emitted += count
                batch = batch.take(range(count)) if count < batch.count else batch
            yield batch

    def explain(self, record: Batch) -> list[str]:
        depends = "its place"
        if self.params.top or self.params.unique:
            depends += ", and whether it is kept,"
        return [
            f"sorted by {','.join(self.params.by)}: {told(record, self._paths)}",
            f"{depends} cannot be told from this record alone",
        ]

    def snapshot(self) -> State:
        """Where the runs are; what is in memory becomes one."""
        if self._kept.count:
            self._write_run()
        last = None if self._last is None else self._last.hex()
        return {
            "runs": self._runs,
            "piles": self._piles and self._piles.runs,
            "spilled": self._spilled,
            "last": last,
            "last_origin": self._last_origin,
        }

    def _resume(self, state: State) -> None:
        self._runs = [Run(*run) for run in state["runs"]]
        self._spilled = state["spilled"]
        self._last = None if state["last"] is None else bytes.fromhex(state["last"])
        self._last_origin = state["last_origin"] and Origin(*state["last_origin"])
        if self._runs:
            self._spill = self._spill_file()
        if state["piles"]:
            self._piles = self._on_disk(map(PiledRun.load, state["piles"]))

    # -- checking -----------------------------------------------------------------------------------------------------

    def _check(self, batch: Batch, keys: list[bytes]) -> None:
        index = self._disorder(keys)
        if index is not None:
            origin = batch.origin(index)
            raise FindingsError(
                f"{origin or 'a record'} is out of order: not sorted by {','.join(self.params.by)}",
                where=str(origin or ""),
                hint="sort it with: etl sort --by=" + ",".join(self.params.by),
            )
        self.ctx.discard("checked", len(batch))

    def _check_input(self, batch: Batch, keys: list[bytes]) -> None:
        if not len(batch):
            return
        first, before = batch.origin(0), self._last_origin
        if first and before and (first.path != before.path or first.line <= before.line):
            self._last = None  # another input begins
        self._last_origin = batch.origin(len(batch) - 1)
        index = self._disorder(keys)
        if index is not None:
            raise FindingsError(
                f"{batch.origin(index) or 'an input'} is not sorted by {','.join(self.params.by)}",
                where=str(batch.origin(index) or ""),
                hint="leave --merge out",
            )

    def _disorder(self, keys: list[bytes]) -> int | None:
        """The index of the first key below the one before it, in this batch or the last; with --unique also of an equal
        one."""
        if not keys:
            return None
        before = [keys[0] if self._last is None else self._last, *keys[:-1]]
        strict = self.params.unique and self.params.check
        first_is_free = strict and self._last is None
        self._last = keys[-1]
        for index, (one, other) in enumerate(zip(before, keys, strict=True)):
            if other < one or (strict and other == one and not (first_is_free and index == 0)):
                return index
        return None

    # -- keeping ------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        if self.params.top and self._cut_to_top():
            return
        self._write_run()

    def _write_run(self) -> None:
        """All runs are piles if the keys of the first are few."""
        if not self._runs and not self._piles and self._kept.has_few_keys():
            self._piles = self._on_disk()
        if self._piles:
            kept, self._kept = self._kept, self._nothing()
            self._piles.add(pile for key, lines in kept.by_key() for pile in _piles_of(key, lines))
            return
        self._spill = self._spill or self._spill_file()
        self._spilled += self._kept.count
        self._runs.append(self._spill.write_run(batch.chunk for batch in _batches(self._taken())))

    def _spill_file(self, name: str = "") -> Spill:
        return self.ctx.files.spill(self.params.temp_dir, name)

    def _on_disk(self, runs: Iterable[PiledRun] = ()) -> Piles:
        return Piles(self._spill_file(), self._spill_file("index"), self.ctx.memory // 4, runs)

    def _nothing(self) -> _Kept:
        return _Kept(piled=not self.params.unique and not self.params.top)

    def _cut_to_top(self) -> bool:
        """With --top only the first N can matter. Whether dropping the others made enough room."""
        keys, lines = self._kept.keys, self._kept.lines
        order = self._order(keys)
        kept = order[: self.params.top]
        self.ctx.discard("beyond_top", len(order) - len(kept))
        self._kept = self._nothing()
        lines = picked(lines, kept)
        self._kept.add(picked(keys, kept), lines, sum(map(len, lines)))
        return self._kept.size <= self._limit // 2

    def _taken(self) -> Iterator[list[bytes]]:
        """The lines in memory, in order. The memory is free when they are used up."""
        kept, self._kept = self._kept, self._nothing()
        if kept.piles is None:
            lines = self._sorted(kept.keys, kept.lines)
            del kept
            yield lines
        else:
            yield from (lines for _, lines in kept.by_key())

    def _sorted(self, keys: list[bytes], lines: list[bytes], before: bytes | None = None) -> list[bytes]:
        return picked(lines, self._order(keys, before)) if self.params.unique else sorted_by(keys, lines)

    def _order(self, keys: list[bytes], before: bytes | None = None) -> list[int]:
        """The indices of `keys`, in order; with --unique only the first of equal ones, and none equal to `before`."""
        order = order_of(keys)
        if not self.params.unique:
            return order
        kept = []
        for index in order:
            if keys[index] != before:
                kept.append(index)
                before = keys[index]
        self.ctx.discard("duplicate", len(order) - len(kept))
        return kept

    # -- merging ------------------------------------------------------------------------------------------------------

    def _merged(self) -> Iterator[list[bytes]]:
        """All lines, in order."""
        if self._spill is None:
            return self._taken()
        if self._kept.count:
            self._write_run()
        return self._merge(merged_down(self._runs, self._merge_bytes(), self._merge_to_run))

    def _joined(self, piles: Piles) -> Iterator[Batch]:
        """All lines, in order."""
        if self._kept.count:
            self._write_run()
        count, size = 0, 0
        chunks: list[bytes] = []
        for pile in piles.merged():
            chunks.append(pile.chunk)
            count += pile.records
            size += len(pile.chunk)
            if count >= _OUT or size >= _PARCEL:
                yield Batch(count, chunk=b"".join(chunks))
                count, size, chunks = 0, 0, []
        if chunks:
            yield Batch(count, chunk=b"".join(chunks))

    def _merge_bytes(self) -> int:
        """How many bytes of runs may be loaded at once: a quarter of the memory, as objects, and as much again moves."""
        size = sum(run.size for run in self._runs)
        return self.ctx.memory // 4 * size // max(1, size + self._spilled * (_OVERHEAD + _KEY_OVERHEAD))

    def _merge_to_run(self, runs: Sequence[Run]) -> Run:
        assert self._spill is not None
        return self._spill.write_run(batch.chunk for batch in _batches(self._merge(runs)))

    def _merge(self, runs: Sequence[Run]) -> Iterator[list[bytes]]:
        """The lines of sorted runs, sorted; the earlier run first among equal keys."""
        share = share_of(self._merge_bytes(), runs)
        loaded = [_Loaded(self._blocks(run, share)) for run in runs]
        last: bytes | None = None
        while live := [block for block in loaded if block.keys]:
            # The block whose last key is smallest is used up entirely; the earliest of those with that key. Runs after
            # it must keep their equal keys back, since its next block may begin with some.
            ending = min(live, key=lambda block: block.keys[-1])
            bound, behind = ending.keys[-1], False
            keys: list[bytes] = []
            lines: list[bytes] = []
            for block in live:
                cut = (bisect_left if behind else bisect_right)(block.keys, bound)
                block.move(cut, keys, lines)
                behind = behind or block is ending
            yield self._sorted(keys, lines, last)
            last = bound

    def _blocks(self, run: Run, size: int) -> Iterator[Block]:
        assert self._spill is not None
        for chunk in self._spill.take_run(run, size):
            batch = Batch.of_chunk(chunk)
            yield self._key_maker.keys(batch.columns(self._paths)), batch.whole


def _paths(by: Sequence[str]) -> tuple[Path, ...]:
    return tuple(parse_path(name.removeprefix("-")) for name in by)


class _Kept:
    """Records in memory, as lines with their newlines. If `piled`, and as long as keys are few, each key has a pile of its
    own, filled while the lines are at hand, and only the keys need sorting; otherwise keys and lines lie side by side, as
    they came."""

    def __init__(self, *, piled: bool) -> None:
        self.piles: defaultdict[bytes, list[bytes]] | None = defaultdict(list) if piled else None
        self.keys: list[bytes] = []
        self.lines: list[bytes] = []
        self.count = 0
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes of memory, nearly."""
        return self._bytes + (0 if self.piles is None else len(self.piles) * _PILE_OVERHEAD)

    def add(self, keys: list[bytes], lines: list[bytes], size: int) -> None:
        """`size` is that of the lines, in bytes."""
        self.count += len(lines)
        self._bytes += size + _OVERHEAD * len(lines)
        if self.piles is None:
            self._add_flat(keys, lines)
            return
        deque(map(list.append, map(self.piles.__getitem__, keys), lines), maxlen=0)
        if self.count > _FEW and not self.has_few_keys():
            piles, self.piles = self.piles, None
            for key, pile in piles.items():
                self._add_flat([key] * len(pile), pile)

    def has_few_keys(self) -> bool:
        """Whether keys are known to be few."""
        return self.piles is not None and self.count >= len(self.piles) * _SHARED

    def by_key(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """The lines of each key, keys in order. Those that lie in piles are gone when their turn is over."""
        if self.piles is not None:
            for key in sorted(self.piles):
                yield key, self.piles.pop(key)
            return
        order = order_of(self.keys)
        keys, lines = picked(self.keys, order), picked(self.lines, order)
        yield from ((keys[start], lines[start:end]) for start, end in runs_of(keys))

    def _add_flat(self, keys: list[bytes], lines: list[bytes]) -> None:
        self.keys += keys
        self.lines += lines
        self._bytes += sum(map(len, keys)) + _KEY_OVERHEAD * len(keys)


class _Loaded:
    """The part of a run that is in memory: keys and lines still to be put out."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self.keys: list[bytes] = []
        self.lines: list[bytes] = []
        self._load()

    def move(self, cut: int, keys: list[bytes], lines: list[bytes]) -> None:
        """Moves the first `cut` records over, and loads the next block when none is left."""
        keys += self.keys[:cut]
        lines += self.lines[:cut]
        del self.keys[:cut], self.lines[:cut]
        if not self.keys:
            self._load()

    def _load(self) -> None:
        self.keys, self.lines = next(self._blocks, ([], []))


def _piles_of(key: bytes, lines: list[bytes]) -> Iterator[Pile]:
    """A pile, or several of about a parcel each."""
    step = max(1, len(lines) * _PARCEL // sum(map(len, lines)))
    for start in range(0, len(lines), step):
        part = lines[start : start + step]
        yield Pile(key.hex().encode(), len(part), b"".join(part))


def _batches(blocks: Iterable[list[bytes]]) -> Iterator[Batch]:
    """All lines of the blocks, a few at a time: about a parcel, if they are as long as the ones before."""
    count = _FIRST
    held: list[bytes] = []
    for block in blocks:
        if held and len(held) + len(block) < count:
            held += block
            continue
        held = [*held, *block]  # a list of our own, to which the next block may be added
        start = 0
        while len(held) - start >= count:
            batch = _batch(held[start : start + count])
            yield batch
            start += count
            count = max(1, min(_OUT, count * _PARCEL // batch.size))
        held = held[start:]
    if held:
        yield _batch(held)


def _batch(lines: list[bytes]) -> Batch:
    return Batch(len(lines), whole=lines, chunk=b"".join(lines))
