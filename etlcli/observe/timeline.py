"""How a run's counts grew, in memory that does not grow with the run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from etlcli.observe.status import Status

FIRST_INTERVAL = 0.25
MOST = 600
"""Samples that are kept."""


class Sample(NamedTuple):
    """What a Status said, in all since the run began; `queued` at the moment."""

    at: float
    """Seconds since 1970."""
    records: int
    bytes: int
    queued: int
    rejected: int
    sent: dict[str, int]
    """By step."""


class Timeline:
    """Samples, oldest first. When they are more than MOST, every second one is dropped and the next are to come half as
    often: `interval` says how many seconds apart."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.interval = FIRST_INTERVAL

    def add(self, status: Status) -> None:
        self.samples.append(
            Sample(
                status.now,
                status.received,
                status.read,
                status.queued,
                status.rejected,
                {step.id: step.sent for step in status.steps},
            )
        )
        if len(self.samples) > MOST:
            del self.samples[1::2]
            self.interval *= 2

    @property
    def begun(self) -> float:
        return self.samples[0].at

    @property
    def seconds(self) -> float:
        """From the first sample to the last."""
        return max(0.0, self.samples[-1].at - self.begun)

    def steps(self) -> list[str]:
        """All that there were, also in a configuration that the run had before."""
        return list(dict.fromkeys(step for sample in self.samples for step in sample.sent))

    def at(self, seconds: list[float], value: Callable[[Sample], int]) -> list[float]:
        """The value at each of these moments after the first sample, ascending; between two samples on a straight line."""
        found: list[float] = []
        pairs = pairwise(self.samples)
        before = after = self.samples[0]
        for moment in seconds:
            while after.at - self.begun < moment and (pair := next(pairs, None)):
                before, after = pair
            width = after.at - before.at
            share = min(1.0, max(0.0, (self.begun + moment - before.at) / width)) if width > 0 else 1.0
            found.append(value(before) + share * (value(after) - value(before)))
        return found

    def rates(self, edges: list[float], value: Callable[[Sample], int]) -> list[float]:
        """By how much the value grew a second, between each two of these moments."""
        values = self.at(edges, value)
        widths = [end - start for start, end in pairwise(edges)]
        return [
            max(0.0, after - before) / width
            for (before, after), width in zip(pairwise(values), widths, strict=True)
        ]  # fmt: skip
