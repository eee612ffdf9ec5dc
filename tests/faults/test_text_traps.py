"""Bad text, through every command and every policy: the right code, line and offset, and all good lines survive."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import run_etl

from etlcli.core.intake import MAX_DEPTH
from etlcli.errors import REJECT_CODES


class Trap(NamedTuple):
    line: bytes
    code: str


TRAPS = {
    "cut short": Trap(b'{"a":1', "bad_json"),
    "rest of one": Trap(b'"a":1}', "not_object"),
    "two on a line": Trap(b'{"a":1}{"a":2}', "bad_json"),
    "nan": Trap(b'{"a":NaN}', "bad_json"),
    "leading zero": Trap(b'{"a":01}', "bad_json"),
    "control character": Trap(b'{"a":"\x01"}', "bad_json"),
    "nul": Trap(b'{"a":1}\x00', "bad_json"),
    "lone surrogate": Trap(b'{"a":"\\ud800"}', "bad_json"),
    "mark in the middle": Trap(b'\xef\xbb\xbf{"a":1}', "bad_json"),
    "latin-1": Trap(b'{"a":"\xe9"}', "bad_utf8"),
    "surrogate bytes": Trap(b'{"a":"\xed\xa0\x80"}', "bad_utf8"),
    "utf-16": Trap('{"a":1}'.encode("utf-16-le"), "bad_json"),
    "array": Trap(b'[{"a":1}]', "not_object"),
    "number": Trap(b"1e400", "not_object"),
    "null": Trap(b"null", "not_object"),
    "text": Trap(b'"{}"', "not_object"),
    "too deep": Trap(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "too_deep"),
    "far too deep": Trap(b"[" * 5000, "too_deep"),
    "too long": Trap(b'{"a":"' + b"x" * 20_000 + b'"}', "line_too_long"),
}
MAX_LINE = "16KiB"
GOOD = [
    b'{"a":1,"n": 0}',
    b'{"a":1,"u":"\\u00e9\xc3\xa9\xe2\x80\xa8"}',
    b'{"a":1.10,"big":123456789012345678901234567890,"huge":1e400}',
    b'{"a":2 }',
]

COMMANDS = {
    "read": ["read", "in"],
    "validate": ["validate", "--schema", "schema.json", "in"],
    "sort": ["sort", "--by", "a", "in"],
    "write": ["write", "-"],
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "schema.json").write_text('{"properties": {"a": {"type": "number"}}}')
    return tmp_path


def run(command: str, content: bytes, work: Path, *options: str) -> Any:
    (work / "in").write_bytes(content)
    stdin = content if command == "write" else b""
    return run_etl(*COMMANDS[command], "--max-line", MAX_LINE, *options, stdin=stdin, cwd=work)


def placed(trap: Trap, ending: bytes, mark: bytes = b"") -> tuple[bytes, int, int]:
    """The trap among good and blank lines; its line number and byte offset."""
    before = mark + ending.join([GOOD[0], GOOD[1], b"", GOOD[2], b""])
    return before + trap.line + ending + GOOD[3], 5, len(before)


@pytest.mark.parametrize("name", TRAPS)
def test_quarantined_with_code_line_and_offset(name: str, work: Path) -> None:
    """All traps through `read`; the other commands read the same way, which the next test holds."""
    trap = TRAPS[name]
    for number, (ending, mark) in enumerate([(b"\n", b""), (b"\r\n", b"\xef\xbb\xbf")]):
        content, line, offset = placed(trap, ending, mark)
        done = run("read", content, work, "--quarantine", f"q{number}", "--log-level", "error")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == GOOD
        (envelope,) = map(json.loads, (work / f"q{number}").read_bytes().splitlines())
        assert envelope["code"] == trap.code
        assert envelope["code"] in REJECT_CODES
        assert envelope["origin"] == {"path": "in", "line": line, "offset": offset}
        raw = b64decode(envelope["raw_base64"]) if "raw_base64" in envelope else envelope["raw"].encode()
        assert raw == (trap.line[: 16 << 10] if trap.code == "line_too_long" else trap.line)
        assert content[offset : offset + len(raw)] == raw


@pytest.mark.parametrize("command", COMMANDS)
def test_all_traps_through_every_command(command: str, work: Path) -> None:
    """Skipped: every good line survives, each bad one is counted and logged with its place."""
    lines = [line for trap in TRAPS.values() for line in (GOOD[0], trap.line)] + GOOD
    done = run(command, b"\n".join(lines), work, "--on-error", "skip", "--stats", "--log-format", "json")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted([GOOD[0]] * len(TRAPS) + GOOD)
    *logged, stats = map(json.loads, done.stderr.splitlines())
    expected: dict[str, int] = {}
    for trap in TRAPS.values():
        expected[trap.code] = expected.get(trap.code, 0) + 1
    assert stats["steps"][0]["rejected"] == expected
    skipped = [entry for entry in logged if entry["event"] == "record_skipped"]
    assert [entry["code"] for entry in skipped] == [trap.code for trap in TRAPS.values()]
    assert [entry["line"] for entry in skipped] == [2 * number + 2 for number in range(len(TRAPS))]
    for entry in skipped:
        assert b"\n".join(lines)[entry["offset"] :].startswith(lines[entry["line"] - 1])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["cut short", "latin-1", "array", "too deep", "too long"])
def test_fail_names_the_place(command: str, name: str, work: Path) -> None:
    content, line, _ = placed(TRAPS[name], b"\n")
    done = run(command, content, work)
    assert done.returncode == 1
    path = "<stdin>" if command == "write" else "in"
    assert f"etl: {path}:{line} (step read): {TRAPS[name].code}: " in done.stderr.decode()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("budget", "code"), [("1", 1), ("2", 0), ("33%", 1), ("34%", 0)])
def test_the_budget(command: str, budget: str, code: int, work: Path) -> None:
    content = b"\n".join([*GOOD, b"{", b"[]"])
    done = run(command, content, work, "--on-error", "skip", "--max-errors", budget, "--log-level", "error")
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n \t\n", b"\n" * 3000])
def test_nothing_in_nothing_out(command: str, content: bytes, work: Path) -> None:
    done = run(command, content, work)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(command: str, ending: bytes, last: bool, work: Path) -> None:
    done = run(command, ending.join(GOOD) + ending * last, work)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"\n".join([*GOOD, b""])


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (1 << 20) + 8])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_trap_at_the_edge_of_a_block(size: int, ending: bytes, work: Path) -> None:
    """Lines, line ends and characters may be cut anywhere by the blocks that are read."""
    line = '{"a":"é漢🙂"}'.encode()
    count = size // (len(line) + len(ending)) + 3
    lines = [line] * count
    lines[count - 3] = b'{"a":"\xff"}'
    shift = b'{"pad":"' + b"x" * (size % 7) + b'"}'
    content = ending.join([shift, *lines])
    done = run("read", content, work, "--quarantine", "q")
    assert done.stdout == b"".join(each + b"\n" for each in [shift, *lines] if b"\xff" not in each)
    (envelope,) = map(json.loads, (work / "q").read_bytes().splitlines())
    assert envelope["origin"]["offset"] == content.index(b'{"a":"\xff"}')
    assert envelope["origin"]["line"] == count - 1


def test_lines_at_the_limit(work: Path) -> None:
    lines = [b'{"a":"' + b"x" * (size - 8) + b'"}' for size in (16383, 16384, 16385)]
    for command in COMMANDS:
        for ending in (b"\n", b"\r\n"):
            done = run(command, ending.join(lines), work, "--on-error", "skip", "--log-level", "error")
            kept = [] if command == "validate" else lines[:2]
            assert done.stdout == b"".join(line + b"\n" for line in kept), (command, ending)


def test_several_long_lines_in_a_row(work: Path) -> None:
    """Longer than a block, so that they are skipped as they are read, at the start, in a row, and at the end."""
    long = b'{"a":"' + b"x" * (3 << 20) + b'"}'
    content = b"\n".join([long, GOOD[0], long, long, b"", GOOD[1], long])
    done = run("read", content, work, "--quarantine", "q")
    assert done.stdout.splitlines() == GOOD[:2]
    envelopes = list(map(json.loads, (work / "q").read_bytes().splitlines()))
    assert [envelope["origin"]["line"] for envelope in envelopes] == [1, 3, 4, 7]
    for envelope in envelopes:
        assert content[envelope["origin"]["offset"] :].startswith(long[:100])
        assert envelope["code"] == "line_too_long"
        assert len(envelope["raw"]) == 16 << 10


def test_a_mark_at_the_start_of_each_file(work: Path) -> None:
    for name in ("one", "two"):
        (work / name).write_bytes(b"\xef\xbb\xbf" + GOOD[0] + b"\n{\n")
    done = run_etl("read", "one", "two", "--on-error", "skip", "--log-format", "json", cwd=work)
    assert done.stdout.splitlines() == [GOOD[0]] * 2
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [entry["event"] for entry in entries] == ["bom_dropped", "record_skipped"] * 2
    assert [entry["offset"] for entry in entries if "offset" in entry] == [3 + len(GOOD[0]) + 1] * 2
