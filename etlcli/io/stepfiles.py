"""A step's files in a run that nobody can go on with: outputs vanish unless they are published, and spill files have no
names."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from etlcli.core.files import Output
from etlcli.errors import UsageError
from etlcli.io.files import open_output
from etlcli.io.spill import SpillFile, spill_directory


class StepFiles:
    keeps = False

    def __init__(
        self, step: str, resources: ExitStack, log: Callable[..., None], claims: dict[str, str] | None = None
    ) -> None:
        """`claims`: which step of the run writes which file."""
        self._step = step
        self._resources = resources
        self._log = log
        self._claims = {} if claims is None else claims

    def claim(self, path: str) -> None:
        claim(self._claims, self._step, path)

    def output(self, path: str, *, exclusive: bool = False, append: bool = False) -> Output:
        self.claim(path)
        return open_output(path, exclusive=exclusive, append=append, resources=self._resources)

    def spill(self, directory: str | None = None, name: str = "") -> SpillFile:
        directory = spill_directory(directory)
        spill = SpillFile(directory)
        self._resources.callback(spill.close)
        self._log("debug", "spilling", step=self._step, directory=directory)
        return spill


def claim(claims: dict[str, str], step: str, path: str) -> None:
    """Raises UsageError when another step, or this one for a second time, writes the file."""
    target = os.path.realpath(path)
    if target in claims:
        raise UsageError(
            f"{path} is also written by step {claims[target]}", where=f"step {step}", hint="give each a file of its own"
        )
    claims[target] = step
