"""Log lines about each step and the whole run: at the start, at intervals, and at the end."""

from __future__ import annotations

from threading import Event, Thread
from typing import Any

from etlcli.observe.logs import Log
from etlcli.observe.status import Look, Observer, Status, StepStatus

_PATIENCE = 1.0


class Heartbeat(Observer):
    """Its thread only looks. All its lines are of level info, and a step's follow the step's level."""

    def __init__(self, log: Log, every: float, *, always: bool = False) -> None:
        """`every` is the seconds between lines about progress. Those about the run are written `always`, whatever the
        level."""
        self._always = always
        self._log = log
        self._every = every
        self._over = Event()
        self._thread: Thread | None = None
        self._before = (0.0, 0)
        """When the line before was written, and how many records had been read."""

    def begin(self, look: Look) -> None:
        self._look = look

    def running(self) -> None:
        look, status = self._look, self._look()
        for step in status.steps:
            self._log.regular("info", "step_started", step=step.id, uses=step.uses, kind=step.kind)
        if self._always or any(self._log.reaches("info", step) for step in (None, *(step.id for step in status.steps))):
            self._before = (status.now, status.received)
            self._thread = Thread(target=self._beat, args=(look,), name="etl-heartbeat", daemon=True)
            self._thread.start()

    def end(self, last: Status) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(_PATIENCE)  # longer only where the log takes no line
        for step in last.steps:
            times: dict[str, Any] = {"seconds": round(step.seconds, 3), "blocked": round(sum(step.blocked.values()), 3)}
            self._log.regular("info", "step_finished", step=step.id, **_counts(step), **times)

    def _beat(self, look: Look) -> None:
        while not self._over.wait(self._every):
            try:
                self._say(look())
            except RuntimeError as error:  # counts that changed while they were read
                self._log("debug", "progress_missed", reason=str(error))

    def _say(self, status: Status) -> None:
        for step in status.steps:
            self._log.regular("info", "step_progress", step=step.id, **_counts(step))
        at, received = self._before
        seconds = status.now - at
        self._before = (status.now, status.received)
        self._log.regular(
            "info",
            "run_progress",
            always=self._always,
            records=status.received,
            bytes=status.read,
            of=status.size,
            records_per_second=round((status.received - received) / seconds, 1) if seconds > 0 else 0.0,
            rejected=status.rejected,
        )


def _counts(step: StepStatus) -> dict[str, Any]:
    """As the ledger has them: in + made = out + discarded + rejected + absorbed."""
    counts: dict[str, Any] = {"in": step.received, "made": step.made or None, "out": step.sent}
    counts |= {name: sum(getattr(step, name).values()) for name in ("rejected", "discarded")}
    return {**counts, "absorbed": sum(step.absorbed.values()) or None}
