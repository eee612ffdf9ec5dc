"""P3: a run that dies or fails at any of its system calls, and is gone on with, comes to what one in one go comes to: output,
quarantine, counts and caches."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

from etlcli.connectors.sql import Sql
from etlcli.core import stage
from etlcli.engine import manifest
from etlcli.engine.checkpoint import forget
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import EtlError, ServiceUnreachableError
from etlcli.formats import ndjson
from etlcli.io import extents
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe
from etlcli.testing.faults import dies, errors, kills

SPLIT_ETL = Path(__file__).parent.parent / "split_etl.py"
SAMPLE = 23
"""Of the places where a run can die, one in so many, where not all are asked for."""
RECORDS = [{"id": number % 17, "k": "abc"[number % 3], "n": number, "pad": "x" * (number % 40)} for number in range(40)]
LINES = [json.dumps(record).encode() + b"\n" for record in RECORDS]
BAD = [b"no record\n", b"[1]\n", b'{"id":"three","k":"a","n":0.5}\n']
NDJSON = b"".join(LINES[:13] + BAD[:1] + LINES[13:29] + BAD[1:] + LINES[29:])
CSV = "id,k,n,pad\n" + "".join(",".join(map(str, record.values())) + "\n" for record in RECORDS)

ASIDE = {"on_error": {"then": "quarantine"}}
RECIPES: dict[str, dict[str, Any]] = {
    "sort": {
        "source": {"uses": "read", "with": {"paths": ["one.ndjson", "two.ndjson"]}, **ASIDE},
        "steps": [
            {"uses": "validate", "with": {"rules": ["id >= 0"]}, **ASIDE},
            {"uses": "dedupe-cache", "with": {"key": ["id", "k"], "dupes": "dupes.ndjson"}},
            {"uses": "sort", "with": {"by": ["-n", "k"]}},
        ],
        "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
    },
    "group": {
        "source": {"uses": "read", "with": {"paths": ["in.csv"]}},
        "steps": [{"uses": "group", "with": {"by": ["id"], "agg": ["n=count()", "m=mean(n)", "l=list(k)"]}}],
        "sink": {"uses": "write", "with": {"path": "out.json"}},
    },
    "template": {
        "source": {"uses": "read", "with": {"paths": ["in.ndjson.gz"]}, "on_error": {"then": "skip"}},
        "steps": [
            {"uses": "filter", "with": {"expr": "n >= 1"}, "on_error": {"then": "skip"}},
            {"uses": "batch", "with": {"size": 3}},
            {"uses": "unbatch"},
        ],
        "sink": {"uses": "write", "with": {"path_template": "out/{k}.csv.gz"}},
    },
    "append": {
        "source": {"uses": "read", "with": {"paths": ["one.ndjson"]}, "on_error": {"then": "skip"}},
        "steps": [
            {"uses": "dedupe-cache", "with": {"key": ["id"], "cache": "seen.db", "max_entries": 9}},
            {"uses": "map", "with": {"set": ["m = n + 1"]}},
        ],
        "sink": {"uses": "write", "with": {"path": "log.ndjson", "mode": "append"}},
    },
    "sql": {
        "source": {"uses": "read", "with": {"paths": ["one.ndjson", "two.ndjson"]}, **ASIDE},
        "steps": [{"uses": "filter", "with": {"expr": "n % 2 == 0"}, **ASIDE}],
        "sink": {"uses": "sql", "with": {"url": "sqlite:///t.db", "table": "t", "create": True}, **ASIDE},
    },
    "route": {
        "source": {"uses": "read", "with": {"paths": ["one.ndjson", "two.ndjson"]}, **ASIDE},
        "steps": [{"uses": "dedupe-cache", "with": {"key": ["id", "n"]}}],
        "route": [
            {
                "when": "k == 'a' and id > 3",
                "on_error": {"then": "quarantine"},
                "steps": [{"uses": "sort", "with": {"by": ["-n"]}}],
                "sink": {"id": "first", "uses": "write", "with": {"path": "a.ndjson"}},
            },
            {
                "when": "n % 2 == 0",
                "sink": {"id": "table", "uses": "sql", "with": {"url": "sqlite:///t.db", "table": "t", "create": True}},
            },
            {
                "steps": [
                    {"uses": "group", "with": {"by": ["k"], "emit": "list"}},
                    {"uses": "batch", "with": {"size": 2}},
                ],
                "sink": {"id": "rest", "uses": "write", "with": {"path": "rest.json.gz"}},
            },
        ],
    },
    "sinks": {
        "source": {"uses": "read", "with": {"paths": ["in.csv"]}},
        "steps": [{"uses": "sort", "with": {"by": ["-n"]}}],
        "sinks": [
            {"id": "all", "uses": "write", "with": {"path": "out.ndjson"}},
            {"id": "by", "uses": "write", "with": {"path_template": "out/{k}.csv"}},
            {"id": "log", "uses": "write", "with": {"path": "log.ndjson", "mode": "append"}},
        ],
    },
    "create": {
        "source": {"uses": "read", "with": {"paths": ["in.csv"]}},
        "steps": [
            {"uses": "dedupe-cache", "with": {"key": ["id"], "keep": "last"}},
            {"uses": "group", "with": {"by": ["k"], "emit": "list"}},
        ],
        "sink": {"uses": "write", "with": {"path": "new/out.ndjson", "mode": "create"}},
    },
}


class Job:
    """A recipe, and the directory it runs in."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / "work"
        self.before = directory / "before"
        self.before.mkdir()
        (self.before / "one.ndjson").write_bytes(NDJSON)
        (self.before / "two.ndjson").write_bytes(NDJSON[:-1])
        (self.before / "in.ndjson.gz").write_bytes(gzip.compress(NDJSON))
        (self.before / "in.csv").write_text(CSV)
        (self.before / "log.ndjson").write_bytes(b'{"old":1}\n')
        (self.before / "out.ndjson").write_bytes(b'{"old":1}\n')
        common = {
            "version": 1,
            "runtime": {"memory": 8000, "workers": 1},
            "errors": {"quarantine": "aside.ndjson"},
            "checkpoint": {"dir": "state", "every": "0s", "keep": 2},
        }
        (self.before / "recipe.yaml").write_text(json.dumps(RECIPES[name] | common))
        self.reset()
        self.counts: Any = None
        self.run()
        self.expected = self.found()
        self.reset()

    def reset(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(self.before, self.directory)

    def run(self) -> None:
        # The lock of the directory is the command's, and its directory too.
        (self.directory / "state").mkdir(exist_ok=True)
        pipeline = Pipeline(load_recipe(str(self.directory / "recipe.yaml")), Log("error", "json"))
        pipeline.run()
        self.counts = pipeline.ledger.as_list()

    def go_on(self) -> None:
        """As the next `etl run` would, where the last has not said that it is finished."""
        if not self.is_finished():
            self.run()

    def is_finished(self) -> bool:
        state = str(self.directory / "state")
        known = manifest.epochs(state)
        last = manifest.load(state, known[-1]) if known else None
        if last and last.status == manifest.FINISHED:
            self.counts = last.counts
            return True
        return False

    def found(self) -> dict[str, Any]:
        """Everything that a finished run leaves."""
        files = [path for path in self.directory.rglob("*") if path.is_file() and path.parent.name != "state"]
        found = {str(path.relative_to(self.directory)): _content(path) for path in files}
        return found | {"counts": self.counts}


def _content(path: Path) -> Any:
    if path.suffix == ".db":
        with sqlite3.connect(path) as connection:
            table = "t" if path.name == "t.db" else "unnamed"
            return sorted(row[0] for row in connection.execute(f'SELECT * FROM "{table}"'))
    return re.sub(rb'"(at|run)":"[^"]*"', b"", path.read_bytes())


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Job:
    for module in (stage, extents, ndjson):
        monkeypatch.setattr(module, "PART", 400)
    return Job(tmp_path, request.param)


@pytest.fixture
def step(request: pytest.FixtureRequest) -> int:
    return 1 if request.config.getoption("--faults") else SAMPLE


every_job = pytest.mark.parametrize("job", RECIPES, indirect=True)


@every_job
@pytest.mark.timeout(900)
def test_P3_killed_at_any_call(job: Job, step: int) -> None:
    for what in kills(job.run, step=step):
        job.go_on()
        assert job.found() == job.expected, what
        job.reset()


@every_job
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.timeout(900)
def test_a_call_that_fails_is_an_error_and_the_run_can_be_gone_on_with(job: Job, code: int, step: int) -> None:
    calls = ("open", "write", "pwrite", "fsync", "fchmod", "ftruncate", "rename", "link")
    for what, raised in errors(job.run, code, calls, step=step):
        if raised is not None:
            assert isinstance(raised, EtlError), what
            assert raised.exit_code in (66, 73, 74, 78), (what, raised)
            job.go_on()
        assert job.found() == job.expected, what
        job.reset()


@every_job
def test_P3_killed_again_and_again(job: Job) -> None:
    """Each process dies some calls later than the one before; what they come to together is the same."""
    for call in range(60, 1000, 7):
        if not dies(job.run, call) or job.is_finished():
            break
    job.go_on()
    assert job.found() == job.expected


@every_job
def test_what_a_checkpoint_has_is_durable_before_it_counts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which no killed process could show, since the system's cache survives it."""
    unsynced: set[int] = set()
    manifests = 0

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(fd: int, *args: Any) -> Any:
            result = real(fd, *args)
            (unsynced.discard if name == "fsync" else unsynced.add)(os.fstat(fd).st_ino)
            return result

        return call

    rename = os.rename

    def renamed(source: str, target: str) -> None:
        nonlocal manifests
        if Path(target).parent.name == "state":
            manifests += 1
            kept = [path for path in job.directory.rglob("*") if path.name.endswith((".spill", ".etl-part"))]
            assert not [path for path in [Path(source), *kept] if path.stat().st_ino in unsynced]
        rename(source, target)

    for name in ("write", "pwrite", "ftruncate", "fsync"):
        monkeypatch.setattr(os, name, watched(name))
    monkeypatch.setattr(os, "rename", renamed)
    job.run()
    assert manifests > 3
    assert job.found() == job.expected


@pytest.mark.parametrize("job", ["route"], indirect=True)
def test_no_file_is_published_before_the_database_has_had_its_say(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Sql) -> None:
        raise ServiceUnreachableError("the database is gone")

    def visible(directory: Path) -> dict[str, bytes]:
        names = (path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
        return {path.name: path.read_bytes() for path in names if path.suffix != ".db" and path.name != "aside.ndjson"}

    with monkeypatch.context() as patched, pytest.raises(ServiceUnreachableError):
        patched.setattr(Sql, "commit", lost)
        job.run()
    assert visible(job.directory) == visible(job.before)
    job.go_on()
    assert job.found() == job.expected


@pytest.mark.parametrize("job", [name for name in RECIPES if name not in ("sql", "route")], indirect=True)
def test_killed_while_a_run_is_forgotten(job: Job) -> None:
    """The next one goes on with it, or begins again, and in the end nothing else is there."""

    def again() -> None:
        for call in (90, 60, 30):  # some make fewer
            job.reset()
            if dies(job.run, call):
                return
        raise AssertionError("no run was interrupted")

    def found(what: dict[str, Any]) -> dict[str, Any]:
        return {name: content for name, content in what.items() if name != "aside.ndjson"}

    again()
    for what in kills(lambda: forget(str(job.directory / "state")), ("unlink", "fsync")):
        job.go_on()
        assert found(job.found()) == found(job.expected), what
        again()


# -- the program, killed from outside ---------------------------------------------------------------------------------


def etl(job: Job, *command: str, **environ: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, sys.executable, str(SPLIT_ETL), "run", str(job.directory / "recipe.yaml")],
        env=environment(**environ), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(job: Job) -> None:
    """Runs that nobody kills, until one has said that it is finished."""
    if not job.is_finished():
        process = etl(job, ETL_TEST_PART="1200")
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert job.is_finished()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("call", ["fsync,fdatasync", "rename", "unlink", "pwrite64", "write", "ftruncate"])
@pytest.mark.parametrize("job", ["append", "sql"], indirect=True)
@pytest.mark.timeout(900)
def test_P3_killed_at_any_system_call(job: Job, call: str, request: pytest.FixtureRequest) -> None:
    """Those that SQLite makes, too: at each that makes something durable or lets it vanish, and at some writes."""
    writes = call.endswith(("write", "write64"))
    for number in range(1, 1000, (9 if writes else 1) if request.config.getoption("--faults") else 47):
        strace = "strace", "-f", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}"
        process = etl(job, *strace, ETL_TEST_PART="1200")
        process.communicate(timeout=60)
        killed = process.returncode != 0
        finish(job)
        assert job.found() == job.expected, number
        job.reset()
        if not killed:
            return
    pytest.fail("there is no end to them")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("job", RECIPES, indirect=True)
def test_P3_coordinator_and_workers_killed_at_random(job: Job, request: pytest.FixtureRequest) -> None:
    generator = random.Random(request.node.name)
    for _ in range(45 if request.config.getoption("--faults") else 3):
        process = etl(job, ETL_TEST_WORKERS="2")
        time.sleep(generator.uniform(0.1, 0.35))
        victims = [process.pid, *children(process.pid)]
        with suppress(ProcessLookupError):
            os.kill(generator.choice(victims), signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), stderr
        if job.is_finished():
            assert job.found() == job.expected
            job.reset()
    finish(job)
    assert job.found() == job.expected


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


@pytest.mark.parametrize("steps", [
    [{"uses": "group", "with": {"by": ["k"], "agg": ["n=count()", "sum=sum(n)"]}}],
    [{"uses": "dedupe-cache", "with": {"key": ["k"]}}],
], ids=["group", "dedupe-cache"])  # fmt: skip
def test_P3_killed_while_workers_send_less_than_they_have(tmp_path: Path, steps: list[Any]) -> None:
    """What several blocks come to as one, and no key twice."""
    lines = [b'{"k":%d,"n":%d}\n' % (number // 100 + number % 3, number) for number in range(1500)]
    (tmp_path / "in.ndjson").write_bytes(b"".join(lines))
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}}, "steps": steps,
              "sink": {"uses": "write", "with": {"path": "out"}}, "checkpoint": {"dir": "state", "every": "0s"}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))

    def run(workers: str, kill: str) -> int:
        command = [sys.executable, str(SPLIT_ETL), "run", str(tmp_path / "recipe.yaml")]
        env = environment(ETL_TEST_WORKERS=workers, ETL_TEST_PART="200", ETL_TEST_KILL=kill)
        return subprocess.run(command, env=env, capture_output=True, timeout=60).returncode

    assert run("1", "0") == 0
    expected = (tmp_path / "out").read_bytes()
    for kill in ("2", "5", "11"):
        (tmp_path / "out").unlink()
        while (code := run("2", kill)) != 0:
            assert code == -signal.SIGKILL
            kill = str(int(kill) + 7)
        assert (tmp_path / "out").read_bytes() == expected
