"""Stages for which time passes while the input is silent."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select

import pytest
from conftest import BIN, environment

STEPS = {
    "alone": "etl batch --every 100ms",
    "behind another step": "etl run recipe.yaml",
    "behind one that holds all back": "etl run filter.yaml",
    "after a file": "etl batch --every 100ms first -",
    "as CSV": "etl run csv.yaml",
}
RECIPE = (
    'version: 1\nname: r\nsource: {uses: read, with: {paths: ["-"]%s}}\n'
    'steps: [%s{id: batch, uses: batch, with: {every: 100ms}}]\nsink: {uses: write, with: {path: "-"}}\n'
)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "first").write_bytes(b'{"a":0}\n')
    (tmp_path / "schema.json").write_text('{"required": ["a"]}')
    check = "{id: check, uses: validate, with: {schema: schema.json}%s}, "
    (tmp_path / "recipe.yaml").write_text(RECIPE % ("", check % ""))
    (tmp_path / "filter.yaml").write_text(RECIPE % ("", check % ", on_error: {then: skip}"))
    (tmp_path / "csv.yaml").write_text(RECIPE % (", format: csv", ""))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def started(line: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([BIN / "etl", *line.split()[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=environment()) as process:  # fmt: skip
        yield process
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 0


def give(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin
    process.stdin.write(content)
    process.stdin.flush()


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    """The next line that comes while the input stays open."""
    assert process.stdout
    line = b""
    while not line.endswith(b"\n"):
        assert select([process.stdout], [], [], 60)[0], "nothing came"
        line += os.read(process.stdout.fileno(), 1)
    return line


@pytest.mark.parametrize("steps", ["alone", "behind another step"])
def test_a_batch_that_is_due_comes_out_while_the_input_is_silent(steps: str) -> None:
    with started(STEPS[steps]) as process:
        for number in (1, 2, 3):
            give(process, b'{"a":%d}\n' % number)
            assert line_of(process) == b'{"batch":%d,"size":1,"records":[{"a":%d}]}\n' % (number, number)


def test_also_when_a_line_is_not_whole_yet() -> None:
    with started(STEPS["alone"]) as process:
        give(process, b'{"a":1}\n{"a":')
        assert line_of(process) == b'{"batch":1,"size":1,"records":[{"a":1}]}\n'
        give(process, b"2}\n")
        assert line_of(process) == b'{"batch":2,"size":1,"records":[{"a":2}]}\n'


def test_also_between_inputs() -> None:
    with started(STEPS["after a file"]) as process:
        assert line_of(process) == b'{"batch":1,"size":1,"records":[{"a":0}]}\n'
        give(process, b'{"a":1}\n')
        assert line_of(process) == b'{"batch":2,"size":1,"records":[{"a":1}]}\n'


def test_also_in_another_format() -> None:
    with started(STEPS["as CSV"]) as process:
        give(process, b"a\n1\n")
        assert line_of(process) == b'{"batch":1,"size":1,"records":[{"a":1}]}\n'


def test_also_when_what_comes_is_dropped_on_the_way() -> None:
    """The step above puts nothing out; that time passes is seen all the same."""
    with started(STEPS["behind one that holds all back"]) as process:
        give(process, b'{"a":1}\n')
        while True:
            give(process, b"{}\n")
            assert process.stdout
            if select([process.stdout], [], [], 0.005)[0]:
                break
        assert line_of(process) == b'{"batch":1,"size":1,"records":[{"a":1}]}\n'


def test_many_short_lines_at_once_are_all_taken_in_first() -> None:
    """More than one chunk holds: none waits in the reader until the batch is due."""
    with started("etl batch --size 50000 --every 1h") as process:
        give(process, b"{}\n" * 50_000)
        assert line_of(process).startswith(b'{"batch":1,"size":50000,"records":[{},')
