"""`read`: files, globs, URLs and stdin, in any format, as records."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from etlcli.connectors.progress import BEGIN_AGAIN, Place, Progress, Start
from etlcli.core import params
from etlcli.core.batch import Batch, Reject, Span, whole_lines_of
from etlcli.core.intake import DEFAULT_MAX_LINE, parse, too_long
from etlcli.core.stage import Context, Prepared, Source, State
from etlcli.errors import CheckpointError, InputMissingError
from etlcli.formats import RawChunk, Reader, ReadOptions, format_of, module
from etlcli.formats.ndjson import without_bom
from etlcli.io.compression import is_compressed, method_of, opened
from etlcli.io.extents import Extent, ExtentReader, extents_of, lines_between, start_of
from etlcli.io.inputs import STDIN, Input, InputStream, Limited, Prefixed, Watched, check_input, open_input, size_of
from etlcli.registry import FORMATS

_OF_LINES = ("ndjson", "csv", "tsv")
"""Formats in which what follows the last newline may be the beginning of a record."""

_HELD = 16
"""So many inputs are left open behind the one that is read, since their names may go to others meanwhile."""


class Read(Source):
    """Inputs are read one after another, in the order given. Compression is recognised by content."""

    help = """Read files, globs, URLs or stdin and write them as NDJSON, one record a line.

The format follows each file's suffix (.ndjson .jsonl .json .csv .tsv .yaml .yml, each also with .gz .bz2 .xz .zst) unless
--format says otherwise; stdin and other suffixes are NDJSON. Compressed input is recognised by its content, on stdin too.

NDJSON passes byte for byte; every line is checked to be one JSON object. CRLF becomes LF, blank lines are skipped and
counted, a byte order mark at the start is dropped with a notice. Numbers keep their spelling from every format: 1.10 in a
CSV is 1.10 in the JSON.

