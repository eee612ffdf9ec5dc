"""`sort`: stable, typed, external.

`prepare` makes a key for each record and sorts the batch; `apply` keeps sorted batches and, when they outgrow the memory,
merges them into a run on disk; `finish` merges what there is. In memory the merge is `list.sort` over concatenated runs,
which timsort recognises and merges in C. On disk it goes block by block: all records up to the smallest last key among
the loaded blocks are complete, so they can be sorted together and put out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etlcli.core import params
from etlcli.core.batch import Batch
from etlcli.core.fields import Path, parse_path
from etlcli.core.ordering import KeyMaker, order_of
from etlcli.core.stage import Context, Prepared, Stage, State
from etlcli.errors import FindingsError, UsageError
from etlcli.io.spill import Run, SpillFile, spill_directory

# What a record costs beside its bytes: the headers of line and key, their list slots, an index (CPython, 64 bit).
_OVERHEAD = 144
_MIN_BLOCK = 64 << 10
_MAX_FAN_IN = 256
_OUT = 4096

Block = tuple[list[bytes], list[bytes]]
"""Keys and lines of some records, in order."""


class Sort(Stage):
    help = """Sort records by one or more fields.

Values sort by type first: false, true, numbers, strings (by code point), arrays, objects. Records whose field is null or
missing come last in either direction, unless --nulls first. Integers of any size compare exactly. The sort is stable:
records with equal keys keep their order, and every record keeps its bytes.

Input larger than --memory is sorted in runs in a temporary file (--temp-dir, else TMPDIR, else /tmp) that has no name, so
that nothing can be left behind."""
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

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        if params.check and (params.merge or params.top):
            raise UsageError("sort --check goes with neither --merge nor --top")
        try:
            self._paths = tuple(parse_path(name.removeprefix("-")) for name in params.by)
        except ValueError as error:
            raise UsageError(f"--by: {error}") from None
        descending = [name.startswith("-") for name in params.by]
        self._key_maker = KeyMaker(descending, nulls_first=params.nulls == "first", numeric=params.numeric)
        self._keys: list[bytes] = []
        self._lines: list[bytes] = []
        self._size = 0
        self._limit = ctx.memory // 16 * 15
        self._spill: SpillFile | None = None
        self._runs: list[Run] = []
        self._last: bytes | None = None
        self._last_path = ""
        self._emitted = 0

    def reads(self) -> tuple[Path, ...]:
        return self._paths

    def prepare(self, batch: Batch) -> Prepared:
        keys = self._key_maker.keys(batch.columns(self._paths))
        if self.params.check or self.params.merge:
            return Prepared(batch, extra=keys)
        order = order_of(keys)
        return Prepared(batch, extra=(_pick(keys, order), _pick(batch.lines, order)))

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        batch = prepared.batch
        if self.params.check:
            self._check(batch, prepared.extra)
            return ()
        if self.params.merge:
            self._check_input(batch, prepared.extra)
            keys, lines = prepared.extra, batch.lines
        else:
            keys, lines = prepared.extra
        self._keys += keys
        self._lines += lines
        self._size += sum(map(len, lines)) + sum(map(len, keys)) + _OVERHEAD * len(lines)
        if self._size > self._limit:
            self._make_room()
        return ()

    def finish(self) -> Iterable[Batch]:
        for keys, lines in self._merged():
            yield from self._emit(keys, lines)

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
        origin = batch.origin(0) if len(batch) else None
        path = origin.path if origin else ""
        if path != self._last_path:
            self._last, self._last_path = None, path
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
        _, lines = self._take_buffer()
        if self._spill is None:
            self._spill = SpillFile(spill_directory(self.params.temp_dir))
            self.ctx.resources.callback(self._spill.close)
            self.ctx.log("debug", "spilling", step=self.ctx.step, directory=spill_directory(self.params.temp_dir))
        self._runs.append(self._spill.write_run(_blocks_of(lines)))

    def _cut_to_top(self) -> bool:
        """With --top only the first N can matter. Whether dropping the others made enough room."""
        keys, lines = self._take_buffer()
        self._keys, self._lines = keys[: self.params.top], lines[: self.params.top]
        self.ctx.discard("beyond_top", len(lines) - len(self._lines))
        self._size = sum(map(len, self._lines)) + sum(map(len, self._keys)) + _OVERHEAD * len(self._lines)
        return self._size <= self._limit // 2

    def _take_buffer(self) -> Block:
        """What is in memory, sorted, --unique applied; the buffer is empty then."""
        order = order_of(self._keys)
        keys, lines = _pick(self._keys, order), _pick(self._lines, order)
        self._keys, self._lines, self._size = [], [], 0
        return self._unique(keys, lines, None) if self.params.unique else (keys, lines)

    def _unique(self, keys: list[bytes], lines: list[bytes], before: bytes | None) -> Block:
        kept = [i for i, key in enumerate(keys) if key != (keys[i - 1] if i else before)]
        self.ctx.discard("duplicate", len(keys) - len(kept))
        return _pick(keys, kept), _pick(lines, kept)

    # -- merging ------------------------------------------------------------------------------------------------------

    def _merged(self) -> Iterator[Block]:
        buffer = self._take_buffer()
        if self._spill is None:
            yield buffer
            return
        if buffer[0]:
            self._runs.append(self._spill.write_run(_blocks_of(buffer[1])))
        del buffer
        runs = self._runs
        fan_in = max(2, min(_MAX_FAN_IN, self.ctx.memory // 4 // _MIN_BLOCK))
        while len(runs) > fan_in:
            # Neighbours are merged with each other, so that equal keys keep their order.
            groups = [runs[start : start + fan_in] for start in range(0, len(runs), fan_in)]
            runs = [self._merge_to_run(group) if len(group) > 1 else group[0] for group in groups]
        yield from self._merge(runs)

    def _merge_to_run(self, runs: Sequence[Run]) -> Run:
        assert self._spill is not None
        return self._spill.write_run(b"\n".join([*lines, b""]) for _, lines in self._merge(runs))

    def _merge(self, runs: Sequence[Run]) -> Iterator[Block]:
        """The records of sorted runs, sorted, a block at a time; the earlier run first among equal keys."""
        share = max(_MIN_BLOCK, self.ctx.memory // 8 // len(runs))
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
            order = order_of(keys)
            keys, lines = _pick(keys, order), _pick(lines, order)
            if self.params.unique:
                keys, lines = self._unique(keys, lines, last)
                last = bound
            yield keys, lines

    def _blocks(self, run: Run, size: int) -> Iterator[Block]:
        assert self._spill is not None
        for chunk in self._spill.read_run(run, size):
            batch = Batch.of_chunk(chunk)
            yield self._key_maker.keys(batch.columns(self._paths)), batch.lines

    def _emit(self, keys: list[bytes], lines: list[bytes]) -> Iterator[Batch]:
        if self.params.top:
            kept = lines[: max(0, self.params.top - self._emitted)]
            self.ctx.discard("beyond_top", len(lines) - len(kept))
            self._emitted += len(kept)
            lines = kept
        for start in range(0, len(lines), _OUT):
            yield Batch.of_lines(lines[start : start + _OUT])


class _Loaded:
    """The part of a run that is in memory: keys and lines still to be put out."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._start = 0
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


def _pick(items: list[bytes], order: Sequence[int]) -> list[bytes]:
    return list(map(items.__getitem__, order))


def _blocks_of(lines: list[bytes]) -> Iterator[bytes]:
    for start in range(0, len(lines), _OUT):
        yield b"\n".join([*lines[start : start + _OUT], b""])
