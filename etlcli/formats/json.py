"""JSON documents: an array of records, or records one after another, printed in any way.

A record's own bytes are cut out of the stream as they stand; only a record that is spread over lines has its line breaks,
and the space around them, taken out (inside strings JSON allows none). The standard library's scanner finds where a value
ends; it runs over the bytes as Latin-1, so that its positions are byte offsets, and what it decodes is thrown away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from etlcli.core.batch import Batch, Reject, Span
from etlcli.errors import DataError
from etlcli.formats import ByteStream, RawChunk, ReadOptions, WriteOptions

_BLOCK = 1 << 20
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")
_LINE_BREAKS = re.compile(rb"[ \t]*[\r\n][ \t\r\n]*")


class _NotJson(Exception):
    """`message`, and the position in the buffer."""

    def __init__(self, message: str, position: int) -> None:
        self.message = message
        self.position = position


def _no_constant(name: str) -> Any:
    raise OverflowError(f"{name} is not JSON")


_scan = json.JSONDecoder(parse_constant=_no_constant).raw_decode
# Slower, but integers of more digits than Python converts pass, too.
_scan_long = json.JSONDecoder(parse_int=str, parse_constant=_no_constant).raw_decode


class Reader:
    """A top-level array gives its elements, anything else gives itself. Memory is bounded by the largest record.

    Raises DataError, with line and byte offset, where the text stops being JSON: there is no telling where the next
    record would begin.
    """

    def __init__(self, stream: ByteStream, options: ReadOptions) -> None:
        self._stream = stream
        self._options = options
        self._data = b""
        self._text = ""
        self._position = 0
        self._ended = False
        self._scan = _scan
        # Of the buffer's first byte.
        self._offset = 0
        # Of the last position that was asked for.
        self._line = 1
        self._counted = 0

    def chunks(self) -> Iterator[RawChunk | Reject]:
        self._drop_bom()
        lines: list[bytes] = []
        places: list[tuple[int, int]] = []
        size = 0
        try:
            for start, end in self._values():
                raw = self._data[start:end]
                lines.append(_LINE_BREAKS.sub(b"", raw) if b"\n" in raw or b"\r" in raw else raw)
                places.append((self._line_at(start), self._offset + start))
                size += end - start
                if size > _CHUNK:
                    yield self._raw(lines, places)
                    lines, places, size = [], [], 0
        except _NotJson as error:
            where = f"{self._options.path}:{self._line_at(min(error.position, len(self._data)))}"
            raise DataError(
                f"{where}: {error.message} (byte {self._offset + error.position})",
                where=where,
                hint="nothing was published; for one record a line use --format ndjson, which can skip bad lines",
            ) from None
        if lines:
            yield self._raw(lines, places)

    def _raw(self, lines: list[bytes], places: list[tuple[int, int]]) -> RawChunk:
        chunk = b"\n".join([*lines, b""])
        numbers, offsets = [place[0] for place in places], [place[1] for place in places]
        return RawChunk(chunk, Span(self._options.path, numbers[0], offsets[0], chunk, numbers, offsets))

    def _values(self) -> Iterator[tuple[int, int]]:
        """Start and end of each record in the buffer, valid until the next one is asked for."""
        while self._next_char():
            if self._text[self._position] == "[":
                self._position += 1
                yield from self._elements()
            else:
                yield self._value()

    def _elements(self) -> Iterator[tuple[int, int]]:
        first = True
        while True:
            char = self._next_char()
            if char == "]" and first:
                break
            if not char or char in ",]}:":
                raise _NotJson(
                    "the array is cut short" if not char else f"a value is missing before {char!r}", self._position
                )
            yield self._value()
            first = False
            char = self._next_char()
            if char == "]":
                break
            if char != ",":
                message = f"expected , or ] after a value, not {char!r}" if char else "the array is cut short"
                raise _NotJson(message, self._position)
            self._position += 1
        self._position += 1

    def _value(self) -> tuple[int, int]:
        """The value at the position, complete; the position is behind it then."""
        while True:
            start = self._position
            try:
                end = self._scan(self._text, start)[1]
            except OverflowError as error:
                raise _NotJson(str(error), start) from None
            except RecursionError:
                raise _NotJson("nested too deep to be read", start) from None
            except json.JSONDecodeError as error:
                # Perhaps only because the rest is still to come.
                if self._more():
                    continue
                complete = len(self._data) - start > self._options.max_line and not self._ended
                message = (
                    "a record longer than --max-line"
                    if complete
                    else f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}"
                )
                raise _NotJson(message, error.pos) from None
            except ValueError:
                self._scan = _scan_long
                continue
            # A number at the end of the buffer may go on in the next block.
            if end < len(self._text) or self._text[end - 1] in '}]"' or not self._more():
                self._position = end
                return start, end

    def _next_char(self) -> str:
        """The next character that is no space, which the position is at then; `` at the end."""
        while True:
            match = _SPACE.match(self._text, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Reads on, and forgets what lies before the position. False at the end, or when a record is over the limit."""
        kept = self._data[self._position :]
        if self._ended or len(kept) > self._options.max_line:
            return False
        # As much as there is already, so that a large record is not scanned again and again.
        block = self._stream.read(max(_BLOCK, len(kept)))
        self._ended = not block
        if self._ended:
            return False
        self._line_at(self._position)
        self._offset += self._position
        self._data = kept + block
        self._text = self._data.decode("latin-1")
        self._position = self._counted = 0
        return True

    def _line_at(self, position: int) -> int:
        """The line of a position; positions are asked for in order."""
        if position > self._counted:
            self._line += self._data.count(b"\n", self._counted, position)
            self._counted = position
        return self._line

    def _drop_bom(self) -> None:
        while len(self._data) < len(_BOM) and self._more():
            pass
        if self._data.startswith(_BOM):
            self._options.log("warning", "bom_dropped", path=self._options.path)
            self._position = len(_BOM)


class Writer:
    """An array, a record a line, each with its own bytes."""

    def __init__(self, out: Callable[[bytes], object], options: WriteOptions) -> None:
        self._out = out
        self._empty = True

    @classmethod
    def following(cls, old: ByteStream, path: str, options: WriteOptions) -> WriteOptions:
        raise ValueError("a JSON array ends where it ends")

    def write(self, batch: Batch) -> list[Reject]:
        if batch.count:
            self._out((b"[\n" if self._empty else b",\n") + b",\n".join(batch.lines))
            self._empty = False
        return []

    def close(self) -> None:
        self._out(b"[]\n" if self._empty else b"\n]\n")
