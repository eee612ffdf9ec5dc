"""One record through all steps of a recipe, to see what becomes of it and why.

The source is the recipe's, with its options, and reads one file: the one that the record is in. The steps are those of a
run, with their policies, and get this record alone. Nothing is published, put aside or remembered: what steps write goes
nowhere, caches are only looked at, and what a step would ask outside (a command, a server) is asked only if it is said so.

What a step does is told by what it counts, the same for every stage; by what it goes by, a stage that `Explains` tells
itself. Of steps that must see all records it is shown what they do with this one, as far as that can be told.
"""

from __future__ import annotations

import os
import stat
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import msgspec

from etlcli.core.batch import Batch, Origin, Reject, lines_of
from etlcli.core.explain import Change, changes, judged
from etlcli.core.expressions import Expression
from etlcli.core.files import Output
from etlcli.core.ledger import StepCount
from etlcli.core.policy import ErrorBudget, Policy
from etlcli.core.stage import Context, Explains, Prepared, Source, Stage
from etlcli.engine.pipeline import Pipeline
from etlcli.engine.step import StageStep, Step
from etlcli.errors import InputMissingError, UsageError
from etlcli.formats import RawChunk, ReadOptions
from etlcli.formats.ndjson import Reader
from etlcli.io.compression import opened
from etlcli.io.inputs import STDIN, check_input, is_url, open_file
from etlcli.io.masking import masked
from etlcli.io.stepfiles import StepFiles
from etlcli.observe.logs import Log
from etlcli.recipe.files import check_files
from etlcli.recipe.model import Branch, Recipe, StepSpec
from etlcli.registry import find

STDIN_SHOWN = "<stdin>"
"""What origins call standard input."""
_NOTHING = Batch.of_lines([])
_MAX_LINE = 1 << 30
_SHOWN = 100
"""Records, of many that a step makes of one."""

READ, PASSED, CHANGED, HELD = "read", "passed", "changed", "held"
SPLIT, REDUCED, ABSORBED, ROUTED = "split", "reduced", "absorbed", "routed"
DROPPED, REJECTED, NOT_ASKED, REACHED = "dropped", "rejected", "not_asked", "reached"


class Place(NamedTuple):
    """Which record of a file: by the line on which it begins, from 1, or by the offset of its first byte."""

    path: str
    number: int
    by_offset: bool = False

    def __str__(self) -> str:
        return f"{self.path}{'@' if self.by_offset else ':'}{self.number}"


class Error(msgspec.Struct, omit_defaults=True):
    code: str
    message: str
    pointer: str = ""
    keyword: str = ""
    schema_pointer: str = ""
    value: Any = msgspec.UNSET
    """An excerpt."""


