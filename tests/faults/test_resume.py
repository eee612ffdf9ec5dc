"""A run that is stopped and gone on with, as its users see it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, Run, environment, run_etl

SPLIT_ETL = Path(__file__).parent.parent / "split_etl.py"
LINES = [b'{"id":%d,"k":"%s","n":%d.50}\n' % (number, b"abc"[number % 3 :][:1], number % 7) for number in range(3000)]
SLOW = {"uses": "retry-wrap", "with": {"command": ["sh", "-c", "sleep 0.02; cat"]}}
SORTED = b"".join(sorted(LINES, key=lambda line: json.loads(line)["n"]))


class Work:
    """A directory with a recipe in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.recipe: dict[str, Any] = {
            "version": 1,
            "source": {"uses": "read", "with": {"paths": ["in/*.ndjson"]}},
            "steps": [{"uses": "sort", "with": {"by": ["n"]}}],
            "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
            "checkpoint": {"dir": "state", "every": "0s"},
        }
        (directory / "in").mkdir()
        (directory / "in" / "one.ndjson").write_bytes(b"".join(LINES))

    def write(self, **changes: Any) -> None:
        self.recipe |= changes
        (self.directory / "recipe.yaml").write_text(json.dumps(self.recipe))

    def run(self, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return run_etl("run", "recipe.yaml", *args, cwd=self.directory, stdin=stdin)

    def start(self, *args: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [BIN / "etl", "run", "recipe.yaml", *args], cwd=self.directory, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
        )  # fmt: skip

    def interrupted(self, *args: str, signum: int = signal.SIGTERM) -> None:
        """A run that a signal ends when it has read some of its input."""
        process = self.start("--workers", "1", *args)
        until(lambda: 0 < self.read() < len(LINES))
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == -signum, stderr
        assert 0 < self.read() < len(LINES)

    def shown(self) -> list[dict[str, Any]]:
        done = run_etl("checkpoint", "show", "recipe.yaml", "--json", cwd=self.directory)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def read(self) -> int:
        """Records that were read up to the newest checkpoint."""
        shown = self.shown()
        return shown[-1]["read"] if shown else 0

    @property
    def output(self) -> bytes:
        return (self.directory / "out.ndjson").read_bytes()

    def left(self) -> list[str]:
        return [name for name in os.listdir(self.directory) if ".etl-" in name]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    work = Work(tmp_path)
    work.write()
    return work


@pytest.fixture
def slow(work: Work) -> Work:
    """Whose input goes through a command that takes its time, in many small parts."""
    parts = work.directory / "in"
    (parts / "one.ndjson").unlink()
    for number in range(0, len(LINES), 30):
        (parts / f"{number:05}.ndjson").write_bytes(b"".join(LINES[number : number + 30]))
    work.write(steps=[SLOW, {"uses": "sort", "with": {"by": ["n"]}}])
    return work


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_P3_stopped_by_a_signal_and_gone_on_with(slow: Work, signum: int) -> None:
    slow.interrupted(signum=signum)
    assert not (slow.directory / "out.ndjson").exists()
    before = slow.read()
    done = slow.run("--stats", "--log-level", "info")
    assert done.returncode == 0, done.stderr
    assert b"run_resumed" in done.stderr
    assert slow.output == SORTED
    counts = json.loads(done.stderr.splitlines()[-1])["steps"]
    assert [step["in"] for step in counts] == [len(LINES)] * 4
    assert before < slow.read() == len(LINES)
    assert not slow.left()
    assert sorted(os.listdir(slow.state))[1:] == ["lock"]


def test_the_first_signal_takes_a_checkpoint(slow: Work) -> None:
    """Even where it is not yet time for one."""
    slow.write(checkpoint={"dir": "state", "every": "1h"})
    process = slow.start("--workers", "1", "--log-level", "debug")
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert slow.shown()[-1]["read"] > 0
    assert slow.run().returncode == 0
    assert slow.output == SORTED


def test_the_second_signal_ends_it_at_once(work: Work) -> None:
    mark = f"601.{time.monotonic_ns()}"

    def is_running() -> bool:
        return mark.encode() in subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout

    work.write(steps=[{"uses": "retry-wrap", "with": {"command": ["sleep", mark]}}])
    process = work.start("--workers", "1")
    until(is_running)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # it waits for the part it is at
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert not is_running()


def test_stopped_while_it_waits_for_input(work: Work) -> None:
    work.write(source={"uses": "read"})
    process = work.start(stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(b"".join(LINES[:100]))
    process.stdin.flush()
    until(lambda: work.read() == 100)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    # The stream is sent again from its start; another one is noticed.
    done = work.run(stdin=b"".join(LINES[1:]))
    assert (done.returncode, b"does not begin as it did" in done.stderr) == (78, True)
    assert work.run(stdin=b"".join(LINES)).returncode == 0
    assert work.output == SORTED


def test_timeout(slow: Work) -> None:
    done = slow.run("--timeout", "1s", "--workers", "1")
    assert (done.returncode, b"the next run goes on from there" in done.stderr) == (75, True)
    assert slow.read() > 0
    assert slow.run().returncode == 0
    assert slow.output == SORTED


def test_several_workers(slow: Work) -> None:
    process = slow.start("--workers", "3")
    until(lambda: slow.read() > 0)
    process.kill()
    process.communicate()
    assert slow.run("--workers", "2").returncode == 0
    assert slow.output == SORTED


def test_one_run_at_a_time(slow: Work) -> None:
    process = slow.start()
    until(lambda: slow.read() > 0)
    done = slow.run()
    assert (done.returncode, b"another run" in done.stderr) == (75, True)
    assert slow.run("--on-overlap", "skip").returncode == 0
    assert run_etl("checkpoint", "reset", "state", cwd=slow.directory).returncode == 75
    assert slow.run("--on-overlap", "wait").returncode == 0
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": [SLOW, {"uses": "sort", "with": {"by": ["-n"]}}]}, b"steps.sort.with.by"),
        ({"steps": [SLOW]}, b"steps.sort.uses"),
        ({"sink": {"uses": "write", "with": {"path": "other.ndjson"}}}, b"sink.with.path"),
        ({"errors": {"quarantine": "q.ndjson"}}, None),
        ({"runtime": {"memory": "64KiB", "workers": 2}, "logging": {"level": "error"}}, None),
        ({"source": {"uses": "read", "with": {"paths": ["in/*.ndjson"]}, "on_error": {"then": "skip"}}}, None),
    ],
)
def test_a_changed_recipe(slow: Work, changes: dict[str, Any], named: bytes | None) -> None:
    slow.interrupted()
    slow.write(**changes)
    done = slow.run()
    assert done.returncode == (78 if named else 0), done.stderr
    assert named is None or named in done.stderr
    if named:
        assert slow.run("--fresh").returncode == 0
        assert not slow.left()


