"""NDJSON: one JSON value on each line. Reading cuts the stream at newlines; the bytes are not looked at here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from etlcli.core.batch import Batch, Origin, Reject, Span, count_of, whole_lines_of
from etlcli.core.intake import too_long
from etlcli.core.stage import PART
from etlcli.formats import ByteStream, RawChunk, ReadOptions, WriteOptions

_BOM = b"\xef\xbb\xbf"
_MAX_LINES = 16384


class Reader:
    """Chunks of whole lines, about a MiB, or what there is on a slow pipe. A last line without newline is given one. A line
    longer than `max_line` is never held: it is skipped to its end and rejected with its first 64 KiB."""

    def __init__(self, stream: ByteStream, options: ReadOptions) -> None:
        self._stream = stream
        self._options = options
        self._line = 1
        self._offset = 0

    def chunks(self) -> Iterator[RawChunk | Reject]:
        held: list[bytes] = []
        size = 0
        for block in self._blocks():
            end = block.rfind(b"\n") + 1
            if end:
                yield from self._raw(b"".join([*held, memoryview(block)[:end]]))
                held, size = [], 0
            held.append(block[end:])
            size += len(block) - end
            if size - block.endswith(b"\r") > self._options.max_line:
                yield from self._skip(b"".join(held))
                held, size = [], 0
        if size:
            yield from self._raw(b"".join([*held, b"\n"]))

    def _blocks(self) -> Iterator[bytes]:
        """The stream's blocks, pushed-back ones first, a byte order mark at the start dropped."""
        start = b""
        while len(start) < len(_BOM) and _BOM.startswith(start) and (block := self._stream.read(PART)):
            start += block
        self._offset = without_bom(start, self._options.path, self._options.log)
        self._rest = start[self._offset :]
        while block := self._rest or self._stream.read(PART):
            self._rest = b""
            yield block

    def _raw(self, chunk: bytes) -> Iterator[RawChunk]:
        """The chunk, or several of it: a MiB of tiny records is more objects than memory should hold at once."""
        count = count_of(b"\n", chunk)
        if count <= _MAX_LINES:
            yield self._part(chunk, count)
            return
        lines = whole_lines_of(chunk)
        for start in range(0, count, _MAX_LINES):
            part = lines[start : start + _MAX_LINES]
            yield self._part(b"".join(part), len(part), more=start + _MAX_LINES < count)

    def _part(self, chunk: bytes, lines: int, *, more: bool = False) -> RawChunk:
        span = Span(self._options.path, self._line, self._offset, chunk)
        self._line += lines
        self._offset += len(chunk)
        return RawChunk(chunk, span, more)

    def _skip(self, start: bytes) -> Iterator[Reject]:
        size, found = len(start), -1
        while found < 0 and (block := self._stream.read(PART)):
            found = block.find(b"\n")
            size += len(block) if found < 0 else found
            if found >= 0:
                self._rest = block[found + 1 :]
        yield too_long(start, size, Origin(self._options.path, self._line, self._offset), self._options.max_line)
        self._line += 1
        self._offset += size + 1


def without_bom(start: bytes, path: str, log: Callable[..., None]) -> int:
    """Where content that begins so has its first line: a byte order mark is dropped, with a notice."""
    if not start.startswith(_BOM):
        return 0
    log("warning", "bom_dropped", path=path)
    return len(_BOM)


class Writer:
    def __init__(
        self, out: Callable[[bytes], object], options: WriteOptions, state: dict[str, Any] | None = None
    ) -> None:
        self._out = out

    @classmethod
    def following(cls, old: ByteStream, path: str, options: WriteOptions) -> WriteOptions:
        return options

    def write(self, batch: Batch) -> list[Reject]:
        self._out(batch.chunk)
        return []

    def snapshot(self) -> None:
        return None

    def close(self) -> None:
        pass
