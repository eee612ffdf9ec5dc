"""Who watches a run cannot harm it, nor the others who do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from etlcli.cli.watching import watched
from etlcli.core.ledger import Ledger
from etlcli.engine.watch import Watch
from etlcli.errors import FindingsError, Interrupted
from etlcli.observe.logs import Log
from etlcli.observe.status import Look, Observer, Status
from etlcli.recipe.load import load_recipe


class Watcher(Observer):
    """Notes what it is told, and fails where it is to."""

    def __init__(self, notes: list[str], fails: str = "", how: BaseException | None = None) -> None:
        self.notes = notes
        self.fails = fails
        self.how = how or RuntimeError("can't start new thread")

    def told(self, what: str) -> None:
        self.notes.append(what)
        if what == self.fails:
            raise self.how

    def begin(self, look: Look) -> None:
        self.told("begin")

    def running(self) -> None:
        self.told("running")

    def end(self, last: Status) -> None:
        self.told("end")
        self.notes.append(f"{last.state} {last.exit_code}")


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    path = tmp_path / "recipe.yaml"
    path.write_text("{version: 1, source: {uses: read, with: {paths: [in]}}, sink: {uses: write, with: {path: out}}}")
    return Watch(load_recipe(str(path)), Ledger(), "run", 0.0)


def run(watch: Watch, tmp_path: Path, watchers: list[Any], error: BaseException | None = None) -> str:
    """What the log says."""
    log = Log(path=str(tmp_path / "log"))
    try:
        with watched(watch, watchers, log):
            watch.begin_to_run()
            if error:
                raise error
    finally:
        log.close()
    return (tmp_path / "log").read_text()


@pytest.mark.parametrize("fails", ["begin", "running", "end"])
def test_one_that_fails_harms_nobody(watch: Watch, tmp_path: Path, fails: str) -> None:
    notes: list[list[str]] = [[], [], []]
    watchers = [Watcher(notes[0]), Watcher(notes[1], fails), Watcher(notes[2])]
    said = run(watch, tmp_path, watchers)
    assert said.count('watching_failed what=watcher reason="can\'t start new thread"') == 1
    assert notes[0] == notes[2] == ["begin", "running", "end", "succeeded 0"]
    assert (
        notes[1]
        == {
            "begin": ["begin"],
            "running": ["begin", "running", "end", "succeeded 0"],
            "end": ["begin", "running", "end"],
        }[fails]
    )


def test_all_are_told_how_a_run_failed(watch: Watch, tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(FindingsError):
        run(watch, tmp_path, [Watcher(notes), Watcher(notes, "end")], FindingsError("too many"))
    assert notes == ["begin", "begin", "running", "running", "end", "end", "failed 1"]


def test_all_who_have_begun_are_told_of_a_signal_while_another_begins(watch: Watch, tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(Interrupted):
        run(watch, tmp_path, [Watcher(notes), Watcher([], "begin", Interrupted(15))])
    assert notes == ["begin", "end", "failed 143"]
