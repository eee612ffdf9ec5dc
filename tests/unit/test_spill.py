"""Sorted runs on disk."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etlcli.errors import InputOutputError
from etlcli.io import spill as spilling
from etlcli.io.kept import KeptSpill
from etlcli.io.spill import LineSorter, SpillFile, spill_directory

LINES = [b"%d" % number * (number % 9) for number in range(2000)]
CHUNK = b"".join(line + b"\n" for line in LINES)


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[SpillFile]:
    file = SpillFile(str(tmp_path))
    yield file
    file.close()


@pytest.mark.parametrize("size", [1, 100, 5000, 1 << 20])
def test_a_run_comes_back_in_blocks_of_whole_lines(spill: SpillFile, size: int) -> None:
    first = spill.write_run([b"a\n", b"b\n"])
    run = spill.write_run([CHUNK[:999], CHUNK[999:]])
    last = spill.write_run([b"z\n"])
    blocks = list(spill.read_run(run, size))
    assert b"".join(blocks) == CHUNK
    assert all(block.endswith(b"\n") for block in blocks)
    assert max(map(len, blocks)) <= max(size, 4096) + max(map(len, LINES))
    assert list(spill.read_run(first, size)) == [b"a\nb\n"]
    assert list(spill.read_run(last, size)) == [b"z\n"]


def test_a_line_longer_than_a_block(spill: SpillFile) -> None:
    long = b"x" * 100_000 + b"\n"
    run = spill.write_run([b"a\n" + long + b"b\n"])
    assert b"".join(spill.read_run(run, 10)) == b"a\n" + long + b"b\n"
    assert all(block.endswith(b"\n") for block in spill.read_run(run, 10))


def test_runs_are_read_side_by_side(spill: SpillFile) -> None:
    runs = [spill.write_run([b"%d\n" % number * 5000]) for number in range(3)]
    readers = [spill.read_run(run, 4096) for run in runs]
    blocks = [next(reader) for _ in range(2) for reader in readers]
    spill.write_run([b"x\n"])
    assert [block[:1] for block in blocks] == [b"0", b"1", b"2"] * 2


def _on_disk(spill: SpillFile) -> int:
    return os.fstat(spill._fd).st_blocks * 512


@pytest.mark.skipif(sys.platform != "linux", reason="holes are punched on Linux")
def test_what_is_taken_is_free_again(spill: SpillFile) -> None:
    runs = [spill.write_run([b"%d%s\n" % (number, b"x" * 999)] * 4000) for number in range(3)]
    readers = [spill.take_run(run, 4096) for run in runs]
    taken = [[next(reader) for _ in range(800)] for reader in readers]
    assert _on_disk(spill) < sum(run.size for run in runs) // 2
    for number, (blocks, reader, run) in enumerate(zip(taken, readers, runs, strict=True)):
        assert b"".join([*blocks, *reader]) == b"%d%s\n" % (number, b"x" * 999) * (run.size // 1001)
    assert _on_disk(spill) < 1 << 16
    later = spill.write_run([CHUNK])
    assert b"".join(spill.read_run(later, 4096)) == CHUNK


def test_where_no_hole_can_be_punched(spill: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilling, "_fallocate", lambda: None)
    run = spill.write_run([CHUNK])
    assert [b"".join(spill.take_run(run, 4096)) for _ in range(2)] == [CHUNK, CHUNK]


def test_what_another_process_may_need_stays(tmp_path: Path) -> None:
    spill = KeptSpill(str(tmp_path / "spill"))
    try:
        run = spill.write_run([CHUNK] * 1000)
        assert [b"".join(spill.take_run(run, 1 << 20)) for _ in range(2)] == [CHUNK * 1000] * 2
    finally:
        spill.close()


@pytest.mark.parametrize("memory", [1, 4000, 1 << 30])
def test_lines_come_out_in_order(spill: SpillFile, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many passes of merging it takes."""
    monkeypatch.setattr(spilling, "_MIN_BLOCK", 100)
    monkeypatch.setattr(spilling, "_MAX_FAN_IN", 3)
    monkeypatch.setattr(spilling, "_BLOCK_LINES", 7)
    sorter = LineSorter(spill, memory)
    for start in range(0, 1000, 60):
        sorter.add(LINES[start : start + 60])
    sorter.add_sorted(iter(sorted(LINES[1020:])))
    assert [line for part in sorter.sorted() for line in part] == sorted(LINES[:1020] + LINES[1020:])


def test_no_lines_to_sort(spill: SpillFile) -> None:
    assert [line for part in LineSorter(spill, 100).sorted() for line in part] == []


def test_an_empty_run(spill: SpillFile) -> None:
    assert list(spill.read_run(spill.write_run([]), 100)) == []


@pytest.mark.parametrize("nameless", [True, False])
def test_the_file_has_no_name(nameless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nameless:  # as on a file system without O_TMPFILE
        real = os.open

        def refuse(path: Any, flags: int, *rest: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return real(path, flags, *rest)

        monkeypatch.setattr(os, "open", refuse)
    file = SpillFile(str(tmp_path))
    assert os.listdir(tmp_path) == []
    run = file.write_run([CHUNK])
    assert b"".join(file.read_run(run, 100)) == CHUNK
    file.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["missing", "file"])
def test_a_directory_that_will_not_do(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputOutputError) as caught:
        SpillFile(str(tmp_path / path))
    assert caught.value.exit_code == 74
    assert str(tmp_path / path) in caught.value.message
    assert "--temp-dir" in caught.value.hint


@pytest.mark.parametrize("call", ["pwrite", "pread"])
def test_a_failing_disk_names_the_directory(
    call: str, spill: SpillFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spill.write_run([CHUNK])

    def fail(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputOutputError, match="No space left") as caught:
        spill.write_run([b"x\n"])
        list(spill.read_run(run, 100))
    assert caught.value.where == str(tmp_path)


def test_short_writes_and_reads(spill: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, block, at: pwrite(fd, bytes(block[:1000]), at))
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 700), at))
    run = spill.write_run([CHUNK, CHUNK])
    assert b"".join(spill.read_run(run, 4096)) == CHUNK * 2


def test_a_file_that_was_cut(spill: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    run = spill.write_run([CHUNK])
    monkeypatch.setattr(os, "pread", lambda *args: b"")
    with pytest.raises(InputOutputError, match="shorter than it was written"):
        list(spill.read_run(run, 100))


def test_where_runs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    assert [spill_directory("/chosen"), spill_directory(None)] == ["/chosen", "/elsewhere"]
    monkeypatch.delenv("TMPDIR")
    assert spill_directory(None) == "/tmp"
