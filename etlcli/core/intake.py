"""From bytes of whole lines to records that are known to be good.

`parse` is the only place where outside bytes are believed. A chunk that is clean is checked as a whole, by calls into C;
the first doubt sends it line by line, so that exactly the bad lines are rejected and the good ones around them go on.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from etlcli.core.batch import Batch, Reject, Span
from etlcli.core.fields import Projection

MAX_DEPTH = 250
"""Nesting levels a record may have. One below what the least patient decoder on any path refuses."""
DEFAULT_MAX_LINE = 16 << 20
_EXCERPT = 64 << 10

_INNER_BRACE = re.compile(rb"\}[^\n]")
_HALF_PAIR = re.compile(rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|[c-fC-F][0-9a-fA-F]{2})")
_BRACKETS = bytes(byte for byte in range(256) if byte not in b'{}[]"\\')


class Intake(NamedTuple):
    batch: Batch
    rejects: list[Reject]
    blank: int


def parse(chunk: bytes, span: Span, project: Projection, max_line: int = DEFAULT_MAX_LINE) -> Intake:
    """Check every line of `chunk` (whole lines, each with its newline) and decode the projected fields.

    A line is a record if it is one JSON object in valid UTF-8, at most `max_line` bytes and MAX_DEPTH levels. CRLF becomes
    LF, blank lines are counted, anything else is a reject with its code and origin.
    """
    if max_line >= len(chunk):
        rows = chunk.count(b"\n") if span.count is None else span.count
        clean = chunk
        structs = _decode_clean(clean, rows, project)
        if structs is None and b"\r\n" in chunk:
            clean = chunk.replace(b"\r\n", b"\n")
            structs = _decode_clean(clean, rows, project)
        if structs is not None:
            return Intake(Batch(len(structs), chunk=clean, span=span, structs=structs, projected=project), [], 0)
    return _parse_lines(chunk, span, project, max_line)


def _decode_clean(chunk: bytes, rows: int, project: Projection) -> list[Any] | None:
    """The decoded lines if each of the `rows` lines is exactly one good record; None if any of it is in doubt."""
    if not chunk.isascii() and not _is_utf8(chunk):
        return None
    try:
        structs = project.decode(chunk)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    # The decoder itself would take a record over two lines, and two records on one, so as many records as lines is
    # not enough. But every record has a closing brace, and where each of those ends a line, none ends two records.
    if len(structs) != rows:
        return None
    inner = 0
    if _INNER_BRACE.search(chunk):
        # A newline between `}` and `{` can only stand between records; when all newlines do, lines are records.
        if chunk.count(b"}\n{") != rows - 1 or chunk[-2:] != b"}\n" or chunk[:1] != b"{":
            return None
        inner = chunk.count(b"{") - rows
    if b"[" in chunk:
        inner += chunk.count(b"[")
    # Only a line with that many brackets beside its own can be too deep.
    return None if inner >= MAX_DEPTH and any(map(too_deep, chunk.split(b"\n"))) else structs


def _parse_lines(chunk: bytes, span: Span, project: Projection, max_line: int) -> Intake:
    lines, rows, structs, rejects, blank = [], [], [], [], 0
    for row, raw in enumerate(chunk.split(b"\n")[:-1]):
        line = raw.removesuffix(b"\r")
        if not line.strip(b" \t\r"):
            blank += 1
            continue
        try:
            structs.append(_decode_line(line, project, max_line))
        except _Bad as bad:
            raw = excerpt(line, max_line) if bad.code == "line_too_long" else line
            rejects.append(Reject(bad.code, [{"message": bad.message}], raw, span.origin(row), row))
        else:
            lines.append(line)
            rows.append(row)
    return Intake(
        Batch(len(lines), lines=lines, span=span, rows=rows, structs=structs, projected=project), rejects, blank
    )


class _Bad(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


def _decode_line(line: bytes, project: Projection, max_line: int) -> Any:
    if len(line) > max_line:
        raise _Bad("line_too_long", f"a line of {len(line)} bytes, more than --max-line {max_line}")
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


def excerpt(line: bytes, max_line: int) -> bytes:
    """What is kept of a line that is too long: as much of its start as any way of reading it has seen."""
    return line[: min(_EXCERPT, max_line)]


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
    brackets = batch.chunk.count(b"{") + batch.chunk.count(b"[")
    if brackets - batch.count + 1 + len(opening) <= MAX_DEPTH:
        return []
    return [index for index, line in enumerate(batch.lines) if too_deep(opening + line)]


def too_deep(line: bytes) -> bool:
    """Whether a line nests deeper than MAX_DEPTH; brackets inside strings do not count."""
    if len(line) <= MAX_DEPTH or line.count(b"{") + line.count(b"[") <= MAX_DEPTH:
        return False
    # Strings go first, their escapes before them; the line need not be valid JSON.
    marks = line.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(marks).translate(None, _BRACKETS)
    return max(accumulate((1 if byte in b"{[" else -1 for byte in brackets), initial=0)) > MAX_DEPTH
