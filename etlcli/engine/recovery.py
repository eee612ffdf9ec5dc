"""What may heal a rejected record before the policy has the last word: another try, then a fallback.

Both start from the record as it came. tenacity does the retrying of records, here and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from etlcli.core.batch import Batch, Reject
from etlcli.core.edit import edit
from etlcli.core.ledger import StepCount
from etlcli.core.policy import HEALABLE, Retry
from etlcli.core.stage import Stage, T
from etlcli.recipe.model import Fallback, OnError

Outcome = list[Batch] | Reject
"""What a step makes of a record, or the reject."""


class Recovery:
    """One step's. `again` tries a record again, `deliver` takes what a fallback made; `stages` are those of its steps."""

    def __init__(
        self,
        on_error: OnError,
        again: Callable[[Batch], Outcome],
        deliver: Callable[[list[Batch]], Outcome],
        stages: Sequence[Stage],
        count: StepCount,
        rejected: list[Reject],
    ) -> None:
        """`rejected` is where the stages put what they reject in `apply`."""
        self._retry = on_error.retry
        self._fallback = on_error.fallback
        self._again = again
        self._deliver = deliver
        self._stages = stages
        self._count = count
        self._rejected = rejected

    def heal(self, reject: Reject) -> Outcome:
        """What goes on in the record's place, which may be nothing where a step dropped it; or the reject, still."""
        outcome: Outcome = reject
        if reject.attempts < self._retry.attempts and reject.code in HEALABLE and not reject.final:
            outcome = self._try_again(reject)
        if isinstance(outcome, Reject) and self._fallback:
            made = self._fall_back(self._fallback, outcome.raw)
            delivered = outcome if made is None else self._deliver(made)
            if not isinstance(delivered, Reject):
                self._count.healed["fallback"] += 1
                return delivered
        return outcome

    def _try_again(self, reject: Reject) -> Outcome:
        first: list[Outcome] = [reject]
        outcome, tries = tried(
            self._retry, self._count, lambda: first.pop() if first else self._again(Batch.of_lines([reject.raw]))
        )
        if not isinstance(outcome, Reject):
            self._count.healed["retry"] += 1
            return outcome
        # Origin and place are those of the record in its own batch.
        last = Reject(outcome.code, outcome.errors, reject.raw, reject.origin, reject.index)
        last.attempts = tries
        return last

    def _fall_back(self, fallback: Fallback, raw: bytes) -> list[Batch] | None:
        if fallback.value is not None:
            return [Batch.of_lines([fallback.value])]
        if fallback.set:
            try:
                return [Batch.of_lines([edit(raw, fallback.set)])]
            except (ValueError, LookupError, TypeError):  # not a record, or without the object to set a field in
                return None
        batches = [Batch.of_lines([raw])]
        for stage in self._stages:
            passed: list[Batch] = []
            for batch in batches:
                prepared = stage.prepare(batch)
                if prepared.rejects:
                    return None
                self._count.discarded.update(prepared.discards or {})
                passed += stage.apply(prepared)
                if self._rejected:
                    self._rejected.clear()
                    return None
            batches = passed
        return batches


def tried(retry: Retry, count: StepCount, call: Callable[[], T]) -> tuple[T, int]:
    """Makes a call until its answer has no `code` that another try may heal, or tries or time are used up. Gives the last
    answer, and how many tries it took."""
    if retry.attempts == 1:
        return call(), 1
    import tenacity

    shortest, longest = retry.backoff
    wait = tenacity.wait_random_exponential if retry.jitter else tenacity.wait_exponential
    stop = tenacity.stop_after_attempt(retry.attempts)
    retrying = tenacity.Retrying(
        stop=stop if retry.max_elapsed is None else stop | tenacity.stop_before_delay(retry.max_elapsed),
        wait=wait(multiplier=shortest, min=0 if retry.jitter else shortest, max=longest),
        retry=tenacity.retry_if_result(lambda answer: getattr(answer, "code", None) in HEALABLE),
        sleep=time.sleep,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    answer = retrying(call)
    tries = retrying.statistics["attempt_number"]
    count.retries += tries - 1
    return answer, tries
