"""Pipes of several `etl`, and neighbours that are not: who notices what, and who publishes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import BIN, Run, environment

GOOD = b"".join(b'{"a":%d}\n' % number for number in range(50))
BELOW = {
    "read": "etl read -o out",
    "sort": "etl sort --by a -o out",
    "validate": "etl validate --schema schema.json -o out",
    "write": "etl write out",
    "run": "etl run recipe.yaml",
    "middle": "etl read | etl sort --by a | etl write out",
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "good").write_bytes(GOOD)
    (tmp_path / "bad").write_bytes(GOOD + b"{bad\n")
    (tmp_path / "out").write_bytes(b"old\n")
    (tmp_path / "schema.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(
        'version: 1\nname: r\nsource: {uses: read, with: {paths: ["-"]}}\nsink: {uses: write, with: {path: out}}\n'
    )
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path


def markers(work: Path) -> list[str]:
    """Files in the private directory; `runs` in it is where runs have their sockets."""
    directory = work / "runtime" / "etl"
    return [name for name in os.listdir(directory) if name != "runs"] if directory.exists() else []


@pytest.mark.parametrize("below", BELOW)
def test_good_all_the_way_down(below: str, shell: Run, work: Path) -> None:
    done = shell(f"etl read good | {BELOW[below]}; echo ${{PIPESTATUS[@]}}")
    assert set(done.stdout.split()) == {b"0"}, done.stderr
    assert (work / "out").read_bytes() == GOOD
    assert markers(work) == []


@pytest.mark.parametrize("below", BELOW)
def test_an_upstream_that_fails(below: str, shell: Run, work: Path) -> None:
    done = shell(f"etl read bad | {BELOW[below]}; echo ${{PIPESTATUS[@]}}")
    assert done.stdout.split()[0] == b"1"
    assert set(done.stdout.split()[1:]) == {b"74"}
    assert b"upstream" in done.stderr
    assert (work / "out").read_bytes() == b"old\n"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_upstream_that_is_killed(signum: int, work: Path) -> None:
    """After it has written records: what came is not all there is."""
    # A shell may have told its background jobs to ignore SIGINT, and these tests are in one.
    above = subprocess.Popen(["env", "--default-signal=INT", BIN / "etl", "read"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env=environment(), cwd=work)  # fmt: skip
    below = subprocess.Popen([str(BIN / "etl"), "sort", "--by", "a", "-o", "out"], stdin=above.stdout, env=environment(),
                             cwd=work, stderr=subprocess.PIPE)  # fmt: skip
    assert above.stdin and above.stdout and below.stderr
    above.stdin.write(GOOD)
    above.stdin.flush()
    while not (markers(work) and any(name.endswith(".etl-tmp") for name in os.listdir(work))):
        assert above.poll() is None and below.poll() is None
    above.send_signal(signum)
    above.stdout.close()
    assert above.wait(timeout=30) == -signum
    assert below.wait(timeout=30) == 74
    assert b"upstream" in below.stderr.read()
    assert (work / "out").read_bytes() == b"old\n"
    assert not [name for name in os.listdir(work) if name.endswith(".etl-tmp")]
    above.stdin.close()
    below.stderr.close()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_upstream_that_is_killed_before_it_is_loaded(signum: int, shell: Run, work: Path) -> None:
    """While it imports its first library."""
    (work / "early").mkdir()
    (work / "early" / "click.py").write_text(f"import os, time; os.kill(os.getpid(), {int(signum)}); time.sleep(60)")
    done = shell("PYTHONPATH=early etl read good | etl sort --by a -o out; echo ${PIPESTATUS[@]}")
    assert done.stdout.split() == [str(128 + signum).encode(), b"74"]
    assert b"Traceback" not in done.stderr
    assert (work / "out").read_bytes() == b"old\n"


@pytest.mark.parametrize("above", ["cat good", "(cat good; exit 3)", "sed -n p good"])
def test_a_neighbour_above_that_is_not_etl(above: str, shell: Run, work: Path) -> None:
    """Nothing can be known of it, as ever."""
    assert shell(f"{above} | etl sort --by a -o out").returncode == 0
    assert (work / "out").read_bytes() == GOOD


def test_a_neighbour_in_between_hides_the_upstream(shell: Run, work: Path) -> None:
    assert shell("etl read bad | cat | etl read -o out").returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        "read big",
        "sort --by a big",
        "validate --schema schema.json big",
        "write - < big",
        "sort --by a --memory 64KiB big",
    ],
)
def test_a_reader_that_goes_away(command: str, shell: Run, work: Path) -> None:
    (work / "big").write_bytes(GOOD * 5_000)
    done = shell(f"etl {command} | head -n 1; echo ${{PIPESTATUS[@]}}")
    assert done.stdout == b'{"a":0}\n141 0\n'
    assert done.stderr == b""
    assert markers(work) == []


def test_a_reader_that_goes_away_far_below(shell: Run, work: Path) -> None:
    (work / "big").write_bytes(GOOD * 50_000)  # more than all the pipes and processes can hold
    done = shell("etl read big | etl read | etl read | head -n 1; echo ${PIPESTATUS[@]}")
    assert done.stdout == b'{"a":0}\n141 141 141 0\n'
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("etl read good >&-", 74),
        ("etl read good >/dev/full", 74),
        ("etl sort --by a good >/dev/full", 74),
        ("etl validate --schema schema.json good >/dev/full", 74),
        ("etl write - < good >/dev/full", 74),
        ("etl write --format csv - < good >/dev/full", 74),
        ("etl write --format json - < good >/dev/full", 74),
        ("etl read good -o /dev/full", 74),
        ("etl write /dev/full < good", 74),
        ("etl run recipe.yaml --set 'sink.with.path=\"-\"' < good >/dev/full", 74),
        ("etl run recipe.yaml --dry-run >/dev/full", 74),
        ("etl --help >/dev/full", 74),
        ("etl sort --help >/dev/full", 74),
        ("etl --version >/dev/full", 74),
        ("etl read <&-", 66),
        ("etl read - <&-", 66),
        ("etl read good 2>&- >/dev/null", 0),
        ("etl read bad 2>&- >/dev/null", 1),
        ("etl read bad 2>/dev/full >/dev/null", 1),
        ("etl read bad --on-error skip 2>/dev/full >/dev/null", 0),
        ("etl read good <&- >/dev/null", 0),
        ("etl read good -o out2 >&- <&- 2>&-", 0),
        ("etl read bad --quarantine /dev/full >/dev/null", 74),
    ],
)
def test_descriptors_that_are_closed_or_full(line: str, code: int, shell: Run, work: Path) -> None:
    done = shell(line)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    if "out2" in line:
        assert (work / "out2").read_bytes() == GOOD


def test_without_a_place_for_markers_pipes_work(shell: Run, work: Path) -> None:
    (work / "runtime" / "etl").write_bytes(b"in the way")
    assert shell("etl read good | etl sort --by a -o out").returncode == 0
    assert (work / "out").read_bytes() == GOOD


def test_a_slow_reader_holds_the_writer_back(work: Path) -> None:
    """Records wait in the input, not in memory, and are all there in the end."""
    (work / "big").write_bytes(GOOD * 5_000)
    with subprocess.Popen(
        [str(BIN / "etl"), "read", "big"], stdout=subprocess.PIPE, env=environment(), cwd=work
    ) as process:
        assert process.stdout
        first = process.stdout.read(100)
        assert process.poll() is None
        assert first + process.stdout.read() == GOOD * 5_000
    assert process.returncode == 0
