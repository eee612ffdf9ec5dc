"""Serializers. A format is a module with a `Reader`, a `Writer`, or both; `registry.FORMATS` names them.

Readers turn a byte stream into NDJSON lines, as raw chunks for `core.intake` to check: whatever the format, one place
decides what a good record is. Writers take batches. Both keep the bytes of values they need not understand: a number that
was `1.10` in the CSV is `1.10` in the JSON and back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from etlcli.core.batch import Batch, Reject, Span
from etlcli.core.intake import Intake, parse
from etlcli.core.projection import Projection
from etlcli.errors import UsageError, nearest
from etlcli.io.compression import without_suffix
from etlcli.registry import FORMATS


class ByteStream(Protocol):
    """Decompressed bytes. `read` returns at most `size`, perhaps less, and b"" only at the end."""

    def read(self, size: int) -> bytes: ...


class RawChunk(NamedTuple):
    """Whole NDJSON lines, each with its newline, not yet checked; `span` knows where each line came from."""

    chunk: bytes
    span: Span
    more: bool = False
    """Whether the next chunk is at hand already, and needs no more input."""


class ReadOptions(NamedTuple):
    """What readers may be told. `log(level, event, **fields)` is for notices (a byte order mark, say)."""

    name: str
    """The format's own name: `csv` and `tsv` share a module."""
    path: str
    """The input's name, for origins and messages."""
    log: Callable[..., None]
    types: str = "infer"
    max_line: int = 16 << 20
    grows: bool = False
    """What comes last may be only the beginning of a record: it is left for another time, with a warning."""


class Reader(Protocol):
    """Raises DataError, with the place, when the rest of the stream cannot be read as data."""

    def __init__(self, stream: ByteStream, options: ReadOptions) -> None: ...

    def chunks(self) -> Iterator[RawChunk | Reject]: ...


def records(stream: ByteStream, options: ReadOptions, project: Projection) -> Iterator[tuple[Intake, bool]]:
    """What a decompressed stream holds, checked: parts in order, each with whether the next is at hand already, and needs
    no more input."""
    reader: Reader = module(options.name).Reader(stream, options)
    for item in reader.chunks():
        if isinstance(item, Reject):
            yield Intake(Batch.of_lines([]), [item], 0), True
        else:
            yield parse(item.chunk, item.span, project, options.max_line), item.more


class WriteOptions(NamedTuple):
    name: str
    columns: tuple[str, ...] = ()
    """Field names for formats with columns; by default those of the first record."""
    header: bool = True
    """Whether such formats write a header line (not when appending to a file that has one)."""


class Writer(Protocol):
    def __init__(
        self, out: Callable[[bytes], object], options: WriteOptions, state: dict[str, Any] | None = None
    ) -> None:
        """`state` is what `snapshot` gave: goes on with what another writer has begun."""

    @classmethod
    def following(cls, old: ByteStream, path: str, options: WriteOptions) -> WriteOptions:
        """The options for writing on after the `old` content of `path`. Raises ValueError with the reason where that
        cannot be."""

    def write(self, batch: Batch) -> list[Reject]:
        """Writes the records it can and returns the others, code `sink_refused`."""

    def snapshot(self) -> dict[str, Any] | None:
        """What another writer needs to go on, as JSON can say it."""

    def close(self) -> None:
        """Writes what ends the stream (`]` of an array); it does not close the file."""


def module(name: str) -> ModuleType:
    """The module of a format. Raises UsageError with the nearest known name."""
    if name not in FORMATS:
        raise UsageError(f"no format is called {name!r}", hint=nearest(name, list(FORMATS)))
    return import_module(FORMATS[name])


_FORMAT_OF_SUFFIX = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".yaml": "yaml",
    ".yml": "yaml",
}


_FOREIGN = {".parquet", ".avro", ".orc", ".arrow", ".feather", ".xlsx", ".xls", ".ods", ".db", ".sqlite", ".xml", ".toml",
            ".msgpack", ".zip", ".tar", ".tgz", ".7z", ".lz4", ".br"}  # fmt: skip


_FORMAT_OF_MEDIA_TYPE = {
    "application/json": "json",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
}


def format_of(path: str, media_type: str = "") -> str:
    """The format a file's suffix stands for, a compression suffix aside; for any other suffix that of the media type, or
    NDJSON. Raises UsageError for the
    suffix of a format that is not here."""
    suffix = os.path.splitext(without_suffix(path))[1].lower()
    if suffix in _FOREIGN:
        raise UsageError(
            f"{path}: {suffix} is no format that etl knows",
            hint="NDJSON under such a name needs etl read or etl write with --format ndjson",
        )
    return _FORMAT_OF_SUFFIX.get(suffix) or _FORMAT_OF_MEDIA_TYPE.get(media_type, "ndjson")
