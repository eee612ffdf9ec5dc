"""From bytes of whole lines to records that are known to be good.

`parse` is the only place where outside bytes are believed. A chunk that is clean is checked by a few calls into C, which
give each line to the decoder; the first doubt sends it line by line, so that exactly the bad lines are rejected and the
good ones around them go on.
"""

from __future__ import annotations

import re
from io import BytesIO
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from etlcli.core.batch import Batch, Origin, Reject, Span, count_of, lines_of
from etlcli.core.projection import Projection

MAX_DEPTH = 250
"""Nesting levels a record may have. One below what the least patient decoder on any path refuses."""
DEFAULT_MAX_LINE = 16 << 20
_EXCERPT = 64 << 10

_HALF_PAIR = re.compile(rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|[c-fC-F][0-9a-fA-F]{2})")
_BRACKETS = bytes(byte for byte in range(256) if byte not in b'{}[]"\\')


class Intake(NamedTuple):
    batch: Batch
    rejects: list[Reject]
    blank: int

    @property
    def lines(self) -> int:
        """How many there were."""
        return self.batch.count + len(self.rejects) + self.blank


def parse(chunk: bytes, span: Span, project: Projection, max_line: int = DEFAULT_MAX_LINE) -> Intake:
    """Check every line of `chunk` (whole lines, each with its newline) and decode the projected fields.

    A line is a record if it is one JSON object in valid UTF-8, at most `max_line` bytes and MAX_DEPTH levels. CRLF becomes
    LF, blank lines are counted, anything else is a reject with its code and origin.
    """
    if max_line >= len(chunk):
        clean = chunk.replace(b"\r\n", b"\n") if b"\r" in chunk else chunk
        batch = _clean_batch(clean, span, project)
        if batch is not None:
            return Intake(batch, [], 0)
    return _parse_lines(lines_of(chunk), span, project.plain, max_line)


def _clean_batch(chunk: bytes, span: Span, project: Projection) -> Batch | None:
    """The batch if each line is one good record; None if any of it is in doubt."""
    if not (chunk.isascii() or _is_utf8(chunk)):
        return None
    decoded = _decoded(chunk, project)
    if decoded is None and project is not project.plain:
        decoded = _decoded(chunk, project.plain)
    if decoded is None:
        return None
    fitted, records = decoded
    if not fitted.flat and _is_deep(chunk, len(records)):
        return None
    return Batch(len(records), chunk=chunk, span=span, decoded=records, projected=fitted)


def _decoded(chunk: bytes, project: Projection) -> tuple[Projection, Any] | None:
    try:
        return project.decoded(chunk)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None


def _is_deep(chunk: bytes, count: int) -> bool:
    """Whether one of so many lines, each of them JSON, nests too deeply."""
    if _opened(chunk) - count < MAX_DEPTH:
        return False
    # A line closes what it opens.
    return any(too_deep(line) for line in BytesIO(chunk) if len(line) > 2 * MAX_DEPTH)


def _opened(chunk: bytes) -> int:
    """How many brackets are opened, in strings or not."""
    return count_of(b"{", chunk) + count_of(b"[", chunk)


def _parse_lines(raw_lines: list[bytes], span: Span, project: Projection, max_line: int) -> Intake:
    lines, rows, records, rejects, blank = [], [], [], [], 0
    for row, raw in enumerate(raw_lines):
        line = raw.removesuffix(b"\r")
        if not line.strip(b" \t\r"):
            blank += 1
            continue
        if len(line) > max_line:
            rejects.append(too_long(line, len(line), (span, row), max_line, row))
            continue
        try:
            records.append(_decode_line(line, project))
        except _Bad as bad:
            rejects.append(Reject(bad.code, [{"message": bad.message}], line, (span, row), row))
        else:
            lines.append(line)
            rows.append(row)
    return Intake(
        Batch(len(lines), lines=lines, span=span, rows=rows, decoded=records, projected=project), rejects, blank
    )


class _Bad(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


def _decode_line(line: bytes, project: Projection) -> Any:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise _Bad("bad_utf8", f"not UTF-8 (byte {error.start} of the line)") from None
    if too_deep(line):
        raise _Bad("too_deep", f"nested deeper than {MAX_DEPTH} levels")
    try:
        return project.decode_exact(line)
    except msgspec.ValidationError:
        raise _Bad("not_object", "not a JSON object") from None
    except msgspec.DecodeError as error:
        raise _Bad("bad_json", _explain(str(error), line)) from None


def too_long(
    line: bytes, size: int, origin: Origin | tuple[Span, int], max_line: int, row: int | None = None
) -> Reject:
    """The reject of a line of `size` bytes. As much of its start is kept as any way of reading it has seen."""
    message = f"a line of {size} bytes, more than --max-line {max_line}"
    return Reject("line_too_long", [{"message": message}], line[: min(_EXCERPT, max_line)], origin, row)


def _explain(message: str, line: bytes) -> str:
    """The decoder's reason in our words: `JSON is malformed: invalid character (byte 3)` -> `not JSON: invalid ...`."""
    if "truncated" in message and (half := _HALF_PAIR.search(line)):
        return f"not JSON: {half[0].decode()} is half of a surrogate pair"
    return "not JSON: " + message.removeprefix("JSON is malformed: ").replace("Input data was truncated", "cut short")


def _is_utf8(chunk: bytes) -> bool:
    try:
        chunk.decode()
    except UnicodeDecodeError:
        return False
    return True


def too_deep_inside(batch: Batch, opening: bytes) -> list[int]:
    """The indices of the records that would be too deep to read once they lie inside these brackets."""
    if _opened(batch.chunk) - batch.count + 1 + len(opening) <= MAX_DEPTH:
        return []
    return [index for index, line in enumerate(batch.lines) if too_deep(opening + line)]


def too_deep(line: bytes) -> bool:
    """Whether a line nests deeper than MAX_DEPTH; brackets inside strings do not count."""
    if len(line) <= MAX_DEPTH or _opened(line) <= MAX_DEPTH:
        return False
    # Strings go first, their escapes before them; the line need not be valid JSON.
    marks = line.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(marks).translate(None, _BRACKETS)
    return max(accumulate((1 if byte in b"{[" else -1 for byte in brackets), initial=0)) > MAX_DEPTH
