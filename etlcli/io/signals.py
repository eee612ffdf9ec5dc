"""Signals that wait for the end of something short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[None]:
    """What the program's handlers would do about a signal, such as raise, they do afterwards. Unlike with a blocked signal
    a process that is started meanwhile is as it would be; a fork that never leaves this forgets what came."""
    if threading.current_thread() is not threading.main_thread():  # the one in which handlers run
        yield
        return
    came: list[int] = []
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)
