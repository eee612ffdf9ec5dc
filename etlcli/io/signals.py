"""Signals that wait for the end of something short, and an end that does not wait."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
"""Those that end a run."""
_CLEANING_UP = 5.0
"""Seconds: far more than it takes."""


def end_commands() -> None:
    """External commands run in sessions of their own: no signal for this process reaches them."""
    if command := sys.modules.get("etlcli.io.command"):
        command.stop_all()


def end_soon(at_once: Callable[[], object]) -> None:
    """What must end cleans up and says why; where that does not come to an end, since nobody reads standard error or a
    server does not answer, it is ended `at_once`."""
    signal.signal(signal.SIGALRM, lambda number, frame: at_once())
    signal.setitimer(signal.ITIMER_REAL, _CLEANING_UP)


@contextmanager
def held(*, lapse: bool = False) -> Iterator[None]:
    """What the program's handlers would do about a signal, such as raise, they do afterwards. If it may `lapse`, not so
    where all went well. Unlike with a blocked signal it does not matter which thread gets it, and a process that is started
    meanwhile is as it would be; a fork that never leaves this forgets what came."""
    if threading.current_thread() is not threading.main_thread():  # the one in which handlers run
        yield
        return
    came: list[int] = []
    handlers = {}
    for number in ENDING:
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
        if lapse:
            came.clear()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)
