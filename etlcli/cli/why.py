"""`etl why`: what becomes of one record in a recipe, and why."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator

import click
import msgspec

from etlcli.cli.component import examples_text
from etlcli.engine import why as engine
from etlcli.engine.why import Place, StepTrace, Trace, Why
from etlcli.errors import RecipeError, UsageError
from etlcli.io.masking import without_secrets
from etlcli.io.terminal import safe, safe_json
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe

_HELP = """Show what becomes of one record in a recipe: its value before and after every step, the decision, and the reason.

The record is named as logs, messages and quarantines name it: FILE:LINE, the line on which it begins, counted from 1; of
compressed files the line of their content. FILE@OFFSET names it by its first byte. The file need not be one of the
recipe's inputs; it is read with the options of the recipe's source.

The record goes through the recipe's own steps, and nothing comes of it: nothing is published, put into quarantine or
remembered, and cache files are only looked at. Commands, and servers that a lookup reads from, are asked only with
--run-commands; without it the steps behind see the record as it came there. A step that must see all records (sort, group,
batch, dedupe-cache) sees this one alone, and says what cannot be told from that.

The exit code is 0 if the record reaches a sink, or lives on in a group or batch, 1 if it is dropped or rejected, 66 if
there is no such record, and 78 for a recipe that is not good.

--json prints one object. etl_why is 1; recipe, path, line and offset say which record it is; record is the record as
read, or raw (raw_base64 if it is no text) the line that is none. outcome is reached, absorbed, dropped or rejected; sinks
has what reaches each sink, by its id. steps has an object for each step that saw the record: step, uses, kind (source,
stage, route, sink), branch (where there are several sinks), decision (read, passed, changed, held, split, reduced,
absorbed, routed, not_asked, dropped, rejected, reached), reason (lines of text), changes (pointer, old and new), errors
(code, message, pointer, keyword, schema_pointer, value), discarded (by reason), on_error, healed (retry or fallback),
tries, alone (a step that must see all records), and records, where others take the record's place. What is empty is left
out."""

EXAMPLES = (
    ("etl why flights.ndjson:288 --recipe recipe.yaml", "why is this record not in the output, or as it is there"),
    ("etl why flights.csv.gz:289 --recipe recipe.yaml --json", "the same, for a program"),
)
_PLACE = re.compile(r"(.+)([:@])(\d{1,18})", re.DOTALL)
_LONGEST = 20_000
"""Characters of a record that are shown to a person."""
_SAID = {
    engine.READ: "read as a record",
    engine.PASSED: "passed as it is",
    engine.CHANGED: "changed",
    engine.HELD: "held to the end of the input, then passed as it is",
    engine.SPLIT: "others take its place",
    engine.REDUCED: "some of them go on",
    engine.ABSORBED: "lives on in a record that is made of several",
    engine.ROUTED: "routed",
    engine.NOT_ASKED: "not asked",
    engine.DROPPED: "dropped",
    engine.REJECTED: "rejected",
    engine.REACHED: "takes it",
}
_COLOURS = {engine.DROPPED: "yellow", engine.REJECTED: "red", engine.REACHED: "green", engine.NOT_ASKED: "yellow",
            engine.CHANGED: "cyan", engine.ABSORBED: "cyan"}  # fmt: skip
_THEN = {
    "fail": "the run fails, and publishes nothing",
    "skip": "it is skipped",
    "quarantine": "it is put into quarantine",
    "report": "it is reported",
}


def why(place: str, recipe: str, settings: tuple[str, ...], run_commands: bool, as_json: bool) -> int:
    resolved = load_recipe(recipe, settings)
    found = _place(place)
    log = Log("error")
    run = Why(resolved, found, log, run_commands=run_commands)
    try:
        trace = run.trace()
    except UsageError as error:
        if error.where in ("", found.path, str(found)):  # the file is not as it should be, and not the recipe
            raise
        raise RecipeError(f"{error.where}: {error.message}", where=recipe, hint=error.hint) from None
    if as_json:
        sys.stdout.write(safe_json(without_secrets(msgspec.json.encode(trace).decode())) + "\n")
    else:
        style = _styled if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else _plain
        sys.stdout.writelines(without_secrets(line) + "\n" for line in _report(trace, recipe, style))
    return 0 if trace.outcome in (engine.REACHED, engine.ABSORBED) else 1


def _place(text: str) -> Place:
    match = _PLACE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} does not name a record",
            hint="write FILE:LINE, as messages and quarantines do, or FILE@OFFSET",
        )
    return Place(match[1], int(match[3]), match[2] == "@")


# -- For people -------------------------------------------------------------------------------------------------------

Style = Callable[[str, str], str]
"""Text in a colour; a name of click's, or `bold`."""


