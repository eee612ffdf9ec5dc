"""Targets and directories of every awkward kind."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import BIN, Run, environment, run_etl

GOOD = b'{"a":2}\n{"a":1}\n'
SORTED = b'{"a":1}\n{"a":2}\n'
WAYS = {
    "-o": ["sort", "--by", "a", "in", "-o"],
    "write": ["write"],
    "run": ["run", "recipe.yaml", "--set"],
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "in").write_bytes(GOOD)
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: r\nsource: {uses: read, with: {paths: [in]}}\n"
        "steps: [{id: order, uses: sort, with: {by: a}}]\nsink: {uses: write, with: {path: x}}\n"
    )
    return tmp_path


def to(way: str, target: str, work: Path) -> subprocess.CompletedProcess[bytes]:
    argument = f"sink.with.path={target}" if way == "run" else target
    return run_etl(*WAYS[way], argument, stdin=SORTED if way == "write" else b"", cwd=work)


@pytest.mark.parametrize("way", WAYS)
def test_onto_a_link(way: str, work: Path) -> None:
    (work / "real").mkdir()
    (work / "real" / "target").write_bytes(b"old\n")
    (work / "link").symlink_to("real/target")
    assert to(way, "link", work).returncode == 0
    assert (work / "link").is_symlink()
    assert (work / "real" / "target").read_bytes() == SORTED
    assert os.listdir(work / "real") == ["target"]


@pytest.mark.parametrize("way", WAYS)
def test_onto_a_file_keeps_its_mode(way: str, work: Path) -> None:
    (work / "target").write_bytes(b"old\n")
    (work / "target").chmod(0o640)
    assert to(way, "target", work).returncode == 0
    assert (work / "target").read_bytes() == SORTED
    assert stat.S_IMODE((work / "target").stat().st_mode) == 0o640


@pytest.mark.parametrize("way", WAYS)
def test_into_a_missing_directory(way: str, work: Path) -> None:
    assert to(way, "new/deep/target", work).returncode == 0
    assert (work / "new" / "deep" / "target").read_bytes() == SORTED


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", ["directory", "directory/", "in/target", "n" * 256, "link-to-directory", "loop"])
def test_where_no_file_can_be(way: str, target: str, work: Path) -> None:
    (work / "directory").mkdir()
    (work / "link-to-directory").symlink_to("directory")
    (work / "loop").symlink_to("loop")
    done = to(way, target, work)
    assert done.returncode == 73, done.stderr
    assert target.rstrip("/") in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert os.listdir(work / "directory") == []


@pytest.mark.parametrize("way", ["-o", "run"])
def test_onto_the_input(way: str, work: Path) -> None:
    assert to(way, "in", work).returncode == 0
    assert (work / "in").read_bytes() == SORTED


def test_onto_the_input_by_another_name(shell: Run, work: Path) -> None:
    (work / "hard").hardlink_to(work / "in")
    (work / "soft").symlink_to("in")
    assert shell("etl sort --by a in -o soft && etl sort --by=-a hard -o in").returncode == 0
    assert (work / "in").read_bytes() == GOOD
    assert (work / "hard").read_bytes() == GOOD


def test_onto_the_input_through_a_pipe(shell: Run, work: Path) -> None:
    """What a shell's own redirection would have emptied."""
    assert shell("etl read in | etl sort --by a -o in").returncode == 0
    assert (work / "in").read_bytes() == SORTED


def test_onto_the_input_through_redirection(shell: Run, work: Path) -> None:
    """It would grow for ever."""
    done = shell("etl read in >> in")
    assert done.returncode == 2
    assert b"in is also standard output" in done.stderr
    assert (work / "in").read_bytes() == GOOD
    assert shell("etl read in >> other && etl read in >> other").returncode == 0
    assert (work / "other").read_bytes() == GOOD * 2


@pytest.mark.parametrize("link", ["by/1.ndjson", "by"])
def test_P6_a_value_does_not_lead_through_a_link(link: str, shell: Run, work: Path) -> None:
    (work / "elsewhere").mkdir()
    (work / "elsewhere" / "1.ndjson").write_bytes(b"old\n")
    if link == "by":
        template = "{a}/1.ndjson"
        (work / "1").symlink_to("elsewhere")
    else:
        template = "by/{a}.ndjson"
        (work / "by").mkdir()
        (work / link).symlink_to("../elsewhere/1.ndjson")
    done = shell(f"etl write --path-template '{template}' < in")
    assert done.returncode == 73
    assert b"symbolic link" in done.stderr
    assert (work / "elsewhere" / "1.ndjson").read_bytes() == b"old\n"
    assert not list(work.rglob("2*"))


def test_a_template_whose_own_directory_is_a_link(shell: Run, work: Path) -> None:
    (work / "real").mkdir()
    (work / "link").symlink_to("real")
    assert shell("etl write --path-template 'link/{a}.ndjson' < in").returncode == 0
    assert sorted(os.listdir(work / "real")) == ["1.ndjson", "2.ndjson"]


