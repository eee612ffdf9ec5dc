"""What a source, a stage and a sink are.

A stage has two halves, and a source too. `prepare` is pure: no state, no I/O but reading, any process, any order. `apply`
runs in the coordinator, in input order, and holds the state. validate and filter are all `prepare`; sort makes keys there
and keeps records in `apply`. What goes from one process to another may be less than was prepared: see `combined`, `unsent`.
The engine calls

    prepare(batch) -> apply(prepared) -> batches ... then finish() -> batches, once, at the end of input

and counts, routes rejects and closes; a stage knows nothing of files, metrics or the command line. How a stage should
answer is checked for any stage, also a plug-in's, by `etlcli.testing.contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from time import monotonic
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

from etlcli.core.batch import Batch, Reject
from etlcli.core.fields import Derived, Path
from etlcli.core.files import Files
from etlcli.core.ledger import StepCount
from etlcli.core.params import Declared
from etlcli.core.projection import Projection, projection

State = dict[str, Any]
T = TypeVar("T")
DEFAULT_MEMORY = 512 << 20
DEFAULT_QUEUE = 64 << 20
PART = 1 << 20
"""Bytes that a source aims at for a part."""


class Retrying(Protocol):
    def __call__(self, call: Callable[[], T]) -> tuple[T, int]: ...


def once(call: Callable[[], T]) -> tuple[T, int]:
    return call(), 1


class Prepared(NamedTuple):
    """What `prepare` hands to `apply`, and a source to the first step: the records that go on, those rejected, those
    dropped by reason, and whatever the stage worked out about them (`extra`)."""

    batch: Batch
    rejects: Sequence[Reject] = ()
    discards: dict[str, int] | None = None
    extra: Any = None


class Context:
    """What the engine gives a step: its counts, its resources and its share of memory.

    `resources` closes what the step opened, in reverse order, however the run ends; `files` are what it may write.
    `log(level, event, **fields)` writes one line, with the step. `reject` puts records through the step's policy; use it
    in `apply` and `finish` (`prepare`, sources and sinks return their rejects). `retry(call)` makes a call that waits for
    somebody else, as often as the step's policy has it while the answer has a `code` that another try may heal; it returns
    the last answer and how many tries it took.
    """

    def __init__(
        self,
        count: StepCount,
        *,
        resources: ExitStack,
        files: Files,
        log: Callable[..., None],
        reject: Callable[[Sequence[Reject]], None],
        memory: int = DEFAULT_MEMORY,
        base_dir: str = "",
        retry: Retrying = once,
        max_elapsed: float | None = None,
        forgives: bool = True,
        project: Projection | None = None,
        run: str = "",
        started: float = 0.0,
        checking: bool = False,
        trial: bool = False,
        clock: Callable[[], float] = monotonic,
        due: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.count = count
        self.step = count.step
        self.resources = resources
        self.files = files
        self.log = log
        self.reject = reject
        self.memory = memory
        self.base_dir = base_dir
        self.retry = retry
        self.max_elapsed = max_elapsed
        """Seconds after which nothing is tried again; None for never."""
        self.forgives = forgives
        """Whether the run may go on after a reject."""
        self.project = project or projection(())
        """How the steps after a source want its records decoded (a source only)."""
        self.run = run
        """The run's id, the same in all processes that go on with it."""
        self.started = started
        """When the run began, in seconds since 1970: what `now()` is for all of its steps, in every process."""
        self.checking = checking
        """Whether there will be no run: what must be fetched from elsewhere is not."""
        self.trial = trial
        """Whether records go through only to see what becomes of them: nothing outside of the process is changed, or
        locked, such as a cache."""
        self.clock = clock
        """Seconds, from no particular start and never back."""
        self.due = due
        """Seconds until a step after a source wants to be ticked, None while none does (a source only)."""
        self.scale = 1
        """How many blocks of the usual size the next part may have (a source only)."""

    def discard(self, reason: str, count: int) -> None:
        """`count` records were dropped on purpose."""
        if count:
            self.count.discarded[reason] += count

    def waiting(self, what: str) -> AbstractContextManager[None]:
        """Time spent in it is not work but waiting: for `input`, `output`, `command` or `database`. For the thread that the
        engine calls the step in."""
        effort = self.count.effort
        return effort.clock.during(effort.waiting_for(what))

    def looked_up(self, hits: int, misses: int) -> None:
        """So many keys were found in the step's cache, and so many were not."""
        self.count.effort.cache_hits += hits
        self.count.effort.cache_misses += misses

    def absorb(self, reason: str, count: int, into: int) -> None:
        """`count` records live on in `into` others that the step made of them and puts out."""
        if count:
            self.count.absorbed[reason] += count
        self.count.made += into


