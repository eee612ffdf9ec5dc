"""P4: what a run holds in memory does not depend on how much it reads, whatever it reads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BIN, environment

ORDINARY = b'{"key":%d,"pad":"' + b"x" * 200 + b'"}\n'
BLOCK = b"".join(ORDINARY % (number * 7919 % 100_003) for number in range(20_000))
KINDS: dict[str, bytes] = {
    "ordinary": BLOCK,
    "tiny": b"{}\n" * 1_000_000,
    "blank": b"\n" * 3_000_000,
    "bad": (b"{bad" + b"x" * 200 + b"\n") * 15_000,
    "deep": (b'{"key":' + b"[" * 240 + b"]" * 240 + b"}\n") * 8_000,
    "wide": b"{" + b",".join(b'"k%d":%d' % (number, number) for number in range(300_000)) + b"}\n",
}


def peak_mib(directory: Path, arguments: str, block: bytes, times: int) -> float:
    """Peak resident memory of `etl ARGUMENTS`, fed with the block so many times, or from the file `in` that is."""
    if arguments.endswith(" in"):
        with (directory / "in").open("wb") as file:
            for _ in range(times):
                file.write(block)
        times = 0
    process = subprocess.Popen(
        [str(BIN / "etl"), *arguments.split()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment(), cwd=directory,
    )  # fmt: skip
    assert process.stdin
    for _ in range(times):
        process.stdin.write(block)
    process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024


@pytest.fixture
def peak(tmp_path: Path) -> Callable[[str, bytes, int], float]:
    (tmp_path / "schema.json").write_text('{"required": ["key"], "properties": {"key": {"type": "integer"}}}')
    return lambda arguments, block, times: peak_mib(tmp_path, arguments, block, times)


@pytest.mark.parametrize("kind", KINDS)
def test_P4_reading_anything(kind: str, peak: Callable[[str, bytes, int], float]) -> None:
    command = "read --on-error skip --log-level error"
    one, many = peak(command, KINDS[kind], 1), peak(command, KINDS[kind], 6)
    assert many < one + 10
    assert many < 80


@pytest.mark.parametrize(
    "command",
    [
        "read in",
        "validate --schema schema.json in",
        "validate --schema schema.json --coerce --defaults",
        "write -",
        "write out.ndjson.gz",
        "write --format csv out.csv",
        "write --format json out.json",
        "write --format yaml -",
        "write --path-template {key}",
        "read --quarantine q --format csv --types string",
    ],
)
def test_P4_streaming_commands(command: str, peak: Callable[[str, bytes, int], float]) -> None:
    slow = "yaml" in command or "csv" in command or "gz" in command
    block = BLOCK[: len(BLOCK) // 4] if slow else BLOCK
    block = block[: block.rindex(b"\n") + 1]
    if "template" in command:
        block = b"".join(ORDINARY % (number % 50) for number in range(20_000))
    one, many = peak(command, block, 1), peak(command, block, 6)
    assert many < one + 12
    assert many < 80


@pytest.mark.parametrize("kind", ["ordinary", "tiny"])
@pytest.mark.parametrize("options", ["--by key", "--by=-key --unique"])
def test_P4_sort_in_64_mib(kind: str, options: str, peak: Callable[[str, bytes, int], float]) -> None:
    times = 36 if kind == "ordinary" else 4
    assert peak(f"sort {options} --memory 64MiB in", KINDS[kind], times) < 160


def test_P4_a_line_without_end(peak: Callable[[str, bytes, int], float]) -> None:
    """Longer than --max-line: it is skipped as it is read."""
    assert peak("read --on-error skip --log-level error", b"x" * (4 << 20), 30) < 80


@pytest.mark.parametrize("method", ["gzip", "xz", "bz2"])
def test_P4_a_compression_bomb(method: str, tmp_path: Path) -> None:
    """Much in little: 200 MB of one line, and of many."""
    program = {"gzip": "gzip", "xz": "xz -1", "bz2": "bzip2"}[method]
    for number, content in enumerate(["head -c 200M /dev/zero", "yes '{}' | head -n 2000000"]):
        line = f"({content}) | {program} > bomb{number}"
        assert subprocess.run(["bash", "-c", line], cwd=tmp_path).returncode == 0
        assert peak_mib(tmp_path, f"read --on-error skip --log-level error bomb{number}", b"", 0) < 80
