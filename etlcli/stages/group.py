"""`group`: aggregates of groups, or their records; exact, external.

For a summary `prepare` makes the states of a batch's groups and `apply` merges them into a table, a row a group in
first-seen order. For lists and streams `apply` keeps the records themselves. What outgrows the memory goes to disk as a
sorted run, each line with the group's key and an ordinal in front; `finish` merges the runs by key, so that what belongs
to a group comes together, and puts the groups back into first-seen order by a second sort, by ordinal.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import msgspec

from etlcli.core import params
from etlcli.core.aggregates import NUMBERS, parse_call
from etlcli.core.batch import Batch, Rows, chunk_of, lines_of
from etlcli.core.exact import is_countable
from etlcli.core.explain import told
from etlcli.core.fields import NULLS, Path, are_labels, parse_path, pointer
from etlcli.core.files import Run, Spill
from etlcli.core.groups import (
    ROW_OVERHEAD,
    STATE_OVERHEAD,
    Heads,
    Part,
    Table,
    nested,
    open_array,
    piles_of,
    runs_of,
)
from etlcli.core.intake import too_deep_inside
from etlcli.core.ordering import KeyMaker
from etlcli.core.stage import Context, Prepared, Stage, State
from etlcli.errors import FindingsError
from etlcli.io.spill import LineSorter

_LINE_OVERHEAD = 48
_REMEMBERED = 4 << 20
"""Bytes of keys, with what it takes to keep them."""
_SMALL = 256 << 10
"""Bytes of a table that a snapshot may hold."""
_OUT = 4096
_PARCEL = 1 << 20
_HARMLESS = {int, float, *NULLS}
_NAMES = {str: "a string", bool: "true or false", list: "an array", dict: "an object"}
_RECORDS = ("records",)


class Group(Stage):
    help = """Aggregate records by fields, or collect them.

--emit summary, the default, puts out a record for each group: the fields of --by, and each --agg as name=function(field).
The functions are count, sum, mean, min, max, first, last, distinct (how many different values), list, stddev (of a sample),
median and pNN, a percentile such as p99 or p99.9 (interpolated, as PERCENTILE_CONT in SQL); count() counts records. All
of them pass over null and missing values; of none at all counts are 0, a list is empty, and the others are null. min and
max go by the order of `etl sort`. A record with anything but a number where a number is needed is rejected and takes part
in no aggregate.

Numbers count as what is spelled, and are added up exactly: 0.1 + 0.2 is 0.3. They may have 10,000 digits before and after
the point. mean, stddev and percentiles are rounded once, at the end. So results do not depend on the order of the records.

--emit list puts out a record for each group with its records in `records`; --emit stream the records themselves, one group
after another. Groups come in the order in which their first records came. Values are equal as in `etl sort`: 1 is 1.0, and
null and missing are one group, shown as null. Without --by there is one group, which a summary shows even if it is empty.

Groups that outgrow --memory go to a temporary file (--temp-dir, else TMPDIR, else /tmp); but one group's list, or its
values for list, distinct and percentiles, is put together in memory, and a list longer than 16 MiB is a line that other
commands read only with a larger --max-line.

