"""Atomic files: all of the new content under the name, or what was there before. Killed runs: tests/faults."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from etlcli.engine.overlap import Overlap, take_directory
from etlcli.errors import CannotCreateError, InputOutputError, TryLaterError
from etlcli.io import files
from etlcli.io.files import AppendFile, AtomicFile, SpecialFile, open_output, write_all


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A name in a directory of its own."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "target"


def published(target: Path, content: bytes = b"new", **options: bool) -> bytes:
    file = AtomicFile(str(target), **options)
    file.write(content)
    file.commit()
    file.abort()  # nothing more to forget
    return target.read_bytes()


def alone(target: Path) -> bool:
    return os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("old", [None, b"old"])
def test_nothing_is_visible_before_commit(target: Path, old: bytes | None) -> None:
    if old:
        target.write_bytes(old)
    file = AtomicFile(str(target))
    file.write(b"new")
    file.flush()
    assert (target.read_bytes() if target.exists() else None) == old
    file.commit()
    assert target.read_bytes() == b"new"
    assert alone(target)


def test_abort_forgets(target: Path) -> None:
    file = AtomicFile(str(target))
    file.write(b"new")
    file.abort()
    file.abort()
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_any_new_file(target: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        published(target)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o444])
def test_an_old_file_keeps_its_mode(target: Path, mode: int) -> None:
    target.write_bytes(b"old")
    target.chmod(mode)
    published(target)
    assert stat.S_IMODE(target.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_an_old_file_keeps_its_owner(target: Path) -> None:
    target.write_bytes(b"old")
    os.chown(target, 1234, 4321)
    published(target)
    assert (target.stat().st_uid, target.stat().st_gid) == (1234, 4321)


def test_the_unpublished_file_is_private(target: Path) -> None:
    file = AtomicFile(str(target))
    (name,) = os.listdir(target.parent)
    assert stat.S_IMODE((target.parent / name).stat().st_mode) == 0o600
    assert name.startswith(".")
    file.abort()


@pytest.mark.parametrize("dangling", [False, True])
def test_through_a_symbolic_link(target: Path, tmp_path: Path, dangling: bool) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    if not dangling:
        target.write_bytes(b"old")
    assert published(link) == b"new"
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert alone(target)


def test_directories_are_made(tmp_path: Path) -> None:
    assert published(tmp_path / "a" / "b" / "c") == b"new"


def test_directories_go_with_the_file_they_were_made_for(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    abandoned, kept = (AtomicFile(str(tmp_path / "there" / name / "b" / "c")) for name in ("a", "x"))
    (tmp_path / "there" / "x" / "other").write_bytes(b"")
    for file in (abandoned, kept):
        file.abort()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "there",
        "there/x",
        "there/x/other",
    }


def test_where_no_directory_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x", tmp_path / ("n" * 256), Path("/proc/nowhere/x")):
        with pytest.raises(CannotCreateError) as caught:
            AtomicFile(str(path))
        assert caught.value.exit_code == 73
        assert str(path) in caught.value.message


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "\udcff" * 200, "-", ".hidden", "with space\n"])
def test_any_name_a_file_can_have(target: Path, name: str) -> None:
    published(target.parent / name)
    assert os.listdir(target.parent) == [name]


def test_exclusive(target: Path, tmp_path: Path) -> None:
    assert published(target, exclusive=True) == b"new"
    assert alone(target)
    with pytest.raises(CannotCreateError, match="exists already"):
        AtomicFile(str(target), exclusive=True)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(CannotCreateError, match="exists already"):
        AtomicFile(str(tmp_path / "link"), exclusive=True)


def test_exclusive_when_the_name_is_taken_in_between(target: Path) -> None:
    file = AtomicFile(str(target), exclusive=True)
    file.write(b"mine")
    target.write_bytes(b"theirs")
    with pytest.raises(CannotCreateError, match="exists already"):
        file.commit()
    file.abort()
    assert target.read_bytes() == b"theirs"
    assert alone(target)


@pytest.mark.parametrize("old", [None, b"", b"old\n", b"x" * (3 << 20)], ids=["none", "empty", "short", "long"])
def test_append(target: Path, old: bytes | None) -> None:
    if old is not None:
        target.write_bytes(old)
    file = AtomicFile(str(target), append=True)
    assert file.last_byte == (old or b"")[-1:]
    file.write(b"new")
    assert (target.read_bytes() if target.exists() else None) == old
    file.commit()
    assert target.read_bytes() == (old or b"") + b"new"
    assert alone(target)


@pytest.mark.parametrize("old", [None, b"old"])
def test_append_to_what_another_run_changed(target: Path, old: bytes | None) -> None:
    if old:
        target.write_bytes(old)
    one, other = AtomicFile(str(target), append=True), AtomicFile(str(target), append=True)
    one.write(b"1")
    other.write(b"22")
    other.commit()
    with pytest.raises(TryLaterError) as caught:
        one.commit()
    assert caught.value.exit_code == 75
    one.abort()
    assert target.read_bytes() == (old or b"") + b"22"
    assert alone(target)


# -- A disk that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "options"),
    [
        ("write", {}),
        ("fsync", {}),
        ("fchmod", {}),
        ("rename", {}),
        ("link", {"exclusive": True}),
        ("rename", {"append": True}),
        ("fsync", {"append": True}),
    ],
)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_failing_call_leaves_the_old_file(
    call: str, options: dict[str, bool], error: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not options.get("exclusive"):
        target.write_bytes(b"old")
    before = {name: (target.parent / name).read_bytes() for name in os.listdir(target.parent)}
    file = AtomicFile(str(target), **options)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputOutputError) as caught:
        file.write(b"new")
        file.commit()
    monkeypatch.undo()
    file.abort()
    assert str(target) in caught.value.message
    assert bool(caught.value.hint) == (error in (errno.ENOSPC, errno.EDQUOT))
    assert {name: (target.parent / name).read_bytes() for name in os.listdir(target.parent)} == before


def test_append_that_cannot_copy_leaves_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.write_bytes(b"old")

    def fail(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", fail)
    with pytest.raises(InputOutputError):
        AtomicFile(str(target), append=True)
    assert target.read_bytes() == b"old"
    assert alone(target)


def test_the_order_of_publishing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content durable before the name, the name durable before the end."""
    calls: list[str] = []

    def watched(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            kind = "directory" if name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else ""
            calls.append(name + kind)
            return real(*args, **kwargs)

        return call

    file = AtomicFile(str(target))
    for name in ("write", "fchmod", "fsync", "rename"):
        monkeypatch.setattr(os, name, watched(name))
    file.write(b"new")
    file.commit()
    assert calls == ["write", "fchmod", "fsync", "rename", "fsyncdirectory"]


def test_write_all_goes_on_after_a_short_write(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, block: real(fd, bytes(block[:3])))
    write_all(writer, b"0123456789")
    write_all(writer, b"")
    os.close(writer)
    assert os.read(reader, 100) == b"0123456789"
    os.close(reader)


# -- What killed runs leave ------------------------------------------------------------------------------------------


@pytest.fixture
def leftover(target: Path) -> Iterator[Path]:
    """The temporary file of a process that was killed."""
    script = "import sys, os; from etlcli.io.files import AtomicFile; f = AtomicFile(sys.argv[1]); f.write(b'x'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(target)])
    (name,) = os.listdir(target.parent)
    yield target.parent / name


@pytest.mark.parametrize("options", [{}, {"append": True}, {"exclusive": True}])
def test_the_next_run_sweeps(leftover: Path, target: Path, options: dict[str, bool]) -> None:
    assert leftover.exists()
    published(target, **options)
    assert alone(target)


def test_only_leftovers_of_the_same_target_are_swept(leftover: Path, target: Path) -> None:
    published(target.parent / "targe")
    published(target.parent / "target.2")
    assert leftover.exists()


def test_a_live_run_is_not_swept(target: Path) -> None:
    live = AtomicFile(str(target))
    live.write(b"live")
    published(target, b"quick")
    live.commit()
    assert target.read_bytes() == b"live"
    assert alone(target)


def test_a_link_in_place_of_a_leftover_is_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"!")
    (target.parent / f".{target.name}.1-00000000.etl-tmp").symlink_to(tmp_path / "precious")
    published(target)
    assert (tmp_path / "precious").read_bytes() == b"!"


