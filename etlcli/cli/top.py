"""`etl top`: runs as they go on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from etlcli.cli.component import examples_text
from etlcli.core.params import parse_duration, parse_limit
from etlcli.errors import ServiceUnreachableError, UsageError
from etlcli.io.terminal import safe
from etlcli.observe import figures
from etlcli.observe.control import find_run, live_runs, status_of
from etlcli.observe.rates import Rates
from etlcli.observe.status import Status, StepStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

_HELP = """Watch the runs of recipes that are going on, or one of them: for each step what goes in and comes out, how fast,
how much of the time it is at work, and what it waits for. Ctrl-C ends the watching, not the run.

On anything but a terminal it writes what it sees once, or --count times."""

EXAMPLES = (("etl top", "all runs"), ("etl top nightly --every 500ms", "one run, twice a second"))


def top(run: str | None, every: str, count: str | None) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    try:
        seconds, times = parse_duration(every), parse_limit(count) if count is not None else None
    except ValueError as error:
        raise UsageError(str(error), hint="see etl top --help") from None
    watching = _Watching(run)
    console = Console()
    if not console.is_terminal or not console.is_interactive:
        watching.look()
        for _ in range(times or 1):
            time.sleep(seconds)
            console.print(Group(*watching.look()))
        return
    with Live(console=console, screen=times is None, auto_refresh=False) as live:
        shown = 0
        while times is None or shown < times:
            live.update(Group(*watching.look()), refresh=True)
            shown += 1
            time.sleep(seconds)


class _Watching:
    def __init__(self, run: str | None) -> None:
        self._only = find_run(run, live_runs()).path if run else None
        self._rates: dict[str, Rates] = {}
        self._before: dict[str, Status] = {}

    def look(self) -> list[RenderableType]:
        from rich.text import Text

        shown: list[RenderableType] = []
        for status in self._statuses():
            rates = self._rates.setdefault(status.run, Rates())
            rates.add(status)
            shown += _run(status, rates, self._before.get(status.run, status))
            self._before[status.run] = status
        return shown or [Text("no run is going on")]

    def _statuses(self) -> list[Status]:
        if self._only is None:
            return [live.status for live in live_runs()]
        try:
            return [status_of(self._only)]
        except ServiceUnreachableError:
            return []


def _run(status: Status, rates: Rates, before: Status) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    left = rates.left(status)
    parts = [
        f"pid {status.pid}",
        status.state,
        f"{figures.count(status.received)} records",
        f"{figures.count(rates.records)}/s",
        f"{figures.size(status.read)}" + (f" of {figures.size(status.size)}" if status.size else ""),
        f"{figures.size(rates.bytes)}/s",
        f"queue {figures.size(status.queued)}",
        f"{figures.duration(status.now - status.started)}",
    ]
    parts += [] if left is None else [f"{figures.duration(left)} left"]
    parts += [f"rejected {figures.count(status.rejected)}"] if status.rejected else []
    if status.checkpoints:
        parts.append(f"checkpoint {figures.duration(status.now - status.checkpoints[-1].at)} ago")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, where in (("step", "left"), ("in", "right"), ("out", "right"), ("in/s", "right"), ("rejected", "right"),
                        ("discarded", "right"), ("at work", "right"), ("waiting for", "left")):  # fmt: skip
        table.add_column(name, justify=where)  # type: ignore[arg-type]
    earlier = {step.id: step for step in before.steps}
    for step in status.steps:
        table.add_row(*map(Text, _step(step, earlier.get(step.id, step), status.now - before.now)))
    title = Text(f"{safe(status.recipe)}  ", style="bold").append(" · ".join(parts), style="not bold")
    return [title, table, Text()]


def _step(step: StepStatus, before: StepStatus, seconds: float) -> tuple[str, ...]:
    waits = [
        (step.blocked[what] - before.blocked.get(what, 0), what)
        for what in step.blocked
        if step.blocked[what] - before.blocked.get(what, 0) > seconds / 100
    ]
    return (
        safe(step.id) if step.id == step.uses else safe(f"{step.id} ({step.uses})"),
        figures.count(step.received),
        figures.count(step.sent),
        figures.count((step.received - before.received) / seconds) if seconds else "-",
        figures.count(sum(step.rejected.values())),
        figures.count(sum(step.discarded.values())),
        f"{100 * (step.seconds - before.seconds) / seconds:.0f} %" if seconds else "-",
        ", ".join(f"{what} {100 * waited / seconds:.0f} %" for waited, what in sorted(waits, reverse=True)),
    )


_params: list[Any] = [
    click.Argument(["run"], required=False, metavar="[RUN]", help="A run, as etl ps shows it; without it all."),
    click.Option(["--every"], default="1s", show_default=True, metavar="DUR", help="Time between two looks."),
    click.Option(["--count"], metavar="N", help="Look so many times, and end."),
]
command = click.Command("top", callback=top, help=_HELP, epilog=examples_text(EXAMPLES), params=_params)
