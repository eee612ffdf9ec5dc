"""The sql sink, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import xxhash
from conftest import environment, run_etl
from postgres import binaries, cluster

SPLIT_ETL = Path(__file__).parent / "split_etl.py"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if binaries() is None:
        pytest.skip("needs PostgreSQL")
    with cluster() as url:
        yield url


class Database:
    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)

    def __call__(self, statement: str) -> list[Any]:
        with self._engine.begin() as connection:
            result = connection.execute(sqlalchemy.text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []

    def connection(self) -> sqlalchemy.Connection:
        return self._engine.connect()

    def load(self, *lines: Any, table: str = "t", args: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
        stdin = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        return run_etl("sql", "--url", self.url, "--table", table, *args, stdin=stdin)


@pytest.fixture
def server(postgres: str) -> Iterator[Database]:
    database = Database(postgres)
    yield database
    database("DROP SCHEMA public CASCADE")
    database("CREATE SCHEMA public")


@pytest.fixture(params=["sqlite", "postgres"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return Database(f"sqlite:///{tmp_path}/t.db")
    server: Database = request.getfixturevalue("server")
    return server


def test_a_new_table(db: Database) -> None:
    done = db.load(
        {"id": 1, "x": 1.5, "s": "é\n'\"", "b": True, "l": [1, {"a": 2}], "n": None, "m": 1, "%d": 9007199254740993},
        {"id": 2, "x": 3, "s": "", "b": False, "l": None, "n": None, "m": "text", "%d": 1},
        args=("--create",),
    )
    assert done.returncode == 0, done.stderr
    rows = db('SELECT id, x, s, b, l, n, m, "%d" FROM t ORDER BY id')
    assert rows == [
        (1, 1.5, "é\n'\"", True, '[1,{"a":2}]', None, "1", 9007199254740993),
        (2, 3.0, "", False, None, None, "text", 1),
    ]
    assert db.load({"id": 3}).returncode == 0
    assert db("SELECT id, x FROM t WHERE id = 3") == [(3, None)]


def test_defaults_and_constraints(db: Database) -> None:
    db("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER NOT NULL DEFAULT 7, c VARCHAR(3) CHECK (c <> 'no'))")
    records = [{"id": number, "c": "no" if number in (3, 57) else "yes"} for number in range(100)]
    done = db.load(
        *records, {"id": 5}, {"id": 200, "n": None}, {"id": 201, "other": 1}, {}, args=("--on-error", "skip", "--stats")
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stderr.splitlines()[-1])["steps"][-1]
    good = 98 + (db.url.startswith("sqlite"))  # there an empty record makes a row of its own
    assert (counts["out"], counts["rejected"]) == (good, {"sink_refused": 104 - good})
    assert b"the table has no column 'other'" in done.stderr
    assert db("SELECT count(*), sum(n) FROM t") == [(good, 7 * good)]
    assert db.load({"id": 5, "n": 1}).returncode == 1


def test_many_are_refused(db: Database) -> None:
    """Each alone, in a transaction that takes no more of the server with each of them."""
    db("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    records = [{"id": number // 2} for number in range(1600)]
    done = db.load(*records, args=("--on-error", "skip", "--stats"))
    assert done.returncode == 0, done.stderr[-500:]
    assert json.loads(done.stderr.splitlines()[-1])["steps"][-1]["rejected"] == {"sink_refused": 800}
    assert db("SELECT count(*), min(id), max(id) FROM t") == [(800, 0, 799)]


def test_upsert(db: Database) -> None:
    upsert = ("--create", "--mode", "upsert", "--key", "k")
    assert db.load({"k": "a", "n": 1}, {"k": "b", "n": 2}, {"k": "a", "n": 3}, args=upsert).returncode == 0
    assert db.load({"k": "b", "n": 9}, {"k": "c", "n": 4}, {"k": "c"}, args=upsert).returncode == 0
    assert db("SELECT k, n FROM t ORDER BY k") == [("a", 3), ("b", 9), ("c", 4)]
    assert db.load({"k": 1}, args=("--mode", "upsert")).returncode == 2


def test_all_or_nothing(db: Database) -> None:
    """A run without checkpoints is one transaction."""
    assert db.load({"id": 1}, args=("--create",)).returncode == 0
    assert db.load({"id": 2}, b"no record").returncode == 1
    assert db.load({"id": 2}, {"id": 3, "x": 1}).returncode == 1
    assert db("SELECT id FROM t") == [(1,)]


def test_values_a_database_cannot_hold(db: Database) -> None:
    db("CREATE TABLE t (id BIGINT, s TEXT)")
    done = db.load(
        b'{"id":123456789012345678901234567890,"s":"x"}', {"id": 1, "s": "good"}, args=("--on-error", "skip")
    )
    assert done.returncode == 0, done.stderr
    assert db("SELECT id, s FROM t") == [(1, "good")]


def test_errors_say_what_to_do(tmp_path: Path, postgres: str) -> None:
    for url, code, said in [
        (f"sqlite:///{tmp_path}/t.db", 2, b"--create makes it"),
        ("nothing", 2, b"for example sqlite:///file.db"),
        ("oracle-of-delphi://x", 2, b"for example sqlite:///file.db"),
        (f"sqlite:///{tmp_path}/none/t.db", 73, b"unable to open"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/x", 69, b"connection"),
        (postgres, 2, b"--create makes it"),
    ]:
        done = run_etl("sql", "--url", url, "--table", "nowhere", stdin=b'{"a":1}\n')
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert b"secret" not in done.stderr and b"Traceback" not in done.stderr
    code = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.argv[1:] = ['sql', '--url', 'sqlite:///x', '--table', 't']\n"
        "from etlcli.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, env=environment()
    )
    assert (done.returncode, b"pip install 'etlcli[sql]'" in done.stderr) == (2, True)


def test_a_database_that_is_being_written(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/t.db")
    db("CREATE TABLE t (id INTEGER)")
    engine = sqlalchemy.create_engine(db.url)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        done = db.load({"id": 1})
    assert (done.returncode, b"locked" in done.stderr) == (75, True)


# -- exactly once -----------------------------------------------------------------------------------------------------

RECORDS = [{"id": number, "k": number % 5, "s": "x" * (number % 50)} for number in range(400)]


class Nightly:
    """A recipe with checkpoints that fills a table, of which the database refuses every tenth record."""

    def __init__(self, db: Database, directory: Path) -> None:
        self.db = db
        self.directory = directory
        db("CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, s TEXT, CHECK (id % 10 <> 3))")
        (directory / "in.ndjson").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
        self.recipe: dict[str, Any] = {
            "version": 1,
            "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
            "steps": [{"uses": "filter", "with": {"expr": "k != 4"}}],
            "sink": {"uses": "sql", "with": {"url": db.url, "table": "t"}, "on_error": {"then": "quarantine"}},
            "errors": {"quarantine": "aside.ndjson"},
            "checkpoint": {"dir": "state", "every": "0s"},
        }
        self.write()

    def write(self, **changes: Any) -> None:
        self.recipe |= changes
        (self.directory / "recipe.yaml").write_text(json.dumps(self.recipe))

    def write_through(self, *command: str, **options: Any) -> None:
        """A recipe that puts what a command gives into a table of its own."""
        step = {"uses": "retry-wrap", "with": {"command": list(command), **options}}
        sink = {**self.recipe["sink"], "with": {"url": self.db.url, "table": "other", "create": True}}
        self.write(steps=[step], sink=sink)

    def run(self, **environ: str) -> tuple[int, bytes]:
        """How it ended, and what it said."""
        process = self.start(**environ)
        _, stderr = process.communicate(timeout=60)
        return process.returncode, stderr

    def start(self, stdin: int = subprocess.DEVNULL, **environ: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SPLIT_ETL), "run", "recipe.yaml", "--stats", "--workers", "2"]
        env = environment(**environ)
        return subprocess.Popen(command, cwd=self.directory, env=env, stdin=stdin, stderr=subprocess.PIPE)

    def check(self, stderr: bytes) -> None:
        expected = [record["id"] for record in RECORDS if record["k"] != 4 and record["id"] % 10 != 3]
        assert [id for (id,) in self.db("SELECT id FROM t ORDER BY id")] == expected
        counts = json.loads(stderr.splitlines()[-1])["steps"][-1]
        assert (counts["in"], counts["out"], counts["rejected"]) == (320, 280, {"sink_refused": 40})
        lines = (self.directory / "aside.ndjson").read_text().splitlines()
        aside = [json.loads(json.loads(line)["raw"])["id"] for line in lines]
        assert aside == [id for id in range(400) if id % 10 == 3]
        assert self.db("SELECT * FROM etl_checkpoint") == []


@pytest.fixture
def nightly(db: Database, tmp_path: Path) -> Nightly:
    return Nightly(db, tmp_path)


def test_P3_killed_after_any_checkpoint(nightly: Nightly) -> None:
    kill = 1
    while True:
        code, stderr = nightly.run(ETL_TEST_KILL=str(kill))
        if code == 0:
            break
        assert code == -signal.SIGKILL, stderr
        kill += 7
    nightly.check(stderr)


def test_who_waits_for_records_keeps_nobody_from_writing(nightly: Nightly) -> None:
    nightly.write(source={"uses": "read", "with": {"paths": ["-"]}})
    nightly.db("CREATE TABLE other (id INTEGER)")
    process = nightly.start(stdin=subprocess.PIPE)
    wait_for(lambda: any(nightly.directory.glob("state/checkpoint-*.json")))
    nightly.db("INSERT INTO other VALUES (1)")
    _, stderr = process.communicate((nightly.directory / "in.ndjson").read_bytes(), timeout=60)
    assert process.returncode == 0, stderr
    nightly.check(stderr)


def test_killed_before_its_first_checkpoint(nightly: Nightly) -> None:
    """Nobody knows that run, so it must have left nothing."""
    code, stderr = nightly.run(ETL_TEST_DIE="1 early")
    assert code == -signal.SIGKILL, stderr
    code, stderr = nightly.run()
    assert code == 0, stderr
    nightly.check(stderr)


def test_P3_the_commit_of_a_process_that_was_killed_comes_late(nightly: Nightly) -> None:
    """The server goes on with it while the next process begins, which must wait to see what is in the table."""
    assert nightly.run(ETL_TEST_KILL="1")[0] == -signal.SIGKILL
    (manifest,) = (nightly.directory / "state").glob("checkpoint-*.json")
    sent = [record for record in RECORDS if record["k"] != 4]
    refused = {number: "refused" for number, record in enumerate(sent) if record["id"] % 10 == 3}
    mark = {
        "run": json.loads(manifest.read_text().splitlines()[0])["run"],
        "step": "sql",
        "since": 0,
        "received": len(sent),
        "refused": json.dumps(refused),
        "digest": xxhash.xxh3_128_hexdigest("".join(json.dumps(record) + "\n" for record in sent).encode()),
    }
    with nightly.db.connection() as late:
        there = [record for number, record in enumerate(sent) if number not in refused]
        late.execute(sqlalchemy.text("INSERT INTO t VALUES (:id, :k, :s)"), there)
        statement = "INSERT INTO etl_checkpoint VALUES (:run, :step, :since, :received, :refused, :digest)"
        late.execute(sqlalchemy.text(statement), mark)
        process = nightly.start()
        time.sleep(1)  # by then it waits
        late.commit()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    nightly.check(stderr)


@pytest.mark.parametrize("end", ["TERM", "TERM TERM", "timeout"])
def test_a_server_that_does_not_answer(server: Database, tmp_path: Path, end: str) -> None:
    """It waits for a lock: the run ends all the same, and another puts in what is missing."""
    nightly = Nightly(server, tmp_path)
    if end == "timeout":
        nightly.write(runtime={"timeout": "6s"})
    with server.connection() as other:
        other.exec_driver_sql("LOCK TABLE t IN SHARE MODE")
        process = nightly.start(ETL_TEST_WAIT="1" if end != "TERM TERM" else "5")
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted"
        wait_for(lambda: bool(server(waits)))
        for _ in end.split() if end != "timeout" else ():
            process.terminate()
            time.sleep(0.5)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == (75 if end == "timeout" else -signal.SIGTERM), stderr
        other.rollback()
    nightly.write(runtime={})
    code, stderr = nightly.run()
    assert code == 0, stderr
    nightly.check(stderr)


def test_P3_killed_between_the_transaction_and_the_checkpoint(nightly: Nightly, request: pytest.FixtureRequest) -> None:
    """The table is ahead of the manifest then."""
    generator = random.Random(3)
    stderr, kills, wanted = b"", 0, 60 if request.config.getoption("--faults") else 6
    while kills < wanted:
        process = nightly.start()
        wait_for((nightly.directory / "state" / "lock").exists)
        time.sleep(generator.uniform(0.15, 0.5))
        process.kill()
        _, stderr = process.communicate(timeout=60)
        kills += 1
        if process.returncode == 0:
            break
    process = nightly.start() if process.returncode else process
    if process.returncode is None:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    nightly.check(stderr)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_relative_databases_lie_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    recipe = {
        "version": 1,
        "source": {"uses": "read"},
        "sink": {"uses": "sql", "with": {"url": "sqlite:///t.db", "table": "t", "create": True}},
    }
    (tmp_path / "sub" / "recipe.yaml").write_text(json.dumps(recipe))
    assert run_etl("run", "sub/recipe.yaml", stdin=b'{"a":1}\n', cwd=tmp_path).returncode == 0
    assert Database(f"sqlite:///{tmp_path}/sub/t.db")("SELECT a FROM t") == [(1,)]


def test_P3_the_table_is_ahead_twice(db: Database, tmp_path: Path) -> None:
    """Killed when the table has a transaction that no manifest knows, gone on with, and killed before it has caught up."""
    nightly = Nightly(db, tmp_path)
    for places in ("5 early", "1 late", "4 early", "2 late", "3 early", ""):
        code, stderr = nightly.run(ETL_TEST_DIE=places, ETL_TEST_PART="900")
        if not places:
            assert code == 0, stderr
    nightly.check(stderr)


def test_other_records_the_second_time_are_noticed(tmp_path: Path) -> None:
    """By a digest: by their number alone the wrong ones would be passed over."""
    db = Database(f"sqlite:///{tmp_path}/t.db")
    nightly = Nightly(db, tmp_path)
    program = "import sys, time; [print(l[:-2] + f',\"t\":{time.time()}}}') for l in sys.stdin]"
    nightly.write_through(sys.executable, "-c", program)
    nightly.run(ETL_TEST_DIE="4 early")
    code, stderr = nightly.run()
    assert (code, b"are not those that table other has" in stderr) == (78, True), stderr


def test_records_without_fields(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/t.db")
    db("CREATE TABLE t (n INTEGER DEFAULT 7)")
    assert db.load({}, {}, {"n": 1}, {}).returncode == 0
    assert sorted(db("SELECT n FROM t")) == [(1,), (7,), (7,), (7,)]


def test_two_sinks_one_file(tmp_path: Path) -> None:
    sink = {"uses": "sql", "with": {"url": "sqlite:///t.db", "create": True}}
    sinks = [{"id": name, **sink, "with": {**sink["with"], "table": name}} for name in ("a", "b")]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"version": 1, "source": {"uses": "read"}, "sinks": sinks}))
    done = run_etl("run", "recipe.yaml", stdin=b'{"a":1}\n', cwd=tmp_path)
    assert (done.returncode, b"is also written by step a" in done.stderr) == (78, True), done.stderr


def test_fewer_records_the_second_time_are_noticed(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/t.db")
    nightly = Nightly(db, tmp_path)
    nightly.write_through("sh", "-c", "if [ -e less ]; then head -n 1; else cat; fi", any_count=True)
    nightly.run(ETL_TEST_DIE="2 early", ETL_TEST_PART="100000")
    (before,) = db("SELECT count(*) FROM other")
    (tmp_path / "less").touch()
    code, stderr = nightly.run(ETL_TEST_PART="100000")
    assert (code, b"are not those that table other has" in stderr) == (78, True), stderr
    assert db("SELECT count(*) FROM other") == [before]


@pytest.mark.parametrize("what", ["DELETE FROM etl_checkpoint", "UPDATE etl_checkpoint SET received = received - 1"])
def test_a_database_that_is_behind_the_checkpoint(db: Database, tmp_path: Path, what: str) -> None:
    """Whoever restored it: the records in between would be missing."""
    nightly = Nightly(db, tmp_path)
    nightly.run(ETL_TEST_KILL="4")
    ((before,),) = db("SELECT received FROM etl_checkpoint")
    assert before
    db(what)
    code, stderr = nightly.run()
    assert code == 78, stderr
    assert b"and %d by its checkpoint" % before in stderr
    assert b"bring back the one that it was" in stderr


def test_it_is_behind_when_nothing_is_left_but_to_publish(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/t.db")
    nightly = Nightly(db, tmp_path)
    nightly.write(checkpoint={"dir": "state", "every": "1h"})
    nightly.run(ETL_TEST_KILL="2")
    ((received,),) = db("SELECT received FROM etl_checkpoint")
    assert received == 320
    db("UPDATE etl_checkpoint SET received = 1")
    for _ in range(2):
        code, stderr = nightly.run()
        assert (code, b"by its checkpoint" in stderr) == (78, True), stderr
    db("UPDATE etl_checkpoint SET received = 320")
    code, stderr = nightly.run()
    assert code == 0, stderr
    nightly.check(stderr)


def test_it_stays_behind_when_no_record_comes(tmp_path: Path) -> None:
    """No checkpoint makes up for what is missing."""
    db = Database(f"sqlite:///{tmp_path}/t.db")
    nightly = Nightly(db, tmp_path)
    nightly.write_through("sh", "-c", "if [ -e none ]; then cat >&2; else cat; fi", any_count=True)
    nightly.run(ETL_TEST_KILL="4", ETL_TEST_PART="900")
    db("UPDATE etl_checkpoint SET received = received - 1")
    (tmp_path / "none").touch()
    for _ in range(2):
        code, stderr = nightly.run(ETL_TEST_PART="900")
        assert (code, b"by its checkpoint" in stderr) == (78, True), stderr


def test_what_a_database_refuses_is_not_tried_again(db: Database, tmp_path: Path) -> None:
    """A record keeps its number then, however the records come in batches the second time."""
    nightly = Nightly(db, tmp_path)
    retry = {"attempts": 3, "backoff": "1ms..1ms"}
    nightly.write(sink={**nightly.recipe["sink"], "on_error": {"then": "quarantine", "retry": retry}})
    nightly.run(ETL_TEST_DIE="2 early", ETL_TEST_PART="900")
    code, stderr = nightly.run(ETL_TEST_PART="5000")
    assert code == 0, stderr
    nightly.check(stderr)
    step = json.loads(stderr.splitlines()[-1])["steps"][-1]
    assert (step["retries"], step["healed"]) == (0, {})


def test_no_fallback_with_checkpoints(tmp_path: Path) -> None:
    nightly = Nightly(Database(f"sqlite:///{tmp_path}/t.db"), tmp_path)
    nightly.write(sink={**nightly.recipe["sink"], "on_error": {"fallback": {"set": {"id": 0}}}})
    for args in ((), ("--dry-run",)):
        done = run_etl("run", "recipe.yaml", *args, cwd=tmp_path)
        assert (done.returncode, b"does not go with checkpoints" in done.stderr) == (78, True), done.stderr
    del nightly.recipe["checkpoint"]
    nightly.write()
    done = run_etl("run", "recipe.yaml", "--stats", cwd=tmp_path)
    assert done.returncode == 1  # the same stand-in for several records


def test_a_connection_that_is_lost(postgres: str, tmp_path: Path) -> None:
    """The run says so, in one way, and the next one goes on."""
    db = Database(postgres)
    nightly = Nightly(db, tmp_path)
    nightly.write(source={"uses": "read", "with": {"paths": ["-"]}})
    lines = (tmp_path / "in.ndjson").read_bytes().splitlines(keepends=True)
    process = nightly.start(stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(b"".join(lines[:100]))
    process.stdin.flush()
    wait_for(lambda: db("SELECT count(*) FROM t") != [(0,)])
    db(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type LIKE 'client%'"
    )
    _, stderr = process.communicate(b"".join(lines[100:]), timeout=60)
    assert process.returncode == 69, stderr
    assert b"psycopg" not in stderr.replace(b"postgresql+psycopg:", b"")
    process = nightly.start(stdin=subprocess.PIPE)
    _, stderr = process.communicate(b"".join(lines), timeout=60)
    assert process.returncode == 0, stderr
    nightly.check(stderr)
    db("DROP SCHEMA public CASCADE")
    db("CREATE SCHEMA public")
