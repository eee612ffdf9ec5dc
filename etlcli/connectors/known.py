"""Files that were read before, and which of them one is that was opened now, whatever it is called by now.

A file is the one of its name if it was there the last time and begins as it did. It is one that had another name if it has
its inode; or if it has its first 64 KiB, which no other file has, and its name has gone to another: a rotated file was
copied then. Of an empty file nothing is known.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from etlcli.errors import CheckpointError
from etlcli.io.identity import Identity, change
from etlcli.io.inputs import STDIN, located

KEPT_RUNS = 2
"""For so many runs a file that is not there is still known."""


class Entry(NamedTuple):
    """What is known of an input that was read, or begun."""

    path: str
    """From the recipe's directory."""
    identity: Identity | None
    """None of what is no regular file."""
    offset: int = 0
    line: int = 1
    rows: int = 0
    digest: str = ""
    limit: int | None = None
    """How far it was to be read; None: to its end."""
    begun: bool = False
    """Whether the run that read it ended within it."""
    age: int = 0
    """Runs since the one that found it."""

    @property
    def is_recent(self) -> bool:
        """Whether the last run that finished has found it, or this one."""
        return self.age <= 1

    @property
    def is_unfinished(self) -> bool:
        return self.begun and self.offset != self.limit


class KnownFiles:
    """Their entries, in order."""

    def __init__(self, base_dir: str, entries: Iterable[Entry] = ()) -> None:
        self._base_dir = base_dir
        self._entries: dict[Entry, None] = {}
        self._alike: dict[int | str, list[Entry]] = defaultdict(list)
        """By inode, path and head."""
        for entry in entries:
            self.add(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, entry: Entry) -> None:
        if entry.identity and entry.identity.size:
            self._entries[entry] = None
            for key in (entry.identity.inode, entry.path, entry.identity.head):
                self._alike[key].append(entry)

    def remove(self, entry: Entry) -> None:
        del self._entries[entry]

    def find(self, opened: Entry, fd: int) -> Entry | None:
        """Which of them an input is that was opened. Raises CheckpointError when it was cut short."""
        assert opened.identity
        keys = (opened.identity.inode, opened.path, opened.identity.head)
        alike = (entry for key in keys for entry in self._alike.get(key, ()) if entry in self._entries)
        return next((entry for entry in alike if self._is(entry, opened.path, fd)), None)

    def named(self, path: str) -> list[Entry]:
        """Those that were there by this name the last time."""
        alike = (entry for entry in self._alike.get(path, ()) if entry in self._entries)
        return [entry for entry in alike if entry.path == path and entry.is_recent]

    def is_at(self, entry: Entry, path: str) -> bool:
        """Whether this file has that name now."""
        full = located(path, self._base_dir)
        if full != STDIN and not os.path.isfile(full):  # a pipe must not be opened in vain
            return False
        with suppress(OSError):
            fd = os.dup(0) if full == STDIN else os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return stat.S_ISREG(os.fstat(fd).st_mode) and self._is(entry, path, fd)
            finally:
                os.close(fd)
        return False

    def _is(self, entry: Entry, path: str, fd: int) -> bool:
        assert entry.identity
        what = change(entry.identity, fd)
        if entry.path == path and entry.is_recent:
            if what == "cut short":
                raise another(path, "was cut short")
            return what != "replaced"
        if what is None and entry.identity.inode == os.fstat(fd).st_ino:
            return True
        moved = entry.path == path or not self.is_at(entry, entry.path)
        return what in (None, "changed") and entry.identity.is_telling and moved


def another(path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what} since it was read",
        where=path,
        hint="the result would be of two different inputs; --fresh begins again: from the start, or of an incremental run "
        "where the last finished one was",
    )
