"""The promises of the README, each through the installed program."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import BIN, environment, run_etl

from etlcli.core import params
from etlcli.core.policy import ErrorBudget
from etlcli.core.stage import Prepared, Stage
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import LedgerError
from etlcli.observe.logs import Log
from etlcli.recipe.model import Recipe, StepSpec
from etlcli.registry import COMPONENTS, Entry

ODD_LINES = [
    b'{"id": 1 , "big":123456789012345678901234567890}',
    b'{"id":1.10,"huge":1e400,"minus":-0}',
    b'  {"u":"\\u00e9\\/","raw":"\xc3\xa9","id":2}\t',
    b'{"id":3,"id":4,"twice":[1,  2]}',
    b'{"id":18446744073709551617}',
    b'{"nothing":null}',
    b"{}",
]


def big_file(path: Path, records: int) -> Path:
    """Records of some 300 bytes, in no order."""
    line = b'{"key":%d,"pad":"' + b"x" * 270 + b'"}\n'
    generator = random.Random(7)
    with path.open("wb") as file:
        for _ in range(records // 1000):
            file.write(b"".join(line % generator.randrange(10**9) for _ in range(1000)))
    return path


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.endswith(".etl-tmp")]


# -- P1: nothing is lost silently ----------------------------------------------------------------------------------


class Loses(Stage):
    """Drops every second record of a batch and tells nobody."""

    class Params(params.Declared):
        pass

    def prepare(self, batch):
        return Prepared(batch.take(range(0, len(batch), 2)))


def test_P1_a_lost_record_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPONENTS, "loses", Entry("stage", f"{__name__}:Loses", ""))
    source = tmp_path / "in.ndjson"
    source.write_bytes(b'{"a":1}\n{"a":2}\n{"a":3}\n')
    from etlcli.cli.component import step

    recipe = Recipe(
        "test",
        step("read", {"paths": [str(source)]}),
        (StepSpec("loses", "loses", Loses.Params()),),
        step("write", {"path": str(tmp_path / "out.ndjson")}),
        ErrorBudget(),
    )
    with pytest.raises(LedgerError, match="1 records unaccounted for") as caught:
        Pipeline(recipe, Log("error", "json")).run()
    assert caught.value.where == "loses"
    assert caught.value.exit_code == 70
    assert os.listdir(tmp_path) == ["in.ndjson"]


def test_P1_every_step_balances(tmp_path: Path) -> None:
    lines = [b'{"a":%d}' % (number % 7) for number in range(5000)]
    lines[100:100] = [b"", b"{bad", b"[]", b'{"a":"\xff"}'] * 5
    done = run_etl("sort", "--by", "a", "--unique", "--memory", "64KiB", "--on-error", "skip", "--stats", "--log-level", "error",
                   stdin=b"\n".join(lines))  # fmt: skip
    assert done.returncode == 0
    steps = json.loads(done.stderr)["steps"]
    for step in steps:
        assert step["in"] == step["out"] + sum(
            sum(step[kind].values()) for kind in ("discarded", "rejected", "absorbed")
        )
    assert [step["out"] for step in steps[:-1]] == [step["in"] for step in steps[1:]]
    assert steps[0]["in"] == len(lines)
    assert steps[0]["rejected"] == {"bad_json": 5, "not_object": 5, "bad_utf8": 5}
    assert steps[1]["discarded"] == {"duplicate": 4993}


# -- P2: untouched bytes stay untouched ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "etl read < in",
        "etl read < in | etl sort --by=-id | etl write - ",
        "etl read < in | etl validate --schema schema.json --defaults --coerce",
        "etl sort --by id --memory 1KiB < in",
        "etl write --format json - < in | etl read --format json -",
        "etl write out.ndjson.zst < in; etl read out.ndjson.zst",
    ],
)
def test_P2_the_same_bytes(line: str, shell, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\r\n".join(ODD_LINES * 3))
    (tmp_path / "schema.json").write_text('{"properties": {"id": {"type": "number"}}}')
    done = shell(line)
    assert done.returncode == 0, done.stderr
    got = [piece.strip() if "json -" in line else piece for piece in done.stdout.split(b"\n")[:-1]]
    assert Counter(got) == Counter([piece.strip() if "json -" in line else piece for piece in ODD_LINES * 3])


# -- P4: bounded memory --------------------------------------------------------------------------------------------


def peak_mib(*args: str | Path) -> float:
    """Peak resident memory of `etl ARGS...`, which must succeed."""
    # Through a small process: a child starts out with the peak of the one it was forked from.
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-c", code, str(BIN / "etl"), *map(str, args)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, env=environment(), check=True).stdout) / 1024


def test_P4_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    small, large = big_file(tmp_path / "small.ndjson", 40_000), big_file(tmp_path / "large.ndjson", 400_000)
    (tmp_path / "schema.json").write_text('{"required": ["key"], "properties": {"key": {"type": "integer"}}}')
    for command in (["read"], ["validate", "--schema", tmp_path / "schema.json"], ["write", "--format", "csv", "-"]):
        inputs = [[small], [large]] if command[0] != "write" else [["<", small], ["<", large]]
        if command[0] == "write":
            continue
        for workers in ("1", "2"):  # left alone, the larger run would have more, and their memory would be compared
            one, ten = (peak_mib(*command, "--workers", workers, *paths) for paths in inputs)
            assert ten < one + 8
            assert ten < 80
    one, ten = (peak_mib("sort", "--by", "key", "--memory", "64MiB", path) for path in (small, large))
    assert ten < 160
    assert ten < 64 + 60


def test_P4_groups_go_to_disk(tmp_path: Path) -> None:
    """As many groups as records: the memory does not grow with them."""
    path = big_file(tmp_path / "big.ndjson", 60_000)
    for options in (["--agg", "count=count()", "--agg", "sum=sum(key)"], ["--emit", "list"], ["--emit", "stream"]):
        assert peak_mib("group", "--by", "n,key", *options, "--memory", "16MiB", path) < 16 + 60


# -- P5: all or nothing --------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file with old content, alone in its directory."""
    directory = tmp_path / "out"
    directory.mkdir()
    path = directory / "target.ndjson"
    path.write_bytes(b'{"old":true}\n')
    return path