def test_a_schema_is_part_of_the_recipe(slow: Work) -> None:
    schema = slow.directory / "s.json"
    schema.write_text('{"type":"object"}')
    slow.write(steps=[{"uses": "validate", "with": {"schema": "s.json"}}, SLOW])
    slow.interrupted()
    schema.write_text('{"type":"object","required":["n"]}')
    done = slow.run()
    assert (done.returncode, b"steps.validate.with.schema (the file)" in done.stderr) == (78, True)


def test_a_changed_input(slow: Work) -> None:
    slow.interrupted()
    first = slow.directory / "in" / "00000.ndjson"
    content, status = first.read_bytes(), first.stat()
    for change, said in [
        (lambda: first.write_bytes(content.upper()), b"was replaced"),
        (lambda: first.write_bytes(content[:-9]), b"was replaced"),
        (lambda: first.write_bytes(content), b"was changed"),
        (first.unlink, b"cannot be opened"),
    ]:
        change()
        done = slow.run()
        assert (done.returncode, said in done.stderr) == (78, True), done.stderr
    first.write_bytes(content)
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    # What comes meanwhile is the next run's.
    (slow.directory / "in" / "00001.ndjson").write_bytes(LINES[0])
    with open(slow.directory / "in" / "02970.ndjson", "ab") as last:
        last.write(LINES[0])
    assert slow.run().returncode == 0
    assert len(slow.output.splitlines()) in (len(LINES), len(LINES) + 1)


