"""`batch`: runs of records in one record each.

`prepare` finds where the key or the time window changes. `apply` holds the lines of one batch, and closes it at the first
limit that is met. Time passes for it through `tick`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from decimal import Context as DecimalContext
from itertools import accumulate, compress
from operator import ne
from typing import Annotated, Any

import msgspec

from etlcli.core import params
from etlcli.core.batch import Batch, Reject, chunk_of, lines_of
from etlcli.core.explain import told
from etlcli.core.fields import MISSING, Path, parse_path, pointer
from etlcli.core.files import Run, Spill
from etlcli.core.intake import too_deep_inside
from etlcli.core.ordering import KeyMaker
from etlcli.core.params import parse_duration
from etlcli.core.stage import Context, Prepared, Stage, State

_LINE_OVERHEAD = 48
_MICRO = Decimal("1E-6")
_MICROSECOND = timedelta(microseconds=1)
_FLOOR = DecimalContext(prec=40, rounding=ROUND_FLOOR)
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_FIRST, _END = -62_135_596_800, 253_402_300_800
"""Where the years 1 and 10,000 begin, in seconds since 1970."""
_MEMO_LIMIT = 1 << 16
_BLOCK = 1 << 20
_TIME = Annotated[datetime, msgspec.Meta(tz=True)]

Mark = tuple[bytes, int]
"""What closes a batch where it changes: a record's key and its time window."""


