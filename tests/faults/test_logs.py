"""Logs of real runs: every key of `logging`, readers that went away, full disks, hostile records, secrets."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, environment, run_etl

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "nightly",
    "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}, "on_error": {"then": "skip"}},
    "steps": [
        {"id": "check", "uses": "filter", "with": {"expr": "n >= 0"}, "on_error": {"then": "skip"}},
        {"id": "order", "uses": "sort", "with": {"by": "n"}, "on_error": {"then": "skip"}},
    ],
    "sink": {"id": "out", "uses": "write", "with": {"path": "out.ndjson"}},
}
GOOD = b'{"n":1}\n{"n":2}\n'
BAD = b'{"n":"x"}\n'


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "in.ndjson").write_bytes(GOOD + BAD * 30 + b"{bad\n")
    return tmp_path


def recipe(work: Path, logging: dict[str, Any] | None = None, **changes: Any) -> Path:
    path = work / "recipe.yaml"
    path.write_text(json.dumps({**RECIPE, **changes, **({} if logging is None else {"logging": logging})}))
    return path


def entries(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def of(entries: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["event"] == event]


# -- the keys of logging ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_level(level: str, work: Path) -> None:
    done = run_etl("run", recipe(work, {"level": level, "format": "json"}))
    assert done.returncode == 0
    levels = {entry["level"] for entry in entries(done.stderr)}
    assert (
        levels
        == {"debug": {"info", "warning"}, "info": {"info", "warning"}, "warning": {"warning"}, "error": set()}[level]
    )
    again = run_etl("run", recipe(work, {"level": level, "format": "json"}), "--log-level", "error")
    assert again.stderr == b""


def test_every_line_tells_run_and_recipe(work: Path) -> None:
    done = run_etl("run", recipe(work, {"level": "debug", "format": "json"}), "--stats")
    *lines, stats = entries(done.stderr)
    assert {(line["run"], line["recipe"]) for line in lines} == {(stats["run"], "nightly")}
    assert all(list(line)[:5] == ["ts", "level", "event", "run", "recipe"] for line in lines)
    skipped = [line for line in of(lines, "record_skipped") if line["step"] == "read"]
    assert list(skipped[0])[5:] == ["step", "code", "path", "line", "offset", "message"]
    assert (skipped[0]["code"], skipped[0]["path"], skipped[0]["line"]) == ("bad_json", str(work / "in.ndjson"), 33)
    # A subcommand is no recipe.
    alone = run_etl(
        "sort", "--by", "n", "--log-level", "info", "--log-format", "json", work / "in.ndjson", "--on-error", "skip"
    )
    assert alone.returncode == 0 and all(line["run"] and "recipe" not in line for line in entries(alone.stderr))


@pytest.mark.parametrize("format", ["json", "logfmt", "console", "auto"])
def test_format(format: str, work: Path) -> None:
    starts = {"json": b'{"ts":', "logfmt": b"ts=", "console": b"20", "auto": b"ts="}
    done = run_etl("run", recipe(work, {"format": format}))
    assert all(line.startswith(starts[format]) for line in done.stderr.splitlines()) and done.stderr
    other = run_etl("run", recipe(work, {"format": format}), "--log-format", "json")
    assert len(entries(other.stderr)) == len(done.stderr.splitlines())


def test_file_is_relative_to_the_recipe_and_appended_to(work: Path) -> None:
    path = recipe(work, {"level": "info", "format": "json", "file": "run.log"})
    for count in (1, 2):
        done = run_etl("run", path, cwd=Path("/"))
        assert (done.returncode, done.stderr) == (0, b"")
        assert len(of(entries((work / "run.log").read_bytes()), "run_finished")) == count


def test_a_failure_is_in_the_file_too(work: Path) -> None:
    done = run_etl(
        "run", recipe(work, {"format": "json", "file": "run.log"}), "--set", "steps.check.on_error.then=fail"
    )
    assert done.returncode == 1 and b"nothing was published" in done.stderr
    (failed,) = of(entries((work / "run.log").read_bytes()), "run_failed")
    assert failed["level"] == "error" and "cannot compare" in failed["reason"]
    assert failed["where"] == f"{work}/in.ndjson:3 (step check)"


def test_a_run_that_is_stopped_says_so_in_the_file(work: Path) -> None:
    os.mkfifo(work / "fifo")
    path = recipe(work, {"format": "json", "file": "run.log"}, source={"uses": "read", "with": {"paths": ["fifo"]}})
    assert run_etl("run", path, "--timeout", "2s").returncode == 75
    running = subprocess.Popen([BIN / "etl", "run", path], env=environment())
    with open(work / "fifo", "wb", buffering=0) as source:  # it has begun to read
        source.write(GOOD)
        running.terminate()
        assert running.wait(60) == -signal.SIGTERM
    failed = of(entries((work / "run.log").read_bytes()), "run_failed")
    assert [entry["reason"] for entry in failed] == ["it took too long", "stopped by signal 15"]


def test_per_step(work: Path) -> None:
    levels = {"check": "error", "read": "warning", "out": "info", "order": "debug"}
    done = run_etl("run", recipe(work, {"level": "error", "format": "json", "per_step": levels}))
    steps = [(entry["event"], entry["step"]) for entry in entries(done.stderr)]
    assert [pair for pair in steps if not pair[0].startswith("step_")] == [
        ("record_skipped", "read"), ("published", "out"),
    ]  # fmt: skip
    for event in ("step_started", "step_finished"):
        assert [step for each, step in steps if each == event] == ["order", "out"]
    # A level on the command line is that of all steps.
    done = run_etl("run", recipe(work, {"per_step": levels}), "--log-level", "error")
    assert done.stderr == b""


def test_records_in_quarantine_can_be_asked_for(work: Path) -> None:
    steps = [{"id": "check", "uses": "filter", "with": {"expr": "n >= 0"}, "on_error": {"then": "quarantine"}}]
    logging = {"level": "error", "format": "json", "per_step": {"check": "debug"}}
    done = run_etl("run", recipe(work, logging, steps=steps, errors={"quarantine": "q"}))
    first, *_ = of(entries(done.stderr), "record_quarantined")
    envelope = json.loads((work / "q").read_bytes().splitlines()[0])
    assert {name: first[name] for name in envelope["origin"]} == envelope["origin"]
    assert (first["run"], first["step"], first["code"]) == (envelope["run"], "check", "bad_type")
    assert {entry["step"] for entry in entries(done.stderr)} == {"check"}


def test_sample(work: Path) -> None:
    path = recipe(work, {"format": "json", "sample": 3, "every": "1h"})
    lines = entries(run_etl("run", path).stderr)
    assert [entry["line"] for entry in of(lines, "record_skipped") if entry["step"] == "check"] == [3, 4, 5]
    (last,) = of(lines, "log_lines_suppressed")
    assert (last["of"], last["step"], last["suppressed"], last["total"]) == ("record_skipped", "check", 27, 30)


@pytest.mark.parametrize(
    ("logging", "message"),
    [
        ({"levle": "info"}, "logging has no key 'levle'"),
        ({"level": "warn"}, "level must be one of debug, info, warning, error, not 'warn'"),
        ({"format": "xml"}, "format must be one of auto, console, json, logfmt, not 'xml'"),
        ({"file": ""}, "expected text"),
        ({"per_step": {"chekc": "debug"}}, "per_step, by the ids of steps, has no key 'chekc'"),
        ({"per_step": {"check": "loud"}}, "the level of check must be one of"),
        ({"per_step": ["check"]}, "must be a mapping"),
        ({"sample": -1}, "expected a number, 0 or more"),
        ({"sample": True}, "expected a number, 0 or more"),
        ({"every": "often"}, "expected a duration"),
        ({"every": 0}, "expected a duration above 0"),
        ({"file": "in.ndjson"}, "is also a file that the run reads or writes"),
        ({"file": "./out.ndjson"}, "is also a file that the run reads or writes"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_what_cannot_be(logging: dict[str, Any], message: str, options: list[str], work: Path) -> None:
    before = (work / "in.ndjson").read_bytes()
    done = run_etl("run", recipe(work, logging), *options)
    assert done.returncode == 78
    assert message in done.stderr.decode() and b"recipe.yaml:" in done.stderr
    if "chekc" in str(logging):
        assert b"recipe.yaml:1:" in done.stderr and b"did you mean 'check'?" in done.stderr
    assert (work / "in.ndjson").read_bytes() == before and not (work / "out.ndjson").exists()


def test_steps_of_a_route_have_levels(work: Path) -> None:
    route = [{"when": "n > 1", "steps": [{"id": "last", "uses": "filter", "with": {"expr": "n > 0"}}],
              "sink": {"id": "a", "uses": "write", "with": {"path": "a"}}}]  # fmt: skip
    levels = dict.fromkeys(["last", "a", "route", "check"], "debug")
    parts = {key: value for key, value in RECIPE.items() if key != "sink"}
    (work / "recipe.yaml").write_text(json.dumps({**parts, "route": route, "logging": {"per_step": levels}}))
    assert run_etl("run", work / "recipe.yaml", "--dry-run").returncode == 0


# -- bad luck ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "gone"])
@pytest.mark.parametrize("format", ["json", "console"])
def test_nobody_reads_the_log(how: str, format: str, work: Path) -> None:
    path = recipe(work, {"level": "debug", "format": format})
    reader, writer = os.pipe()
    os.close(reader)
    line = [BIN / "etl", "run", path, "--stats"]
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *line] if how == "closed" else line
    done = subprocess.run(command, stderr=writer, env=environment(), timeout=60)
    os.close(writer)
    assert done.returncode == 0
    assert (work / "out.ndjson").read_bytes() == GOOD


def test_a_reader_that_leaves_in_the_middle(work: Path) -> None:
    (work / "in.ndjson").write_bytes(BAD * 5000 + GOOD)
    path = recipe(work, {"format": "json", "sample": 5000})
    done = subprocess.run(["bash", "-c", '"$0" run "$1" 2> >(head -n 1 > first); echo $?', BIN / "etl", path],
                          cwd=work, env=environment(), stdout=subprocess.PIPE, timeout=60)  # fmt: skip
    assert done.stdout == b"0\n"
    assert (work / "out.ndjson").read_bytes() == GOOD


def test_the_disk_of_the_log_is_full(work: Path) -> None:
    done = run_etl("run", recipe(work, {"level": "info", "format": "json", "file": "/dev/full"}))
    assert done.returncode == 0
    assert (work / "out.ndjson").read_bytes() == GOOD
    failed, lost = entries(done.stderr)
    assert (failed["event"], failed["path"], failed["level"]) == ("log_failed", "/dev/full", "warning")
    # 4 steps, that start and finish, 1 and 20 records, published, finished, and how many were suppressed.
    assert (lost["event"], lost["lost"]) == ("log_lines_lost", 2 * 4 + 1 + 20 + 1 + 1 + 1)


@pytest.mark.parametrize("file", ["missing/run.log", "in.ndjson/run.log", "directory"])
def test_a_log_that_cannot_be_opened(file: str, work: Path) -> None:
    (work / "directory").mkdir()
    done = run_etl("run", recipe(work, {"file": file}))
    assert done.returncode == 73
    assert b"cannot open the log" in done.stderr and file.encode() in done.stderr
    assert not (work / "out.ndjson").exists()


def test_a_directory_that_may_not_be_written(work: Path) -> None:
    # A read-only file system also refuses root, who may write anywhere else.
    (work / "disk").mkdir()
    path = recipe(work, {"file": "disk/run.log"})
    line = f"mount -t tmpfs -o ro tmpfs {work}/disk && {BIN}/etl run {path}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", line], env=environment(), capture_output=True, timeout=60)
    assert done.returncode == 73, done.stderr
    assert b"cannot open the log" in done.stderr and b"Read-only file system" in done.stderr


HOSTILE = '\x1b]0;owned\x07\r\x00\u202e\u2028\n::error::x ##[error]y <b>[red]z[/red]</b> a="b" \\'


@pytest.mark.parametrize("format", ["json", "logfmt", "console"])
def test_hostile_records(format: str, work: Path) -> None:
    record = {"n": HOSTILE, HOSTILE: 1}
    (work / "in.ndjson").write_bytes(json.dumps(record).encode() + b"\n" + HOSTILE.encode() + b"\n" + GOOD)
    (work / "schema.json").write_text(
        '{"additionalProperties": {"type": "null"}, "properties": {"n": {"type": "integer"}}}'
    )
    steps = [{"id": "check", "uses": "validate", "with": {"schema": "schema.json"}, "on_error": {"then": "skip"}}]
    done = run_etl("run", recipe(work, {"format": format, "file": "run.log"}, steps=steps))
    assert done.returncode == 0, done.stderr
    text = (work / "run.log").read_bytes().decode()
    assert "owned" in text and "##[" not in text
    assert not set(text) & {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2028"} - {"\n"}
    assert all(line.startswith(("{", "ts=", "20")) for line in text.splitlines())
    if format == "json":
        assert [entry["event"] for entry in entries(text.encode())] == ["record_skipped"] * 3


def test_a_line_is_out_before_the_next_chunk_is_read(work: Path) -> None:
    os.mkfifo(work / "fifo")
    path = recipe(
        work, {"format": "json"}, source={"uses": "read", "with": {"paths": ["fifo"]}, "on_error": {"then": "skip"}}
    )
    running = subprocess.Popen([BIN / "etl", "run", path], stderr=subprocess.PIPE, env=environment())
    assert running.stderr
    deadline = threading.Timer(60, running.kill)  # else a line that never comes would be waited for
    deadline.start()
    with open(work / "fifo", "wb", buffering=0) as source:
        for number in range(1, 4):  # nothing more comes before the line about this is there
            source.write(BAD)
            entry = json.loads(running.stderr.readline())
            assert (entry["event"], entry["step"], entry["line"]) == ("record_skipped", "check", number)
    assert running.wait() == 0
    deadline.cancel()
    running.stderr.close()


# -- secrets -----------------------------------------------------------------------------------------------------------


def everything(path: Path, *options: str, **env: str) -> bytes:
    """Whatever a run and its plan say."""
    shown = b""
    for more in ([], ["--dry-run"]):
        done = run_etl("run", path, "--stats", "--log-level", "debug", *more, *options, env=environment(**env))
        shown += done.stdout + done.stderr
    return shown


@pytest.mark.parametrize("format", ["json", "logfmt", "console"])
@pytest.mark.parametrize("name", ["DB_PASSWORD", "API_TOKEN", "MY_SECRET", "ACCESS_KEY", "credential_of_x"])
def test_P6_values_of_secret_variables_are_shown_nowhere(name: str, format: str, work: Path) -> None:
    secret = "hush\"so'me\\thing"
    reference = f"${{env.{name}}}"
    steps = [
        {"id": "check", "uses": "filter", "with": {"expr": "n >= 0"}, "on_error": {"then": "skip"}},
        {"id": "shown", "uses": "retry-wrap", "with": {"command": ["sh", "-c", "printf %s \"$1\" >&2; exit 1", "sh", reference]},
         "on_error": {"then": "skip"}},
    ]  # fmt: skip
    shown = everything(recipe(work, {"format": format}, steps=steps, name=reference), **{name: secret})
    assert b"hush" not in shown and b"***" in shown
    for broken in ({"name": [reference]}, {"logging": {"level": reference}}, {"sink": {"uses": reference}},
                   {"sink": {"uses": "write", "with": {"path": f"missing\0/{reference}"}}}):  # fmt: skip
        shown = everything(recipe(work, **broken), **{name: secret})
        assert (b"hush" not in shown and b"***" in shown) or b"NUL" in shown
    assert b"hush" in everything(recipe(work, None, name="${env.PLAIN}"), PLAIN="hush")


def test_P6_urls_are_shown_without_passwords_and_queries(work: Path) -> None:
    url = "http://me:hush@127.0.0.1:9/x.ndjson?signature=hush&hush=1"
    source = {"uses": "read", "with": {"paths": [url]}}
    shown = everything(recipe(work, {"level": "debug"}, source=source))
    assert b"hush" not in shown and b"http://***@127.0.0.1:9/x.ndjson?***" in shown
    shown = everything(recipe(work, sink={"uses": "sql", "with": {"url": "nosuch://me:hu/sh?hush@h/db", "table": "t"}}))
    assert b"hush" not in shown and b"hu/sh" not in shown and b"nosuch://***@h/db" in shown
    for line in (["run", url], ["run", "recipe.yaml", url], ["read", "--format", url], ["validate", "--schema", url],
                 ["run", "recipe.yaml", "--set", url], ["sort", "--by", "n", "-o", url], [url]):  # fmt: skip
        done = run_etl(*line, cwd=work)
        assert done.returncode in (2, 66, 78) and b"hush" not in done.stderr, done.stderr


@pytest.mark.parametrize("secret", ["xq7@kv4/zw9", 'xq7@kv4 "zw9', "xq7#kv4", "xq7?kv4", "xq7[kv4]zw9", "xq7/kv4"])
@pytest.mark.parametrize("where", ["metrics", "lineage", "sql"])
def test_P6_a_secret_that_a_url_would_be_cut_in_is_refused(where: str, secret: str, work: Path) -> None:
    url = "http://me:${env.DB_PASSWORD}@127.0.0.1:9"
    changes: dict[str, Any] = {
        "metrics": {"metrics": {"pushgateway": url}},
        "lineage": {"lineage": {"url": url}},
        "sql": {"sink": {"uses": "sql", "with": {"url": url.replace("http", "postgresql"), "table": "t"}}},
    }[where]
    done = run_etl("run", recipe(work, **changes), env=environment(DB_PASSWORD=secret))
    assert done.returncode == 78
    assert b"${env.DB_PASSWORD} stands in a URL" in done.stderr and b"%2F" in done.stderr
    assert not any(part in done.stderr for part in (b"xq7", b"kv4", b"zw9"))


@pytest.mark.parametrize(
    "section", [{"lineage": {"url": "http://u:hunter/x"}}, {"metrics": {"pushgateway": "http://u:hunter/x"}}]
)
def test_P6_what_is_no_url_is_not_quoted(section: dict[str, Any], work: Path) -> None:
    done = run_etl("run", recipe(work, **section))
    assert done.returncode == 78
    assert b"expected a URL" in done.stderr and b"hunter" not in done.stderr


def test_a_second_signal_ends_a_run_whose_log_nobody_takes(work: Path) -> None:
    (work / "in.ndjson").write_bytes(BAD * 20_000)
    path = recipe(work, {"level": "debug", "format": "json", "sample": 100_000}, runtime={"workers": 1})
    running = subprocess.Popen([BIN / "etl", "run", path], stderr=subprocess.PIPE, env=environment())
    assert running.stderr
    try:
        size = -1
        while size < (size := _waiting(running.stderr.fileno())) or size < 1 << 15:
            assert running.poll() is None
            threading.Event().wait(0.3)
        running.send_signal(signal.SIGTERM)
        threading.Event().wait(0.3)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == -signal.SIGTERM
    finally:
        running.kill()
        running.communicate()


def _waiting(fd: int) -> int:
    """Bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