def test_an_output_that_is_gone(slow: Work) -> None:
    slow.interrupted()
    for path in slow.state.glob("*.spill"):
        path.unlink()
    done = run_etl("checkpoint", "verify", "recipe.yaml", cwd=slow.directory)
    assert (done.returncode, b"No such file" in done.stdout) == (1, True)
    done = slow.run()
    assert (done.returncode, b"which the checkpoint needs, is gone" in done.stderr) == (78, True)
    assert slow.run("--fresh").returncode == 0
    assert slow.output == SORTED


def test_resume_only(slow: Work) -> None:
    done = slow.run("--resume-only")
    assert (done.returncode, b"no interrupted run" in done.stderr) == (66, True)
    slow.interrupted()
    assert slow.run("--resume-only").returncode == 0
    assert slow.output == SORTED


def test_options_that_need_checkpoints(work: Work) -> None:
    del work.recipe["checkpoint"]
    work.write()
    for option in ("--fresh", "--resume-only"):
        assert work.run(option).returncode in (2, 78)
    done = run_etl("checkpoint", "show", "recipe.yaml", cwd=work.directory)
    assert (done.returncode, b"no checkpoint directory" in done.stderr) == (2, True)
    work.write(source={"uses": "read", "incremental": True})
    assert work.run().returncode == 78


def test_a_damaged_checkpoint(slow: Work) -> None:
    slow.interrupted()
    newest = max(slow.state.glob("checkpoint-*.json"))
    newest.write_bytes(newest.read_bytes().replace(b'"in":', b'"in": ', 1))
    for command in (["run"], ["checkpoint", "show"]):
        done = run_etl(*command, "recipe.yaml", cwd=slow.directory)
        assert (done.returncode, b"is damaged" in done.stderr) == (78, True)
    assert run_etl("checkpoint", "verify", "recipe.yaml", cwd=slow.directory).returncode == 1
    assert run_etl("checkpoint", "rewind", "recipe.yaml", cwd=slow.directory).returncode == 0
    assert slow.run().returncode == 0
    assert slow.output == SORTED


def test_rewind_and_reset(slow: Work) -> None:
    slow.interrupted()
    epochs = [shown["epoch"] for shown in slow.shown()]
    assert len(epochs) <= 3
    assert run_etl("checkpoint", "rewind", "state", "--epoch", "99999", cwd=slow.directory).returncode == 2
    done = run_etl("checkpoint", "rewind", "state", "--epoch", str(epochs[0]), cwd=slow.directory)
    assert done.returncode == 0, done.stderr
    assert [shown["epoch"] for shown in slow.shown()] == epochs[:1]
    assert slow.left()
    assert run_etl("checkpoint", "reset", "recipe.yaml", cwd=slow.directory).returncode == 0
    assert not slow.left()
    assert os.listdir(slow.state) == ["lock"]
    assert run_etl("checkpoint", "show", "recipe.yaml", cwd=slow.directory).returncode == 66
    assert slow.run().returncode == 0
    assert slow.output == SORTED


def test_another_runs_rejects_stay_in_the_quarantine(slow: Work) -> None:
    """When this run's are cut back to the checkpoint."""
    aside = slow.directory / "q.ndjson"
    aside.write_bytes(b'{"etl_quarantine":1,"run":"one"}\n')
    rules = {"uses": "validate", "with": {"rules": ["id % 10 != 3"]}, "on_error": {"then": "quarantine"}}
    slow.write(steps=[rules, SLOW], errors={"quarantine": "q.ndjson"})
    slow.interrupted(signum=signal.SIGKILL)
    with open(aside, "ab") as file:
        file.write(b'{"etl_quarantine":1,"run":"two"}\n')
    assert slow.run().returncode == 0
    runs = [json.loads(line)["run"] for line in aside.read_bytes().splitlines()]
    assert (runs.count("one"), runs.count("two"), len(runs)) == (1, 1, 302)
    lines = [json.loads(line)["origin"]["line"] for line in aside.read_bytes().splitlines() if b"origin" in line]
    assert len(lines) == 300


def test_it_waits_for_nothing_and_keeps_nothing_of_a_good_run(work: Work) -> None:
    for _ in range(2):
        assert work.run().returncode == 0
        assert work.output == SORTED
        assert not work.left()
        assert [shown["status"] for shown in work.shown()] == ["finished"]


