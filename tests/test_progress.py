"""How far a run is, on a terminal and elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, environment, run_etl
from terminal import Terminal

LINES = b"".join(b'{"n":%d}\n' % number for number in range(1000))
MOVES = re.compile(rb"\x1b\[\d*[ABKG]|\r(?!\n)")
"""What makes a line change in place."""


def write(directory: Path, **changes: Any) -> None:
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "slow",
        "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
        "steps": [{"uses": "retry-wrap", "with": {"command": ["sh", "-c", "sleep 0.5; cat"], "size": 200}}],
        "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe | changes))
    (directory / "in.ndjson").write_bytes(LINES)


def on_terminal(directory: Path, *args: str, **own: str) -> Terminal:
    return Terminal("run", "recipe.yaml", *args, cwd=directory, env=environment(), **own)


def test_a_line_on_a_terminal_that_goes_with_the_run(tmp_path: Path) -> None:
    write(tmp_path)
    terminal = on_terminal(tmp_path)
    shown = terminal.rest()
    assert terminal.process.wait(60) == 0
    assert b"slow " in shown
    assert b"1,000 records read" in shown
    assert b"retry-wrap waits for command" in shown
    assert MOVES.search(shown)
    # It has taken its line away, and shown the cursor again.
    assert shown.endswith(b"\x1b[?25h\r\x1b[1A\x1b[2K")


def test_log_lines_stand_above_it(tmp_path: Path) -> None:
    write(tmp_path)
    terminal = on_terminal(tmp_path, "--log-level", "info", "--set", "logging.every=600ms")
    shown = terminal.rest()
    assert terminal.process.wait(60) == 0
    for line in shown.replace(b"\r\n", b"\n").splitlines():
        # Nothing of the bar is left before a line of the log.
        assert b"run_progress" not in line or re.search(rb"(^|\x1b\[2K)[0-9T:.Z-]+ info +run_progress", line), line
    assert shown.count(b"run_progress") >= 3


@pytest.mark.parametrize(
    ("args", "own"), [(["--quiet"], {}), (["--no-progress"], {}), ([], {"TERM": "dumb"}), (["-q", "--progress"], {})]
)
def test_nothing_where_it_is_not_wanted_or_cannot_be(tmp_path: Path, args: list[str], own: dict[str, str]) -> None:
    write(tmp_path)
    terminal = on_terminal(tmp_path, *args, **own)
    assert terminal.rest() == b""
    assert terminal.process.wait(60) == 0


def test_a_terminal_that_cannot_change_a_line_gets_log_lines(tmp_path: Path) -> None:
    write(tmp_path)
    terminal = on_terminal(tmp_path, "--set", "logging.every=600ms", TERM="dumb")
    shown = terminal.rest()
    assert terminal.process.wait(60) == 0
    assert shown.count(b"run_progress") >= 3
    assert b"\x1b" not in shown


def test_no_colours_where_they_are_not_wanted(tmp_path: Path) -> None:
    write(tmp_path)
    shown = on_terminal(tmp_path, NO_COLOR="1").rest()
    assert b"records read" in shown
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m|\x1b\[9[0-9]m", shown)


def test_short_work_shows_nothing(tmp_path: Path) -> None:
    write(tmp_path, steps=[])
    terminal = on_terminal(tmp_path)
    assert terminal.rest() == b""
    assert terminal.process.wait(60) == 0


def test_a_name_that_would_command_the_terminal(tmp_path: Path) -> None:
    write(tmp_path, name="x\x1b[2Jy[bold]\u202e")
    shown = on_terminal(tmp_path).rest()
    assert b"[bold]" in shown
    assert b"\x1b[2J" not in shown
    assert "\u202e".encode() not in shown


def test_a_terminal_that_goes_away_or_changes_its_size_ends_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    terminal = on_terminal(tmp_path)
    terminal.read_until(b"records read")
    terminal.resize(None, 20)
    terminal.shown = b""
    terminal.read_until(b"\r")
    terminal.go_away()
    assert terminal.process.wait(60) == 0
    assert (tmp_path / "out.ndjson").read_bytes() == LINES


def test_log_lines_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, logging={"every": "300ms"})
    silent = run_etl("run", "recipe.yaml", "--no-progress", cwd=tmp_path)
    assert (silent.returncode, silent.stderr) == (0, b"")
    coloured = environment(FORCE_COLOR="1")
    told = run_etl("run", "recipe.yaml", "--log-format", "json", cwd=tmp_path, env=coloured)
    assert told.returncode == 0
    lines = [json.loads(line) for line in told.stderr.splitlines()]
    assert len(lines) >= 2
    assert {line["event"] for line in lines} == {"run_progress"}
    assert lines[-1]["records"] in (0, 1000)
    assert run_etl("run", "recipe.yaml", "--progress", "-q", cwd=tmp_path).stderr == b""


def test_a_command_by_itself(tmp_path: Path) -> None:
    """Not in the middle of a pipe, whose last program may have a line of its own."""
    slow = ["retry-wrap", "--size", "200"]
    for pipe in (False, True):
        args = [*slow, *([] if pipe else ["-o", str(tmp_path / "out.ndjson")]), "--", "sh", "-c", "sleep 0.5; cat"]
        terminal = Terminal(*args, env=environment(), pipe=pipe)
        stdin, stdout = terminal.process.stdin, terminal.process.stdout
        assert stdin
        stdin.write(LINES)
        stdin.close()
        shown = terminal.rest()
        assert (stdout.read() if stdout else (tmp_path / "out.ndjson").read_bytes()) == LINES
        assert terminal.process.wait(60) == 0
        assert bool(shown) == (not pipe)


def test_quiet_still_says_what_went_wrong(tmp_path: Path) -> None:
    write(tmp_path)
    with open(tmp_path / "in.ndjson", "ab") as file:
        file.write(b"no record\n")
    done = subprocess.run(
        [BIN / "etl", "run", "-q", "recipe.yaml"], cwd=tmp_path, env=environment(), capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert b"bad_json" in done.stderr
    assert os.listdir(tmp_path) == ["in.ndjson", "recipe.yaml"] or not (tmp_path / "out.ndjson").exists()