With --assume-sorted a group ends where the key changes, and no more than one is held. A key that comes back then is an
error as far as it is noticed: the first 40,000 keys or so are remembered."""
    examples = (
        (
            "etl group --by carrier,month --agg 'n=count()' --agg 'delay=mean(dep_delay)' --on-error skip flights.ndjson",
            "means by month of what is a number",
        ),
        ("etl group --agg 'median=median(distance)' --agg 'p99=p99(distance)' flights.ndjson", "of all records"),
        ("etl group --by tailnum --emit list flights.ndjson", "a line for each aircraft"),
        (
            "etl sort --by carrier flights.ndjson | etl group --by carrier --agg 'n=count()' --assume-sorted",
            "one by one",
        ),
    )
    order = "made"
    scope = "all"

    class Params(params.Declared):
        by = params.fields("Fields whose values make a group.")
        agg = params.texts("An aggregate, such as 'total=sum(amount)'.", metavar="NAME=FN(FIELD)")
        emit = params.choice(("summary", "list", "stream"), "What to put out for a group.", default="summary")
        assume_sorted = params.flag("Groups are together in the input already: hold one at a time.")
        temp_dir = params.path("Directory for groups that do not fit into memory.", metavar="DIR")

        @property
        def needs_order(self) -> bool:
            return bool(self.assume_sorted)

        def verify(self) -> None:
            if not self.by and not self.agg:
                raise ValueError("by: group needs by or agg")
            if self.agg and self.emit != "summary":
                raise ValueError("agg: goes only with emit summary")
            names = [
                *_checked("by", parse_path, self.by),
                *(call.name for call in _checked("agg", parse_call, self.agg)),
            ]
            if self.emit == "list":
                names.append(_RECORDS)
            for at, name in enumerate(names):
                for other in names[:at]:
                    if name[: len(other)] == other[: len(name)]:
                        option = "by" if at < len(self.by) else "agg"
                        raise ValueError(f"{option}: {'.'.join(name)} takes the place of {'.'.join(other)}")

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self.combines = params.emit == "summary"
        self._by = tuple(map(parse_path, params.by))
        self._calls = [parse_call(text) for text in params.agg]
        self._names = [*self._by, *(call.name for call in self._calls)]
        self._numeric = dict.fromkeys(call.field for call in self._calls if call.field and call.aggregate.numeric)
        self._heads = Heads(self._by)
        self._key_maker = KeyMaker([False] * len(self._by))
        self._neighbours = _Neighbours() if params.assume_sorted else None
        self._table = Table(self._calls)
        self._rows: dict[bytes, int] = {}
        self._lines: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._size = 0
        self._limit = ctx.memory // 16 * 15
        self._spill: Spill | None = None
        self._sorter: LineSorter | None = None
        self._ordinal = 0
        if state:
            self._resume(state)

    def reads(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys([*self._by, *(call.field for call in self._calls if call.field)]))

    def prepare(self, batch: Batch) -> Prepared:
        errors = self._unfit(batch)
        rejects = [batch.reject(index, *errors[index]) for index in sorted(errors)]
        if errors:
            batch = batch.without(errors)
        if self.params.emit == "summary":
            return Prepared(Batch.of_lines([]), rejects, extra=self._part(batch))
        return Prepared(batch, rejects, extra=self._keys(batch.columns(self._by), batch.count))

    def combined(self, extras: Sequence[Part]) -> Part:
        table = Table(self._calls)
        if self._neighbours:
            for part in extras:
                table.append(part)
        else:
            rows: dict[bytes, int] = {}
            for part in extras:
                table.merge(part, _numbers(part, rows))
        return table.rows

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        if self.params.emit == "summary":
            if self._neighbours:
                return self._merge_sorted(prepared.extra)
            self._merge(prepared.extra)
        elif self._neighbours:
            return self._pass_on(prepared.extra, prepared.batch)
        else:
            self._collect(prepared.extra, prepared.batch.lines)
        return ()

    def finish(self) -> Iterable[Batch]:
        if self._sorter:
            self._spill_all()
            return self._regrouped()
        if self.params.emit != "summary":
            return self._put_out(self._lines.values())
        if not self._by and not self._table.keys:
            self._table.append(Part([b""], [b"[]"], [0], [[None] for _ in self._calls]))
        return self._summary(self._table.take(len(self._table.keys)))

    def explain(self, record: Batch) -> list[str]:
        gives = [
            f"to {text}" + (f" it gives: {told(record, (call.field,))}" if call.field else " it gives: 1")
            for text, call in zip(self.params.agg, self._calls, strict=True)
        ]
        group = f"its group: {told(record, self._by)}" if self._by else "all records are one group"
        return [group, *gives, "what comes of the group cannot be told from this record alone"]

    def snapshot(self) -> State:
        """The rows of a small summary, or of the one group that is open; where the runs are, which everything else is in;
        and the groups that were."""
        held = None
        if self._neighbours:
            for key, lines in self._lines.items():
                held = key.hex(), self._spill_file().write_run([chunk_of(lines)])
        elif self.params.emit != "summary" or self._sorter or self._size > _SMALL:
            self._spill_all()
        rows = [line.decode() for line in self._table.rows.dump(self._calls, range(len(self._table.keys)))]
        return {
            "rows": rows,
            "held": held,
            "runs": self._sorter and self._sorter.runs,
            "ordinal": self._ordinal,
            "closed": self._neighbours and self._neighbours.snapshot(),
        }

    def _resume(self, state: State) -> None:
        if self._neighbours:
            self._neighbours.resume(state["closed"])
        part = Part.load([row.encode() for row in state["rows"]], self._calls)
        self._rows = {key: row for row, key in enumerate(part.keys)}
        self._table.append(part)
        self._size = self._table.size()
        if state["held"]:
            key, run = state["held"]
            chunk = b"".join(self._spill_file().read_run(Run(*run), _PARCEL))
            self._lines[bytes.fromhex(key)] = lines_of(chunk)
        self._ordinal = state["ordinal"]
        if state["runs"]:
            self._sorter = self._line_sorter([Run(*run) for run in state["runs"]])

    # -- prepare ------------------------------------------------------------------------------------------------------

    def _keys(self, columns: Sequence[list[Any]], count: int) -> list[bytes]:
        """Of `count` records, by the values that their groups are named by."""
        return self._key_maker.keys(columns) if columns else [b""] * count

    def _unfit(self, batch: Batch) -> dict[int, tuple[str, list[dict[str, Any]]]]:
        """The records that must be rejected: index -> code and errors."""
        if self.params.emit == "list":
            error = {"message": "nested too deeply to lie in a list"}
            return dict.fromkeys(too_deep_inside(batch, b"[["), ("too_deep", [error]))
        unfit: dict[int, tuple[str, list[dict[str, Any]]]] = {}
        kinds = batch.rows(self.reads()).kinds
        for path in self._numeric:
            if kinds(path) <= _HARMLESS:
                continue
            (column,) = batch.columns((path,))
            for index, value in enumerate(column):
                if problem := _problem(value):
                    error = {"pointer": pointer(path), "message": problem}
                    unfit.setdefault(index, ("bad_type", []))[1].append(error)
        return unfit

    def _part(self, batch: Batch) -> Part:
        """A row for each group of the batch; with --assume-sorted for each run of equal keys."""
        rows = batch.rows(self.reads())
        piles = self._piles(batch, rows)
        firsts = list(map(itemgetter(0), piles))
        named_by = [rows.access.values(path)(firsts) for path in self._by]
        counts = list(map(len, piles))
        fields = {call.field for call in self._calls if call.field}
        values = {field: _values(piles, rows, field) for field in fields}
        states: list[list[Any]] = []
        for call in self._calls:
            if call.field is None:
                states.append(counts)
            else:
                make = call.aggregate.maker(rows.kinds(call.field) - NULLS)
                states.append([make(pile) if pile else None for pile in values[call.field]])
        heads = self._heads.of(batch, len(piles), named_by, lambda: _places(rows.items, firsts))
        return Part(self._keys(named_by, len(piles)), heads, counts, states)

    def _piles(self, batch: Batch, rows: Rows) -> Sequence[Sequence[Any]]:
        """The rows of each group."""
        if self._by and not self._neighbours and are_labels(map(rows.kinds, self._by)):
            return rows.access.dealer(self._by)(rows.items)
        keys = self._keys(batch.columns(self._by), batch.count)
        if self._neighbours:
            return [rows.items[start:end] for start, end in runs_of(keys)]
        return piles_of(keys, rows.items)

    # -- summaries ----------------------------------------------------------------------------------------------------

    def _merge(self, part: Part) -> None:
        before = len(self._rows)
        self._table.merge(part, _numbers(part, self._rows))
        self._size += part.size(self._calls) * (len(self._rows) - before) // max(1, len(part.keys)) + part.growth(
            self._calls
        )
        if self._size > self._limit:
            # Values that were there already take no more room: count again, but not for every batch.
            self._size = self._table.size()
            if self._size > self._limit // 4 * 3:
                self._spill_all()

    def _merge_sorted(self, part: Part) -> Iterator[Batch]:
        assert self._neighbours
        admitted = self._neighbours.admit(part.keys)
        self._table.append(part.first(admitted))
        if admitted < len(part.keys):
            yield from self._summary(self._table.take(len(self._table.keys)))
            raise self._comes_back(part.heads[admitted])
        yield from self._summary(self._table.take(len(self._table.keys) - 1))

    def _summary(self, rows: Part) -> Iterator[Batch]:
        for start in range(0, len(rows.keys), _OUT):
            yield Batch.of_lines(self._finished(rows, range(start, min(start + _OUT, len(rows.keys)))))

    def _finished(self, rows: Part, which: range) -> list[bytes]:
        """The records that go out for some rows."""
        self.ctx.absorb("grouped", sum(rows.counts[which.start : which.stop]), into=len(which))
        return rows.records(self._names, self._calls, which)

    # -- records ------------------------------------------------------------------------------------------------------

    def _collect(self, keys: list[bytes], lines: list[bytes]) -> None:
        before = len(self._lines)
        deque(map(list.append, map(self._lines.__getitem__, keys), lines), 0)
        self._size += sum(map(len, lines)) + _LINE_OVERHEAD * len(lines)
        self._size += (len(self._lines) - before) * (ROW_OVERHEAD + sum(map(len, keys)) // max(1, len(keys)))
        if self._size > self._limit:
            self._spill_all()

    def _pass_on(self, keys: list[bytes], batch: Batch) -> Iterator[Batch]:
        """The records of groups that are together in the input; a list is put out when its group ends."""
        assert self._neighbours
        runs = list(runs_of(keys))
        admitted = self._neighbours.admit([keys[start] for start, _ in runs])
        whole = runs[admitted - 1][1] if admitted else 0
        if self.params.emit == "stream":
            yield batch.take(range(whole))
        else:
            for start, end in runs[:admitted]:
                if keys[start] not in self._lines:
                    yield from self._put_out([self._lines.popitem()[1]] if self._lines else [])
                self._lines[keys[start]] += batch.lines[start:end]
        if whole < batch.count:
            yield from self._put_out(self._lines.values())
            named_by = [[column[whole]] for column in batch.columns(self._by)]
            raise self._comes_back(self._heads.of(batch, 1, named_by, lambda: [whole])[0])

    def _put_out(self, groups: Iterable[list[bytes]]) -> Iterator[Batch]:
        """Groups of records, as they are or a record each."""
        for parcel in _parcels(groups):
            if self.params.emit == "list":
                yield Batch.of_lines(self._listed(parcel))
            else:
                lines = [line for lines in parcel for line in lines]
                for start in range(0, len(lines), _OUT):
                    yield Batch.of_lines(lines[start : start + _OUT])

    def _listed(self, groups: list[list[bytes]]) -> list[bytes]:
        self.ctx.absorb("grouped", sum(map(len, groups)), into=len(groups))
        firsts = Batch.of_lines([lines[0] for lines in groups])
        heads = self._heads.of(firsts, len(groups), firsts.columns(self._by), lambda: range(len(groups)))
        lists = [msgspec.Raw(b"[%b]" % b",".join(lines)) for lines in groups]
        return nested([*self._by, _RECORDS], [*zip(*map(open_array, heads), strict=True), lists])

    # -- on disk ------------------------------------------------------------------------------------------------------

    def _spill_all(self) -> None:
        """Everything in memory, as a run that is sorted by key."""
        if not self._table.keys and not self._lines:
            return
        self._sorter = self._sorter or self._line_sorter()
        self._sorter.add_sorted(self._row_lines() if self.params.emit == "summary" else self._record_lines())
        self._table, self._rows, self._size = Table(self._calls), {}, 0
        self._lines.clear()

    def _spill_file(self) -> Spill:
        self._spill = self._spill or self.ctx.files.spill(self.params.temp_dir)
        return self._spill

    def _line_sorter(self, runs: Sequence[Run] = ()) -> LineSorter:
        return LineSorter(self._spill_file(), self.ctx.memory // 2, runs)

    def _row_lines(self) -> Iterator[bytes]:
        """`key, ordinal, row`, in order. A group's ordinal is that of its first row."""
        keys = self._table.keys
        order = sorted(range(len(keys)), key=keys.__getitem__)
        for row, line in zip(order, self._table.rows.dump(self._calls, order), strict=True):
            key, _, text = line.partition(b"\t")
            yield b"%b\t%012x\t%b" % (key, self._ordinal + row, text)
        self._ordinal += len(keys)

    def _record_lines(self) -> Iterator[bytes]:
        """`key, ordinal, record`, in order. Records are numbered group by group: that leaves both the groups and the
        records of each in the order they came in."""
        ordinals = {}
        for key, lines in self._lines.items():
            ordinals[key] = self._ordinal
            self._ordinal += len(lines)
        for key in sorted(self._lines):
            prefix = key.hex().encode()
            for ordinal, line in enumerate(self._lines[key], ordinals[key]):
                yield b"%b\t%012x\t%b" % (prefix, ordinal, line)

    def _regrouped(self) -> Iterator[Batch]:
        """The groups in first-seen order: what the runs have of each comes together by key, and is sorted by ordinal."""
        ordered = self._line_sorter()
        for lines in self._whole_rows() if self.params.emit == "summary" else self._whole_groups():
            ordered.add(lines)
        parts = ordered.sorted()
        if self.params.emit != "list":
            for lines in parts:
                yield Batch.of_lines([line.split(b"\t", 2)[2] for line in lines])
        else:
            split = (line.split(b"\t", 2) for lines in parts for line in lines)
            yield from self._put_out([line for _, _, line in group] for _, group in groupby(split, itemgetter(0)))

    def _whole_rows(self) -> Iterator[list[bytes]]:
        """`ordinal, nothing, record` for each group of the runs."""
        assert self._sorter
        table = Table(self._calls)
        ordinals: list[bytes] = []
        for lines in chain(self._sorter.sorted(), ([],)):
            split = [line.split(b"\t", 2) for line in lines]
            part = Part.load([b"%b\t%b" % (key, text) for key, _, text in split], self._calls)
            rows = table.append(part)
            for (_, ordinal, _), row in zip(split, rows, strict=True):
                if row == len(ordinals):
                    ordinals.append(ordinal)
            done = len(table.keys) - bool(lines)
            finished = self._finished(table.take(done), range(done))
            yield [b"%b\t\t%b" % pair for pair in zip(ordinals[:done], finished, strict=True)]
            del ordinals[:done]

    def _whole_groups(self) -> Iterator[list[bytes]]:
        """`ordinal of the group, ordinal of the record, record` for each record of the runs."""
        assert self._sorter
        last = first = b""
        for lines in self._sorter.sorted():
            made = []
            for line in lines:
                key, ordinal, record = line.split(b"\t", 2)
                if key != last:
                    last, first = key, ordinal
                made.append(b"%b\t%b\t%b" % (first, ordinal, record))
            yield made

    def _comes_back(self, head: bytes) -> FindingsError:
        return FindingsError(
            f"the group {head.decode()} comes back: the input is not grouped by {','.join(self.params.by)}",
            hint=f"leave --assume-sorted out, or sort first: etl sort --by={','.join(self.params.by)}",
        )


