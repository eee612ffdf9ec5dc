"""CSV (RFC 4180) and TSV (the same with tabs, quoting included), with a header line.

CSV has no types. With `types: infer` a cell that is exactly a JSON number is that number, in its own spelling; `true`
and `false` are booleans; an empty cell is null; anything else (`NA`, `007`, `+1`, ` 12`) is a string. Quoting makes no
difference to that. With `types: string` every cell is a string.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from io import StringIO
from itertools import accumulate, chain
from operator import methodcaller
from typing import Any, NamedTuple

import msgspec

from etlcli.core.batch import Batch, Origin, Reject, Span, chunk_of, count_of, lines_of
from etlcli.core.fields import MISSING, pointer
from etlcli.core.projection import projected_struct
from etlcli.errors import DataError
from etlcli.formats import ByteStream, RawChunk, ReadOptions, WriteOptions, ndjson

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "": "null"}
_SURROGATE = re.compile("[\udc80-\udcff]")
_MEMO_LIMIT = 1 << 16
_encode = msgspec.json.Encoder().encode


def delimiter_of(name: str) -> str:
    return "\t" if name == "tsv" else ","


def _explain(error: csv.Error) -> str:
    if "new-line character" in str(error):
        return "a CR without LF stands outside quotes; if all lines end so, convert them: tr '\\r' '\\n'"
    return str(error)


class _Row(NamedTuple):
    """A row and the physical lines it stands on: `height` of them, from `first` (an index into the chunk's lines)."""

    cells: list[str] | None
    first: int
    height: int
    problem: str = ""


class Reader:
    """A row that has too few or too many cells, is no UTF-8 or is quoted wrongly is a reject of its own (missing_field,
    bad_type, bad_utf8, bad_json); a quote that is never closed rejects the line it is on, and reading goes on behind it.
    Raises DataError for a header that cannot name fields. A chunk and the row that spills over its end are held."""

    def __init__(self, stream: ByteStream, options: ReadOptions) -> None:
        self._options = options
        self._chunks = ndjson.Reader(stream, options).chunks()
        self._dialect: dict[str, Any] = {"delimiter": delimiter_of(options.name), "strict": True}
        self._tokens = _Tokens(infer=options.types == "infer")
        self._template = ""
        self._between: list[str] = []
        self.names: tuple[str, ...] = ()
        """The header, when the first row has been read."""
        csv.field_size_limit(min(options.max_line, 2**31 - 1))

    def chunks(self) -> Iterator[RawChunk | Reject]:
        held: RawChunk | None = None
        for item in self._chunks:
            if isinstance(item, Reject):
                if not self._template:
                    raise DataError(f"{item.origin}: the header is longer than --max-line", where=str(item.origin))
                yield item
                continue
            raw = item if held is None else _joined(held, item)
            held = None
            if not self._template:
                rest = self._without_header(raw, final=False)
                if rest is None:
                    held = raw
                    continue
                raw = rest
            converted = self._convert_plain(raw)
            if converted is not None:
                yield converted
            else:
                held = yield from self._convert_rows(raw, final=False)
        final = not self._options.grows
        if held is not None and not self._template:
            rest = self._without_header(held, final=final)
            if rest is None:
                self._leave(held)
            held = rest
        if held is not None:
            rest = yield from self._convert_rows(held, final=final)
            if rest is not None:
                self._leave(rest)

    def _leave(self, begun: RawChunk) -> None:
        self._options.log("warning", "record_unfinished", path=self._options.path, line=begun.span.line)

    def _without_header(self, raw: RawChunk, *, final: bool) -> RawChunk | None:
        """The chunk behind the header, which is taken in; None if the header is not complete yet."""
        reader = csv.reader(StringIO(self._decode(raw.chunk), newline="\n"), **self._dialect)
        try:
            names = next((row for row in reader if row), [])
        except csv.Error as error:
            if "unexpected end of data" in str(error) and not final and len(raw.chunk) <= self._options.max_line:
                return None
            raise self._header_error(f"the header cannot be read: {_explain(error)}", raw.span) from None
        if not names:
            return _cut(raw, reader.line_num)
        twice = {name for name in names if names.count(name) > 1}
        if twice or not all(names):
            what = f"names {sorted(twice)[0]!r} twice" if twice else f"has no name for column {names.index('') + 1}"
            raise self._header_error(f"the header {what}", raw.span)
        if _SURROGATE.search("".join(names)):
            raise self._header_error("the header is not UTF-8", raw.span)
        self.names = tuple(names)
        keys = [_encode(name).decode() + ":" for name in names]
        self._template = "{" + ",".join(key.replace("%", "%%") + "%s" for key in keys) + "}"
        # What stands before each cell of a row, and room for the cell.
        self._between = [
            piece for start, key in zip(["}\n{", *"," * len(keys)], keys, strict=False) for piece in (start + key, "")
        ]
        return _cut(raw, reader.line_num)

    def _header_error(self, message: str, span: Span) -> DataError:
        where = f"{self._options.path}:{span.line}"
        return DataError(f"{where}: {message}", where=where, hint="every column needs a name of its own")

    def _convert_plain(self, raw: RawChunk) -> RawChunk | None:
        """The whole chunk at once, if every line is one good row; None if any is not."""
        try:
            cells = self._cells(raw.chunk.decode(), count_of(b"\n", raw.chunk))
        except (UnicodeDecodeError, csv.Error):
            return None
        if not cells:
            return None
        pieces = self._between * (len(cells) // len(self.names))
        pieces[1::2] = map(self._tokens.__getitem__, cells)
        pieces[0] = pieces[0].removeprefix("}\n")
        self._tokens.forget()
        return RawChunk("".join([*pieces, "}\n"]).encode(), raw.span)

    def _cells(self, text: str, count: int) -> list[str] | None:
        """The cells of all lines, one after another, if each of the `count` lines is a row as long as the header."""
        width = len(self.names)
        if '"' in text or "\r" in text or width == 1:
            reader = csv.reader(StringIO(text, newline="\n"), **self._dialect)
            rows = list(reader)
            return list(chain.from_iterable(rows)) if len(rows) == count and set(map(len, rows)) == {width} else None
        delimiter: str = self._dialect["delimiter"]
        lines = text.split("\n")
        lines.pop()
        if set(map(methodcaller("count", delimiter), lines)) != {width - 1}:
            return None
        return delimiter.join(lines).split(delimiter)

    def _convert_rows(self, raw: RawChunk, *, final: bool) -> Generator[RawChunk | Reject, None, RawChunk | None]:
        """Row by row: with rejects, and with rows over several lines. Returns what is left: a row that is only begun."""
        lines = lines_of(raw.chunk)
        starts = list(accumulate((len(line) + 1 for line in lines), initial=raw.span.offset))
        good: list[bytes] = []
        origins: list[Origin] = []
        rest: RawChunk | None = None
        for row in self._rows(lines, final=final):
            if row.cells is None and not row.problem:
                rest = _cut(raw, row.first)
                break
            origin = Origin(raw.span.path, raw.span.line + row.first, starts[row.first])
            problem = self._problem(row)
            if problem is None:
                good.append(self._line(row.cells or []))
                origins.append(origin)
            else:
                row_bytes = b"\n".join(lines[row.first : row.first + row.height])
                yield Reject(problem[0], [{"message": problem[1]}], row_bytes, origin)
        if good:
            chunk = chunk_of(good)
            numbers, offsets = [origin.line for origin in origins], [origin.offset for origin in origins]
            yield RawChunk(chunk, Span(raw.span.path, numbers[0], offsets[0], chunk, numbers, offsets))
        self._tokens.forget()
        return rest

    def _rows(self, lines: list[bytes], *, final: bool) -> Iterator[_Row]:
        """The rows on these lines. The last may be only begun: then, unless it is final or too long to wait for, it has
        neither cells nor problem."""
        at = 0
        while at < len(lines):
            reader = csv.reader((self._decode(lines[i]) + "\n" for i in range(at, len(lines))), **self._dialect)
            begun = at
            while True:
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    problem = _explain(error)
                else:
                    if cells is None:
                        return
                    problem = ""
                ended = at + reader.line_num
                at_end = "unexpected end of data" in problem
                if at_end or "field larger" in problem:
                    # A quote was opened that is not closed yet.
                    if at_end and not final and sum(map(len, lines[begun:])) < self._options.max_line:
                        yield _Row(None, begun, len(lines) - begun)
                        return
                    # Never closed, it would swallow everything behind it: reading goes on at the next line.
                    yield _Row(None, begun, 1, "a quote is never closed")
                    at = begun + 1
                    break
                yield _Row(None if problem else cells, begun, ended - begun, problem)
                begun = ended

    def _problem(self, row: _Row) -> tuple[str, str] | None:
        if row.cells is None:
            return "bad_json", f"not {self._options.name.upper()}: {row.problem}"
        if any(map(_SURROGATE.search, row.cells)):
            return "bad_utf8", "not UTF-8"
        if row.cells and len(row.cells) != len(self.names):
            code = "missing_field" if len(row.cells) < len(self.names) else "bad_type"
            return code, f"the row has {len(row.cells)} cells, the header has {len(self.names)}"
        return None

    def _line(self, cells: list[str]) -> bytes:
        return (self._template % tuple(map(self._tokens.__getitem__, cells))).encode() if cells else b""

    @staticmethod
    def _decode(raw: bytes) -> str:
        return raw.decode(errors="surrogateescape")


class _Tokens(dict[str, str]):
    """Cell -> JSON token. Cells repeat (carriers, dates, small numbers), so a token is mostly looked up."""

    def __init__(self, *, infer: bool) -> None:
        super().__init__()
        self._infer = infer

    def __missing__(self, cell: str) -> str:
        if self._infer and cell.isdecimal() and cell.isascii() and (cell[0] != "0" or cell == "0"):
            token = cell
        elif self._infer and (cell in _WORDS or _NUMBER.fullmatch(cell)):
            token = _WORDS.get(cell, cell)
        else:
            token = _encode(cell).decode()
        self[cell] = token
        return token

    def forget(self) -> None:
        if len(self) > _MEMO_LIMIT:
            self.clear()


def _cut(raw: RawChunk, lines: int) -> RawChunk:
    """The chunk without its first lines."""
    start = 0
    for _ in range(lines):
        start = raw.chunk.index(b"\n", start) + 1
    chunk = raw.chunk[start:]
    return RawChunk(chunk, Span(raw.span.path, raw.span.line + lines, raw.span.offset + start, chunk))


def _joined(first: RawChunk, second: RawChunk) -> RawChunk:
    chunk = first.chunk + second.chunk
    return RawChunk(chunk, Span(first.span.path, first.span.line, first.span.offset, chunk))


class _NumberText(str):
    """A number with a fraction or exponent, as it was spelled."""

    __slots__ = ()


class Writer:
    """Columns are `options.columns`, or the first record's fields. Null and missing are empty, an empty string is `""`,
    numbers keep their spelling, arrays and objects are their JSON text. A record with a field that has no column is
    refused rather than cut."""

    def __init__(
        self, out: Callable[[bytes], object], options: WriteOptions, state: dict[str, Any] | None = None
    ) -> None:
        self._out = out
        self._delimiter = delimiter_of(options.name)
        self._special = re.compile(f'[{self._delimiter}"\r\n]|^ | $|^$')
        self._quoted = _Memo(self._quote)
        self._header = options.header
        self._columns = options.columns
        if state:
            self._header, self._columns = state["header"], tuple(state["columns"])
        self._begun = False
        self._decode: Callable[[bytes], list[Any]] | None = None

    @classmethod
    def following(cls, old: ByteStream, path: str, options: WriteOptions) -> WriteOptions:
        reader = Reader(old, ReadOptions(options.name, path, lambda *args, **fields: None))
        next(reader.chunks(), None)
        if reader.names and options.columns and reader.names != options.columns:
            raise ValueError(f"its columns are {', '.join(reader.names)}")
        return options._replace(columns=reader.names or options.columns, header=not reader.names)

    def write(self, batch: Batch) -> list[Reject]:
        if not batch.count:
            return []
        if not self._begun:
            empty = next((i for i, line in enumerate(batch.lines) if self._columns or _open(line)), batch.count)
            if empty:  # with no columns there is no row to write
                message = "the record has no field, and so far there are no columns; name them with --columns"
                refused = [batch.reject(i, "sink_refused", [{"message": message}]) for i in range(empty)]
                return [*refused, *self.write(batch.take(range(empty, batch.count)))]
            self._begin(batch)
        try:
            rows = self._rows(batch)
        except (msgspec.MsgspecError, ValueError):
            return self._write_each(batch)
        self._put(rows)
        return []

    def snapshot(self) -> dict[str, Any]:
        return {"header": self._header and not self._begun, "columns": self._columns}

    def close(self) -> None:
        if self._header and self._columns and not self._begun:
            self._put([list(map(self._quote, self._columns))])

    def _begin(self, batch: Batch) -> None:
        self._begun = True
        self._columns = self._columns or tuple(_open(batch.line(0)))
        names = {name: f"f{number}" for number, name in enumerate(self._columns)}
        self._attributes = tuple(names.values())
        struct = projected_struct(names, forbid_unknown=True)
        if struct is not None:
            self._decode = msgspec.json.Decoder(struct, float_hook=_NumberText).decode_lines
        if self._header:
            self._put([list(map(self._quote, self._columns))])

    def _rows(self, batch: Batch) -> Iterator[Sequence[str]]:
        """All records at once. Raises when one has an unknown field, or a value whose bytes must be looked at."""
        if self._decode is None or _MINUS_ZERO.search(batch.chunk):  # -0 would become 0
            raise ValueError("the values' own bytes are wanted")
        structs = self._decode(batch.chunk)
        columns = [self._cells([getattr(struct, name) for struct in structs]) for name in self._attributes]
        return zip(*columns, strict=True)

    def _cells(self, values: list[Any]) -> list[str]:
        kinds = set(map(type, values))
        if kinds == {int}:
            return list(map(str, values))
        if kinds == {str}:
            return list(map(self._quoted.__getitem__, values))
        return list(map(self._cell, values))

    def _cell(self, value: Any) -> str:
        if type(value) is str:
            return self._quoted[value]
        if value is None or value is MISSING:
            return ""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, list | dict):
            raise ValueError("its own bytes are wanted")
        return str(value)

    def _write_each(self, batch: Batch) -> list[Reject]:
        rejects: list[Reject] = []
        rows = []
        for index, line in enumerate(batch.lines):
            members = _open(line)
            unknown = [name for name in members if name not in self._columns]
            if unknown:
                message = f"the field {unknown[0]!r} has no column; name all columns with --columns"
                rejects.append(
                    batch.reject(index, "sink_refused", [{"pointer": pointer(unknown[:1]), "message": message}])
                )
            else:
                rows.append([self._raw_cell(bytes(members[name])) if name in members else "" for name in self._columns])
        self._put(rows)
        return rejects

    def _raw_cell(self, raw: bytes) -> str:
        raw = raw.strip()
        if raw[:1] == b'"':
            return self._quote(_decode_text(raw))
        return "" if raw == b"null" else self._quote(raw.decode())

    def _quote(self, text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if self._special.search(text) else text

    def _put(self, rows: Any) -> None:
        lines = [self._delimiter.join(row) for row in rows]
        if len(self._columns) == 1:  # an empty line would be no row at all
            lines = [line or '""' for line in lines]
        text = "\n".join([*lines, ""])
        if text:
            self._out(text.encode())
        if len(self._quoted) > _MEMO_LIMIT:
            self._quoted.clear()


class _Memo(dict[str, str]):
    def __init__(self, make: Callable[[str], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> str:
        value = self[key] = self._make(key)
        return value


_MINUS_ZERO = re.compile(rb"-0\s*[,}\]]")
_open = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
