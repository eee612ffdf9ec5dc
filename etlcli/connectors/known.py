"""Files that were read before, and which of them one is that was opened now, whatever it is called by now.

A file is the one of its name if the last run has found that, too, and it begins as that did. Else it must also go on where
that ended, and be the one that was renamed, by its inode (those are used again), or that was copied, if it begins with as
much as 64 KiB of it and its name has gone to another. Of an empty file nothing is known.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from etlcli.io.identity import Identity, change, has_its_end
from etlcli.io.inputs import STDIN, located

_KEPT_RUNS = 2
"""For so many runs a file that none has found is still known: it may be renamed while one looks for it."""


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
    """Whether a run ended within it, or is within it."""
    age: int = 0
    """Runs that have finished since one has found it: it was this one, or the last, or an older one."""

    @property
    def is_unfinished(self) -> bool:
        return self.begun and self.offset != self.limit


class KnownFiles:
    """Entries of regular files, in the order in which they were added. Their paths are below `base_dir`."""

    def __init__(self, base_dir: str, entries: Iterable[Entry] = ()) -> None:
        self._base_dir = base_dir
        self._entries: dict[Entry, None] = {}
        self._alike: dict[tuple[str, str | int], list[Entry]] = defaultdict(list)
        for entry in entries:
            self.add(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._entries

    def add(self, entry: Entry) -> None:
        if entry.identity and entry.identity.size:
            self._entries[entry] = None
            for key in _keys(entry.path, entry.identity):
                self._alike[key].append(entry)

    def remove(self, entry: Entry) -> None:
        del self._entries[entry]

    def find(self, path: str, identity: Identity, fd: int) -> Entry | None:
        """The entry of a file that is open."""
        alike = (entry for key in _keys(path, identity) for entry in self._those(key))
        return next((entry for entry in alike if self._is(entry, path, fd)), None)

    def named(self, path: str) -> list[Entry]:
        """Those that the last run has found by this name."""
        return [entry for entry in self._those(("path", path)) if entry.age <= 1]

    def is_at(self, entry: Entry, path: str) -> bool:
        """Whether a file has this name now."""
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

    def older(self, paths: Sequence[str]) -> KnownFiles:
        """What is known at the beginning of another run, which reads these `paths`: of what is there, whether among them or
        not, and for a while of what may turn up again."""
        here, by_inode = set(paths), defaultdict(list)
        for path in paths:
            with suppress(OSError):
                by_inode[os.stat(located(path, self._base_dir)).st_ino].append(path)
        older = KnownFiles(self._base_dir)
        for entry in self:
            assert entry.identity
            left_out = entry.path not in here and os.path.exists(located(entry.path, self._base_dir))
            may_turn_up = entry.age < _KEPT_RUNS
            if left_out or may_turn_up or any(self.is_at(entry, path) for path in by_inode[entry.identity.inode]):
                older.add(entry._replace(age=entry.age + (not left_out)))
        return older

    def _those(self, key: tuple[str, str | int]) -> Iterator[Entry]:
        return (entry for entry in self._alike.get(key, ()) if entry in self._entries)

    def _is(self, entry: Entry, path: str, fd: int) -> bool:
        assert entry.identity
        what = change(entry.identity, fd)
        if what not in (None, "changed"):
            return False
        if entry.path == path and entry.age <= 1:
            return True
        if not has_its_end(entry.identity, fd):
            return False
        if what is None and entry.identity.inode == os.fstat(fd).st_ino:
            return True
        return entry.identity.is_telling and (entry.path == path or not self.is_at(entry, entry.path))


def _keys(path: str, identity: Identity) -> list[tuple[str, str | int]]:
    """By what an entry is looked for, the surest first."""
    heads = [("head", identity.head)] if identity.is_telling else []
    return [("inode", identity.inode), ("path", path), *heads]