class Component:
    """What sources, stages and sinks share: options, help, examples. All of it is data for the docs and the CLI."""

    Params: ClassVar[type[Declared]] = Declared
    help: ClassVar[str] = ""
    """What it does, in a few paragraphs of plain text; the first line is the summary."""
    examples: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(command line, what it does): shown in the help and the man page, and run by the tests."""

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        """`state` is what `snapshot` returned, in a run that goes on from a checkpoint."""
        self.params = params
        self.ctx = ctx

    def combined(self, extras: Sequence[Any]) -> Any:
        """What is to `apply` as these are one after another: what was worked out of several parts, or batches, of which
        neither records nor rejects are left."""
        raise NotImplementedError

    def snapshot(self) -> State | None:
        """What another process needs to go on from here, as JSON can say it; None where that is nothing. It should be
        small: the rest goes to a spill file. Called between two parts of the input, and at the end of it."""
        return None


class Source(Component):
    """Begins a pipeline. Like a stage it has two halves: what there is to read, in order, and making records of a part of
    it, in any process and any order."""

    def parts(self) -> Iterator[Any]:
        """What there is to read, a part at a time: whatever `prepare` takes, or, of what needs no more, a Prepared. A
        source that waits for input should wait no longer than `ctx.due()` says, and then yield an empty batch."""
        raise NotImplementedError

    def prepare(self, part: Any) -> Prepared:
        """The good records of a part, with the lines that were none and, as discards, blank lines: all that was read."""
        raise NotImplementedError

    def blocks(self, part: Any) -> Sequence[Any]:
        """The parts of the usual size that a larger one consists of, in order."""
        return [part]

    def packed(self, prepared: Prepared, *, placed: bool) -> Prepared:
        """What another process, where `apply` is called, needs of what was prepared. Not `placed`: no record goes there of
        which anybody could ask where it was read."""
        return prepared

    def apply(self, prepared: Prepared) -> None:
        """Called for every part, in order, before anything is done with it. `snapshot` tells how to go on behind the last
        of them; None where no other process can begin there."""

    def ahead(self, prepared: Prepared) -> None:
        """In a run that does not keep order, called for a part that is worked on before an earlier one has been; `apply`
        follows, without the records, when its turn has come. No `snapshot` is asked for in between."""

    def size(self) -> int:
        """How many bytes there are to read that several processes can read apart; 0 where that is not known."""
        return 0

    def left(self) -> int | None:
        """How many bytes of input there are to read from here on, where that is known."""
        return None

    def ready(self) -> bool:
        """Whether the next part is there, so that asking for it does not wait for input."""
        return True

    def halves(self, part: Any) -> Sequence[Any]:
        """The part in two, in order; a single record, and what cannot be cut, as it is."""
        return [part]

    def refused(self, part: Any, code: str, message: str) -> Prepared:
        """What stands for a part that cannot be cut and that no process survives: its record, rejected."""
        raise NotImplementedError


class Stage(Component):
    """Changes what flows. Subclasses override what they need; as it stands, a stage passes everything on."""

    order: ClassVar[str] = "kept"
    """`kept`: records leave in the order they came. `made`: the stage decides the order."""
    scope: ClassVar[str] = "record"
    """What must be seen together: `record` (any split of the input will do), `all` (the whole input)."""
    rewrites: bool = True
    """Whether it may change records, or put out others. Where not, later steps can use what was decoded before it."""
    waits: bool = False
    """Whether `prepare` asks somebody else, such as a command: the coordinator calls it then, and no worker."""
    asks: str = ""
    """What outside of the process this stage, as configured, asks about records: `the command sed`. Nothing for nobody."""
    reports: bool = False
    """Whether this stage, as configured, only reports: its rejects are findings to show, whatever `on_error` says."""

    combines: bool = False
    """Whether no records are left of what this stage, as configured, prepares, and what it worked out can be `combined`:
    then there is less to send and to apply."""

    def reads(self) -> tuple[Path | Derived, ...]:
        """The columns `prepare` asks the batch for, so that steps can share one decode, and workers can make what is
        derived for a step that they do not prepare."""
        return ()

    def projection(self, plain: Projection) -> Projection | None:
        """Another one for the same fields, by a decoder that this stage would put the records through itself; None for no
        need of one. `prepare` may then ask the batch for what it `decoded_by` it."""
        return None

    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch)

    def unsent(self, prepared: Prepared) -> Prepared:
        """What `apply` needs of it in another process, where whatever this one has sent before is applied before."""
        return prepared

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        yield prepared.batch

    def finish(self) -> Iterable[Batch]:
        """The rest, at the end of input. The same state gives the same output."""
        return ()

    def commit(self) -> None:
        """The sink has published everything: make state that belongs to it durable. Not called in a run that fails. In one
        that died in between, another process calls it with what `snapshot` returned after `finish`."""


@runtime_checkable
class Timed(Protocol):
    """A stage for which time passes while no record comes."""

    def due(self) -> float | None:
        """Seconds until `tick` has something to do; None while nothing waits for time to pass."""

    def tick(self) -> Iterable[Batch]:
        """What is due by now. Called now and then, in between batches."""


@runtime_checkable
class Explains(Protocol):
    """A stage that can tell by what it decides."""

    def explain(self, record: Batch) -> list[str]:
        """What it goes by with the batch's only record, which it does not reject, in lines for a person: keys, values, the
        part of a condition that does not hold; and what cannot be told of one record alone. It asks nobody, and changes
        nothing."""


class Question:
    """Records that somebody else is asked about. What `call` returns, which is made in a thread and may take its time, is
    the `answer`. `after` are questions whose answers this one needs, too."""

    __slots__ = ("_after", "_call", "answer", "batch", "extra", "failure", "is_answered")

    def __init__(
        self, batch: Batch, call: Callable[[], Any] | None, extra: Any = None, after: Sequence[Question] = ()
    ) -> None:
        """No `call` where there is nothing to be asked; `extra` is the stage's."""
        self.batch = batch
        self.extra = extra
        self.answer: Any = None
        self.failure: BaseException | None = None
        self.is_answered = call is None
        self._call = call
        self._after = after

    @property
    def is_complete(self) -> bool:
        return self.is_answered and all(other.is_answered for other in self._after)

    def ask(self) -> None:
        """What the call raises is the `failure`."""
        assert self._call
        try:
            self.answer = self._call()
        except BaseException as error:
            self.failure = error
        self.is_answered = True


