"""Writing and reading a format in memory, for the tests of formats."""

from __future__ import annotations

import io
from typing import Any

from etlcli.core.batch import Batch, Reject
from etlcli.formats import ReadOptions, WriteOptions, module


class _Stream:
    """A stream that gives at most `size` bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self._file = io.BytesIO(data)
        self._size = size

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._size))


def write(name: str, lines: list[str], **options: Any) -> bytes:
    out: list[bytes] = []
    writer = module(name).Writer(out.append, WriteOptions(name, **options))
    # Two batches: what a writer does between records it must do between batches.
    encoded = [line.encode() for line in lines]
    for part in (encoded[:2], encoded[2:]):
        assert not writer.write(Batch.of_lines(part))
    writer.close()
    return b"".join(out)


def read(name: str, data: bytes, size: int = 1 << 20, **options: Any) -> list[Any]:
    """(line, line number, byte offset) of every record, and the rejects."""
    reader = module(name).Reader(_Stream(data, size), ReadOptions(name, "in", lambda *a, **k: None, **options))
    found: list[Any] = []
    for item in reader.chunks():
        if isinstance(item, Reject):
            found.append(item)
            continue
        for row, line in enumerate(item.chunk.split(b"\n")[:-1]):
            origin = item.span.origin(row)
            found.append((line, origin.line, origin.offset))
    return found
