"""`etl ps`: the runs that are going on."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from etlcli.cli.component import examples_text
from etlcli.errors import ServiceUnreachableError
from etlcli.io.terminal import safe
from etlcli.observe import figures
from etlcli.observe.control import Live, live_runs, status_of
from etlcli.observe.rates import Rates
from etlcli.observe.status import Status

_HELP = """List the runs of recipes that are going on, of this user on this machine: the process, the recipe, what it is at,
records read and how many a second, how much input is left, rejects, and how long ago the last checkpoint was.

A run answers for itself, so what is shown is of this moment."""

EXAMPLES = (("etl ps", "what is going on"), ("etl ps --json | jq .recipe", "the same for a program"))
_MOMENT = 0.3
"""Seconds between the two looks that a rate takes."""
_HEADER = ("PID", "RUN", "RECIPE", "STATE", "RECORDS", "A SECOND", "READ", "LEFT", "REJECTED", "CHECKPOINT", "TIME")


def ps(as_json: bool) -> None:
    import msgspec

    runs = live_runs()
    rates = [Rates() for _ in runs]
    for live, rate in zip(runs, rates, strict=True):
        rate.add(live.status)
    if runs:
        time.sleep(_MOMENT)
    rows = [(looked_again(live), rate) for live, rate in zip(runs, rates, strict=True)]
    for status, rate in rows:
        rate.add(status)
    if as_json:
        for status, rate in rows:
            sys.stdout.write(msgspec.json.encode(_summary(status, rate)).decode() + "\n")
        return
    for line in table([_HEADER, *(_row(status, rate) for status, rate in rows)]):
        sys.stdout.write(line + "\n")


def looked_again(live: Live) -> Status:
    """The run as it is now; as it was, where it has just ended."""
    try:
        return status_of(live.path)
    except ServiceUnreachableError:
        return live.status


def _summary(status: Status, rate: Rates) -> dict[str, Any]:
    return {
        "run": status.run,
        "pid": status.pid,
        "recipe": status.recipe,
        "path": status.path,
        "state": status.state,
        "started": status.started,
        "records": status.received,
        "records_per_second": round(rate.records, 1),
        "bytes_read": status.read,
        "bytes_per_second": round(rate.bytes, 1),
        "bytes_left": None if status.size is None else max(0, status.size - status.read),
        "seconds_left": rate.left(status),
        "rejected": status.rejected,
        "checkpoint_at": status.checkpoints[-1].at if status.checkpoints else None,
        "workers": status.workers,
    }


def _row(status: Status, rate: Rates) -> tuple[str, ...]:
    left = rate.left(status)
    checkpoint = figures.duration(status.now - status.checkpoints[-1].at) + " ago" if status.checkpoints else "-"
    return (
        str(status.pid),
        status.run[:8],
        safe(status.recipe),
        status.state,
        figures.count(status.received),
        figures.count(rate.records),
        figures.percent(status.read, status.size) if status.size else figures.size(status.read),
        "-" if left is None else figures.duration(left),
        figures.count(status.rejected),
        checkpoint,
        figures.duration(status.now - status.started),
    )


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of texts, in columns that are as wide as they must be; what begins with a digit stands on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [all(cell[:1].isdigit() or cell == "-" for cell in column[1:]) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


command = click.Command(
    "ps",
    callback=ps,
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    params=[click.Option(["--json", "as_json"], is_flag=True, help="A line of JSON for each run.")],
)