class _Neighbours:
    """Watches that groups which were together do not come back, as far as it remembers them."""

    def __init__(self) -> None:
        self._last: bytes | None = None
        self._closed: set[bytes] = set()
        self._room = _REMEMBERED

    def admit(self, keys: Sequence[bytes]) -> int:
        """How many of these keys, different from one to the next, come before the first that was there already."""
        for index, key in enumerate(keys):
            if key in self._closed:
                return index
            if key != self._last:
                self._close()
                self._last = key
        return len(keys)

    def _close(self) -> None:
        if self._last is not None and self._room > len(self._last):
            self._closed.add(self._last)
            self._room -= len(self._last) + STATE_OVERHEAD

    def snapshot(self) -> list[str]:
        return [key.hex() for key in (*self._closed, self._last) if key is not None]

    def resume(self, keys: list[str]) -> None:
        for key in keys:
            self.admit([bytes.fromhex(key)])


def _numbers(part: Part, rows: dict[bytes, int]) -> list[int]:
    """Of the rows of a part in a table with these `rows`, to which new keys are added."""
    return [rows.setdefault(key, len(rows)) for key in part.keys]


def _values(piles: Iterable[Sequence[Any]], rows: Rows, path: Path) -> list[list[Any]]:
    """The values of a field in each group, without null and missing."""
    return list(map(rows.access.present(path, rows.kinds(path)), piles))


def _places(rows: Sequence[Any], some: Iterable[Any]) -> list[int]:
    """The indices of some of the rows, each of which is an object of its own."""
    places = dict(zip(map(id, rows), range(len(rows)), strict=True))
    return [places[id(row)] for row in some]


def _problem(value: Any) -> str:
    """Why a value cannot be added up; nothing where it can, or is absent."""
    if type(value) in NUMBERS:
        return "" if is_countable(value) else "a number too large, or too small, to be added up exactly"
    return "" if type(value) in NULLS else f"{_NAMES[type(value)]}, not a number"


def _parcels(groups: Iterable[list[bytes]]) -> Iterator[list[list[bytes]]]:
    """Groups of records, a few at a time: about a MiB, or one."""
    parcel: list[list[bytes]] = []
    size = 0
    for lines in groups:
        parcel.append(lines)
        size += sum(map(len, lines))
        if size > _PARCEL or len(parcel) == _OUT:
            yield parcel
            parcel, size = [], 0
    if parcel:
        yield parcel


def _checked(option: str, parse: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    try:
        return list(map(parse, texts))
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
