"""Atomic files: all of the new content under the name, or what was there before.

The steps are those of any durable store: a temporary file in the same directory, write, fsync, rename, fsync of the
directory. A run that fails or is interrupted removes its temporary file; one that is killed cannot, so the next run to the
same target does (a lock on the file tells a dead run's from a live one's).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from etlcli.core.files import Output
from etlcli.errors import CannotCreateError, EtlError, InputOutputError, TryLaterError, UsageError
from etlcli.io.identity import whole_lines_end
from etlcli.io.inputs import is_url
from etlcli.io.masking import masked

_SUFFIX = ".etl-tmp"
Position = dict[str, Any]
"""What is known of a file at a checkpoint, as JSON can say it."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STRETCH = 8 << 20


class WriteBehind:
    """Has the system write a file to the disk while it still grows, so that fsync, which alone promises anything, finds
    little left to do. The advice is the one PostgreSQL falls back to where there is no sync_file_range: what is asked to
    leave the cache is written first, and what was just written stays in it."""

    def __init__(self, end: int = 0) -> None:
        """`end`: where the file ends now."""
        self._begun = self._end = end

    def grew(self, fd: int, size: int) -> None:
        """The file has become longer by so many bytes."""
        self._end += size
        if self._end - self._begun >= _STRETCH and hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(fd, self._begun, self._end - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self._end


class AtomicFile(Output):
    """`path` is replaced at `commit` (mode and, where allowed, owner of an old file are kept); through a symbolic link the
    link's target is. With `exclusive` the name must be free, now and at `commit`. With `append` the content follows that of
    the old file, which stays untouched until then, and must not have changed in between.

    Raises CannotCreateError when the directory or the file cannot be made, InputOutputError when the disk is full,
    TryLaterError when another run changed the file that was to be appended to.
    """

    def __init__(
        self, path: str, *, exclusive: bool = False, append: bool = False, resources: ExitStack | None = None
    ) -> None:
        """`resources` abort it: from before there is anything to abort, so that no signal comes in between."""
        self.path = path
        self._target = os.path.realpath(path)
        self._exclusive = exclusive
        self._directory = os.path.dirname(self._target)
        self._old: tuple[int, int, int] | None = None
        self._append = append
        self._durable = False
        self._temporary = ""
        self._made: list[str] = []
        self._fd = -1
        self._behind = WriteBehind()
        self.last_byte = b""
        """Of the old content, when appending."""
        if resources:
            resources.callback(self.abort)
        self._start()

    def _start(self) -> None:
        path = self.path
        if self._exclusive and os.path.lexists(path):
            raise _exists(path)
        try:
            make_directories(self._directory, self._made)
            identity(self._target)  # a name that no file can have is found here, not at the end
            sweep(self._target)
            self._create_temporary()
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError) and error.errno in _FULL:
                raise io_error(error, path) from error
            if isinstance(error, OSError):
                raise CannotCreateError(f"cannot create {path}: {error.strerror}", where=path) from error
            raise
        try:
            if self._append:
                self._copy_old()
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError):
                raise io_error(error, path) from error
            raise

    def write(self, block: bytes) -> None:
        self._durable = False
        try:
            self._write(block)
        except OSError as error:
            raise io_error(error, self.path) from error

    def _write(self, block: bytes) -> None:
        write_all(self._fd, block)
        self._behind.grew(self._fd, len(block))

    def flush(self) -> None:
        try:
            self._take_mode()
            os.fsync(self._fd)
        except OSError as error:
            raise io_error(error, self.path) from error
        self._durable = True

    def commit(self) -> None:
        if not self._durable:
            self.flush()
        try:
            if self._exclusive:
                self._link()
            elif self._append:
                self._rename_unchanged()
            else:
                os.rename(self._temporary, self._target)
            make_durable(self._directory, self._made)
        except FileExistsError:
            raise _exists(self.path) from None
        except OSError as error:
            raise io_error(error, self.path) from error
        self._temporary, self._made = "", []
        os.close(self._fd)
        self._fd = -1

    def _link(self) -> None:
        """Fails where a rename would replace a file that came in between."""
        os.link(self._temporary, self._target)
        os.unlink(self._temporary)

    def abort(self) -> None:
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary)
            self._temporary = ""
        with suppress(OSError):  # another run may have come to use one
            while self._made:
                os.rmdir(self._made.pop())
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _create_temporary(self) -> None:
        """A hidden file in the target's directory, at most 255 bytes of name, locked as a sign that its run is alive. Its
        name is known before it is there, so that a signal at any moment leaves nothing behind."""
        while True:
            self._temporary = self._temporary_path()
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if os.fstat(self._fd).st_nlink:
                return
            os.close(self._fd)  # another run's sweep came between the two calls
            self._fd = -1

    def _temporary_path(self) -> str:
        return hidden(self._target, f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}")

    def _copy_old(self) -> None:
        if not os.path.exists(self._target):
            return
        with open(self._target, "rb") as old:
            self._old = _identity_of(os.fstat(old.fileno()))
            while block := old.read(1 << 20):
                self._write(block)
                self.last_byte = block[-1:]

    def _rename_unchanged(self) -> None:
        """Renames if the old file is still the one that was copied. Runs that append take turns here."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            if identity(self._target) != self._old:
                raise TryLaterError(
                    f"{self.path} was changed by another run while this one was appending to it",
                    where=self.path,
                    hint="run it again; nothing was published",
                )
            os.rename(self._temporary, self._target)
        finally:
            os.close(directory)

    def _take_mode(self) -> None:
        try:
            old = os.stat(self._target)
        except FileNotFoundError:
            os.fchmod(self._fd, 0o666 & ~_umask())
            return
        with suppress(PermissionError):
            os.fchown(self._fd, old.st_uid, old.st_gid)
        os.fchmod(self._fd, stat.S_IMODE(old.st_mode))


class AppendFile:
    """A file of lines to which whole blocks are added, each durable when `append` returns. Made, with its directory, at the
    first of them. A block that cannot be written in full is taken back, and a last line that an earlier crash cut short
    is ended first, so that every line stands alone. Several processes may append to one file. None of this holds of a
    device or a FIFO; who opens a FIFO waits for its reader.

    Raises CannotCreateError when the file cannot be made, InputOutputError when it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._special = os.path.exists(path) and not os.path.isfile(path)
        at = path
        try:
            while at and not identity(at):
                at = os.path.dirname(at)
        except OSError as error:  # below a file, or a name that no file can have
            raise CannotCreateError(f"cannot write {path}: {error.strerror}", where=path) from error
        if not os.access(at or ".", os.W_OK) or os.path.isdir(path):
            raise CannotCreateError(f"cannot write {path}", where=path, hint="it, or its directory, may not be written")

    def append(self, block: bytes) -> None:
        if self._fd < 0:
            self._open()
        try:
            with _alone(self._fd):
                end = os.fstat(self._fd).st_size  # 0 of a special file
                try:
                    if end and os.pread(self._fd, 1, end - 1) != b"\n":
                        block = b"\n" + block
                    write_all(self._fd, block)
                    if not self._special:
                        os.fsync(self._fd)
                except OSError:
                    if not self._special:
                        os.ftruncate(self._fd, end)
                    raise
        except OSError as error:
            raise io_error(error, self.path) from error

    def position(self) -> Position:
        """Where its last whole line ends: everything before is durable, and somebody may be in the middle of another."""
        if self._special:
            return {"size": 0}
        try:
            fd = os.dup(self._fd) if self._fd >= 0 else os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return {"size": 0}
        except PermissionError:  # to read it
            return {"size": os.path.getsize(self.path)}
        except OSError as error:
            raise io_error(error, self.path) from error
        try:
            return {"size": whole_lines_end(fd, os.fstat(fd).st_size)}
        except OSError as error:
            raise io_error(error, self.path) from error
        finally:
            os.close(fd)

    def cut_back(self, position: Position, keep: Callable[[bytes], bool]) -> None:
        """Removes the lines behind a position, but those to `keep`: of others, who append to the file too. A file that is
        shorter has taken the place of the one that was, and all of it came later; one that is longer may have, so that the
        position is within somebody's line."""
        size = os.path.getsize(self.path) if os.path.exists(self.path) else 0
        start = position["size"] if size >= position["size"] else 0
        if size == start:
            return
        self._open()
        try:
            with _alone(self._fd), open(self.path, "r+b") as file:
                start = whole_lines_end(self._fd, start)
                file.seek(start)
                kept = [line for line in file if keep(line)]
                file.seek(start)
                file.writelines(kept)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise io_error(error, self.path) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _open(self) -> None:
        try:
            if self._special:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                return
            directory, made = os.path.dirname(os.path.realpath(self.path)), list[str]()
            make_directories(directory, made)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            make_durable(directory, made)
        except OSError as error:
            raise CannotCreateError(f"cannot open {self.path}: {error.strerror}", where=self.path) from error


