"""Records through a command: every way it can fail, who is rejected for it, and what is left running."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from etlcli.core.batch import Batch, Reject
from etlcli.core.ledger import StepCount
from etlcli.core.policy import Retry
from etlcli.core.stage import Context, once
from etlcli.engine.recovery import tried
from etlcli.errors import FindingsError, UsageError
from etlcli.io import command
from etlcli.io.stepfiles import StepFiles
from etlcli.stages.retry_wrap import RetryWrap

LINES = [b'{"n":%d}' % number for number in range(50)]
PYTHON = [sys.executable, "-u", "-c"]


class Run:
    """A stage on its own, put through its paces: what it put out, its rejects, its counts."""

    def __init__(self, resources: ExitStack, argv: list[str], retry: Retry | None = None, **options: Any) -> None:
        self.count = StepCount("wrap")
        ctx = Context(
            self.count,
            resources=resources,
            files=StepFiles("step", resources, lambda *a, **k: None),
            log=lambda *args, **fields: None,
            reject=lambda rejects: None,
            retry=once if retry is None else lambda call: tried(retry, self.count, call),
        )
        self.stage = RetryWrap(RetryWrap.Params(command=argv, **options), ctx)

    def __call__(self, lines: list[bytes] = LINES) -> tuple[list[bytes], list[Reject]]:
        prepared = self.stage.prepare(Batch.of_lines(lines))
        out = [line for batch in self.stage.apply(prepared) for line in batch.lines]
        return out, list(prepared.rejects)


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def python(code: str) -> list[str]:
    return [*PYTHON, code]


def outcome(resources: ExitStack, argv: list[str], **options: Any) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    """The lines it puts out, and code and bytes of the rejects. All have the same message."""
    out, rejects = Run(resources, argv, **options)()
    return out, [(reject.code, reject.raw) for reject in rejects]


ALL = [("command_failed", line) for line in LINES]


@pytest.mark.parametrize(
    "options", [{}, {"size": 7}, {"size": 7, "concurrency": 3}, {"mode": "line"}, {"mode": "line", "size": 7}], ids=str
)
def test_a_command_that_works(options: dict[str, Any], resources: ExitStack) -> None:
    assert outcome(resources, ["cat"], **options) == (LINES, [])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sh", "-c", "exit 3"], "sh: exit 3"),
        (["sh", "-c", "cat; echo first >&2; echo last >&2; exit 1"], "sh: exit 1: last"),
        (["sh", "-c", "printf 'what\\n  what to do\\n\\n' >&2; exit 1"], "sh: exit 1: what"),
        (["sh", "-c", "kill -9 $$"], "sh: died by SIGKILL"),
        (["sh", "-c", "kill -40 $$"], "sh: died by signal 40"),
        (["true"], "true put out 0 records for 50 (see --any-count)"),
        (["sh", "-c", "cat; echo {}"], "sh put out 51 records for 50 (see --any-count)"),
        (["echo", "hello"], "line 1 of the output of echo: not JSON: invalid character (byte 0)"),
        (["sh", "-c", "head -3; echo []"], "line 4 of the output of sh: not a JSON object"),
        (["printf", "\\377"], "line 1 of the output of printf: not UTF-8 (byte 0 of the line)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_batch_that_fails(argv: list[str], message: str, resources: ExitStack) -> None:
    out, rejects = Run(resources, argv)()
    assert (out, [(reject.code, reject.raw) for reject in rejects]) == ([], ALL)
    assert {reject.message for reject in rejects} == {message}


def test_a_batch_that_fails_leaves_the_others_alone(resources: ExitStack) -> None:
    fails = python("import sys; d = sys.stdin.read(); ':15}' in d and sys.exit('no'); sys.stdout.write(d)")
    assert outcome(resources, fails, size=10) == (LINES[:10] + LINES[20:], ALL[10:20])


@pytest.mark.parametrize("size", [50, 7])
@pytest.mark.parametrize("poison", [[0], [49], [13, 14, 40]])
def test_isolation_finds_the_records_that_fail(size: int, poison: list[int], resources: ExitStack) -> None:
    code = f"import sys; d = sys.stdin.read(); any(':%d}}' % n in d for n in {poison}) and sys.exit(1); sys.stdout.write(d)"
    out, rejects = outcome(resources, python(code), size=size, isolate=True)
    assert out == [line for number, line in enumerate(LINES) if number not in poison]
    assert rejects == [ALL[number] for number in poison]


def test_a_batch_is_tried_again_before_it_is_halved(resources: ExitStack, tmp_path: Path) -> None:
    """The command fails twice, then works."""
    count = f"echo >> {tmp_path}/calls; [ $(wc -l < {tmp_path}/calls) -gt 2 ] && cat"
    run = Run(resources, ["sh", "-c", count], Retry(attempts=3, backoff="1ms"), isolate=True)
    assert run() == (LINES, [])
    assert (run.count.retries, len((tmp_path / "calls").read_text())) == (2, 3)


def test_what_fails_says_how_often_it_was_tried(resources: ExitStack) -> None:
    _, rejects = Run(resources, ["false"], Retry(attempts=3, backoff="1ms"), isolate=True)(LINES[:2])
    assert [reject.attempts for reject in rejects] == [3, 3]


def test_any_count(resources: ExitStack) -> None:
    run = Run(resources, ["sed", "-e", "/:7}/d", "-e", "/:8}/p"], any_count=True)
    out, rejects = run()
    assert out == [*LINES[:7], LINES[8], *LINES[8:]] and not rejects
    assert (run.count.absorbed, run.count.made) == ({"command": 50}, 50)


def gone(marker: str) -> bool:
    """Whether no process has this word on its command line, now or soon."""
    for _ in range(200):
        lines = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
            except OSError:
                continue
        if not any(marker.encode() in line for line in lines):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("mode", ["batch", "line"])
def test_a_timeout_kills_the_whole_group(mode: str, resources: ExitStack) -> None:
    run = Run(resources, ["sh", "-c", "sleep 98.7601 & sleep 98.7601; cat"], timeout="100ms", mode=mode)
    out, rejects = run(LINES[:2])
    assert (out, [reject.code for reject in rejects]) == ([], ["timeout"] * 2)
    assert gone("98.7601")


def test_a_command_that_drips_is_not_waited_for(resources: ExitStack) -> None:
    drips = ["sh", "-c", "while :; do echo {}; echo {} >&2; sleep 0.05; done"]
    out, rejects = Run(resources, drips, timeout="300ms")(LINES[:1])
    assert (out, [reject.message for reject in rejects]) == ([], ["sh took longer than 0.3 s"])


@pytest.mark.parametrize("detached", ["", "setsid "])
def test_a_child_that_keeps_the_pipes_is_not_waited_for(detached: str, resources: ExitStack) -> None:
    argv = ["sh", "-c", f"{detached}sleep 5.7602 & cat"]
    start = time.monotonic()
    assert outcome(resources, argv, timeout="60s") == (LINES, [])
    assert time.monotonic() - start < 5
    assert detached or gone("5.7602")


def test_output_without_end(resources: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MAX_OUTPUT", 1 << 20)
    _, rejects = Run(resources, ["yes", "{}"])()
    assert rejects[0].message == "yes put out more than 1 MiB"
    assert gone("yes\0{}")


def test_a_command_that_wants_no_input(resources: ExitStack) -> None:
    lines = [b'{"pad":"%s"}' % (b"x" * 100_000)] * 20
    out, rejects = Run(resources, ["head", "-1"], any_count=True)(lines)
    assert out == lines[:1] and not rejects


# -- Line mode -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("/:7}/d", "command_failed", "sed put out 0 records for 1 (see --any-count)"),
        ("/:7}/Q5", "command_failed", "sed: exit 5"),
        ("s/.*:7}/x/", "command_failed", "line 1 of the output of sed: not JSON: invalid character (byte 0)"),
    ],
    ids=["silent", "exit", "garbage"],
)
def test_a_line_that_is_not_answered(script: str, code: str, message: str, resources: ExitStack) -> None:
    run = Run(resources, ["sed", "-u", script], mode="line", timeout="200ms")
    out, rejects = run()
    assert out == LINES[:7] + LINES[8:]
    assert [(reject.code, reject.raw, reject.message) for reject in rejects] == [(code, LINES[7], message)]


@pytest.mark.parametrize("size", [1000, 8, 1])
def test_an_answer_too_many_never_passes(size: int, resources: ExitStack) -> None:
    """The line after may get it for its own; then it is one answer too many at the end, and the run fails."""
    run = Run(resources, ["sed", "-u", "/:7}/p"], mode="line", size=size)
    try:
        out, rejects = run()
        list(run.stage.finish())
    except FindingsError as error:
        assert "more lines than it was given" in error.message
    else:
        assert (out, [reject.raw for reject in rejects]) == (LINES[:7] + LINES[8:], [LINES[7]])


def test_a_process_that_ends_behind_an_answer(resources: ExitStack) -> None:
    """Not the fault of the line after."""
    assert outcome(resources, ["sed", "-u", "/:7}/q1"], mode="line", size=1) == (LINES, [])


def test_a_process_for_all_batches(resources: ExitStack) -> None:
    run = Run(resources, ["sh", "-c", 'while read -r line; do echo "{\\"pid\\":$$}"; done'], mode="line")
    first, _ = run()
    assert run() == (first, [])
    assert len(set(first)) == 1


def test_more_output_after_the_last_answer_fails_the_run(resources: ExitStack) -> None:
    run = Run(resources, ["sh", "-c", "cat; echo {}"], mode="line")
    assert run() == (LINES, [])
    with pytest.raises(FindingsError, match="more lines than it was given, after its last answer"):
        list(run.stage.finish())


# -- What cannot be --------------------------------------------------------------------------------------------------


def test_no_such_command(resources: ExitStack) -> None:
    with pytest.raises(UsageError, match="no command is called 'nowhere-to-be-found'"):
        Run(resources, ["nowhere-to-be-found"])


def test_a_file_that_is_no_program(resources: ExitStack, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("cat")
    with pytest.raises(UsageError, match="script' is no program that may be executed"):
        Run(resources, [str(tmp_path / "script")])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"command": ["cat"], "mode": "line", "concurrency": 2},
        {"command": ["cat"], "mode": "line", "any_count": True},
        {"command": ["cat"], "timeout": 0},
        {"stage": "valdate"},
        {"stage": "write"},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(command|mode|timeout|stage): "):
        RetryWrap.Params(**options)


def test_another_stage(resources: ExitStack, tmp_path: Path) -> None:
    (tmp_path / "schema").write_text('{"properties": {"n": {"maximum": 48}}}')
    arguments = ["--schema", str(tmp_path / "schema")]
    out, rejects = outcome(resources, arguments, stage="validate", isolate=True, size=25)
    assert (out, rejects) == (LINES[:49], [ALL[49]])


def test_another_stage_says_why_it_failed(resources: ExitStack) -> None:
    """Not what is to be done about it, which it says last."""
    _, rejects = Run(resources, ["--rule", "n > 5"], stage="validate")(LINES[:1])
    assert rejects[0].message.startswith("etl validate: exit 1: etl: <stdin>:1 (step validate): rule: ")
