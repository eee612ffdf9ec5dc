"""A table of somebody else's SQLite database, asked for rows by their keys and never changed.

SQLite compares more loosely than `core.keys` does (by the column's affinity and collation), so it is asked for a little too
much, and what is not the same key is left out here.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from etlcli.core.edit import encode
from etlcli.errors import DataError, EtlError, TryLaterError, UsageError, nearest

PATIENCE = 5.0
"""Seconds that another process may hold the database for."""


class Database:
    """One table. Raises UsageError when it, or a column, is not there, DataError for what is no database or is damaged,
    TryLaterError when it is locked."""

    def __init__(self, path: str, table: str | None) -> None:
        self.path = path
        # As a file, whatever its name means to SQLite, and not to be made or written.
        uri = f"file:{quote(os.path.abspath(os.fsencode(path)))}?mode=ro"
        with self._explained():
            self._connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE)
            self.table = self._chosen(table)
            self.columns = [row[1] for row in self._connection.execute(f"PRAGMA table_info({_quoted(self.table)})")]

    def rows(
        self, keys: Sequence[str], values: Iterable[Sequence[Any]], columns: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """The `columns` of the rows whose `keys` are among these values: of all such rows, and perhaps others."""
        parts = ", ".join(f"json_extract(value, '$[{place}]')" for place in range(len(keys)))
        sql = (
            f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(self.table)} "
            f"WHERE ({', '.join(map(_quoted, keys))}) IN (SELECT {parts} FROM json_each(?))"
        )
        with self._explained():
            return self._connection.execute(sql, (encode(list(values)).decode(),)).fetchall()

    def check_column(self, name: str) -> None:
        if name not in self.columns:
            raise UsageError(f"{self._place} has no column {name!r}", hint=nearest(name, self.columns))

    def close(self) -> None:
        self._connection.close()

    @property
    def _place(self) -> str:
        return f"{self.path}, table {self.table},"

    def _chosen(self, table: str | None) -> str:
        sql = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite^_%' ESCAPE '^'"
        names = [name for (name,) in self._connection.execute(sql)]
        if table in names or (table is None and len(names) == 1):
            return table or names[0]
        if table is None:
            raise UsageError(f"{self.path} has {len(names)} tables", hint=f"name one with --table: {', '.join(names)}")
        raise UsageError(f"{self.path} has no table {table!r}", hint=nearest(table, names))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: sqlite3.Error) -> EtlError:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return TryLaterError(f"{self.path} is locked: somebody is writing it", where=self.path)
        return DataError(f"cannot read the database {self.path}: {error}", where=self.path)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
