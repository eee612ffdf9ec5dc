"""Signals that end a run wait until what is on its way has arrived.

While a part of the input is being worked on, the first of them is only noted; at the next barrier, when a checkpoint has
been taken, its own handler is called. Between two parts, as when the run waits for input, it is called at once, and so is
that of a second signal, but for SIGHUP: a terminal that goes away may send several. A run that does not keep order is
between two parts only where nothing was done ahead of its turn.

A run may never come to a barrier: who reads its output stands still, or a command does not answer. So it is not waited for
longer than a while; the run ends then as by a second signal, and another goes on from the checkpoint before.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from etlcli.io.signals import ENDING

_LONGEST_WAIT = 30.0
"""Seconds. systemd kills after 90 (TimeoutStopSec). Who kills earlier loses the way from the last checkpoint."""


class Drain:
    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._deferring = False
        self._at_barrier: Callable[[], bool]
        self._pending: Callable[[], object] | None = None
        self._alarm: Any = signal.SIG_DFL
        self.has_waited = False
        """Whether the signal could wait no longer."""

    @property
    def asked(self) -> bool:
        """Whether a signal waits."""
        return self._pending is not None

    def deliver(self) -> None:
        """Calls the handler of the signal that waits, which raises."""
        pending = self._pending
        if pending:
            self._forget()
            pending()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What is done in it is not to be interrupted."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextmanager
    def installed(self, at_barrier: Callable[[], bool]) -> Iterator[None]:
        """`at_barrier`: whether a checkpoint could be taken, where nothing is being worked on."""
        self._at_barrier = at_barrier
        for number in ENDING:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._handle)
        try:
            yield
        finally:
            if self._pending:
                self._forget()
            self._restore()

    def _restore(self, *but: signal.Signals) -> None:
        for number, handler in self._handlers.items():
            if number not in but and signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        handler = self._handlers[signal.Signals(number)]
        if not self._deferring and self._at_barrier():
            handler(number, frame)
            return
        if self._pending is None:
            self._pending = lambda: handler(number, None)
            self._restore(signal.SIGHUP)
            self._limit(self._pending)

    def _limit(self, end: Callable[[], object]) -> None:
        def over(number: int, frame: FrameType | None) -> None:
            self.has_waited = True
            self._forget()
            end()

        self._alarm = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, _LONGEST_WAIT)

    def _forget(self) -> None:
        self._pending = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._alarm)
