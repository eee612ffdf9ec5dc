"""What happens to a rejected record: one policy, the same for every stage.

The order is fixed: retry, then fallback, then `fail`, `skip` or `quarantine`. This module says what may be asked for and
holds the last part; `engine.recovery` does the first two. A rejected record never goes on as if nothing had happened.

    fail        the run stops at the first reject; with exit code 75 if all tries of what may heal were used up
    skip        counted and logged
    quarantine  written to a file, durably, before the record counts as handled
    report      every finding is shown and counted; the run ends with findings (`validate --check`)

`ErrorBudget` bounds what skip and quarantine may swallow. Over it the run fails, and nothing is published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice

from etlcli.core import params
from etlcli.core.batch import Reject
from etlcli.core.ledger import Ledger, StepCount
from etlcli.errors import FindingsError, TryLaterError

THEN = ("fail", "skip", "quarantine")
HEALABLE = frozenset({"command_failed", "timeout", "lookup_failed", "sink_refused", "hook_failed"})
"""Codes of rejects that another try may heal. The others say what is wrong with the record itself."""
_PART = 256
Handler = Callable[[str, Sequence[Reject]], None]
"""Takes a step's id and its rejects, and returns when they are handled."""


class Retry(params.Declared):
    """Tries of a record whose reject may heal, each with the record as it came."""

    attempts = params.integer(
        "Tries in all where another may help: a command, a lookup or a sink that failed.", default=1, minimum=1
    )
    backoff = params.backoff("Wait between tries: doubling from the first to the longest.", default="500ms..30s")
    jitter = params.flag("Wait a random part of each wait, so that many runs do not retry in step.")
    max_elapsed = params.duration("Longest time to spend on one record; no try begins after it.")


class ErrorBudget:
    """How many rejects a run may have: a count, or a percentage of the records read; unbounded without."""

    def __init__(self, text: str | int | None = None) -> None:
        """Takes `100`, `0.1%` or None. Raises ValueError for anything else."""
        self.text = None if text is None else str(text)
        self._count: int | None = None
        self._percent: float | None = None
        if self.text is None:
            return
        if re.fullmatch(r"\d{1,18}", self.text):
            self._count = int(self.text)
        elif (match := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", self.text)) and float(match[1]) <= 100:
            self._percent = float(match[1])
        else:
            raise ValueError(f"expected a number of records or a percentage such as 0.1%, not {self.text!r}")

    def check(self, ledger: Ledger, *, finished: bool) -> None:
        """Raises FindingsError when the rejects so far are over the budget. A percentage is of the whole input, so it
        is judged when the run has `finished` reading."""
        rejected = ledger.rejected()
        over = self._count is not None and rejected > self._count
        if finished and self._percent is not None:
            over = rejected * 100 > self._percent * ledger.received
        if over:
            raise FindingsError(
                f"{rejected} of {ledger.received} records rejected, more than the error budget of {self.text}",
                hint="nothing was published; look at the rejects, or raise --max-errors (errors.max in a recipe)",
            )


def _ignore(step: str, rejects: Sequence[Reject]) -> None:
    pass


class Policy:
    """Handles one step's rejects."""

    def __init__(
        self, then: str, handle: Handler, budget: ErrorBudget, ledger: Ledger, note: Handler = _ignore
    ) -> None:
        """`note` is told of every reject before anything becomes of it, also of the one that fails the run."""
        self.then = then
        self._handle = handle
        self._note = note
        self._budget = budget
        self._ledger = ledger

    def reject(self, count: StepCount, rejects: Sequence[Reject]) -> None:
        if rejects:
            with self._ledger.lock:
                self._handle_all(count, rejects)

    def _handle_all(self, count: StepCount, rejects: Sequence[Reject]) -> None:
        if self.then == "fail":
            first = rejects[0]
            self._note(count.step, rejects[:1])
            count.rejected[first.code] += 1
            # Somebody else kept failing, and may do better later.
            failure = TryLaterError if first.code in HEALABLE and first.attempts > 1 else FindingsError
            raise failure(
                f"{first.code}: {first.message}" + (f" (tried {first.attempts} times)" if first.attempts > 1 else ""),
                where=f"{first.origin or 'a record'} (step {count.step})",
                hint="nothing was published; to go on without such records use --on-error skip or quarantine",
            )
        # In parts, and each part once: a reject may be explained only when it is looked at, and that may be large.
        remaining = iter(rejects)
        while part := list(islice(remaining, _PART)):
            self._note(count.step, part)
            self._handle(count.step, part)
            count.rejected.update(reject.code for reject in part)
        if self.then != "report":
            self._budget.check(self._ledger, finished=False)
