"""Runs a recipe in this process.

Batches are pulled: the sink asks the last step, that one the step before it, and the source reads a chunk only when
asked, so that at any time there is one chunk in flight and a slow sink slows the reading. Counting, policy and
clean-up are done here and nowhere else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from etlcli.core.batch import Batch, Reject
from etlcli.core.fields import Derived, Path, fields_of
from etlcli.core.files import Files
from etlcli.core.ledger import Ledger, StepCount
from etlcli.core.policy import Handler, Policy
from etlcli.core.projection import projection
from etlcli.core.stage import PART, Context, Sink, Source, Stage, State
from etlcli.engine.drain import Drain
from etlcli.engine.head import Head, Result, Worked
from etlcli.engine.metering import Metering
from etlcli.engine.outlet import Fork, Outlet, Route
from etlcli.engine.recovery import tried
from etlcli.engine.step import SinkStep, SourceStep, StageStep, Step
from etlcli.engine.watch import Watch
from etlcli.errors import FindingsError, Interrupted, LedgerError, RecipeError, TimedOut, TryLaterError, UsageError
from etlcli.io.signals import held
from etlcli.io.stepfiles import StepFiles
from etlcli.observe.logs import Log, now
from etlcli.observe.status import PUBLISHING
from etlcli.recipe.files import check_files
from etlcli.recipe.model import Branch, Recipe, StepSpec
from etlcli.registry import find

if TYPE_CHECKING:
    from etlcli.engine.checkpoint import Keeper
    from etlcli.engine.manifest import Manifest
    from etlcli.engine.quarantine import Quarantine


_WORTH = 16 << 20
"""Bytes of input for which another process pays."""
_AHEAD = 4
_LARGE = 4
"""Blocks of the largest parts."""
_ROUNDS = 4
"""How often all windows should be filled."""


class Pipeline:
    """One run of a recipe. A run that is not good raises before the sink publishes anything (what went to standard output
    is out); `ledger` has the counts either way."""

    def __init__(self, recipe: Recipe, log: Log, *, fresh: bool = False, resume_only: bool = False) -> None:
        """Of a recipe with a checkpoint directory: `fresh` forgets what is there, `resume_only` begins no new run."""
        self.recipe = recipe
        self._fresh = fresh
        self._resume_only = resume_only
        self._keeper: Keeper | None = None
        self._drain = Drain()
        self._claims: dict[str, str] = {}
        self.ledger = Ledger()
        self.run_id = os.urandom(8).hex()
        self._started = time.time()
        self.watch = Watch(recipe, self.ledger, self.run_id, self._started)
        self._log = log
        self._log_about()
        self._metering = Metering(recipe, self._started, None, log)
        self._findings = 0
        self._checking = False
        self._quarantine: Quarantine | None = None

    def run(self) -> None:
        """Raises an EtlError for whatever ended the run. Temporary files are gone by then, also after a signal."""
        try:
            self._run()
        except LedgerError:  # which shows what is wrong
            raise
        except BaseException:
            self.ledger.abandon()
            raise

    def _run(self) -> None:
        self._check_recipe()
        with ExitStack() as resources:
            before = self._resume(resources)
            if before:
                self._metering = Metering(self.recipe, self._started, before.custom, self._log)
            self.watch.custom = self._metering.status
            if self.recipe.quarantines:
                from etlcli.engine.quarantine import Quarantine

                position = before.quarantine if before else None
                self._quarantine = resources.enter_context(Quarantine(self.recipe, self.run_id, position))
            if before and before.complete:
                self._publish_rest(before, resources)
                return
            plan = self._build(resources)
            if before:
                self.ledger.restore(before.counts, before.efforts)
            self.watch.steps = plan.steps
            self.watch.expect(plan.source.component.left())
            self.watch.begin_to_run()
            self._flow(plan, resources)
            for step in plan.steps:
                step.finish_fallback()
            self.recipe.budget.check(self.ledger, finished=True)
            self.ledger.check()
            if self._findings:
                raise FindingsError(f"records with findings: {self._findings} of {self.ledger.received}")
            for sink in plan.outlet.sinks:
                sink.finish()
            self.watch.state = PUBLISHING
            # Half of the files published, or the keys of what was published forgotten, would be worse than a moment's
            # delay; and a run that is done must not look like one that was interrupted.
            with held(lapse=True):
                if self._keeper:
                    self._take_checkpoint(plan, complete=True)
                # A file can be published when a database has had its say, and not the other way round.
                for sink in sorted(plan.outlet.sinks, key=lambda sink: not sink.component.elsewhere):
                    sink.component.commit()
                # Only now: what a stage remembers of records that were never published would lose them in the next run.
                for step in () if _reporting(plan.stages) else plan.steps:
                    step.commit_state()
                if self._keeper:
                    self._keeper.finished(**self._content(plan.source.component.snapshot()))
            self._say_finished()

    def _flow(self, plan: Plan, resources: ExitStack) -> None:
        """All records, from the source to the sinks."""
        source, trunk, outlet = plan
        length = self._head_length(trunk)
        head = Head(source, trunk[:length], _behind(source, trunk, length))
        here = self.ledger.steps[length if length and not trunk[length - 1].is_pure else length + 1]
        results = self._results(source, head, here, resources)
        if self._keeper:
            resources.enter_context(self._drain.installed(lambda: head.is_level))
            if self._keeper.before is None:  # from now on it is known which run this is
                self._take_checkpoint(plan)
            batches = head.batches(
                self._drawn(results, plan, head), self._drain.deferred, partial(self._rest, plan, head)
            )
        else:
            batches = head.batches(results, nullcontext, _no_rest)
        for stage in trunk[length:]:
            batches = stage.through(self._entering(stage.count, batches))
        for batch in self._entering(self.ledger.steps[len(trunk) + 1], batches):
            outlet.put(batch)
        outlet.finish()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _resume(self, resources: ExitStack) -> Manifest | None:
        """The checkpoint to go on from, if there is one."""
        # The first records of an input are a look at it, and nothing to go on from.
        if not self.recipe.checkpoint or self.recipe.limit:
            return None
        from etlcli.engine.checkpoint import Keeper

        self._keeper = Keeper(self.recipe, resources, self._log, fresh=self._fresh, resume_only=self._resume_only)
        before = self._keeper.before
        if before:
            self.run_id, self._started, self._findings = before.run, before.started, before.findings
            self.watch.run, self.watch.started, self.watch.resumed = before.run, before.started, True
            self._log_about()
        return before

    def _log_about(self) -> None:
        """All lines tell the run; a subcommand's tell no recipe."""
        self._log.about(self.run_id, self.recipe.name if self.recipe.digest else None)

    def _drawn(self, results: Iterator[Result], plan: Plan, head: Head) -> Iterator[Result]:
        """A signal that comes while the run waits for input finds it at a barrier; not so a second one that cannot wait."""
        try:
            yield from results
        except (Interrupted, TimedOut):
            if head.is_level and not self._drain.has_waited:
                with self._drain.deferred():
                    self._take_checkpoint(plan)
            raise

    def _rest(self, plan: Plan, head: Head) -> None:
        """Everything that came of the parts so far is in the sinks."""
        if self._is_due() and head.is_level:
            self._take_checkpoint(plan)
            self._drain.deliver()

    def _is_due(self) -> bool:
        """Whether a checkpoint is to be taken at the next barrier."""
        return self._keeper is not None and (self._drain.asked or self._keeper.due())

    def _take_checkpoint(self, plan: Plan, *, complete: bool = False) -> None:
        """In this order: what others are still asked about goes on to the sinks; the sinks and the stages bring what they
        hold into their files; those, and the quarantine, become durable; the manifest makes it count."""
        assert self._keeper
        began = time.time()
        for at, stage in enumerate(plan.trunk):
            batches = stage.drained()
            for behind in plan.trunk[at + 1 :]:
                batches = behind.each(batches)
            for batch in batches:
                plan.outlet.put(batch)
        plan.outlet.settle()
        position = plan.source.component.snapshot()
        if position is None and not complete:
            return
        sinks = {sink.count.step: sink.component.snapshot() for sink in plan.outlet.sinks}
        stages = [stage for stage in plan.stages if stage.commits or not complete]
        steps = {stage.count.step: stage.component.snapshot() for stage in stages}
        self._keeper.take(complete=complete, **self._content(position, steps, sinks))
        self.watch.mark(began)
        self._log("debug", "checkpoint", complete=complete, read=self.ledger.received)

    def _content(self, position: State | None, steps: Any = None, sinks: Any = None) -> dict[str, Any]:
        """What a manifest holds beside the files of a run."""
        return {
            "run": self.run_id,
            "started": self._started,
            "at": now(),
            "source": position,
            "steps": steps or {},
            "sinks": sinks or {},
            "quarantine": self._quarantine.position() if self._quarantine else None,
            "counts": self.ledger.as_list(),
            "efforts": self.ledger.efforts(),
            "custom": self._metering.snapshot(),
            "findings": self._findings,
            "elsewhere": any(find("sink", spec.uses).elsewhere for spec in self.recipe.sinks),
        }

    def _publish_rest(self, before: Manifest, resources: ExitStack) -> None:
        """What a run still had to do that died when everything was complete. Only what has something to commit is built."""
        assert self._keeper
        self.ledger.restore(before.counts, before.efforts)
        self.watch.state = PUBLISHING
        counts = {count.step: count for count in self.ledger.steps}

        def commit(kind: str, spec: StepSpec) -> None:
            context = self._context(spec, counts[spec.id], self._policy(spec.on_error.then), resources)
            self._component(kind, spec, context, self._state(kind, spec.id)).commit()

        with held(lapse=True):
            self._keeper.publish()
            for spec in self.recipe.sinks:
                if find("sink", spec.uses).elsewhere:
                    commit("sink", spec)
            for spec in self.recipe.stages:
                if find("stage", spec.uses).commit is not Stage.commit:
                    commit("stage", spec)
            self._keeper.finished(**self._content(before.source))
        self._say_finished()

    def _say_finished(self) -> None:
        sinks = {spec.id for spec in self.recipe.sinks}
        self._log(
            "info",
            "run_finished",
            read=self.ledger.received,
            written=sum(count.sent for count in self.ledger.steps if count.step in sinks),
            rejected=self.ledger.rejected(),
            discarded=self.ledger.discarded(),
        )

    # -- work ---------------------------------------------------------------------------------------------------------

    def _results(self, source: SourceStep, head: Head, here: StepCount, resources: ExitStack) -> Iterator[Result]:
        """What came of each part of the input: in this process or, where several are wanted, in those; then the step that
        is the first `here` may have to wait for them."""
        clock = self.ledger.clock
        parts = clock.timed(source.count.effort.at_work, source.component.parts())
        if self.recipe.limit:
            return clock.idle(_numbered(head.work_up_to(self.recipe.limit, parts)))
        count = self._workers(source.component)
        here_alone = _numbered(map(head.work, parts))
        if count == 1:
            return clock.idle(here_alone)
        from etlcli.engine.workers import Workers

        scale = self._scale(source.component, head, count)
        try:
            window = min(_AHEAD * count, self.recipe.queue // (PART * scale))
            ordered = self._keeps_order()

            def waits() -> bool:
                return not head.is_level and self._is_due()

            workers = Workers(
                source.component, head, count, window, self._log, scale=scale, ordered=ordered, held=waits
            )
        except TryLaterError as error:
            if self.recipe.workers:
                raise
            self._log("warning", "no_workers", reason=error.message)
            return clock.idle(here_alone)
        resources.callback(workers.close)
        self.watch.workers = count
        self.watch.queued.append(lambda: workers.in_flight * PART * source.component.ctx.scale)
        self._log("debug", "workers", count=count)
        return clock.timed(here.effort.waiting_for("workers"), workers.results(parts))

    def _workers(self, source: Source) -> int:
        """As many as the recipe says; else as many as there are processors, and enough to read and to do."""
        if self.recipe.workers:
            return self.recipe.workers
        if source.size() < 2 * _WORTH or not self.recipe.steps:
            return 1
        from etlcli.engine.workers import available_cpus

        return max(1, min(available_cpus(), source.size() // _WORTH))

    def _scale(self, source: Source, head: Head, count: int) -> int:
        """How many blocks a part has at most. Where only what was worked out of them is sent and settled, that is done for
        several at once; but there must be enough parts to go round, and room for those in flight."""
        if not head.combines:
            return 1
        flight = PART * _AHEAD * count
        return max(1, min(_LARGE, self.recipe.queue // flight, source.size() // flight // _ROUNDS))

    def _keeps_order(self, stage: Stage | None = None) -> bool:
        """Whether records go on in the order of the input, or that in which they come to a stage. Some stages go by it.
        With checkpoints a sink that writes elsewhere may have to recognise what it is given again, and does so by its
        order."""
        elsewhere = self._keeper and any(find("sink", spec.uses).elsewhere for spec in self.recipe.sinks)
        needed = bool(elsewhere) or any(spec.params.needs_order for spec in self.recipe.stages)
        return needed or (self.recipe.ordered and getattr(stage, "in_order", True))

    def _head_length(self, stages: Sequence[StageStep]) -> int:
        """How many steps belong to the pipeline's head."""
        for at, step in enumerate(stages):
            if step.component.waits:
                return at
            if not step.is_pure:
                return at + 1
        return len(stages)

    def _entering(self, count: StepCount, batches: Iterator[Batch]) -> Iterator[Batch]:
        """What goes into a step: what the one before puts out."""
        return batches

    def check(self) -> None:
        """Everything up to the first record: components are built, inputs opened, schemas compiled. Nothing is written,
        and no server is asked."""
        self._checking = True
        self._check_recipe()
        with ExitStack() as resources:
            count = self.ledger.open(self.recipe.source.id)
            stages = self._stages(self.recipe.steps, count, resources)
            for branch in self.recipe.branches:
                stages += self._stages(branch.steps, count, resources)
            self._source(count, stages, resources)

    def _check_recipe(self) -> None:
        check_files(self.recipe)
        for spec in self.recipe.sinks if self.recipe.checkpoint else ():
            # It knows again by their number which records it has had, and what stands in for one has none.
            if spec.on_error.fallback and find("sink", spec.uses).elsewhere:
                raise RecipeError(
                    f"a fallback for what {spec.uses} refuses does not go with checkpoints",
                    where=f"step {spec.id}",
                    hint="put such records aside (then: quarantine), for etl replay",
                )

    def _build(self, resources: ExitStack) -> Plan:
        count = self.ledger.open(self.recipe.source.id)
        trunk = self._stages(self.recipe.steps, count, resources)
        # Inputs are opened before the outputs, so that a missing file leaves no trace.
        beyond: list[StageStep] = []
        source = self._source(count, trunk, resources, beyond)
        outlet = self._outlet(self.ledger.steps[-1], resources, reporting=_reporting(trunk))
        beyond += outlet.stages
        return Plan(source, trunk, outlet)

    def _outlet(self, above: StepCount, resources: ExitStack, *, reporting: bool) -> Outlet | Fork:
        """`reporting`: of a run that makes no output."""

        def outlet(branch: Branch, above: StepCount) -> Outlet:
            stages = self._stages(branch.steps, above, resources)
            count = self.ledger.open(branch.sink.id, stages[-1].count if stages else above)
            return Outlet(stages, self._sink(branch.sink, count, resources, nowhere=reporting))

        recipe = self.recipe
        if recipe.sink:
            return outlet(recipe.outlets[0], above)
        from etlcli.core.expressions import Expression

        count = self.ledger.open("route" if recipe.routed else "sinks", above)
        routes = []
        for branch in recipe.branches:
            condition = Expression(branch.when, now=self._started) if branch.when else None
            routes.append(Route(outlet(branch, count), condition, self._policy(branch.then)))
        fork = Fork(routes, count, routed=recipe.routed, queue=recipe.queue, resources=resources)
        self.watch.queued += fork.queued
        return fork

    def _sink(self, spec: StepSpec, count: StepCount, resources: ExitStack, *, nowhere: bool) -> SinkStep:
        policy = self._policy(spec.on_error.then)
        context = self._context(spec, count, policy, resources)
        state = self._state("sink", spec.id)
        sink: Sink = Nowhere({}, context) if nowhere else self._component("sink", spec, context, state)
        step = SinkStep(sink, spec.on_error, count, policy, self._fallback(spec, context))
        step.meters = self._metering.at(spec.id)
        return step

    def _source(
        self, count: StepCount, stages: Sequence[StageStep], resources: ExitStack, beyond: Sequence[StageStep] = ()
    ) -> SourceStep:
        """`beyond` are stages behind a fork, which may be known only later."""
        spec = self.recipe.source
        # A run that only reports says of every bad line what is wrong, rather than stop at the first.
        policy = self._policy("report" if spec.on_error.then == "fail" and _reporting(stages) else spec.on_error.then)
        meters = self._metering.at(spec.id)
        project = projection(fields_of(_union(_shared_reads(stages), *(meter.paths for meter in meters))))
        if stages:
            project = stages[0].component.projection(project) or project
        context = self._context(
            spec, count, policy, resources, project=project, due=lambda: _soonest((*stages, *beyond))
        )
        source: Source = self._component("source", spec, context, self._state("source"))
        step = SourceStep(source, spec.on_error, count, policy, self._fallback(spec, context))
        step.meters = meters
        return step

    def _stages(self, specs: Sequence[StepSpec], above: StepCount, resources: ExitStack) -> list[StageStep]:
        """Stages one after another. Those of the recipe that hold their whole input share the memory."""
        holding = [spec for spec in self.recipe.stages if find("stage", spec.uses).scope == "all"]
        memory = self.recipe.memory // max(1, len(holding))
        steps = []
        for spec in specs:
            above = count = self.ledger.open(spec.id, above)
            policy = self._policy(spec.on_error.then)
            context = self._context(spec, count, policy, resources, memory=memory)
            stage: Stage = self._component("stage", spec, context, self._state("stage", spec.id))
            policy = self._policy("report") if stage.reports else policy
            fallback = self._fallback(spec, context)
            ordered = self._keeps_order(stage)
            steps.append(StageStep(stage, spec.on_error, count, policy, fallback, ordered=ordered))
            steps[-1].meters = self._metering.at(spec.id)
        return steps

    def _fallback(self, spec: StepSpec, ctx: Context) -> list[Stage]:
        """The stages that run instead, for a rejected record. They see one record at a time, so only stages that need no
        more will do."""
        stages: list[Stage] = []
        for step in spec.on_error.fallback.steps if spec.on_error.fallback else ():
            stages.append(self._component("stage", step, ctx))
            if stages[-1].scope != "record":
                raise UsageError(
                    f"{step.uses} needs all records, a fallback has one at a time", where=f"step {spec.id}"
                )
        return stages

    def _state(self, kind: str, step: str = "") -> State | None:
        """What a component goes on from."""
        return self._keeper.state(kind, step) if self._keeper else None

    def _component(self, kind: str, spec: StepSpec, ctx: Context, state: State | None = None) -> Any:
        try:
            return find(kind, spec.uses)(spec.params, ctx, state)
        except UsageError as error:
            error.where = f"step {spec.id}"
            raise

    def _context(self, spec: StepSpec, count: StepCount, policy: Policy, resources: ExitStack, **rest: Any) -> Context:
        return Context(
            count,
            resources=resources,
            files=self._files(count.step, resources),
            log=partial(self._log, step=spec.id),
            reject=partial(policy.reject, count),
            retry=partial(tried, spec.on_error.retry, count),
            max_elapsed=spec.on_error.retry.max_elapsed,
            forgives=policy.then != "fail" or spec.on_error.fallback is not None,
            base_dir=self.recipe.base_dir,
            run=self.run_id,
            started=self._started,
            checking=self._checking,
            **rest,
        )

    def _files(self, step: str, resources: ExitStack) -> Files:
        if self._keeper:
            return self._keeper.files(step)
        return StepFiles(step, resources, self._log, self._claims)

    def _policy(self, then: str) -> Policy:
        handlers: dict[str, Handler] = {
            "fail": self._skip,
            "skip": self._skip,
            "quarantine": self._put_aside,
            "report": self._report,
        }
        return Policy(then, handlers[then], self.recipe.budget, self.ledger, self.watch.note)

    def _put_aside(self, step: str, rejects: Sequence[Reject]) -> None:
        assert self._quarantine is not None
        self._quarantine.put(step, rejects)
        for reject in rejects:
            self._log.record("debug", "record_quarantined", step, partial(_skipped, reject))

    def _skip(self, step: str, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            self._log.record("warning", "record_skipped", step, partial(_skipped, reject))

    def _report(self, step: str, rejects: Sequence[Reject]) -> None:
        self._findings += len(rejects)
        for reject in rejects:
            self._log.record("error", "finding", step, partial(_findings, reject))


def _no_rest() -> None:
    """For a run that nobody can go on with."""


def _numbered(results: Iterable[Worked]) -> Iterator[Result]:
    """What came of each part, in order."""
    return enumerate([worked] for worked in results)


class Plan(NamedTuple):
    """A pipeline as it was built."""

    source: SourceStep
    trunk: list[StageStep]
    outlet: Outlet | Fork

    @property
    def stages(self) -> list[StageStep]:
        return [*self.trunk, *self.outlet.stages]

    @property
    def steps(self) -> list[Step]:
        return [self.source, *self.stages, *self.outlet.sinks]


class Nowhere(Sink):
    """Makes no output, not even an empty one: for a run that only reports."""

    def write(self, batch: Batch) -> list[Reject]:
        return []

    def commit(self) -> None:
        pass


def _skipped(reject: Reject) -> Iterator[dict[str, Any]]:
    yield {**_place(reject), "message": reject.message}


def _findings(reject: Reject) -> Iterator[dict[str, Any]]:
    for error in reject.errors:
        yield {**_place(reject), "message": error["message"], **error}


def _place(reject: Reject) -> dict[str, Any]:
    origin = reject.origin
    place = {"path": origin.path, "line": origin.line, "offset": origin.offset} if origin else {}
    return {"code": reject.code, **place}


def _reporting(stages: Sequence[StageStep]) -> bool:
    return any(step.component.reports for step in stages)


def _soonest(stages: Sequence[StageStep]) -> float | None:
    return min((due for stage in stages if (due := stage.due()) is not None), default=None)


def _shared_reads(stages: Sequence[StageStep]) -> tuple[Path | Derived, ...]:
    """The columns that steps read, or meters look at, of the records as they come to the first: up to the one that makes
    others of them, or another order."""
    columns: list[Path | Derived] = []
    for step in stages:
        columns += step.component.reads()
        if not _passes_on(step):
            break
        columns += step.measured
    return _union(columns)


def _behind(source: SourceStep, trunk: Sequence[StageStep], length: int) -> tuple[Path | Derived, ...]:
    """The columns that are read, or measured, of the records as they leave a head of so many steps."""
    if not length:
        return _union(source.measured, _shared_reads(trunk))
    last = trunk[length - 1]
    measured = last.measured if last.is_pure or _passes_on(last) else ()
    return _union(measured, _shared_reads(trunk[length:]) if _passes_on(last) else ())


def _union(*columns: Iterable[Path | Derived]) -> tuple[Path | Derived, ...]:
    return tuple(dict.fromkeys(chain(*columns)))


def _passes_on(step: StageStep) -> bool:
    """Whether what leaves the step are records as they came, in the batches in which they came."""
    return not step.component.rewrites and step.component.order == "kept"
