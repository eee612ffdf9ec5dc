"""`read`: files, globs, URLs and stdin, in any format, as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etlcli.core import params
from etlcli.core.batch import Batch, Reject, Span, chunk_of, lines_of
from etlcli.core.fields import projection
from etlcli.core.intake import DEFAULT_MAX_LINE, parse, too_long
from etlcli.core.stage import Context, Prepared, Source
from etlcli.formats import RawChunk, Reader, ReadOptions, format_of, module
from etlcli.formats.ndjson import without_bom
from etlcli.io.compression import is_compressed, method_of, opened
from etlcli.io.extents import Extent, ExtentReader, extents_of, start_of
from etlcli.io.inputs import STDIN, Input, InputStream, Prefixed, check_input, expand, open_input, size_of
from etlcli.registry import FORMATS


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

    def __init__(self, params: Any, ctx: Context) -> None:
        super().__init__(params, ctx)
        self._paths = expand(params.paths or (STDIN,), ctx.base_dir)
        # Missing files are found before anything is read or created.
        for path in self._paths:
            check_input(path)
        self._stream: Input | None = None
        self._extents = ExtentReader()
        ctx.resources.callback(self._extents.close)
        self._line = 1

    def parts(self) -> Iterator[RawChunk | Extent | Prepared]:
        """Extents of plain NDJSON files, which lines are cut from where they are worked on. Any other input is one stream:
        it is decompressed and brought into lines here."""
        for path in self._paths:
            self._stream = stream = open_input(path)
            try:
                yield from self._idle(stream)
                format = self._format_of(stream)
                apart = self._apart(stream, path) if isinstance(stream, InputStream) and format == "ndjson" else None
                yield from self._read(stream, format) if apart is None else apart
            finally:
                self._stream = None
                stream.close()

    def prepare(self, part: RawChunk | Extent) -> Prepared:
        project = projection(self.ctx.reads)
        if isinstance(part, RawChunk):
            batch, rejects, blank = parse(part.chunk, part.span, project, self.params.max_line, part.lines)
            return Prepared(batch, rejects, _blank(blank))
        found = self._extents.read(part, self.params.max_line)
        lines = lines_of(found.chunk)
        span = Span(part.name, 1, found.offset, lines)
        batch, rejects, blank = parse(found.chunk, span, project, self.params.max_line, lines)
        if found.long:
            row = len(lines)
            rejects.append(too_long(found.long, found.long_size, (span, row), self.params.max_line, row))
        return Prepared(
            batch, rejects, _blank(blank), _Place(span, len(lines) + bool(found.long), part.start == part.first)
        )

    def apply(self, prepared: Prepared) -> None:
        """Only in order it is known how many lines there were before."""
        if prepared.extra:
            span, rows, begins = prepared.extra
            if begins:
                self._line = 1
            span.line = self._line
            self._line += rows

    def size(self) -> int:
        return sum(map(size_of, self._paths))

    def ready(self) -> bool:
        return self._stream is None or self._stream.wait(0)

    def halves(self, part: RawChunk | Extent | Prepared) -> Sequence[Any]:
        if isinstance(part, RawChunk):
            lines = lines_of(part.chunk)
            half = len(lines) // 2
            return [_stretch(part, lines, 0, half), _stretch(part, lines, half, len(lines))] if half else [part]
        if isinstance(part, Extent) and part.end - part.start > 1:
            found = self._extents.read(part, self.params.max_line)
            lines = lines_of(found.chunk)
            half = len(lines) // 2
            middle = found.offset + sum(len(line) + 1 for line in lines[:half])
            return [part._replace(end=middle), part._replace(start=middle)] if half else [part]
        return [part]

    def refused(self, part: RawChunk | Extent | Prepared, code: str, message: str) -> Prepared:
        if isinstance(part, Extent):
            found = self._extents.read(part, self.params.max_line)
            span, chunk = Span(part.name, 1, found.offset, found.chunk), found.chunk
            place = _Place(span, 1, part.start == part.first)
        else:
            assert isinstance(part, RawChunk)
            span, chunk, place = part.span, part.chunk, None
        return Prepared(
            Batch.of_lines([]), [Reject(code, [{"message": message}], chunk[:-1], (span, 0), 0)], extra=place
        )

    def _apart(self, stream: InputStream, path: str) -> Iterator[Extent] | None:
        """The extents of a plain file; None for anything else."""
        start = None if method_of(path) else start_of(stream)
        if start is None or is_compressed(start):
            return None
        self._stream = None
        return extents_of(stream, path, start, without_bom(start, stream.path, self.ctx.log))

    def _format_of(self, stream: Input) -> str:
        return format_of(stream.name, stream.media_type) if self.params.format == "auto" else self.params.format

    def _read(self, stream: Input, format: str) -> Iterator[RawChunk | Prepared]:
        options = ReadOptions(format, stream.path, self.ctx.log, self.params.types, self.params.max_line)
        content = opened(stream)
        reader: Reader = module(options.name).Reader(content, options)
        for item in reader.chunks():
            if isinstance(item, Reject):
                yield Prepared(Batch.of_lines([]), [item])
                continue
            yield item
            if isinstance(content, Prefixed) and not item.more:  # else there may be more than the stream knows of
                yield from self._idle(stream)

    def _idle(self, stream: Input) -> Iterator[Prepared]:
        """An empty batch whenever a step is due, until there is something to read."""
        while (due := self.ctx.due()) is not None and not stream.wait(due):
            yield Prepared(Batch.of_lines([]))


class _Place(NamedTuple):
    """Of the lines of an extent: where they came from, how many they are, and whether they are a file's first."""

    span: Span
    rows: int
    begins: bool


def _stretch(part: RawChunk, lines: list[bytes], start: int, end: int) -> RawChunk:
    span, own = part.span, lines[start:end]
    origins = [span.origin(row) for row in range(start, end)]
    places, offsets = [origin.line for origin in origins], [origin.offset for origin in origins]
    return RawChunk(chunk_of(own), Span(span.path, places[0], offsets[0], own, places, offsets))


def _blank(count: int) -> dict[str, int] | None:
    return {"blank": count} if count else None
