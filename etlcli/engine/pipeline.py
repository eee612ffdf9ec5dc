"""Runs a recipe in this process.

Batches are pulled: the sink asks the last step, that one the step before it, and the source reads a chunk only when
asked, so that at any time there is one chunk in flight and a slow sink slows the reading. Counting, policy and
clean-up are done here and nowhere else.

An empty batch is a tick: it says that time has passed, and goes through all steps. A source that has nothing to give
yields one when a `Timed` stage is due, and a stage that puts nothing out passes one on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from glob import glob
from typing import TYPE_CHECKING, Any

from etlcli.core.batch import Batch, Reject
from etlcli.core.fields import Path
from etlcli.core.ledger import Ledger, StepCount
from etlcli.core.policy import Policy
from etlcli.core.stage import Context, Sink, Source, Stage, Timed
from etlcli.errors import FindingsError, UsageError
from etlcli.recipe.model import Recipe, StepSpec
from etlcli.registry import find

if TYPE_CHECKING:
    from etlcli.engine.quarantine import Quarantine

Log = Callable[..., None]
_Step = tuple[Stage, StepCount, Policy]
_TICK = Batch.of_lines([])


class Pipeline:
    """One run of a recipe. A run that is not good raises before the sink publishes anything (what went to standard output
    is out); `ledger` has the counts either way."""

    def __init__(self, recipe: Recipe, log: Log) -> None:
        self.recipe = recipe
        self.ledger = Ledger()
        self.run_id = os.urandom(8).hex()
        self._log = log
        self._findings = 0
        self._quarantine: Quarantine | None = None

    def run(self) -> None:
        """Raises an EtlError for whatever ended the run. Temporary files are gone by then, also after a signal."""
        with ExitStack() as resources:
            if self._quarantines():
                from etlcli.engine.quarantine import Quarantine

                self._quarantine = resources.enter_context(Quarantine(self.recipe, self.run_id))
            batches, sink, sink_count = self._build(resources)
            for batch in batches:
                if batch.count:
                    sink_count.received += len(batch)
                    sink_count.sent += sink.write(batch)
            self.recipe.budget.check(self.ledger, finished=True)
            self.ledger.check()
            if self._findings:
                raise FindingsError(f"records with findings: {self._findings} of {self.ledger.received}")
            sink.commit()
            self._log(
                "info",
                "run_finished",
                recipe=self.recipe.name,
                read=self.ledger.received,
                written=sink_count.sent,
                rejected=self.ledger.rejected(),
                discarded=self.ledger.discarded(),
            )

    def check(self) -> None:
        """Everything up to the first record: components are built, inputs opened, schemas compiled. Nothing is written."""
        with ExitStack() as resources:
            self._quarantines()
            stages = self._stages(resources)
            self._source(self.ledger.open(self.recipe.source.id), stages, resources)

    def _build(self, resources: ExitStack) -> tuple[Iterator[Batch], Sink, StepCount]:
        recipe = self.recipe
        source_count = self.ledger.open(recipe.source.id)
        stages = self._stages(resources)
        # Inputs are opened before the output, so that a missing file leaves no trace.
        source = self._source(source_count, stages, resources)
        sink_count = self.ledger.open(recipe.sink.id)
        sink_policy = self._policy(recipe.sink.then)
        sink_context = self._context(sink_count, sink_policy, resources)
        reporting = any(stage.reports for stage, _, _ in stages)
        sink: Sink = Nowhere({}, sink_context) if reporting else self._component("sink", recipe.sink, sink_context)
        batches = _counted(source.batches(), source_count)
        for stage, count, policy in stages:
            batches = _through(stage, count, policy, batches)
        return batches, sink, sink_count

    def _source(self, count: StepCount, stages: Sequence[_Step], resources: ExitStack) -> Source:
        spec = self.recipe.source
        # A run that only reports says of every bad line what is wrong, rather than stop at the first.
        reporting = spec.then == "fail" and any(stage.reports for stage, _, _ in stages)
        policy = self._policy("report" if reporting else spec.then)
        reads = _shared_reads([stage for stage, _, _ in stages])
        due = partial(_soonest, [stage for stage, _, _ in stages if isinstance(stage, Timed)])
        source: Source = self._component("source", spec, self._context(count, policy, resources, reads=reads, due=due))
        return source

    def _stages(self, resources: ExitStack) -> list[_Step]:
        """The stages, in order. Those that hold their whole input share the memory."""
        holding = [spec for spec in self.recipe.steps if find("stage", spec.uses).scope == "all"]
        memory = self.recipe.memory // max(1, len(holding))
        stages = []
        for spec in self.recipe.steps:
            count = self.ledger.open(spec.id)
            policy = self._policy(spec.then)
            stage: Stage = self._component("stage", spec, self._context(count, policy, resources, memory=memory))
            stages.append((stage, count, self._policy("report") if stage.reports else policy))
        return stages

    def _component(self, kind: str, spec: StepSpec, ctx: Context) -> Any:
        try:
            return find(kind, spec.uses)(spec.params, ctx)
        except UsageError as error:
            error.where = f"step {spec.id}"
            raise

    def _context(self, count: StepCount, policy: Policy, resources: ExitStack, **rest: Any) -> Context:
        reject = partial(policy.reject, count)
        return Context(count, resources=resources, log=self._log, reject=reject, base_dir=self.recipe.base_dir, **rest)

    def _policy(self, then: str) -> Policy:
        handlers = {"fail": self._skip, "skip": self._skip, "quarantine": self._put_aside, "report": self._report}
        return Policy(then, handlers[then], self.recipe.budget, self.ledger)

    def _quarantines(self) -> bool:
        """Whether any step puts records into quarantine; if so there must be a file for them."""
        recipe = self.recipe
        wanted = any(spec.then == "quarantine" for spec in (recipe.source, *recipe.steps, recipe.sink))
        if wanted and not recipe.quarantine:
            raise UsageError(
                "a step that puts records into quarantine needs a file for them",
                where="errors",
                hint="name it with --quarantine (errors.quarantine)",
            )
        if wanted and os.path.realpath(self._path(recipe.quarantine or "")) in map(os.path.realpath, self._paths()):
            raise UsageError(
                f"the quarantine {recipe.quarantine} is also a file that the run reads or writes",
                where="errors",
                hint="give it a file of its own, which no glob of the inputs matches",
            )
        if wanted and recipe.quarantine:
            self._quarantine_is_no_other_file(recipe.quarantine)
        return wanted

    def _quarantine_is_no_other_file(self, quarantine: str) -> None:
        """Rejects put into the output would be replaced by it, and put into an input be read as records."""
        own = os.path.realpath(os.path.join(self.recipe.base_dir, quarantine))
        for spec in (self.recipe.source, self.recipe.sink):
            values = spec.params.values()
            for path in (*values.get("paths", ()), values.get("path")):
                if path and path != "-" and os.path.realpath(os.path.join(self.recipe.base_dir, path)) == own:
                    raise UsageError(
                        f"the quarantine {quarantine} is also the {'output' if spec is self.recipe.sink else 'input'}",
                        where="errors",
                        hint="give it a file of its own",
                    )

    def _paths(self) -> Iterator[str]:
        """The files that the steps' options name."""
        for spec in (self.recipe.source, *self.recipe.steps, self.recipe.sink):
            for option in spec.params.options:
                value = getattr(spec.params, option.name)
                if option.kind == "path" and value:
                    yield self._path(value)
                for pattern in value if option.kind == "paths" else ():
                    yield self._path(pattern)
                    yield from glob(self._path(pattern), recursive=True)

    def _path(self, path: str) -> str:
        return os.path.join(self.recipe.base_dir, path)

    def _put_aside(self, step: str, rejects: Sequence[Reject]) -> None:
        assert self._quarantine is not None
        self._quarantine.put(step, rejects)

    def _skip(self, step: str, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            self._log("warning", "record_skipped", **_described(step, reject))

    def _report(self, step: str, rejects: Sequence[Reject]) -> None:
        self._findings += len(rejects)
        for reject in rejects:
            for error in reject.errors:
                self._log("error", "finding", **{**_described(step, reject), **error})


class Nowhere(Sink):
    """For a run that only reports: it makes no output, not even an empty one."""

    def write(self, batch: Batch) -> int:
        return batch.count

    def commit(self) -> None:
        pass


def _described(step: str, reject: Reject) -> dict[str, Any]:
    origin = reject.origin
    place = {"path": origin.path, "line": origin.line, "offset": origin.offset} if origin else {}
    return {"step": step, "code": reject.code, **place, "message": reject.message}


def _counted(batches: Iterator[Batch], count: StepCount) -> Iterator[Batch]:
    for batch in batches:
        count.sent += len(batch)
        yield batch


def _through(stage: Stage, count: StepCount, policy: Policy, upstream: Iterator[Batch]) -> Iterator[Batch]:
    for batch in upstream:
        sent = count.sent
        yield from _sent(_outputs(stage, count, policy, batch), count)
        if count.sent == sent:
            yield _TICK
    yield from _sent(stage.finish(), count)


def _outputs(stage: Stage, count: StepCount, policy: Policy, batch: Batch) -> Iterable[Batch]:
    if not batch.count:
        return stage.tick() if isinstance(stage, Timed) else ()
    count.received += len(batch)
    prepared = stage.prepare(batch)
    policy.reject(count, prepared.rejects)
    count.discarded.update(prepared.discards or {})
    return stage.apply(prepared)


def _sent(batches: Iterable[Batch], count: StepCount) -> Iterator[Batch]:
    for batch in batches:
        if batch.count:
            count.sent += batch.count
            yield batch


def _soonest(stages: Sequence[Timed]) -> float | None:
    return min((due for stage in stages if (due := stage.due()) is not None), default=None)


def _shared_reads(stages: Sequence[Stage]) -> tuple[Path, ...]:
    """The fields to decode at intake: those of the steps up to the first that needs the whole input."""
    paths: dict[Path, None] = {}
    for stage in stages:
        paths.update(dict.fromkeys(stage.reads()))
        if stage.scope == "all":
            break
    return tuple(paths)
