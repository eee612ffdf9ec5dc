"""Paths, URLs and stdin as byte streams."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from fcntl import F_GETFL, fcntl
from glob import glob, has_magic
from select import POLLIN, poll
from typing import Protocol

from etlcli.errors import InputMissingError, InputOutputError, UsageError
from etlcli.io.handshake import upstream_unfinished
from etlcli.io.masking import masked

STDIN = "-"
PIPE_SIZE = 1 << 20
_F_SETPIPE_SZ = 1031
_LONGEST_WAIT = 3600.0
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Input(Protocol):
    """What records are read from."""

    path: str
    """For origins and messages."""
    name: str
    """Whose suffix tells format and compression."""
    media_type: str
    """What the other side says it is, if it does."""

    def read(self, size: int) -> bytes: ...
    def wait(self, seconds: float) -> bool: ...
    def close(self) -> None: ...


class InputStream:
    """A file descriptor to read from. On a pipe `read` returns what is there rather than wait for more, so that records
    flow as they come, and whole blocks under load."""

    def __init__(self, fd: int, path: str) -> None:
        self.path = self.name = path
        self.media_type = ""
        self.fd = fd
        mode = os.fstat(fd).st_mode
        self._pipe = stat.S_ISFIFO(mode)
        self._poll: poll | None = None
        if self._pipe:
            grow_pipe(fd)
            self._poll = poll()
            self._poll.register(fd, POLLIN)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end. Raises InputOutputError when the disk fails, or when the upstream `etl`
        on this pipe went away before it had finished."""
        try:
            block = os.read(self.fd, size)
            if self._poll is not None and block:
                block = self._read_ready(block, size)
        except OSError as error:
            raise InputOutputError(f"cannot read {self.path}: {error.strerror}", where=self.path) from error
        if not block and self._pipe and upstream_unfinished(self.fd):
            raise InputOutputError(
                "the etl command upstream in this pipe failed or was killed before it had finished",
                where=self.path,
                hint="its records are incomplete, so nothing was published; see its own message",
            )
        return block

    def wait(self, seconds: float) -> bool:
        """Whether there is something to read, or the end, within that time. Of a file there always is."""
        waiting = poll()
        waiting.register(self.fd, POLLIN)
        return bool(waiting.poll(min(max(seconds, 0.0), _LONGEST_WAIT) * 1000))

    def _read_ready(self, block: bytes, size: int) -> bytes:
        assert self._poll is not None
        blocks, total = [block], len(block)
        while total < size:
            ready = self._poll.poll(0)
            if not ready or not ready[0][1] & POLLIN:
                break
            more = os.read(self.fd, size - total)
            if not more:
                break
            blocks.append(more)
            total += len(more)
        return b"".join(blocks)

    def close(self) -> None:
        if self.fd > 0:
            os.close(self.fd)
            self.fd = -1


class Prefixed:
    """A stream whose first bytes were already read, to look at them."""

    def __init__(self, prefix: bytes, stream: Input) -> None:
        self._prefix = prefix
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if self._prefix:
            block, self._prefix = self._prefix[:size], self._prefix[size:]
            return block
        return self._stream.read(size)


class Watched:
    """A stream whose bytes are `counted`, and of which it is known when somebody is `waiting` for it."""

    def __init__(
        self, stream: Input, waiting: Callable[[], AbstractContextManager[None]], counted: Callable[[int], None]
    ) -> None:
        self.path, self.name, self.media_type = stream.path, stream.name, stream.media_type
        self.close = stream.close
        self._stream = stream
        self._waiting = waiting
        self._counted = counted

    def read(self, size: int) -> bytes:
        with self._waiting():
            block = self._stream.read(size)
        self._counted(len(block))
        return block

    def wait(self, seconds: float) -> bool:
        with self._waiting():
            return self._stream.wait(seconds)


class Limited:
    """The first `limit` bytes of a stream."""

    def __init__(self, stream: Input, limit: int) -> None:
        self.path, self.name, self.media_type = stream.path, stream.name, stream.media_type
        self._stream = stream
        self._left = limit

    def read(self, size: int) -> bytes:
        block = self._stream.read(min(size, self._left)) if self._left else b""
        self._left -= len(block)
        return block

    def wait(self, seconds: float) -> bool:
        return self._stream.wait(seconds)

    def close(self) -> None:
        self._stream.close()