http and https URLs are read as they come; where their path has no such suffix, the Content-Type says the format. A body
that is cut short is an error. Credentials (https://USER:PASSWORD@HOST/PATH) are sent, and shown nowhere."""
    examples = (
        ("etl read flights.csv.gz", "CSV to NDJSON"),
        ("etl read 'flights*.ndjson' --on-error skip", "several files, bad lines skipped and counted"),
        ("etl read --format json flights.json -o flights.ndjson.gz", "a JSON array to compressed NDJSON"),
    )

    class Params(params.Declared):
        paths = params.paths("Files, globs or URLs; - is stdin, which is also the default.")
        format = params.choice(("auto", *FORMATS), "Input format; auto goes by the suffix.", default="auto")
        types = params.choice(
            ("infer", "string"),
            "CSV and TSV cells: infer makes JSON numbers, true, false and (empty) null; string leaves all as text.",
            default="infer",
        )
        max_line = params.size(
            "Longest line or record that is read; longer ones are rejected.", default=DEFAULT_MAX_LINE
        )

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self._progress = Progress(params.paths or (STDIN,), ctx.base_dir, state, ctx.log, keeps=ctx.files.keeps)
        self._paths = self._progress.paths
        # Missing files are found before anything is read or created.
        for number in self._progress.remaining:
            try:
                check_input(self._paths[number])
            except InputMissingError:
                if not self._progress.may_be_gone(number):
                    raise
        self._stream: Input | None = None
        self._extents = ExtentReader()
        ctx.resources.callback(self._extents.close)
        self._held: deque[InputStream] = deque()
        """The last that extents were told of: who reads those may need it open."""
        ctx.resources.callback(self._let_go, 0)
        self._reached: dict[int, _Reached] = {}
        """For the input that is read, and those that are read ahead of it."""
        self._rests = True

    def parts(self) -> Iterator[_Part | Prepared]:
        """Extents of plain NDJSON files, which lines are cut from where they are worked on. Any other input is one stream:
        it is decompressed and brought into lines here."""
        for number in self._progress.numbers():
            path = self._paths[number]
            try:
                self._stream = stream = open_input(path)
            except InputMissingError:
                if self._progress.may_be_gone(number):
                    continue
                raise
            try:
                yield from self._idle(stream)
                format = self._format_of(stream)
                start = self._progress.start(number, stream, of_lines=format in _OF_LINES)
                if start is None:
                    continue
                first = self._first_bytes(stream, path) if format == "ndjson" else None
                if first is not None and isinstance(stream, InputStream):
                    self._held.append(stream)
                    skipped = without_bom(first, stream.path, self.ctx.log)
                    rest = start.offset, start.limit
                    for extent in extents_of(stream, path, first, skipped, *rest, scale=lambda: self.ctx.scale):
                        self._reached.setdefault(number, _Reached(extent, extent.start, start.line))
                        yield _Part(extent, Place(number, extent.end))
                else:
                    self._stream = watched = Watched(stream, partial(self.ctx.waiting, "input"), self._count)
                    limited = watched if start.limit is None else Limited(watched, start.limit)
                    yield from self._read(limited, format, number, start)
            finally:
                self._stream = None
                if stream not in self._held:
                    stream.close()
                self._let_go(_HELD)

    def prepare(self, part: _Part) -> Prepared:
        project = self.ctx.project
        if isinstance(part.what, RawChunk):
            raw = part.what
            batch, rejects, blank = parse(raw.chunk, raw.span, project, self.params.max_line)
            return Prepared(batch, rejects, _blank(blank), _Read(part.place))
        size = part.what.end - part.what.start
        found = self._extents.read(part.what, self.params.max_line)
        span = Span(part.what.name, 1, found.offset, found.chunk)
        intake = parse(found.chunk, span, project, self.params.max_line)
        if found.long:
            row = intake.lines
            intake.rejects.append(too_long(found.long, found.long_size, (span, row), self.params.max_line, row))
        return Prepared(intake.batch, intake.rejects, _blank(intake.blank), _Read(part.place, span, intake.lines, size))

    def blocks(self, part: _Part) -> Sequence[_Part]:
        if isinstance(part.what, RawChunk):
            return [part]
        extents = part.what.blocks()
        return [_Part(extent, part.place and part.place._replace(offset=extent.end)) for extent in extents]

    def combined(self, extras: Sequence[_Read]) -> _Read:
        """Only of extents there are several."""
        first = extras[0].span
        span = first and Span(first.path, 1, first.offset, b"")
        rows, size = sum(read.rows for read in extras), sum(read.size for read in extras)
        return _Read(extras[-1].place, span, rows, size)

    def packed(self, prepared: Prepared, *, placed: bool) -> Prepared:
        """The lengths of lines tell places, and nothing else."""
        read: _Read | None = prepared.extra
        if read and read.span and not placed:
            read.span.leave_lengths()
        return prepared

    def apply(self, prepared: Prepared) -> None:
        """Only in order it is known how many lines there were before."""
        read: _Read | None = prepared.extra
        if read is None:
            return
        self._count(read.size)
        line = 1
        if read.span and read.place:
            reached = self._reached[read.place.input]
            read.span.starts_at(reached.line)
            line = reached.line + read.rows
            self._reached[read.place.input] = reached._replace(offset=read.place.offset, line=line)
            self._reached.pop(read.place.input - 1, None)
        self._rests = read.place is not None
        if read.place:
            self._progress.passed(read.place, line)

    def ahead(self, prepared: Prepared) -> None:
        """Lines that only a count of those before can number are counted when somebody asks."""
        read: _Read | None = prepared.extra
        if read and read.span and read.place:
            read.span.find_line = partial(_line_at, self._reached[read.place.input], read.span.offset)

    def snapshot(self) -> State | None:
        return self._progress.snapshot() if self._rests else None

    def size(self) -> int:
        return sum(size_of(path) or 0 for path in self._paths)

    def left(self) -> int | None:
        left = 0
        for number in self._progress.remaining:
            size = size_of(self._paths[number])
            if size is None:
                return None
            left += max(0, size - self._progress.offset(number))
        return left

    def ready(self) -> bool:
        return self._stream is None or self._stream.wait(0)

    def halves(self, part: _Part | Prepared) -> Sequence[Any]:
        if isinstance(part, Prepared):
            return [part]
        if isinstance(part.what, RawChunk):
            lines = whole_lines_of(part.what.chunk)
            half = len(lines) // 2
            if not half:
                return [part]
            first, second = _stretch(part.what, lines, 0, half), _stretch(part.what, lines, half, len(lines))
            return [part._replace(what=first, place=None), part._replace(what=second)]
        extent = part.what
        if extent.end - extent.start > 1:
            found = self._extents.read(extent, self.params.max_line)
            lines = whole_lines_of(found.chunk)
            half = len(lines) // 2
            middle = found.offset + sum(map(len, lines[:half]))
            if half:
                place = part.place and part.place._replace(offset=middle)
                return [part._replace(what=extent._replace(end=middle), place=place),
                        part._replace(what=extent._replace(start=middle))]  # fmt: skip
        return [part]

    def refused(self, part: _Part, code: str, message: str) -> Prepared:
        if isinstance(part.what, Extent):
            found = self._extents.read(part.what, self.params.max_line)
            span, chunk = Span(part.what.name, 1, found.offset, found.chunk), found.chunk
            read = _Read(part.place, span, 1)
        else:
            span, chunk, read = part.what.span, part.what.chunk, _Read(part.place)
        return Prepared(
            Batch.of_lines([]), [Reject(code, [{"message": message}], chunk[:-1], (span, 0), 0)], extra=read
        )

    def _let_go(self, most: int) -> None:
        while len(self._held) > most:
            self._held.popleft().close()

    def _count(self, size: int) -> None:
        self.ctx.count.effort.bytes_in += size

    def _first_bytes(self, stream: Input, path: str) -> bytes | None:
        """Of a plain file, which can be read in extents; None for anything else."""
        first = None if method_of(path) or not isinstance(stream, InputStream) else start_of(stream)
        return None if first is None or is_compressed(first) else first

    def _format_of(self, stream: Input) -> str:
        return format_of(stream.name, stream.media_type) if self.params.format == "auto" else self.params.format

    def _read(self, stream: Input, format: str, number: int, start: Start) -> Iterator[_Part | Prepared]:
        grows = self._progress.is_incremental and start.limit is not None
        options = ReadOptions(format, stream.path, self.ctx.log, self.params.types, self.params.max_line, grows)
        content = opened(stream)
        reader: Reader = module(options.name).Reader(content, options)
        rows = _Rows(start, stream.path) if self.ctx.files.keeps else None
        for item in reader.chunks():
            new: RawChunk | Reject | None = item
            place: Place | None = Place(number)
            if rows:
                new, place = rows.passed(item), Place(number, 0, rows.count, rows.digest)
            if new is None:
                continue
            if isinstance(new, Reject):
                yield Prepared(Batch.of_lines([]), [new], None, _Read(place))
                continue
            yield _Part(new, place)
            if isinstance(content, Prefixed) and not new.more:  # else there may be more than the stream knows of
                yield from self._idle(stream)
        if rows:
            rows.check_end()

    def _idle(self, stream: Input) -> Iterator[Prepared]:
        """An empty batch whenever a step is due, until there is something to read."""
        while (due := self.ctx.due()) is not None and not stream.wait(due):
            yield Prepared(Batch.of_lines([]))


class _Part(NamedTuple):
    """Lines to be read, and how far the input is read with them: None where that is between two parts."""

    what: Extent | RawChunk
    place: Place | None


class _Reached(NamedTuple):
    """How far an input was read in order: the `line` is the first that begins at `offset` or behind it."""

    extent: Extent
    """Any of the input."""
    offset: int
    line: int


def _line_at(reached: _Reached, offset: int) -> int:
    """The number of the line that begins there."""
    return reached.line + lines_between(reached.extent, reached.offset, offset)


class _Read(NamedTuple):
    """What `apply` must know of a part: how far it went; of an extent, where its lines came from and how many they are."""

    place: Place | None
    span: Span | None = None
    rows: int = 0
    size: int = 0
    """Bytes of an extent; those of a stream are counted as they come."""


class _Rows:
    """The rows of a stream that is read again: those that were read before are passed over, and must be the same."""

    def __init__(self, start: Start, path: str) -> None:
        from xxhash import xxh3_128

        self.count = 0
        self._digest = xxh3_128()
        self._before = start.rows
        self._expected = start.digest
        self._path = path

    @property
    def digest(self) -> str:
        return str(self._digest.hexdigest())

    def passed(self, item: RawChunk | Reject) -> RawChunk | Reject | None:
        """What is new of the next rows."""
        lines = [item.raw + b"\n"] if isinstance(item, Reject) else whole_lines_of(item.chunk)
        left, count = max(0, self._before - self.count), len(lines)
        self.count += count
        if not left:
            self._digest.update(lines[0] if isinstance(item, Reject) else item.chunk)
            return item
        self._digest.update(b"".join(lines[:left]))
        if left <= count and self.digest != self._expected:
            raise self._another(f"does not begin as it did: its first {self._before} records are others")
        if left >= count:
            return None
        self._digest.update(b"".join(lines[left:]))
        assert isinstance(item, RawChunk)
        return _stretch(item, lines, left, count)

    def check_end(self) -> None:
        if self.count < self._before:
            raise self._another(f"ends after {self.count} records, and {self._before} were read before")

    def _another(self, how: str) -> CheckpointError:
        return CheckpointError(f"{self._path} {how}", where=self._path, hint=BEGIN_AGAIN)


def _stretch(part: RawChunk, lines: list[bytes], start: int, end: int) -> RawChunk:
    span, own = part.span, lines[start:end]
    origins = [span.origin(row) for row in range(start, end)]
    places, offsets = [origin.line for origin in origins], [origin.offset for origin in origins]
    chunk = b"".join(own)
    return RawChunk(chunk, Span(span.path, places[0], offsets[0], chunk, places, offsets))


def _blank(count: int) -> dict[str, int] | None:
    return {"blank": count} if count else None
