"""`retry-wrap`: records through an external command, with a policy for when it fails.

In batch mode each batch is one call: NDJSON on the command's stdin, NDJSON from its stdout. A call that fails is made again
as the policy's retry says; after that, with `isolate`, the batch is halved until the records that make it fail stand
alone. In line mode one process lives as long as the run and answers each line with a line.

Calls are made in `prepare`; or, several at a time, in the engine's threads, as they wait and do not compute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from math import inf
from typing import Any, NamedTuple

from etlcli.core import params
from etlcli.core.batch import Batch, Reject, Span, chunk_of
from etlcli.core.intake import parse
from etlcli.core.projection import projection
from etlcli.core.stage import Context, Prepared, Question, Stage, State
from etlcli.errors import FindingsError, UsageError
from etlcli.io.command import Command, CommandError, Commands, MisalignedError, find_command
from etlcli.registry import find


class _Answer(NamedTuple):
    """What the command made of the records `indices`."""

    indices: range
    lines: list[bytes]


class _Failure(NamedTuple):
    indices: range
    code: str
    message: str
    attempts: int = 1


class RetryWrap(Stage):
    help = """Put records through an external command.

Each batch of records goes to the command's standard input as NDJSON, and what it prints takes their place. It has to print
a record for each record, in order, unless --any-count says that it may drop or add some. A command that exits with another
code than 0, dies, takes longer than --timeout, or prints what is no record has failed for the whole batch: it is
run again, --attempts times in all, each time after a wait (--backoff). If it fails still, --isolate halves the batch again
and again until the records that it fails for stand alone; they, or without --isolate the whole batch, are rejected with
code command_failed or timeout. Which records share a batch depends on how the input comes; with --isolate, which of them
are rejected does not. On a timeout the command and every process it started are killed.

--mode line starts the command once and expects a line of answer to each line: for commands that are slow to start, and that
do not hold back their output (sed -u, jq --unbuffered, python -u). When answers are missing, or there are too many, the
lines are put to it again as a batch with --isolate, so it may see a record more than once.

