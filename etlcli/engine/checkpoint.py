"""Keeps a run so that another process can go on with it.

A checkpoint directory belongs to one recipe. In it are the manifests of the last checkpoints (`engine.manifest`) and the
steps' spill files; outputs lie beside their targets. A checkpoint is taken between two parts of the input, when
everything that was read before is in the sink. It counts from the moment its manifest is there: what was written later is
cut off by the process that goes on. When everything is complete a last one says so, and only then are the outputs
published, so that a process which finds it has nothing to do but that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from hashlib import blake2b
from time import monotonic
from typing import Any

from etlcli.core.files import Output
from etlcli.engine import manifest as manifests
from etlcli.engine.manifest import FINISHED, PUBLISHING, RUNNING, Manifest
from etlcli.errors import CheckpointError, InputMissingError
from etlcli.io.files import fsync_directory, open_output
from etlcli.io.kept import KeptFile, KeptSpill, part_of, publish
from etlcli.io.stepfiles import claim
from etlcli.recipe.facts import differences, facts_of
from etlcli.recipe.model import Recipe

_SPILL = re.compile(r".+-[0-9a-f]{12}\.spill")
SHOWN = "shown.json"
"""What metrics have shown of a run: counters must not go back."""
_PARTS = "parts"
"""Lists the hidden files of outputs, those too that no checkpoint knows yet."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class Keeper:
    """`before` is the checkpoint that the run goes on from. The directory is the caller's alone (`engine.overlap`)."""

    def __init__(
        self, recipe: Recipe, resources: ExitStack, log: Callable[..., None], *, fresh: bool, resume_only: bool
    ) -> None:
        """Raises CheckpointError when the recipe has changed since the checkpoint, or it is damaged; InputMissingError
        when there is none for `resume_only`."""
        assert recipe.checkpoint
        self.directory = os.path.join(recipe.base_dir, recipe.checkpoint.dir)
        self._owner = blake2b(os.fsencode(os.path.realpath(self.directory)), digest_size=6).hexdigest()
        self._every, self._keep = recipe.checkpoint.every, recipe.checkpoint.keep
        self._name = recipe.name
        self._facts = facts_of(recipe)
        self._resources = resources
        self.claims: dict[str, str] = {}
        self._outputs: dict[str, KeptFile] = {}
        self._spills: dict[str, KeptSpill] = {}
        self._taken_at = monotonic()
        self._check_owner()
        last = self._forget_run() if fresh else self._last()
        if last and last.status != FINISHED and not last.counts[0]["in"] and differences(last.facts, self._facts):
            last = self._forget_run()  # nothing was read yet
        self._epoch = last.epoch if last else 0
        self._finished = self._finished_epoch()
        self.before = last if last and last.status != FINISHED else None
        self._incremental = recipe.incremental
        self._since = last.source if last and last.status == FINISHED else None
        if self.before:
            self._check_place(self.before.directory)
            self._check_facts(self.before.facts)
            log("info", "run_resumed", run=self.before.run, epoch=self.before.epoch, taken=self.before.at)
        elif resume_only:
            raise InputMissingError(
                f"there is no interrupted run to go on with in {self.directory}",
                where=self.directory,
                hint="without --resume-only a new one begins",
            )
        self._output_positions = dict(self.before.outputs) if self.before else {}
        self._spill_ends = dict(self.before.spills) if self.before else {}
        self._sweep()
        if not self.before:
            _forget_outputs(self.directory)

    def _last(self) -> Manifest | None:
        known = manifests.epochs(self.directory)
        return manifests.load(self.directory, known[-1]) if known else None

    def _check_owner(self) -> None:
        """Raises CheckpointError when the directory is another recipe's."""
        for epoch in manifests.epochs(self.directory):
            with suppress(manifests.DamagedError):
                recipe = manifests.load(self.directory, epoch).recipe
                if recipe != self._name:
                    raise CheckpointError(
                        f"{self.directory} has the checkpoints of another recipe, {recipe}",
                        where=self.directory,
                        hint="give each recipe a directory of its own; if it was renamed, rename it back, or let etl "
                        "checkpoint reset forget them",
                    )

    def _forget_run(self) -> Manifest | None:
        """Forgets the run that was interrupted, and not what the last finished one has read."""
        forget(self.directory, keep=self._finished_epoch())
        return self._last()

    def _finished_epoch(self) -> int:
        finished = (epoch for epoch in manifests.epochs(self.directory) if _is_finished(self.directory, epoch))
        return max(finished, default=0)

    def files(self, step: str) -> KeptFiles:
        return KeptFiles(step, self)

    def state(self, kind: str, step: str = "") -> Any:
        """What a component of the run had at the checkpoint; for the source of an incremental run without one, where the
        last run was."""
        if not self.before:
            return {"since": self._since} if kind == "source" and self._incremental else None
        if kind == "source":
            return self.before.source
        return (self.before.sinks if kind == "sink" else self.before.steps).get(step)

    def due(self) -> bool:
        return monotonic() - self._taken_at >= self._every

    def take(self, *, complete: bool = False, **content: Any) -> None:
        """The run's files first, the manifest last: it is what counts. `complete`: nothing is left but to publish."""
        self._take(PUBLISHING if complete else RUNNING, content)

    def _take(self, status: str, content: dict[str, Any]) -> None:
        new = [file for path, file in self._outputs.items() if path not in self._output_positions]
        self._output_positions |= {path: file.position() for path, file in self._outputs.items()}
        self._spill_ends |= {name: spill.sync() for name, spill in self._spills.items()}
        self._epoch += 1
        manifest = Manifest(
            epoch=self._epoch,
            status=status,
            directory=os.path.realpath(self.directory),
            recipe=self._name,
            facts=self._facts,
            outputs=self._output_positions,
            spills=self._spill_ends,
            **content,
        )
        for file in new:
            file.keep()
        try:
            manifests.save(self.directory, manifest)
        except BaseException:
            for file in new:
                file.keep(os.path.exists(manifests.manifest_path(self.directory, self._epoch)))
            raise
        for number in manifests.epochs(self.directory)[: -self._keep]:
            if number != self._finished:
                os.unlink(manifests.manifest_path(self.directory, number))
        self._taken_at = monotonic()

    def publish(self) -> None:
        """For a run that died when everything was complete: gives what has no name yet its name."""
        for position in self._output_positions.values():
            publish(position)

    def finished(self, **content: Any) -> None:
        """Everything is published. What is left is where the source was, and the counts."""
        self._output_positions, self._spill_ends = {}, {}
        self._outputs, self._spills = {}, {}
        self._take(FINISHED, content)
        for number in manifests.epochs(self.directory)[:-1]:
            os.unlink(manifests.manifest_path(self.directory, number))
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory, _PARTS))
        self._sweep()

    # -- files --------------------------------------------------------------------------------------------------------

    def output(self, path: str, *, exclusive: bool, append: bool) -> Output:
        target = os.path.realpath(path)
        position = self._output_positions.get(target)
        with open(os.path.join(self.directory, _PARTS), "a", encoding="utf-8", errors="surrogateescape") as parts:
            parts.write(f"{os.path.realpath(self.directory)}\0{part_of(path, self._owner)}\n")
        output = open_output(
            path,
            exclusive=exclusive,
            append=append,
            resources=self._resources,
            kind=partial(KeptFile, owner=self._owner, position=position),
        )
        if isinstance(output, KeptFile):
            self._outputs[target] = output
        return output

    def spill(self, step: str, name: str) -> KeptSpill:
        digest = blake2b(f"{step}\0{name}".encode(), digest_size=6).hexdigest()
        file = f"{_UNSAFE.sub('_', step)[:80]}-{digest}.spill"
        spill = KeptSpill(os.path.join(self.directory, file), self._spill_ends.get(file, 0))
        self._resources.callback(spill.close)
        self._spills[file] = spill
        return spill

    def _sweep(self) -> None:
        """Removes spill files that no checkpoint knows."""
        for name in os.listdir(self.directory):
            if _SPILL.fullmatch(name) and name not in self._spill_ends:
                os.unlink(os.path.join(self.directory, name))

    def _check_place(self, before: str) -> None:
        """Outputs lie beside their targets, so that a run cannot be gone on with in a copy."""
        if before != os.path.realpath(self.directory):
            raise CheckpointError(
                f"the checkpoints in {self.directory} were taken in {before}, where the unfinished outputs are, too",
                where=self.directory,
                hint="go on with the run there, or move everything back; --fresh begins a new one here",
            )

    def _check_facts(self, before: dict[str, str]) -> None:
        changed = differences(before, self._facts)
        if changed:
            raise CheckpointError(
                f"the recipe has changed since the checkpoint in {self.directory}: {', '.join(changed)}",
                where=self.directory,
                hint="--fresh (etl checkpoint reset) begins again from the start; or undo the change, and the run goes on",
            )


