"""A regular file of lines in extents, which any process can read apart from the others.

An extent is a stretch of bytes and stands for the lines that begin in it: who reads it passes over the end of a line that
began before, and reads on to the end of the last one. So extents are told by arithmetic, and nobody has to look at the
bytes before they are worked on. A file is read as far as it went when it was opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etlcli.core.batch import count_of
from etlcli.core.stage import PART
from etlcli.errors import InputOutputError
from etlcli.io.inputs import STDIN, InputStream

_SAMPLE = 64 << 10
_LINES = 16384
_NEAR = 4096
"""Most lines end within that many bytes."""


class Extent(NamedTuple):
    path: str
    name: str
    """The path as it is shown."""
    file: tuple[int, int]
    """Device and inode."""
    open: str
    """A path to it for as long as the process that told the extent has it open, whatever becomes of its name (Linux)."""
    first: int
    """Where the file's first line begins."""
    start: int
    end: int
    limit: int
    """How far the file is read: its size when it was opened."""
    block: int
    """Bytes of each of the extents that this one consists of."""

    def blocks(self) -> list[Extent]:
        starts = range(self.start, self.end, self.block)
        return [self._replace(start=at, end=min(at + self.block, self.end)) for at in starts]


class Lines(NamedTuple):
    """The lines of an extent: whole ones, each with its newline (a last one without is given one), and where they begin.
    A line longer than asked for is not among them: `long` is its start, `long_size` its length."""

    chunk: bytes
    offset: int
    long: bytes = b""
    long_size: int = 0


def start_of(stream: InputStream) -> bytes | None:
    """The first bytes of a regular file from where it stands, which can be read in extents; None for anything else."""
    status = os.fstat(stream.fd)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return None
    return _pread(stream.fd, _SAMPLE, _position(stream), stream.path)


def extents_of(
    stream: InputStream,
    path: str,
    start: bytes,
    skipped: int,
    behind: int = 0,
    limit: int | None = None,
    scale: Callable[[], int] = lambda: 1,
) -> Iterator[Extent]:
    """All of `path`, which `stream` has open, from where it stands, but the `skipped` first bytes of its `start`. What is
    `behind` the end of an earlier extent, where that is given, and before the `limit`. Each has as many blocks as the
    `scale` says then."""
    status = os.fstat(stream.fd)
    limit = status.st_size if limit is None else limit
    first = _position(stream) + skipped
    # Short lines are many objects: smaller extents, so that memory does not depend on what a line is.
    lines = max(1, start.count(b"\n"))
    block = max(1, min(PART, len(start) * _LINES // lines))
    file, held = (status.st_dev, status.st_ino), f"/proc/{os.getpid()}/fd/{stream.fd}"
    at = max(first, behind)
    while at < limit:
        end = min(at + block * scale(), limit)
        yield Extent(path, stream.path, file, held, first, at, end, limit, block)
        at = end
    os.lseek(stream.fd, limit, os.SEEK_SET)  # who has stdin next goes on behind it


class ExtentReader:
    """Reads extents; each process has its own. It keeps the last file open."""

    def __init__(self) -> None:
        self._fd = -1
        self._file: tuple[int, int] | None = None

    def read(self, extent: Extent, max_line: int) -> Lines:
        """Raises InputOutputError when the disk fails, and when the file is seen to have been replaced, cut short or
        changed since."""
        self._open(extent)
        start: int | None = extent.start
        if extent.start > extent.first:
            start = self._line_behind(extent, extent.start, extent.end)
        if start is None or start >= extent.end:
            return Lines(b"", extent.end)
        end = self._line_behind(extent, extent.end, min(extent.end + max_line + 1, extent.limit))
        if end is not None:
            data = self._bytes(extent, start, end)
            if data[-1:] != b"\n":
                raise _changed(extent.name, "changed")
            return Lines(data, start)
        data = self._bytes(extent, start, min(extent.end + max_line + 1, extent.limit))
        last = data.rfind(b"\n") + 1
        if len(data) - last - data.endswith(b"\r") > max_line:
            return Lines(data[:last], start, data[last:], self._length(extent, start + last))
        return Lines(data + b"\n", start)

    def _line_behind(self, extent: Extent, position: int, stop: int) -> int | None:
        """Where the first line at the position or behind it begins; None if that is not at the stop or before it."""
        at, size = position - 1, _NEAR
        while at < stop:
            found = self._bytes(extent, at, min(at + size, stop)).find(b"\n")
            if found >= 0:
                return at + found + 1
            at, size = at + size, PART
        return None

    def count(self, extent: Extent, start: int, end: int) -> int:
        """As `lines_between`."""
        self._open(extent)
        # A line begins behind the end of another, and the first one at the beginning.
        base = max(start - 1, extent.first)
        found = int(start <= extent.first < end)
        for at in range(base, end - 1, PART):
            found += count_of(b"\n", self._bytes(extent, at, min(at + PART, end - 1)))
        return found

    def close(self) -> None:
        if self._fd > 0:
            os.close(self._fd)
        self._fd, self._file = -1, None

    def _open(self, extent: Extent) -> None:
        if self._file == extent.file:
            return
        failure: OSError | None = None
        for path in (extent.path, extent.open):  # the name may have gone to another: files are rotated
            self.close()
            try:
                self._fd = 0 if path == STDIN else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                status = os.fstat(self._fd)
            except OSError as error:
                failure = failure or error
                continue
            self._file = status.st_dev, status.st_ino
            if self._file == extent.file:
                return
        self.close()
        if failure:
            raise InputOutputError(f"cannot read {extent.name}: {failure.strerror}", where=extent.name) from failure
        raise _changed(extent.name, "replaced")

    def _bytes(self, extent: Extent, start: int, end: int) -> bytes:
        data = _pread(self._fd, end - start, start, extent.name)
        if len(data) < end - start:
            raise _changed(extent.name, "cut short")
        return data

    def _length(self, extent: Extent, start: int) -> int:
        for at in range(start, extent.limit, PART):
            found = self._bytes(extent, at, min(at + PART, extent.limit)).find(b"\n")
            if found >= 0:
                return at + found - start
        return extent.limit - start


def lines_between(extent: Extent, start: int, end: int) -> int:
    """How many lines of the extent's file begin in a stretch of it, which need not be the extent's own; where it ends, a
    line begins or the file ends. Any thread may ask. Raises InputOutputError as `ExtentReader.read` does."""
    reader = ExtentReader()
    try:
        return reader.count(extent, start, end)
    finally:
        reader.close()


def _pread(fd: int, size: int, offset: int, path: str) -> bytes:
    try:
        data = os.pread(fd, size, offset)
        while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
            data += more
    except OSError as error:
        raise InputOutputError(f"cannot read {path}: {error.strerror}", where=path) from error
    return data


def _position(stream: InputStream) -> int:
    return os.lseek(stream.fd, 0, os.SEEK_CUR)


def _changed(path: str, how: str) -> InputOutputError:
    return InputOutputError(
        f"{path} was {how} while it was being read", where=path, hint="run it again; nothing was published"
    )
