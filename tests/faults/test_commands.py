"""Commands that hang: nothing waits for them longer than it was told to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BIN, environment, run_etl


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"".join(b'{"id":%d}\n' % number for number in range(400)))
    return path


def sleepers(marker: str) -> list[str]:
    return subprocess.run(["pgrep", "-f", marker], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_commands_that_run_side_by_side(records: Path, signum: int) -> None:
    marker = f"86{records.stat().st_ino}"
    command = ["env", "--default-signal=INT", BIN / "etl", "retry-wrap", "--concurrency", "4", "--size", "10", records,
               "--attempts", "9", "--backoff", "30s..60s", "-o", records.with_name("out"), "--",
               "sh", "-c", f"sleep {marker} & sleep {marker}"]  # fmt: skip
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    while len(sleepers(f"^sleep {marker}")) < 8:
        time.sleep(0.02)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == -signum and not stderr
    assert not sleepers(f"^sleep {marker}")
    assert not records.with_name("out").exists()


def test_the_first_reject_ends_a_run_that_fails(records: Path) -> None:
    """Not one time-out for each half of each half of all records."""
    calls = records.with_name("calls")
    done = run_etl("retry-wrap", records, "--isolate", "--timeout", "100ms", "--", "sh", "-c",
                   f"echo >> {calls}; sleep 60")  # fmt: skip
    assert done.returncode == 1 and b"took longer than 0.1 s" in done.stderr
    assert len(calls.read_bytes()) <= 10  # 400 records are halved nine times


@pytest.mark.parametrize("attempts", ["1", "2"])
def test_isolation_is_over_when_the_time_is(records: Path, attempts: str) -> None:
    calls = records.with_name("calls")
    done = run_etl("retry-wrap", records, "--isolate", "--timeout", "100ms", "--max-elapsed", "1s", "--attempts", attempts,
                   "--backoff", "10ms..10ms", "--on-error", "skip", "--stats", "--", "sh", "-c",
                   f"echo >> {calls}; sleep 60")  # fmt: skip
    assert done.returncode == 0
    assert len(calls.read_bytes()) <= 12
    step = json.loads(done.stderr.splitlines()[-1])["steps"][1]
    assert step["rejected"] == {"timeout": 400}


def run_python(text: str, *args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", text, *args], capture_output=True, env=environment(), timeout=100)


def test_no_signal_comes_between_the_start_of_a_command_and_knowing_of_it(tmp_path: Path) -> None:
    marker = f"86.{tmp_path.stat().st_ino}"
    done = run_python(
        """
import random, signal, sys
from etlcli.io.command import Command, stop_all

class Stop(BaseException):
    pass

def stop(*_):
    raise Stop

signal.signal(signal.SIGALRM, stop)
stopped = 0
for _ in range(300):
    command = None
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
        command = Command(["sleep", sys.argv[1]], "", None)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        stopped += 1
    if command:
        command.kill()
stop_all()  # as at the end of the program: the signal may have come when one was made and had no name yet
assert stopped
""",
        marker,
    )
    try:
        assert (done.returncode, done.stderr) == (0, b"")
        assert not sleepers(f"^sleep {marker}")
    finally:
        subprocess.run(["pkill", "-f", f"^sleep {marker}"])


def test_a_second_signal_during_clean_up_ends_commands_too(tmp_path: Path) -> None:
    marker = f"87.{tmp_path.stat().st_ino}"
    done = run_python(
        """
import os, signal, sys
from etlcli.cli.main import _install_signals
from etlcli.errors import Interrupted
from etlcli.io.command import Command

_install_signals()
command = Command(["sleep", sys.argv[1]], "", None)
try:
    signal.raise_signal(signal.SIGTERM)
except Interrupted:
    signal.raise_signal(signal.SIGINT)
print("still there")
""",
        marker,
    )
    try:
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
        assert not sleepers(f"^sleep {marker}")
    finally:
        subprocess.run(["pkill", "-f", f"^sleep {marker}"])
