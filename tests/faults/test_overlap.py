"""Steps that ask somebody else several questions at a time, about records of several batches."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, environment

SPLIT_ETL = Path(__file__).parent.parent / "split_etl.py"
LINES = [b'{"id":%d,"k":%d}' % (number, number % 150) for number in range(300)]

# Takes a while, by chance; fails for some records; says of each key that it is there, and of some that it is not.
ASKED = """
import json, random, sys, time
lines = sys.stdin.read().splitlines()
time.sleep(random.uniform(0, 0.03))
if any(json.loads(line).get("id") in (77, 150, 151, 299) for line in lines):
    sys.exit("no")
with open("asked", "a") as file:
    file.write("".join(line + "\\n" for line in lines))
for line in lines:
    record = json.loads(line)
    print(json.dumps(record if "id" in record else {"v": record["k"]} if record["k"] % 7 else {}))
"""
# The call for the first record waits for that of a record in another part of the input: one or forty batches behind.
MEETING = """
import os, sys, time
data = sys.stdin.read()
if '"id":%d,' in data or '{"k":%d}' in data:
    open("met", "w").close()
while '"id":0,' in data or '{"k":0}' in data:
    if os.path.exists("met"):
        break
    time.sleep(0.01)
sys.stdout.write(data)
"""
WRAP = {"uses": "retry-wrap", "on_error": {"then": "quarantine"},
        "with": {"command": ["./ask"], "size": 7, "isolate": True}}  # fmt: skip
LOOKUP = {"uses": "lookup", "with": {"on": ["k"], "command": ["./ask"]}}


class Work:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "in.ndjson").write_bytes(b"".join(line + b"\n" for line in LINES))
        self.command(ASKED)

    def command(self, program: str) -> None:
        (self.directory / "ask").write_text(f"#!{sys.executable} -IS\n{program}")
        (self.directory / "ask").chmod(0o755)

    def run(self, *steps: dict[str, Any], **more: Any) -> subprocess.CompletedProcess[bytes]:
        """In parts of a few records."""
        recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}}, "steps": list(steps),
                  "sink": {"uses": "write", "with": {"path": "out"}}, "errors": {"quarantine": "q"}}  # fmt: skip
        env = {name: more.pop(name) for name in list(more) if name.startswith("ETL")}
        (self.directory / "recipe.yaml").write_text(json.dumps(recipe | more))
        return subprocess.run([sys.executable, SPLIT_ETL, "run", "recipe.yaml", "--stats"], cwd=self.directory,
                              capture_output=True, env=environment(ETL_TEST_PART="300", **env), timeout=60)  # fmt: skip

    def results(self, done: subprocess.CompletedProcess[bytes]) -> tuple[list[bytes], list[Any], list[Any]]:
        """Records, rejects and counts, in order; removed."""
        out = (self.directory / "out").read_bytes().splitlines()
        rejects = list(map(json.loads, (self.directory / "q").read_text().splitlines()))
        counts = json.loads(done.stderr.splitlines()[-1])["steps"]
        for name in ("out", "q"):
            (self.directory / name).unlink()
        return out, [(each["raw"], each["code"], each["origin"]) for each in rejects], counts


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def with_(step: dict[str, Any], **options: Any) -> dict[str, Any]:
    return step | {"with": step["with"] | options}


@pytest.fixture
def expected(work: Work) -> Any:
    done = work.run(WRAP, LOOKUP)
    assert done.returncode == 0, done.stderr
    out, rejects, counts = work.results(done)
    assert (len(out), len(rejects)) == (296, 4) and b'{"id": 1, "k": 1,"v":1}' in out
    return out, rejects, counts


@pytest.mark.parametrize("workers", [1, 2])
def test_order_is_kept(work: Work, expected: Any, workers: int) -> None:
    done = work.run(with_(WRAP, concurrency=5), with_(LOOKUP, concurrency=3), runtime={"workers": workers})
    assert done.returncode == 0, done.stderr
    assert work.results(done) == expected


@pytest.mark.parametrize("where", ["steps", "runtime"])
def test_the_same_records_rejects_and_counts_in_any_order(work: Work, expected: Any, where: str) -> None:
    free = {"ordered": False} if where == "steps" else {}
    runtime = {} if where == "steps" else {"runtime": {"ordered": False, "workers": 2}}
    done = work.run(with_(WRAP, concurrency=5, **free), with_(LOOKUP, concurrency=3, **free), **runtime)
    assert done.returncode == 0, done.stderr
    out, rejects, counts = work.results(done)
    assert (sorted(out), sorted(rejects, key=str), counts) == (
        sorted(expected[0]), sorted(expected[1], key=str), expected[2]
    )  # fmt: skip


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("after", [2, 4])
def test_killed_and_gone_on_with(work: Work, expected: Any, ordered: bool, after: int) -> None:
    options = {"concurrency": 4, "ordered": ordered}
    steps = with_(WRAP, **options), with_(LOOKUP, **options)
    more = {"checkpoint": {"dir": "state", "every": "10ms"}}
    done = work.run(*steps, ETL_TEST_KILL=str(after), **more)
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = work.run(*steps, **more)
    assert done.returncode == 0, done.stderr
    out, rejects, counts = work.results(done)
    if ordered:
        assert (out, rejects) == expected[:2]
    assert (sorted(out), sorted(rejects, key=str), counts) == (
        sorted(expected[0]), sorted(expected[1], key=str), expected[2]
    )  # fmt: skip


@pytest.mark.parametrize(("step", "ordered", "behind"), [(WRAP, True, 7), (WRAP, False, 250), (LOOKUP, True, 7),
                                                         (LOOKUP, False, 140)])  # fmt: skip
def test_calls_for_several_batches_overlap(work: Work, step: dict[str, Any], ordered: bool, behind: int) -> None:
    """Else the first call would wait for ever: for one that is made when it is done with, or all that are held are."""
    work.command(MEETING % (behind, behind))
    done = work.run(with_(step, concurrency=2, ordered=ordered))
    assert done.returncode == 0, done.stderr
    out = (work.directory / "out").read_bytes().splitlines()
    assert sorted(out) == sorted(LINES)
    assert (out == LINES) == ordered


@pytest.mark.parametrize("step", [WRAP, LOOKUP])
def test_no_more_is_held_than_some_calls_records(work: Work, step: dict[str, Any]) -> None:
    """In order, while the first call lasts, only so many others are made, though one slot is free."""
    work.command(MEETING % (100_000, 100_000) + "\nopen('calls', 'a').write('x')\n")
    (work.directory / "in.ndjson").write_bytes(b"".join(b'{"id":%d,"k":%d}\n' % (n, n) for n in range(1000)))
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
              "steps": [with_(step, concurrency=3)], "sink": {"uses": "write", "with": {"path": "out"}},
              "errors": {"quarantine": "q"}}  # fmt: skip
    (work.directory / "recipe.yaml").write_text(json.dumps(recipe))
    process = subprocess.Popen([sys.executable, SPLIT_ETL, "run", "recipe.yaml"], cwd=work.directory, env=environment())
    calls = work.directory / "calls"
    before, now = -1, 0
    while now > before or not now:
        time.sleep(0.7)
        before, now = now, len(calls.read_bytes()) if calls.exists() else 0
    assert 2 < now < 4 * 3
    (work.directory / "met").touch()
    assert process.wait(60) == 0
    assert len((work.directory / "out").read_bytes().splitlines()) == 1000


@pytest.mark.parametrize("unordered", [[], ["--unordered"]])
def test_answers_go_on_while_no_record_comes(tmp_path: Path, unordered: list[str]) -> None:
    command = [BIN / "etl", "retry-wrap", "--concurrency", "3", *unordered, "--", "sh", "-c", "sleep 0.1; cat"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
    assert process.stdin and process.stdout
    for number in range(5):
        process.stdin.write(b'{"n":%d}\n' % number)
        process.stdin.flush()
        assert process.stdout.readline() == b'{"n":%d}\n' % number
    process.stdin.close()
    assert process.wait(60) == 0


def test_a_signal_while_it_waits_for_input_finds_all_answered(work: Work) -> None:
    """Calls that are being made when it comes are waited for: their records are before the checkpoint."""
    recipe = {"version": 1, "source": {"uses": "read"}, "checkpoint": {"dir": "state", "every": "1h"},
              "steps": [{"uses": "retry-wrap", "with": {"concurrency": 4, "command": ["sh", "-c", "echo >> begun; sleep 1; cat"]}}],
              "sink": {"uses": "write", "with": {"path": "out"}}}  # fmt: skip
    (work.directory / "recipe.yaml").write_text(json.dumps(recipe))
    command = [BIN / "etl", "run", "recipe.yaml"]
    process = subprocess.Popen(command, cwd=work.directory, stdin=subprocess.PIPE, env=environment())
    assert process.stdin
    process.stdin.write(b'{"n":1}\n')
    process.stdin.flush()
    while not (work.directory / "begun").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    shown = subprocess.run([BIN / "etl", "checkpoint", "show", "recipe.yaml", "--json"], cwd=work.directory,
                           capture_output=True, env=environment(), check=True)  # fmt: skip
    assert json.loads(shown.stdout.splitlines()[-1])["read"] == 1
    done = subprocess.run(command, cwd=work.directory, input=b'{"n":1}\n{"n":2}\n', env=environment(), timeout=60)
    assert done.returncode == 0
    assert (work.directory / "out").read_bytes() == b'{"n":1}\n{"n":2}\n'
    assert len((work.directory / "begun").read_bytes()) == 2


def test_in_an_outlet_with_a_queue(work: Work, expected: Any) -> None:
    free = {"concurrency": 4, "ordered": False}
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
              "route": [{"when": "id < 150", "steps": [with_(WRAP, **free), with_(LOOKUP, **free)],
                         "sink": {"id": "low", "uses": "write", "with": {"path": "low"}}},
                        {"steps": [with_(WRAP, **free) | {"id": "other"}, with_(LOOKUP, **free) | {"id": "look"}],
                         "sink": {"id": "high", "uses": "write", "with": {"path": "high"}}}],
              "checkpoint": {"dir": "state", "every": "0s"}, "errors": {"quarantine": "q"}}  # fmt: skip
    (work.directory / "recipe.yaml").write_text(json.dumps(recipe))
    for kill in ("4", "3", ""):
        env = environment(**({"ETL_TEST_KILL": kill} if kill else {}))
        done = subprocess.run([sys.executable, SPLIT_ETL, "run", "recipe.yaml", "--stats"], cwd=work.directory,
                              capture_output=True, env=env, timeout=60)  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
    out = [line for name in ("low", "high") for line in (work.directory / name).read_bytes().splitlines()]
    assert sorted(out) == sorted(expected[0])
    assert len((work.directory / "q").read_bytes().splitlines()) == 4


def test_a_key_is_asked_for_once(work: Work) -> None:
    """Also by batches that are at the command at the same time."""
    done = work.run(with_(LOOKUP, concurrency=4, ordered=False))
    assert done.returncode == 0, done.stderr
    keys = [json.loads(line)["k"] for line in (work.directory / "asked").read_text().splitlines()]
    assert sorted(keys) == list(range(150))


def test_what_a_call_rejects_ends_the_run_that_fails(work: Work) -> None:
    step = with_(WRAP, concurrency=4) | {"on_error": {"then": "fail"}}
    done = work.run(step)
    assert done.returncode == 1 and b"in.ndjson:78 (step retry-wrap): command_failed" in done.stderr
    assert not (work.directory / "out").exists()
