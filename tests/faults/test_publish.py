"""P5: a run that dies, fails or is stopped at any of its system calls leaves all of the old content or all of the new."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etlcli.cli.component import step
from etlcli.core.policy import ErrorBudget
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import EtlError
from etlcli.observe.logs import Log
from etlcli.recipe.model import OnError, Recipe
from etlcli.stages import sort
from etlcli.testing.faults import errors, interrupts, kills

OLD = b'{"k":0}\n'
LINES = [b'{"k":%d,"pad":"%s"}' % (number % 3, b"x" * 100) for number in range(12)]
SORTED = b"".join(line + b"\n" for line in sorted(LINES, key=lambda line: line[5]))
WAYS: dict[str, dict[str, Any]] = {
    "replace": {"path": "target"},
    "create": {"path": "target", "mode": "create"},
    "append": {"path": "target", "mode": "append"},
    "compressed": {"path": "target.gz"},
    "csv": {"path": "target.csv"},
    "append-csv": {"path": "target.csv", "mode": "append"},
    "new-directory": {"path": "new/target"},
    "template": {"path_template": "{k}.ndjson"},
}
# Where a call that fails may still leave a run that is good: what was swept, and locks.
SYNC = ("open", "write", "pwrite", "pread", "fsync", "fchmod", "rename", "link")


class Job:
    """A recipe that reads, sorts with spilling, and writes in one of the ways; `before` and `after` are what may be found."""

    def __init__(self, directory: Path, way: str) -> None:
        self.out = directory / "out"
        self.out.mkdir()
        source = directory / "in.ndjson"
        source.write_bytes(b"".join(line + b"\n" for line in LINES))
        self.recipe = Recipe(
            "job",
            step("read", {"paths": [str(source)]}),
            (step("sort", {"by": "k", "temp_dir": str(directory)}),),
            step("write", WAYS[way]),
            ErrorBudget(),
            memory=800,
            base_dir=str(self.out),
        )
        self.spoilt = directory / "spoilt"
        if way not in ("create", "new-directory", "compressed"):
            self._write_old(way)
        self.before = self.files()
        self.run()
        self.after = self.files()
        self.restore()

    def _write_old(self, way: str) -> None:
        names = [f"{number}.ndjson" for number in range(3)] if way == "template" else [WAYS[way]["path"]]
        for name in names:
            (self.out / name).write_bytes(b"k,pad\n9,z\n" if "csv" in way else OLD)

    def run(self) -> None:
        Pipeline(self.recipe, Log("error", "json")).run()

    def files(self) -> dict[str, bytes]:
        """All but the temporary ones."""
        found = {str(path.relative_to(self.out)): path for path in self.out.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if not name.endswith(".etl-tmp")}

    def leftovers(self) -> list[str]:
        return [path.name for path in self.out.rglob("*.etl-tmp")]

    def restore(self) -> None:
        """The old state, what a killed run left aside."""
        for name in self.files():
            (self.out / name).unlink()
        for name, content in self.before.items():
            (self.out / name).write_bytes(content)

    def is_whole(self) -> bool:
        """Each file is all old or all new."""
        found = self.files()
        return all(found.get(name) in (self.before.get(name), self.after[name]) for name in self.after) and (
            set(found) <= set(self.after)
        )


@pytest.fixture(params=WAYS)
def job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(sort, "_OUT", 4)
    return Job(tmp_path, request.param)


def test_P5_killed_anywhere(job: Job) -> None:
    outcomes = set()
    for what in kills(job.run):
        assert job.is_whole(), what
        outcomes.add(job.files() == job.after)
        job.restore()
    assert outcomes == {True, False}
    assert job.files() == job.after
    assert not job.leftovers(), "the run that got through sweeps what the others left"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_P5_failing_anywhere(job: Job, code: int) -> None:
    for what, raised in errors(job.run, code, SYNC):
        assert job.is_whole(), what
        assert not job.leftovers(), what
        if raised is None:
            assert job.files() == job.after, what
        else:
            assert isinstance(raised, EtlError), f"{what}: {raised!r}"
            assert raised.exit_code in (66, 73, 74), what
        job.restore()


def test_P5_interrupted_anywhere(job: Job) -> None:
    for what in interrupts(job.run):
        assert job.is_whole(), what
        assert not job.leftovers(), what
        job.restore()


# -- Quarantine ------------------------------------------------------------------------------------------------------

MIXED = b'{"k":1}\n{bad\n{"k":0}\n[]\n' * 3


@pytest.fixture
def quarantining(tmp_path: Path) -> Callable[[], None]:
    (tmp_path / "in").write_bytes(MIXED)
    recipe = Recipe(
        "job",
        step("read", {"paths": ["in"]}, OnError(then="quarantine")),
        (step("sort", {"by": "k"}),),
        step("write", {"path": "out"}),
        ErrorBudget(),
        "q",
        base_dir=str(tmp_path),
    )
    return lambda: Pipeline(recipe, Log("error", "json")).run()


def envelopes(path: Path) -> tuple[list[Any], int]:
    """Those that are whole, and how many lines are not."""
    found, torn = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            torn += 1
    return found, torn


def test_P5_what_is_published_has_its_rejects_in_quarantine(quarantining: Callable[[], None], tmp_path: Path) -> None:
    for what in kills(quarantining):
        found, torn = envelopes(tmp_path / "q")
        assert not torn, what
        if (tmp_path / "out").exists():
            assert [envelope["raw"] for envelope in found] == ["{bad", "[]"] * 3, what
            (tmp_path / "out").unlink()
        (tmp_path / "q").unlink(missing_ok=True)


def test_a_quarantine_that_fails_publishes_nothing(quarantining: Callable[[], None], tmp_path: Path) -> None:
    for what, raised in errors(quarantining, errno.ENOSPC, ("open", "write", "fsync")):
        found, torn = envelopes(tmp_path / "q")
        assert not torn, what
        if raised is not None:
            assert isinstance(raised, EtlError), what
        if (tmp_path / "out").exists():
            assert len(found) == 6, what
            (tmp_path / "out").unlink()
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".etl-tmp")], what
        (tmp_path / "q").unlink(missing_ok=True)
