"""What happens to a rejected record, and how many there may be."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from etlcli.core.batch import Origin, Reject
from etlcli.core.ledger import Ledger
from etlcli.core.policy import ErrorBudget, Policy
from etlcli.errors import REJECT_CODES, FindingsError


def rejects(count: int, code: str = "bad_json") -> list[Reject]:
    return [Reject(code, [{"message": f"bad {number}"}], b"{", Origin("in", number + 1, 0)) for number in range(count)]


class Handled(list[Any]):
    def __call__(self, step: str, found: Sequence[Reject]) -> None:
        self.append((step, list(found)))


def policy(then: str, budget: str | int | None = None, received: int = 1000) -> tuple[Policy, Handled, Ledger]:
    ledger, handled = Ledger(), Handled()
    ledger.open("check").received = received
    return Policy(then, handled, ErrorBudget(budget), ledger), handled, ledger


def test_fail_stops_at_the_first() -> None:
    made, handled, ledger = policy("fail")
    with pytest.raises(FindingsError, match="bad_json: bad 0") as caught:
        made.reject(ledger.steps[0], rejects(3))
    assert caught.value.where == "in:1 (step check)"
    assert caught.value.exit_code == 1
    assert not handled


@pytest.mark.parametrize(("then", "noted"), [("fail", 1), ("skip", 300), ("quarantine", 300), ("report", 300)])
def test_whoever_watches_is_told_of_every_reject(then: str, noted: int) -> None:
    ledger, told = Ledger(), Handled()
    made = Policy(then, Handled(), ErrorBudget(), ledger, told)
    with suppress(FindingsError):
        made.reject(ledger.open("check"), rejects(300))
    assert sum(len(part) for _, part in told) == noted


@pytest.mark.parametrize("then", ["skip", "quarantine", "report"])
def test_the_others_handle_and_count(then: str) -> None:
    made, handled, ledger = policy(then)
    made.reject(ledger.steps[0], [])
    assert not handled
    mixed = [*rejects(300), *rejects(2, "schema")]
    made.reject(ledger.steps[0], mixed)
    assert [reject for step, part in handled for reject in part if step == "check"] == mixed
    assert max(len(part) for _, part in handled) <= 256
    assert ledger.steps[0].rejected == {"bad_json": 300, "schema": 2}


def test_a_reject_that_could_not_be_handled_is_not_counted() -> None:
    """Quarantine is on disk before the record counts as handled."""
    ledger = Ledger()
    count = ledger.open("check")

    def full(step: str, found: Sequence[Reject]) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        Policy("quarantine", full, ErrorBudget(), ledger).reject(count, rejects(3))
    assert not count.rejected


@pytest.mark.parametrize(
    ("budget", "found", "received", "over"),
    [
        (None, 1000, 1000, False),
        (3, 3, 1000, False),
        ("3", 4, 1000, True),
        (0, 1, 1000, True),
        ("0", 0, 1000, False),
        ("10%", 100, 1000, False),
        ("10%", 101, 1000, True),
        ("0.1%", 1, 1000, False),
        ("0.1 %", 2, 1000, True),
        ("0%", 1, 1000, True),
        ("0%", 0, 0, False),
        ("100%", 1000, 1000, False),
    ],
)
def test_the_budget(budget: Any, found: int, received: int, over: bool) -> None:
    ledger = Ledger()
    count = ledger.open("read")
    count.received = received + 5
    count.discarded["blank"] = 5  # blank lines are no records
    count.rejected["bad_json"] = found
    made = ErrorBudget(budget)
    if over:
        with pytest.raises(FindingsError, match=f"{found} of {received} records rejected"):
            made.check(ledger, finished=True)
    else:
        made.check(ledger, finished=True)


def test_a_count_is_judged_at_once_and_a_percentage_at_the_end() -> None:
    made, _, ledger = policy("skip", budget=2, received=1)
    made.reject(ledger.steps[0], rejects(2))
    with pytest.raises(FindingsError):
        made.reject(ledger.steps[0], rejects(1))
    made, _, ledger = policy("skip", budget="1%", received=1)
    made.reject(ledger.steps[0], rejects(50))


def test_findings_that_are_only_reported_have_no_budget() -> None:
    made, handled, ledger = policy("report", budget=0)
    made.reject(ledger.steps[0], rejects(9))
    assert len(handled) == 1


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "101%", "%", "1e3", "0,1%", "9" * 19, "nan%"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of records or a percentage"):
        ErrorBudget(text)


def test_the_codes_are_a_closed_set() -> None:
    assert len(set(REJECT_CODES)) == len(REJECT_CODES) == 16
