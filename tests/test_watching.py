"""Runs that are watched from other processes: `etl ps`, `etl top`, `etl tap`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, environment, run_etl
from prometheus import until
from terminal import Terminal

LINES = [b'{"id":%d,  "n":%d.50}\n' % (number, number % 7) for number in range(4000)]
HOSTILE = "x\x1b[31m[bold]\u202e"


class Work:
    """A directory with a recipe that waits for its input, and a private directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = Path(tempfile.mkdtemp(dir="/tmp"))  # short, as the name of a socket must be
        self.env = environment(XDG_RUNTIME_DIR=str(self.runtime))
        self.name = f"watched-{directory.name}"
        self.recipe: dict[str, Any] = {
            "version": 1,
            "name": self.name,
            "source": {"uses": "read", "with": {"paths": ["-"]}},
            "steps": [
                {"id": "check", "uses": "validate", "with": {"rules": ["n >= 0"]}},
                {"id": "few", "uses": "filter", "with": {"expr": "n < 6"}},
                {"id": "again", "uses": "filter", "with": {"expr": "n < 100"}},
            ],
            "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, given: bytes = b"".join(LINES), **changes: Any) -> subprocess.Popen[bytes]:
        """A run that has read what it was given, and waits for more."""
        self.recipe |= changes
        (self.directory / "recipe.yaml").write_text(json.dumps(self.recipe))
        process = subprocess.Popen(
            [BIN / "etl", "run", "recipe.yaml"], cwd=self.directory, env=self.env, stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.processes.append(process)
        assert process.stdin
        process.stdin.write(given)
        process.stdin.flush()
        until(lambda: [run for run in self.ps() if run["pid"] == process.pid and run["records"] == given.count(b"\n")])
        return process

    def feed(self, process: subprocess.Popen[bytes], data: bytes) -> None:
        assert process.stdin
        process.stdin.write(data)
        process.stdin.flush()

    def finish(self, process: subprocess.Popen[bytes]) -> bytes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        return stderr

    def etl(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        return run_etl(*args, cwd=self.directory, env=self.env)

    def ps(self) -> list[dict[str, Any]]:
        lines = self.etl("ps", "--json").stdout.splitlines()
        return [run for run in map(json.loads, lines) if run["recipe"] == self.recipe["name"]]

    @property
    def sockets(self) -> list[Path]:
        return list((self.runtime / "etl" / "runs").glob("*.sock"))


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    work = Work(tmp_path)
    yield work
    for process in work.processes:
        process.kill()
        process.wait()
    shutil.rmtree(work.runtime)


def test_ps_shows_a_run_while_it_goes_on(work: Work) -> None:
    process = work.start(checkpoint={"dir": "state", "every": "0s"})
    (run,) = work.ps()
    assert run["records"] == len(LINES)
    assert run["bytes_read"] == len(b"".join(LINES))
    assert run["bytes_left"] is None
    assert run["state"] == "running"
    assert run["rejected"] == 0
    assert run["checkpoint_at"] > run["started"]
    text = work.etl("ps").stdout.decode()
    assert work.name in text
    assert "4,000" in text
    assert [oct(os.stat(each).st_mode)[-3:] for each in work.sockets] == ["700"]
    work.finish(process)
    assert work.ps() == []
    assert work.sockets == []


def test_a_run_without_anybody_is_listed_as_nothing(work: Work) -> None:
    done = work.etl("ps", "--json")
    assert done.returncode == 0
    assert work.name.encode() not in done.stdout


@pytest.mark.parametrize(
    ("step", "side", "expected"),
    [
        ("read", "out", LINES),
        ("check", "in", LINES),
        ("few", "out", [line for line in LINES if json.loads(line)["n"] < 6]),
        ("again", "in", [line for line in LINES if json.loads(line)["n"] < 6]),
        ("write", "in", [line for line in LINES if json.loads(line)["n"] < 6]),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_tap_shows_records_as_they_pass(
    work: Work, step: str, side: str, expected: list[bytes], workers: int
) -> None:
    process = work.start(given=LINES[0], runtime={"workers": workers})
    tap = subprocess.Popen(
        [BIN / "etl", "tap", work.name, "--step", step, "--side", side, "--limit", str(len(expected) - 1)],
        env=work.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    # Until it listens what passes is not for it: one record again and again, which is no part of the rest.
    assert tap.stdout
    while not (head := _readable(tap)):
        work.feed(process, LINES[0])
    work.feed(process, b"".join(LINES[1:]))
    found, stderr = tap.communicate(timeout=60)
    shown = (head + found).splitlines(keepends=True)
    repeated = len([line for line in shown if line == LINES[0]])
    assert repeated
    assert shown[repeated:] == expected[1 : len(shown) - repeated + 1]
    assert (tap.returncode, stderr) == (0, b"")
    work.finish(process)
    out = (work.directory / "out.ndjson").read_bytes().splitlines(keepends=True)
    repeated = out.count(LINES[0])
    assert out[repeated - 1 :] == [line for line in LINES if json.loads(line)["n"] < 6]


def _readable(process: subprocess.Popen[bytes]) -> bytes:
    import select

    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], 0.2)
    return os.read(process.stdout.fileno(), 1 << 20) if ready else b""


def test_a_tap_with_a_condition(work: Work) -> None:
    process = work.start(given=LINES[0])
    tap = subprocess.Popen(
        [BIN / "etl", "tap", str(process.pid), "--step", "few", "--where", "n == 3.5", "--limit", "5"],
        env=work.env, stdout=subprocess.PIPE,
    )  # fmt: skip
    while tap.poll() is None:
        work.feed(process, b"".join(LINES[:50]))
        time.sleep(0.05)
    assert tap.stdout
    shown = tap.stdout.read().splitlines()
    assert len(shown) == 5
    assert {json.loads(line)["n"] for line in shown} == {3.5}
    tap.stdout.close()


def test_a_tap_that_is_not_read_holds_nothing_up(work: Work) -> None:
    process = work.start(given=LINES[0])
    (path,) = work.sockets
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.sendall(b'{"ask":"tap","step":"read","side":"out"}\n')
    stream = client.makefile("rb")
    assert stream.readline() == b'{"tap":1}\n'
    wide = b"".join(b'{"id":%d,"n":1,"pad":"%s"}\n' % (number, b"x" * 1000) for number in range(60_000))
    work.feed(process, wide)
    # It has to send 60 MB to somebody who takes none of it.
    until(lambda: [run for run in work.ps() if run["records"] == 60_001])
    seen = dropped = 0
    while seen + dropped < 60_000:
        frame = json.loads(stream.readline())
        for _ in range(frame["lines"]):
            assert stream.readline().startswith(b'{"id":')
        seen, dropped = seen + frame["lines"], dropped + frame["dropped"]
    assert seen > 0
    assert dropped > 0
    client.close()
    work.finish(process)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["tap", "nobody-has-this-name", "--step", "few"], 66, "no run of 'nobody-has-this-name' is going on"),
        (["tap", "NAME", "--step", "fwe"], 2, "no step 'fwe'"),
        (["tap", "NAME", "--step", "few", "--where", "n >"], 2, "--where: column 4"),
        (["tap", "NAME", "--step", "few", "--limit", "many"], 2, "many"),
        (["top", "nobody-has-this-name"], 66, "no run of 'nobody-has-this-name' is going on"),
    ],
)
def test_what_cannot_be_asked_is_refused(work: Work, args: list[str], code: int, says: str) -> None:
    process = work.start()
    done = work.etl(*(arg.replace("NAME", work.name) for arg in args))
    assert done.returncode == code
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    work.finish(process)


def test_two_runs_of_one_name_are_told_apart_by_their_process(work: Work) -> None:
    first, second = work.start(), work.start()
    assert {run["pid"] for run in work.ps()} == {first.pid, second.pid}
    done = work.etl("tap", work.name, "--step", "few")
    assert done.returncode == 2
    assert str(first.pid) in done.stderr.decode()
    assert str(second.pid) in done.stderr.decode()
    work.finish(first)
    second.kill()


def test_the_socket_of_a_dead_run_is_removed(work: Work) -> None:
    process = work.start()
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert len(work.sockets) == 1
    assert work.ps() == []
    assert work.sockets == []


def test_garbage_on_the_socket_disturbs_nobody(work: Work) -> None:
    process = work.start()
    (path,) = work.sockets
    for request in (b"\n", b"{}\n", b'{"ask":"tap"}\n', b'{"ask":1}\n', b"x" * 100_000, b'{"ask":"status"', b"\xff\n"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            client.recv(1000)
        except OSError:
            pass
        client.close()
    assert len(work.ps()) == 1
    work.finish(process)


def test_a_private_directory_that_is_not_private_costs_a_warning(work: Work) -> None:
    (work.runtime / "etl").mkdir(mode=0o777)
    os.chmod(work.runtime / "etl", 0o777)
    (work.directory / "in.ndjson").write_bytes(LINES[0])
    work.recipe["source"] = {"uses": "read", "with": {"paths": ["in.ndjson"]}}
    (work.directory / "recipe.yaml").write_text(json.dumps(work.recipe))
    done = work.etl("run", "recipe.yaml")
    assert done.returncode == 0
    assert b"control_failed" in done.stderr
    assert (work.directory / "out.ndjson").read_bytes() == LINES[0]


def test_top_shows_every_step_once_where_there_is_no_terminal(work: Work) -> None:
    process = work.start()
    text = work.etl("top", work.name, "--every", "100ms").stdout.decode()
    for step in ("read", "check (validate)", "few (filter)", "again (filter)", "write"):
        assert re.search(rf"^{re.escape(step)} ", text, re.MULTILINE), text
    assert "input" in text
    work.finish(process)


def test_nothing_hostile_reaches_the_terminal(work: Work) -> None:
    process = work.start(name=HOSTILE)
    for command in (["ps"], ["top", str(process.pid), "--every", "50ms"]):
        text = work.etl(*command).stdout.decode()
        assert "[bold]" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    watching = Terminal("top", str(process.pid), "--every", "50ms", "--count", "3", env=work.env)
    shown = watching.rest()
    assert watching.process.wait(60) == 0
    assert b"[bold]" in shown
    assert b"\x1b[31m" not in shown
    assert "\u202e".encode() not in shown
    work.finish(process)
