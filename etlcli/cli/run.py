"""`etl run`: a recipe, from reading it to the last count."""

from __future__ import annotations

import sys
from typing import Any

import click

from etlcli.cli.component import examples_text, log_options, run_recipe
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import RecipeError, UsageError
from etlcli.io.inputs import masked
from etlcli.io.terminal import safe
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe
from etlcli.recipe.model import Fallback, Recipe, StepSpec

_HELP = """Run the pipeline that a recipe describes.

A recipe names a source, steps and a sink; each uses one of the other commands, with that command's options as keys (--by is
by, --max-line is max_line). Paths in it are relative to the recipe. The output is published when the whole run was
good, and only then.

--set changes a value for this run: a path of keys, steps by their id, and a YAML value."""

EXAMPLES = (
    ("etl run recipe.yaml", "run it"),
    ("etl run recipe.yaml --dry-run", "check the recipe, its schemas and inputs, and show the plan"),
    ("etl run recipe.yaml --set sink.with.path=today.csv --set 'errors.max=100'", "with other values"),
)


def run(recipe: str, settings: tuple[str, ...], dry_run: bool, log_level: str, log_format: str, stats: bool) -> None:
    resolved = load_recipe(recipe, settings)
    try:
        if not dry_run:
            run_recipe(resolved, log_level=log_level, log_format=log_format, stats=stats)
            return
        Pipeline(resolved, Log(log_level or resolved.log_level, log_format)).check()
    except UsageError as error:  # the line was fine, what the recipe asks of a component is not
        raise RecipeError(f"{error.where}: {error.message}", where=recipe, hint=error.hint) from None
    sys.stdout.write(safe_lines(plan(resolved)))


def plan(recipe: Recipe) -> list[str]:
    """The resolved recipe, a line each step."""
    lines = [f"recipe {recipe.name} is good; nothing was run"]
    for kind, spec in [("source", recipe.source), *(("step", step) for step in recipe.steps), ("sink", recipe.sink)]:
        lines.append(f"  {kind:6} {spec.id}: {spec.uses} {_options(spec)} {_on_error(spec)}")
    quarantine = f", quarantine {recipe.quarantine}" if recipe.quarantine else ""
    lines.append(f"  errors max={recipe.budget.text or 'unbounded'}{quarantine}")
    return lines


def _on_error(spec: StepSpec) -> str:
    retry, fallback, then = spec.on_error
    tries = f" attempts={retry.attempts}" if retry.attempts > 1 else ""
    instead = "".join(f" fallback={name}" for name, given in (fallback or Fallback())._asdict().items() if given)
    return f"on_error={then}{tries}{instead}"


def safe_lines(lines: list[str]) -> str:
    return "".join(safe(line) + "\n" for line in lines)


def _options(spec: StepSpec) -> str:
    defaults = {option.name: option.default for option in type(spec.params).options}
    given = {name: value for name, value in spec.params.values().items() if value != defaults[name]}
    return " ".join(f"{name}={_text(value)}" for name, value in given.items())


def _text(value: Any) -> str:
    return ",".join(map(masked, value)) if isinstance(value, tuple) else masked(str(value))


command = click.Command(
    "run",
    callback=run,
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    params=[
        click.Argument(["recipe"], metavar="RECIPE", help="The recipe's YAML file."),
        click.Option(["--set", "settings"], multiple=True, metavar="PATH=VALUE", help="Change a value for this run."),
        click.Option(["--dry-run"], is_flag=True, help="Check everything and show the plan; read and write no record."),
        click.Option(["--stats"], is_flag=True, help="Print the counts of every step as JSON on stderr."),
        *log_options(),
    ],
)
