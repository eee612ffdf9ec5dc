"""Which file is which: what counts is its name, its inode, or so much of its beginning that no other has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etlcli.connectors.known import Entry, KnownFiles
from etlcli.io.identity import identity_of

SMALL = b"small\n" * 10
LARGE = b"".join(b"%d\n" % number for number in range(20_000))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def entry_of(path: str, age: int = 1) -> Entry:
    with opened(path) as fd:
        return Entry(path, identity_of(fd), age=age)


def found(known: KnownFiles, path: str) -> str | None:
    """By which name that file was known."""
    with opened(path) as fd:
        entry = known.find(path, identity_of(fd), fd)
    return entry and entry.path


def rewritten(path: str, content: bytes) -> None:
    """By another file, while the old one keeps its inode."""
    os.rename(path, f"{path}.{len(os.listdir())}")
    Path(path).write_bytes(content)


@pytest.mark.parametrize("content", [SMALL, LARGE])
@pytest.mark.parametrize("age", [0, 1, 2])
def test_by_its_name(content: bytes, age: int) -> None:
    """If the last run has found it; but what can be no other is always found."""
    Path("a").write_bytes(content)
    known = KnownFiles("", [entry_of("a", age)])
    assert [entry.path for entry in known.named("a")] == ["a"] * (age < 2)
    rewritten("a", content)
    assert found(known, "a") == ("a" if age < 2 or content == LARGE else None)
    rewritten("a", content + b"more\n")
    assert found(known, "a") == ("a" if age < 2 or content == LARGE else None)
    rewritten("a", b"other " + content)
    assert found(known, "a") is None
    rewritten("a", content[:-1])
    assert found(known, "a") is None


@pytest.mark.parametrize("content", [SMALL, LARGE])
@pytest.mark.parametrize("age", [1, 5])
def test_by_its_inode(content: bytes, age: int) -> None:
    Path("a").write_bytes(content)
    known = KnownFiles("", [entry_of("a", age)])
    os.rename("a", "b")
    Path("a").write_bytes(b"other")
    assert (found(known, "b"), found(known, "a")) == ("a", None)
    with open("b", "ab") as file:
        file.write(b"more\n")
    assert found(known, "b") == "a"
    with open("b", "r+b") as file:
        file.write(b"other")
    assert found(known, "b") is None


def test_an_inode_that_is_used_again() -> None:
    """For a file of the same size is no sign, even if all of it is the same: it may be another that says the same."""
    Path("a").write_bytes(SMALL)
    known = KnownFiles("", [entry_of("a")])
    os.rename("a", "b")
    os.utime("b", ns=(1, 1))
    assert found(known, "b") is None


@pytest.mark.parametrize("age", [1, 5])
def test_by_its_beginning(age: int) -> None:
    Path("a").write_bytes(LARGE)
    known = KnownFiles("", [entry_of("a", age)])
    shutil.copy("a", "b")
    assert found(known, "b") is None  # a copy beside it is another file
    os.truncate("a", 0)
    assert found(known, "b") == "a"
    with open("b", "ab") as file:
        file.write(b"more\n")
    assert found(known, "b") == "a"
    os.unlink("a")
    assert found(known, "b") == "a"
    os.truncate("b", len(LARGE) - 1)
    assert found(known, "b") is None


def test_by_its_beginning_and_its_end() -> None:
    """Today's export may begin as yesterday's, which is gone."""
    Path("a").write_bytes(LARGE)
    known = KnownFiles("", [entry_of("a")])
    os.rename("a", "b")
    for name in ("b", "c"):  # by its inode, and by another
        Path(name).write_bytes(LARGE[:80_000] + b"other\n" + LARGE[80_000:])
        assert found(known, name) is None
        Path(name).write_bytes(LARGE + b"more\n")
        assert found(known, name) == "a"


def test_small_files_that_are_equal() -> None:
    Path("a").write_bytes(SMALL)
    known = KnownFiles("", [entry_of("a")])
    shutil.copy("a", "b")
    os.unlink("a")
    assert found(known, "b") is None


def test_each_of_equal_files_is_itself() -> None:
    for name in "ab":
        Path(name).write_bytes(LARGE)
    known = KnownFiles("", [entry_of("a"), entry_of("b")])
    assert (found(known, "b"), found(known, "a")) == ("b", "a")
    os.rename("a", "c")
    os.rename("b", "a")
    assert (found(known, "a"), found(known, "c")) == ("b", "a")


def test_of_an_empty_file_nothing_is_known() -> None:
    Path("a").write_bytes(b"")
    assert list(KnownFiles("", [entry_of("a")])) == []


def test_who_is_removed_is_not_found() -> None:
    Path("a").write_bytes(SMALL)
    known = KnownFiles("", [entry := entry_of("a")])
    assert entry in known
    known.remove(entry)
    assert (found(known, "a"), list(known), entry in known) == (None, [], False)


def test_a_pipe_is_not_opened(here: Path) -> None:
    """Whoever waits for its reader would take that for one."""
    Path("a").write_bytes(SMALL)
    known = KnownFiles("", [entry := entry_of("a")])
    os.unlink("a")
    os.mkfifo("a")
    with subprocess.Popen(["sh", "-c", "printf 'for its reader' > a"]) as writer:
        for _ in range(100):  # until the other is at it
            assert not known.is_at(entry, "a")
            time.sleep(0.005)
        with open("a", "rb") as reader:
            assert reader.read() == b"for its reader"
    assert writer.returncode == 0


def test_what_is_not_there_is_known_for_two_runs() -> None:
    Path("a").write_bytes(SMALL)
    known = KnownFiles("", [entry_of("a", 0)])
    os.rename("a", "away")
    ages = []
    while list(known):
        known = known.older(["b"])
        ages += [entry.age for entry in known]
    assert ages == [1, 2]


def test_what_is_there_is_known_for_ever() -> None:
    """As long as it is the same file."""
    Path("a").write_bytes(SMALL)
    known = KnownFiles("", [entry_of("a", 0)])
    os.rename("a", "b")
    for _ in range(5):
        known = known.older(["b"])
    assert [entry.age for entry in known] == [5]
    Path("b").write_bytes(b"other")
    assert list(known.older(["b"])) == []


@pytest.mark.parametrize("age", [0, 2])
def test_what_a_run_leaves_out_grows_no_older(age: int) -> None:
    Path("a").write_bytes(SMALL)
    known = KnownFiles("", [entry_of("a", age)])
    for _ in range(5):
        known = known.older(["b"])
    assert [entry.age for entry in known] == [age]
    assert [entry.age for entry in known.older(["a", "b"])] == [age + 1]
