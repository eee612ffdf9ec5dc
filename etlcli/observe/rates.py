"""How fast a run is, from two looks at it."""

from __future__ import annotations

from collections import deque

from etlcli.observe.status import Status

_SPAN = 10.0
"""Seconds over which a rate is taken."""


class Rates:
    """`add` a look now and then; the rates are those of the last ten seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int, int]] = deque()

    def add(self, status: Status) -> None:
        self._looks.append((status.now, status.received, status.read))
        while len(self._looks) > 2 and status.now - self._looks[1][0] > _SPAN:
            self._looks.popleft()

    @property
    def records(self) -> float:
        """Records a second."""
        return self._rate(1)

    @property
    def bytes(self) -> float:
        """Bytes of input a second."""
        return self._rate(2)

    def left(self, status: Status) -> float | None:
        """Seconds until all is read, if it goes on so; None where that is not known."""
        if status.size is None or not self.bytes:
            return None
        return max(0, status.size - status.read) / self.bytes

    def _rate(self, at: int) -> float:
        if len(self._looks) < 2 or self._looks[-1][0] <= self._looks[0][0]:
            return 0.0
        first, last = self._looks[0], self._looks[-1]
        return (last[at] - first[at]) / (last[0] - first[0])