def untouched(target: Path) -> bool:
    return target.read_bytes() == b'{"old":true}\n' and os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("arguments", [["--on-error", "fail"], ["--on-error", "skip", "--max-errors", "0"],
                                       ["--on-error", "skip", "--max-errors", "10%"]])  # fmt: skip
def test_P5_over_the_budget_publishes_nothing(arguments: list[str], target: Path) -> None:
    done = run_etl("sort", "--by", "a", "-o", target, *arguments, stdin=b'{"a":1}\n{bad\n{"a":2}\n')
    assert done.returncode == 1
    assert untouched(target)


def test_P5_many_files_or_none(tmp_path: Path) -> None:
    done = run_etl("write", "--path-template", f"{tmp_path}/{{c}}.ndjson", stdin=b'{"c":1}\n{"c":2}\n{bad\n')
    assert done.returncode == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("memory", ["1MiB", "512MiB"])
def test_P5_a_signal_leaves_no_trace(signum: int, memory: str, target: Path, tmp_path: Path) -> None:
    source = big_file(tmp_path / "in.ndjson", 200_000)
    spill = tmp_path / "spill"
    spill.mkdir()
    command = [
        str(BIN / "etl"),
        "sort",
        "--by",
        "key",
        "--memory",
        memory,
        "--temp-dir",
        str(spill),
        "-o",
        str(target),
        str(source),
    ]
    # Whoever runs the tests may have told its background jobs to ignore SIGINT; no thread runs here that could mind.
    undo = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, env=environment(), **undo)
    wait_for(lambda: leftovers(target.parent))
    time.sleep(0.2)
    process.send_signal(signum)
    assert process.wait(timeout=60) == -signum
    assert untouched(target)
    assert os.listdir(spill) == []