def grow_pipe(fd: int) -> None:
    """Ask the kernel for a larger pipe: fewer, larger reads and writes. It may refuse, which costs only speed."""
    with suppress(OSError):
        fcntl(fd, _F_SETPIPE_SZ, PIPE_SIZE)


def is_url(path: str) -> bool:
    """A file whose name looks like one can be written with ./ before it."""
    return _SCHEME.match(path) is not None


def located(path: str, base_dir: str) -> str:
    """The path as seen from here; stdin and URLs are the same from everywhere."""
    return path if path == STDIN or is_url(path) else os.path.join(base_dir, path)


def open_input(path: str) -> Input:
    """Raises what `open_file` does, and ServiceUnreachableError."""
    if not is_url(path):
        return open_file(path)
    from etlcli.io.remote import open_url

    return open_url(path)


def open_file(path: str) -> InputStream:
    """Raises InputMissingError when the path is not there, may not be read, or is a directory, UsageError when it is what
    standard output appends to."""
    if path == STDIN:
        if fcntl(0, F_GETFL) & os.O_ACCMODE == os.O_WRONLY:  # the stand-in of a closed descriptor
            raise InputMissingError("standard input is closed", hint="name a file, or pipe records in")
        return InputStream(0, "<stdin>")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputMissingError(f"cannot open {masked(path)}: {error.strerror}", where=masked(path)) from error
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        os.close(fd)
        raise _is_directory(path)
    if stat.S_ISREG(status.st_mode) and status.st_size and os.path.samestat(status, os.fstat(1)):
        os.close(fd)
        raise UsageError(
            f"{path} is also standard output: it would be fed what is written to it",
            where=path,
            hint="name it with -o, which replaces it at the end",
        )
    return InputStream(fd, _as_text(path))


def _as_text(path: str) -> str:
    """A path for origins and messages: bytes that are no UTF-8 are spelled out, since those go into JSON."""
    return os.fsencode(path).decode(errors="backslashreplace")


def check_input(path: str) -> None:
    """Raises InputMissingError for what `open_input` would refuse, without opening it: a FIFO can be opened but once. Of a
    URL only the spelling is checked: servers are asked when it is read, and once."""
    if path == STDIN:
        return
    if is_url(path):
        from etlcli.io.remote import check_url

        check_url(path)
        return
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputMissingError(f"cannot open {path}: {error.strerror}", where=path) from error
    if stat.S_ISDIR(mode):
        raise _is_directory(path)
    if not os.access(path, os.R_OK):
        raise InputMissingError(f"cannot open {path}: Permission denied", where=path)


def size_of(path: str) -> int | None:
    """Bytes of a regular file; None of anything else."""
    with suppress(OSError):
        status = os.fstat(0) if path == STDIN else os.stat(path)
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    return None


def read_whole(path: str, limit: int) -> bytes:
    """A small local file's content (recipes and schemas never come from elsewhere), at most `limit` bytes and one more,
    which tells that there is more. Raises InputMissingError."""
    stream = open_file(path)
    try:
        blocks, size = [], 0
        while size <= limit and (block := stream.read(limit + 1 - size)):
            blocks.append(block)
            size += len(block)
        return b"".join(blocks)
    finally:
        stream.close()


def _is_directory(path: str) -> InputMissingError:
    return InputMissingError(
        f"{path} is a directory", where=path, hint=f"name its files, for example '{path}/*.ndjson'"
    )


def expand(paths: tuple[str, ...], base_dir: str) -> list[str]:
    """Paths with their globs expanded, each glob's matches in name order. A name that exists as it stands is no glob, and
    neither is a URL.
    Raises InputMissingError for a glob that matches nothing."""
    found: list[str] = []
    for path in paths:
        full = located(path, base_dir)
        if path == STDIN or is_url(path) or not has_magic(full) or os.path.lexists(full):
            found.append(full)
            continue
        matches = sorted(match for match in glob(full, recursive=True) if not os.path.isdir(match))
        if not matches:
            raise InputMissingError(f"no file matches {full}", where=full)
        found += matches
    return found
