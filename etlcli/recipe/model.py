"""The resolved plan of a pipeline. A subcommand is a recipe with one step, so that there is one way to run anything."""

from __future__ import annotations

from typing import Any, NamedTuple

from etlcli.core.fields import Path
from etlcli.core.policy import ErrorBudget, Retry
from etlcli.core.stage import DEFAULT_MEMORY, DEFAULT_QUEUE


class Fallback(NamedTuple):
    """What goes on instead of a rejected record: another record, the record with some fields set, or what some steps make
    of it. One of the three is given."""

    value: bytes | None = None
    """A line of JSON."""
    set: tuple[tuple[Path, Any], ...] = ()
    steps: tuple[StepSpec, ...] = ()


class OnError(NamedTuple):
    """A step's policy, in the order in which it is applied."""

    retry: Retry = Retry()
    fallback: Fallback | None = None
    then: str = "fail"


class StepSpec(NamedTuple):
    """A source, step or sink: which component, with which options, and what to do with its rejects."""

    id: str
    uses: str
    params: Any
    """An instance of the component's `Params`."""
    on_error: OnError = OnError()


class Branch(NamedTuple):
    """A sink and the steps before it, where records go to several."""

    steps: tuple[StepSpec, ...]
    sink: StepSpec
    when: str | None = None
    """The condition of the records that go there; None for all."""
    then: str = "fail"
    """What to do with records of which the condition cannot be told."""


class CheckpointSpec(NamedTuple):
    dir: str
    every: float = 30.0
    """Seconds."""
    keep: int = 3
    """How many there are at most."""


class Recipe(NamedTuple):
    name: str
    source: StepSpec
    steps: tuple[StepSpec, ...]
    sink: StepSpec | None
    """None where there are `branches`."""
    budget: ErrorBudget
    quarantine: str | None = None
    base_dir: str = ""
    """What relative paths are relative to."""
    memory: int = DEFAULT_MEMORY
    workers: int | None = None
    """Processes for the head of the pipeline; None for as many as pay."""
    ordered: bool = True
    """Whether records go on in the order of the input, whatever worked on them."""
    queue: int = DEFAULT_QUEUE
    """Bytes of input that may be in flight."""
    limit: int | None = None
    """Records to read, at most."""
    timeout: float | None = None
    """Seconds that a run may take."""
    checkpoint: CheckpointSpec | None = None
    incremental: bool = False
    """Whether a run reads only what the last one has not."""
    branches: tuple[Branch, ...] = ()
    routed: bool = False
    """Whether a record goes to the first branch whose condition is true, instead of to all."""
    log_level: str = "warning"
    metrics: Any = None
    """A `MetricsSpec`, where there are metrics."""
    path: str | None = None
    """Of the recipe's file; None for a subcommand."""
    digest: str | None = None
    """Of the recipe's text, for the quarantine; None for a subcommand."""

    @property
    def outlets(self) -> tuple[Branch, ...]:
        return (Branch((), self.sink),) if self.sink else self.branches

    @property
    def stages(self) -> tuple[StepSpec, ...]:
        """All steps between the source and the sinks."""
        return (*self.steps, *(step for branch in self.branches for step in branch.steps))

    @property
    def sinks(self) -> tuple[StepSpec, ...]:
        return tuple(branch.sink for branch in self.outlets)

    @property
    def quarantines(self) -> bool:
        """Whether any step puts records into quarantine."""
        policies = [spec.on_error.then for spec in self.specs] + [branch.then for branch in self.branches]
        return "quarantine" in policies

    @property
    def specs(self) -> tuple[StepSpec, ...]:
        return (self.source, *self.stages, *self.sinks)
