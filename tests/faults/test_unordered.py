"""Runs that do not keep the order of records: the same records come out, and all else holds as ever."""

from __future__ import annotations

import gzip
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

SPLIT_ETL = Path(__file__).parent.parent / "split_etl.py"
RECORDS = 1500

# `etl` in parts of 1000 bytes, of which the first waits for a part that is drawn only after another one was done with.
MEETING = """
import sys, time, os
from etlcli import __main__ as program
from etlcli.engine import head
from etlcli.formats import ndjson
from etlcli.io import extents
extents.PART = ndjson.PART = 1000
work = head.Head.work
def meeting(self, part):
    start = part.what.start
    if start > 9000:
        open("met", "w").close()
    while start == 0 and not os.path.exists("met"):
        time.sleep(0.01)
    return work(self, part)
head.Head.work = meeting
sys.argv[0] = "etl"
program.main()
"""


def lines_of(name: str, count: int) -> list[bytes]:
    """Records, and among them lines that are none, records that a schema or a condition refuses, and blank ones."""
    lines = []
    for number in range(count):
        key = f"{name}{number}"
        line = b'{"id":"%s","n":%d,"text":"%s"}' % (key.encode(), number, b"x" * (number % 40))
        if number % 97 == 5:
            line = b"{bad"
        elif number % 89 == 7:
            line = b'{"id":"%s"}' % key.encode()
        elif number % 83 == 11:
            line = b'{"id":"%s","n":"text"}' % key.encode()
        elif number % 79 == 13:
            line = b""
        lines.append(line)
    return lines


