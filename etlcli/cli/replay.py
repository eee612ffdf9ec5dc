"""`etl replay`: quarantined records once more."""

from __future__ import annotations

import click

from etlcli.cli.component import examples_text, log_options, print_stats, step
from etlcli.core.files import Output
from etlcli.engine.replay import Envelope, Replay, waiting
from etlcli.errors import RecipeError, UsageError
from etlcli.io.files import keep_apart, open_output
from etlcli.io.inputs import STDIN
from etlcli.io.stdout import Stdout
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe

_HELP = """Run quarantined records again, each from the step that rejected it.

With --recipe the records that this recipe put aside go through its steps as they are now, and those that come through are
written to stdout or -o: together with the first run's output they are what one run without rejects would have given,
steps aside that need all records at once (sort, group, dedupe-cache). Records that are rejected again stay. The others are
marked as healed by a line appended to the quarantine, once the output is published, and no later replay touches them.

Without --recipe the records that are not marked are written as they came, and nothing is marked."""

EXAMPLES = (
    ("etl replay quarantine.ndjson --recipe recipe.yaml -o healed.ndjson", "after the recipe or its schema was mended"),
    ("etl replay bad.ndjson | etl validate --schema flight.schema.json --coerce", "what a command put aside"),
)


def replay(quarantine: str, recipe: str | None, settings: tuple[str, ...], output: str | None, stats: bool,
           log_level: str | None, log_format: str | None) -> None:  # fmt: skip
    if settings and not recipe:
        raise UsageError("--set needs --recipe")
    keep_apart(output, quarantine)
    log = Log(log_level or "warning", log_format or "auto")
    envelopes = waiting(quarantine, log)
    if recipe is None:
        _write_raw(envelopes, output)
        return
    resolved = load_recipe(recipe, settings)
    mine = [envelope for envelope in envelopes if envelope.recipe == resolved.name]
    if resolved.sink is None:
        raise UsageError(
            f"{recipe} has several sinks, and what is replayed goes to one",
            hint="leave --recipe out, and put the records through the commands that they need",
        )
    sink = step("write", {"path": output or STDIN})
    run = Replay(resolved._replace(sink=sink._replace(id=resolved.sink.id)), quarantine, mine, log)
    try:
        run.run()
        others = len(envelopes) - len(mine)
        level = "warning" if run.kept or (others and not mine) else "info"
        log(level, "replayed", healed=len(mine) - run.kept, kept=run.kept, of_other_recipes=others)
    except UsageError as error:
        raise RecipeError(f"{error.where}: {error.message}", where=recipe, hint=error.hint) from None
    finally:
        log.close()
        if stats:
            print_stats(run)


def _write_raw(envelopes: list[Envelope], path: str | None) -> None:
    output: Output = Stdout() if path in (None, STDIN) else open_output(str(path))
    try:
        for envelope in envelopes:
            output.write(envelope.raw + b"\n")
        output.flush()
        output.commit()
    finally:
        output.abort()


command = click.Command(
    "replay",
    callback=replay,
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    params=[
        click.Argument(["quarantine"], metavar="QUARANTINE", help="The file of rejected records."),
        click.Option(["--recipe"], metavar="FILE", help="The recipe to run them through."),
        click.Option(["--set", "settings"], multiple=True, metavar="PATH=VALUE", help="Change a value of the recipe."),
        click.Option(["-o", "--output"], metavar="FILE", help="Write to FILE, all or nothing."),
        click.Option(["--stats"], is_flag=True, help="Print the counts of every step as JSON on stderr."),
        *log_options(),
    ],
)
