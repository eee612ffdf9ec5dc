"""When what was met so far may be taken for all there is."""

from __future__ import annotations

_MOST = 4096
"""The longest while."""


class Settling:
    """Once nothing new has come for so many looks; twice as many as before, each time that something came after that."""

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

    @property
    def is_over(self) -> bool:
        return self._calm >= self._patience