@contextmanager
def _alone(fd: int) -> Iterator[None]:
    """Others who want the file for themselves wait."""
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


class SpecialFile(Output):
    """A device, FIFO or socket that exists: written as it is, since a rename would put a plain file in its place."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CannotCreateError(f"cannot open {path}: {error.strerror}", where=path) from error

    def write(self, block: bytes) -> None:
        try:
            write_all(self._fd, block)
        except OSError as error:
            raise io_error(error, self.path) from error

    def commit(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def keep_apart(output: str | None, source: str) -> None:
    """Raises UsageError when the output would take the place of the file that it is made from."""
    if output is not None and os.path.realpath(output) == os.path.realpath(source):
        raise UsageError(f"the output would replace {source}", hint="name another file with -o")


def open_output(
    path: str,
    *,
    exclusive: bool = False,
    append: bool = False,
    resources: ExitStack | None = None,
    kind: Callable[..., AtomicFile] | None = None,
) -> Output:
    """An atomic file (made by `kind`), or the special file that is already there; aborted with the `resources`. Raises
    UsageError for a URL."""
    if is_url(path):
        raise UsageError(f"cannot write to {masked(path)}", hint="write to a file, and send that")
    with suppress(OSError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CannotCreateError(f"{path} is a directory", where=path, hint="name a file in it")
        if not stat.S_ISREG(mode):
            special = SpecialFile(path)
            if resources:
                resources.callback(special.abort)
            return special
    return (kind or AtomicFile)(path, exclusive=exclusive, append=append, resources=resources)


def write_all(fd: int, block: bytes) -> None:
    """`os.write` may take less than it is given."""
    written = os.write(fd, block)
    while written < len(block):
        written += os.write(fd, memoryview(block)[written:])


def io_error(error: OSError, path: str) -> EtlError:
    """A failed write as an error with the path, and what to do about the usual one."""
    hint = "free some space or write elsewhere; nothing was published" if error.errno in _FULL else ""
    return InputOutputError(f"cannot write {path}: {error.strerror}", where=path, hint=hint)


def fsync_directory(path: str) -> None:
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(path: str, made: list[str], mode: int = 0o777) -> None:
    """Makes a directory, and those above it, where they are missing. `made` has each as soon as it is there."""
    at, missing = os.path.realpath(path), list[str]()
    while not os.path.isdir(at):
        missing.append(at)
        at = os.path.dirname(at)
    while missing:
        with suppress(FileExistsError):  # another run was faster; if it is a file, the next call says so
            os.mkdir(missing[-1], 0o777 if len(missing) > 1 else mode)
            made.append(missing[-1])
        missing.pop()


def make_durable(directory: str, made: Iterable[str]) -> None:
    """The names in a directory, and those of the directories that were made for it."""
    for above in map(os.path.dirname, made):
        with suppress(PermissionError):  # to read it
            fsync_directory(above)
    fsync_directory(directory)


def hidden(target: str, end: str) -> str:
    """The path of a hidden file beside the target."""
    directory, name = os.path.split(target)
    return os.path.join(directory, f".{os.fsdecode(os.fsencode(name)[:200])}.{end}")


def sweep(target: str) -> None:
    """Remove what killed runs to the same target left."""
    directory, start = os.path.split(hidden(target, ""))
    with os.scandir(directory) as entries:
        stale = [entry.path for entry in entries if entry.name.startswith(start) and entry.name.endswith(_SUFFIX)]
    for path in stale:
        with suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(fd)


def identity(path: str) -> tuple[int, int, int] | None:
    """Inode, size and time of the last change; None for no file."""
    try:
        return _identity_of(os.stat(path))
    except FileNotFoundError:
        return None


def _identity_of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _exists(path: str) -> CannotCreateError:
    return CannotCreateError(f"{path} exists already", where=path, hint="use --mode replace or append, or another name")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
