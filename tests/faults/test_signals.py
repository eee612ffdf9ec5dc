"""INT and TERM, wherever a run is: it cleans up and dies by the signal. That they may come at any call: test_publish.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, environment
from resuming import SPLIT_ETL

LINES = b"".join(b'{"a":%d,"pad":"%s"}\n' % (number * 7919 % 100_003, b"x" * 80) for number in range(50_000))
STOPS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "in").write_bytes(LINES)
    (tmp_path / "spill").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "target").write_bytes(b"old\n")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: r\nsource: {uses: read, with: {paths: [in, fifo]}}\n"
        "steps: [{id: order, uses: sort, with: {by: a, temp_dir: spill}}]\n"
        "sink: {uses: write, with: {path: out/target}}\nruntime: {memory: 1MiB}\n"
    )
    return tmp_path


def start(work: Path, *args: str, **options: Any) -> subprocess.Popen[bytes]:
    # A shell may have told its background jobs to ignore SIGINT, and these tests are in one.
    command = ["env", "--default-signal=INT", str(BIN / "etl"), *args]
    return subprocess.Popen(command, env=environment(), cwd=work, stderr=subprocess.PIPE, **options)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def spilled(process: subprocess.Popen[bytes], work: Path) -> bool:
    """Whether the process has written to a nameless file in the spill directory."""
    for fd in os.listdir(f"/proc/{process.pid}/fd"):
        link = f"/proc/{process.pid}/fd/{fd}"
        with suppress(FileNotFoundError):  # closed in between
            if os.readlink(link).startswith(str(work / "spill")) and os.stat(link).st_size:
                return True
    return False


def ended(process: subprocess.Popen[bytes], signum: int, work: Path) -> None:
    with process:
        assert process.wait(timeout=60) == -signum
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()
    assert os.listdir(work / "spill") == []
    assert os.listdir(work / "out") == ["target"]
    assert (work / "out" / "target").read_bytes() == b"old\n"


@pytest.mark.parametrize("signum", STOPS)
@pytest.mark.parametrize("command", ["sort", "run"])
def test_while_it_waits_for_input_and_has_spilled(command: str, signum: int, work: Path) -> None:
    args = ["run", "recipe.yaml"]
    if command == "sort":
        args = ["sort", "--by", "a", "--memory", "1MiB", "--temp-dir", "spill", "-o", "out/target", "in", "fifo"]
    process = start(work, *args)
    until(lambda: spilled(process, work))
    process.send_signal(signum)
    ended(process, signum, work)


@pytest.mark.parametrize("signum", STOPS)
def test_while_it_waits_for_the_first_byte(signum: int, work: Path) -> None:
    process = start(work, "read", "-o", "out/target", stdin=subprocess.PIPE)
    until(lambda: len(os.listdir(work / "out")) == 2)
    process.send_signal(signum)
    ended(process, signum, work)


@pytest.mark.parametrize("signum", STOPS)
def test_while_it_waits_for_its_reader(signum: int, work: Path) -> None:
    """In the middle of merging runs, with a full pipe."""
    process = start(work, "sort", "--by", "a", "--memory", "1MiB", "--temp-dir", "spill", "in", stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.read(10)
    process.send_signal(signum)
    ended(process, signum, work)


@pytest.mark.parametrize("signum", STOPS)
def test_while_it_writes_many_files(signum: int, work: Path) -> None:
    process = start(work, "write", "--path-template", "out/{a}.ndjson", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(b"".join(b'{"a":%d}\n' % number for number in range(200)))
    process.stdin.flush()
    until(lambda: len(os.listdir(work / "out")) > 100)
    process.send_signal(signum)
    ended(process, signum, work)


@pytest.mark.parametrize("signum", STOPS)
def test_P5_while_it_publishes_many_files(signum: int, work: Path) -> None:
    """Whichever thread the signal comes to, it comes too late; at the earliest when all is there."""
    (work / "many").write_bytes(b"".join(b'{"a":%d}\n' % number for number in range(300)))
    (work / "recipe.yaml").write_text(
        "version: 1\nsource: {uses: read, with: {paths: [many]}}\nsink: {uses: write, with: {path_template: 'to/{a}'}}\n"
    )

    def published() -> list[str]:
        return [name for name in os.listdir(work / "to") if not name.startswith(".")]

    (work / "to").mkdir()
    process = start(work, "run", "recipe.yaml")
    until(published)
    process.send_signal(signum)
    process.communicate(timeout=60)
    assert len(published()) == 300
    assert process.returncode in (0, -signum)


def test_two_signals(work: Path) -> None:
    process = start(work, "read", "-o", "out/target", stdin=subprocess.PIPE)
    until(lambda: len(os.listdir(work / "out")) == 2)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert (work / "out" / "target").read_bytes() == b"old\n"
    process.communicate()


def test_a_terminal_that_goes_away_may_say_so_twice(work: Path) -> None:
    """The run ends as after one signal, and cleans up."""
    process = start(work, "read", "-o", "out/target", stdin=subprocess.PIPE)
    until(lambda: len(os.listdir(work / "out")) == 2)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
    ended(process, signal.SIGHUP, work)


def test_an_ignored_interrupt_stays_ignored(work: Path) -> None:
    """As nohup and a shell's background jobs want it."""
    command = ["env", "--ignore-signal=INT", str(BIN / "etl"), "read", "-o", "out/target"]
    process = subprocess.Popen(command, env=environment(), cwd=work, stdin=subprocess.PIPE)
    until(lambda: len(os.listdir(work / "out")) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(b'{"new":1}\n', timeout=60)
    assert process.returncode == 0
    assert (work / "out" / "target").read_bytes() == b'{"new":1}\n'


@pytest.mark.parametrize("stats", [[], ["--stats"]])
@pytest.mark.parametrize("end", ["TERM", "timeout"])
@pytest.mark.parametrize("checkpoint", ["", "checkpoint: {dir: state}\n"])
def test_nobody_reads_standard_error(work: Path, end: str, checkpoint: str, stats: list[str]) -> None:
    """What cannot be said keeps nobody from ending."""
    with (work / "recipe.yaml").open("a") as file:
        file.write(f"{checkpoint}logging: {{level: debug}}\n")
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 65536)
    os.set_blocking(writing, True)
    options = ["--timeout", "1s"] if end == "timeout" else []
    process = subprocess.Popen(
        [sys.executable, SPLIT_ETL, "run", "recipe.yaml", *stats, *options],
        cwd=work, stderr=writing, env=environment(ETL_TEST_WAIT="0.5"),
    )  # fmt: skip
    if end == "TERM":
        time.sleep(1)
        process.terminate()
    assert process.wait(timeout=30) == (75 if end == "timeout" else -signal.SIGTERM)
    os.close(reading)
    os.close(writing)
