"""A run that is stopped and gone on with, as its users see it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, environment, run_etl
from resuming import LINES, SLOW, SPLIT_ETL, Work, until

SORTED = b"".join(sorted(LINES, key=lambda line: json.loads(line)["n"]))


@pytest.fixture
def work(tmp_path: Path) -> Work:
    work = Work(tmp_path)
    work.write()
    return work


@pytest.fixture
def slow(work: Work) -> Work:
    work.in_parts()
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


PIPE = {"uses": "write", "with": {"path": "fifo"}}


@pytest.mark.parametrize("end", ["signal", "timeout"])
@pytest.mark.parametrize(
    "changes",
    [
        {"sink": PIPE},
        {"sinks": [PIPE, {"id": "other", "uses": "write", "with": {"path": "out.ndjson"}}]},
        {
            "steps": [{"uses": "filter", "with": {"expr": "id > k"}, "on_error": {"then": "quarantine"}}],
            "errors": {"quarantine": "fifo"},
        },
        {"steps": [{"uses": "retry-wrap", "with": {"command": ["sh", "-c", "[ -e go ] || sleep 60; cat"]}}]},
    ],
)
def test_a_run_that_comes_to_no_barrier(work: Work, changes: dict[str, Any], end: str) -> None:
    """Nobody reads its pipe, or a command does not answer: it ends all the same, and goes on when they do."""
    lines = LINES * 10
    (work.directory / "in" / "one.ndjson").write_bytes(b"".join(lines))
    os.mkfifo(work.directory / "fifo")
    if "sinks" in changes:
        del work.recipe["sink"]
    work.write(**{"steps": [], **changes})
    stuck = os.open(work.directory / "fifo", os.O_RDWR)
    options = ["--timeout", "1s"] if end == "timeout" else []
    process = subprocess.Popen(
        [sys.executable, SPLIT_ETL, "run", "recipe.yaml", *options], cwd=work.directory, stderr=subprocess.PIPE,
        env=environment(ETL_TEST_WAIT="0.5", ETL_TEST_PART="500000"),
    )  # fmt: skip
    until(lambda: bool(work.shown()))
    time.sleep(0.5)
    if end == "signal":
        process.terminate()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == (75 if end == "timeout" else -signal.SIGTERM), stderr
    os.close(stuck)
    (work.directory / "go").touch()
    with subprocess.Popen(["timeout", "30", "sh", "-c", "cat fifo > read"], cwd=work.directory) as reader:
        done = work.run()
        assert done.returncode == 0, done.stderr
        if "retry-wrap" in str(changes):
            reader.terminate()
    read = (work.directory / "read").read_bytes()
    if "sink" in changes or "sinks" in changes:
        assert read == b"".join(lines)
    if "errors" in changes:
        assert read.count(b'"etl_quarantine"') == len(lines)
    elif "sink" not in changes:
        assert work.output == b"".join(lines)


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


def test_dry_run_leaves_no_trace(slow: Work, etl: Run) -> None:
    done = etl("run", "recipe.yaml", "--dry-run", cwd=slow.directory)
    assert (done.returncode, b"checkpoint state every 0 s" in done.stdout) == (0, True)
    assert not slow.state.exists()
