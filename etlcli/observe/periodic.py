"""Something that is done every few seconds beside a run."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread


class Periodic:
    """Calls `call` at once and then every so many seconds, one call at a time, in a thread of its own that keeps no process
    alive."""

    def __init__(self, seconds: float, call: Callable[[], object]) -> None:
        self._seconds = seconds
        self._call = call
        self._over = Event()
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self, patience: float | None = None) -> bool:
        """No call begins any more. Whether none is going on when this returns, after `patience` seconds at most."""
        self._over.set()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._over.is_set():
            self._call()
            self._over.wait(self._seconds)
