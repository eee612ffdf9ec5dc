"""Two `etl` processes on one pipe. Through the program: tests/faults/test_pipes.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from etlcli.errors import InputOutputError
from etlcli.io.handshake import announce, finish, upstream_unfinished
from etlcli.io.inputs import InputStream
from etlcli.io.private import private_directory


@pytest.fixture
def markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "etl"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):  # the test may have closed it
            os.close(fd)


def dead_writer(pipe: tuple[int, int]) -> None:
    """A process that announces itself on the pipe and dies."""
    script = "import sys; from etlcli.io.handshake import announce; announce(int(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(pipe[1])], pass_fds=[pipe[1]], check=True)


def test_a_writer_that_finishes(markers: Path, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert not upstream_unfinished(reader)
    marker = announce(writer)
    assert marker
    assert upstream_unfinished(reader)
    finish(marker)
    assert not upstream_unfinished(reader)
    assert os.listdir(markers) == []
    finish(marker)
    finish(None)


def test_a_writer_that_does_not(markers: Path, pipe: tuple[int, int]) -> None:
    dead_writer(pipe)
    assert upstream_unfinished(pipe[0])


def test_one_of_two_writers_that_does_not(markers: Path, pipe: tuple[int, int]) -> None:
    dead_writer(pipe)
    finish(announce(pipe[1]))
    assert upstream_unfinished(pipe[0])


def test_other_pipes_are_not_meant(markers: Path, pipe: tuple[int, int]) -> None:
    announce(pipe[1])
    other, end = os.pipe()
    assert not upstream_unfinished(other)
    os.close(other)
    os.close(end)


def test_what_is_no_pipe(markers: Path, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert announce(file.fileno()) is None
        assert not upstream_unfinished(file.fileno())
    assert announce(9999) is None
    assert not upstream_unfinished(9999)


def test_the_directory_is_private(markers: Path, pipe: tuple[int, int]) -> None:
    announce(pipe[1])
    assert markers.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trouble", ["open to others", "a link", "a file", "somebody else's"])
def test_a_directory_that_cannot_be_trusted_is_not_used(
    trouble: str, markers: Path, pipe: tuple[int, int], tmp_path: Path
) -> None:
    if trouble == "open to others":
        markers.mkdir()
        markers.chmod(0o777)
    elif trouble == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        markers.symlink_to(tmp_path / "elsewhere")
    elif trouble == "a file":
        markers.write_bytes(b"")
    else:
        if os.geteuid() != 0:
            pytest.skip("only root may give a directory away")
        markers.mkdir(mode=0o700)
        os.chown(markers, 12345, 12345)
    assert announce(pipe[1]) is None
    assert not upstream_unfinished(pipe[0])


def test_without_a_runtime_directory_it_is_under_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "/does/not/exist"):
        if value is None:
            monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        else:
            monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert private_directory() == f"/tmp/etl-{os.geteuid()}"


def test_markers_of_the_dead_are_kept_an_hour(markers: Path, pipe: tuple[int, int]) -> None:
    dead_writer(pipe)
    live = announce(pipe[1])  # sweeps
    assert live
    (dead,) = [name for name in os.listdir(markers) if name != os.path.basename(live)]
    assert dead.endswith(".dead")
    assert upstream_unfinished(pipe[0])
    for age, kept in ((3500, True), (3700, False)):
        os.utime(markers / dead, (time.time() - age,) * 2)
        finish(announce(pipe[1]))
        assert (markers / dead).exists() == kept
    assert os.listdir(markers) == []


def test_the_marker_of_a_long_run_is_kept(markers: Path, pipe: tuple[int, int]) -> None:
    marker = announce(pipe[1])
    assert marker
    os.utime(marker, (0, 0))
    other, end = os.pipe()
    announce(end)
    assert upstream_unfinished(pipe[0])
    os.close(other)
    os.close(end)


def test_the_reader_is_told_at_the_end_of_its_input(markers: Path, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = InputStream(reader, "<stdin>")
    marker = announce(writer)
    os.write(writer, b"{}\n")
    assert stream.read(100) == b"{}\n"
    os.close(writer)
    with pytest.raises(InputOutputError, match="upstream") as caught:
        stream.read(100)
    assert caught.value.exit_code == 74
    finish(marker)
    assert stream.read(100) == b""
