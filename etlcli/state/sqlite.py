"""Tables of keys and JSON values in SQLite.

A cache file is one SQLite database in the layout of sqlitedict, so that `SqliteDict(path, encode=orjson.dumps,
decode=orjson.loads)` shows what is in it. A table beside it says which version of the format this is and what the keys are
of: keys of one field must not be taken for those of another. Rows lie in the order they were put, since REPLACE gives a
row a new rowid: the first are those that were not used for longest.

A run is one transaction. `BEGIN IMMEDIATE` takes the lock, so runs on one file take turns; who waits too long is told to
try later. Until `commit` nothing of the run can be seen, and a crash leaves the file as it was. Once a run has committed,
changes go to a write-ahead log beside the file, so that readers and runs do not block each other. The commit is synced
(FULL), and when the last process closes the file the log is gone: one file to copy.

A run that stops before its commit may leave a new file behind, with nothing in it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

import msgspec

from etlcli.errors import CannotCreateError, DataError, EtlError, InputOutputError, TryLaterError, UsageError
from etlcli.io.files import AtomicFile, sweep
from etlcli.io.spill import spill_directory

VERSION = 1
LOCK_SECONDS = 5.0
"""How long a run waits for another to be done with the file."""
MAGIC = b"SQLite format 3\0"
_CREATE = 'CREATE TABLE "unnamed" (key TEXT PRIMARY KEY, value BLOB)'
_CREATE_ABOUT = "CREATE TABLE etl_cache (name TEXT PRIMARY KEY, value TEXT)"
_IN = "key IN (SELECT value FROM json_each(?))"
_encode = msgspec.json.encode


class Table:
    """Keys and their values. Raises what `explained` makes of SQLite's errors."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.path = path
        self._connection = connection
        # The keys of a batch share their value, and so do their rows.
        self._decode: Callable[[Any], Any] = lru_cache(1024)(partial(decode_value, path=path))

    def get(self, keys: Collection[str]) -> dict[str, Any]:
        """The values of those keys that are there."""
        with explained(self.path):
            rows = self._connection.execute(f'SELECT key, value FROM "unnamed" WHERE {_IN}', _listed(keys))
            return {key: self._decode(value) for key, value in rows}

    def put(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Each takes the place of an entry with its key, and becomes the newest."""
        with explained(self.path):
            self._connection.executemany(
                'REPLACE INTO "unnamed" VALUES (?, ?)', ((key, _encode(value)) for key, value in entries)
            )

    def delete(self, keys: Collection[str]) -> None:
        with explained(self.path):
            self._connection.execute(f'DELETE FROM "unnamed" WHERE {_IN}', _listed(keys))

    def oldest(self, count: int) -> list[str]:
        with explained(self.path):
            rows = self._connection.execute('SELECT key FROM "unnamed" ORDER BY rowid LIMIT ?', (count,))
            return [key for (key,) in rows]

    def items(self) -> Iterator[tuple[str, Any]]:
        """From the oldest to the newest."""
        with explained(self.path):
            for key, value in self._connection.execute('SELECT key, value FROM "unnamed" ORDER BY rowid'):
                yield key, self._decode(value)

    def __len__(self) -> int:
        with explained(self.path):
            count: int = self._connection.execute('SELECT count(*) FROM "unnamed"').fetchone()[0]
        return count

    def close(self) -> None:
        self._connection.close()


def temporary_table() -> Table:
    """In a file of the spill directory that has no name, so that nothing can be left behind."""
    directory = spill_directory(None)
    path = os.path.join(directory, f"etl-spill-{os.urandom(8).hex()}")
    with explained(directory):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=OFF")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute(_CREATE)
            connection.execute("BEGIN")
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)
    return Table(connection, directory)


class CacheFile:
    """A cache file, locked for one run; made if it is not there. `about` says what its keys are of.

    Raises TryLaterError when another run holds the file, DataError when it is damaged, of another format or no cache at
    all, UsageError when its keys are of something else, CannotCreateError when it may not be written, InputOutputError
    when the disk is full. A file that is refused stays as it is.
    """

    def __init__(self, path: str, about: dict[str, Any] | None) -> None:
        self.path = path
        if about is not None and not os.path.lexists(self.path):
            _create(self.path, about)
        elif about is not None:
            sweep(os.path.realpath(self.path))  # what a run left that died when it had just made the file
        check_cache(self.path, about)
        with explained(self.path):
            self._connection = connection = _connect(path)
            try:
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("BEGIN IMMEDIATE")
            except BaseException:
                connection.close()
                raise
        self.table = Table(connection, self.path)

    def settle(self) -> None:
        """Before the last entries are put: they go to the disk now, but for a few pages, so that a full one is found out
        before the commit."""
        with explained(self.path):
            self._connection.execute("PRAGMA cache_size=10")

    def commit(self) -> None:
        with explained(self.path):
            self._connection.execute("COMMIT")
        with suppress(sqlite3.Error):  # from now on; a new file, and one that sqlitedict had, is in the other mode
            self._connection.execute("PRAGMA journal_mode=WAL")

    def close(self) -> None:
        """What was not committed is forgotten. Does nothing a second time."""
        self._connection.close()
        # What a full disk stopped SQLite leaves to the next reader to undo.
        if os.path.exists(self.path + "-journal"):
            with suppress(EtlError):
                check_cache(self.path)


def check_cache(path: str, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the keys of a cache file are of, if it is one that can be used; raises as CacheFile does. Changes nothing."""
    _check_bytes(path)
    with explained(path):
        connection = _connect(path)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"etl_cache", "unnamed"} <= tables:
                raise DataError(f"{path} is an SQLite database, but no cache of etl", where=path, hint=_OTHER_FILE)
            facts = dict(connection.execute("SELECT name, value FROM etl_cache"))
        finally:
            connection.close()
    if facts.get("version") != str(VERSION):
        raise DataError(
            f"{path} is a cache of format {facts.get('version')}, and this etl knows only format {VERSION}",
            where=path,
            hint=_OTHER_FILE,
        )
    made_for: dict[str, Any] = decode_value(facts.get("about"), path)
    if about is not None and made_for != about:
        raise UsageError(
            f"{path} is a cache for {_encode(made_for).decode()}, not for {_encode(about).decode()}",
            where=path,
            hint=_OTHER_FILE,
        )
    return made_for


