"""Sorted runs on disk.

All runs of a stage lie one after another in one file that has no name: it cannot be left behind, whatever ends the
process, and it costs one descriptor however many runs there are. A run is immutable once it is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from etlcli.errors import InputOutputError


class Run(NamedTuple):
    """A stretch of the spill file: whole lines, in order."""

    start: int
    size: int


class SpillFile:
    """Raises InputOutputError naming the directory when it is missing or full. Close it; then its space is free again."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = self._open()
        self._end = 0

    def write_run(self, blocks: Iterable[bytes]) -> Run:
        start = self._end
        for block in blocks:
            written = 0
            while written < len(block):
                try:
                    written += os.pwrite(self._fd, memoryview(block)[written:], self._end + written)
                except OSError as error:
                    raise self._error(error) from error
            self._end += len(block)
        return Run(start, self._end - start)

    def read_run(self, run: Run, size: int) -> Iterator[bytes]:
        """The run's bytes in blocks of whole lines, `size` bytes or one line, whichever is more."""
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

    def close(self) -> None:
        os.close(self._fd)

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


def spill_directory(chosen: str | None) -> str:
    """`chosen`, else TMPDIR, else /tmp, as sort(1) has it."""
    return chosen or os.environ.get("TMPDIR") or "/tmp"
