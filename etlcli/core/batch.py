"""Batch: a run of records in input order, in the cheapest form that is still true.

A batch is made by `intake.parse` (from outside bytes) or from lines the program itself wrote; either way every line of
it is one valid JSON object, in UTF-8, so no stage has to check again. Forms are derived lazily and kept:

    chunk      the lines with their newlines, one bytes object
    whole      a bytes object a record, with its newline
    lines      a bytes object a record, without newline
    columns()  the values of some fields, decoded straight from the bytes
    rows()     an object a record that has the values of some fields
    records()  a dict a record

`take` and `replace` make new batches and leave this one as it was; untouched records keep their bytes. What the forms
hand out is shared: nobody may change it.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import accumulate
from itertools import count as counting
from typing import Any, NamedTuple

import msgspec

from etlcli.core.access import Access
from etlcli.core.fields import Column, Derived, Kinds, Path, decode_long, exact_number, kinds_of, may_be_inexact, picked
from etlcli.core.projection import Projection, access_to_tuples, projection

_families = counting()
_decode_records = msgspec.json.Decoder(dict[str, Any]).decode_lines
_decode_exactly: Callable[[bytes], dict[str, Any]] = msgspec.json.Decoder(
    dict[str, Any], float_hook=exact_number
).decode


def count_of(byte: bytes, chunk: bytes) -> int:
    """How often a byte is there, which had better be rare: `replace` goes from one to the next with memchr, where
    bytes.count looks at every byte, which takes five times as long."""
    return len(chunk) - len(chunk.replace(byte, b""))


def whole_lines_of(chunk: bytes) -> list[bytes]:
    """Whole lines, with their newlines."""
    return BytesIO(chunk).readlines()  # looks for newlines with memchr, and takes a quarter of the time of bytes.split


def lines_of(chunk: bytes) -> list[bytes]:
    """Whole lines, without their newlines."""
    return [line[:-1] for line in BytesIO(chunk)]


def chunk_of(lines: Sequence[bytes]) -> bytes:
    """The lines with their newlines."""
    return b"\n".join([*lines, b""])


def decode_record(line: bytes) -> dict[str, Any]:
    """One good line, with numbers that no double or no Python integer holds as Decimals."""
    try:
        return _decode_exactly(line)
    except msgspec.ValidationError:
        return decode_long(line)


Errors = list[dict[str, Any]]


class Origin(NamedTuple):
    """Where a record was read: the input's name, the line (from 1) and the byte offset of the line's start."""

    path: str
    line: int
    offset: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


class Span:
    """Where the rows of one chunk came from, without an object a record.

    Row i is line `line + i` of the input and starts where the i-th line of `raw` does, unless the format says otherwise
    through `lines` and `offsets` (a CSV record can span lines, a JSON array has several records on one). `raw` are the
    lines as they were read, with their newlines. Where `line` is not known yet, `find_line` finds it; it is asked when
    somebody wants to know, perhaps in another thread.
    """

    __slots__ = ("_sizes", "_starts", "find_line", "line", "lines", "offset", "offsets", "path", "raw")

    def __init__(
        self,
        path: str,
        line: int,
        offset: int,
        raw: bytes,
        lines: Sequence[int] | None = None,
        offsets: Sequence[int] | None = None,
        sizes: array[int] | None = None,
    ) -> None:
        """`sizes`: of the lines, where those themselves are no longer at hand."""
        self.path = path
        self.line = line
        self.find_line: Callable[[], int] | None = None
        self.offset = offset
        self.raw = raw
        self.lines = lines
        self.offsets = offsets
        self._sizes = sizes
        self._starts: list[int] | None = None

    def __reduce__(self) -> Any:
        """For another process: without the bytes."""
        sizes = array("L", self._lengths()) if self.lines is None and self._sizes is None else self._sizes
        return Span, (self.path, self.line, self.offset, b"", self.lines, self.offsets, sizes)

    def leave_lengths(self) -> None:
        """They do not go along to another process: nobody will ask there where a row was, or `raw` follows."""
        self._sizes = array("L")

    @property
    def lacks_lengths(self) -> bool:
        return self._sizes is not None and not self._sizes

    def origin(self, row: int) -> Origin:
        if self.lines is not None and self.offsets is not None:
            return Origin(self.path, self.lines[row], self.offsets[row])
        if self._starts is None:
            self._starts = list(accumulate(self._sizes or self._lengths(), initial=self.offset))
        find_line = self.find_line
        if find_line:
            self.starts_at(find_line())
        return Origin(self.path, self.line + row, self._starts[row])

    def starts_at(self, line: int) -> None:
        """Its first row is this line."""
        self.line = line
        self.find_line = None

    def _lengths(self) -> Iterable[int]:
        return map(len, BytesIO(self.raw))


class Reject:
    """A record that a step would not take, and why.

    `errors` are dicts with a `message` and, where they are known, `pointer`, `keyword`, `schema_pointer` and `value`. They
    may be given as a function, which is asked when somebody looks: all errors of all records of a batch can be a hundred
    times the batch. `index` is the record's place in the batch it was rejected from; of a line that was no record, its row
    in the chunk. None where neither is known. `origin` may be given as a row of a span. `attempts` tries were made. A
    `final` reject no other try would heal, whatever its code.
    """

    __slots__ = ("_errors", "_origin", "attempts", "code", "final", "index", "raw")

    def __init__(
        self,
        code: str,
        errors: Errors | Callable[[], Errors],
        raw: bytes,
        origin: Origin | tuple[Span, int] | None,
        index: int | None = None,
    ) -> None:
        self.code = code
        self._errors: Errors | Callable[[], Errors] | None = errors
        self.raw = raw
        self._origin = origin
        self.index = index
        self.attempts = 1
        self.final = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reject) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((self.code, self.raw, self.origin))

    def __repr__(self) -> str:
        return f"Reject{self._values()}"

    def __reduce__(self) -> Any:
        errors = self._errors and self.errors
        values = self.code, errors, self.raw, self._origin, self.index
        return Reject, values, (None, {"attempts": self.attempts, "final": self.final})

    def _values(self) -> tuple[Any, ...]:
        return self.code, self.errors, self.raw, self.origin

    @property
    def origin(self) -> Origin | None:
        """Where the record was read, as far as that is known."""
        if self._origin is None or isinstance(self._origin, Origin):
            return self._origin
        span, row = self._origin
        return span.origin(row)

    @property
    def errors(self) -> Errors:
        assert self._errors is not None
        return self._errors() if callable(self._errors) else self._errors

    def leave_unexplained(self) -> None:
        """Forgets errors that nobody has looked at, so that they need not be worked out for another process."""
        if callable(self._errors):
            self._errors = None

    def explain(self, errors: Callable[[Reject], Errors]) -> None:
        """How to work them out again, where they were left."""
        if self._errors is None:
            self._errors = partial(errors, self)

    @property
    def message(self) -> str:
        first, *others = self.errors
        where = f" at {first['pointer']}" if first.get("pointer") else ""
        more = f" (and {len(others)} more)" if others else ""
        return f"{first['message']}{where}{more}"


class Rows(NamedTuple):
    """`items` are the records, `access` takes the values of paths out of them (MISSING where there is none), and `kinds`
    tells the types that these may have."""

    items: Sequence[Any]
    access: Access
    kinds: Callable[[Path], Kinds]


_Given = dict[Path | str, list[Any]]
"""Columns that were made elsewhere: the values of paths, and by their names those of derived ones."""


class Batch:
    __slots__ = (
        "_chunk",
        "_columns",
        "_decoded",
        "_exact",
        "_given",
        "_kin",
        "_lines",
        "_projection",
        "_records",
        "_rows",
        "_size",
        "_span",
        "_whole",
        "count",
    )

    def __init__(
        self,
        count: int,
        *,
        chunk: bytes | None = None,
        whole: list[bytes] | None = None,
        lines: list[bytes] | None = None,
        span: Span | None = None,
        rows: Sequence[int] | None = None,
        decoded: Any = None,
        projected: Projection | None = None,
        exact: bool = False,
        kin: tuple[int, int] | None = None,
        given: _Given | None = None,
    ) -> None:
        """`chunk`, `whole` or `lines` must be given. `rows[i]` is record i's row in `span`; by default row i. `decoded` is
        what `projected` made of the lines; `exact` says that a number in them is known to be what its line says. `kin` is
        the same for batches that were taken from one another: their rows can be compared. `given` are columns that another
        process has decoded."""
        self.count = count
        self._chunk = chunk
        self._whole = whole
        self._lines = lines
        self._span = span
        self._rows = rows
        self._decoded = decoded
        self._projection = projected
        self._exact = exact
        self._columns: dict[Path, list[Any]] = {}
        self._given: _Given = given or {}
        self._kin = (os.getpid(), next(_families)) if kin is None else kin
        self._records: list[dict[str, Any]] | None = None
        self._size: int | None = None

    def __reduce__(self) -> Any:
        """What another process needs of it: the bytes and where they came from, not the forms derived from them."""
        given = {path: list(column) for path, column in self._given.items()}
        return _rebuilt, (self.count, self.chunk, self._span, self._rows, self._kin, given)

    @classmethod
    def of_chunk(cls, chunk: bytes) -> Batch:
        """Of whole lines, each with its newline, that are known to be good."""
        return cls(count_of(b"\n", chunk), chunk=chunk)

    @classmethod
    def of_whole(cls, lines: list[bytes]) -> Batch:
        """Of lines with their newlines."""
        return cls(len(lines), whole=lines)

    @classmethod
    def of_lines(cls, lines: list[bytes]) -> Batch:
        return cls(len(lines), lines=lines)

    def __len__(self) -> int:
        return self.count

    @property
    def chunk(self) -> bytes:
        if self._chunk is None:
            self._chunk = chunk_of(self.lines) if self._whole is None else b"".join(self._whole)
        return self._chunk

    @property
    def whole(self) -> list[bytes]:
        if self._whole is None:
            self._whole = whole_lines_of(self.chunk) if self._lines is None else [line + b"\n" for line in self._lines]
        return self._whole

    @property
    def lines(self) -> list[bytes]:
        if self._lines is None:
            self._lines = [line[:-1] for line in self.whole]
        return self._lines

    def line(self, index: int) -> bytes:
        """One of the `lines`."""
        return self.whole[index][:-1] if self._lines is None else self._lines[index]

    @property
    def size(self) -> int:
        """Bytes of its lines, with newlines."""
        if self._chunk is not None:
            return len(self._chunk)
        if self._size is None:
            self._size = sum(map(len, self.lines)) + self.count if self._whole is None else sum(map(len, self._whole))
        return self._size

    def twin(self) -> Batch:
        """The same records in another object, for another thread: the forms it derives are its own."""
        return Batch(
            self.count,
            chunk=self._chunk,
            whole=self._whole,
            lines=self._lines,
            span=self._span,
            rows=self._rows,
            decoded=self._decoded,
            projected=self._projection,
            exact=self._exact,
            kin=self._kin,
            given=self._given,
        )

    def columns(self, paths: tuple[Path, ...]) -> list[list[Any]]:
        """The values of each path, MISSING where a record has none. Numbers are what the record says: an int of any size, a
        float where Python writes that float with the number's value, a Decimal otherwise."""
        if all(path in self._given for path in paths):
            return [self._given[path] for path in paths]
        self._decode(paths)
        return list(map(self._column, paths))

    def rows(self, paths: tuple[Path, ...]) -> Rows:
        """The records as objects that have the values of these paths, to be dealt out as a whole."""
        if all(path in self._given for path in paths):
            items = list(zip(*self.columns(paths), strict=True)) if paths else range(self.count)
            return Rows(items, access_to_tuples(paths), lambda path: kinds_of(self._given[path]))
        self._decode(paths)
        assert self._projection is not None
        kinds = self._projection.kinds
        return Rows(
            self._projection.rows(self._decoded),
            self._projection.access,
            lambda path: kinds.get(path) or kinds_of(self._column(path)),
        )

    def _decode(self, paths: tuple[Path, ...]) -> None:
        """Sees to it that the records are decoded with these paths, exactly."""
        if self._projection is None or not set(paths) <= set(self._projection.paths):
            self._projection, self._exact, self._columns = projection(paths), False, {}
            try:
                self._projection, self._decoded = self._projection.decoded(self.chunk)
            except msgspec.DecodeError:  # a number no double can hold
                self._decode_exactly()
        if not self._exact:
            doubtful = [path for path in self._projection.paths if path not in self._projection.kinds]
            if any(may_be_inexact(self._column(path), self.chunk) for path in doubtful):
                self._decode_exactly()
            self._exact = True

    def derived(self, column: Derived) -> list[Any]:
        """What is made of each record's fields."""
        given = self._given.get(column.name)
        return column.make(self.columns(column.paths)) if given is None else given

    def _column(self, path: Path) -> list[Any]:
        if path not in self._columns:
            assert self._projection is not None
            self._columns[path] = self._projection.column(self._decoded, path)
        return self._columns[path]

    def decoded_by(self, project: Projection) -> Any:
        """What this projection made of the lines, if that was done already."""
        return self._decoded if self._projection is project else None

    def _decode_exactly(self) -> None:
        assert self._projection is not None
        self._projection = self._projection.plain
        self._decoded, self._exact = list(map(self._projection.decode_exact, self.lines)), True
        self._columns = {}

    def records(self) -> list[dict[str, Any]]:
        """A dict a record, numbers as in `columns`."""
        if self._records is None:
            try:
                records = _decode_records(self.chunk)
                exact = not may_be_inexact(records, self.chunk)
            except msgspec.DecodeError:
                exact = False
            self._records = records if exact else list(map(decode_record, self.lines))
        return self._records

    def take(self, indices: Sequence[int]) -> Batch:
        """The named records in that order; an index may repeat."""

        return Batch(
            len(indices),
            whole=picked(self.whole, indices),
            span=self._span,
            rows=list(indices) if self._rows is None else picked(self._rows, indices),
            decoded=None if self._projection is None else self._projection.picked(self._decoded, indices),
            projected=self._projection,
            exact=self._exact,
            kin=self._kin,
            given={path: Column(picked(column, indices)) for path, column in self._given.items()},
        )

    def without(self, indices: Mapping[int, Any] | set[int]) -> Batch:
        """All records but these, in order."""
        return self.take([index for index in range(self.count) if index not in indices])

    def replace(self, changes: Mapping[int, bytes]) -> Batch:
        """The same records with some lines replaced by others (each one valid JSON object)."""
        if not changes:
            return self
        whole = list(self.whole)
        for index, line in changes.items():
            whole[index] = line + b"\n"
        return Batch(self.count, whole=whole, span=self._span, rows=self._rows, kin=self._kin)

    def with_lines(self, lines: list[bytes]) -> Batch:
        """The same records, each as its new line (one valid JSON object)."""
        return Batch(self.count, lines=lines, span=self._span, rows=self._rows, kin=self._kin)

    def bare(self, columns: Iterable[Path | Derived]) -> Batch:
        """The same records without their bytes, for a journey on which those go separately; with these columns."""
        derived = [column for column in columns if isinstance(column, Derived)]
        paths = tuple(column for column in columns if not isinstance(column, Derived))
        given: _Given = {}
        if self.count:
            given.update(zip(paths, self.columns(paths), strict=True))
            given.update((column.name, self.derived(column)) for column in derived)
        if self._span and self._is_all_of(self._span):
            self._span.leave_lengths()
        return self._dressed(given, chunk=b"")

    def columns_only(self, paths: tuple[Path, ...]) -> Batch:
        """How many records there are and the values of these paths, to be counted in another process: no bytes, and no
        places."""
        columns = self.columns(paths) if paths and self.count else []
        return Batch(self.count, chunk=b"", given=dict(zip(paths, columns, strict=False)))

    def clothed(self, chunk: bytes) -> Batch:
        """A bare batch with its bytes."""
        if self._span and self._span.lacks_lengths:
            self._span.raw = chunk
        return self._dressed(self._given, chunk=chunk)

    def _is_all_of(self, span: Span) -> bool:
        """Whether its lines are those of the span, as they were read."""
        return self._rows is None and self._chunk is span.raw

    def _dressed(self, given: _Given, **forms: Any) -> Batch:
        return Batch(self.count, span=self._span, rows=self._rows, kin=self._kin, given=given, **forms)

    def row(self, index: int) -> int:
        """Record `index`'s place among the records of the batch that this one was first taken from."""
        return index if self._rows is None else self._rows[index]

    def place_of(self, row: int) -> int:
        """How many records of this batch, in which order was kept, stand before `row`."""
        return row if self._rows is None else bisect_left(self._rows, row)

    def is_kin(self, other: Batch) -> bool:
        """Whether both were taken from one batch, so that their rows can be compared."""
        return self._kin == other._kin

    def with_chunk(self, chunk: bytes) -> Batch:
        """The same records as new lines, each with its newline."""
        return Batch(self.count, chunk=chunk, span=self._span, rows=self._rows)

    def origin(self, index: int) -> Origin | None:
        """Where record `index` was read; None for a record that a step made or that was spilled in between."""
        if self._span is None:
            return None
        return self._span.origin(self.row(index))

    def reject(self, index: int, code: str, errors: Errors | Callable[[], Errors]) -> Reject:
        origin = None if self._span is None else (self._span, self.row(index))
        return Reject(code, errors, self.line(index), origin, index)


def _rebuilt(
    count: int,
    chunk: bytes,
    span: Span | None,
    rows: Sequence[int] | None,
    kin: tuple[int, int],
    given: _Given,
) -> Batch:
    columns: _Given = {name: Column(column) for name, column in given.items()}
    return Batch(count, chunk=chunk, span=span, rows=rows, kin=kin, given=columns)
