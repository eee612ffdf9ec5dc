"""A cache file that is damaged, locked, on a bad disk, or in a run that dies: refused as it is, or left as it was."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlitedict
from conftest import BIN, Run, environment
from test_outputs import mounted, needs_root

from etlcli.cli.component import step
from etlcli.core.policy import ErrorBudget
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import EtlError, InputOutputError, TryLaterError
from etlcli.observe.logs import Log
from etlcli.recipe.model import OnError, Recipe
from etlcli.state import inspect, sqlite
from etlcli.state.sqlite import CacheFile
from etlcli.testing.faults import errors, kills

ABOUT = {"stage": "dedupe-cache", "key": ["/id"]}
LINES = b"".join(b'{"id":%d}\n' % number for number in range(500))


def cache(path: Path, keys: list[str]) -> None:
    file = CacheFile(str(path), ABOUT)
    file.table.put((key, {"seen": 1.5}) for key in keys)
    file.commit()
    file.close()


def keys_in(path: Path) -> list[str]:
    """As anybody with sqlitedict sees them."""
    with sqlitedict.SqliteDict(str(path), encode=orjson.dumps, decode=orjson.loads) as entries:
        return sorted(entries.keys())


def changed(path: Path, sql: str, *values: Any) -> None:
    connection = sqlite3.connect(path)
    connection.execute(sql, values)
    connection.commit()
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()


def hole(path: Path) -> None:
    """Damage inside, that only reading finds."""
    content = bytearray(path.read_bytes())
    content[8192:20480] = b"\xab" * 12288
    path.write_bytes(content)


BAD: dict[str, tuple[Callable[[Path], object], int, bytes]] = {
    "empty": (lambda path: path.write_bytes(b""), 65, b"no SQLite database"),
    "garbage": (lambda path: path.write_bytes(os.urandom(5000)), 65, b"no SQLite database"),
    "text": (lambda path: path.write_bytes(b'{"id":1}\n' * 100), 65, b"no SQLite database"),
    "header-only": (lambda path: path.write_bytes(path.read_bytes()[:100]), 65, b"cut short"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), 65, b"cut short"),
    "hole": (hole, 65, b"damaged"),
    "older-format": (lambda path: changed(path, "UPDATE etl_cache SET value = '0' WHERE name = 'version'"), 65, b"format 0"),
    "other-database": (lambda path: changed(path, "DROP TABLE etl_cache"), 65, b"no cache of etl"),
    "no-entries": (lambda path: changed(path, 'DROP TABLE "unnamed"'), 65, b"no cache of etl"),
    "pickled": (lambda path: changed(path, 'UPDATE "unnamed" SET value = ?', b"\x80\x05K\x01."), 65, b"pickled value, which is never loaded"),
    "no-json": (lambda path: changed(path, 'UPDATE "unnamed" SET value = ?', b"{"), 65, b"no JSON"),
    "null": (lambda path: changed(path, 'UPDATE "unnamed" SET value = NULL'), 65, b"no JSON"),
    "no-time": (lambda path: changed(path, 'UPDATE "unnamed" SET value = ?', b'{"at":1}'), 65, b"without the time"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), 73, b"no regular file"),
    "dangling-link": (lambda path: (path.unlink(), path.symlink_to("nowhere")), 73, b"No such file"),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_bad_cache_is_refused_and_left_as_it_is(how: str, etl: Run, tmp_path: Path) -> None:
    path = tmp_path / "seen.db"
    cache(path, [str(number) for number in range(2000)])
    spoil, code, message = BAD[how]
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    done = etl("dedupe-cache", "--key", "id", "--ttl", "1h", "--cache", path, "-o", tmp_path / "out", stdin=LINES)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert message in done.stderr and b"seen.db" in done.stderr
    assert (path.read_bytes() if path.is_file() else None) == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["seen.db"]


def test_a_name_that_means_something_to_sqlite(etl: Run, tmp_path: Path) -> None:
    for expected in (LINES, b""):
        assert etl("dedupe-cache", "--key", "id", "--cache", ":memory:", stdin=LINES, cwd=tmp_path).stdout == expected
    assert len(etl("cache", "export", ":memory:", cwd=tmp_path).stdout.splitlines()) == 500
    assert [path.name for path in tmp_path.iterdir()] == [":memory:"]


def test_several_runs_at_once_take_turns(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(LINES)
    command = [BIN / "etl", "dedupe-cache", "--key", "id", "--cache", "c", "in"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=environment()) for _ in range(4)]
    outputs = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4
    assert sorted(outputs) == [b"", b"", b"", LINES]


def test_a_run_that_waits_too_long_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.1)
    first = CacheFile(str(tmp_path / "c"), ABOUT)
    with pytest.raises(TryLaterError, match="locked"):
        CacheFile(str(tmp_path / "c"), ABOUT)
    first.close()
    CacheFile(str(tmp_path / "c"), ABOUT).close()


def test_readers_do_not_stop_a_run(tmp_path: Path) -> None:
    cache(tmp_path / "c", ["1"])
    reader = sqlite3.connect(tmp_path / "c", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute('SELECT count(*) FROM "unnamed"').fetchone() == (1,)
    cache(tmp_path / "c", ["2"])
    reader.close()
    assert keys_in(tmp_path / "c") == ["1", "2"]


def test_nothing_is_remembered_when_the_reader_goes_away(shell: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"".join(b'{"id":%d,"pad":"%s"}\n' % (n, b"x" * 500) for n in range(9000)))
    done = shell("etl dedupe-cache --key id --cache c in | head -1 >/dev/null; exit ${PIPESTATUS[0]}")
    assert done.returncode == 141
    assert keys_in(tmp_path / "c") == []


def test_nothing_is_remembered_when_nothing_is_published(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(LINES)
    (tmp_path / "schema").write_text("{}")
    recipe = job(tmp_path)
    check = step("validate", {"schema": "schema", "check": True}, OnError())
    Pipeline(recipe._replace(steps=(*recipe.steps, check)), Log("error", "json")).run()
    assert not (tmp_path / "out").exists()
    assert keys_in(tmp_path / "c") == []


def job(directory: Path) -> Recipe:
    return Recipe(
        "job",
        step("read", {"paths": ["in"]}, OnError()),
        (step("dedupe-cache", {"key": "id", "cache": "c", "dupes": "dupes"}, OnError()),),
        step("write", {"path": "out"}, OnError()),
        ErrorBudget(),
        base_dir=str(directory),
    )


def test_a_run_that_dies_loses_no_record(tmp_path: Path) -> None:
    """Killed at any call: either its output is there, or the cache does not know its keys."""
    (tmp_path / "in").write_bytes(b'{"id":1}\n{"id":2}\n{"id":1}\n')
    seen = set()
    for what in kills(lambda: Pipeline(job(tmp_path), Log("error", "json")).run()):
        published = (tmp_path / "out").exists()
        remembered = (tmp_path / "c").exists() and keys_in(tmp_path / "c") == ["1", "2"]
        assert published or not remembered, what
        seen.add((published, remembered))
        for path in tmp_path.iterdir():
            if path.name != "in":
                path.unlink()
    # The last is what a kill cannot hit: there is no call after the commit that is watched.
    assert seen == {(False, False), (True, False)}
    Pipeline(job(tmp_path), Log("error", "json")).run()
    assert keys_in(tmp_path / "c") == ["1", "2"]


def test_a_run_that_fails_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b'{"id":1}\n{"id":2}\n{"id":1}\n')
    for what, raised in errors(lambda: Pipeline(job(tmp_path), Log("error", "json")).run(), errno.EIO):
        assert raised is None or isinstance(raised, EtlError | OSError), what
        if not (tmp_path / "out").exists():
            assert not (tmp_path / "c").exists() or keys_in(tmp_path / "c") == [], what
        for path in tmp_path.iterdir():
            if path.name != "in":
                path.unlink()


def test_a_commit_that_fails_says_what_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").write_bytes(LINES)

    def fail(self: CacheFile) -> None:
        raise InputOutputError("cannot write c: disk I/O error")

    monkeypatch.setattr(CacheFile, "commit", fail)
    with pytest.raises(InputOutputError) as raised:
        Pipeline(job(tmp_path), Log("error", "json")).run()
    assert "published all the same" in raised.value.hint
    assert (tmp_path / "out").read_bytes() == LINES
    assert keys_in(tmp_path / "c") == []


def test_killed_while_it_works(tmp_path: Path) -> None:
    """With its keys in the write-ahead log already: the next run sees all of its records as new."""
    path = tmp_path / "c"
    cache(path, ["0"])
    pid = os.fork()
    if not pid:
        file = CacheFile(str(path), ABOUT)
        file.table.put((str(number), {"seen": 1.0}) for number in range(50_000))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / "c-wal").stat().st_size > 100_000
    file = CacheFile(str(path), ABOUT)
    assert len(file.table) == 1
    file.close()
    assert [item.name for item in tmp_path.iterdir()] == ["c"]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("call", [14, 17, 20])
def test_killed_while_it_commits(call: int, etl: Run, tmp_path: Path) -> None:
    """The file is half written then, and longer by its header than it is; SQLite's journal beside it mends that."""
    (tmp_path / "in").write_bytes(LINES)
    line = [BIN / "etl", "dedupe-cache", "--key", "id", "--cache", "c", "-o", "out", "in"]
    fault = f"inject=pwrite64:signal=KILL:when={call}"
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", fault, *line]
    done = subprocess.run(trace, cwd=tmp_path, env=environment(), capture_output=True, timeout=60)
    if done.returncode != -signal.SIGKILL:
        pytest.skip(f"not killed: {done.stderr.decode()}")
    published = (tmp_path / "out").exists()
    again = etl("dedupe-cache", "--key", "id", "--cache", "c", "in", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == LINES or (published and again.stdout == b"")


@needs_root
@pytest.mark.parametrize(
    ("options", "line", "code"),
    [
        ("size=300k", "etl dedupe-cache --key id --cache disk/c big -o out", 74),
        ("size=100k", "etl dedupe-cache --key x,id --cache disk/c medium -o out", 74),
        ("size=300k", "etl dedupe-cache --key id --memory 64KiB --cache disk/c big -o out", 74),
        ("size=300k", "TMPDIR=$PWD/disk etl dedupe-cache --key id --memory 64KiB big -o out", 74),
        ("size=300k", "TMPDIR=$PWD/disk etl dedupe-cache --key id --keep last big -o out --memory 1MiB", 74),
        ("size=300k", "etl dedupe-cache --key x --dupes disk/d big -o out", 74),
        ("size=4k", "etl dedupe-cache --key id --cache disk/c big -o out", 74),
        ("ro", "etl dedupe-cache --key id --cache disk/c big -o out", 73),
        ("ro", "etl dedupe-cache --key id --cache disk/sub/c big -o out", 73),
        ("size=300k", "etl dedupe-cache --key id --cache disk/c small && mount -o remount,ro disk && etl dedupe-cache --key id --cache disk/c big -o out", 73),
    ],
)  # fmt: skip
def test_full_and_read_only_disks(options: str, line: str, code: int, tmp_path: Path) -> None:
    big = b"".join(b'{"id":"%032d","x":1}\n' % number for number in range(20_000))
    (tmp_path / "big").write_bytes(big)
    (tmp_path / "medium").write_bytes(big[: len(big) // 10])
    (tmp_path / "small").write_bytes(b'{"id":0}\n')
    check = "; code=$?; ls disk > left; etl cache list --json disk/c > listed; exit $code"
    done = mounted(tmp_path, options, line + check)
    assert done.returncode == code, done.stderr
    assert b"disk" in done.stderr
    assert not (tmp_path / "out").exists()
    assert set((tmp_path / "left").read_text().split()) <= {"c"}, "nothing half done is left on the disk"
    assert len((tmp_path / "listed").read_bytes().splitlines()) <= 1


def test_sqlitedict_and_etl_take_turns(etl: Run, tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert etl("dedupe-cache", "--key", "id", "--cache", path, stdin=LINES).stdout == LINES
    with sqlitedict.SqliteDict(str(path), encode=orjson.dumps, decode=orjson.loads) as entries:
        assert len(entries) == 500
        assert set(entries["7"]) == {"seen"}
        assert abs(entries["7"]["seen"] - time.time()) < 100
        del entries["7"]
        entries.commit()
    assert etl("dedupe-cache", "--key", "id", "--cache", path, stdin=LINES).stdout == b'{"id":7}\n'


def test_a_silent_sqlitedict_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(tmp_path / "c", ["1"])
    inspection = inspect.Inspection(str(tmp_path / "c"))
    monkeypatch.setattr(inspect, "_PATIENCE", 0.1)
    monkeypatch.setattr(inspection._entries.conn, "execute", lambda *question: None)
    with pytest.raises(InputOutputError, match="no answer"):
        inspection.get("1")


def test_damage_that_ends_the_thread_of_sqlitedict(etl: Run, tmp_path: Path) -> None:
    cache(tmp_path / "c", [str(number) for number in range(2000)])
    hole(tmp_path / "c")
    for command in (["list"], ["export"], ["get"], ["prune", "--older-than", "1d"]):
        done = etl("cache", *command, tmp_path / "c", *(["1"] if command == ["get"] else []))
        assert done.returncode == 65, done.stderr
        assert b"is damaged" in done.stderr and b"Traceback" not in done.stderr