class Work:
    """A directory with a recipe in which records are rejected by the source, in workers, at the fork and in its branches."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe: dict[str, Any] = {
            "version": 1,
            "source": {"uses": "read", "with": {"paths": ["one.ndjson", "two.ndjson", "three.ndjson.gz", "four.ndjson"]},
                       "on_error": {"then": "quarantine"}},
            "steps": [{"uses": "validate", "with": {"schema": "schema.json"}, "on_error": {"then": "quarantine"}},
                      {"uses": "map", "with": {"set": ["m = id"]}}],
            "route": [
                {"when": "n % 2 == 0", "on_error": {"then": "quarantine"},
                 "steps": [{"uses": "retry-wrap", "on_error": {"then": "quarantine"},
                            "with": {"command": ["./even"], "isolate": True, "size": 100}}],
                 "sink": {"id": "even", "uses": "write", "with": {"path": "even.ndjson"}}},
                {"sink": {"id": "odd", "uses": "write", "with": {"path": "odd.ndjson"}}},
            ],
            "errors": {"quarantine": "quarantine.ndjson"},
        }  # fmt: skip
        (directory / "schema.json").write_text('{"required": ["n"]}')
        one, two, three, four = (lines_of(name, RECORDS) for name in "abcd")
        (directory / "one.ndjson").write_bytes(b"".join(line + b"\n" for line in one))
        (directory / "two.ndjson").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(two))
        (directory / "three.ndjson.gz").write_bytes(gzip.compress(b"\n".join(three)))
        (directory / "four.ndjson").write_bytes(b"\n".join(four))
        (directory / "even").write_text(
            "#!/bin/sh\nlines=$(cat)\ncase $lines in *'\"n\":100,'*|*'\"n\":500,'*) exit 1;; esac\n"
            'printf "%s\\n" "$lines"\n'
        )
        (directory / "even").chmod(0o755)

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        (self.directory / "recipe.yaml").write_text(json.dumps(self.recipe))
        return subprocess.run(
            [sys.executable, SPLIT_ETL, "run", "recipe.yaml", "--stats", *args], cwd=self.directory,
            capture_output=True, env=environment(ETL_TEST_PART="1000", **env), timeout=100,
        )  # fmt: skip

    def results(self, done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
        """All there is to compare, without the order of records; removed."""
        found: dict[str, Any] = {}
        for name in ("even.ndjson", "odd.ndjson"):
            found[name] = sorted((self.directory / name).read_bytes().splitlines())
        rejects = map(json.loads, (self.directory / "quarantine.ndjson").read_text().splitlines())
        found["rejects"] = sorted([each["step"], each["code"], each["raw"], str(each["origin"])] for each in rejects)
        keys = ("step", "in", "out", "discarded", "rejected")
        found["counts"] = [[step[key] for key in keys] for step in json.loads(done.stderr.splitlines()[-1])["steps"]]
        for name in ("even.ndjson", "odd.ndjson", "quarantine.ndjson"):
            (self.directory / name).unlink()
        return found


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture
def expected(work: Work) -> dict[str, Any]:
    done = work.run("--workers", "1")
    assert done.returncode == 0, done.stderr
    found = work.results(done)
    assert {step for step, *_ in found["rejects"]} == {"read", "validate", "retry-wrap", "route"}
    assert all(found.values())
    return found


@pytest.mark.parametrize("workers", ["1", "2", "3"])
@pytest.mark.parametrize("delay", ["0", "8"])
def test_the_same_records_rejects_and_counts(work: Work, expected: Any, workers: str, delay: str) -> None:
    done = work.run("--workers", workers, "--unordered", ETL_TEST_DELAY=delay)
    assert done.returncode == 0, done.stderr
    assert work.results(done) == expected


@pytest.mark.parametrize("how", ["KILL", "DIE"])
@pytest.mark.parametrize("after", [2, 3, 9])
def test_killed_and_gone_on_with(work: Work, expected: Any, how: str, after: int) -> None:
    work.recipe |= {"checkpoint": {"dir": "state", "every": "20ms"}, "runtime": {"workers": 3, "ordered": False}}
    when = f"{after} early" if how == "DIE" else str(after)
    done = work.run(ETL_TEST_DELAY="8", **{f"ETL_TEST_{how}": when})
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = work.run("--resume-only", ETL_TEST_DELAY="8")
    assert done.returncode == 0, done.stderr
    assert work.results(done) == expected


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finds_a_barrier(work: Work, expected: Any, signum: int) -> None:
    """However many parts were done ahead of their turn when it came."""
    work.recipe |= {"checkpoint": {"dir": "state", "every": "1h"}, "runtime": {"workers": 3, "ordered": False}}
    (work.directory / "recipe.yaml").write_text(json.dumps(work.recipe))
    env = environment(ETL_TEST_PART="1000", ETL_TEST_DELAY="40")
    process = subprocess.Popen([sys.executable, SPLIT_ETL, "run", "recipe.yaml"], cwd=work.directory, env=env,
                               stderr=subprocess.PIPE)  # fmt: skip
    until((work.directory / "quarantine.ndjson").exists)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signum, stderr
    done = work.run("--resume-only", ETL_TEST_DELAY="8")
    assert done.returncode == 0, done.stderr
    assert work.results(done) == expected


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def met(directory: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", MEETING, *args], cwd=directory, env=environment(),
                          capture_output=True, timeout=60)  # fmt: skip


def test_results_are_taken_as_they_come(tmp_path: Path) -> None:
    """In order the run would wait for ever: for a part that waits for one behind the window."""
    lines = [b'{"id":%d,"text":"%s"}' % (number, b"x" * 50) for number in range(1000)]
    (tmp_path / "in.ndjson").write_bytes(b"\n".join([*lines, b""]))
    done = met(tmp_path, "filter", "id >= 0", "in.ndjson", "--workers", "2", "--unordered")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() != lines and sorted(done.stdout.splitlines()) == sorted(lines)


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_while_the_first_part_is_not_done(tmp_path: Path, signum: signal.Signals, twice: bool) -> None:
    """Where parts were done ahead of it there is no barrier, and nothing to go on from."""
    lines = [b'{"id":%d,"text":"%s"}' % (number, b"x" * 50) for number in range(1000)]
    (tmp_path / "in.ndjson").write_bytes(b"\n".join([*lines, b""]))
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
              "sink": {"uses": "write", "with": {"path": "out"}}, "runtime": {"workers": 2, "ordered": False},
              "checkpoint": {"dir": "state", "every": "1h"}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    program = MEETING.replace('open("met", "w").close()', 'open("ahead", "w").close()')
    process = subprocess.Popen([sys.executable, "-c", program, "run", "recipe.yaml"], cwd=tmp_path, env=environment())
    until((tmp_path / "ahead").exists)
    time.sleep(0.3)  # what was done has been settled, and the run waits for the first part
    for _ in range(1 + twice):
        process.send_signal(signum)
        time.sleep(0.1)
    (tmp_path / "met").touch()
    assert process.wait(60) == -signum
    done = met(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "out").read_bytes().splitlines()) == sorted(lines)


def test_a_line_is_known_before_those_above_it(tmp_path: Path) -> None:
    """What is rejected while the parts before it are still being read."""
    lines = [b'{"id":%d,"text":"%s"}' % (number, b"x" * 50) for number in range(1000)]
    lines[150] = lines[600] = b"{bad"
    (tmp_path / "in.ndjson").write_bytes(b"\n".join([*lines, b""]))
    done = met(tmp_path, "read", "in.ndjson", "--workers", "2", "--unordered", "--quarantine", "q", "-o", "out",
               "--on-error", "quarantine")  # fmt: skip
    assert done.returncode == 0, done.stderr
    origins = [json.loads(line)["origin"] for line in (tmp_path / "q").read_text().splitlines()]
    assert [(origin["line"], origin["offset"]) for origin in origins] == [
        (number + 1, sum(len(line) + 1 for line in lines[:number])) for number in (150, 600)
    ]


def test_one_slow_part_does_not_let_the_others_run_away(tmp_path: Path) -> None:
    """While it lasts, no more than some windows of parts are drawn: here the run would end before it, and does not."""
    lines = [b'{"id":%d,"text":"%s"}' % (number, b"x" * 50) for number in range(6000)]
    (tmp_path / "in.ndjson").write_bytes(b"\n".join([*lines, b""]))
    program = MEETING.replace("start > 9000", "start > 200_000")
    process = subprocess.Popen([sys.executable, "-c", program, "filter", "id >= 0", "in.ndjson", "--workers", "2",
                                "--unordered", "-o", "out"], cwd=tmp_path, env=environment())  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=3)
    (tmp_path / "met").touch()
    assert process.wait(60) == 0
    assert sorted((tmp_path / "out").read_bytes().splitlines()) == sorted(lines)


def test_a_database_is_given_the_same_again(tmp_path: Path) -> None:
    """It knows by their order which records it has had, so that order is kept for it."""
    lines = [b'{"id":%d}\n' % number for number in range(3000)]
    (tmp_path / "in.ndjson").write_bytes(b"".join(lines))
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
              "sink": {"uses": "sql", "with": {"url": "sqlite:///out.db", "table": "t", "create": True}},
              "checkpoint": {"dir": "state", "every": "20ms"},
              "runtime": {"workers": 3, "ordered": False}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    for number in (3, 2, None):
        env = environment(ETL_TEST_DELAY="5", **({"ETL_TEST_DIE": f"{number} early"} if number else {}))
        done = subprocess.run([sys.executable, SPLIT_ETL, "run", "recipe.yaml"], cwd=tmp_path, env=env,
                              capture_output=True, timeout=60)  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if number else 0), done.stderr
    with closing(sqlite3.connect(tmp_path / "out.db")) as database:
        assert database.execute("SELECT id FROM t ORDER BY id").fetchall() == [(number,) for number in range(3000)]


def test_the_first_records_of_an_input_are_those(tmp_path: Path) -> None:
    lines = [b'{"id":%d}\n' % number for number in range(1000)]
    (tmp_path / "in.ndjson").write_bytes(b"".join(lines))
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
              "sink": {"uses": "write", "with": {"path": "out"}}, "runtime": {"workers": 3, "ordered": False}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = subprocess.run([sys.executable, SPLIT_ETL, "run", "recipe.yaml", "--limit", "77"], cwd=tmp_path,
                          env=environment(ETL_TEST_DELAY="5"), capture_output=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == b"".join(lines[:77])


def test_incremental_runs_read_all_once(tmp_path: Path) -> None:
    lines = [b'{"id":%d}\n' % number for number in range(2000)]
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}, "incremental": True},
              "sink": {"uses": "write", "with": {"path": "out", "mode": "append"}},
              "checkpoint": {"dir": "state", "every": "10ms"},
              "runtime": {"workers": 3, "ordered": False}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    for start in range(0, 2000, 500):
        with (tmp_path / "in.ndjson").open("ab") as file:
            file.writelines(lines[start : start + 500])
        done = subprocess.run([sys.executable, SPLIT_ETL, "run", "recipe.yaml"], cwd=tmp_path,
                              env=environment(ETL_TEST_DELAY="3"), capture_output=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "out").read_bytes().splitlines(keepends=True)) == sorted(lines)


@pytest.mark.parametrize(
    "args",
    [
        ["group", "--by", "key", "--agg", "n=count()", "--assume-sorted"],
        ["sort", "--by", "key", "--check"],
        ["sort", "--by", "key", "--merge"],
        ["filter", "id >= 0"],
    ],
)
def test_order_is_kept_for_who_goes_by_it(tmp_path: Path, args: list[str]) -> None:
    """And, of these, by nobody else."""
    lines = [b'{"id":%d,"key":%d,"text":"%s"}' % (number, number // 7, b"x" * 50) for number in range(3000)]
    (tmp_path / "in.ndjson").write_bytes(b"\n".join([*lines, b""]))
    done = {}
    for how in ((), ("--workers", "3", "--unordered")):
        command = [sys.executable, SPLIT_ETL, *args, "in.ndjson", *how]
        env = environment(ETL_TEST_PART="1000", ETL_TEST_DELAY="8")
        done[how] = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=60)
        assert done[how].returncode == 0, done[how].stderr
    ordered, unordered = (each.stdout for each in done.values())
    assert (ordered == unordered) == (args[0] != "filter")