def _connect(path: str) -> sqlite3.Connection:
    """To the file of that name, whatever the name means to SQLite (:memory:)."""
    return sqlite3.connect(os.path.abspath(path), timeout=LOCK_SECONDS, isolation_level=None)


_OTHER_FILE = "it was left as it is; name another file for the cache, or move this one away"


def _check_bytes(path: str) -> None:
    """Without SQLite, which makes a database of an empty file, and of one that is cut short finds out late."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CannotCreateError(f"{path} is no regular file", where=path, hint="name a file for the cache")
        with open(path, "rb") as file:
            head = file.read(100)
    except OSError as error:
        raise CannotCreateError(f"cannot open the cache {path}: {error.strerror}", where=path) from error
    if len(head) < 100 or not head.startswith(MAGIC):
        raise DataError(f"{path} is no cache of etl: it is no SQLite database", where=path, hint=_OTHER_FILE)
    if os.path.exists(path + "-journal") or os.path.exists(path + "-wal"):
        return  # a run is at work, or died: SQLite makes it good
    page, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
    if status.st_size < (1 << 16 if page == 1 else page) * pages:
        raise DataError(f"the cache {path} is cut short", where=path, hint=_OTHER_FILE)


def _create(path: str, about: dict[str, Any]) -> None:
    """A cache with nothing in it, all at once: there is no moment when the file is there and not good."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(_CREATE)
    connection.execute(_CREATE_ABOUT)
    facts = {"version": str(VERSION), "about": _encode(about).decode()}
    connection.executemany("INSERT INTO etl_cache VALUES (?, ?)", facts.items())
    content = connection.serialize()
    connection.close()
    try:
        file = AtomicFile(path, exclusive=True)
        try:
            file.write(content)
            file.commit()
        finally:
            file.abort()
    except CannotCreateError:
        if not os.path.exists(path):  # otherwise another run has just made it
            raise


def decode_value(value: bytes | str | None, path: str) -> Any:
    """A stored value. Raises DataError for what is no JSON; nothing is ever unpickled."""
    try:
        return msgspec.json.decode(value or b"")
    except (msgspec.MsgspecError, TypeError, ValueError):
        raise refused(value, path) from None


def refused(value: Any, path: str) -> DataError:
    """Why a stored value is not loaded."""
    pickled = isinstance(value, bytes) and value[:1] == b"\x80"
    what = "a pickled value, which is never loaded" if pickled else "a value that is no JSON"
    return DataError(f"{path} holds {what}", where=path, hint=_OTHER_FILE)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """SQLite's errors as ours, with the path."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(error, path) from error


def _explain(error: sqlite3.Error, path: str) -> EtlError:
    name = getattr(error, "sqlite_errorname", "")
    for starts, make in _MEANINGS.items():
        if name.startswith(starts):
            return make(error, path)
    return DataError(f"the cache {path} is damaged: {error}", where=path, hint=_OTHER_FILE)


_MEANINGS: dict[tuple[str, ...], Callable[[sqlite3.Error, str], EtlError]] = {
    ("SQLITE_BUSY", "SQLITE_LOCKED"): lambda error, path: TryLaterError(
        f"{path} is locked: another run is using it", where=path, hint="wait until it is done, then run this again"
    ),
    ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH"): lambda error, path: CannotCreateError(
        f"cannot write {path}: {error}", where=path, hint="it, or its directory, may not be written"
    ),
    ("SQLITE_FULL", "SQLITE_IOERR"): lambda error, path: InputOutputError(
        f"cannot write {path}: {error}", where=path, hint="free some space, or choose another place"
    ),
}


def _listed(keys: Collection[str]) -> tuple[str]:
    return (_encode(sorted(keys)).decode(),)
