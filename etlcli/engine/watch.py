"""What a run lets be seen of itself: makes a `Status` of it whenever somebody asks."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from etlcli import __version__
from etlcli.core.batch import Reject
from etlcli.core.ledger import Ledger, StepCount
from etlcli.engine.step import Step
from etlcli.errors import UsageError, nearest
from etlcli.io.masking import hidden, masked, without_secrets
from etlcli.observe.status import RUNNING, STARTING, CheckpointMark, CustomMetric, Example, Status, StepStatus
from etlcli.recipe.model import Recipe, StepSpec

if TYPE_CHECKING:
    from etlcli.observe.control import Tap

_EXAMPLES = 5
"""Rejects of a step and code that are kept to be shown."""
_EXCERPT = 400
_MARKS = 1000


class Watch:
    """What the pipeline says of itself beside its counts; any thread may ask for the `status`."""

    def __init__(self, recipe: Recipe, ledger: Ledger, run: str, started: float) -> None:
        self.run = run
        self.started = started
        self.state = STARTING
        self.resumed = False
        self.workers = 1
        self.on_running: list[Callable[[], None]] = []
        self.queued: list[Callable[[], int]] = []
        """Each tells how many bytes wait in a queue."""
        self.steps: Sequence[Step] = ()
        """Once they are built."""
        self.custom: Callable[[], list[CustomMetric]] = list
        """The recipe's metrics."""
        self.exit_code: int | None = None
        self.error: str | None = None
        self._recipe = recipe
        self._ledger = ledger
        self._size: int | None = None
        self._checkpoints: deque[CheckpointMark] = deque(maxlen=_MARKS)
        self._examples: list[Example] = []
        self._noted: Counter[tuple[str, str]] = Counter()

    def begin_to_run(self) -> None:
        self.state = RUNNING
        for call in self.on_running:
            call()

    def expect(self, left: int | None) -> None:
        """There are so many bytes to be read beside those that were."""
        self._size = None if left is None else left + self._ledger.steps[0].effort.bytes_in

    def note(self, step: str, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            self._noted[step, reject.code] += 1
            if self._noted[step, reject.code] <= _EXAMPLES:
                origin = reject.origin
                raw = without_secrets(reject.raw[:_EXCERPT].decode(errors="backslashreplace"))
                path, line = (masked(origin.path), origin.line) if origin else (None, None)
                self._examples.append(Example(step, reject.code, hidden(reject.message), path, line, raw))

    def tap(self, step: str, side: str, tap: Tap) -> Callable[[], None]:
        """As `observe.control.Tappable` has it."""
        found = [each for each in self.steps if each.count.step == step]
        if not found:
            known = [each.count.step for each in self.steps]
            raise UsageError(f"the run has no step {step!r}", hint=nearest(step, known))
        taps = found[0].taps.get(side)
        if taps is None:
            raise UsageError(f"a step has no side {side!r}", hint="in or out")
        taps.append(tap)
        return lambda: taps.remove(tap)

    def mark(self, began: float) -> None:
        """A checkpoint was taken; it began at that moment."""
        now = time.time()
        self._checkpoints.append(CheckpointMark(now, self._ledger.received, now - began))

    def status(self) -> Status:
        recipe, checkpoint = self._recipe, self._recipe.checkpoint
        counts = list(self._ledger.steps)
        return Status(
            run=self.run,
            recipe=recipe.name,
            path=recipe.path,
            digest=recipe.digest,
            pid=os.getpid(),
            version=__version__,
            state=self.state,
            resumed=self.resumed,
            started=self.started,
            now=time.time(),
            exit_code=self.exit_code,
            error=self.error and hidden(self.error),
            read=counts[0].effort.bytes_in if counts else 0,
            size=self._size,
            received=self._ledger.received,
            queued=sum(each() for each in list(self.queued)),
            queue=recipe.queue,
            workers=self.workers,
            steps=[_step(count, *kind) for count, kind in zip(counts, _kinds(recipe), strict=False)],
            checkpoints=list(self._checkpoints),
            checkpoint_every=checkpoint.every if checkpoint else None,
            rejects=list(self._examples),
            custom=self.custom(),
        )


def _kinds(recipe: Recipe) -> list[tuple[str, str]]:
    """Component and kind of each step, in the order in which the ledger has them."""

    def stages(specs: Sequence[StepSpec]) -> list[tuple[str, str]]:
        return [(spec.uses, "stage") for spec in specs]

    kinds = [(recipe.source.uses, "source"), *stages(recipe.steps)]
    if not recipe.sink:
        kinds.append(("route" if recipe.routed else "sinks", "fork"))
    for branch in recipe.outlets:
        kinds += [*stages(branch.steps), (branch.sink.uses, "sink")]
    return kinds


def _step(count: StepCount, uses: str, kind: str) -> StepStatus:
    effort = count.effort.as_dict()
    return StepStatus(
        id=count.step,
        uses=uses,
        kind=kind,
        above=count.above.step if count.above else None,
        received=count.received,
        made=count.made,
        sent=count.sent,
        discarded=dict(count.discarded),
        rejected=dict(count.rejected),
        absorbed=dict(count.absorbed),
        healed=dict(count.healed),
        retries=count.retries,
        **effort,
    )
