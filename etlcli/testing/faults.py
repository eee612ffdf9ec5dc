"""Fault injection: what is on disk when a run dies, fails or is interrupted at any of its system calls.

An action is anything that can be called again and again. Each of these runs it with a fault at its first call of the ones
in CALLS, then at its second, and so on, until it gets through without meeting the fault; after each it yields what it
did, so that the caller can look at the disk:

    for what in kills(action):
        assert target.read_bytes() in (old, new), what

Only calls made through the `os` module are seen, which is how this project makes them.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from threading import get_ident
from typing import Any

from etlcli.errors import Interrupted

CALLS = ("open", "write", "pwrite", "pread", "fsync", "fchmod", "ftruncate", "rename", "link", "unlink")
_MOST = 4000
_NOT_THERE = 3
"""What a fork exits with that has not met its fault."""


def kills(action: Callable[[], object], calls: tuple[str, ...] = CALLS, *, step: int = 1) -> Iterator[str]:
    """The process dies by SIGKILL right before, or right after, a call. The action runs in a fork. With a `step` only that
    many calls are passed over from one death to the next: a sample."""
    for place in _places(step=step):
        fate = _fate(action, place, calls)
        if fate == _NOT_THERE:
            return
        # A call that raises has no moment after it: then the action has gone through.
        yield f"killed {place}" if fate == -signal.SIGKILL else f"went through, since call {place.number} raised"


def dies(action: Callable[[], object], call: int, calls: tuple[str, ...] = CALLS) -> bool:
    """Whether the process that runs the action dies: by SIGKILL, before that call of it, if it makes so many."""
    return _fate(action, _Place(call, "before"), calls) == -signal.SIGKILL


def _fate(action: Callable[[], object], place: _Place, calls: tuple[str, ...]) -> int:
    """How a fork ends that runs the action."""
    pid = os.fork()
    if not pid:
        _die_in(action, place, calls)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, _NOT_THERE, -signal.SIGKILL):
        raise AssertionError(f"the action failed by itself in a fork, status {status}; see its stderr")
    return status


def errors(
    action: Callable[[], object], code: int = errno.ENOSPC, calls: tuple[str, ...] = CALLS, *, step: int = 1
) -> Iterator[tuple[str, Exception | None]]:
    """A call fails with an OSError. Yields what the action raised, too: None where it could do without the call."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    for place in _places(("before",), step):
        with _faulty(place, fail, calls) as met:
            raised: Exception | None = None
            try:
                action()
            except Exception as error:
                raised = error
        if not met:
            return
        yield f"{errno.errorcode[code]} at {met[0]}, {place}", raised


def interrupts(action: Callable[[], object], calls: tuple[str, ...] = CALLS) -> Iterator[str]:
    """A signal comes right before, or right after, a call of this thread, and is raised there as `Interrupted`."""

    def stop() -> None:
        raise Interrupted(signal.SIGTERM)

    for place in _places():
        with _faulty(place, stop, calls, thread=get_ident()) as met:
            try:
                action()
            except Interrupted:
                pass
            else:
                if met:
                    raise AssertionError(f"the interrupt was swallowed at {met[0]}, {place}")
        if not met:
            return
        yield f"interrupted at {met[0]}, {place}"


class _Place:
    """The n-th call of those that are watched, before or after it."""

    def __init__(self, number: int, when: str) -> None:
        self.number = number
        self.when = when

    def __str__(self) -> str:
        return f"{self.when} call {self.number}"


def _places(when: tuple[str, ...] = ("before", "after"), step: int = 1) -> Iterator[_Place]:
    for number in range(1, _MOST, step):
        for each in when:
            yield _Place(number, each)
    raise AssertionError(f"the action makes more than {_MOST} calls")


@contextmanager
def _faulty(
    place: _Place, fault: Callable[[], None], calls: tuple[str, ...], thread: int | None = None
) -> Iterator[list[str]]:
    """The fault at that place; yields a list that names the call when it was met. Calls of any thread count, or only those
    of one."""
    met: list[str] = []
    seen = count(1)
    real = {name: getattr(os, name) for name in calls}

    def faulty(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            here = thread in (None, get_ident()) and next(seen) == place.number
            if here:
                met.append(name)
            if here and place.when == "before":
                fault()
            result = real[name](*args, **kwargs)
            if here and place.when == "after":
                fault()
            return result

        return call

    try:
        for name in calls:
            setattr(os, name, faulty(name))
        yield met
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def _die_in(action: Callable[[], object], place: _Place, calls: tuple[str, ...]) -> None:
    """In the fork: never returns."""
    status = 70
    try:
        with _faulty(place, lambda: os.kill(os.getpid(), signal.SIGKILL), calls) as met:
            action()
        status = 0 if met else _NOT_THERE
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
