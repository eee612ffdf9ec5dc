"""Runs that read only what no run has read before, whatever becomes of the files."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from conftest import environment, run_etl
from resuming import LINES, SPLIT_ETL, Work


@pytest.fixture
def log(tmp_path: Path) -> Work:
    """A recipe that appends what is new in in/*."""
    work = Work(tmp_path)
    work.write(
        source={"uses": "read", "with": {"paths": ["in/*"]}, "incremental": True},
        steps=[],
        sink={"uses": "write", "with": {"path": "out.ndjson", "mode": "append"}},
    )
    (work.directory / "in" / "one.ndjson").write_bytes(b"".join(LINES[:10]))
    return work


def new(log: Work) -> list[bytes]:
    """What a run adds to the output."""
    before = log.output if (log.directory / "out.ndjson").exists() else b""
    done = log.run()
    assert done.returncode == 0, done.stderr
    assert log.output.startswith(before)
    return log.output[len(before) :].splitlines(keepends=True)


def killed(log: Work, checkpoint: int, part: int = 100) -> None:
    """A run in small parts, at one of its checkpoints."""
    log.write(checkpoint={"dir": "state", "every": "0s"})
    command, environ = [sys.executable, SPLIT_ETL, "run", "recipe.yaml"], {"ETL_TEST_PART": str(part)}
    environ |= {"ETL_TEST_KILL": str(checkpoint)}
    done = subprocess.run(command, cwd=log.directory, env=environment(**environ), check=False)
    assert done.returncode == -signal.SIGKILL


def test_new_files_and_new_lines(log: Work) -> None:
    one, two = log.directory / "in" / "one.ndjson", log.directory / "in" / "two.ndjson"
    assert new(log) == LINES[:10]
    assert new(log) == []
    with open(one, "ab") as file:
        file.write(b"".join(LINES[10:12]) + LINES[12][:5])  # somebody is at it
    assert new(log) == LINES[10:12]
    two.write_bytes(b"".join(LINES[20:25]))
    with open(one, "ab") as file:
        file.write(LINES[12][5:])
    assert new(log) == [LINES[12], *LINES[20:25]]
    assert new(log) == []


@pytest.mark.parametrize("whole", [0, 10])
def test_a_line_that_never_ends_is_told(log: Work, whole: int) -> None:
    """Not one that somebody is at; it may be all there is."""
    one = log.directory / "in" / "one.ndjson"
    one.write_bytes(b"".join(LINES[:whole]) + LINES[10][:-1])
    for number in range(3):
        done = log.run()
        assert (done.returncode, b"record_unfinished" in done.stderr) == (0, number > 0 or not whole)
    with one.open("ab") as file:
        file.write(b"\n" + LINES[11][:-1])
    done = log.run()
    assert (done.returncode, b"record_unfinished" in done.stderr) == (0, False)
    assert log.output == b"".join([*LINES[:whole], LINES[10]])


def test_rotated_files(log: Work) -> None:
    one, rotated = log.directory / "in" / "one.ndjson", log.directory / "in" / "one.ndjson.1"
    assert new(log) == LINES[:10]
    with open(one, "ab") as file:
        file.write(LINES[10])
    one.rename(rotated)
    one.write_bytes(LINES[11])
    done = log.run()
    assert b"input_replaced" in done.stderr
    assert log.output == b"".join([*LINES[:10], LINES[11], LINES[10]])
    assert new(log) == []


def test_a_file_that_was_cut_short(log: Work) -> None:
    one = log.directory / "in" / "one.ndjson"
    assert new(log) == LINES[:10]
    one.write_bytes(b"".join(LINES[5:8]))
    done = log.run()
    assert (done.returncode, b"input_replaced" in done.stderr) == (0, True)
    assert log.output == b"".join([*LINES[:10], *LINES[5:8]])


def test_compressed_and_csv(log: Work) -> None:
    table, packed = log.directory / "in" / "t.csv", log.directory / "in" / "p.ndjson.gz"
    table.write_text("id,k\n1,a\n2,b\n")
    packed.write_bytes(gzip.compress(b"".join(LINES[10:12])))
    assert new(log) == [*LINES[:10], *LINES[10:12], b'{"id":1,"k":"a"}\n', b'{"id":2,"k":"b"}\n']
    with open(table, "a") as file:
        file.write("3,c\n4")
    packed.write_bytes(packed.read_bytes() + gzip.compress(LINES[12]))
    assert new(log) == [LINES[12], b'{"id":3,"k":"c"}\n']
    assert new(log) == []


def test_an_incremental_run_that_is_killed(log: Work) -> None:
    log.in_parts()
    log.interrupted(signum=signal.SIGKILL)
    with open(log.directory / "in" / "00000.ndjson", "ab") as file:
        file.write(LINES[0])
    assert new(log) == LINES
    assert new(log) == LINES[:1]


def test_what_was_read_is_known_even_if_a_run_dies_at_its_beginning(log: Work) -> None:
    """And the recipe is another then."""
    assert new(log) == LINES[:10]
    (log.directory / "in" / "two.ndjson").write_bytes(LINES[10])
    killed(log, 1)
    log.write(steps=[{"uses": "filter", "with": {"expr": "id >= 0"}}])
    log.run()
    assert log.output == b"".join(LINES[:11])


def test_fresh_forgets_a_run_and_not_what_was_read(log: Work) -> None:
    assert new(log) == LINES[:10]
    (log.directory / "in" / "two.ndjson").write_bytes(LINES[10])
    assert log.run("--fresh").returncode == 0
    assert log.output == b"".join(LINES[:11])
    assert log.run("--limit", "1").returncode == 2
    assert run_etl("checkpoint", "reset", "recipe.yaml", cwd=log.directory).returncode == 0
    assert new(log) == LINES[:11]


def test_another_directory_knows_what_was_read(log: Work, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert new(log) == LINES[:10]
    (log.directory / "in" / "two.ndjson").write_bytes(LINES[10])
    done = run_etl("run", log.directory / "recipe.yaml", cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stderr
    assert log.output == b"".join(LINES[:11])
    assert new(log) == []


@pytest.mark.parametrize("here", ["above", "elsewhere"])
def test_read_from_other_directories_by_turns(log: Work, here: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file is the same by whichever name its recipe is given, and what some run leaves out is not forgotten."""
    elsewhere = log.directory.parent if here == "above" else tmp_path_factory.mktemp("elsewhere")
    names = os.path.relpath(log.directory, elsewhere), str(log.directory)
    two = log.directory / "in" / "two.ndjson"
    for number, name in enumerate([*names, *names]):
        with open(two, "ab") as file:
            file.write(LINES[10 + number])
        if number == 2:  # without the other file
            log.write(source={"uses": "read", "with": {"paths": ["in/two*"]}, "incremental": True})
        if number == 3:
            log.write(source={"uses": "read", "with": {"paths": ["in/*"]}, "incremental": True})
        done = run_etl("run", f"{name}/recipe.yaml", cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        assert b"input_" not in done.stderr
        assert log.output == b"".join(LINES[: 11 + number])
    log.write(source={"uses": "read", "with": {"paths": [str(log.directory / "in" / "*")]}, "incremental": True})
    assert new(log) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.json", b'[{"id":1},\n{"id":2}]'), ("d.json", b'[{"id":1},{"id":2}]'), ("d.yaml", b"id: 1\n---\nid: 2")],
)
def test_a_document_is_read_to_its_end(log: Work, name: str, content: bytes) -> None:
    (log.directory / "in" / "one.ndjson").unlink()
    (log.directory / "in" / name).write_bytes(content)
    assert new(log) == [b'{"id":1}\n', b'{"id":2}\n']
    assert new(log) == []


@pytest.mark.parametrize("names", [["z"], ["z", "z.1"], ["z.1", "z"], ["z", "z.1", "z.2"]])
def test_rotated_while_an_unfinished_run_had_not_come_to_it(log: Work, names: list[str]) -> None:
    """What is read of a file is what it has now, from its own beginning."""
    directory = log.directory / "in"
    for number, name in enumerate(sorted(names, reverse=True)):
        (directory / name).write_bytes(b"".join(LINES[20 + 2 * number : 22 + 2 * number]))
    old = len(new(log))
    with open(directory / "one.ndjson", "ab") as file:
        file.write(b"".join(LINES[100:200]))
    killed(log, 3)
    for name in sorted(names, reverse=True):
        (directory / name).rename(directory / (f"z.{int(name[2:]) + 1}" if name != "z" else "z.1"))
    (directory / "z").write_bytes(b"".join(LINES[40:45]))
    done = log.run()
    assert done.returncode == 0, done.stderr
    assert new(log) == []
    lines = log.output.splitlines(keepends=True)
    assert sorted(lines[old:]) == sorted([*LINES[100:200], *LINES[40:45]])


def test_small_files_that_begin_alike(log: Work) -> None:
    """What stands in for a file that is gone is another, unless so much of it is the same that it cannot be."""
    one, two = log.directory / "in" / "one.ndjson", log.directory / "in" / "two.ndjson"
    one.write_bytes(LINES[0])
    assert new(log) == LINES[:1]
    two.write_bytes(LINES[0] + LINES[1])
    one.unlink()
    assert new(log) == LINES[:2]
    two.rename(one)
    with open(one, "ab") as file:
        file.write(LINES[2])
    assert new(log) == LINES[2:3]


@pytest.mark.parametrize("paths", [["in/*"], ["in/one.ndjson.*", "in/*"]])
@pytest.mark.parametrize("checkpoint", [2, 4])
def test_rotated_while_an_unfinished_run_was_within_it(log: Work, paths: list[str], checkpoint: int) -> None:
    """Or had just read all of it."""
    one, rotated = log.directory / "in" / "one.ndjson", log.directory / "in" / "one.ndjson.1"
    rotated.write_bytes(LINES[50])
    log.write(source={"uses": "read", "with": {"paths": paths}, "incremental": True})
    assert sorted(new(log)) == sorted([*LINES[:10], LINES[50]])
    with open(one, "ab") as file:
        file.write(b"".join(LINES[10:20]))
    killed(log, checkpoint)
    rotated.rename(log.directory / "in" / "one.ndjson.2")
    one.rename(rotated)
    one.write_bytes(LINES[30])
    with open(rotated, "ab") as file:
        file.write(LINES[20])
    assert sorted([*new(log), *new(log)]) == sorted([*LINES[10:21], LINES[30]])
    assert new(log) == []


def test_a_file_that_an_unfinished_run_was_within_is_missed(log: Work) -> None:
    """But not by a run that begins again."""
    killed(log, 2)
    (log.directory / "in" / "one.ndjson").rename(log.directory / "rotated")
    (log.directory / "in" / "two.ndjson").write_bytes(LINES[20])
    for content in (None, LINES[30]):
        if content:
            (log.directory / "in" / "one.ndjson").write_bytes(content)
        done = log.run()
        assert (done.returncode, b"in/one.ndjson, which the run was within" in done.stderr) == (78, True)
    done = log.run("--fresh")
    assert (done.returncode, log.output) == (0, LINES[30] + LINES[20])


@pytest.mark.parametrize("name", ["recipe.yaml", "../recipe.yaml"])
def test_what_a_glob_has_found_may_be_gone(log: Work, name: str) -> None:
    """Not so what the recipe names."""
    two, elsewhere = log.directory / "in" / "two.ndjson", log.directory / "elsewhere"
    elsewhere.mkdir()
    cwd = elsewhere if name.startswith("..") else log.directory
    for paths, code in (["in/*", "in/two.ndjson"], 66), (["in/*"], 0):
        log.write(source={"uses": "read", "with": {"paths": paths}, "incremental": True})
        two.write_bytes(LINES[20])
        killed(log, 2)
        two.unlink()
        done = run_etl("run", name, cwd=cwd)
        assert (done.returncode, b"in/two.ndjson: No such file" in done.stderr) == (code, code == 66), done.stderr
        assert run_etl("checkpoint", "reset", "recipe.yaml", cwd=log.directory).returncode == 0
    assert log.output == b"".join(LINES[:10])


def test_each_file_once(log: Work) -> None:
    """By whichever of its names."""
    os.link(log.directory / "in" / "one.ndjson", log.directory / "in" / "link")
    log.write(source={"uses": "read", "with": {"paths": ["in/one.ndjson", "in/*"]}, "incremental": True})
    assert new(log) == LINES[:10]
    assert new(log) == []


def test_a_file_that_did_not_change_is_known_by_its_name(log: Work) -> None:
    """However long that is ago; a copy may have taken its place then."""
    one = log.directory / "in" / "one.ndjson"
    assert new(log) == LINES[:10]
    for _ in range(4):
        assert new(log) == []
    one.rename(log.directory / "away")
    one.write_bytes(b"".join(LINES[:11]))
    assert new(log) == [LINES[10]]


def test_away_for_a_run(log: Work) -> None:
    one, two = log.directory / "in" / "one.ndjson", log.directory / "in" / "two.ndjson"
    two.write_bytes(LINES[20])
    assert new(log) == [*LINES[:10], LINES[20]]
    one.rename(log.directory / "away")
    assert new(log) == []
    (log.directory / "away").rename(one)
    assert new(log) == []


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_row_that_is_only_begun_is_left_for_the_next_run(log: Work, name: str) -> None:
    table = log.directory / "in" / name
    log.write(source={"uses": "read", "with": {"paths": ["in/t*"]}, "incremental": True, "on_error": {"then": "skip"}})
    pieces = [b'id,"a\n', b'b"\n1,x\n2,"y\n', b"", b'y"\n3,"z', b'"\n']
    lines = [[], [b'{"id":1,"a\\nb":"x"}\n'], [], [b'{"id":2,"a\\nb":"y\\ny"}\n'], [b'{"id":3,"a\\nb":"z"}\n']]
    for piece, expected, unfinished in zip(pieces, lines, [True, True, False, ".gz" in name, False], strict=True):
        with table.open("ab") as file:
            file.write(gzip.compress(piece) if piece and name.endswith("gz") else piece)
        before = log.output if (log.directory / "out.ndjson").exists() else b""
        done = log.run()
        assert (done.returncode, b"record_unfinished" in done.stderr) == (0, unfinished), done.stderr
        assert log.output[len(before) :].splitlines(keepends=True) == expected


def test_equal_files_one_of_which_an_unfinished_run_was_within(log: Work) -> None:
    """Nobody can tell that the other is not it, but the other was read itself."""
    content = b"".join(LINES)
    one, two = log.directory / "in" / "one.ndjson", log.directory / "in" / "two.ndjson"
    one.write_bytes(content)
    two.write_bytes(content)
    killed(log, 4, part=60_000)
    two.unlink()
    done = log.run()
    assert (done.returncode, b"in/two.ndjson, which the run was within" in done.stderr) == (78, True)


def test_what_was_read_to_its_end_may_go(log: Work) -> None:
    """Also if nothing of it was new when the run was gone on with."""
    for name in ("a.csv", "b.csv", "c.csv"):
        (log.directory / "in" / name).write_text(f"id\n{name}\n")
    killed(log, 2)
    killed(log, 1)
    (log.directory / "in" / "a.csv").unlink()
    assert new(log)[:3] == [b'{"id":"a.csv"}\n', b'{"id":"b.csv"}\n', b'{"id":"c.csv"}\n']


def test_what_a_run_was_within_and_was_changed_is_refused(log: Work) -> None:
    one = log.directory / "in" / "one.ndjson"
    one.write_bytes(b"".join(LINES))
    killed(log, 2, part=60_000)
    with one.open("r+b") as file:
        file.seek(70_000)
        file.write(b"x")
    done = log.run()
    assert (done.returncode, b"in/one.ndjson was changed since it was read" in done.stderr) == (78, True)


def test_what_is_added_meanwhile_is_for_the_next_run(log: Work) -> None:
    killed(log, 2)
    with (log.directory / "in" / "one.ndjson").open("ab") as file:
        file.write(LINES[10])
    assert new(log) == LINES[:10]
    assert new(log) == [LINES[10]]


def test_lines_that_were_read_to_their_end_may_go(log: Work) -> None:
    """The run has ended within them, and has nothing more to read there."""
    (log.directory / "in" / "two.ndjson").write_bytes(LINES[20])
    killed(log, 2, part=10_000)
    (log.directory / "in" / "one.ndjson").unlink()
    assert new(log) == [*LINES[:10], LINES[20]]


def test_a_log_is_copied_and_cut_while_an_unfinished_run_was_within_it(log: Work) -> None:
    one = log.directory / "in" / "one.ndjson"
    one.write_bytes(b"".join(LINES))
    killed(log, 2, part=60_000)
    shutil.copy(one, f"{one}.1")
    os.truncate(one, 0)
    assert new(log) == LINES


def test_a_file_that_was_cut_short_is_refused(log: Work) -> None:
    """What it has by now was read, and may be another's."""
    one = log.directory / "in" / "one.ndjson"
    one.write_bytes(b"".join(LINES))
    assert new(log) == LINES
    os.truncate(one, 70_000)
    for options in ([], ["--fresh"]):
        done = log.run(*options)
        assert (done.returncode, b"in/one.ndjson is shorter than it was" in done.stderr) == (78, True)
    one.rename(log.directory / "in" / "other")
    assert new(log) == []  # of the inputs that the refused run had found
    assert new(log) == LINES[: b"".join(LINES)[:70_000].count(b"\n")]


def test_a_warning_comes_once(log: Work) -> None:
    one = log.directory / "in" / "one.ndjson"
    assert new(log) == LINES[:10]
    one.write_bytes(LINES[20])
    assert [b"input_replaced" in log.run().stderr for _ in range(4)] == [True, False, False, False]


def test_a_file_that_was_deleted_and_made_again(log: Work) -> None:
    """As it was, while another has its inode."""
    one, two = log.directory / "in" / "one.ndjson", log.directory / "in" / "two.ndjson"
    assert new(log) == LINES[:10]
    one.rename(two)
    two.write_bytes(LINES[20])
    assert new(log) == [LINES[20]]
    one.write_bytes(b"".join(LINES[:10]))
    assert new(log) == LINES[:10]


class Days:
    """Files that grow, are rotated, renamed and copied, at any time: before a run, while it goes on, after it was killed.
    What is done to them is shell commands, which also tell which records there are: those of `chunks` that have moved to
    `done`."""

    PATHS = (
        ["in/*"],
        ["in/app*", "in/*.ndjson", "in/*"],
        ["in/x*", "in/app.log*", "in/[p-t]*"],
        ["in/*.[0-9]*", "in/*"],
    )

    def __init__(self, work: Work, seed: int) -> None:
        self.work = work
        self.random = Random(seed)
        self.count = 0
        self.rotations = self.renamed = 0
        self.large: int | None = None
        for name in ("chunks", "done", "moves"):
            (work.directory / name).mkdir()
        (work.directory / "in" / "one.ndjson").unlink()
        work.write(
            source={"uses": "read", "with": {"paths": self.random.choice(self.PATHS)}, "incremental": True},
            steps=[],
            sink={"uses": "write", "with": {"path": "out.ndjson", "mode": "append"}},
            checkpoint={"dir": "state", "every": "0s"},
        )
        (work.directory / "in" / "t.csv").write_text("id,text\n")
        for name in ("app.log.1", "app.log", "x0.ndjson", "t.csv"):
            self.do(self.append(name))

    def do(self, command: str) -> None:
        subprocess.run(["sh", "-ec", command], cwd=self.work.directory, check=True)

    def append(self, name: str) -> str:
        size, first = self.random.choice([1, 1, 2, 5, 30, 800]), self.count
        self.count += size
        ids = range(first, self.count)
        if name.endswith(".csv"):
            lines = [f"{number},{'x' * 90}\n" for number in ids]
        else:
            lines = [f'{{"id":{number},"text":"{"x" * 90}"}}\n' for number in ids]
        content = "".join(lines).encode()
        chunk = self.work.directory / "chunks" / f"{first}"
        chunk.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        (self.work.directory / "chunks" / f"{first}.ids").write_text("".join(f"{number}\n" for number in ids))
        return f"cat chunks/{first} >> in/{name}; mv chunks/{first}.ids done/"

    def rotate(self, name: str, *, copied: bool = False) -> str:
        self.rotations += 1
        last = f"mv in/{name} in/{name}.1"
        if copied:
            last = f"cp in/{name} in/{name}.1; : > in/{name}"
        older = "; ".join(
            f"[ ! -e in/{name}.{number} ] || mv in/{name}.{number} in/{name}.{number + 1}"
            for number in range(self.rotations, 0, -1)
        )
        again = self.append(name) if self.random.random() < 0.7 else ":"
        return f"{older}; [ ! -e in/{name} ] || {{ {last}; }}; {again}"

    def move(self) -> str:
        """Anything that may happen at any time."""
        kind = self.random.choice(["app.log", "app.log", "rotate", "rotate", "x", "t.csv", "p.ndjson.gz", "rename"])
        files = sorted(path.name for path in (self.work.directory / "in").glob("x*"))
        if kind == "rotate":
            return self.rotate("app.log")
        if kind == "x":
            return self.append(f"x{self.random.randrange(6)}.ndjson")
        if kind == "rename" and files:
            name, self.renamed = self.random.choice(files), self.renamed + 1
            return f"[ ! -e in/{name} ] || mv in/{name} in/x{self.random.randrange(9)}-{self.renamed}.ndjson"
        if kind == "rename":
            return ":"
        return self.append(kind)

    def moves(self, most: int) -> None:
        for _ in range(self.random.randint(0, most)):
            self.do(self.move())

    def run(self) -> None:
        """Until it is finished, with what happens meanwhile."""
        killed = self.random.random() < 0.7
        while True:
            for script in (self.work.directory / "moves").iterdir():
                script.unlink()
            for number in range(1, 8):
                if self.random.random() < 0.2:
                    (self.work.directory / "moves" / str(number)).write_text(self.move())
            environ = {"ETL_TEST_PART": "8000", "ETL_TEST_OPEN": "moves"}
            if self.random.random() < 0.4:
                environ["ETL_TEST_WORKERS"] = "2"
            if killed:
                environ["ETL_TEST_KILL"] = str(self.random.randint(1, 12))
            command = [sys.executable, SPLIT_ETL, "run", "recipe.yaml"]
            done = subprocess.run(
                command, cwd=self.work.directory, env=environment(**environ), capture_output=True, check=False
            )
            if done.returncode == 0:
                return
            assert (done.returncode, killed) == (-signal.SIGKILL, True), done.stderr
            killed = self.random.random() < 0.3
            if self.random.random() < 0.2:
                self.copytruncate()
            self.moves(3)

    def day(self) -> None:
        self.moves(4)
        if self.random.random() < 0.3:
            done = self.work.run()
            assert done.returncode == 0, done.stderr
            self.large = self.large_log()
            if self.random.random() < 0.5:
                self.copytruncate()
            read = sorted((self.work.directory / "in").glob("x*"))
            for path in read[1:]:
                if self.random.random() < 0.4:
                    path.unlink()
        self.run()

    def large_log(self) -> int | None:
        """The inode of app.log, if there is so much of it that a copy is known by it."""
        with suppress(FileNotFoundError):
            status = (self.work.directory / "in" / "app.log").stat()
            return status.st_ino if status.st_size > 64 << 10 else None
        return None

    def copytruncate(self) -> None:
        if self.large and self.large == self.large_log():
            self.large = None
            self.do(self.rotate("app.log", copied=True))

    def missing_and_doubled(self) -> tuple[list[int], list[int]]:
        written = [int(line) for path in (self.work.directory / "done").iterdir() for line in path.open()]
        found = [json.loads(line)["id"] for line in self.work.output.splitlines()]
        return sorted(set(written) ^ set(found)), [number for number, count in Counter(found).items() if count > 1]


@pytest.mark.parametrize("seed", range(int(os.environ.get("ETL_TEST_SEEDS", "12"))))
def test_each_record_once_whatever_becomes_of_the_files(tmp_path: Path, seed: int) -> None:
    days = Days(Work(tmp_path), seed)
    for _ in range(6):
        days.day()
    for _ in range(2):
        done = days.work.run()
        assert done.returncode == 0, done.stderr
    assert days.missing_and_doubled() == ([], [])
