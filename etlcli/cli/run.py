"""`etl run`: a recipe, from reading it to the last count."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from etlcli.cli.component import examples_text, log_options, recipe_log, run_recipe, unordered_option, watch_options
from etlcli.cli.watching import Wishes
from etlcli.core.params import parse_duration, parse_limit, parse_workers
from etlcli.engine.overlap import Overlap, take_directory, take_turn
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import RecipeError, TimedOut, TryLaterError, UsageError
from etlcli.io.masking import hidden, without_secrets
from etlcli.io.signals import end_commands, end_soon
from etlcli.io.terminal import safe
from etlcli.observe.logs import Log
from etlcli.recipe.files import check_beside
from etlcli.recipe.load import load_recipe
from etlcli.recipe.model import Fallback, Recipe, StepSpec

_HELP = """Run the pipeline that a recipe describes.

A recipe names a source, steps and a sink, or several; each uses one of the other commands, with that command's options as
keys (--by is by, --max-line is max_line). Paths in it are relative to the recipe. Files are published when the whole run
was good, and only then.

With checkpoint.dir a run that is interrupted, killed or fails can be gone on with: the next `etl run` does so by itself,
and publishes the same bytes as one that was never stopped. INT, TERM and --timeout then take a last checkpoint first; the
run ends without it when a second signal comes, when it is not there within 30 s, or when all input has been read. See `etl
checkpoint`.

A cron job that may take longer than the time to the next one wants --on-overlap, and one that may hang --timeout.

--set changes a value for this run: a path of keys, steps by their id, and a YAML value."""

_RUNTIME: dict[str, Callable[[Any], Any]] = {"workers": parse_workers, "limit": parse_limit, "timeout": parse_duration}
EXAMPLES = (
    ("etl run recipe.yaml", "run it"),
    ("etl run recipe.yaml --dry-run", "check the recipe, its schemas and inputs, and show the plan"),
    ("etl run -q recipe.yaml --on-overlap skip --timeout 50m", "from cron, every hour: no mail but of errors"),
    ("etl run recipe.yaml --limit 100", "a first look"),
    ("etl run recipe.yaml --report html=run.html", "with a page about what it did"),
    ("etl run recipe.yaml --set sink.with.path=today.csv --set 'errors.max=100'", "with other values"),
)


def run(recipe: str, settings: tuple[str, ...], dry_run: bool, fresh: bool, resume_only: bool, on_overlap: str | None,
        unordered: bool, stats: bool, **more: Any) -> None:  # fmt: skip
    wishes = Wishes.of(more)
    try:
        given: dict[str, Any] = {"ordered": False} if unordered else {}
        given |= {name: parse(more[name]) for name, parse in _RUNTIME.items() if more[name] is not None}
        overlap = Overlap(on_overlap or "fail")
    except ValueError as error:
        raise UsageError(str(error), hint="see etl run --help") from None
    resolved = load_recipe(recipe, settings)._replace(**given)
    if (fresh or resume_only) and (fresh == resume_only or resolved.checkpoint is None or resolved.limit):
        raise UsageError(
            "--fresh and --resume-only, one of them, are for a recipe with a checkpoint directory, and not for --limit",
            hint="see etl run --help",
        )
    if resolved.limit and resolved.incremental:
        raise UsageError(
            "--limit would put out again what earlier runs have published",
            hint="for a look at it: --set source.incremental=false --set sink.with.path=- --limit N",
        )
    try:
        if not dry_run:
            with ExitStack() as resources, within(resolved, recipe):
                turn = not on_overlap or take_turn(recipe, overlap, resources)
                if turn and resolved.checkpoint:
                    directory = os.path.join(resolved.base_dir, resolved.checkpoint.dir)
                    turn = take_directory(directory, recipe, overlap, resources)
                if turn:
                    start = {"fresh": fresh, "resume_only": resume_only}
                    run_recipe(resolved, wishes, stats=stats, **start)
                else:
                    log = recipe_log(resolved, wishes._replace(level="error" if wishes.quiet else "info"))
                    log("info", "run_skipped", recipe=resolved.name, reason="another run is going on")
                    log.close()
            return
        check_beside(resolved, wishes.report_paths)
        log = Log(wishes.level or resolved.logging.level, wishes.format or resolved.logging.format)
        Pipeline(resolved, log).check()
    except UsageError as error:
        if not error.where:
            raise
        # The line was fine, what the recipe asks of a component is not.
        raise RecipeError(f"{error.where}: {error.message}", where=recipe, hint=error.hint) from None
    sys.stdout.write(safe_lines(plan(resolved)))


@contextmanager
def within(recipe: Recipe, path: str) -> Iterator[None]:
    """Ends what is done in it when the recipe's time is over, as a signal would. Raises TryLaterError then."""
    seconds = recipe.timeout

    def stop(signum: int, frame: object) -> None:
        end_soon(at_once)
        raise TimedOut

    def at_once() -> None:
        end_commands()
        os._exit(TryLaterError.exit_code)

    if seconds is None:
        yield
        return
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimedOut:
        raise TryLaterError(
            f"the run took longer than {seconds:g} s",
            where=path,
            hint="nothing was published; "
            + ("the next run goes on from there" if recipe.checkpoint else "raise --timeout (runtime.timeout)"),
        ) from None
    finally:
        if signal.getsignal(signal.SIGALRM) == stop:
            signal.setitimer(signal.ITIMER_REAL, 0)


