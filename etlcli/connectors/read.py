"""`read`: files, globs, URLs and stdin, in any format, as records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etlcli.core import params
from etlcli.core.batch import Batch
from etlcli.core.fields import projection
from etlcli.core.intake import DEFAULT_MAX_LINE
from etlcli.core.stage import Context, Prepared, Source
from etlcli.formats import ReadOptions, format_of, records
from etlcli.io.compression import opened
from etlcli.io.inputs import STDIN, Input, Prefixed, check_input, expand, open_input
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

    def batches(self) -> Iterator[Prepared]:
        for path in self._paths:
            stream = open_input(path)
            try:
                yield from self._idle(stream)
                yield from self._read(stream)
            finally:
                stream.close()

    def _read(self, stream: Input) -> Iterator[Prepared]:
        name = format_of(stream.name, stream.media_type) if self.params.format == "auto" else self.params.format
        options = ReadOptions(name, stream.path, self.ctx.log, self.params.types, self.params.max_line)
        content = opened(stream)
        for (batch, rejects, blank), more in records(content, options, projection(self.ctx.reads)):
            yield Prepared(batch, rejects, {"blank": blank} if blank else None)
            if isinstance(content, Prefixed) and not more:  # else there may be more than the stream knows of
                yield from self._idle(stream)

    def _idle(self, stream: Input) -> Iterator[Prepared]:
        """An empty batch whenever a step is due, until there is something to read."""
        while (due := self.ctx.due()) is not None and not stream.wait(due):
            yield Prepared(Batch.of_lines([]))