--stage NAME runs another etl command in the same way; what follows -- are its options."""
    examples = (
        (
            "etl retry-wrap --attempts 5 --timeout 10s flights.ndjson -- sed s/EWR/JFK/",
            "five tries for a batch, 10 s each",
        ),
        (
            "etl retry-wrap --size 500 --isolate --on-error skip flights.ndjson -- sed s/EWR/JFK/",
            "find the records that the command cannot take, and go on without them",
        ),
        ("etl retry-wrap --mode line flights.ndjson -- sed -u s/EWR/JFK/", "one process for all records"),
        (
            "etl retry-wrap --stage sort --timeout 5s --size 100 flights.ndjson -- --by carrier",
            "another command of etl: each hundred records sorted",
        ),
    )

    waits = True

    class Params(params.Declared):
        command = params.command("The command and its arguments, after --.")
        stage = params.text("Run this etl command; the arguments are its options.", metavar="NAME")
        mode = params.choice(("batch", "line"), "A process for each batch, or one for all lines.", default="batch")
        size = params.integer("Records in a batch.", default=1000, minimum=1)
        timeout = params.duration("How long the command may take for a batch before it is killed.", default=300.0)
        isolate = params.flag("Halve a failing batch until the records it fails for stand alone.")
        any_count = params.flag("Let the command print fewer or more records than it was given.")
        concurrency = params.integer("Batches that are at the command at a time.", default=1, minimum=1)
        ordered = params.ordered("Whether records keep their order, with concurrency; else they go on as answers come.")

        def verify(self) -> None:
            if not (self.command or self.stage):
                raise ValueError("command: retry-wrap needs a command, or a stage")
            if self.timeout <= 0:
                raise ValueError("timeout: must be more than 0")
            if self.stage:
                try:
                    find("stage", self.stage)
                except UsageError as error:
                    raise ValueError(f"stage: {error.message}; {error.hint}") from None
            if self.mode == "line" and (self.any_count or self.concurrency > 1):
                raise ValueError("mode: a line for a line goes with neither any_count nor concurrency")

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        own = [sys.executable, "-m", "etlcli", params.stage] if params.stage else []
        self._argv = [*own, *params.command]
        self._name = f"etl {params.stage}" if params.stage else self._argv[0]
        self.asks = f"the command {self._name}"
        self._directory = os.path.abspath(ctx.base_dir) if ctx.base_dir else ""
        find_command(self._argv, self._directory)
        self._commands = Commands(self._argv, self._directory, params.timeout, self._name)
        self._process: Command | None = None
        ctx.resources.callback(self._commands.stop)
        ctx.resources.callback(self._end_process)

    def prepare(self, batch: Batch) -> Prepared:
        if not batch.count:
            return Prepared(batch)
        call = self._by_line if self.params.mode == "line" else partial(self._by_batch, isolate=self.params.isolate)
        with self.ctx.waiting("command"):
            outcomes = list(chain.from_iterable(map(partial(call, batch), self._parts(batch))))
        return self._prepared(batch, outcomes)

    @property
    def at_once(self) -> int:
        return int(self.params.concurrency)

    @property
    def in_order(self) -> bool:
        return bool(self.params.ordered)

    def questions(self, batch: Batch) -> Iterator[Question]:
        for part in self._parts(batch):
            own = batch.take(part)
            yield Question(own, partial(self._by_batch, own, range(own.count), isolate=self.params.isolate))

    def answered(self, question: Question) -> Prepared:
        return self._prepared(question.batch, question.answer)

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        if self.params.any_count:
            self.ctx.absorb("command", prepared.extra or 0, into=prepared.batch.count)
        yield prepared.batch

    def finish(self) -> Iterable[Batch]:
        if self._process:
            try:
                self._process.finish()
            except CommandError as error:
                raise self._untrusted(error) from None
        return ()

    def _parts(self, batch: Batch) -> Iterator[range]:
        """Which records go to the command together."""
        for start in range(0, batch.count, self.params.size):
            yield range(start, min(start + self.params.size, batch.count))

    def _prepared(self, batch: Batch, outcomes: list[_Answer | _Failure]) -> Prepared:
        rejects: list[Reject] = []
        for outcome in outcomes:
            if isinstance(outcome, _Failure):
                for index in outcome.indices:
                    rejects.append(batch.reject(index, outcome.code, [{"message": outcome.message}]))
                    rejects[-1].attempts = outcome.attempts
        answers = [outcome for outcome in outcomes if isinstance(outcome, _Answer)]
        lines = list(chain.from_iterable(answer.lines for answer in answers))
        taken = list(chain.from_iterable(answer.indices for answer in answers))
        if self.params.any_count:
            return Prepared(Batch.of_lines(lines), rejects, extra=len(taken))
        return Prepared(batch.take(taken).replace(dict(enumerate(lines))), rejects)

    # -- a process for each batch -------------------------------------------------------------------------------------

    def _by_batch(self, batch: Batch, indices: range, *, isolate: bool) -> list[_Answer | _Failure]:
        deadline = inf if self.ctx.max_elapsed is None else self.ctx.clock() + self.ctx.max_elapsed
        outcome, tries = self.ctx.retry(partial(self._call, batch, indices))
        if isinstance(outcome, _Answer):
            return [outcome]
        failure = outcome._replace(attempts=tries)
        return self._isolated(batch, failure, deadline) if isolate else [failure]

    def _isolated(self, batch: Batch, failure: _Failure, deadline: float) -> list[_Answer | _Failure]:
        """The halves of what failed, each tried once, and their halves; as long as there is time, and if one reject fails
        the run up to the first record that stands alone."""
        indices, middle = failure.indices, len(failure.indices) // 2
        if not middle:
            return [failure]
        found: list[_Answer | _Failure] = []
        for half in (indices[:middle], indices[middle:]):
            failed = not self.ctx.forgives and any(isinstance(outcome, _Failure) for outcome in found)
            if failed or self.ctx.clock() >= deadline:
                found.append(failure._replace(indices=half))
                continue
            outcome = self._call(batch, half)
            if isinstance(outcome, _Failure):
                found += self._isolated(batch, outcome._replace(attempts=failure.attempts), deadline)
            else:
                found.append(outcome)
        return found

    def _call(self, batch: Batch, indices: range) -> _Answer | _Failure:
        try:
            output = self._commands.run(batch.take(indices).chunk)
            return _Answer(indices, self._checked(output, len(indices)))
        except CommandError as error:
            return _Failure(indices, error.code, error.message)

    def _checked(self, output: bytes, count: int) -> list[bytes]:
        """The records of the command's output. Raises CommandError for what are none, or not as many as there should be."""
        chunk = output if output.endswith(b"\n") or not output else output + b"\n"
        found, rejects, _ = parse(chunk, Span(self._name, 1, 0, chunk), projection(()))
        if rejects:
            line = rejects[0].origin.line if rejects[0].origin else 0
            raise CommandError("command_failed", f"line {line} of the output of {self._name}: {rejects[0].message}")
        if found.count != count and not self.params.any_count:
            raise CommandError(
                "command_failed", f"{self._name} put out {found.count} records for {count} (see --any-count)"
            )
        return found.lines

    # -- a process for all lines --------------------------------------------------------------------------------------

    def _by_line(self, batch: Batch, indices: range) -> list[_Answer | _Failure]:
        outcome = self._ask(batch, indices)
        # Which answer belonged to which line is unknown after a failure. From a process that ends it is not.
        return [outcome] if isinstance(outcome, _Answer) else self._by_batch(batch, indices, isolate=True)

    def _ask(self, batch: Batch, indices: range) -> _Answer | _Failure:
        """After a failure the next question starts the process again."""
        answered_before = self._process is not None
        try:
            if self._process is None:
                self._process = Command(self._argv, self._directory, self.params.timeout, self._name)
            answers = self._process.ask(batch.lines[indices.start : indices.stop])
            return _Answer(indices, self._checked(chunk_of(answers), len(indices)))
        except CommandError as error:
            if isinstance(error, MisalignedError) and answered_before:
                raise self._untrusted(error) from None
            self._end_process()
            return _Failure(indices, error.code, error.message)

    def _untrusted(self, error: CommandError) -> FindingsError:
        """Answers that have gone on may stand at the wrong records."""
        return FindingsError(
            f"{error.message}, after its last answer",
            where=f"step {self.ctx.step}",
            hint="its answers cannot be trusted, so nothing was published; see that it prints a line for a line",
        )

    def _end_process(self) -> None:
        if self._process:
            self._process.kill()
        self._process = None