def plan(recipe: Recipe) -> list[str]:
    """The resolved recipe, a line each step."""
    lines = [f"recipe {recipe.name} is good; nothing was run"]
    lines += [_step("source", recipe.source), *(_step("step", step) for step in recipe.steps)]
    for branch in recipe.outlets:
        if recipe.routed:
            lines.append(f"  route  {branch.when or 'all others'}")
        lines += [*(_step("step", step) for step in branch.steps), _step("sink", branch.sink)]
    quarantine = f", quarantine {recipe.quarantine}" if recipe.quarantine else ""
    if recipe.checkpoint:
        incremental = ", only what is new" if recipe.incremental else ""
        lines.append(f"  checkpoint {recipe.checkpoint.dir} every {recipe.checkpoint.every:g} s{incremental}")
    lines.append(f"  errors max={recipe.budget.text or 'unbounded'}{quarantine}")
    return lines


def _step(kind: str, spec: StepSpec) -> str:
    return f"  {kind:6} {spec.id}: {spec.uses} {_options(spec)} {_on_error(spec)}"


def _on_error(spec: StepSpec) -> str:
    retry, fallback, then = spec.on_error
    tries = f" attempts={retry.attempts}" if retry.attempts > 1 else ""
    instead = "".join(f" fallback={name}" for name, given in (fallback or Fallback())._asdict().items() if given)
    return f"on_error={then}{tries}{instead}"


def safe_lines(lines: list[str]) -> str:
    return "".join(safe(without_secrets(line)) + "\n" for line in lines)


def _options(spec: StepSpec) -> str:
    defaults = {option.name: option.default for option in type(spec.params).options}
    given = {name: value for name, value in spec.params.values().items() if value != defaults[name]}
    return " ".join(f"{name}={_text(value)}" for name, value in given.items())


def _text(value: Any) -> str:
    return ",".join(hidden(str(each)) for each in value) if isinstance(value, tuple) else hidden(str(value))


command = click.Command(
    "run",
    callback=run,
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    params=[
        click.Argument(["recipe"], metavar="RECIPE", help="The recipe's YAML file."),
        click.Option(["--set", "settings"], multiple=True, metavar="PATH=VALUE", help="Change a value for this run."),
        click.Option(["--dry-run"], is_flag=True, help="Check everything and show the plan; read and write no record."),
        click.Option(
            ["--workers"], metavar="N|auto", help="Processes that read and prepare records; auto is the default."
        ),
        unordered_option(),
        click.Option(["--fresh"], is_flag=True, help="Forget the run that was interrupted, and begin a new one."),
        click.Option(["--resume-only"], is_flag=True, help="Go on with an interrupted run, and begin no new one (66)."),
        click.Option(["--limit"], metavar="N", help="Stop after that many records were read, and publish them."),
        click.Option(["--timeout"], metavar="DUR", help="Longest the run may take; over it nothing is published (75)."),
        click.Option(
            ["--on-overlap"],
            metavar="fail|skip|wait[=DUR]",
            help="What to do when another run of the recipe is going on: fail (75), skip this one (0), or wait.",
        ),
        click.Option(["--stats"], is_flag=True, help="Print the counts of every step as JSON on stderr."),
        click.Option(
            ["--report", "reports"],
            multiple=True,
            metavar="FORMAT=PATH",
            help="Write what the run did, however it ends: html=PATH for people, json=PATH for programs.",
        ),
        *log_options(),
        *watch_options(),
    ],
)
