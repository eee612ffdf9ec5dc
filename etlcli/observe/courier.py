"""Sends what observers have to say to somebody who may be slow, or not there: it costs a warning and a bounded time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

_WORDS = {
    "ConnectionError": "no connection",
    "RetryError": "the server keeps failing",
    "_RefusedError": "refused, or nobody there",
}
PATIENCE = 5.0
"""Seconds that the end of a run waits for what is on its way."""


def hush(*libraries: str) -> None:
    """Their log lines would go to stderr, and show URLs with all that is in them; what matters of them is said here."""
    for name in libraries:
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


class Courier:
    """Makes calls one after another, in a thread of its own that ends with the process at the latest."""

    def __init__(self, what: str, log: Callable[..., None], where: str, patience: float = PATIENCE) -> None:
        """`what` is sent, to `where`, which has no credentials in it: both are said in warnings."""
        self._what = what
        self._log = log
        self._where = where
        self._patience = patience
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._failures: dict[str, None] = {}
        self._thread: Thread | None = None

    def send(self, call: Callable[[], None]) -> None:
        self._calls.put(call)
        if self._thread is None:
            self._thread = Thread(target=self._work, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Waits for what was sent, as long as patience lasts, and says what went wrong."""
        if self._thread is None:
            return
        self._calls.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._failures[f"no answer in {self._patience:g} s"] = None
        for reason in list(self._failures):
            self._log("warning", "not_sent", what=self._what, to=self._where, reason=reason)
        self._thread = None

    def _work(self) -> None:
        while call := self._calls.get():
            try:
                call()
            except Exception as error:
                self._failures[_told(error)] = None


def _told(error: Exception) -> str:
    """What kind of error it is. Its text is not shown: libraries put URLs there, with all that is in them."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(status, int):
        return f"the server says {status}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return _WORDS.get(type(error).__name__, type(error).__name__)