class StepTrace(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What one step did."""

    step: str
    uses: str
    kind: str
    """source, stage, route, or sink."""
    branch: str | None = None
    """The sink that this step belongs to, where there are several."""
    decision: str
    """read, passed, changed; held: it goes on at the end of the input; split: others take its place; reduced: some of
    those go on; absorbed: it lives on in a record that is made of several; routed; not_asked: it would be decided outside;
    dropped; rejected; reached: a sink takes it."""
    reason: list[str] = []
    changes: list[Change] = []
    errors: list[Error] = []
    """Why it was rejected, also if it was healed then."""
    discarded: dict[str, int] = {}
    """By reason, what was dropped on purpose."""
    on_error: str | None = None
    """Of a record that is rejected: fail, skip, quarantine or report."""
    healed: str | None = None
    """By what: retry or fallback."""
    tries: int = 1
    alone: bool = False
    """Whether the step must see all records, and saw this one alone."""
    records: list[msgspec.Raw] = []
    """What goes on, where it is not what came; the first 100."""


class Trace(msgspec.Struct, omit_defaults=True, kw_only=True):
    """All that became of a record."""

    etl_why: int
    recipe: str
    path: str
    line: int
    offset: int
    record: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """As it was read; UNSET of a line that is no record."""
    raw: str | None = None
    """Of such a line; `raw_base64` if it is no text."""
    raw_base64: str | None = None
    outcome: str = ""
    """reached, absorbed, dropped or rejected."""
    sinks: dict[str, list[msgspec.Raw]] = {}
    """What reaches each sink, by its id."""
    steps: list[StepTrace] = []


class Why(Pipeline):
    """`trace` may be asked for once."""

    def __init__(self, recipe: Recipe, place: Place, log: Log, *, run_commands: bool = False) -> None:
        """Raises UsageError, and InputMissingError, for a place that cannot be read."""
        options = [option for option in recipe.source.params.options if option.kind == "paths"]
        if not options:
            raise UsageError(f"{recipe.source.uses} reads no files", where=f"step {recipe.source.id}")
        _check_place(place)
        params = copy(recipe.source.params)
        setattr(params, options[0].attribute, (os.path.abspath(place.path),))
        super().__init__(recipe._replace(source=recipe.source._replace(params=params), budget=ErrorBudget()), log)
        self._place = place
        self._rejected: list[Reject] = []
        self._asks = run_commands
        self._unasked: dict[str, str] = {}
        """What fallbacks would have asked, by step."""
        self._checking = not run_commands

    def trace(self) -> Trace:
        """Raises InputMissingError where no record is, and UsageError for what a component refuses."""
        check_files(self.recipe)
        with ExitStack() as resources:
            source = self._source(self.ledger.open(self.recipe.source.id), (), resources)
            steps = self._stages(self.recipe.steps, source.count, resources)
            found, origin = _found(source.component, self._place)
            trace = Trace(
                etl_why=1,
                recipe=_named(self.recipe.name),
                path=_named(self._place.path),
                line=origin.line,
                offset=origin.offset,
            )
            for reject in found.rejects:
                trace.raw, trace.raw_base64 = _as_text(reject.raw)
            for line in found.batch.lines:
                trace.record = _compact(line)
            read, batch = self._told(
                source, self.recipe.source, "source", found.batch, partial(source.outputs, found, 1, found.batch),
                found.rejects,
            )  # fmt: skip
            read.decision = READ if read.decision == PASSED else read.decision
            trace.steps.append(read)
            batch = self._through(steps, self.recipe.steps, batch, trace)
            if batch.count:
                self._out(batch, steps[-1].count if steps else source.count, trace, resources)
            trace.outcome = _outcome(trace)
            return trace

    # -- steps --------------------------------------------------------------------------------------------------------

    def _through(
        self,
        steps: Sequence[StageStep],
        specs: Sequence[StepSpec],
        batch: Batch,
        trace: Trace,
        branch: str | None = None,
    ) -> Batch:
        """What is left behind these steps."""
        for step, spec in zip(steps, specs, strict=True):
            if not batch.count:
                break
            told, batch = self._stage(step, spec, batch)
            told.branch = branch
            trace.steps.append(told)
        return batch

    def _stage(self, step: StageStep, spec: StepSpec, batch: Batch) -> tuple[StepTrace, Batch]:
        stage = step.component
        alone = stage.scope == "all"
        if stage.asks and not self._asks:
            explained = stage.explain(batch) if isinstance(stage, Explains) and batch.count == 1 else []
            reason = [f"{stage.asks} decides, and was not asked (--run-commands)", *explained]
            return StepTrace(step=spec.id, uses=spec.uses, kind="stage", decision=NOT_ASKED, reason=reason), batch
        seen: list[Reject] = []
        reject = stage.ctx.reject

        def noting(rejects: Sequence[Reject]) -> None:
            seen.extend(rejects)
            reject(rejects)

        stage.ctx.reject = noting
        prepared = stage.prepare(batch)
        seen += prepared.rejects
        told, left = self._told(
            step, spec, "stage", batch, partial(step.outputs, prepared, batch.count, batch), seen, step.finished
        )
        told.alone = alone
        if step.count.absorbed and alone:
            told.decision, left = ABSORBED, _NOTHING
        if stage.reports:
            told.on_error = told.on_error and "report"
            told.reason.append("this step only reports, and puts no record out")
        elif batch.count == 1 and not seen and isinstance(stage, Explains):
            told.reason += stage.explain(batch)
        return told, left

    def _told(
        self,
        step: Step,
        spec: StepSpec,
        kind: str,
        before: Batch,
        work: Callable[[], Iterable[Batch]],
        seen: Sequence[Reject],
        finish: Callable[[], Iterable[Batch]] = tuple,
    ) -> tuple[StepTrace, Batch]:
        """What a step did in `work` and `finish`, and what goes on. `seen` are the rejects there were, before anything was
        done to heal them."""
        self._rejected.clear()
        at_once = [line for batch in work() for line in batch.lines]
        lines = at_once + [line for batch in finish() for line in batch.lines]
        lost, count = list(self._rejected), step.count
        told = StepTrace(
            step=spec.id,
            uses=spec.uses,
            kind=kind,
            decision=_decision(before, lines, lost, held=not at_once),
            errors=[error for reject in (lost or seen)[:_SHOWN] for error in _errors(reject)],
            discarded=dict(count.discarded),
            on_error=spec.on_error.then if lost else None,
            healed=next(iter(count.healed), None),
            tries=max([1 + count.retries, *(reject.attempts for reject in lost)]),
        )
        if lost and spec.id in self._unasked:
            told.reason.append(f"its fallback asks {self._unasked[spec.id]}, and did not (--run-commands)")
        if before.count == len(lines) == 1 and lines != before.lines:
            told.changes = list(changes(before.lines[0], lines[0]))
        elif lines != before.lines:
            told.records = list(map(_compact, lines[:_SHOWN]))
        return told, Batch.of_lines(lines)

    # -- outlets ------------------------------------------------------------------------------------------------------

    def _out(self, batch: Batch, above: StepCount, trace: Trace, resources: ExitStack) -> None:
        """Into the sink, or to those of several that it is for."""
        recipe = self.recipe
        if recipe.sink:
            self._end(recipe.outlets[0], batch, above, trace, resources)
            return
        name = "route" if recipe.routed else "sinks"
        count = self.ledger.open(name, above)
        told = StepTrace(step=name, uses=name, kind="route", decision=DROPPED)
        trace.steps.append(told)
        for branch in recipe.branches:
            mine, left = self._chosen(batch, branch, told)
            if mine.count:
                told.decision = ROUTED
                told.reason.append(f"goes to {branch.sink.id}")
                self._end(branch, mine, count, trace, resources)
            batch = left if recipe.routed else batch
            if not batch.count:
                return
        if recipe.routed:
            told.discarded["no_route"] = batch.count
            told.reason.append("no entry takes it")

    def _chosen(self, batch: Batch, branch: Branch, told: StepTrace) -> tuple[Batch, Batch]:
        """What goes to a branch, and what is left for the next."""
        if branch.when is None:
            return batch, _NOTHING
        condition = Expression(branch.when, now=self._started)
        kept, errors = condition.select(batch.count, batch.columns(condition.paths))
        if batch.count == 1:
            told.reason += [f"{branch.sink.id}: {line}" for line in judged(batch, condition)]
        for index, error in errors.items():
            told.decision, told.on_error = REJECTED, branch.then
            told.errors += _errors(batch.reject(index, "bad_type", [error]))
        return batch.take(kept), batch.without({*kept, *errors})

    def _end(self, branch: Branch, batch: Batch, above: StepCount, trace: Trace, resources: ExitStack) -> None:
        """Through a branch's steps into its sink."""
        name = branch.sink.id if self.recipe.branches else None
        steps = self._stages(branch.steps, above, resources)
        batch = self._through(steps, branch.steps, batch, trace, name)
        if not batch.count:
            return
        told, batch = self._sunk(branch.sink, batch, steps[-1].count if steps else above, resources)
        told.branch = name
        trace.steps.append(told)
        if batch.count:
            trace.sinks[branch.sink.id] = list(map(_compact, batch.lines[:_SHOWN]))

    def _sunk(self, spec: StepSpec, batch: Batch, above: StepCount, resources: ExitStack) -> tuple[StepTrace, Batch]:
        if find("sink", spec.uses).elsewhere:
            reason = ["whether it takes the record was not asked"]
            return StepTrace(step=spec.id, uses=spec.uses, kind="sink", decision=REACHED, reason=reason), batch
        step = self._sink(spec, self.ledger.open(spec.id, above), resources, nowhere=False)

        def taken() -> list[Batch]:
            step.write(batch)
            return [batch.without({reject.index for reject in self._rejected if reject.index is not None})]

        told, left = self._told(step, spec, "sink", batch, taken, ())
        told.decision = REACHED if left.count else told.decision
        return told, left

    # -- what a run does otherwise ------------------------------------------------------------------------------------

    def _context(self, spec: StepSpec, count: StepCount, policy: Policy, resources: ExitStack, **rest: Any) -> Context:
        return super()._context(spec, count, policy, resources, trial=True, **rest)

    def _fallback(self, spec: StepSpec, ctx: Context) -> list[Stage]:
        stages = super()._fallback(spec, ctx)
        for at, stage in enumerate(stages if not self._asks else ()):
            if stage.asks:
                self._unasked[spec.id] = stage.asks
                stages[at] = _Unasked({}, ctx)
        return stages

    def _files(self, step: str, resources: ExitStack) -> StepFiles:
        return _NoFiles(step, resources, self._log)

    def _policy(self, then: str) -> Policy:
        return Policy("skip", lambda _, rejects: self._rejected.extend(rejects), self.recipe.budget, self.ledger)


class _Unasked(Stage):
    """Stands in a fallback for a stage that would ask somebody: it saves no record."""

    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch.take([]), [batch.reject(0, "command_failed", [{"message": "not asked"}])])


