"""Which file it was: how a run that goes on finds out that its input is another one by now.

A file is known by its first bytes, its size and the time of its last change. Its name and its inode may be others: files
are rotated and copied. What was only appended to is still the same file.
"""

from __future__ import annotations

import os
from typing import NamedTuple

_HEAD = 64 << 10
_TAIL = 4 << 10
_BLOCK = 1 << 16


class Identity(NamedTuple):
    size: int
    mtime_ns: int
    head_size: int
    head: str
    """Digest of the first `head_size` bytes."""
    inode: int
    tail: str = ""
    """Digest of the last 4 KiB of its `size`; "" where it is not known."""

    @property
    def is_telling(self) -> bool:
        """Whether so much of its beginning is known that no other file has the same."""
        return self.head_size == _HEAD


def identity_of(fd: int) -> Identity:
    status = os.fstat(fd)
    size = min(status.st_size, _HEAD)
    head, tail = _digest(fd, 0, size), _digest(fd, max(0, status.st_size - _TAIL), status.st_size)
    return Identity(status.st_size, status.st_mtime_ns, size, head, status.st_ino, tail)


def change(before: Identity, fd: int) -> str | None:
    """What has happened to a file since, as a participle; None if nothing, or if it has only grown."""
    status = os.fstat(fd)
    if status.st_size < before.head_size or _digest(fd, 0, before.head_size) != before.head:
        return "replaced"
    if status.st_size < before.size:
        return "cut short"
    return "changed" if status.st_size == before.size and status.st_mtime_ns != before.mtime_ns else None


def has_its_end(before: Identity, fd: int) -> bool:
    """Whether a file that begins as another did has the same where that ended: two may have a long beginning in common."""
    return not before.tail or _digest(fd, max(0, before.size - _TAIL), before.size) == before.tail


def whole_lines_end(fd: int, size: int) -> int:
    """Where the last whole line of the first `size` bytes ends."""
    while size:
        start = max(0, size - _BLOCK)
        newline = os.pread(fd, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0


def _digest(fd: int, start: int, end: int) -> str:
    from hashlib import blake2b  # slow to import, and for checkpoints only

    digest = blake2b(digest_size=16)
    at = start
    while at < end and (block := os.pread(fd, end - at, at)):
        digest.update(block)
        at += len(block)
    return digest.hexdigest()