class KeptFiles:
    """A step's files in a run that is kept."""

    keeps = True

    def __init__(self, step: str, keeper: Keeper) -> None:
        self._step = step
        self._keeper = keeper

    def claim(self, path: str) -> None:
        claim(self._keeper.claims, self._step, path)

    def output(self, path: str, *, exclusive: bool = False, append: bool = False) -> Output:
        self.claim(path)
        return self._keeper.output(path, exclusive=exclusive, append=append)

    def spill(self, directory: str | None = None, name: str = "") -> KeptSpill:
        return self._keeper.spill(self._step, name)


def problems(directory: str, manifest: Manifest) -> list[str]:
    """Why no run could go on from a checkpoint: files that are gone, or shorter than they were."""
    needed = [(os.path.join(directory, name), end) for name, end in manifest.spills.items()]
    for position in manifest.outputs.values():
        if manifest.status == RUNNING or os.path.lexists(position["temporary"]):
            needed.append((position["temporary"], position["size"]))
    found = []
    for path, size in needed:
        try:
            actual = os.stat(path).st_size
        except OSError as error:
            found.append(f"{path}: {error.strerror}")
        else:
            if actual < size:
                found.append(f"{path} has {actual} bytes, and {size} at the checkpoint")
    return found


def forget(directory: str, keep: int = 0) -> None:
    """Removes all checkpoints but that of the epoch to `keep`, and what they kept. What was published stays. The manifests
    go first: one that is left has all that it needs."""
    for epoch in manifests.epochs(directory):
        if epoch != keep:
            os.unlink(manifests.manifest_path(directory, epoch))
    fsync_directory(directory)
    for name in os.listdir(directory):
        if _SPILL.fullmatch(name) or name == SHOWN:
            os.unlink(os.path.join(directory, name))
    _forget_outputs(directory)


def _forget_outputs(directory: str) -> None:
    """Removes what a run that nobody can go on with had written."""
    with suppress(FileNotFoundError):
        with open(os.path.join(directory, _PARTS), encoding="utf-8", errors="surrogateescape") as parts:
            for line in parts.read().split("\n"):
                where, _, part = line.partition("\0")
                if where == os.path.realpath(directory):  # else this is a copy, and the part the original's
                    with suppress(OSError):  # it may be gone, and its directory, too
                        os.unlink(part)
        os.unlink(os.path.join(directory, _PARTS))


def _is_finished(directory: str, epoch: int) -> bool:
    with suppress(manifests.DamagedError):
        return manifests.load(directory, epoch).status == FINISHED
    return False
