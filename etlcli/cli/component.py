"""A component as a subcommand: options from its `Params`, shared options beside them, and the recipe both stand for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from etlcli.core.params import Option, format_size, parse_size
from etlcli.core.policy import THEN, ErrorBudget
from etlcli.core.stage import DEFAULT_MEMORY, Component
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import UsageError
from etlcli.io.inputs import STDIN
from etlcli.observe.logs import FORMATS, LEVELS, Log
from etlcli.recipe.model import Recipe, StepSpec
from etlcli.registry import COMPONENTS, load

INPUTS = Option(
    "paths",
    "Input files; - is stdin, which is also the default.",
    positional=True,
    repeats=True,
    default=(),
    metavar="FILE",
)
INPUTS.name = "inputs"


def shared_options() -> list[click.Option]:
    """The options every record command has, beside its own."""
    return [
        click.Option(["--on-error"], type=click.Choice(THEN), default="fail", show_default=True,
                     help="What to do with a record that is rejected."),
        click.Option(["--quarantine"], metavar="FILE", help="Append rejected records here, with the reasons."),
        click.Option(["--max-errors"], metavar="N|P%", help="Rejects that skip and quarantine may pass over."),
        click.Option(["--memory"], metavar="SIZE", default=format_size(DEFAULT_MEMORY), show_default=True,
                     help="Memory for records that must be held."),
        click.Option(["--stats"], is_flag=True, help="Print the counts of every step as JSON on stderr."),
        *log_options(),
    ]  # fmt: skip


def log_options() -> list[click.Option]:
    return [
        click.Option(["--log-level"], type=click.Choice(LEVELS), default=None, help="Least level that is logged."),
        click.Option(["--log-format"], type=click.Choice(FORMATS), default="auto", show_default=True,
                     help="Form of the log lines on stderr."),
    ]  # fmt: skip


def component_command(name: str) -> click.Command:
    """The click command of a registered component."""
    entry = COMPONENTS[name]
    component: type[Component] = load(entry.target)
    sharing = [option for option in component.Params.options if option.takes]
    parameters = [click_parameter(option) for option in component.Params.options if option not in sharing]
    own = {option.name for option in component.Params.options}
    if entry.kind != "sink":
        parameters.append(click.Option(["-o", "--output"], metavar="FILE", help="Write to FILE, all or nothing."))
    if entry.kind == "stage":
        parameters.append(_inputs(sharing))
    if entry.kind != "source":
        parameters += [click_parameter(option) for option in _source_options() if option.name not in own]

    def run(**values: Any) -> None:
        run_recipe(recipe_of(name, entry.kind, values), **_picked(values, "log_level", "log_format", "stats"))

    return click.Command(
        name, callback=run, params=[*parameters, *shared_options()], short_help=entry.help,
        help=component.help, epilog=examples_text(component.examples),
    )  # fmt: skip


def _inputs(sharing: Sequence[Option]) -> click.Parameter:
    """The input files; and, before them or among them, the words that positional options of the stage take."""
    if not sharing:
        return click_parameter(INPUTS)

    def deal(ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
        for option in sharing:
            own = tuple(filter(option.takes, words))
            if option.required and not own:
                raise click.MissingParameter(ctx=ctx, param_hint=option.metavar, param_type="argument")
            for word in filter(os.path.exists, own):
                raise click.UsageError(f"{word} can be read as {option.metavar} and is a file too; write ./{word}", ctx)
            ctx.params[option.name] = own
            words = tuple(word for word in words if word not in own)
        return words

    metavar = " ".join(f"[{option.metavar}]..." for option in (*sharing, INPUTS))
    help = " ".join(option.help for option in (*sharing, INPUTS))
    return click.Argument([INPUTS.name], nargs=-1, metavar=metavar, help=help, callback=deal)


def click_parameter(option: Option) -> click.Parameter:
    """How an option looks on the command line. Values stay text here; `Declared` parses them."""
    if option.positional:
        metavar = option.metavar if option.required else f"[{option.metavar}]" + ("..." if option.repeats else "")
        return click.Argument(
            [option.name],
            nargs=-1 if option.repeats else 1,
            required=option.required,
            metavar=metavar,
            help=option.help,
        )
    shown = option.default
    if option.kind == "size" and shown is not None:
        shown = format_size(shown)
    if option.kind == "flag":
        return click.Option([option.flag], is_flag=True, help=option.help)
    return click.Option(
        [option.flag, option.name],
        type=click.Choice(option.choices) if option.choices else click.STRING,
        metavar=None if option.choices else option.metavar,
        default=shown if option.default not in (None, ()) else None,
        show_default=option.default not in (None, ()),
        multiple=option.repeats,
        required=option.required,
        help=option.help,
    )


def examples_text(examples: Sequence[tuple[str, str]]) -> str:
    if not examples:
        return ""
    lines = [line for command, what in examples for line in (f"  # {what}", f"  {command}")]
    return "\b\nExamples:\n" + "\n".join(lines)


def run_recipe(recipe: Recipe, *, log_level: str | None, log_format: str, stats: bool) -> None:
    """Runs it, says what the counts are if asked, and lets errors through."""
    log = Log(log_level or recipe.log_level, log_format)
    pipeline = Pipeline(recipe, log)
    try:
        pipeline.run()
    finally:
        log.close()
        if stats:
            print_stats(pipeline)


def print_stats(pipeline: Pipeline) -> None:
    import msgspec

    counts = {"etl_stats": 1, "run": pipeline.run_id, "steps": [step.as_dict() for step in pipeline.ledger.steps]}
    sys.stderr.write(msgspec.json.encode(counts).decode() + "\n")
    sys.stderr.flush()


def step(name: str, values: dict[str, Any], then: str = "fail") -> StepSpec:
    """A step from option values. Raises UsageError for values that cannot be."""
    component: type[Component] = load(COMPONENTS[name].target)
    given = {key: value for key, value in values.items() if value not in (None, (), "")}
    try:
        return StepSpec(name, name, component.Params(**given), then)
    except ValueError as error:
        option, _, reason = str(error).partition(": ")
        shown = next((known.shown for known in component.Params.options if known.name == option), option)
        raise UsageError(f"{shown}: {reason}" if reason else shown, hint=f"see etl {name} --help") from None


def recipe_of(name: str, kind: str, values: dict[str, Any]) -> Recipe:
    """The recipe a subcommand's line stands for: stdin or files, the stage, stdout or a file."""
    then = values["on_error"]
    if values.get("output") == "" or values["quarantine"] == "":
        raise UsageError("a file's name is empty", hint="a variable that is not set, perhaps; - is standard output")
    if then == "quarantine" and not values["quarantine"]:
        raise UsageError("--on-error quarantine needs --quarantine FILE")
    if values["quarantine"] and then == "fail":
        then = "quarantine"
    if values["max_errors"] and then == "fail":
        raise UsageError(
            "--max-errors needs --on-error skip or a --quarantine", hint="by default the first reject fails the run"
        )
    own = {option.name: values[option.name] for option in load(COMPONENTS[name].target).Params.options}
    source_own = {option.name: values.get(option.name) for option in _source_options()}
    steps: tuple[StepSpec, ...] = ()
    if kind == "source":
        source = step(name, own, then)
    else:
        source = step("read", {**({} if kind == "sink" else source_own), "paths": values.get("inputs", ()),
                               "max_line": values["max_line"]}, then)  # fmt: skip
        if kind == "stage":
            steps = (step(name, own, then),)
    sink = step(name, own, then) if kind == "sink" else step("write", {"path": values["output"] or STDIN}, then)
    try:
        budget, memory = ErrorBudget(values["max_errors"]), parse_size(values["memory"])
    except ValueError as error:
        raise UsageError(str(error)) from None
    return Recipe(name, source, steps, sink, budget, values["quarantine"], memory=memory)


def _source_options() -> list[Option]:
    """Options of `read` that any command takes for its inputs."""
    return [option for option in load(COMPONENTS["read"].target).Params.options if option.name == "max_line"]


def _picked(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names}
