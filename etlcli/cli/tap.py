"""`etl tap`: the records that pass through a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import click

from etlcli.cli.component import examples_text
from etlcli.core.batch import Batch
from etlcli.core.expressions import Expression
from etlcli.core.params import parse_limit
from etlcli.errors import UsageError
from etlcli.io.stdout import Stdout
from etlcli.observe.control import find_run, live_runs, tapped

T = TypeVar("T")
_HELP = """Write the records that go into a step of a run, or come out of it, to stdout as they pass, byte for byte.

RUN is a run's id or the beginning of it, its process number, or the name of its recipe, as `etl ps` shows them. The run is
never held up: what this end does not take in time is dropped, and how many that were is said on stderr at the end.
Conditions are worked out here, not in the run. It ends with the run, or when --limit records were seen."""

EXAMPLES = (
    ("etl tap nightly --step check --side out --limit 5", "five records behind a step"),
    ("etl tap 4711 --step write --where 'amount > 1000'", "what goes into the sink, as far as it is of interest"),
)


def tap(run: str, step: str, side: str, where: str | None, limit: str | None) -> None:
    left = _parsed("--limit", parse_limit, limit)
    condition = _parsed("--where", Expression, where)
    live = find_run(run, live_runs())
    out, missed = Stdout(), 0
    for chunk, dropped in tapped(live.path, step, side):
        missed += dropped
        batch = Batch.of_chunk(chunk)
        if condition is not None and batch.count:
            kept, _ = condition.select(batch.count, batch.columns(condition.paths))
            batch = batch.take(kept)
        if left is not None and batch.count >= left:
            out.write(batch.take(range(left)).chunk)
            break
        if batch.count:
            out.write(batch.chunk)
            left = None if left is None else left - batch.count
    if missed:
        sys.stderr.write(f"etl: {missed} records passed unseen: they came faster than they were taken\n")


def _parsed(flag: str, parse: Callable[[str], T], text: str | None) -> T | None:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}", hint="see etl tap --help") from None


command = click.Command(
    "tap",
    callback=tap,
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    params=[
        click.Argument(["run"], metavar="RUN", help="A run, as etl ps shows it."),
        click.Option(["--step"], required=True, metavar="ID", help="The step's id."),
        click.Option(["--side"], type=click.Choice(("in", "out")), default="in", show_default=True,
                     help="What goes into the step, or what comes out of it."),
        click.Option(["--where"], metavar="EXPR", help="Only records for which this is true."),
        click.Option(["--limit"], metavar="N", help="End after so many records."),
    ],
)  # fmt: skip
