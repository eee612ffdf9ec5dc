"""A reference that is not there, damaged or ambiguous; a command that fails, in the end or for a while; a cache on a bad disk."""

from __future__ import annotations

import pickle
import sqlite3
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Run
from test_outputs import mounted, needs_root

from etlcli.core.batch import Batch
from etlcli.core.ledger import StepCount
from etlcli.core.stage import Context
from etlcli.errors import DataError, EtlError, InputMissingError, TryLaterError, UsageError
from etlcli.io.stepfiles import StepFiles
from etlcli.stages.lookup import Lookup
from etlcli.state import database, sqlite

PARAMS = Lookup.Params


def stage(directory: Path, resources, *, memory: int = 1 << 20, **options) -> Lookup:
    context = Context(StepCount("lookup"), resources=resources, files=StepFiles('step', resources, lambda *a, **k: None), log=lambda *a, **k: None, reject=lambda rejects: None,
                      memory=memory, base_dir=str(directory))  # fmt: skip
    return Lookup(PARAMS(**options), context)


@pytest.fixture
def resources():
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "from: lookup needs a table or a command"),
        ({"from": "t", "command": ["cat"]}, "from: lookup needs a table or a command"),
        ({"from": "-"}, "from: standard input"),
        ({"from": "t", "cache": "c"}, "cache: goes with a command"),
        ({"from": "t", "ttl": "1h"}, "ttl: goes with a command"),
        ({"command": ["cat"], "ttl": 0}, "ttl: must be more than 0"),
        ({"command": ["cat"], "timeout": 0}, "timeout: must be more than 0"),
        ({"command": ["cat"], "table": "t"}, "table: goes with from"),
        ({"from": "t", "on_miss": "default"}, "default: goes with on_miss default"),
        ({"from": "t", "default": {}}, "default: goes with on_miss default"),
        ({"from": "t", "default": "[]", "on_miss": "default"}, "default: expected a JSON object"),
        ({"from": "t", "fields": ["a.b"]}, "fields: lookup adds whole fields"),
        ({"from": "t", "fields": ["a", "a=b"]}, "fields: a field is named twice"),
        ({"from": "t", "on": ["a="]}, "on: .* is not a field path"),
    ],
)
def test_options_that_do_not_go_together(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PARAMS(**{"on": "k", **options})


@pytest.mark.parametrize("memory", [1 << 20, 1])
@pytest.mark.parametrize("between", [1, 3000])
def test_a_key_twice_names_both_lines(between: int, memory: int, tmp_path: Path, resources) -> None:
    others = b"".join(b'{"k":"%d","pad":"%s"}\n' % (number, b"x" * 400) for number in range(between))
    (tmp_path / "t.ndjson").write_bytes(b'{"k":7}\n\n' + others + b'{"k":7.0,"n":2}\n')
    with pytest.raises(DataError, match=f"t.ndjson:{between + 3}: the key 7 is there twice, also on line 1"):
        stage(tmp_path, resources, memory=memory, on="k", **{"from": "t.ndjson"})


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("none", None, InputMissingError, "cannot open"),
        ("t.ndjson", b"[1]\n", DataError, "t.ndjson:1: not_object"),
        ("t.ndjson", b'{"k":1}\n{"k":"\xff"}\n', DataError, "t.ndjson:2: bad_utf8"),
        ("t.csv.gz", b"k,n\n1,2\n", DataError, "not gzip data"),
        ("t.csv.gz", b"\x1f\x8b" + b"\0" * 30, DataError, "gzip data is"),
        ("t.parquet", b"PAR1", UsageError, "no format that etl knows"),
        ("t.db", sqlite.MAGIC + b"\0" * 84, DataError, "cannot read the database"),
    ],
)
def test_a_bad_table(
    name: str, content: bytes | None, error: type[EtlError], message: str, tmp_path: Path, resources
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        stage(tmp_path, resources, on="k", **{"from": name})


def make_database(path: Path, *rows: tuple) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("create table t (k, n)")
    connection.executemany("insert into t values (?, ?)", rows)
    return connection


def asked(stage: Lookup, *lines: bytes) -> list[bytes]:
    return [line for batch in stage.apply(stage.prepare(Batch.of_lines(list(lines)))) for line in batch.lines]


def test_a_bad_database(tmp_path: Path, resources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.05)
    writer = make_database(tmp_path / "d", (1, 1), (1.0, 2), (2, b"\0"), (3, 3))
    for options, message in (({"table": "x"}, "no table"), ({"on": "x"}, "no column"), ({"fields": "x"}, "no column")):
        with pytest.raises(UsageError, match=message):
            stage(tmp_path, resources, **{"on": "k", "from": "d", **options})
    lookup = stage(tmp_path, resources, on="k", **{"from": "d"})
    assert asked(lookup, b'{"k":3}') == [b'{"k":3,"n":3}']
    with pytest.raises(DataError, match="the key 1 is there twice"):
        asked(lookup, b'{"k":1}')
    with pytest.raises(DataError, match="holds bytes"):
        asked(lookup, b'{"k":2}')
    writer.execute("begin exclusive")
    with pytest.raises(TryLaterError, match="locked"):
        asked(lookup, b'{"k":3}')


def test_a_database_is_only_read(etl: Run, tmp_path: Path) -> None:
    make_database(tmp_path / "d", (1, 1)).close()
    before = (tmp_path / "d").read_bytes()
    assert etl("lookup", "--on", "k", "--from", tmp_path / "d", stdin=b'{"k":1}\n').stdout == b'{"k":1,"n":1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["d"] and (tmp_path / "d").read_bytes() == before


def test_a_command_that_heals_is_asked_as_often_as_the_policy_says(shell: Run, tmp_path: Path) -> None:
    ask = 'sh -c \'cat >/dev/null; echo x >> tries; test $(wc -l < tries) -ge 3 || exit 1; echo "{\\"n\\":1}"\''
    done = shell(f"etl lookup --on k --attempts 3 --backoff 1ms -- {ask}", b'{"k":1}\n')
    assert (done.stdout, done.returncode) == (b'{"k":1,"n":1}\n', 0), done.stderr
    assert (tmp_path / "tries").read_bytes() == b"x\n" * 3


def test_a_miss_is_not_tried_again(shell: Run, tmp_path: Path) -> None:
    line = "etl lookup --on k --on-miss reject --attempts 5 --backoff 60s --on-error skip"
    done = shell(f"{line} -- sh -c 'tee -a asked | sed s/.*/{{}}/'", b'{"k":1}\n{"k":null}\n{"k":1}\n')
    assert (done.stdout, done.returncode) == (b"", 0), done.stderr
    assert (tmp_path / "asked").read_bytes() == b'{"k":1}\n'
    (tmp_path / "t").write_bytes(b'{"k":2}\n')
    assert shell(f"{line} --from t", b'{"k":1}\n').returncode == 0


def test_a_reject_stays_final_on_its_way_from_a_worker() -> None:
    reject = Batch.of_lines([b"{}"]).reject(0, "lookup_failed", [{"message": "no"}])
    reject.final, reject.attempts = True, 3
    copy = pickle.loads(pickle.dumps(reject))
    assert copy == reject and (copy.final, copy.attempts) == (True, 3)


def test_answers_are_forgotten_after_their_time(tmp_path: Path, resources, monkeypatch: pytest.MonkeyPatch) -> None:
    from etlcli.stages import lookup as module

    now = 1000.0
    monkeypatch.setattr(module, "time", lambda: now)
    lookup = stage(tmp_path, resources, on="k", command=["sh", "-c", "tee -a asked | sed s/.*/{}/"], ttl=10)
    for later in (0, 9, 10, 12):
        now = 1000.0 + later
        asked(lookup, b'{"k":1}')
    assert (tmp_path / "asked").read_bytes() == b'{"k":1}\n' * 2


def test_a_cache_that_is_locked_or_holds_something_else(
    tmp_path: Path, resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.05)
    options = {"on": "k", "command": ["cat"], "cache": "c"}
    first = stage(tmp_path, resources, **options)
    asked(first, b'{"k":1}')
    with pytest.raises(TryLaterError, match="locked"):
        asked(stage(tmp_path, resources, **options), b'{"k":1}')
    first.finish()
    first.commit()
    resources.close()
    for value in (b'{"seen":1}', b"7", b'{"seen":1,"found":7}', b'{"seen":1,"found":",x"}'):
        connection = sqlite3.connect(tmp_path / "c")
        connection.execute("update unnamed set value = ?", (value,))
        connection.commit()
        connection.close()
        with ExitStack() as own, pytest.raises(DataError, match="no answer of lookup"):
            asked(stage(tmp_path, own, **options), b'{"k":1}')


@needs_root
@pytest.mark.parametrize(("options", "code"), [("size=100k", 74), ("ro", 73)])
def test_a_cache_on_a_bad_disk(options: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"".join(b'{"k":"%032d"}\n' % number for number in range(5000)))
    done = mounted(tmp_path, options, "etl lookup --on k --cache disk/c in -o out -- cat")
    assert done.returncode == code and b"disk" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
