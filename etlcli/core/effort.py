"""What a step's work takes: bytes, seconds, waiting.

A `Clock` divides the time of one thread among accounts, so that every second is somebody's and none is counted twice: steps
are generators that pull from one another, and a step's account is open only while its own code runs. Work that a worker
process did is added from its message.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

T = TypeVar("T")
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the buckets of the seconds a step takes for a batch; what took longer is in one more."""


class Account:
    """Seconds that were spent on something."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds


class Clock:
    """One thread's time. Before the first turn, and between turns, it is nobody's."""

    def __init__(self) -> None:
        self._nobody = Account()
        self._turn = self._nobody, 0.0, perf_counter()
        """Whose it is, what was on the account, and since when: in one object, so that other threads see them together."""

    def turn_to(self, account: Account) -> Account:
        """From now on time goes to this account. The one it went to before."""
        now, (before, seconds, since) = perf_counter(), self._turn
        before.seconds = seconds + now - since
        self._turn = account, account.seconds, now
        return before

    def seconds_of(self, account: Account) -> float:
        """What is on the account, the present turn included. Any thread may ask."""
        whose, seconds, since = self._turn
        return seconds + perf_counter() - since if whose is account else account.seconds

    def timed(self, account: Account, items: Iterable[T]) -> Iterator[T]:
        """The items; the time to make them goes to the account."""
        iterator = iter(items)
        while True:
            before = self.turn_to(account)
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.turn_to(before)
            yield item

    @contextmanager
    def during(self, account: Account) -> Iterator[None]:
        before = self.turn_to(account)
        try:
            yield
        finally:
            self.turn_to(before)

    def idle(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time to make them is nobody's."""
        return self.timed(self._nobody, items)


class Effort:
    """One step's. `clock` is that of the thread in which the step runs."""

    __slots__ = ("at_work", "blocked", "buckets", "bytes_in", "bytes_out", "cache_hits", "cache_misses", "clock")

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.at_work = Account()
        self.blocked: dict[str, Account] = {}
        """By what was waited for."""
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.bytes_in = 0
        self.bytes_out = 0
        self.cache_hits = 0
        self.cache_misses = 0

    def waiting_for(self, what: str) -> Account:
        return self.blocked.setdefault(what, Account())

    def spent(self) -> float:
        """Seconds at work so far."""
        return self.clock.seconds_of(self.at_work)

    def took(self, seconds: float) -> None:
        """A batch took so many seconds."""
        self.buckets[bisect_left(BUCKETS, seconds)] += 1

    def as_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.spent(),
            "blocked": {what: self.clock.seconds_of(account) for what, account in list(self.blocked.items())},
            "buckets": list(self.buckets),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "cache_hits": self.cache_hits,
            "cache_misses": self.cache_misses,
        }

    def restore(self, effort: dict[str, Any]) -> None:
        """That of an `as_dict`."""
        self.at_work.seconds = effort["seconds"]
        self.blocked = {what: Account(seconds) for what, seconds in effort["blocked"].items()}
        for name in ("buckets", "bytes_in", "bytes_out", "cache_hits", "cache_misses"):
            setattr(self, name, effort[name])
