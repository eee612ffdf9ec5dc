"""Every second of a thread is on one account."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etlcli.core import effort
from etlcli.core.effort import BUCKETS, Account, Clock, Effort


class Hands:
    """The hands of the clock, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(effort, "perf_counter", lambda: self.now)

    def move(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    return Hands(monkeypatch)


def test_a_step_that_pulls_from_another_is_charged_for_its_own_work_only(hands: Hands) -> None:
    clock, upper, lower, sink = Clock(), Account(), Account(), Account()

    def source() -> Iterator[int]:
        for number in range(3):
            hands.move(1)
            yield number
        hands.move(0.25)

    def stage(items: Iterator[int]) -> Iterator[int]:
        for number in items:
            hands.move(10)
            yield number

    with clock.during(sink):
        for _ in clock.timed(lower, stage(clock.timed(upper, source()))):
            hands.move(100)
    hands.move(1000)
    assert (upper.seconds, lower.seconds, sink.seconds) == (3.25, 30, 300)


def test_an_error_leaves_the_clock_with_whom_it_was(hands: Hands) -> None:
    clock, outer, inner = Clock(), Account(), Account()

    def fails() -> Iterator[int]:
        hands.move(5)
        raise ValueError
        yield

    with clock.during(outer):
        with pytest.raises(ValueError):
            next(clock.timed(inner, fails()))
        hands.move(2)
    assert (outer.seconds, inner.seconds) == (2, 5)


def test_what_goes_on_now_is_seen(hands: Hands) -> None:
    clock = Clock()
    step = Effort(clock)
    clock.turn_to(step.waiting_for("output"))
    hands.move(7)
    assert step.as_dict()["blocked"] == {"output": 7}
    assert step.as_dict()["seconds"] == 0


def test_batches_are_dealt_into_buckets_by_their_upper_ends() -> None:
    step = Effort()
    for seconds in (0.0, BUCKETS[0], BUCKETS[0] * 1.01, BUCKETS[-1], BUCKETS[-1] * 2):
        step.took(seconds)
    assert [at for at, count in enumerate(step.buckets) for _ in range(count)] == [
        0, 0, 1, len(BUCKETS) - 1, len(BUCKETS),
    ]  # fmt: skip


def test_it_goes_on_where_it_was() -> None:
    step, other = Effort(), Effort()
    step.at_work.seconds, step.bytes_in, step.bytes_out = 1.5, 10, 20
    step.waiting_for("command").seconds = 3.0
    step.cache_hits = 4
    step.took(0.3)
    other.restore(step.as_dict())
    assert other.as_dict() == step.as_dict()
