"""A cache file as `etl cache` shows it: through sqlitedict, with a JSON decoder, reading only.

sqlitedict runs SQLite in a thread of its own and waits for its answer without end, also when that thread has died; so every
question has a time limit here. It is asked in pages, since it holds all of an answer in memory.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any

import orjson
import sqlitedict  # type: ignore[import-untyped]

from etlcli.errors import InputOutputError
from etlcli.state.sqlite import check_cache, explained, refused

_PATIENCE = 30.0
"""Seconds for one page of answers."""
_TICK = 0.05
_PAGE = 5000
_ITEMS = 'SELECT rowid, key, value FROM "unnamed" WHERE rowid > ? ORDER BY rowid LIMIT ?'


class Inspection:
    """Raises what `check_cache` does, and InputOutputError when there is no answer. `about` says what the keys are of."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.about = check_cache(path)
        logging.getLogger("sqlitedict").propagate = False
        logging.getLogger("sqlitedict").addHandler(logging.NullHandler())
        with explained(path), _limited(path):
            self._entries = sqlitedict.SqliteDict(
                path, flag="r", journal_mode=_journal_mode(path), encode=orjson.dumps, decode=self._decode,
                outer_stack=False,
            )  # fmt: skip

    def get(self, key: str) -> Any:
        """Raises KeyError."""
        with explained(self.path), _limited(self.path):
            return self._entries[key]

    def items(self) -> Iterator[tuple[str, Any]]:
        """From the least recently used to the most."""
        last = -1 << 62
        while True:
            with explained(self.path), _limited(self.path):
                rows = list(self._entries.conn.select(_ITEMS, (last, _PAGE)))
            for _, key, value in rows:
                yield key, self._decode(value)
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def _decode(self, value: Any) -> Any:
        try:
            return orjson.loads(value)
        except (orjson.JSONDecodeError, TypeError):
            raise refused(value, self.path) from None


@contextmanager
def _limited(path: str) -> Iterator[None]:
    """Asks every now and then whether sqlitedict's thread has died, and raises what it died of, or gives up in the end."""
    deadline = monotonic() + _PATIENCE
    deaths: list[BaseException | None] = []

    def look(signum: int, frame: FrameType | None) -> None:
        if deaths and deaths[0]:
            raise deaths[0]
        if monotonic() > deadline:
            raise InputOutputError(
                f"{path} gave no answer in {_PATIENCE:g} seconds", where=path, hint="its disk may be slow, or gone"
            )

    hook, handler = threading.excepthook, signal.signal(signal.SIGALRM, look)
    threading.excepthook = lambda args: deaths.append(args.exc_value)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        threading.excepthook = hook


def _journal_mode(path: str) -> str:
    """The mode the file is in: sqlitedict sets one when it opens a file, which must not change anything here."""
    with open(path, "rb") as file:
        return "WAL" if file.read(19)[18:] == b"\2" else "DELETE"
