"""What is known of a run at one moment: the one thing that all who watch a run look at.

The engine makes a `Status` whenever somebody asks (`look`), from counts that it keeps anyway; metrics, progress, reports
and `etl top` are different ways of showing it. Nothing is consistent to the record while the run goes on: counts are read
while they change. Of a run that has ended they balance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from etlcli.core.ledger import ABANDONED

STARTING, RUNNING, PUBLISHING, SUCCEEDED, FAILED = "starting", "running", "publishing", "succeeded", "failed"


class StepStatus(msgspec.Struct, kw_only=True):
    """A step's counts are those of the ledger: in + made = out + discarded + rejected + absorbed."""

    id: str
    uses: str
    kind: str
    """source, stage, sink, or fork: where records go to several sinks."""
    above: str | None
    """The step whose records it takes."""
    received: int = 0
    made: int = 0
    sent: int = 0
    discarded: dict[str, int] = {}
    """By reason, as rejected by code, absorbed and healed by how."""
    rejected: dict[str, int] = {}
    absorbed: dict[str, int] = {}
    healed: dict[str, int] = {}
    retries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    bytes_in: int = 0
    """Of records as lines; what a source has read."""
    bytes_out: int = 0
    """Of records as lines; what a sink has written to its files."""
    seconds: float = 0.0
    """Spent at work, by all processes together."""
    blocked: dict[str, float] = {}
    """Seconds spent waiting, by what for: input, output, command, workers, or the id of the step whose queue was full."""
    buckets: list[int] = []
    """How many batches took how long: as many as core.effort.BUCKETS, and one more."""


class CheckpointMark(msgspec.Struct):
    at: float
    """Seconds since 1970."""
    received: int
    """Records read until then."""
    seconds: float
    """What it took."""


class Example(msgspec.Struct):
    """A rejected record; the text of all fields may be hostile."""

    step: str
    code: str
    message: str
    path: str | None
    line: int | None
    raw: str
    """The beginning of the line."""


class CustomSeries(msgspec.Struct):
    """The text of the labels' values may be hostile."""

    labels: list[str]
    """Their values, in the order of the metric's names."""
    value: float
    """Of a histogram the sum."""
    buckets: list[int] = []
    """Of a histogram: how many values were in each, up to the first bound, up to the next, and so on; then beyond."""
    falls: bool = False
    """Whether the sum may: there were negative values."""


class CustomMetric(msgspec.Struct, kw_only=True):
    """A metric that the recipe has declared."""

    name: str
    type: str
    """counter, gauge or histogram."""
    help: str
    step: str
    """Whose output is looked at; of a sink its input."""
    labels: list[str] = []
    """Their names."""
    bounds: list[float] = []
    """Of a histogram's buckets."""
    skipped: int = 0
    """Records that made no observation: the value is no number, or an expression could not be computed."""
    series: list[CustomSeries] = []


class Status(msgspec.Struct, kw_only=True):
    run: str
    recipe: str
    """Its name."""
    path: str | None
    """Of the recipe's file; None for a subcommand."""
    digest: str | None = None
    pid: int
    version: str
    state: str
    """starting, running, publishing, succeeded or failed."""
    resumed: bool = False
    """Whether it goes on from a checkpoint of another process."""
    started: float
    """Seconds since 1970, as all moments; of the first process that had to do with the run."""
    now: float
    exit_code: int | None = None
    """Of a run that has ended."""
    error: str | None = None
    read: int = 0
    """Bytes of the input that were read, and how many there are, where that is known."""
    size: int | None = None
    received: int = 0
    """Records read, blank lines not among them."""
    queued: int = 0
    """Bytes that were read and wait for their turn; and how many may."""
    queue: int = 0
    workers: int = 1
    generation: int = 1
    """How many configurations the run has had."""
    steps: list[StepStatus] = []
    """In pipeline order; branches of a fork one after another."""
    checkpoints: list[CheckpointMark] = []
    """Those of this process, the latest; empty where none are taken."""
    checkpoint_every: float | None = None
    rejects: list[Example] = []
    """The first few of each step and code."""
    custom: list[CustomMetric] = []

    @property
    def rejected(self) -> int:
        """Records that any step has rejected."""
        return sum(sum(step.rejected.values()) for step in self.steps)


Look = Callable[[], Status]


class Observer:
    """Watches a run from beside. What it has to wait for it waits for in a thread of its own. If it raises, that is a
    warning, and the run goes on without it."""

    waits = False
    """Whether its end may take a while, because it is up to somebody elsewhere."""

    def begin(self, look: Look) -> None:
        """The run starts. `look` may be called from any thread until `end` returns."""

    def running(self) -> None:
        """The steps are there, and it is known which run this is; the first record is read next."""

    def end(self, last: Status) -> None:
        """The run is over, however it ended, also before it was `running`: `last` says how. All it had is released when
        this returns."""


def records(last: Status) -> dict[str, int]:
    """What became of the run's records. Those that a fork gave to several sinks are counted at each. Abandoned are those
    that were on their way when the run failed."""
    discarded: dict[str, int] = {}
    for step in last.steps:
        for reason, number in step.discarded.items():
            discarded[reason] = discarded.get(reason, 0) + number
    return {
        "read": last.received,
        "written": sum(step.sent for step in last.steps if step.kind == "sink"),
        "rejected": last.rejected,
        "discarded": sum(discarded.values()) - discarded.get("blank", 0) - discarded.get(ABANDONED, 0),
        "abandoned": discarded.get(ABANDONED, 0),
    }


def rejects(last: Status) -> list[dict[str, Any]]:
    """By step and code, in pipeline order and the most first, with the examples that there are."""
    return [
        {
            "step": step.id,
            "code": code,
            "count": number,
            "examples": [
                {"path": each.path, "line": each.line, "message": each.message, "raw": each.raw}
                for each in last.rejects
                if (each.step, each.code) == (step.id, code)
            ],
        }
        for step in last.steps
        for code, number in sorted(step.rejected.items(), key=lambda item: -item[1])
    ]