def test_limit_takes_no_checkpoint(slow: Work) -> None:
    slow.interrupted()
    before = slow.shown()
    assert slow.run("--limit", "10").returncode == 0
    assert len(slow.output.splitlines()) == 10
    assert slow.shown() == before
    assert slow.run().returncode == 0
    assert slow.output == SORTED


def test_only_its_own_files_are_removed(work: Work) -> None:
    """Also where the checkpoint directory is the recipe's."""
    work.write(checkpoint={"dir": ".", "every": "0s"})
    foreign = [
        work.directory / name for name in ("other.json", "checkpoint-1.json", "a.spill", "b-0123456789ab.spills")
    ]
    for path in foreign:
        path.write_text("mine")
    assert work.run("--fresh").returncode == 0
    assert run_etl("checkpoint", "reset", "recipe.yaml", cwd=work.directory).returncode == 0
    assert [path.read_text() for path in foreign] == ["mine"] * 4
    assert run_etl("checkpoint", "reset", "in", cwd=work.directory).returncode == 66
    assert os.listdir(work.directory / "in") == ["one.ndjson"]


def test_a_directory_is_one_recipes(slow: Work) -> None:
    slow.interrupted()
    (slow.directory / "other.yaml").write_text((slow.directory / "recipe.yaml").read_text())
    for arguments in ([], ["--fresh"]):
        done = run_etl("run", "other.yaml", *arguments, cwd=slow.directory)
        assert (done.returncode, b"the checkpoints of another recipe, recipe" in done.stderr) == (78, True)
    assert slow.run().returncode == 0
    done = run_etl("run", "other.yaml", cwd=slow.directory)
    assert done.returncode == 78
    assert slow.output == SORTED


def test_outputs_that_two_sinks_would_write(work: Work) -> None:
    template = {"uses": "write", "with": {"path_template": "out/{k}.ndjson"}}
    for other in (template, {"uses": "write", "with": {"path": "out/b.ndjson"}}):
        for checkpoint in ({"checkpoint": {"dir": "state"}}, {}):
            recipe = work.recipe | {"sinks": [{"id": "one", **template}, {"id": "two", **other}]}
            del recipe["sink"], recipe["checkpoint"]
            (work.directory / "recipe.yaml").write_text(json.dumps(recipe | checkpoint))
            done = work.run()
            assert (done.returncode, b"is also written by step" in done.stderr) == (78, True), done.stderr
            assert not list((work.directory / "out").glob("*.ndjson"))


def test_names_that_begin_alike(slow: Work) -> None:
    """Longer than a temporary file's name can be."""
    slow.write(
        steps=[{"uses": "map", "with": {"set": [f"k = '{'x' * 210}' + k"]}}, SLOW],
        sink={"uses": "write", "with": {"path_template": "out/{k}.ndjson"}},
    )
    slow.interrupted(signum=signal.SIGKILL)
    assert slow.run().returncode == 0
    for number, name in enumerate("abc"):
        lines = (slow.directory / "out" / f"{'x' * 210}{name}.ndjson").read_bytes().splitlines()
        assert [json.loads(line)["id"] for line in lines] == list(range(number, len(LINES), 3))


