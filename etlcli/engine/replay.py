"""Quarantined records once more, each from the step that rejected it.

The pipeline is the recipe's, with another sink and nothing to read: records enter at the step that their envelope names.
Whatever is rejected on the way stays in quarantine as it is. When the output is published, a line is appended to the
quarantine for each of the others: `{"etl_quarantine":1,"healed":DIGEST,"run","at"}`, with the digest of the envelope's
line. So the file only ever grows, other runs may go on appending to it, and a crash in between means that records are
replayed twice, not that one is forgotten.

Steps that need all records (sort, group, dedupe-cache) see the replayed ones only.
"""

from __future__ import annotations

import fcntl
import os
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from etlcli.core.batch import Batch, Reject, Span, lines_of
from etlcli.core.intake import Intake, parse
from etlcli.core.ledger import StepCount
from etlcli.core.policy import ErrorBudget, Policy
from etlcli.core.projection import projection
from etlcli.core.stage import Context, Prepared, Source, State
from etlcli.engine.pipeline import Pipeline
from etlcli.engine.quarantine import VERSION
from etlcli.engine.step import StageStep
from etlcli.errors import DataError, FindingsError, InputMissingError, RecipeError, TryLaterError, nearest
from etlcli.formats import RawChunk, ReadOptions
from etlcli.formats.ndjson import Reader
from etlcli.io.files import AppendFile
from etlcli.io.inputs import open_file
from etlcli.observe.logs import Log, now
from etlcli.recipe.model import Recipe, StepSpec

_PART = 1000
_MAX_LINE = 1 << 30


class Envelope(NamedTuple):
    """A rejected record in quarantine: the line it stands on, that line's digest, and what is needed to run it again."""

    line: int
    digest: str
    recipe: str
    step: str
    raw: bytes


def waiting(path: str, log: Callable[..., None]) -> list[Envelope]:
    """The envelopes that are not marked as healed, in order. A line that a crash cut short is passed over with a warning.
    Raises InputMissingError, and DataError for a file that is no quarantine."""
    stream = open_file(path)
    try:
        found: list[Envelope] = []
        healed: set[str] = set()
        for item in Reader(stream, ReadOptions("ndjson", path, log, max_line=_MAX_LINE)).chunks():
            lines = lines_of(item.chunk) if isinstance(item, RawChunk) else []
            for number, line in enumerate(lines, item.span.line if isinstance(item, RawChunk) else 0):
                envelope = _envelope(path, number, line)
                if isinstance(envelope, Envelope):
                    found.append(envelope)
                elif envelope:
                    healed.add(envelope)
                elif line.strip():
                    log("warning", "torn_line", path=path, line=number)
        return [envelope for envelope in found if envelope.digest not in healed]
    finally:
        stream.close()


def _envelope(path: str, number: int, line: bytes) -> Envelope | str | None:
    """What a line of a quarantine says: an envelope, the digest of one that is healed, or nothing."""
    try:
        content = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    try:
        if content["etl_quarantine"] != VERSION:
            raise KeyError
        if "healed" in content:
            return str(content["healed"])
        raw = content["raw"].encode() if "raw" in content else b64decode(content["raw_base64"])
        return Envelope(number, blake2b(line, digest_size=16).hexdigest(), content["recipe"], content["step"], raw)
    except (KeyError, TypeError, AttributeError, ValueError):
        where = f"{path}:{number}"
        raise DataError(
            f"{where}: not a line of a quarantine",
            where=where,
            hint="name the file that --quarantine (errors.quarantine) wrote",
        ) from None


