"""How far a run is, on a terminal: a line that changes in place, under whatever else is written there.

By rich, which honours NO_COLOR. It comes when a run has
lasted a moment and goes with it; short work shows nothing. A terminal that goes away takes the line with it, never the run.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from etlcli.io.terminal import safe
from etlcli.observe import figures
from etlcli.observe.rates import Rates
from etlcli.observe.status import Look, Observer, Status

if TYPE_CHECKING:
    from rich.console import Console

_DELAY = 1.0
"""Seconds before the line comes."""
_EVERY = 0.2
_PATIENCE = 2.0


class Progress(Observer):
    """`lend(write)` is told how to write a line above the one that changes, as long as that stands, and
    `lend(None)` when it is gone."""

    def __init__(self, lend: Callable[[Callable[[str], None] | None], None]) -> None:
        self._lend = lend
        self._over = Event()
        self._rates = Rates()
        self._thread: Thread | None = None

    def begin(self, look: Look) -> None:
        self._look = look

    def running(self) -> None:
        self._rates.add(self._look())
        self._thread = Thread(target=self._show, daemon=True)
        self._thread.start()

    def end(self, last: Status) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(_PATIENCE)

    def _show(self) -> None:
        if self._over.wait(_DELAY):
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Line

        console = Console(stderr=True, force_interactive=True)
        line = Line(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with line:
                self._lend(lambda text: _above(console, text))
                try:
                    self._update(line)
                finally:
                    self._lend(None)
        except OSError:  # the terminal has gone
            pass

    def _update(self, line: Any) -> None:
        before = self._look()
        task = line.add_task(safe(before.recipe), total=None, figures="")
        while True:
            status = self._look()
            self._rates.add(status)
            shown = _figures(status, self._rates) + _waiting(status, before)
            line.update(task, total=status.size, completed=status.read, figures=shown)
            line.refresh()
            before = status
            if self._over.wait(_EVERY):
                return


def _figures(status: Status, rates: Rates) -> str:
    read, left = figures.size(status.read), rates.left(status)
    if status.size and status.read >= status.size:
        written = sum(step.sent for step in status.steps if step.kind == "sink")
        parts = [f"{figures.count(status.received)} records read", f"{figures.count(written)} written"]
    else:
        parts = [f"{read} of {figures.size(status.size)}" if status.size else read]
        parts.append(f"{figures.count(rates.records)} records/s")
        parts += [] if left is None else [f"{figures.duration(left)} left"]
    if status.queued:
        parts.append(f"queue {figures.percent(status.queued, status.queue)}")
    if status.rejected:
        parts.append(f"{figures.count(status.rejected)} rejected")
    return "  ".join(parts)


def _waiting(status: Status, before: Status) -> str:
    """Which step has waited most since, if it did little else, and what for."""
    earlier = {step.id: step.blocked for step in before.steps}
    waits = [
        (seconds - earlier.get(step.id, {}).get(what, 0.0), step.id, what)
        for step in status.steps
        for what, seconds in step.blocked.items()
    ]
    longest, step, what = max(waits, default=(0.0, "", ""))
    return f"  {safe(step)} waits for {safe(what)}" if longest > (status.now - before.now) / 2 > 0 else ""


def _above(console: Console, text: str) -> None:
    from rich.text import Text

    console.print(Text(text), soft_wrap=True)
