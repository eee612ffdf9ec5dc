"""Runs a recipe in this process.

Batches are pulled: the sink asks the last step, that one the step before it, and the source reads a chunk only when
asked, so that at any time there is one chunk in flight and a slow sink slows the reading. Counting, policy and
clean-up are done here and nowhere else.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from etlcli.core.batch import Batch, Reject
from etlcli.core.fields import Path
from etlcli.core.ledger import Ledger, StepCount
from etlcli.core.policy import Policy
from etlcli.core.stage import Context, Sink, Source, Stage
from etlcli.engine.quarantine import Quarantine
from etlcli.errors import FindingsError, UsageError
from etlcli.recipe.model import Recipe, StepSpec
from etlcli.registry import find

Log = Callable[..., None]


class Pipeline:
    """One run of a recipe. `run` either publishes everything and returns, or publishes nothing and raises; `ledger` has
    the counts either way."""

    def __init__(self, recipe: Recipe, log: Log) -> None:
        self.recipe = recipe
        self.ledger = Ledger()
        self.run_id = secrets.token_hex(8)
        self._log = log
        self._findings = 0

    def run(self) -> None:
        """Raises an EtlError for whatever ended the run. Temporary files are gone by then, also after a signal."""
        with ExitStack() as resources:
            batches, sink, sink_count = self._build(resources)
            for batch in batches:
                sink_count.received += len(batch)
                sink_count.sent += sink.write(batch)
            self.recipe.budget.check(self.ledger, finished=True)
            self.ledger.check()
            if self._findings:
                raise FindingsError(f"{self._findings} records with findings, {self.ledger.received} records read")
            sink.commit()
        self._log("info", "run_finished", recipe=self.recipe.name, records=self.ledger.received)

    def check(self) -> None:
        """Everything up to the first record: components are built, inputs opened, schemas compiled. No output is made."""
        with ExitStack() as resources:
            self._stages(resources)
            self._component(self.recipe.source, self.ledger.open("source"), resources, "source")

    def _build(self, resources: ExitStack) -> tuple[Iterator[Batch], Sink, StepCount]:
        recipe = self.recipe
        source_count = self.ledger.open(recipe.source.id)
        stages = self._stages(resources)
        reads = _shared_reads([stage for stage, _, _ in stages])
        # Inputs are opened before the output, so that a missing file leaves no trace.
        source: Source = self._component(recipe.source, source_count, resources, "source", reads=reads)
        sink_count = self.ledger.open(recipe.sink.id)
        sink: Sink = self._component(recipe.sink, sink_count, resources, "sink")
        batches = _counted(source.batches(), source_count)
        for stage, count, policy in stages:
            batches = _through(stage, count, policy, batches)
        return batches, sink, sink_count

    def _stages(self, resources: ExitStack) -> list[tuple[Stage, StepCount, Policy]]:
        stages = []
        for spec in self.recipe.steps:
            count = self.ledger.open(spec.id)
            stage: Stage = self._component(spec, count, resources, "stage")
            policy = self._policy("report" if stage.reports else spec.then, resources)
            stages.append((stage, count, policy))
        return stages

    def _component(
        self, spec: StepSpec, count: StepCount, resources: ExitStack, kind: str, reads: tuple[Path, ...] = ()
    ) -> Any:
        ctx = Context(
            count,
            resources=resources,
            log=self._log,
            reject=partial(self._policy(spec.then, resources).reject, count),
            memory=self.recipe.memory,
            base_dir=self.recipe.base_dir,
            reads=reads,
        )
        try:
            return find(kind, spec.uses)(spec.params, ctx)
        except UsageError as error:
            error.where = f"step {spec.id}"
            raise

    def _policy(self, then: str, resources: ExitStack) -> Policy:
        return Policy(then, self._handler(then, resources), self.recipe.budget, self.ledger)

    def _handler(self, then: str, resources: ExitStack) -> Callable[[str, Sequence[Reject]], None]:
        if then == "quarantine":
            return self._quarantine(resources).put
        return self._report if then == "report" else self._skip

    def _quarantine(self, resources: ExitStack) -> Quarantine:
        """One file for all steps, opened when the first step that may need it is built."""
        if not hasattr(self, "_quarantine_file"):
            if not self.recipe.quarantine:
                raise UsageError(
                    "on_error: quarantine needs a file", hint="name it with --quarantine (errors.quarantine)"
                )
            self._quarantine_file = resources.enter_context(Quarantine(self.recipe, self.run_id))
        return self._quarantine_file

    def _skip(self, step: str, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            self._log("warning", "record_skipped", **_described(step, reject))

    def _report(self, step: str, rejects: Sequence[Reject]) -> None:
        self._findings += len(rejects)
        for reject in rejects:
            for error in reject.errors:
                self._log("error", "finding", **{**_described(step, reject), **error})


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
        count.received += len(batch)
        prepared = stage.prepare(batch)
        policy.reject(count, prepared.rejects)
        count.discarded.update(prepared.discards or {})
        for out in stage.apply(prepared):
            if out.count:
                count.sent += out.count
                yield out
    for out in stage.finish():
        if out.count:
            count.sent += out.count
            yield out


def _shared_reads(stages: Sequence[Stage]) -> tuple[Path, ...]:
    """The fields to decode at intake: those of the steps up to the first that needs the whole input."""
    paths: dict[Path, None] = {}
    for stage in stages:
        paths.update(dict.fromkeys(stage.reads()))
        if stage.scope == "all":
            break
    return tuple(paths)
