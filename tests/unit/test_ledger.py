"""The counts behind "nothing is lost silently"."""

from __future__ import annotations

import pytest

from etlcli.core.ledger import Ledger
from etlcli.errors import LedgerError


def two_steps() -> Ledger:
    """read takes 10 lines (2 blank, 1 rejected) and sends 7, of which sort drops 3."""
    ledger = Ledger()
    read, sort = ledger.open("read"), ledger.open("sort")
    read.received, read.sent = 10, 7
    read.discarded["blank"] += 2
    read.rejected["bad_json"] += 1
    sort.received, sort.sent = 7, 4
    sort.discarded["duplicate"] += 2
    sort.absorbed["grouped"] += 1
    return ledger


def test_a_ledger_that_balances() -> None:
    ledger = two_steps()
    ledger.check()
    assert (ledger.received, ledger.rejected(), ledger.discarded()) == (8, 1, 2)
    assert ledger.steps[0].as_dict() == {
        "step": "read",
        "in": 10,
        "made": 0,
        "out": 7,
        "discarded": {"blank": 2},
        "rejected": {"bad_json": 1},
        "absorbed": {},
        "healed": {},
        "retries": 0,
    }
    Ledger().check()
    assert Ledger().received == 0


@pytest.mark.parametrize(("counter", "change"), [("received", 1), ("received", -1), ("sent", 1), ("sent", -1)])
@pytest.mark.parametrize("step", [0, 1])
def test_one_record_more_or_less_is_found(step: int, counter: str, change: int) -> None:
    ledger = two_steps()
    count = ledger.steps[step]
    setattr(count, counter, getattr(count, counter) + change)
    with pytest.raises(LedgerError, match="1 records unaccounted for") as caught:
        ledger.check()
    assert caught.value.where == count.step
    assert caught.value.exit_code == 70


def test_records_that_live_on_in_others() -> None:
    """Five records became two: the two are made, and as good as any that came in."""
    ledger = Ledger()
    read, batch = ledger.open("read"), ledger.open("batch")
    read.received = read.sent = batch.received = 5
    batch.absorbed["batched"] += 5
    batch.made = batch.sent = 2
    ledger.check()
    assert batch.as_dict()["made"] == 2
    batch.made += 1
    with pytest.raises(LedgerError, match="1 records unaccounted for"):
        ledger.check()


@pytest.mark.parametrize("kind", ["discarded", "rejected", "absorbed"])
def test_one_reason_too_many_is_found(kind: str) -> None:
    ledger = two_steps()
    getattr(ledger.steps[1], kind)["x"] += 1
    with pytest.raises(LedgerError) as caught:
        ledger.check()
    assert caught.value.where == "sort"


def test_a_record_lost_between_steps_is_found() -> None:
    ledger = two_steps()
    ledger.steps[1].received -= 1
    ledger.steps[1].sent -= 1
    with pytest.raises(LedgerError, match="read put out 7 records, sort took in 6") as caught:
        ledger.check()
    assert caught.value.where == "sort"


def test_a_run_that_ends_before_its_time_balances_too() -> None:
    ledger = two_steps()
    ledger.open("write")
    ledger.steps[0].received += 5  # not all of a batch was looked at
    ledger.steps[0].sent += 2  # the next step never saw a batch
    ledger.abandon()
    ledger.check()
    abandoned = [step.discarded["abandoned"] for step in ledger.steps]
    assert abandoned == [3, 2, 4]
    before = [step.as_dict() for step in ledger.steps]
    ledger.abandon()
    assert [step.as_dict() for step in ledger.steps] == before
