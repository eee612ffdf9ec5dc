"""Files that outlive the process which writes them, so that another can go on with them where a checkpoint was taken.

Both only ever grow, so that what a checkpoint needs of a file is how long it was: what came later is cut off. An output is
written under a hidden name beside its target, as every atomic file, but stays there when its process ends; spill files
have names. Who keeps the checkpoints removes them.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, suppress
from hashlib import blake2b

from etlcli.errors import CheckpointError, InputOutputError
from etlcli.io.files import AtomicFile, Position, WriteBehind, fsync_directory, hidden, identity, io_error, make_durable
from etlcli.io.spill import SpillFile

_FRESH = "--fresh (etl checkpoint reset) begins again from the start"


class KeptFile(AtomicFile):
    """An atomic file whose content so far stays when the process ends, once a checkpoint with its position counts (`keep`);
    before that it is removed as ever. `position` goes on with it, as it was then. Raises CheckpointError when that cannot
    be. Nobody else writes for the same `owner` at the same time, so that what it left can be taken away."""

    def __init__(
        self,
        path: str,
        *,
        exclusive: bool = False,
        append: bool = False,
        resources: ExitStack | None = None,
        owner: str,
        position: Position | None = None,
    ) -> None:
        self._owner = owner
        self._position_inode = position["inode"] if position else 0
        self._position = position
        self._kept = self._named = position is not None
        super().__init__(path, exclusive=exclusive, append=append, resources=resources)

    def position(self) -> Position:
        """Makes durable what was written, and tells how to go on from here."""
        try:
            os.fsync(self._fd)
            if not self._named:
                make_durable(self._directory, self._made)
                self._named = True
            status = os.fstat(self._fd)
        except OSError as error:
            raise io_error(error, self.path) from error
        return {
            "path": self.path,
            "target": self._target,
            "temporary": os.path.abspath(self._temporary),
            "inode": status.st_ino,
            "size": status.st_size,
            "exclusive": self._exclusive,
            "append": self._append,
            "old": self._old,
        }

    def keep(self, kept: bool = True) -> None:
        """Whether there is, or may be, a checkpoint with its position: then the file stays."""
        self._kept = kept

    def abort(self) -> None:
        if self._kept:
            self._temporary, self._made = "", []
        super().abort()

    def _start(self) -> None:
        if self._position is None:
            super()._start()
            return
        position = self._position
        self._target, self._directory = position["target"], os.path.dirname(position["target"])
        self._old = position["old"] and tuple(position["old"])
        self._temporary = position["temporary"]
        self._check_target()
        try:
            self._fd = _opened(self._temporary, position["size"])
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._behind = WriteBehind(os.lseek(self._fd, 0, os.SEEK_END))
        except OSError as error:
            raise io_error(error, self.path) from error

    def _check_target(self) -> None:
        """What was appended to, or must not be there, has to be so still: found now, not when everything is done."""
        published = os.path.exists(self._target) and os.stat(self._target).st_ino == self._position_inode
        if self._append and identity(self._target) != self._old and not published:
            raise CheckpointError(f"{self.path} was changed by somebody else meanwhile", where=self.path, hint=_FRESH)
        if self._exclusive and os.path.lexists(self._target) and not published:
            raise CheckpointError(f"{self.path} was made by somebody else meanwhile", where=self.path, hint=_FRESH)

    def _temporary_path(self) -> str:
        path = part_of(self._target, self._owner)
        with suppress(FileNotFoundError):
            os.unlink(path)
        return path

    def _link(self) -> None:
        with suppress(FileNotFoundError):
            if os.path.samefile(self._temporary, self._target):  # a run that died in between
                os.unlink(self._temporary)
                return
        super()._link()


def publish(position: Position) -> None:
    """Gives a complete output its name, unless the process that died had done so already."""
    path, temporary, target = position["path"], position["temporary"], position["target"]
    if os.path.lexists(temporary):
        file = KeptFile(path, exclusive=position["exclusive"], append=position["append"], owner="", position=position)
        try:
            file.commit()
        finally:
            file.abort()
        return
    if not os.path.exists(target) or os.stat(target).st_ino != position["inode"]:
        raise CheckpointError(
            f"{path}: neither the complete output nor its temporary file {temporary} is there",
            where=path,
            hint=f"somebody moved it away before the run could say that it was done; {_FRESH}",
        )
    fsync_directory(os.path.dirname(target))


def part_of(path: str, owner: str) -> str:
    """Where the owner's unpublished content for a path lies."""
    target = os.path.realpath(path)
    digest = blake2b(os.fsencode(f"{owner}\0{target}"), digest_size=8).hexdigest()
    return hidden(target, f"{digest}.etl-part")


class KeptSpill(SpillFile):
    """A spill file with a name, cut to `end` bytes."""

    def __init__(self, path: str, end: int = 0) -> None:
        self.path = path
        self._end_kept = end
        self._behind = WriteBehind(end)
        super().__init__(os.path.dirname(path))

    def sync(self) -> int:
        """Makes durable what was written, and tells where it ends."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._error(error) from error
        return self._end

    def _write(self, block: bytes) -> None:
        super()._write(block)
        self._behind.grew(self._fd, len(block))

    def _free(self, start: int, size: int) -> None:
        """Whoever goes on with the run reads them, so only the cache lets go of them."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._fd, start, size, os.POSIX_FADV_DONTNEED)

    def _open(self) -> int:
        try:
            if self._end_kept:
                fd = _opened(self.path, self._end_kept)
            else:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._error(error) from error
        self._end = self._end_kept
        return fd

    def _error(self, error: OSError) -> InputOutputError:
        return InputOutputError(
            f"cannot write {self.path}: {error.strerror}", where=self.path, hint="choose another checkpoint.dir"
        )


def _opened(path: str, size: int) -> int:
    """The file as it was when it had so many bytes. Raises CheckpointError when it is gone or shorter; else OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise CheckpointError(f"{path}, which the checkpoint needs, is gone", where=path, hint=_FRESH) from None
    try:
        if os.fstat(fd).st_size < size:
            raise CheckpointError(
                f"{path} has {os.fstat(fd).st_size} bytes, and {size} at the checkpoint", where=path, hint=_FRESH
            )
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd
