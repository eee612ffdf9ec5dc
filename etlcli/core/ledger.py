"""The counts behind "nothing is lost silently".

Every step balances: in + made = out + discarded + rejected + absorbed. What one step puts out, the next takes in. The
engine counts records in and out where they pass; a stage says what it dropped on purpose and why, which records live on
in others and how many of those it made; the policy says what was rejected. So a record that a bug loses shows as an
imbalance, and the run fails.
"""

from __future__ import annotations

from collections import Counter
from threading import RLock
from typing import Any

from etlcli.core.effort import Clock, Effort
from etlcli.errors import LedgerError

ABANDONED = "abandoned"
"""Why records are discarded that were on their way when a run ended before its time."""


class StepCount:
    """One step's counts, in records. `absorbed` are records that live on in others (a batch, a group, the records that
    a batch held), `made` are those others. Beside the balance: `healed` are records that a retry or a fallback saved from
    being rejected, `retries` the tries it took; `entered` are records that did not come from the step before (a replay).
    `effort` is what the work took."""

    __slots__ = (
        "above",
        "absorbed",
        "discarded",
        "effort",
        "entered",
        "healed",
        "made",
        "received",
        "rejected",
        "retries",
        "sent",
        "step",
    )

    def __init__(self, step: str, above: StepCount | None = None, clock: Clock | None = None) -> None:
        """`above` puts out what this one takes in, alone or with others; `clock` is that of its thread."""
        self.step = step
        self.above = above
        self.received = 0
        self.sent = 0
        self.made = 0
        self.entered = 0
        self.discarded: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.absorbed: Counter[str] = Counter()
        self.healed: Counter[str] = Counter()
        self.retries = 0
        self.effort = Effort(clock)

    def missing(self) -> int:
        """Records that came in and are accounted for nowhere (negative: came from nowhere). 0 in a right program."""
        left = self.sent + self.discarded.total() + self.rejected.total() + self.absorbed.total()
        return self.received + self.made - left

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "in": self.received,
            "made": self.made,
            "out": self.sent,
            "discarded": dict(self.discarded),
            "rejected": dict(self.rejected),
            "absorbed": dict(self.absorbed),
            "healed": dict(self.healed),
            "retries": self.retries,
        }

    def restore(self, counts: dict[str, Any]) -> None:
        """The counts of an `as_dict`."""
        self.received, self.made, self.sent, self.retries = (counts[name] for name in ("in", "made", "out", "retries"))
        for name in ("discarded", "rejected", "absorbed", "healed"):
            setattr(self, name, Counter(counts[name]))


class Ledger:
    """A step's counts are one thread's at a time. Whoever has to do with rejects and their budget holds the `lock`."""

    def __init__(self) -> None:
        self.steps: list[StepCount] = []
        self.lock = RLock()
        self.clock = Clock()

    def open(self, step: str, above: StepCount | None = None) -> StepCount:
        """The counts of the next step, in pipeline order; below the last, or another one."""
        above = above or (self.steps[-1] if self.steps else None)
        self.steps.append(StepCount(step, above, self.clock))
        return self.steps[-1]

    def as_list(self) -> list[dict[str, Any]]:
        return [step.as_dict() for step in self.steps]

    def efforts(self) -> list[dict[str, Any]]:
        return [step.effort.as_dict() for step in self.steps]

    def restore(self, counts: list[dict[str, Any]], efforts: list[dict[str, Any]]) -> None:
        """The counts of an `as_list`, of the same steps, and their `efforts`; of all its steps where none is open yet."""
        for each in () if self.steps else counts:
            self.open(each["step"])
        for step, each in zip(self.steps, counts, strict=True):
            step.restore(each)
        for step, effort in zip(self.steps, efforts, strict=False):
            step.effort.restore(effort)

    @property
    def received(self) -> int:
        """Records the run has read, blank lines not among them."""
        return self.steps[0].received - self.steps[0].discarded["blank"] if self.steps else 0

    def rejected(self) -> int:
        return sum(step.rejected.total() for step in self.steps)

    def discarded(self) -> int:
        """Records dropped on purpose, blank lines not among them."""
        return sum(step.discarded.total() - step.discarded["blank"] for step in self.steps)

    def abandon(self) -> None:
        """The run has ended before its time: what was on its way, or held, is discarded as ABANDONED."""
        below = Counter(step.above for step in self.steps)
        for step in self.steps:
            if step.above and below[step.above] == 1:
                step.received = max(step.received, step.above.sent + step.entered)
            step.discarded[ABANDONED] += max(0, step.missing())
            step.discarded += Counter()

    def check(self) -> None:
        """Raises LedgerError naming the step whose records do not balance."""
        for step in self.steps:
            if step.missing():
                raise LedgerError(
                    f"{step.step}: {abs(step.missing())} records unaccounted for: {step.as_dict()}", where=step.step
                )
        taken: Counter[StepCount | None] = Counter()
        for step in self.steps:
            taken[step.above] += step.received - step.entered
        for above in self.steps:
            if above in taken and above.sent != taken[above]:
                below = ", ".join(step.step for step in self.steps if step.above is above)
                raise LedgerError(
                    f"{above.step} put out {above.sent} records, {below} took in {taken[above]}", where=below
                )
