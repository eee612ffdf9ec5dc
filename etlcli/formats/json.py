"""JSON documents: an array of records, or records one after another, printed in any way.

A record's own bytes are cut out of the stream as they stand; only a record that is spread over lines has its line breaks,
and the space around them, taken out (inside strings JSON allows none). The standard library's scanner finds where a value
ends; it runs over the bytes as Latin-1, so that its positions are byte offsets, and what it decodes is thrown away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from etlcli.core.batch import Batch, Reject, Span, chunk_of
from etlcli.errors import DataError
from etlcli.formats import ByteStream, RawChunk, ReadOptions, WriteOptions

_BLOCK = 1 << 20
_MAX_LINES = 16384
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


class _Place(Enum):
    """Where in the text the reader stands."""

    TOP = "between documents"
    FIRST = "behind ["
    VALUE = "behind a comma of the array"
    BEHIND = "behind a value of the array"


class Reader:
    """A top-level array gives its elements, anything else gives itself. Records go on as soon as they are there; memory is
    bounded by the largest.

    Raises DataError, with line and byte offset, where the text stops being JSON: there is no telling where the next
    record would begin.
    """

    def __init__(self, stream: ByteStream, options: ReadOptions) -> None:
        self._stream = stream
        self._options = options
        self._data = b""
        self._text = ""
        self._position = 0
        self._place = _Place.TOP
        self._ended = False
        self._scan = _scan
        # Of the buffer's first byte.
        self._offset = 0
        # Of the last position that was asked for.
        self._line = 1
        self._counted = 0

    def chunks(self) -> Iterator[RawChunk | Reject]:
        self._drop_bom()
        try:
            while not self._ended:
                yield from self._complete()
                self._more()
            yield from self._complete()
            if self._place is not _Place.TOP:
                raise _NotJson("the array is cut short", self._position)
        except _NotJson as error:
            where = f"{self._options.path}:{self._line_at(min(error.position, len(self._data)))}"
            raise DataError(
                f"{where}: {error.message} (byte {self._offset + error.position})",
                where=where,
                hint="nothing was published; for one record a line use --format ndjson, which can skip bad lines",
            ) from None

    def _complete(self) -> Iterator[RawChunk]:
        """The records that are complete in the buffer."""
        lines: list[bytes] = []
        places: list[tuple[int, int]] = []
        for start, end in self._values():
            raw = self._data[start:end]
            lines.append(_LINE_BREAKS.sub(b"", raw) if b"\n" in raw or b"\r" in raw else raw)
            places.append((self._line_at(start), self._offset + start))
            if len(lines) == _MAX_LINES:
                yield self._raw(lines, places)
                lines, places = [], []
        if lines:
            yield self._raw(lines, places)

    def _raw(self, lines: list[bytes], places: list[tuple[int, int]]) -> RawChunk:
        chunk = chunk_of(lines)
        numbers, offsets = [place[0] for place in places], [place[1] for place in places]
        return RawChunk(chunk, Span(self._options.path, numbers[0], offsets[0], chunk, numbers, offsets))

    def _values(self) -> Iterator[tuple[int, int]]:
        """Start and end of each record, as far as the buffer goes."""
        while char := self._next_char():
            if self._place is _Place.BEHIND:
                if char not in ",]":
                    raise _NotJson(f"expected , or ] after a value, not {char!r}", self._position)
                self._place = _Place.VALUE if char == "," else _Place.TOP
                self._position += 1
            elif self._place is _Place.TOP and char == "[":
                self._place = _Place.FIRST
                self._position += 1
            elif self._place is _Place.FIRST and char == "]":
                self._place = _Place.TOP
                self._position += 1
            elif self._place is not _Place.TOP and char in ",]}:":
                raise _NotJson(f"a value is missing before {char!r}", self._position)
            else:
                found = self._value()
                if found is None:
                    return
                if self._place is not _Place.TOP:
                    self._place = _Place.BEHIND
                yield found

    def _value(self) -> tuple[int, int] | None:
        """The value at the position, which is behind it then; None while it is not all there."""
        start = self._position
        try:
            end = self._scan(self._text, start)[1]
        except OverflowError as error:
            raise _NotJson(str(error), start) from None
        except RecursionError:
            raise _NotJson("nested too deep to be read", start) from None
        except json.JSONDecodeError as error:
            if self._ended:
                raise _NotJson(f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}", error.pos) from None
            if len(self._data) - start > self._options.max_line:
                raise _NotJson("a record longer than --max-line", error.pos) from None
            return None
        except ValueError:
            self._scan = _scan_long
            return self._value()
        # A number at the end of the buffer may go on in the next block.
        if end == len(self._text) and self._text[end - 1] not in '}]"' and not self._ended:
            return None
        self._position = end
        return start, end

    def _next_char(self) -> str:
        """The next character that is no space, which the position is at then; `` at the end of the buffer."""
        match = _SPACE.match(self._text, self._position)
        assert match is not None
        self._position = match.end()
        return self._text[self._position : self._position + 1]

    def _more(self) -> None:
        """Reads on, and forgets what lies before the position."""
        self._line_at(self._position)
        self._offset += self._position
        blocks = [self._data[self._position :]]
        # A record that goes on and on is scanned anew each time it has doubled, so not again and again.
        wanted = len(blocks[0]) if len(blocks[0]) > _BLOCK // 16 else 1
        while wanted > 0 and (block := self._stream.read(max(_BLOCK, wanted))):
            blocks.append(block)
            wanted -= len(block)
        self._ended = wanted > 0
        self._data = b"".join(blocks)
        self._text = self._data.decode("latin-1")
        self._position = self._counted = 0

    def _line_at(self, position: int) -> int:
        """The line of a position; positions are asked for in order."""
        if position > self._counted:
            self._line += self._data.count(b"\n", self._counted, position)
            self._counted = position
        return self._line

    def _drop_bom(self) -> None:
        while len(self._data) < len(_BOM) and not self._ended:
            self._more()
        if self._data.startswith(_BOM):
            self._options.log("warning", "bom_dropped", path=self._options.path)
            self._position = len(_BOM)


class Writer:
    """An array, a record a line, each with its own bytes."""

    def __init__(
        self, out: Callable[[bytes], object], options: WriteOptions, state: dict[str, Any] | None = None
    ) -> None:
        self._out = out
        self._empty = state["empty"] if state else True

    @classmethod
    def following(cls, old: ByteStream, path: str, options: WriteOptions) -> WriteOptions:
        raise ValueError("a JSON array ends where it ends")

    def write(self, batch: Batch) -> list[Reject]:
        if batch.count:
            self._out((b"[\n" if self._empty else b",\n") + b",\n".join(batch.lines))
            self._empty = False
        return []

    def snapshot(self) -> dict[str, Any]:
        return {"empty": self._empty}

    def close(self) -> None:
        self._out(b"[]\n" if self._empty else b"\n]\n")