@runtime_checkable
class Asks(Protocol):
    """A stage that can ask somebody else several questions at a time. Then the engine calls `questions` and `answered`
    where it would call `prepare`."""

    @property
    def at_once(self) -> int:
        """How many calls may be made at a time. With 1 the stage is one like any other."""

    @property
    def in_order(self) -> bool:
        """Whether records leave in the order in which they came."""

    def questions(self, batch: Batch) -> Iterable[Question]:
        """About all records of a batch, each in one of them. Between two of them others may be answered."""

    def answered(self, question: Question) -> Prepared:
        """What `prepare` would have returned for its records."""


class Sink(Component):
    """Ends a pipeline. Nothing it wrote is visible under its final name before `commit`, which comes after `finish`."""

    waits: bool = False
    """Whether `write` may wait for somebody else, as a database or a reader."""
    elsewhere: ClassVar[bool] = False
    """Whether it writes to something else than `ctx.files`. Of a run that died between the last checkpoint and the end,
    another process publishes the files; `commit` is called there, with the last snapshot, only if this is true."""

    def write(self, batch: Batch) -> Sequence[Reject]:
        """Takes the records it can, and returns the others. At a `snapshot` they must have reached the sink's files."""
        raise NotImplementedError

    def finish(self) -> None:
        """Everything was written and the run is good: make it complete and durable, still not visible."""

    def commit(self) -> None:
        """Publish it, all at once as far as that can be: no signal comes in between."""
        raise NotImplementedError