class Batcher(Stage):
    help = """Put runs of records into one record each, which `etl unbatch` undoes.

A batch is one line, {"batch":1,"size":2,"records":[...]}, and holds the records' own bytes. It is closed by whichever
comes first: --size records, --bytes of them, --every so long after its first record (also while no record comes),
another --window of the data's own time, another --key. What is left at the end of input makes the last batch, which
has "partial":true, and no other has.

--window takes a field with an RFC 3339 time, or a number of seconds since 1970, and the width of the windows, which are
counted from 1970 on. A record without such a time is rejected. --key counts null and missing as one value, and 1 and 1.0.

No batch grows beyond a quarter of --memory; one closed for that reason is logged. A batch longer than 16 MiB is a line
that other commands read only with a larger --max-line."""
    examples = (
        ("etl batch --size 1000 flights.ndjson", "a thousand records a line"),
        ("etl batch --bytes 1MiB --every 5s flights.ndjson", "at most 1 MiB, at most 5 s late"),
        ("etl batch --window time_hour:1d flights.ndjson", "a batch for each day of the data"),
        ("etl batch --key carrier flights.ndjson | etl unbatch", "and back"),
    )
    scope = "all"

    class Params(params.Declared):
        size = params.integer("Close a batch at so many records.", minimum=1)
        bytes = params.size("Close a batch before its records, with their newlines, are more than this; "
                            "a longer record has a batch of its own.")  # fmt: skip
        every = params.duration("Close a batch this long after its first record came.")
        window = params.text("A field with a time, and a width: a record of another window closes the batch.",
                             metavar="FIELD:DUR")  # fmt: skip
        key = params.fields("A record with other values of these fields closes the batch.")

        def verify(self) -> None:
            if all(value in (None, ()) for value in self.values().values()):
                raise ValueError("size: batch needs one of size, bytes, every, window and key")
            if self.every == 0:
                raise ValueError("every: must be more than 0")
            if self.window:
                _parse_window(self.window)
            try:
                _paths(self.key)
            except ValueError as error:
                raise ValueError(f"key: {error}") from None

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self._key = _paths(params.key)
        self._key_maker = KeyMaker([False] * len(self._key))
        self._field, self._width = _parse_window(params.window) if params.window else ((), 0)
        self._windows: dict[str, int | None] = {}
        share = max(1, ctx.memory // 4)
        self._most = min(params.size or share, max(1, share // _LINE_OVERHEAD))
        self._most_bytes = min(params.bytes or share, share)
        self._number = 0
        self._lines: list[bytes] = []
        self._size = 0
        self._mark: Mark | None = None
        self._opened = 0.0
        self._told = False
        self._spill: Spill | None = None
        self._held: list[Run] = []
        """Where the first of the lines are, `_stored` of them."""
        self._stored = 0
        if state:
            self._number = state["number"]
            for run in state["held"]:
                self._held.append(Run(*run))
                self._hold(lines_of(b"".join(self._spill_file().read_run(self._held[-1], _BLOCK))))
            self._stored = len(self._lines)
            self._mark = state["mark"] and (bytes.fromhex(state["mark"][0]), state["mark"][1])

    def reads(self) -> tuple[Path, ...]:
        return (*self._key, self._field) if self._field else self._key

    def prepare(self, batch: Batch) -> Prepared:
        rejects = {
            index: batch.reject(index, "too_deep", [{"message": "nested too deeply to lie in a batch"}])
            for index in too_deep_inside(batch, b"[[")
        }
        windows: list[Any] = [0] * batch.count
        if self._field:
            times = batch.columns(self.reads())[-1]
            windows = list(map(self._window_of, times))
            if None in windows:
                bad = (index for index, window in enumerate(windows) if window is None)
                rejects |= {index: self._no_time(batch, index, times[index]) for index in bad}
        if rejects:
            windows = [window for index, window in enumerate(windows) if index not in rejects]
            batch = batch.without(rejects)
        if not self.reads():
            return Prepared(batch, list(rejects.values()))
        keys = self._key_maker.keys(batch.columns(self.reads())[: len(self._key)]) if self._key else [b""] * batch.count
        marks: list[Mark] = list(zip(keys, windows, strict=True))
        edges = list(compress(range(1, len(marks)), map(ne, marks, marks[1:])))
        ends = (marks[0], marks[-1]) if marks else None
        return Prepared(batch, [rejects[index] for index in sorted(rejects)], extra=(ends, edges))

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        lines = prepared.batch.lines
        if not lines:
            return
        made = self._due_lines()
        edges: list[int] = []
        if prepared.extra:
            (first, last), edges = prepared.extra
            if self._lines and self._mark != first:
                made.append(self._close())
            self._mark = last
        ends = [0, *accumulate(len(line) + 1 for line in lines)]
        at = 0
        for edge in (*edges, len(lines)):
            while at < edge:
                room = bisect_right(ends, ends[at] + self._most_bytes - self._size) - 1
                stop = min(edge, room, at + self._most - len(self._lines))
                if stop <= at and self._lines:
                    self._tell(limited=self._most_bytes == self.params.bytes)
                    made.append(self._close())
                    continue
                stop = max(stop, at + 1)  # a record that is longer than a batch may be has one of its own
                self._hold(lines[at:stop])
                at = stop
                if len(self._lines) == self._most:
                    self._tell(limited=self._most == self.params.size)
                    made.append(self._close())
            if edge < len(lines) and self._lines:
                made.append(self._close())
        yield Batch.of_lines(made)

    def finish(self) -> Iterable[Batch]:
        if self._lines:
            yield Batch.of_lines([self._close(partial=True)])

    def explain(self, record: Batch) -> list[str]:
        by = [f"a batch has one {told(record, self.reads())}"] if self.reads() else []
        return [*by, "it lies in a batch, with its neighbours; with which cannot be told from this record alone"]

    def snapshot(self) -> State:
        """Where the records held are. What time has passed for them is not kept: it begins again."""
        mark = self._mark and [self._mark[0].hex(), self._mark[1]]
        if len(self._lines) > self._stored:
            self._held.append(self._spill_file().write_run([chunk_of(self._lines[self._stored :])]))
            self._stored = len(self._lines)
        return {"number": self._number, "held": self._held, "mark": mark}

    def _spill_file(self) -> Spill:
        self._spill = self._spill or self.ctx.files.spill()
        return self._spill

    # -- time ---------------------------------------------------------------------------------------------------------

    def due(self) -> float | None:
        if self.params.every is None or not self._lines:
            return None
        return max(0.0, float(self._opened + self.params.every - self.ctx.clock()))

    def tick(self) -> Iterable[Batch]:
        yield Batch.of_lines(self._due_lines())

    def _due_lines(self) -> list[bytes]:
        return [self._close()] if self.due() == 0 else []

    # -- the batch at hand --------------------------------------------------------------------------------------------

    def _hold(self, lines: list[bytes]) -> None:
        if not self._lines:
            self._opened = self.ctx.clock()
        self._lines += lines
        self._size += sum(map(len, lines)) + len(lines)

    def _close(self, *, partial: bool = False) -> bytes:
        """The batch's line; the next batch is empty."""
        lines, self._lines, self._size = self._lines, [], 0
        self._held, self._stored = [], 0
        self._number += 1
        self.ctx.absorb("batched", len(lines), into=1)
        flag = b'"partial":true,' if partial else b""
        return b'{"batch":%d,"size":%d,%b"records":[%b]}' % (self._number, len(lines), flag, b",".join(lines))

    def _tell(self, *, limited: bool) -> None:
        """Once, that batches are smaller than was asked for."""
        if not limited and not self._told:
            self._told = True
            self.ctx.log("warning", "batch_closed_by_memory", records=len(self._lines))

    # -- windows ------------------------------------------------------------------------------------------------------

    def _window_of(self, value: Any) -> int | None:
        """The number of the window a time lies in, None for what is no time."""
        if isinstance(value, str):
            if value not in self._windows:
                if len(self._windows) >= _MEMO_LIMIT:
                    self._windows.clear()
                self._windows[value] = self._number_of(_microseconds(value))
            return self._windows[value]
        return self._number_of(_microseconds(value))

    def _number_of(self, microseconds: int | None) -> int | None:
        return None if microseconds is None else microseconds // self._width

    def _no_time(self, batch: Batch, index: int, value: Any) -> Reject:
        absent = value is None or value is MISSING
        message = "no time to find the window by" if absent else "neither an RFC 3339 time nor seconds since 1970"
        error = {"pointer": pointer(self._field), "message": message}
        return batch.reject(index, "missing_field" if absent else "bad_type", [error])


def _microseconds(value: Any) -> int | None:
    """Since 1970, rounded down; None for what is no time."""
    if isinstance(value, str):
        try:
            return (msgspec.convert(value, _TIME) - _EPOCH) // _MICROSECOND
        except msgspec.ValidationError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not _FIRST <= value < _END:
        return None
    if isinstance(value, int):
        return value * 1_000_000
    return int(_FLOOR.quantize(Decimal(str(value)), _MICRO).scaleb(6))


def _parse_window(text: str) -> tuple[Path, int]:
    """The field, and the width in microseconds."""
    field, colon, width = text.rpartition(":")
    if not colon:
        raise ValueError(f"window: expected a field and a width such as time:5m, not {text!r}")
    try:
        path, microseconds = parse_path(field), round(parse_duration(width) * 1_000_000)
    except ValueError as error:
        raise ValueError(f"window: {error}") from None
    if microseconds < 1:
        raise ValueError("window: the width must be more than 0")
    return path, microseconds


def _paths(names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(map(parse_path, names))
