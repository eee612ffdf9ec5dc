"""Queues before outlets: bounded, in order, and quick to say what went wrong."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from etlcli.core.batch import Batch
from etlcli.engine.outlet import Queue

BATCHES = [Batch.of_lines([b'{"n":%d}' % number]) for number in range(50)]
SIZE = BATCHES[-1].size


class Slow:
    """An outlet that takes a batch when it is let."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.taken: list[bytes] = []
        self.finished = False
        self.let = threading.Semaphore(0)
        self._fail_at = fail_at

    def put(self, batch: Batch) -> None:
        self.let.acquire()
        if len(self.taken) == self._fail_at:
            raise OSError("the other side is gone")
        self.taken += batch.lines

    def finish(self) -> None:
        self.finished = True

    def settle(self) -> None:
        """Nothing is on its way in it."""


def queue(outlet: Any, limit: int) -> Queue:
    return Queue(outlet, limit)


def test_no_more_waits_than_the_limit() -> None:
    outlet = Slow()
    waiting = queue(outlet, 5 * SIZE)
    put = 0

    def fill() -> None:
        nonlocal put
        for batch in BATCHES:
            waiting.put(batch)
            put += 1
        waiting.finish()

    filler = threading.Thread(target=fill)
    filler.start()
    for taken in range(len(BATCHES)):
        filler.join(0.002)
        # What is being taken counts as waiting until it has arrived.
        assert put - taken <= 6
        outlet.let.release()
    filler.join(10)
    waiting.settle()
    assert outlet.taken == [batch.lines[0] for batch in BATCHES]
    assert outlet.finished
    waiting.stop()


def test_what_goes_wrong_is_raised() -> None:
    outlet = Slow(fail_at=1)
    waiting = queue(outlet, 1)
    for _ in range(9):
        outlet.let.release()
    with pytest.raises(OSError, match="gone"):
        for batch in BATCHES:
            waiting.put(batch)
    with pytest.raises(OSError, match="gone"):
        waiting.settle()
    waiting.stop()
    assert outlet.taken == BATCHES[0].lines


def test_settled_means_arrived() -> None:
    outlet = Slow()
    waiting = queue(outlet, 1 << 20)
    waiting.settle()  # nothing was put
    for batch in BATCHES[:3]:
        waiting.put(batch)
        outlet.let.release()
    waiting.settle()
    assert len(outlet.taken) == 3
    waiting.stop()
    waiting.stop()


def test_a_batch_larger_than_the_limit_goes_alone() -> None:
    outlet = Slow()
    waiting = queue(outlet, 1)
    waiting.put(BATCHES[0])
    outlet.let.release()
    waiting.put(BATCHES[1])
    outlet.let.release()
    waiting.settle()
    assert len(outlet.taken) == 2
    waiting.stop()
