"""A component as a subcommand: options from its `Params`, shared options beside them, and the recipe both stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click
import msgspec

from etlcli.cli.watching import Wishes, observers, watched
from etlcli.core.fields import parse_path
from etlcli.core.params import Declared, Option, format_backoff, format_size, parse_size, parse_workers
from etlcli.core.policy import THEN, ErrorBudget, Retry
from etlcli.core.stage import DEFAULT_MEMORY, Component
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import UsageError
from etlcli.io.inputs import STDIN
from etlcli.io.masking import hidden
from etlcli.observe.logs import FORMATS, LEVELS, Log
from etlcli.recipe.files import check_beside
from etlcli.recipe.model import Fallback, OnError, Recipe, StepSpec
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


def shared_options() -> list[click.Parameter]:
    """The options every record command has, beside its own."""
    return [
        click.Option(["--on-error"], type=click.Choice(THEN), default="fail", show_default=True,
                     help="What to do with a record that is rejected."),
        *map(click_parameter, Retry.options),
        click.Option(["--fallback"], metavar="JSON", help="A record that goes on in place of a rejected one."),
        click.Option(["--fallback-set"], metavar="FIELD=JSON", multiple=True,
                     help="Let a rejected record go on with a field set."),
        click.Option(["--quarantine"], metavar="FILE", help="Append rejected records here, with the reasons."),
        click.Option(["--max-errors"], metavar="N|P%", help="Rejects that skip and quarantine may pass over."),
        click.Option(["--memory"], metavar="SIZE", default=format_size(DEFAULT_MEMORY), show_default=True,
                     help="Memory for records that must be held."),
        click.Option(["--workers"], metavar="N|auto", default="auto", show_default=True,
                     help="Processes that read and prepare records; auto takes more than one for large files."),
        unordered_option(),
        click.Option(["--stats"], is_flag=True, help="Print the counts of every step as JSON on stderr."),
        *log_options(),
        *watch_options(),
    ]  # fmt: skip


def watch_options() -> list[click.Parameter]:
    return [
        click.Option(["--progress/--no-progress"], default=None,
                     help="Show how far long work is, or do not: a line on a terminal, log lines elsewhere."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Say nothing on stderr but errors."),
    ]  # fmt: skip


def unordered_option() -> click.Parameter:
    return click.Option(["--unordered"], is_flag=True, help="Let records go on as they are ready, in any order.")


def log_options() -> list[click.Parameter]:
    return [
        click.Option(["--log-level"], type=click.Choice(LEVELS), default=None, help="Least level that is logged."),
        click.Option(["--log-format"], type=click.Choice(FORMATS), default=None,
                     help="Form of the log lines; auto, the default, is console on a terminal and logfmt elsewhere."),
    ]  # fmt: skip


def component_command(name: str) -> click.Command:
    """The click command of a registered component."""
    entry = COMPONENTS[name]
    component: type[Component] = load(entry.target)
    command = next((option for option in component.Params.options if option.kind == "command"), None)
    sharing = [option for option in component.Params.options if option.takes or option is command]
    shared = {flag for parameter in shared_options() for flag in parameter.opts}
    separate = [option for option in component.Params.options if option not in sharing]
    parameters = [click_parameter(option) for option in separate if option.flag not in shared or option.positional]
    own = {option.name for option in component.Params.options}
    if entry.kind != "sink":
        parameters.append(click.Option(["-o", "--output"], metavar="FILE", help="Write to FILE, all or nothing."))
    if entry.kind == "stage":
        parameters.append(_inputs(sharing))
    if entry.kind != "source":
        parameters += [click_parameter(option) for option in _source_options() if option.name not in own]

    def run(**values: Any) -> None:
        run_recipe(recipe_of(name, entry.kind, values), Wishes.of(values), stats=values["stats"])

    return _Command(
        name, callback=run, params=[*parameters, *shared_options()], short_help=entry.help,
        help=component.help, epilog=examples_text(component.examples), behind=command.name if command else None,
    )  # fmt: skip


class _Command(click.Command):
    """A command for which `behind` takes what stands behind --, where it has such an option."""

    def __init__(self, *args: Any, behind: str | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._behind = behind

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self._behind is not None:
            end = args.index("--") if "--" in args else len(args)
            ctx.params[self._behind] = tuple(args[end + 1 :])
            args = args[:end]
        return super().parse_args(ctx, args)


def _inputs(sharing: Sequence[Option]) -> click.Parameter:
    """The input files; and, before them or among them, the words that positional options of the stage take."""
    if not sharing:
        return click_parameter(INPUTS)

    def deal(ctx: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
        for option in [option for option in sharing if option.takes]:
            own = tuple(filter(option.takes, words))
            if option.required and not own:
                raise click.MissingParameter(ctx=ctx, param_hint=option.metavar, param_type="argument")
            for word in filter(os.path.exists, own):
                raise click.UsageError(f"{word} can be read as {option.metavar} and is a file too; write ./{word}", ctx)
            ctx.params[option.name] = own
            words = tuple(word for word in words if word not in own)
        return words

    before, behind = [option for option in sharing if option.takes], [option for option in sharing if not option.takes]
    metavar = " ".join(
        [*(f"[{option.metavar}]..." for option in (*before, INPUTS)), *(f"-- {option.metavar}..." for option in behind)]
    )
    help = " ".join(option.help for option in (*before, INPUTS, *behind))
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
    if option.kind == "backoff":
        shown = format_backoff(shown)
    if option.kind == "duration" and shown is not None:
        shown = f"{shown:g}s"
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


def run_recipe(recipe: Recipe, wishes: Wishes, *, stats: bool, **start: bool) -> None:
    """Runs it, says what the counts are if asked, and lets errors through. `start` is as for `Pipeline`."""
    log = recipe_log(recipe, wishes)
    pipeline = Pipeline(recipe, log, **start)
    try:
        with watched(pipeline.watch, observers(recipe, pipeline.watch, log, wishes), log):
            pipeline.run()
    finally:
        log.close()
        if stats:
            print_stats(pipeline)


def recipe_log(recipe: Recipe, wishes: Wishes) -> Log:
    """The log that a recipe asks for; a level given on the command line is that of all steps. Raises CannotCreateError,
    and UsageError when the log would go into a file of records."""
    spec, level = recipe.logging, wishes.level
    check_beside(recipe, wishes.report_paths)
    return Log(
        level or spec.level,
        wishes.format or spec.format,
        path=spec.file and os.path.join(recipe.base_dir, spec.file),
        per_step={} if level else dict(spec.per_step),
        sample=spec.sample,
        every=spec.every,
    )


def print_stats(pipeline: Pipeline) -> None:
    import msgspec

    counts = {"etl_stats": 1, "run": pipeline.run_id, "steps": pipeline.ledger.as_list()}
    with suppress(OSError):  # the reader has gone, and the run is over
        os.write(2, hidden(msgspec.json.encode(counts).decode()).encode() + b"\n")


def step(name: str, values: dict[str, Any], on_error: OnError | None = None) -> StepSpec:
    """A step from option values. Raises UsageError for values that cannot be."""
    component: type[Component] = load(COMPONENTS[name].target)
    return StepSpec(name, name, declared(component.Params, values, name), on_error or OnError())


def declared(options: type[Declared], values: dict[str, Any], name: str) -> Any:
    given = {key: value for key, value in values.items() if value not in (None, ())}
    try:
        return options(**given)
    except ValueError as error:
        option, _, reason = str(error).partition(": ")
        shown = next((known.shown for known in options.options if known.name == option), option)
        raise UsageError(f"{shown}: {reason}" if reason else shown, hint=f"see etl {name} --help") from None


def on_error_of(name: str, kind: str, values: dict[str, Any]) -> OnError:
    """The policy that the shared options ask for."""
    then = values["on_error"]
    if then == "quarantine" and not values["quarantine"]:
        raise UsageError("--on-error quarantine needs --quarantine FILE")
    if values["quarantine"] and then == "fail":
        then = "quarantine"
    if values["max_errors"] and then == "fail":
        raise UsageError(
            "--max-errors needs --on-error skip or a --quarantine", hint="by default the first reject fails the run"
        )
    retry = declared(Retry, {option.name: values[option.name] for option in Retry.options}, name)
    return OnError(retry, fallback_of(kind, values["fallback"], values["fallback_set"]), then)


def fallback_of(kind: str, value: str | None, settings: Sequence[str]) -> Fallback | None:
    if value is not None and settings:
        raise UsageError("--fallback and --fallback-set do not go together")
    if kind == "source" and settings:
        raise UsageError("--fallback-set: a line that is no record has no fields", hint="use --fallback JSON")
    if value is not None:
        return Fallback(value=bytes(_json(value, dict[str, msgspec.Raw], "--fallback", "a JSON object")))
    changes = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(
                f"--fallback-set {setting!r} is not FIELD=JSON", hint="for example --fallback-set status=null"
            )
        try:
            changes.append((parse_path(path), _json(text, Any, "--fallback-set", "JSON")))
        except ValueError as error:
            raise UsageError(f"--fallback-set: {error}") from None
    return Fallback(set=tuple(changes)) if changes else None


def _json(text: str, kind: Any, flag: str, what: str) -> msgspec.Raw:
    try:
        msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise UsageError(f"{flag}: {text!r} is not {what}: {error}") from None
    return msgspec.Raw(text.replace("\n", " ").encode())


def recipe_of(name: str, kind: str, values: dict[str, Any]) -> Recipe:
    """The recipe a subcommand's line stands for: stdin or files, the stage, stdout or a file."""
    if values.get("output") == "" or values["quarantine"] == "":
        raise UsageError("a file's name is empty", hint="a variable that is not set, perhaps; - is standard output")
    on_error = on_error_of(name, kind, values)
    # Lines that are no records, and records that a file refuses, have the same last word but nothing to be tried again.
    neighbour = OnError(then=on_error.then)
    own = {option.name: values.get(option.name) for option in load(COMPONENTS[name].target).Params.options}
    source_own = {option.name: values.get(option.name) for option in _source_options()}
    steps: tuple[StepSpec, ...] = ()
    if kind == "source":
        source = step(name, own, on_error)
    else:
        source = step("read", {**({} if kind == "sink" else source_own), "paths": values.get("inputs", ()),
                               "max_line": values["max_line"]}, neighbour)  # fmt: skip
        if kind == "stage":
            steps = (step(name, own, on_error),)
    sink = (
        step(name, own, on_error) if kind == "sink" else step("write", {"path": values["output"] or STDIN}, neighbour)
    )
    try:
        budget, memory = ErrorBudget(values["max_errors"]), parse_size(values["memory"])
        workers = parse_workers(values["workers"])
    except ValueError as error:
        raise UsageError(str(error)) from None
    ordered = not values["unordered"]
    return Recipe(
        name, source, steps, sink, budget, values["quarantine"], memory=memory, workers=workers, ordered=ordered
    )


def _source_options() -> list[Option]:
    """Options of `read` that any command takes for its inputs."""
    return [option for option in load(COMPONENTS["read"].target).Params.options if option.name == "max_line"]