def wait_for(condition, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_P5_a_killed_run_is_swept_by_the_next(target: Path, tmp_path: Path) -> None:
    source = big_file(tmp_path / "in.ndjson", 200_000)
    process = subprocess.Popen(
        [str(BIN / "etl"), "sort", "--by", "key", "-o", str(target), str(source)], env=environment()
    )
    wait_for(lambda: leftovers(target.parent))
    process.kill()
    process.wait()
    assert target.read_bytes() == b'{"old":true}\n'
    assert run_etl("read", "-o", target, stdin=b'{"new":true}\n').returncode == 0
    assert target.read_bytes() == b'{"new":true}\n'
    assert os.listdir(target.parent) == [target.name]


def test_P5_a_run_in_progress_is_not_swept(target: Path) -> None:
    with subprocess.Popen(
        [str(BIN / "etl"), "read", "-o", str(target)], stdin=subprocess.PIPE, env=environment()
    ) as slow:
        assert slow.stdin
        slow.stdin.write(b'{"slow":true}\n')
        slow.stdin.flush()
        wait_for(lambda: leftovers(target.parent))
        assert run_etl("read", "-o", target, stdin=b'{"quick":true}\n').returncode == 0
        assert target.read_bytes() == b'{"quick":true}\n'
        slow.stdin.close()
        assert slow.wait(timeout=30) == 0
    assert target.read_bytes() == b'{"slow":true}\n'


@pytest.mark.parametrize("call", ["openat", "write", "fsync", "rename", "close"])
def test_P5_killed_at_every_system_call(call: str, target: Path) -> None:
    """Whenever it dies, the target has all of the old content or all of the new."""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(target), "-P", str(target.parent)]
    outcomes = set()
    for number in range(1, 12):
        target.write_bytes(b'{"old":true}\n')
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        command = [*strace[:5], *inject, str(BIN / "etl"), "read", "-o", str(target)]
        if call in ("openat", "close"):  # those of this file alone: there are thousands of others
            command = [*strace, *inject, str(BIN / "etl"), "read", "-o", str(target)]
        done = subprocess.run(command, input=b'{"new":true}\n', capture_output=True, env=environment())
        outcomes.add(target.read_bytes())
        assert target.read_bytes() in (b'{"old":true}\n', b'{"new":true}\n')
        if done.returncode == 0:
            break
    assert b'{"new":true}\n' in outcomes
    assert run_etl("read", "-o", target, stdin=b"{}\n").returncode == 0
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize(("call", "error"), [("fsync", "EIO"), ("rename", "EIO"), ("write", "ENOSPC")])
def test_P5_a_failing_disk_publishes_nothing(call: str, error: str, target: Path) -> None:
    number = "1+" if call != "write" else "1"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}",
               str(BIN / "etl"), "read", "-o", str(target)]  # fmt: skip
    done = subprocess.run(command, input=b'{"new":true}\n', capture_output=True, env=environment())
    assert done.returncode == 74, done.stderr
    assert str(target) in done.stderr.decode()
    assert untouched(target)