def test_a_run_that_fails_leaves_no_directories(shell: Run, work: Path) -> None:
    (work / "in").write_bytes(GOOD + b"bad\n")
    assert shell("etl write --path-template 'new/{a}/x.ndjson' < in; etl read in -o other/new/x").returncode == 1
    assert not (work / "new").exists() and not (work / "other").exists()


@pytest.mark.parametrize(
    "line",
    [
        "etl read in --quarantine same -o same",
        "etl read in --quarantine same -o ./link",
        "etl read in --quarantine in -o out",
        "etl read '*' --quarantine q -o out",
        "etl sort --by a in --quarantine link -o same",
        "etl write same --quarantine same < in",
        "etl validate --schema s in --quarantine s",
    ],
)
def test_the_quarantine_is_no_file_of_the_run(line: str, shell: Run, work: Path) -> None:
    """Its records would be published over, or read as input."""
    (work / "in").write_bytes(GOOD + b"{bad\n")
    (work / "link").symlink_to("same")
    for name in ("q", "s"):
        (work / name).write_bytes(b"{}\n")
    before = {path: path.read_bytes() for path in work.iterdir() if path.is_file()}
    done = shell(line)
    assert done.returncode == 2, done.stderr
    assert b"quarantine" in done.stderr
    assert {path: path.read_bytes() for path in work.iterdir() if path.is_file()} == before


def test_a_quarantine_that_cannot_be_made_is_found_at_once(shell: Run, work: Path) -> None:
    for path in ("in/q", ".", "n" * 256):
        done = shell(f"etl read in --quarantine {path} -o out")
        assert done.returncode == 73, (path, done.stderr)
        assert not (work / "out").exists()


def test_a_quarantine_that_is_no_file(shell: Run, work: Path) -> None:
    (work / "bad.ndjson").write_bytes(b'{"a":1}\n' + b"bad\n" * 3)
    command = "etl read bad.ndjson --on-error quarantine --quarantine"
    done = shell(f"mkfifo q; cat q > found & {command} q && {command} /dev/null; status=$?; wait; exit $status")
    assert (done.returncode, done.stdout) == (0, b'{"a":1}\n' * 2), done.stderr
    assert [json.loads(line)["raw"] for line in (work / "found").open()] == ["bad"] * 3
    done = shell(f"{command} /dev/fd/4 4>&1 >read | cat > pipe; {command} /dev/fd/4 4>file")
    assert (done.returncode, (work / "pipe").read_bytes().count(b"\n"), (work / "file").read_bytes().count(b"\n")) == (
        0,
        3,
        3,
    )
    done = shell(f"{command} /dev/full")
    assert (done.returncode, b"cannot write /dev/full: No space left" in done.stderr) == (74, True)


def test_a_fifo_as_the_target(shell: Run, work: Path) -> None:
    assert shell("mkfifo f; cat f & etl sort --by a in -o f; wait").stdout == SORTED
    assert stat.S_ISFIFO((work / "f").stat().st_mode)


@pytest.mark.parametrize("names", [["a b", "é", "\n", "-x", "*", "'", "\\", "$HOME", "%s"]])
def test_awkward_names(names: list[str], work: Path) -> None:
    for name in names:
        (work / name).write_bytes(GOOD)
        assert run_etl("sort", "--by", "a", "-o", f"out {name}", "--", name, cwd=work).returncode == 0
        assert (work / f"out {name}").read_bytes() == SORTED


def test_a_name_that_is_no_text(work: Path) -> None:
    name = os.fsencode(work) + b"/\xff"
    Path(os.fsdecode(name)).write_bytes(GOOD + b"{bad\n")
    done = run_etl("read", os.fsdecode(name), "-o", os.fsdecode(name + b"2"), cwd=work)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    output = ["-o", os.fsdecode(name + b"2"), "--log-level", "info", "--log-format"]
    for policy in (["--quarantine", "q"], ["--on-error", "skip"]):
        for form in ("json", "logfmt", "console"):
            done = run_etl("read", os.fsdecode(name), *policy, *output, form, cwd=work)
            assert done.returncode == 0, done.stderr
            assert Path(os.fsdecode(name + b"2")).read_bytes() == GOOD
    assert json.loads((work / "q").read_bytes().splitlines()[0])["origin"]["path"] == f"{work}/\\xff"


# -- Full and read-only disks ----------------------------------------------------------------------------------------


