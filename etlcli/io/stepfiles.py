"""A step's files in a run that nobody can go on with: outputs vanish unless they are published, and spill files have no
names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from etlcli.core.files import Output
from etlcli.io.files import open_output
from etlcli.io.spill import SpillFile, spill_directory


class StepFiles:
    keeps = False

    def __init__(self, step: str, resources: ExitStack, log: Callable[..., None]) -> None:
        self._step = step
        self._resources = resources
        self._log = log

    def output(self, path: str, *, exclusive: bool = False, append: bool = False) -> Output:
        return open_output(path, exclusive=exclusive, append=append, resources=self._resources)

    def spill(self, directory: str | None = None, name: str = "") -> SpillFile:
        directory = spill_directory(directory)
        spill = SpillFile(directory)
        self._resources.callback(spill.close)
        self._log("debug", "spilling", step=self._step, directory=directory)
        return spill
