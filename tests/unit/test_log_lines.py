"""Log lines: the same fields in every format, whatever values hold; and what repeats."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etlcli.errors import CannotCreateError
from etlcli.io import masking
from etlcli.observe.logs import LEVELS, SAMPLE, Log

HOSTILE = [
    "\x1b]0;owned\x07\x1b[31m\r\x08\x00",
    "a\n::error::x",
    "::error file=x::y",
    "##[error]x ##vso[task.setvariable]y",
    "\u202e\u2066\u2028\x9b2J",
    "<script>alert(1)</script> [red]x[/red]",
    'a="b" c=d\te\\',
    "\udcff",
    "",
    "=",
]
FORMATS = ("json", "logfmt", "console")


def written(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\n")[:-1]


def parsed(line: str) -> dict[str, str]:
    """Of logfmt."""
    words = re.findall(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "]+)(?: |$)', line)
    assert " ".join(f"{name}={value}" for name, value in words) == line
    return dict(words)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_fields_in_every_format(format: str, tmp_path: Path) -> None:
    log = Log("info", format, path=str(tmp_path / "log"))
    log("info", "before", a=1)
    log.about("r1", "nightly")
    log("warning", "some_event", path="in", step="check", nothing=None, yes=True, rate=0.5, many=[1, {"a b": "c"}])
    log.close()
    before, line = written(tmp_path / "log")
    if format == "json":
        assert [*json.loads(before)] == ["ts", "level", "event", "a"]
        entry = json.loads(line)
        assert list(entry) == ["ts", "level", "event", "run", "recipe", "step", "path", "yes", "rate", "many"]
        assert (entry["yes"], entry["rate"], entry["many"]) == (True, 0.5, [1, {"a b": "c"}])
        return
    rest = 'run=r1 recipe=nightly step=check path=in yes=true rate=0.5 many="[1,{\\"a b\\":\\"c\\"}]"'
    start = r"\S+ warning some_event " if format == "console" else r"ts=\S+ level=warning event=some_event "
    assert re.fullmatch(start + re.escape(rest), line)


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("format", FORMATS)
def test_hostile_values_stay_in_their_line(format: str, value: str, tmp_path: Path) -> None:
    log = Log("info", format, path=str(tmp_path / "log"))
    log.record("error", "finding", "check", lambda: [{"path": value, "value": [value, {value: value}], "after": "x"}])
    log.close()
    (line,) = written(tmp_path / "log")
    assert not set(line) & {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2066", "\u2028"} - {"\t"}
    assert "##[" not in line and "##vso[" not in line and not line.lstrip().startswith("::")
    if format == "json":
        assert list(json.loads(line)) == ["ts", "level", "event", "step", "path", "value", "after"]
        assert json.loads(line)["path"] == value.replace("\udcff", "\\udcff")
    else:
        named = line if format == "logfmt" else re.sub(r"^(\S+) (\S+) +(\S+)", r"ts=\1 level=\2 event=\3", line)
        assert list(parsed(named)) == ["ts", "level", "event", "step", "path", "value", "after"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=[])), inner),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
def test_any_value_makes_one_line_that_parses(tmp_path: Path, value: Any) -> None:
    for format in FORMATS:
        path = tmp_path / format
        path.unlink(missing_ok=True)
        log = Log("info", format, path=str(path))
        log("info", "event", value=value)
        log.close()
        (line,) = path.read_bytes().splitlines()
        if format == "json":
            assert msgspec.json.decode(line)["event"] == "event"


def test_long_values_are_cut(tmp_path: Path) -> None:
    log = Log("info", "json", path=str(tmp_path / "log"))
    log("info", "event", value="x" * 100_000)
    log.close()
    assert (tmp_path / "log").stat().st_size < 3000


def test_secrets_are_masked_in_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_secrets", set())
    masking.register('pass"word')
    for format in FORMATS:
        log = Log("info", format, path=str(tmp_path / format))
        log.about("r1", 'pass"word')
        log("info", "event", a='x pass"word', b=['pass"word', {'pass"word': b'pass"word'}], c=OSError('pass"word'))
        log("info", "event", path="https://me:hidden@host/x?hidden")
        log.close()
        text = (tmp_path / format).read_text()
        assert "word" not in text and "hidden" not in text and text.count("***") == 9


@pytest.mark.parametrize("level", LEVELS)
def test_levels(level: str, tmp_path: Path) -> None:
    log = Log(level, "json", path=str(tmp_path / "log"), per_step={"loud": "debug", "quiet": "error"})
    for each in LEVELS:
        log(each, each)
        log(each, each, step="loud")
        log.record(each, each, "quiet", lambda: [{}])
        log.regular(each, each, step="quiet")
    log.close()
    entries = [json.loads(line) for line in written(tmp_path / "log")]
    assert [entry["level"] for entry in entries if "step" not in entry] == list(LEVELS[LEVELS.index(level) :])
    assert [entry["level"] for entry in entries if entry.get("step") == "loud"] == list(LEVELS)
    assert [entry["level"] for entry in entries if entry.get("step") == "quiet"] == ["error", "error"]


@pytest.mark.parametrize("sample", [0, 1, 5, SAMPLE])
def test_records_are_shown_and_then_counted(sample: int, tmp_path: Path) -> None:
    log = Log("info", "json", path=str(tmp_path / "log"), sample=sample, every=3600)
    described = []
    for number in range(100):
        for step in ("a", "b"):
            log.record("error", "finding", step, lambda n=number: described.append(n) or [{"n": n}, {"n": n}])
    log.close()
    entries = [json.loads(line) for line in written(tmp_path / "log")]
    for step in ("a", "b"):
        *shown, last = [entry for entry in entries if entry["step"] == step]
        assert [entry["n"] for entry in shown] == [n for n in range(sample) for _ in range(2)]
        assert (last["level"], last["event"], last["of"]) == ("error", "log_lines_suppressed", "finding")
        assert (last["suppressed"], last["total"]) == (100 - sample, 100)
    assert len(described) == 2 * sample  # the others cost nothing


def test_what_repeats_for_long_is_shown_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("etlcli.observe.logs.monotonic", lambda: clock)
    log = Log("info", "json", path=str(tmp_path / "log"), sample=2, every=10)
    for _ in range(100):  # 25 s
        clock += 0.25
        log.record("warning", "record_skipped", "check", lambda: [{}])
    log.close()
    entries = [json.loads(line) for line in written(tmp_path / "log")]
    assert [entry.get("suppressed") for entry in entries] == [None, None, 39, 39, 96]
    assert entries[-1]["event"] == "log_lines_suppressed"
    assert sum(entry["event"] == "record_skipped" for entry in entries) + entries[-1]["suppressed"] == 100


def test_a_loop_of_other_events_does_not_flood_the_log(tmp_path: Path) -> None:
    log = Log("info", "json", path=str(tmp_path / "log"), sample=0, every=3600)
    for number in range(1000):
        log("warning", "worker_died", how="SIGKILL")
        log("info", "published", step="out", path=str(number))
        log.regular("info", "run_progress", records=number)
    log.close()
    events = [json.loads(line)["event"] for line in written(tmp_path / "log")]
    assert events.count("worker_died") == events.count("published") == SAMPLE
    assert events.count("log_lines_suppressed") == 2
    assert events.count("run_progress") == 1000


def test_a_file_is_appended_to_and_private(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(2):
        log = Log("info", path=str(path))
        log("info", "event", number=number)
        log.close()
    assert [parsed(line)["number"] for line in written(path)] == ["0", "1"]  # auto is logfmt in a file
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_cut_short_is_ended(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"half')
    log = Log("info", "json", path=str(tmp_path / "log"))
    log("info", "event")
    log("info", "event")
    log.close()
    half, *whole = written(tmp_path / "log")
    assert half == '{"half' and [json.loads(line)["event"] for line in whole] == ["event", "event"]


@pytest.mark.parametrize("name", ["", "missing/log", "file/log", "fifo", "x\0y"])
def test_a_file_that_cannot_be_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")  # which nobody reads
    with pytest.raises(CannotCreateError, match="cannot open the log"):
        Log("info", path=f"{tmp_path}/{name}")


def test_a_full_disk_is_told_once_and_counted(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("info", "json", path="/dev/full")
    for _ in range(5):
        log("info", "event")
    log.close()
    failed, lost = map(json.loads, capfd.readouterr().err.splitlines())
    assert (failed["event"], failed["path"], failed["level"]) == ("log_failed", "/dev/full", "warning")
    assert failed["reason"] == "No space left on device"
    assert (lost["event"], lost["lost"]) == ("log_lines_lost", 5)
