"""Sorted runs on disk.

All runs of a stage lie one after another in one file that has no name: it cannot be left behind, whatever ends the
process, and it costs one descriptor however many runs there are. A run is immutable once it is written. While runs are
merged, what was read of them is punched out of the file: the result takes the place of the runs, on the disk and in the
system's cache, instead of lying beside them.

`LineSorter` puts lines into the order of their bytes, however many there are. Its merge goes block by block: all lines up
to the smallest last line among the loaded blocks are there, so that they can be sorted together, by one call into C.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from etlcli.core.batch import chunk_of, lines_of
from etlcli.core.files import Run, Spill
from etlcli.errors import InputOutputError

T = TypeVar("T")
_BLOCK_LINES = 4096
_MIN_BLOCK = 32 << 10
_MAX_BLOCK = 1 << 20
"""Larger ones are no faster: what is merged at a time should fit into the caches."""
_MAX_FAN_IN = 256
_LINE_OVERHEAD = 48
_HOLE = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


class SpillFile:
    """Raises InputOutputError naming the directory when it is missing or full. Close it; then its space is free again."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._end = 0
        self._fd = self._open()

    def write_run(self, blocks: Iterable[bytes]) -> Run:
        start = self._end
        for block in blocks:
            try:
                self._write(block)
            except OSError as error:
                raise self._error(error) from error
        return Run(start, self._end - start)

    def _write(self, block: bytes) -> None:
        written = 0
        while written < len(block):
            written += os.pwrite(self._fd, memoryview(block)[written:], self._end + written)
        self._end += len(block)

    def read_run(self, run: Run, size: int) -> Iterator[bytes]:
        position, end, rest = run.start, run.start + run.size, b""
        while position < end:
            try:
                block = os.pread(self._fd, min(max(size - len(rest), 4096), end - position), position)
            except OSError as error:
                raise self._error(error) from error
            if not block:
                raise InputOutputError(f"the spill file in {self._directory} is shorter than it was written")
            position += len(block)
            cut = block.rfind(b"\n") + 1
            if cut:
                yield rest + block[:cut]
                rest = block[cut:]
            else:
                rest += block
        if rest:
            yield rest

    def take_run(self, run: Run, size: int) -> Iterator[bytes]:
        taken = freed = run.start
        for block in self.read_run(run, size):
            yield block
            taken += len(block)
            if taken - freed >= _HOLE or taken == run.start + run.size:
                self._free(freed, taken - freed)
                freed = taken

    def close(self) -> None:
        os.close(self._fd)

    def _free(self, start: int, size: int) -> None:
        """Nobody reads these bytes again. A file system that cannot punch holes keeps them until the file is closed."""
        if fallocate := _fallocate():
            fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, start, size)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            with suppress(OSError):  # not every file system has nameless files
                return os.open(self._directory, flags | os.O_TMPFILE, 0o600)
            path = os.path.join(self._directory, f"etl-spill-{os.urandom(8).hex()}")
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            os.unlink(path)
            return fd
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> InputOutputError:
        return InputOutputError(
            f"cannot spill to {self._directory}: {error.strerror}",
            where=self._directory,
            hint="choose another directory with --temp-dir or TMPDIR, or raise --memory",
        )


class LineSorter:
    """Lines in, in any order, and out in the order of their bytes; at most `memory` bytes of them at a time."""

    def __init__(self, spill: Spill, memory: int, runs: Iterable[Run] = ()) -> None:
        """`runs` are in the spill file already."""
        self._spill = spill
        self._memory = memory
        self._lines: list[bytes] = []
        self._size = 0
        self.runs = list(runs)

    def add(self, lines: list[bytes]) -> None:
        self._lines += lines
        self._size += sum(map(len, lines)) + _LINE_OVERHEAD * len(lines)
        if self._size > self._memory // 2:
            self._lines.sort()
            self.add_sorted(self._lines)
            self._lines, self._size = [], 0

    def add_sorted(self, lines: Iterable[bytes]) -> None:
        """Lines that are in order already, which go to disk at once."""
        self.runs.append(self._write(lines))

    def sorted(self) -> Iterator[list[bytes]]:
        """All lines, in parts."""
        self._lines.sort()
        if not self.runs:
            yield self._lines
            return
        self.add_sorted(self._lines)
        self._lines = []
        yield from self._merge(merged_down(self.runs, self._memory // 4, self._merge_to_run))

    def _write(self, lines: Iterable[bytes]) -> Run:
        rest = iter(lines)
        blocks = iter(lambda: chunk_of(list(islice(rest, _BLOCK_LINES))), b"")
        return self._spill.write_run(blocks)

    def _merge_to_run(self, runs: Sequence[Run]) -> Run:
        return self._write(line for part in self._merge(runs) for line in part)

    def _merge(self, runs: Sequence[Run]) -> Iterator[list[bytes]]:
        share = share_of(self._memory // 4, runs)
        loaded = [_Loaded(self._spill.take_run(run, share)) for run in runs]
        while live := [block for block in loaded if block.lines]:
            bound = min(block.lines[-1] for block in live)
            part = [line for block in live for line in block.move(bound)]
            part.sort()
            yield part


class _Loaded:
    """The block of a run that is in memory: its lines still to be put out."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.lines: list[bytes] = []
        self._load()

    def move(self, bound: bytes) -> list[bytes]:
        """Takes the lines up to `bound`, and loads the next block when none is left."""
        cut = bisect_right(self.lines, bound)
        moved, self.lines = self.lines[:cut], self.lines[cut:]
        if not self.lines:
            self._load()
        return moved

    def _load(self) -> None:
        self.lines = lines_of(next(self._blocks, b""))


@cache
def _fallocate() -> Any:
    """fallocate(2) of Linux, which Python lacks; None elsewhere."""
    try:
        import ctypes

        call = ctypes.CDLL(None).fallocate64
    except (ImportError, OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return call


def merged_down(runs: Sequence[T], memory: int, merge: Callable[[Sequence[T]], T]) -> Sequence[T]:
    """As few runs as that much memory can merge at once. Neighbours are merged with each other, so that what is equal keeps
    its order."""
    fan_in = max(2, min(_MAX_FAN_IN, memory // _MIN_BLOCK))
    while len(runs) > fan_in:
        groups = [runs[start : start + fan_in] for start in range(0, len(runs), fan_in)]
        runs = [merge(group) if len(group) > 1 else group[0] for group in groups]
    return runs


def share_of(memory: int, runs: Sequence[T]) -> int:
    """How many bytes of each run are loaded at a time."""
    return max(_MIN_BLOCK, min(_MAX_BLOCK, memory // max(1, len(runs))))


def spill_directory(chosen: str | None) -> str:
    """`chosen`, else TMPDIR, else /tmp, as sort(1) has it."""
    return chosen or os.environ.get("TMPDIR") or "/tmp"
