"""When what was met so far may be taken for all there is."""

from __future__ import annotations

_MOST = 4096


class Settling:
    """Once nothing new has come for a while; for twice as long as before, each time that something did all the same."""

    __slots__ = ("_calm", "_patience")

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._calm = 0

    def met(self, *, new: bool) -> None:
        """Whether there was something new the last time that somebody looked."""
        if not new:
            self._calm += 1
            return
        if self._calm >= self._patience:
            self._patience = min(2 * self._patience, _MOST)
        self._calm = 0

    def is_over(self, least: int = 0) -> bool:
        """Nothing new the last few times, `least` at least."""
        return self._calm >= self._patience and self._calm >= least
