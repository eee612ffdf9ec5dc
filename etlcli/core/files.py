"""Where a step writes beside the records that it passes on. These are the contracts; `io` has what meets them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol


class Output:
    """Somewhere to write bytes, published by `commit`. `abort` forgets what was not published; after a commit, or a second
    time, it does nothing."""

    path: str

    def write(self, block: bytes) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Make what was written durable, still unpublished."""

    def commit(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError


class Run(NamedTuple):
    """A stretch of a spill file: whole lines."""

    start: int
    size: int


class Spill(Protocol):
    """A file that only grows, for what a step holds and memory does not."""

    def write_run(self, blocks: Iterable[bytes]) -> Run: ...

    def read_run(self, run: Run, size: int) -> Iterator[bytes]:
        """The run's bytes in blocks of whole lines, `size` bytes or one line, whichever is more."""

    def take_run(self, run: Run, size: int) -> Iterator[bytes]:
        """The same for the last time: unless another process may need them, what they took on the disk is free again, where
        the file system can free it, when the next block is asked for."""


class Files(Protocol):
    """A step's files. They are closed, and forgotten where they were not published, however the run ends.

    Where it `keeps` them, another process may go on with the run from a checkpoint. It finds each file as it was then, when
    it asks for it as the first process did: so a snapshot need only say what the file holds, and anything that does not
    fit into a snapshot lies in a spill file. Where it does not, a run that spills nothing has no file.
    """

    keeps: bool

    def claim(self, path: str) -> None:
        """Nobody else in the run may write this file. Raises UsageError when somebody does."""

    def output(self, path: str, *, exclusive: bool = False, append: bool = False) -> Output:
        """The file at `path`, as it will be published: a new one (`exclusive`: only if there is none), or the old content
        with what is added to it (`append`)."""

    def spill(self, directory: str | None = None, name: str = "") -> Spill:
        """The step's spill file of that name, in that directory, or where spill files lie."""