class _NoFiles(StepFiles):
    """What is written to its outputs is gone."""

    def output(self, path: str, *, exclusive: bool = False, append: bool = False) -> Output:
        return _Nowhere()


class _Nowhere(Output):
    path = ""

    def write(self, block: bytes) -> None:
        pass

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


# -- Finding the record -----------------------------------------------------------------------------------------------


def _check_place(place: Place) -> None:
    """Raises UsageError for what cannot be read twice, InputMissingError for what is not there."""
    path = place.path
    if path in (STDIN, STDIN_SHOWN) or is_url(path):
        raise UsageError(
            f"{masked(path)} is no file: it cannot be read for one record",
            where=masked(path),
            hint="put its content into a file, and name the record in that",
        )
    check_input(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UsageError(
            f"{path} is a pipe or a device: reading it would take its records away",
            where=path,
            hint="put its content into a file, and name the record in that",
        )


def _found(source: Source, place: Place) -> tuple[Prepared, Origin]:
    """The record, or the line that is none, and where it is. Raises InputMissingError where nothing is."""
    found: list[tuple[Origin, Prepared]] = []
    before: int | None = None
    after: int | None = None
    for part in source.parts():
        prepared = part if isinstance(part, Prepared) else source.prepare(part)
        source.apply(prepared)
        last = max((_number(origin, place) for origin in _ends(prepared)), default=0)
        if last < place.number:
            before = last or before
            continue
        for origin, single in _singles(prepared):
            number = _number(origin, place)
            if number < place.number:
                before = number if before is None else max(before, number)
            elif number > place.number:
                after = number if after is None else min(after, number)
            else:
                found.append((origin, single))
        if after is not None or len(found) > 1:
            break
    if len(found) > 1:
        offsets = ", ".join(f"{place.path}@{origin.offset}" for origin, _ in found[:2])
        raise UsageError(f"{place}: several records begin there", where=str(place), hint=f"say which: {offsets}, ...")
    if found:
        return found[0][1], found[0][0]
    raise _nothing(place, before, after)


def _nothing(place: Place, before: int | None, after: int | None) -> InputMissingError:
    """Why there is nothing, by where the nearest records begin."""
    what = "offset" if place.by_offset else "line"
    if _is_blank(place):
        message = f"{place}: the line is blank, there is no record"
    elif after is None:
        last = f"the last record begins at {what} {before}" if before is not None else "there is no record at all"
        message = f"{place}: there is no such {what}; {last}"
    else:
        near = " and ".join(str(number) for number in (before, after) if number is not None)
        message = f"{place}: no record begins at that {what}; the nearest begin at {near}"
    return InputMissingError(message, where=str(place), hint="lines are counted from 1, offsets in bytes from 0")


def _is_blank(place: Place) -> bool:
    """Whether there is such a line, and nothing on it."""
    with closing(open_file(place.path)) as stream:
        options = ReadOptions("ndjson", place.path, Log("error"), max_line=_MAX_LINE)
        for part in Reader(opened(stream), options).chunks():
            if isinstance(part, RawChunk) and not place.by_offset:
                lines, at = lines_of(part.chunk), place.number - part.span.line
                if 0 <= at < len(lines):
                    return not lines[at].strip()
    return False


def _number(origin: Origin, place: Place) -> int:
    return origin.offset if place.by_offset else origin.line


def _ends(prepared: Prepared) -> Iterator[Origin]:
    """Where the last of a part come from."""
    if prepared.batch.count and (origin := prepared.batch.origin(prepared.batch.count - 1)):
        yield origin
    if prepared.rejects and (origin := prepared.rejects[-1].origin):
        yield origin


def _singles(prepared: Prepared) -> Iterator[tuple[Origin, Prepared]]:
    """Each record of a part, and each line that is none."""
    for index in range(prepared.batch.count):
        if origin := prepared.batch.origin(index):
            yield origin, Prepared(prepared.batch.take([index]))
    for reject in prepared.rejects:
        if reject.origin:
            origin, reject.index = reject.origin, 0
            yield origin, Prepared(_NOTHING, [reject])


# -- Saying it --------------------------------------------------------------------------------------------------------


def _decision(before: Batch, lines: list[bytes], lost: Sequence[Reject], *, held: bool) -> str:
    if not lines:
        return REJECTED if lost else DROPPED
    if len(lines) != before.count:
        return SPLIT if len(lines) > before.count else REDUCED
    if lines != before.lines:
        return CHANGED
    return HELD if held else PASSED


def _errors(reject: Reject) -> list[Error]:
    return [
        Error(
            code=reject.code,
            message=error["message"],
            **{name: error[name] for name in ("pointer", "keyword", "schema_pointer", "value") if name in error},
        )
        for error in reject.errors[:_SHOWN]
    ]


def _outcome(trace: Trace) -> str:
    """One reject that fails the run means that nothing is published, wherever else the record went."""
    decisions = {step.decision for step in trace.steps}
    failed = any(step.on_error == "fail" for step in trace.steps)
    if trace.sinks and not failed:
        return REACHED
    return next((each for each in (REJECTED, ABSORBED) if each in decisions or (failed and each == REJECTED)), DROPPED)


def _compact(line: bytes) -> msgspec.Raw:
    """Without space between its parts, which are spelled as they were."""
    return msgspec.Raw(msgspec.json.format(line, indent=-1))


def _named(name: str) -> str:
    """A name that a file has; bytes in it that are no UTF-8 are spelled out."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _as_text(raw: bytes) -> tuple[str | None, str | None]:
    """As text or, where it is none, in base 64."""
    try:
        return raw.decode(), None
    except UnicodeDecodeError:
        return None, b64encode(raw).decode()