class Replay(Pipeline):
    """A run of some envelopes through a recipe whose sink is where the healed records go."""

    def __init__(self, recipe: Recipe, quarantine: str, envelopes: Sequence[Envelope], log: Log) -> None:
        """Raises RecipeError when an envelope's step is none of the recipe's."""
        assert recipe.sink
        again = recipe._replace(
            source=_forgiving(recipe.source),
            steps=tuple(map(_forgiving, recipe.steps)),
            sink=_forgiving(recipe.sink),
            budget=ErrorBudget(),
            quarantine=None,
            checkpoint=None,
            custom=(),
        )
        super().__init__(again, log)
        self._file = quarantine
        self._envelopes = envelopes
        self._stay: set[int] = set()
        known = [spec.id for spec in recipe.specs]
        for envelope in envelopes:
            if envelope.step not in known:
                raise RecipeError(
                    f"{quarantine}:{envelope.line} was rejected by the step {envelope.step!r}, and {recipe.name} has none",
                    hint=nearest(envelope.step, known),
                )

    @property
    def kept(self) -> int:
        return len(self._stay)

    def run(self) -> None:
        with ExitStack() as resources:
            _lock(self._file, resources)
            super().run()
            healed = [envelope for envelope in self._envelopes if envelope.line not in self._stay]
            marks = AppendFile(self._file)
            resources.callback(marks.close)
            if healed:
                marks.append(b"".join(map(self._mark, healed)))

    def _mark(self, envelope: Envelope) -> bytes:
        mark = {"etl_quarantine": VERSION, "healed": envelope.digest, "run": self.run_id, "at": now()}
        return msgspec.json.encode(mark) + b"\n"

    def _policy(self, then: str) -> Policy:
        return Policy("skip", self._keep, self.recipe.budget, self.ledger)

    def _component(self, kind: str, spec: StepSpec, ctx: Context, state: State | None = None) -> Any:
        if kind == "source":
            return _Replayed(self._parts(spec.id), ctx)
        return super()._component(kind, spec, ctx, state)

    def _head_length(self, stages: Sequence[StageStep]) -> int:
        return 0  # between all steps records enter

    def _entering(self, count: StepCount, batches: Iterator[Batch]) -> Iterator[Batch]:
        yield from batches
        for batch, rejects, _ in self._parts(count.step):
            self._keep(count.step, rejects)
            count.entered += batch.count
            yield batch

    def _parts(self, step: str) -> Iterator[Intake]:
        """The records whose step this is. Somebody may have mended them by hand, so they are looked at anew."""
        mine = [envelope for envelope in self._envelopes if envelope.step == step]
        for start in range(0, len(mine), _PART):
            part = mine[start : start + _PART]
            chunk = b"".join(envelope.raw.replace(b"\n", b" ") + b"\n" for envelope in part)
            lines = [envelope.line for envelope in part]
            yield parse(chunk, Span(self._file, 0, 0, chunk, lines, [0] * len(part)), projection(()))

    def _keep(self, step: str, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            line = reject.origin.line if reject.origin else self._line_of(step, reject)
            self._stay.add(line)
            self._log.record("warning", "record_still_rejected", step, partial(_described, reject, line))

    def _line_of(self, step: str, reject: Reject) -> int:
        """Of a record whose origin a step before has not kept."""
        lines = {envelope.line for envelope in self._envelopes if envelope.raw == reject.raw}
        if len(lines) != 1:
            raise FindingsError(
                f"{reject.code}: {reject.message}",
                where=f"{self._file} (step {step})",
                hint="nothing was published: behind the steps before, which record of the quarantine it was cannot be told",
            )
        return lines.pop()


def _forgiving(spec: StepSpec) -> StepSpec:
    """Its rejects stay where they are, in quarantine."""
    return spec._replace(on_error=spec.on_error._replace(then="skip"))


class _Replayed(Source):
    """Lines that were no records."""

    def parts(self) -> Iterator[Prepared]:
        for batch, rejects, blank in self.params:
            yield Prepared(batch, rejects, {"blank": blank} if blank else None)


def _described(reject: Reject, line: int) -> Iterator[dict[str, Any]]:
    yield {"code": reject.code, "line": line, "message": reject.message}


def _lock(path: str, resources: ExitStack) -> None:
    """One replay at a time: two would put the same records out. Runs that append meanwhile take a lock of another kind."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise InputMissingError(f"cannot open {path}: {error.strerror}", where=path) from error
    resources.callback(os.close, fd)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise TryLaterError(
            f"{path} is being replayed by another run", where=path, hint="wait until it is done"
        ) from None