def test_a_stream_that_ends_before_it_did(work: Work) -> None:
    work.write(source={"uses": "read"})
    process = work.start(stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(b"".join(LINES[:100]))
    process.stdin.flush()
    until(lambda: work.read() == 100)
    process.kill()
    process.communicate(timeout=60)
    done = work.run(stdin=b"".join(LINES[:40]))
    assert (done.returncode, b"ends after 40 records, and 100 were read before" in done.stderr) == (78, True)
    assert work.run(stdin=b"".join(LINES)).returncode == 0
    assert work.output == SORTED


@pytest.mark.parametrize("mode", ["append", "create"])
def test_a_target_that_somebody_else_changed(slow: Work, mode: str) -> None:
    """It is said at once, and not when everything is done."""
    target = slow.directory / "out.ndjson"
    if mode == "append":
        target.write_bytes(b'{"old":1}\n')
    slow.write(sink={"uses": "write", "with": {"path": "out.ndjson", "mode": mode}})
    slow.interrupted()
    with open(target, "ab") as file:
        file.write(b'{"other":1}\n')
    done = slow.run()
    assert (done.returncode, b"by somebody else meanwhile" in done.stderr) == (78, True), done.stderr
    if mode == "create":
        target.unlink()
    assert slow.run("--fresh").returncode == 0
    assert not slow.left()


def test_a_rotated_quarantine(slow: Work) -> None:
    rules = {"uses": "validate", "with": {"rules": ["id % 10 != 3"]}, "on_error": {"then": "quarantine"}}
    slow.write(steps=[rules, SLOW], errors={"quarantine": "q.ndjson"})
    aside = slow.directory / "q.ndjson"
    slow.interrupted(signum=signal.SIGKILL)
    aside.with_suffix(".copy").write_bytes(aside.read_bytes())
    aside.with_suffix(".copy").rename(aside)
    assert slow.run().returncode == 0
    assert len(aside.read_bytes().splitlines()) == 300


def test_gone_on_with_from_another_directory(slow: Work, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a person's shell and cron do."""
    aside = {"uses": "validate", "with": {"rules": ["id % 10 != 3"]}, "on_error": {"then": "quarantine"}}
    slow.write(steps=[aside, SLOW], errors={"quarantine": "q.ndjson"})
    slow.interrupted()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    recipe = os.path.relpath(slow.directory / "recipe.yaml", elsewhere)
    done = run_etl("run", recipe, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in slow.output.splitlines()] == [
        n for n in range(len(LINES)) if n % 10 != 3
    ]
    assert not slow.left()


@pytest.mark.parametrize("absolute", [False, True])
def test_a_path_through_a_link_leads_where_it_led(slow: Work, absolute: bool) -> None:
    """What `..` is depends on the link, and is not for the program to shorten."""
    (slow.directory / "real" / "deep").mkdir(parents=True)
    (slow.directory / "link").symlink_to("real/deep")
    (slow.directory / "real" / "b.ndjson").write_bytes(b'{"id":1,"n":0}\n')
    (slow.directory / "b.ndjson").write_bytes(b'{"wrong":true,"n":0}\n')
    path = "link/../b.ndjson"
    paths = ["in/*.ndjson", str(slow.directory / path) if absolute else path]
    slow.write(source={"uses": "read", "with": {"paths": paths}}, steps=[SLOW],
               checkpoint={"dir": "link/../state", "every": "0s"})  # fmt: skip
    slow.state = slow.directory / "real" / "state"
    slow.interrupted(signum=signal.SIGKILL)
    assert slow.state.is_dir() and not (slow.directory / "state").exists()
    assert slow.run().returncode == 0
    assert slow.output == b"".join([*LINES, b'{"id":1,"n":0}\n'])


def test_a_copy_is_refused(slow: Work, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The unfinished output is the original's."""
    slow.interrupted()
    copy = tmp_path_factory.mktemp("copy") / "work"
    shutil.copytree(slow.directory, copy)
    done = run_etl("run", "recipe.yaml", cwd=copy)
    assert (done.returncode, b"were taken in" in done.stderr) == (78, True), done.stderr
    assert run_etl("run", "recipe.yaml", "--fresh", cwd=copy).returncode == 0
    assert slow.run().returncode == 0
    assert slow.output == SORTED == (copy / "out.ndjson").read_bytes()


def test_a_damaged_spill_file_is_no_bug(slow: Work) -> None:
    slow.write(steps=[{"uses": "dedupe-cache", "with": {"key": ["id"]}}, SLOW])
    slow.interrupted(signum=signal.SIGKILL)
    (spill,) = slow.state.glob("*.spill")
    spill.write_bytes(b"\xff" + spill.read_bytes()[1:])
    done = slow.run()
    assert (done.returncode, b"the spill file of step dedupe-cache is damaged" in done.stderr) == (78, True), (
        done.stderr
    )
    assert slow.run("--fresh").returncode == 0
    assert slow.output == b"".join(LINES)


# -- incremental ------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(work: Work) -> Work:
    """A recipe that appends what is new in in/*."""
    work.write(
        source={"uses": "read", "with": {"paths": ["in/*"]}, "incremental": True},
        steps=[],
        sink={"uses": "write", "with": {"path": "out.ndjson", "mode": "append"}},
    )
    (work.directory / "in" / "one.ndjson").write_bytes(b"".join(LINES[:10]))
    return work


def new(log: Work) -> list[bytes]:
    """What a run adds to the output."""
    before = log.output if (log.directory / "out.ndjson").exists() else b""
    done = log.run()
    assert done.returncode == 0, done.stderr
    assert log.output.startswith(before)
    return log.output[len(before) :].splitlines(keepends=True)


def test_new_files_and_new_lines(log: Work) -> None:
    one, two = log.directory / "in" / "one.ndjson", log.directory / "in" / "two.ndjson"
    assert new(log) == LINES[:10]
    assert new(log) == []
    with open(one, "ab") as file:
        file.write(b"".join(LINES[10:12]) + LINES[12][:5])  # somebody is at it
    assert new(log) == LINES[10:12]
    two.write_bytes(b"".join(LINES[20:25]))
    with open(one, "ab") as file:
        file.write(LINES[12][5:])
    assert new(log) == [LINES[12], *LINES[20:25]]
    assert new(log) == []


def test_rotated_files(log: Work) -> None:
    one, rotated = log.directory / "in" / "one.ndjson", log.directory / "in" / "one.ndjson.1"
    assert new(log) == LINES[:10]
    with open(one, "ab") as file:
        file.write(LINES[10])
    one.rename(rotated)
    one.write_bytes(LINES[11])
    done = log.run()
    assert b"input_replaced" in done.stderr
    assert log.output == b"".join([*LINES[:10], LINES[11], LINES[10]])
    assert new(log) == []


def test_a_file_that_was_cut_short(log: Work) -> None:
    one = log.directory / "in" / "one.ndjson"
    assert new(log) == LINES[:10]
    one.write_bytes(b"".join(LINES[5:8]))
    done = log.run()
    assert (done.returncode, b"input_replaced" in done.stderr) == (0, True)
    assert log.output == b"".join([*LINES[:10], *LINES[5:8]])


def test_compressed_and_csv(log: Work) -> None:
    table, packed = log.directory / "in" / "t.csv", log.directory / "in" / "p.ndjson.gz"
    table.write_text("id,k\n1,a\n2,b\n")
    packed.write_bytes(gzip.compress(b"".join(LINES[10:12])))
    assert new(log) == [*LINES[:10], *LINES[10:12], b'{"id":1,"k":"a"}\n', b'{"id":2,"k":"b"}\n']
    with open(table, "a") as file:
        file.write("3,c\n4")
    packed.write_bytes(packed.read_bytes() + gzip.compress(LINES[12]))
    assert new(log) == [LINES[12], b'{"id":3,"k":"c"}\n']
    assert new(log) == []


def test_an_incremental_run_that_is_killed(slow: Work) -> None:
    slow.write(
        source={"uses": "read", "with": {"paths": ["in/*"]}, "incremental": True},
        steps=[SLOW],
        sink={"uses": "write", "with": {"path": "out.ndjson", "mode": "append"}},
    )
    first = slow.directory / "in" / "00000.ndjson"
    slow.interrupted(signum=signal.SIGKILL)
    with open(first, "ab") as file:
        file.write(LINES[0])
    assert slow.run().returncode == 0
    assert slow.output == b"".join(LINES)
    assert slow.run().returncode == 0
    assert slow.output == b"".join([*LINES, LINES[0]])


def test_what_was_read_is_known_even_if_a_run_dies_at_its_beginning(log: Work) -> None:
    """And the recipe is another then."""
    assert new(log) == LINES[:10]
    (log.directory / "in" / "two.ndjson").write_bytes(LINES[10])
    command = [sys.executable, SPLIT_ETL, "run", "recipe.yaml"]
    killed = subprocess.run(command, cwd=log.directory, env=environment(ETL_TEST_KILL="1"), check=False)
    assert killed.returncode == -signal.SIGKILL
    log.write(steps=[{"uses": "filter", "with": {"expr": "id >= 0"}}])
    log.run()
    assert log.output == b"".join(LINES[:11])


def test_fresh_forgets_a_run_and_not_what_was_read(log: Work) -> None:
    assert new(log) == LINES[:10]
    (log.directory / "in" / "two.ndjson").write_bytes(LINES[10])
    assert log.run("--fresh").returncode == 0
    assert log.output == b"".join(LINES[:11])
    assert log.run("--limit", "1").returncode == 2
    assert run_etl("checkpoint", "reset", "recipe.yaml", cwd=log.directory).returncode == 0
    assert new(log) == LINES[:11]


def test_another_directory_knows_what_was_read(log: Work, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert new(log) == LINES[:10]
    (log.directory / "in" / "two.ndjson").write_bytes(LINES[10])
    done = run_etl("run", log.directory / "recipe.yaml", cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stderr
    assert log.output == b"".join(LINES[:11])
    assert new(log) == []


@pytest.mark.parametrize("here", ["above", "elsewhere"])
def test_read_from_other_directories_by_turns(log: Work, here: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file is the same by whichever name its recipe is given, and what some run leaves out is not forgotten."""
    elsewhere = log.directory.parent if here == "above" else tmp_path_factory.mktemp("elsewhere")
    names = os.path.relpath(log.directory, elsewhere), str(log.directory)
    two = log.directory / "in" / "two.ndjson"
    for number, name in enumerate([*names, *names]):
        with open(two, "ab") as file:
            file.write(LINES[10 + number])
        if number == 2:  # without the other file
            log.write(source={"uses": "read", "with": {"paths": ["in/two*"]}, "incremental": True})
        if number == 3:
            log.write(source={"uses": "read", "with": {"paths": ["in/*"]}, "incremental": True})
        done = run_etl("run", f"{name}/recipe.yaml", cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        assert b"input_" not in done.stderr
        assert log.output == b"".join(LINES[: 11 + number])
    log.write(source={"uses": "read", "with": {"paths": [str(log.directory / "in" / "*")]}, "incremental": True})
    assert new(log) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.json", b'[{"id":1},\n{"id":2}]'), ("d.json", b'[{"id":1},{"id":2}]'), ("d.yaml", b"id: 1\n---\nid: 2")],
)
def test_a_document_is_read_to_its_end(log: Work, name: str, content: bytes) -> None:
    (log.directory / "in" / "one.ndjson").unlink()
    (log.directory / "in" / name).write_bytes(content)
    assert new(log) == [b'{"id":1}\n', b'{"id":2}\n']
    assert new(log) == []


@pytest.mark.parametrize("names", [["z"], ["z", "z.1"], ["z.1", "z"], ["z", "z.1", "z.2"]])
def test_rotated_while_an_unfinished_run_had_not_come_to_it(log: Work, names: list[str]) -> None:
    """What is read of a file is what it has now, from its own beginning."""
    directory = log.directory / "in"
    for number, name in enumerate(sorted(names, reverse=True)):
        (directory / name).write_bytes(b"".join(LINES[20 + 2 * number : 22 + 2 * number]))
    old = len(new(log))
    with open(directory / "one.ndjson", "ab") as file:
        file.write(b"".join(LINES[100:200]))
    command = [sys.executable, SPLIT_ETL, "run", "recipe.yaml"]
    killed = subprocess.run(command, cwd=log.directory, env=environment(ETL_TEST_KILL="3"), check=False)
    assert killed.returncode == -signal.SIGKILL
    for name in sorted(names, reverse=True):
        (directory / name).rename(directory / (f"z.{int(name[2:]) + 1}" if name != "z" else "z.1"))
    (directory / "z").write_bytes(b"".join(LINES[40:45]))
    done = log.run()
    assert done.returncode == 0, done.stderr
    assert new(log) == []
    lines = log.output.splitlines(keepends=True)
    assert sorted(lines[old:]) == sorted([*LINES[100:200], *LINES[40:45]])


def test_small_files_that_begin_alike(log: Work) -> None:
    """What stands in for a file that is gone is another, unless so much of it is the same that it cannot be."""
    one, two = log.directory / "in" / "one.ndjson", log.directory / "in" / "two.ndjson"
    one.write_bytes(LINES[0])
    assert new(log) == LINES[:1]
    two.write_bytes(LINES[0] + LINES[1])
    one.unlink()
    assert new(log) == LINES[:2]
    two.rename(one)
    with open(one, "ab") as file:
        file.write(LINES[2])
    assert new(log) == LINES[2:3]


def test_dry_run_leaves_no_trace(slow: Work, etl: Run) -> None:
    done = etl("run", "recipe.yaml", "--dry-run", cwd=slow.directory)
    assert (done.returncode, b"checkpoint state every 0 s" in done.stdout) == (0, True)
    assert not slow.state.exists()
