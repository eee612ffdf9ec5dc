"""Worker processes that die, and inputs that change under them: the result is the same, or there is none."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import BIN, environment, run_etl

RECORDS = [b'{"id":%d,"text":"%s"}' % (number, b"x" * (number % 50)) for number in range(3000)]

# `etl` in parts of 1000 bytes, whose stages kill the process that prepares a record with "poison" in it, as a bug in a C
# library would; a stage changes records before.
KILLER = """
import os, signal, sys
from etlcli import __main__ as program
from etlcli.engine import pipeline
from etlcli.io import extents
from etlcli.formats import ndjson
from etlcli.stages.filter import Filter
from etlcli.connectors import read
extents.PART = ndjson.PART = pipeline.PART = 1000
coordinator, where = os.getpid(), os.environ["KILL_IN"]
def deadly(prepare, bytes_of):
    def prepared(self, batch):
        if os.getpid() != coordinator and b"poison" in bytes_of(self, batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(self, batch)
    return prepared
if "ETL_TEST_REMEMBERED" in os.environ:
    from etlcli.stages import dedupe_cache
    dedupe_cache._REMEMBERED = int(os.environ["ETL_TEST_REMEMBERED"])
if where == "filter":
    Filter.prepare = deadly(Filter.prepare, lambda self, batch: batch.chunk)
parse = read.parse
def deadly_parse(chunk, *rest):
    return deadly(lambda self, chunk: parse(chunk, *rest), lambda self, chunk: chunk)(None, chunk)
if where == "read":
    read.parse = deadly_parse
if where.startswith("once "):
    import time
    prepare = Filter.prepare
    def prepared(self, batch):
        if os.getpid() != coordinator and b'"id":0}' in batch.chunk and os.path.exists(where[5:]):
            os.unlink(where[5:])
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(self, batch)
    Filter.prepare = prepared
if where.startswith("stage "):
    from etlcli.registry import find
    stage = find("stage", where.split()[1])
    stage.prepare = deadly(stage.prepare, lambda self, batch: batch.chunk)
if where == "at the end":
    from etlcli.engine.head import Head
    growing, alone = Head.growing, []
    def growing_and_die(self, part):
        alone.append(part)
        yield from growing(self, part)
        os.kill(os.getpid(), signal.SIGKILL)
    Head.growing = growing_and_die
    read.parse = lambda *args: (parse if alone else deadly_parse)(*args)
if where.startswith("forks"):
    fork, room = os.fork, iter(range(int(where[5:])))
    def forked():
        if next(room, None) is None:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()
    os.fork = forked
    pipeline._WORTH = 1
if where == "in the fork":
    os.register_at_fork(after_in_child=lambda: signal.raise_signal(signal.SIGINT))
if where == "after the fork":
    fork = os.fork
    def forked():
        if not (pid := fork()):
            signal.raise_signal(signal.SIGINT)
        return pid
    os.fork = forked
if where == "always":
    from etlcli.engine import workers
    workers._work = lambda *rest: os._exit(3)
sys.argv[0] = "etl"
program.main()
"""


def killing(where: str, *args: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    env = environment(KILL_IN=where, **env)
    return subprocess.run([sys.executable, "-c", KILLER, *args], input=stdin, capture_output=True, env=env, timeout=60)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"\n".join([*RECORDS, b""]))
    return path


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    lines = list(RECORDS)
    lines[1700] = b'{"id":1700,"text":"poison"}'
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"\n".join([*lines, b""]))
    return path


@pytest.mark.parametrize("where", ["filter", "read"])
@pytest.mark.parametrize("stdin", [False, True])
def test_a_record_that_kills_workers_is_rejected_and_no_other(poisoned: Path, where: str, stdin: bool) -> None:
    quarantine, output = poisoned.with_name("quarantine"), poisoned.with_name("out")
    inputs = () if stdin else (str(poisoned),)
    done = killing(where, "filter", "id >= 0", *inputs, "-o", str(output), "--workers", "2", "--stats",
                   "--quarantine", str(quarantine), stdin=poisoned.read_bytes() if stdin else b"")  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = [line for number, line in enumerate(RECORDS) if number != 1700]
    assert output.read_bytes().splitlines() == expected
    (reject,) = map(json.loads, quarantine.read_text().splitlines())
    assert reject["code"] == "worker_killed" and reject["raw"] == '{"id":1700,"text":"poison"}'
    assert reject["origin"]["line"] == 1701
    assert reject["origin"]["offset"] == poisoned.read_bytes().index(b'{"id":1700,')
    assert reject["step"] == where
    assert re.search(rb"event=worker_died run=\w+ how=SIGKILL", done.stderr)


@pytest.mark.parametrize("poison", [False, True])
def test_what_comes_of_several_blocks_is_sent_as_one(tmp_path: Path, poison: bool) -> None:
    """Blocks of which lines or records are rejected, among them, and some of which nothing is left."""
    lines = [b'{"id":%d,"text":"%d"}' % (number, number % 7) for number in range(6000)]
    lines[1000:1400] = [b'{"id":-1,"text":"none"}'] * 400
    lines[2000], lines[2300], lines[4000], lines[5000] = b"{", b'{"id":true,"text":"0"}', b"", b'{"id":[],"text":"new"}'
    text = b'{"id":3000,"text":"poison"}\n'
    path = tmp_path / "in.ndjson"
    steps = [
        {"uses": "filter", "with": {"expr": "text != 'none'"}, "on_error": {"then": "quarantine"}},
        {"uses": "group", "with": {"by": ["text"], "agg": ["n=count()", "sum=sum(id)", "first=first(id)", "p9=p90(id)"]},
         "on_error": {"then": "quarantine"}},
    ]  # fmt: skip
    recipe = {
        "version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}, "on_error": {"then": "quarantine"}},
        "steps": steps, "sink": {"uses": "write", "with": {"path": "out"}}, "errors": {"quarantine": "quarantine"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))

    def outcome(workers: str) -> list[object]:
        (tmp_path / "quarantine").unlink(missing_ok=True)
        # Who is to die of it has it.
        path.write_bytes(
            b"\n".join([*lines[:3000], b""]) + text * (poison and workers > "1") + b"\n".join(lines[3000:])
        )
        done = killing("filter", "run", str(tmp_path / "recipe.yaml"), "--workers", workers, "--stats")
        assert done.returncode == 0, done.stderr
        rejects = [json.loads(line) for line in (tmp_path / "quarantine").read_text().splitlines()]
        own = [reject for reject in rejects if reject["code"] != "worker_killed"]
        assert len(rejects) - len(own) == (poison and workers > "1")
        counts = json.loads(done.stderr.splitlines()[-1])["steps"]
        told = [(reject["step"], reject["code"], reject["raw"], None if poison else reject["origin"]) for reject in own]
        return [(tmp_path / "out").read_bytes(), told, None if poison else counts]

    expected = outcome("1")
    assert b'"text":"6"' in expected[0] and len(expected[1]) == 3  # type: ignore[operator,arg-type]
    for workers in ("2", "3"):
        assert outcome(workers) == expected


@pytest.mark.parametrize("remembered", [1 << 16, 100])
def test_what_a_worker_has_sent_is_forgotten_with_it(tmp_path: Path, remembered: int) -> None:
    """Keys come again and again, new ones among them; the first of one is in the part of the record that kills, or behind
    it."""
    rows = [(number // 300 * 7 + number % 5, number) for number in range(12_000)]
    lines = [b'{"key":"%d","id":%d}' % row for row in rows]
    poison = b'{"key":"poison","id":-1}'
    (tmp_path / "in.ndjson").write_bytes(b"\n".join([*lines[:6010], poison, *lines[6010:], b""]))
    recipe = {
        "version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
        "steps": [{"uses": "filter", "with": {"expr": "id < 12000"}, "on_error": {"then": "skip"}},
                  {"uses": "dedupe-cache", "with": {"key": ["key"]}}],
        "sink": {"uses": "write", "with": {"path": "out"}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    for workers in ("2", "3"):
        done = killing("filter", "run", str(tmp_path / "recipe.yaml"), "--workers", workers, "--stats",
                       ETL_TEST_REMEMBERED=str(remembered))  # fmt: skip
        assert done.returncode == 0, done.stderr
        firsts: dict[int, bytes] = {}
        for (key, _), line in zip(rows, lines, strict=True):
            firsts.setdefault(key, line)
        assert (tmp_path / "out").read_bytes().splitlines() == list(firsts.values())
        counts = {step["step"]: step for step in json.loads(done.stderr.splitlines()[-1])["steps"]}
        assert counts["filter"]["rejected"] == {"worker_killed": 1}
        assert counts["dedupe-cache"]["discarded"] == {"duplicate": len(lines) - len(firsts)}


@pytest.mark.parametrize("workers", ["2", "3"])
def test_a_part_that_is_done_late_comes_first(tmp_path: Path, workers: str) -> None:
    """A worker dies of the first part when others have sent many later ones."""
    lines = [
        b'{"key":"%d","id":%d}' % (number // 50 if number % 2 else number // 200, number) for number in range(12_000)
    ]
    (tmp_path / "in.ndjson").write_bytes(b"\n".join([*lines, b""]))
    (tmp_path / "once").touch()
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
              "steps": [{"uses": "filter", "with": {"expr": "id >= 0"}},
                        {"uses": "dedupe-cache", "with": {"key": ["key"]}}],
              "sink": {"uses": "write", "with": {"path": "out"}}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = killing(f"once {tmp_path / 'once'}", "run", str(tmp_path / "recipe.yaml"), "--workers", workers)
    assert done.returncode == 0 and done.stderr.count(b"event=worker_died") == 1, done.stderr
    firsts: dict[bytes, bytes] = {}
    for line in lines:
        firsts.setdefault(line.split(b",")[0], line)
    assert (tmp_path / "out").read_bytes().splitlines() == list(firsts.values())


@pytest.mark.parametrize(
    "command",
    [
        ["sort", "--by=-id"],
        ["sort", "--by=text", "--top", "5"],
        ["group", "--by", "text", "--agg", "n=count()"],
        ["group", "--agg", "n=count()", "--agg", "total=sum(id)"],
        ["group", "--by", "text", "--emit", "list"],
        ["group", "--by", "id", "--assume-sorted", "--agg", "n=count()"],
        ["dedupe-cache", "--key", "text"],
        ["dedupe-cache", "--key", "text", "--keep", "last"],
        ["dedupe-cache", "--key", "text", "--max-entries", "7"],
        ["dedupe-cache"],
        ["batch", "--size", "7"],
        ["map", "twice = id * 2"],
        ["validate", "--rule", "id >= 0"],
    ],
    ids=" ".join,
)
def test_a_record_that_kills_workers_in_any_stage(poisoned: Path, command: list[str]) -> None:
    """The others come to what they come to without it, and with what becomes of it at the very end nothing is wrong."""
    quarantine, output = poisoned.with_name("quarantine"), poisoned.with_name("out")
    options = ["-o", str(output), "--workers", "2", "--quarantine", str(quarantine)]
    content = poisoned.read_bytes()
    done = killing(f"stage {command[0]}", *command, str(poisoned), *options)
    assert done.returncode == 0, done.stderr
    (reject,) = map(json.loads, quarantine.read_text().splitlines())
    assert (reject["code"], reject["step"], reject["origin"]["line"]) == ("worker_killed", command[0], 1701)
    poisoned.write_bytes(content.replace(b'{"id":1700,"text":"poison"}\n', b""))
    assert output.read_bytes() == run_etl(*command, poisoned, "--workers", "1").stdout

    poisoned.write_bytes(content)
    done = killing("at the end", *command, str(poisoned), *options)
    assert done.returncode == 0, done.stderr
    assert b"event=worker_died" in done.stderr
    assert output.read_bytes() == run_etl(*command, poisoned, "--workers", "1").stdout
    assert len(quarantine.read_text().splitlines()) == 1


@pytest.mark.parametrize("where", ["stage map", "stage filter", "at the end"])
def test_a_record_that_kills_between_other_steps(poisoned: Path, where: str) -> None:
    steps = [{"uses": "filter", "with": {"expr": "id >= 0"}}, {"uses": "map", "with": {"set": ["twice = id * 2"]}},
             {"id": "other", "uses": "filter", "with": {"expr": "id != 1700"}}, {"uses": "group", "with": {"agg": ["n=count()"]}}]  # fmt: skip
    for step in steps:
        step["on_error"] = {"then": "skip"}
    recipe = {"version": 1, "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}}, "steps": steps,
              "sink": {"uses": "write", "with": {"path": "out"}}}  # fmt: skip
    poisoned.with_name("recipe.yaml").write_text(json.dumps(recipe))
    done = killing(where, "run", str(poisoned.with_name("recipe.yaml")), "--workers", "2", "--stats")
    assert done.returncode == 0, done.stderr
    assert poisoned.with_name("out").read_bytes() == b'{"n":2999}\n'
    counts = {step["step"]: step["rejected"] for step in json.loads(done.stderr.splitlines()[-1])["steps"]}
    rejected = [step for step, codes in counts.items() if codes]
    assert rejected == ([] if where == "at the end" else [where.split()[1]])


def test_by_default_it_fails_the_run(poisoned: Path) -> None:
    output = poisoned.with_name("out")
    done = killing("filter", "filter", "id >= 0", str(poisoned), "-o", str(output), "--workers", "3")
    assert done.returncode == 1
    assert b"worker_killed" in done.stderr and b"in.ndjson:1701 (step filter)" in done.stderr
    assert not output.exists()


def test_workers_that_cannot_live_end_the_run(records: Path) -> None:
    done = killing("always", "filter", "id >= 0", str(records), "--workers", "2")
    assert done.returncode == 70
    assert b"worker processes end before they have begun (exit 3)" in done.stderr and b"Traceback" not in done.stderr


def test_a_system_without_room_for_processes(records: Path) -> None:
    arguments = ["filter", "id >= 0", str(records), "--workers"]
    none = killing("forks0", *arguments, "2")
    assert none.returncode == 75 and b"cannot start a worker process: Resource temporarily unavailable" in none.stderr
    one = killing("forks1", *arguments, "3")
    assert one.returncode == 0 and b"event=worker_missing" in one.stderr and one.stdout == records.read_bytes()
    # Nobody has asked for workers.
    auto = killing("forks0", *arguments, "auto")
    assert auto.returncode == 0 and auto.stdout == records.read_bytes()
    assert (b"event=no_workers" in auto.stderr) == (len(os.sched_getaffinity(0)) > 1)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


@pytest.fixture
def running(flights: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run with two workers that waits for somebody to read its output, but for the first byte."""
    big = tmp_path / "big.ndjson"
    big.write_bytes(flights.read_bytes() * 10)
    command = [BIN / "etl", "filter", "distance > 0", big, "--workers", "2", "--stats"]
    process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    try:
        assert process.stdout and process.stdout.read(1) == b"{"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_killed_workers_cost_nothing_but_time(running: subprocess.Popen[bytes], flights: Path) -> None:
    assert running.stdout
    blocks = [b"{"]
    killed: set[int] = set()
    while len(killed) < 6 and (block := running.stdout.read(1 << 20)):
        blocks.append(block)
        for worker in set(children(running)) - killed:  # a dead one is listed until the run has noticed
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
                break
    rest, stderr = running.communicate()
    assert running.returncode == 0, stderr
    assert b"".join([*blocks, rest]) == run_etl("filter", "distance > 0", flights).stdout * 10
    assert len(re.findall(rb"event=worker_died run=\w+ how=SIGKILL", stderr)) > 3


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_the_run(running: subprocess.Popen[bytes], signum: int) -> None:
    workers = children(running)
    running.send_signal(signum)
    _, stderr = running.communicate()
    assert running.returncode == -signum and b"Traceback" not in stderr
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_parent_that_ignores_its_children(poisoned: Path) -> None:
    program = f"import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv({str(BIN / 'etl')!r}, {['etl', 'filter', 'id >= 0', str(poisoned), '--workers', '2']!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment(), timeout=60)
    assert done.returncode == 0 and done.stdout == poisoned.read_bytes() and not done.stderr


def test_stdin_is_read_to_its_end(records: Path) -> None:
    line = f"(etl filter 'id < 2' --workers 2; wc -c) < {records}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment(), timeout=60)
    assert done.stdout.split(b"\n")[2:] == [b"0", b""]


def test_interrupted_at_the_terminal(records: Path) -> None:
    """Ctrl-C reaches all processes of the group at once."""
    command = [BIN / "etl", "filter", "id >= 0", "--workers", "2"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        start_new_session=True,
    )  # fmt: skip
    while len(children(process)) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGINT and not stderr


@pytest.mark.parametrize("moment", ["in the fork", "after the fork"])
def test_a_signal_while_a_process_begins(records: Path, moment: str) -> None:
    """It is the coordinator's, which has got it, too: no child answers it by ending the run in its stead."""
    recipe = records.with_name("recipe.yaml")
    recipe.write_text(
        "version: 1\nsource: {uses: read, with: {paths: [in.ndjson]}}\nsteps: [{uses: filter, with: {expr: id >= 0}}]\n"
        "sink: {uses: write, with: {path: out}}\nruntime: {workers: 2}\nmetrics: {textfile: metrics.prom}\n"
    )
    done = killing(moment, "run", str(recipe))
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and b"metrics_failed" not in done.stderr
    assert records.with_name("out").read_bytes() == records.read_bytes()
    assert b"etl_run_exit_code" in records.with_name("metrics.prom").read_bytes()


def test_records_do_not_wait_for_more_input() -> None:
    command = [BIN / "etl", "filter", "n > 0", "--workers", "2"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
    assert process.stdin and process.stdout
    for number in range(1, 6):
        process.stdin.write(b'{"n":%d}\n' % number)
        process.stdin.flush()
        assert process.stdout.readline() == b'{"n":%d}\n' % number
    process.stdin.close()
    assert process.wait() == 0


@pytest.mark.parametrize("head", [[], [{"uses": "filter", "with": {"expr": "id % 5 != 0"}}],
                                  [{"uses": "map", "with": {"set": ["more = id * 1000"]}}]])  # fmt: skip
def test_what_is_refused_late_is_found_where_it_was_read(tmp_path: Path, head: list[object]) -> None:
    """Whether a worker passed on all lines as they were, or only some, or others."""
    lines = [b'{"id":%d,"text":"%s"}' % (number, b"x" * (number % 70)) for number in range(3000)]
    contents = {
        "1-plain": b"\n".join([*lines[:1000], b""]),
        "2-windows": b"\r\n".join([*lines[1000:1500], b""]),
        "3-blank": b"\n\n".join(lines[1500:2000]),
        "4-bad": b"\n".join([*lines[2000:2500], b"nothing", *lines[2500:]]),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.ndjson").write_bytes(content)
    late = {"uses": "retry-wrap", "with": {"command": ["sh", "-c", "grep -v :.*77 || true"], "isolate": True}}
    recipe = {
        "version": 1,
        "source": {"uses": "read", "with": {"paths": ["*.ndjson"]}, "on_error": {"then": "skip"}},
        "steps": [
            *head,
            {"uses": "dedupe-cache", "with": {"key": ["id"]}},
            late | {"on_error": {"then": "quarantine"}},
        ],
        "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
        "errors": {"max": "100%", "quarantine": "q.ndjson"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    found = []
    for workers in ("1", "2", "3"):
        done = run_etl("run", "recipe.yaml", "--workers", workers, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rejects = list(map(json.loads, (tmp_path / "q.ndjson").read_text().splitlines()))
        found.append([(reject["raw"], reject["origin"]) for reject in rejects])
        (tmp_path / "q.ndjson").unlink()
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 20
    for raw, origin in found[0]:
        content = contents[Path(origin["path"]).stem]
        line = content[origin["offset"] :].splitlines()[0]
        assert json.loads(line)["id"] == json.loads(raw)["id"]
        assert content.count(b"\n", 0, origin["offset"]) + 1 == origin["line"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_input_stays_open_behind_its_end(tmp_path: Path, workers: str) -> None:
    """Not even where others, which are empty, come between."""
    for number in range(300):
        (tmp_path / f"{number:03}.ndjson").write_bytes(b'{"n":%d}\n' % number if number % 3 else b"")
    command = [BIN / "etl", "filter", "n >= 0", "*.ndjson", "--workers", workers]
    few = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh"]
    done = subprocess.run([*few, *command], cwd=tmp_path, capture_output=True, env=environment())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(b'{"n":%d}\n' % number for number in range(300) if number % 3)


def test_a_file_that_is_cut_short_while_it_is_read(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    os.truncate(tmp_path / "big.ndjson", 5 << 20)
    _, stderr = running.communicate()
    assert running.returncode == 74
    assert b"big.ndjson was cut short while it was being read" in stderr


@pytest.mark.parametrize("how", ["renamed", "replaced", "deleted"])
def test_a_file_whose_name_goes_while_it_is_read(
    running: subprocess.Popen[bytes], tmp_path: Path, flights: Path, how: str
) -> None:
    """Also workers that have not opened it yet read the one that was opened."""
    big = tmp_path / "big.ndjson"
    if how == "deleted":
        big.unlink()
    else:
        big.rename(tmp_path / "big.ndjson.1")
    if how == "replaced":
        big.write_bytes(b"{}\n")
    for pid in children(running):
        os.kill(pid, signal.SIGKILL)
    stdout, stderr = running.communicate()
    assert running.returncode == 0, stderr
    assert b"{" + stdout == flights.read_bytes() * 10


def test_columns_decoded_in_workers_serve_the_steps_behind(tmp_path: Path) -> None:
    """Missing fields, nulls, numbers that no double holds, and nested ones, in records of which some are dropped between."""
    values = ["1", "1.0", "12345678901234567890123", "0.1", "0.10000000000000000001", "1e400", "null", '"text"', '{"b":2}',
              "[1,2]", "true", "-0"]  # fmt: skip
    lines = [f'{{"id":{number % 700},"v":{values[number % len(values)]}}}' for number in range(3000)]
    lines += [f'{{"id":{number},"w":{{"x":{number % 13}.5}}}}' for number in range(500, 1500)]
    (tmp_path / "in.ndjson").write_text("\n".join([*lines, ""]))
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nsource: {uses: read, with: {paths: [in.ndjson]}}\nsteps:\n"
        '  - {uses: validate, with: {rules: ["id != 13"]}, on_error: {then: skip}}\n'
        "  - {id: some, uses: dedupe-cache, with: {key: [id]}}\n"
        '  - {id: most, uses: filter, with: {expr: "id % 5 != 0"}}\n'
        "  - {uses: sort, with: {by: [v, -w.x]}}\n"
        "sink: {uses: write, with: {path: out}}\n"
    )
    found = set()
    for workers in "123":
        program = [sys.executable, "-c", KILLER, "run", str(tmp_path / "recipe.yaml"), "--workers", workers]
        done = subprocess.run(program, env=environment(KILL_IN=""), capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        found.add((tmp_path / "out").read_bytes())
    assert len(found) == 1 and len(found.pop().splitlines()) == 1500 * 4 // 5 - 1


def test_errors_come_in_the_order_of_the_records(tmp_path: Path) -> None:
    path = tmp_path / "in.ndjson"
    lines = [*RECORDS, b"{bad", *RECORDS * 100, b"{worse", *RECORDS]
    path.write_bytes(b"\n".join(lines))
    for workers in ("1", "2", "3"):
        done = run_etl("filter", "id >= 0", path, "-o", tmp_path / "out", "--workers", workers)
        assert done.returncode == 1 and b"in.ndjson:3001 (step read): bad_json" in done.stderr


def test_auto_takes_workers_for_large_files_only(tmp_path: Path, records: Path) -> None:
    small = run_etl("filter", "id >= 0", records, "--log-level", "debug", "-o", tmp_path / "out")
    assert b"event=workers" not in small.stderr
    big = tmp_path / "big.ndjson"
    big.write_bytes(records.read_bytes() * 400)
    done = run_etl("filter", "id >= 0", big, "--log-level", "debug", "-o", tmp_path / "out")
    assert done.returncode == 0
    assert (b"event=workers" in done.stderr) == (len(os.sched_getaffinity(0)) > 1)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "257", ""])
def test_other_numbers_are_refused(text: str) -> None:
    done = run_etl("filter", "id >= 0", "--workers", text)
    assert done.returncode == 2 and b"expected auto or 1 to 256 workers" in done.stderr


def test_a_slow_reader_stops_the_reading(flights: Path, tmp_path: Path) -> None:
    """Of 60 MB, no more than the queue is read while nobody takes the output."""
    (tmp_path / "big.ndjson").write_bytes(flights.read_bytes() * 20)
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nsource: {uses: read, with: {paths: [big.ndjson]}}\n"
        'steps: [{uses: filter, with: {expr: "distance > 0"}}]\nsink: {uses: write, with: {path: "-"}}\n'
        "runtime: {workers: 2, queue: 8MiB}\n"
    )
    command = [BIN / "etl", "run", tmp_path / "recipe.yaml"]
    process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, env=environment())
    try:
        assert process.stdout and process.stdout.read(1) == b"{"
        before, now = -1, read_by_workers(process)
        while now > before:
            time.sleep(0.5)
            before, now = now, read_by_workers(process)
        assert 0 < now < 9 << 20
    finally:
        process.kill()
        process.communicate()


def read_by_workers(process: subprocess.Popen[bytes]) -> int:
    found = [Path(f"/proc/{pid}/io").read_text() for pid in children(process)]
    return sum(int(line.split()[1]) for text in found for line in text.splitlines() if line.startswith("rchar:"))