def _plain(text: str, colour: str) -> str:
    return text


def _styled(text: str, colour: str) -> str:
    return click.style(text, bold=True) if colour == "bold" else click.style(text, fg=colour or None)


def _report(trace: Trace, recipe: str, style: Style) -> Iterator[str]:
    yield style(safe(f"{trace.path}:{trace.line} (byte {trace.offset}) through {recipe}"), "bold")
    yield "  " + _record(trace)
    for step in trace.steps:
        yield ""
        yield from _step(step, style)
    yield ""
    for sink, records in trace.sinks.items():
        for record in records:
            yield f"{style(safe(sink), 'bold')} gets"
            yield "  " + safe(bytes(record).decode(), _LONGEST)
    yield style(safe(_verdict(trace)), "bold")


def _record(trace: Trace) -> str:
    if isinstance(trace.record, msgspec.Raw):
        return safe(bytes(trace.record).decode(), _LONGEST)
    return safe(trace.raw if trace.raw is not None else f"no text; in base 64: {trace.raw_base64}", _LONGEST)


def _step(step: StepTrace, style: Style) -> Iterator[str]:
    name = step.step if step.uses == step.step else f"{step.step} ({step.uses})"
    before = f"{step.branch}: " if step.branch and step.kind != "sink" else ""
    yield f"{style(safe(before + name), 'bold')}  {style(_SAID[step.decision], _COLOURS.get(step.decision, ''))}"
    for line in _details(step):
        yield "  " + safe(line)


def _details(step: StepTrace) -> Iterator[str]:
    for error in step.errors:
        at = f" at {error.pointer}" if error.pointer else ""
        by = f" (keyword {error.keyword}, {error.schema_pointer})" if error.schema_pointer else ""
        yield f"{error.code}: {error.message}{at}{by}"
    if step.tries > 1:
        yield f"tried {step.tries} times"
    if step.healed:
        yield f"healed by {step.healed}"
    if step.on_error:
        yield f"on_error is {step.on_error}: {_THEN[step.on_error]}"
    for reason, count in step.discarded.items():
        yield f"{reason}: {count}"
    yield from step.reason
    for change in step.changes:
        yield f"{change.pointer or 'the record'}  {_value(change.old)} -> {_value(change.new)}"
    if step.decision == engine.CHANGED and not step.changes:
        yield "only the order of its fields, or the space between them"
    for record in step.records:
        yield bytes(record).decode()


def _value(raw: msgspec.Raw | msgspec.UnsetType) -> str:
    return bytes(raw).decode() if isinstance(raw, msgspec.Raw) else "nothing"


def _verdict(trace: Trace) -> str:
    alone = [step.step for step in trace.steps if step.alone]
    unasked = [step.step for step in trace.steps if step.decision == engine.NOT_ASKED]
    last = next((step for step in trace.steps if step.on_error), trace.steps[-1]).step
    said = {
        engine.REACHED: f"It reaches {', '.join(trace.sinks)}",
        engine.ABSORBED: "It lives on in a record that is made of several",
        engine.REJECTED: f"It does not reach the output: {last} rejects it",
        engine.DROPPED: f"It does not reach the output: {last} drops it",
    }[trace.outcome]
    far = f"; {', '.join(alone)} saw it alone" if alone else ""
    return said + far + (f"; {', '.join(unasked)} was not asked" if unasked else "") + "."


class _Command(click.Command):
    """`-:1` is no option, but standard input, which has an answer of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [re.sub(r"^-(?=[:@])", engine.STDIN_SHOWN, word) for word in args])


command = _Command(
    "why",
    callback=why,
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    params=[
        click.Argument(["place"], metavar="FILE:LINE", help="The record: its file and line, or FILE@OFFSET."),
        click.Option(["--recipe"], metavar="FILE", required=True, help="The recipe."),
        click.Option(["--set", "settings"], multiple=True, metavar="PATH=VALUE", help="Change a value of the recipe."),
        click.Option(["--run-commands"], is_flag=True, help="Ask the commands and servers that the steps ask."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
    ],
)
