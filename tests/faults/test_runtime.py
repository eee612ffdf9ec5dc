"""What cron needs: one run at a time, not for ever, and a first look."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import BIN, environment, run_etl

RECIPE = """
version: 1
source: {uses: read, with: {paths: [in.ndjson]}}
steps:
  - {id: some, uses: filter, with: {expr: "n % 2 == 0"}, on_error: {then: skip}}
  - {id: order, uses: sort, with: {by: -n}}
sink: {uses: write, with: {path: out.ndjson}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "in.ndjson").write_bytes(b"".join(b'{"n":%d}\n' % number for number in range(100)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def runtime(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "runtime").mkdir()
    return environment(XDG_RUNTIME_DIR=str(tmp_path / "runtime"))


def running(recipe: Path, env: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    """A run that waits for its input: a FIFO."""
    fifo = recipe.with_name("fifo")
    os.mkfifo(fifo)
    command = [BIN / "etl", "run", recipe, "--set", f"source.with.paths=[{fifo}]", *options]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
    locks = Path(env["XDG_RUNTIME_DIR"], "etl", "locks")
    while process.poll() is None and not (locks.exists() and os.listdir(locks)):
        time.sleep(0.01)
    time.sleep(0.05)
    return process


def test_fail_skip_and_wait_while_another_run_is_going_on(recipe: Path, runtime: dict[str, str]) -> None:
    first = running(recipe, runtime, "--on-overlap", "fail")
    try:
        failed = run_etl("run", recipe, "--on-overlap", "fail", env=runtime)
        assert failed.returncode == 75 and b"another run of" in failed.stderr and b"is going on" in failed.stderr
        skipped = run_etl("run", recipe, "--on-overlap", "skip", env=runtime)
        assert skipped.returncode == 0 and b"run_skipped" in skipped.stderr
        assert not recipe.with_name("out.ndjson").exists()
        waited = run_etl("run", recipe, "--on-overlap", "wait=100ms", env=runtime)
        assert waited.returncode == 75 and b"did not end within 0.1 s" in waited.stderr
        # An editor that replaces the file does not make it another recipe.
        recipe.with_name("new").write_text(RECIPE)
        recipe.with_name("new").rename(recipe)
        assert run_etl("run", recipe, "--on-overlap", "fail", env=runtime).returncode == 75
        # Without the option runs do not mind each other.
        assert run_etl("run", recipe, "--set", "sink.with.path=other", env=runtime).returncode == 0
        waiting = subprocess.Popen([BIN / "etl", "run", recipe, "--on-overlap", "wait"], env=runtime)
    finally:
        first.kill()
        first.communicate()
    assert waiting.wait(60) == 0
    assert len(recipe.with_name("out.ndjson").read_bytes().splitlines()) == 50


def test_a_lock_needs_a_directory_of_ones_own(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "open" / "etl").mkdir(parents=True)
    (tmp_path / "open" / "etl").chmod(0o777)
    done = run_etl("run", recipe, "--on-overlap", "fail", env=environment(XDG_RUNTIME_DIR=str(tmp_path / "open")))
    assert done.returncode == 73 and b"set XDG_RUNTIME_DIR" in done.stderr


@pytest.mark.parametrize("how", ["flag", "recipe"])
def test_a_run_that_takes_too_long(recipe: Path, runtime: dict[str, str], how: str) -> None:
    options = ("--timeout", "300ms") if how == "flag" else ("--set", "runtime={timeout: 300ms}")
    process = running(recipe, runtime, "--on-overlap", "fail", *options)
    # Somebody has the FIFO open and writes nothing.
    writer = os.open(recipe.with_name("fifo"), os.O_RDWR)
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        os.close(writer)
    assert process.returncode == 75
    assert b"the run took longer than 0.3 s" in stderr and b"Traceback" not in stderr
    assert {path.name for path in recipe.parent.iterdir()} == {"fifo", "in.ndjson", "recipe.yaml", "runtime"}


@pytest.mark.parametrize("limit", [1, 7, 99, 100, 101, 1000])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_limit(recipe: Path, limit: int, workers: str) -> None:
    done = run_etl("run", recipe, "--limit", str(limit), "--workers", workers, "--stats")
    assert done.returncode == 0
    read = min(limit, 100)
    expected = [b'{"n":%d}' % number for number in range(read) if number % 2 == 0][::-1]
    assert recipe.with_name("out.ndjson").read_bytes().splitlines() == expected
    source, step, *_ = json.loads(done.stderr)["steps"]
    assert source["in"] == source["out"] == read and step["discarded"].get("filtered", 0) == read - len(expected)


def test_limit_counts_good_records_and_forgets_what_comes_after(recipe: Path) -> None:
    recipe.with_name("in.ndjson").write_bytes(b'{"n":0}\n{bad\n\n{"n":2}\n{worse\n{"n":4}\n')
    done = run_etl("run", recipe, "--set", "source.on_error={then: skip}", "--limit", "2", "--stats")
    assert done.returncode == 0
    assert recipe.with_name("out.ndjson").read_bytes() == b'{"n":2}\n{"n":0}\n'
    source = json.loads(done.stderr.splitlines()[-1])["steps"][0]
    assert source["out"] == 2 and source["rejected"] == {"bad_json": 1}


def test_limit_of_other_formats(recipe: Path) -> None:
    recipe.with_name("in.csv").write_text("n,m\n0,0\n1\n2,2\n4,4\n6,6\n")
    options = ("--set", "source.with.paths=in.csv", "--set", "source.on_error={then: skip}", "--limit", "2")
    done = run_etl("run", recipe, *options)
    assert done.returncode == 0, done.stderr
    assert recipe.with_name("out.ndjson").read_bytes() == b'{"n":2,"m":2}\n{"n":0,"m":0}\n'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "0"), b"expected a number of records, 1 or more, not '0'"),
        (("--timeout", "soon"), b"expected a duration such as 30s or 500ms, not 'soon'"),
        (("--on-overlap", "never"), b"expected fail, skip, wait or wait=DURATION, not 'never'"),
        (("--on-overlap", "skip=2s"), b"expected fail, skip, wait or wait=DURATION, not 'skip=2s'"),
        (("--workers", "x"), b"expected auto or 1 to 256 workers, not 'x'"),
    ],
)
def test_values_that_cannot_be(recipe: Path, options: tuple[str, str], message: bytes) -> None:
    done = run_etl("run", recipe, *options)
    assert done.returncode == 2 and message in done.stderr


def test_a_signal_does_not_come_between_publishing_and_remembering(tmp_path: Path) -> None:
    """Of several files all are published, or none, whenever the signal comes. If all are, the run is done, and says so: who
    would run it again would have everything twice."""
    (tmp_path / "in").write_bytes(b"".join(b'{"k":%d}\n' % number for number in range(200)))
    command = ["env", "--default-signal=INT", "strace", "-f", "-o", tmp_path / "trace", "-e", "trace=rename",
               "-e", f"inject=rename:signal={signal.SIGTERM.name}:when=3",
               BIN / "etl", "write", "--path-template", "out/{k}.ndjson"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, timeout=60,
                          stdin=(tmp_path / "in").open("rb"))  # fmt: skip
    assert done.returncode == 0
    assert len(list((tmp_path / "out").glob("*.ndjson"))) == 200