def on_small_disk(tmp_path: Path, line: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a bash line with a file system of 2 MiB mounted at `disk`, in a mount namespace of its own."""
    (tmp_path / "disk").mkdir()
    script = f"mount -t tmpfs -o size=2m tmpfs disk && {{ {line}; }}"
    return subprocess.run(["unshare", "-m", "bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@needs_root
def test_P5_a_full_disk_publishes_nothing(tmp_path: Path) -> None:
    big_file(tmp_path / "in.ndjson", 20_000)
    done = on_small_disk(tmp_path, "etl read in.ndjson -o disk/out.ndjson; echo $?; ls -A disk")
    assert done.stdout == b"74\n"
    assert b"disk/out.ndjson: No space left on device" in done.stderr


@needs_root
def test_a_full_spill_directory_is_named(tmp_path: Path) -> None:
    big_file(tmp_path / "in.ndjson", 20_000)
    done = on_small_disk(
        tmp_path, "etl sort --by key --memory 1MiB --temp-dir disk in.ndjson -o out.ndjson; echo $?; ls -A disk"
    )
    assert done.stdout == b"74\n"
    assert b"cannot spill to disk: No space left on device" in done.stderr
    assert not (tmp_path / "out.ndjson").exists()


# -- P6: no surprises ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["console", "logfmt", "json", "auto"])
def test_P6_data_cannot_steer_the_terminal(format: str, tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07\x1b[31m\u202e\x9b2J\r::error::x"
    (tmp_path / "schema.json").write_text('{"properties": {"a": {"const": 1}}}')
    record = json.dumps({"a": hostile}, ensure_ascii=False).encode() + b"\n"
    done = run_etl("validate", "--schema", tmp_path / "schema.json", "--check", "--log-format", format, stdin=record)
    assert done.returncode == 1
    shown = done.stderr.decode()
    assert "owned" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e\r")
    assert not [line for line in shown.splitlines() if line.startswith("::")]


def test_P6_a_schema_cannot_reach_out(tmp_path: Path) -> None:
    for reference in ("http://127.0.0.1:9/x.json", "file:///etc/passwd", "other.json"):
        (tmp_path / "schema.json").write_text(json.dumps({"$ref": reference}))
        done = run_etl("validate", "--schema", tmp_path / "schema.json", stdin=b"{}\n")
        assert done.returncode == 78
        assert b"schema.json#/$ref" in done.stderr


def test_P6_quarantine_keeps_bytes_that_are_no_text(tmp_path: Path) -> None:
    run_etl("read", "--quarantine", tmp_path / "q.ndjson", stdin=b'{"a":"\xff\x00"}\n')
    import base64

    assert base64.b64decode(json.loads((tmp_path / "q.ndjson").read_bytes())["raw_base64"]) == b'{"a":"\xff\x00"}'


# -- Pipes ---------------------------------------------------------------------------------------------------------


def test_a_closed_reader_ends_it_by_sigpipe(shell, tmp_path: Path) -> None:
    big_file(tmp_path / "in.ndjson", 20_000)
    done = shell("etl read in.ndjson | head -n 1 >/dev/null; echo ${PIPESTATUS[0]}")
    assert done.stdout == b"141\n"
    assert done.stderr == b""
    assert shell("etl --help | true; echo ${PIPESTATUS[0]}").stdout in (b"141\n", b"0\n")


@pytest.mark.parametrize(
    "line", ["etl read in >&-", "etl read in > /dev/full", "etl read in -o /dev/full", "etl sort --by a in > /dev/full"]
)
def test_stdout_that_cannot_be_written(line: str, shell, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b'{"a":1}\n')
    assert shell(line).returncode == 74


@pytest.mark.parametrize(
    "upstream",
    [
        "etl read missing.ndjson",
        "etl read bad.ndjson",
        "etl sort",
        "etl read fifo",
    ],
)
def test_an_upstream_that_fails_publishes_nothing_below(upstream: str, shell, tmp_path: Path) -> None:
    (tmp_path / "bad.ndjson").write_bytes(b'{"a":1}\n{bad\n')
    os.mkfifo(tmp_path / "fifo")
    if "fifo" in upstream:  # one that is killed while it waits
        upstream = "{ etl read fifo & exec 9<>fifo; echo '{\"a\":1}' >&9; sleep 1; kill -9 $!; wait $!; } 2>/dev/null"
    done = shell(f"{upstream} | etl read | etl sort --by a -o out.ndjson; echo ${{PIPESTATUS[@]}}")
    assert done.stdout.split()[-2:] == [b"74", b"74"]
    assert not (tmp_path / "out.ndjson").exists()


def test_a_pipe_of_several_writers(shell, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b'{"a":1}\n')
    assert shell("(etl read in; etl read in) | etl sort --by a").stdout == b'{"a":1}\n' * 2
    done = shell("(etl read nope; etl read in) | etl sort --by a -o out; echo ${PIPESTATUS[1]}")
    assert done.stdout == b"74\n"


FLOWS = {
    "ndjson": [b'{"n":0}\n', b'{"n":1}\n', b'{"n":2}\n'],
    "json": [b'[{"n":0}', b',{"n":', b'1}, {"n":2}', b"]"],
    "csv": [b"n\n0\n", b"1\n", b"2\n"],
}


@pytest.mark.parametrize("name", FLOWS)
def test_records_flow_before_the_input_ends(name: str) -> None:
    with subprocess.Popen(
        [str(BIN / "etl"), "read", "--format", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin
        assert process.stdout
        number = 0
        for part in FLOWS[name]:
            process.stdin.write(part)
            process.stdin.flush()
            for _ in range(part.count(b"}") if name == "json" else 1):
                assert process.stdout.readline() == b'{"n":%d}\n' % number
                number += 1
        process.stdin.close()
        assert process.wait(timeout=30) == 0


# -- Input that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_compression(suffix: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"in.ndjson.{suffix}"
    lines = b"".join(b'{"n":%d,"r":%d}\n' % (n, random.Random(n).randrange(10**9)) for n in range(20_000))
    assert run_etl("write", path, stdin=lines).returncode == 0
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-20:]
    else:
        content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    for done in (
        run_etl("read", path, "-o", tmp_path / "out"),
        run_etl("sort", "--by", "n", "-o", tmp_path / "out", stdin=bytes(content)),
    ):
        # zstd frames carry no checksum of ours: what decodes to garbage is rejected as data.
        assert done.returncode in ({65} if damage == "cut" else {65, 1}), done.stderr
        assert not (tmp_path / "out").exists()


def test_unreadable_inputs(tmp_path: Path) -> None:
    assert run_etl("read", tmp_path).returncode == 66
    assert run_etl("read", tmp_path / "nope").returncode == 66
    (tmp_path / "secret").write_bytes(b"{}\n")
    (tmp_path / "secret").chmod(0)
    if os.geteuid() == 0:
        os.chmod(tmp_path, 0o755)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(tmp_path / "secret")]
        if subprocess.run(command, capture_output=True).returncode == 0:
            pytest.skip("nobody may read it all the same")
        return
    assert run_etl("read", tmp_path / "secret").returncode == 66


# -- Several at once -----------------------------------------------------------------------------------------------


def test_P1_runs_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    target = tmp_path / "log.ndjson"
    target.write_bytes(b'{"n":0}\n')
    first, second = (
        subprocess.Popen([str(BIN / "etl"), "write", "--mode", "append", str(target)], stdin=subprocess.PIPE,
                         stderr=subprocess.PIPE, env=environment())
        for _ in range(2)
    )  # fmt: skip
    wait_for(lambda: len(leftovers(tmp_path)) == 2)
    assert first.communicate(b'{"n":1}\n')[1] == b""
    message = second.communicate(b'{"n":2}\n')[1]
    assert (first.returncode, second.returncode) == (0, 75)
    assert b"changed by another run" in message
    assert target.read_bytes() == b'{"n":0}\n{"n":1}\n'
    assert os.listdir(tmp_path) == [target.name]


def test_P1_runs_that_share_a_quarantine(tmp_path: Path) -> None:
    quarantine = tmp_path / "q.ndjson"
    command = [str(BIN / "etl"), "read", "--quarantine", str(quarantine)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment()) as clean:
        assert clean.stdin
        clean.stdin.write(b"{}\n")
        clean.stdin.flush()
        assert run_etl("read", "--quarantine", quarantine, stdin=b"{bad\n").returncode == 0
        clean.stdin.close()
    assert len(quarantine.read_bytes().splitlines()) == 1
    # A line that a crash cut short does not spoil the next one.
    with quarantine.open("ab") as file:
        file.write(b'{"etl_quar')
    assert run_etl("read", "--quarantine", quarantine, stdin=b"{worse\n").returncode == 0
    assert json.loads(quarantine.read_bytes().splitlines()[-1])["raw"] == "{worse"


def test_a_fifo_is_opened_once(shell) -> None:
    done = shell("mkfifo f g; (echo '{\"n\":1}' > f; echo '{\"n\":2}' > g) & timeout 20 etl read f g")
    assert done.stdout == b'{"n":1}\n{"n":2}\n'


def test_a_marker_outlives_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from etlcli.io import handshake

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    reading, writing = os.pipe()
    marker = handshake.announce(writing)
    assert marker
    # As if its writer had begun two hours ago and died just now.
    dead = marker.rpartition(".")[0] + ".999999999"
    os.rename(marker, dead)
    os.utime(dead, (time.time() - 7200,) * 2)
    for _ in range(2):
        other = os.pipe()[1]
        handshake.finish(handshake.announce(other))
        assert handshake.upstream_unfinished(reading)
    os.utime(dead + ".dead", (time.time() - 7200,) * 2)
    handshake.finish(handshake.announce(other))
    assert not handshake.upstream_unfinished(reading)


@pytest.mark.parametrize(
    "line", ["etl --help > /dev/full", "etl sort --help >&-", "etl run --dry-run r.yaml > /dev/full"]
)
def test_texts_that_cannot_be_written(line: str, shell, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"{}\n")
    (tmp_path / "r.yaml").write_text(
        "{version: 1, source: {uses: read, with: {paths: in}}, sink: {uses: write, with: {path: o}}}"
    )
    done = shell(line)
    assert done.returncode == 74, done.stderr
    assert b"Traceback" not in done.stderr


def test_P4_many_rejects_are_not_many_objects(tmp_path: Path) -> None:
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"{}\n{\n" * 400_000)
    assert peak_mib("read", "--on-error", "skip", "--log-level", "error", path) < 80


def test_P4_yaml_aliases_are_bounded(etl) -> None:
    bomb = b"a: &a " + b"x" * 100_000 + b"\nb: [" + b",".join([b"*a"] * 1000) + b"]\n"
    done = etl("read", "--format", "yaml", stdin=bomb)
    assert done.returncode == 65
    assert b"aliases unfolded" in done.stderr