def mounted(work: Path, options: str, line: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a bash line with a small file system mounted at `disk`, in a mount namespace of its own."""
    (work / "disk").mkdir()
    script = f"mount -t tmpfs -o {options} tmpfs disk && {{ {line}; }}"
    command = ["unshare", "-m", "bash", "-c", script]
    done = subprocess.run(command, cwd=work, env=environment(), capture_output=True, timeout=100)
    if b"mount: " in done.stderr or b"unshare: " in done.stderr:
        pytest.skip("mounting is not permitted here")
    return done


BIG = b"".join(b'{"a":%d,"pad":"%s"}\n' % (number % 10, b"x" * 1000) for number in range(4000))


@needs_root
@pytest.mark.parametrize(
    "command",
    [
        "etl read big -o disk/out",
        "etl sort --by a big -o disk/out",
        "etl write disk/out < big",
        "etl write disk/out.csv < big",
        "etl write --mode append disk/old < big",
        "etl write --path-template 'disk/{a}' < big",
        "etl sort --by a --memory 1MiB --temp-dir disk big -o disk/out",
        "etl read bad --quarantine disk/q -o disk/out",
        "TMPDIR=$PWD/disk etl sort --by a --memory 1MiB big -o disk/out",
    ],
)
def test_P5_a_full_disk(command: str, work: Path) -> None:
    (work / "big").write_bytes(BIG)
    (work / "bad").write_bytes(b"{" * 3000 + b"\n" + (b"{" * 3000 + b"\n") * 1000)
    done = mounted(work, "size=2m", f"echo '{{}}' > disk/old; {command}; echo $?; cat disk/old; ls -A disk")
    code, old, *rest = done.stdout.split()
    assert (code, old) == (b"74", b"{}"), done.stderr
    assert set(rest) <= {b"old", b"q"}, done.stdout
    assert b"No space left on device" in done.stderr
    assert b"disk" in done.stderr


@needs_root
@pytest.mark.parametrize(
    "command",
    [
        "etl sort --by a",
        "etl sort --by n",
        "etl group --by a --emit stream",
        "etl dedupe-cache --key n --keep last",
    ],
)
def test_a_result_takes_the_place_of_what_was_spilled(command: str, work: Path) -> None:
    """A disk that could not hold both is large enough."""
    (work / "big").write_bytes(
        b"".join(b'{"a":%d,"n":%d,"pad":"%s"}\n' % (n % 10, n, b"x" * 10_000) for n in range(4000))
    )
    done = mounted(
        work, "size=60m", f"TMPDIR=$PWD/disk {command} --memory 16MiB big -o disk/out; echo $?; wc -l < disk/out"
    )
    assert done.stdout.split() == [b"0", b"4000"], done.stderr


@needs_root
def test_P5_a_full_disk_leaves_no_half_sample(work: Path) -> None:
    done = mounted(work, "size=100k", "etl init disk/demo; echo $?; ls -A disk")
    assert done.stdout == b"74\n", done.stderr


@needs_root
def test_P5_a_full_disk_beneath_a_compressed_file(work: Path) -> None:
    (work / "big").write_bytes(BIG)
    done = mounted(work, "size=8k", "etl write disk/out.gz < big; echo $?; ls -A disk")
    assert done.stdout == b"74\n", done.stderr


@needs_root
def test_a_read_only_disk(work: Path) -> None:
    done = mounted(work, "size=2m,ro", "etl read in -o disk/out; echo $?; etl read in --quarantine disk/q; echo $?")
    assert done.stdout.split() == [b"73", b"73"], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become nobody")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("read secret", 66),
        ("read in -o closed/out", 73),
        ("write closed/out", 73),
        ("sort --by a --memory 1 --temp-dir closed in", 74),
        ("read in --quarantine closed/q", 73),
        ("run secret", 66),
        ("validate --schema secret in", 66),
    ],
)
def test_without_permission(command: str, code: int, shell: Run, work: Path) -> None:
    (work / "secret").write_bytes(b"{}\n")
    (work / "secret").chmod(0)
    (work / "closed").mkdir(mode=0o555)
    drop = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all"
    at = work
    while at != at.parent and at.stat().st_mode & 0o5 != 0o5 and str(at).startswith("/tmp"):
        at.chmod(at.stat().st_mode | 0o755)
        at = at.parent
    if shell(f"{drop} etl --version").returncode:
        pytest.skip("nobody may not run the program here")
    done = shell(f"{drop} etl {command} < in")
    assert done.returncode == code, done.stderr
    assert b"Permission denied" in done.stderr or b"may not be written" in done.stderr


@pytest.mark.parametrize("output", ["/dev/stdout", "$1/out.ndjson"])
def test_a_working_directory_that_is_gone(tmp_path: Path, output: str) -> None:
    """Nobody needs it who names files by their whole names."""
    (tmp_path / "in.ndjson").write_bytes(b'{"a":1}\n')
    (tmp_path / "gone").mkdir()
    script = f'cd "$1/gone" && rmdir "$1/gone" && "$2" read "$1/in.ndjson" -o "{output}" && cat "$1"/out*'
    (tmp_path / "out").write_bytes(b"")
    command = ["sh", "-c", script, "sh", str(tmp_path), str(BIN / "etl")]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b'{"a":1}\n'), done.stderr