# -- Other outputs ---------------------------------------------------------------------------------------------------


def test_what_kind_of_output_a_path_is(target: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    for path in ("/dev/null", str(tmp_path / "fifo")):
        special = open_output(path)
        assert isinstance(special, SpecialFile)
        special.write(b"x")
        special.commit()
        special.abort()
    assert os.read(reader, 10) == b"x"
    os.close(reader)
    plain = open_output(str(target))
    assert isinstance(plain, AtomicFile)
    plain.abort()
    with pytest.raises(CannotCreateError, match="is a directory"):
        open_output(str(tmp_path))


def test_a_full_device() -> None:
    with pytest.raises(InputOutputError, match="/dev/full: No space left"):
        open_output("/dev/full").write(b"x")


# -- Files that are added to -----------------------------------------------------------------------------------------


def test_lines_are_added_and_durable(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    target.write_bytes(b"first\n")
    file = AppendFile(str(target))
    for number in range(3):
        file.append(b"%d\n" % number)
        assert len(synced) == number + 2  # and the directory
        assert target.read_bytes().endswith(b"%d\n" % number)
    file.close()
    assert target.read_bytes() == b"first\n0\n1\n2\n"


def test_a_file_is_made_only_when_there_is_something_to_add(target: Path) -> None:
    AppendFile(str(target)).close()
    assert not target.exists()
    file = AppendFile(str(target.parent / "new" / "q"))
    file.append(b"1\n")
    file.close()
    assert stat.S_IMODE((target.parent / "new" / "q").stat().st_mode) == 0o600


def test_a_line_that_was_cut_short_is_ended(target: Path) -> None:
    target.write_bytes(b'{"half":')
    file = AppendFile(str(target))
    file.append(b"{}\n")
    file.append(b"{}\n")
    file.close()
    assert target.read_bytes() == b'{"half":\n{}\n{}\n'


def test_a_position_is_where_a_line_ends(target: Path) -> None:
    """Others append meanwhile; all of what they added stays when a run is cut back to it."""
    script = (
        "import sys; from etlcli.io.files import AppendFile; f = AppendFile(sys.argv[1])\n"
        "for n in range(60): f.append(b'other ' * 200_000 + b'\\n')"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(target)])
    file = AppendFile(str(target))
    positions = []
    while other.poll() is None:
        positions.append(file.position()["size"])
    assert other.returncode == 0
    assert len(set(positions)) > 1
    line = len(b"other " * 200_000 + b"\n")
    assert all(position % line == 0 for position in positions)


@pytest.mark.parametrize("size", [0, 5, 8, 10, 15, 20, 23, 25])
def test_lines_of_others_stay_wherever_a_position_is(target: Path, size: int) -> None:
    """The file may be another by now, and the position within one of its lines."""
    target.write_bytes(b"other 1\nother 2\nmine 3\nother 4\nmi")
    file = AppendFile(str(target))
    file.cut_back({"size": size}, lambda line: line.startswith(b"other"))
    file.close()
    assert target.read_bytes() == b"other 1\nother 2\n" + b"mine 3\n" * (size >= 23) + b"other 4\n"


def test_a_line_without_an_end_is_not_before_a_position(target: Path) -> None:
    """Whoever wrote it: it is looked at for itself."""
    target.write_bytes(b"other 1\nby hand")
    file = AppendFile(str(target))
    position = file.position()
    file.append(b"mine 2\n")
    file.cut_back(position, lambda line: not line.startswith(b"mine"))
    file.close()
    assert target.read_bytes() == b"other 1\nby hand\n"


def test_a_position_waits_for_nobody(target: Path) -> None:
    target.write_bytes(b"other\n")
    with open(target) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert AppendFile(str(target)).position() == {"size": 6}


@pytest.mark.parametrize("what", ["output", "append", "checkpoints"])
def test_names_of_new_directories_are_durable(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.chdir(tmp_path)
    with ExitStack() as resources:
        if what == "output":
            published(Path("a/b/c/file"))
        elif what == "append":
            AppendFile("a/b/c/file").append(b"x\n")
        else:
            assert take_directory("a/b/c", "recipe", Overlap("fail"), resources)
    here = os.path.realpath(tmp_path)
    assert set(synced) >= {here, f"{here}/a", f"{here}/a/b", f"{here}/a/b/c"}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_what_cannot_be_added_in_full_is_taken_back(call: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendFile(str(target))
    file.append(b"first\n")
    real = os.write

    def fail(fd: int, block: bytes = b"") -> int:
        if call == "write" and len(block) > 3:
            return real(fd, block[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputOutputError, match="No space left"):
        file.append(b"second\n")
    monkeypatch.undo()
    assert target.read_bytes() == b"first\n"
    file.append(b"third\n")
    file.close()
    assert target.read_bytes() == b"first\nthird\n"


def test_two_writers_never_mix_lines(target: Path) -> None:
    script = (
        "import sys; from etlcli.io.files import AppendFile; f = AppendFile(sys.argv[1])\n"
        "for n in range(100): f.append(sys.argv[2].encode() * 5000 + b'\\n')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(target), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    lines = target.read_bytes().splitlines()
    assert sorted(lines) == [b"a" * 5000] * 100 + [b"b" * 5000] * 100


def test_where_nothing_can_be_added(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "q", Path("/proc/q")):
        with pytest.raises(CannotCreateError):
            AppendFile(str(path)).append(b"x\n")


def test_a_long_file_goes_to_the_disk_while_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretch by stretch, each once; what an appended-to file had is copied, and goes along."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, start, size, advice: asked.append((start, size)))
    target = tmp_path / "target"
    target.write_bytes(b"0" * (3 << 20))
    file = AtomicFile(str(target), append=True)
    for _ in range(20):
        file.write(b"1" * (1 << 20))
    file.commit()
    assert asked == [(0, 8 << 20), (8 << 20, 8 << 20)]
    assert target.read_bytes() == b"0" * (3 << 20) + b"1" * (20 << 20)
