"""`sql`: records into a table of a database, each exactly once.

Without checkpoints a run is one transaction: all of it or nothing. With them each checkpoint is one, and the row that says
how many records this run has put in belongs to it: whatever moment a process dies in, another knows from that row which of
the records it is given are in the table already. SQLAlchemy has the dialects; it is an extra (`pip install 'etlcli[sql]'`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from etlcli.core import params
from etlcli.core.batch import Batch, Reject
from etlcli.core.edit import encode
from etlcli.core.stage import Context, Sink, State
from etlcli.errors import (
    CannotCreateError,
    CheckpointError,
    EtlError,
    InputOutputError,
    ServiceUnreachableError,
    TryLaterError,
    UsageError,
    nearest,
)
from etlcli.io.masking import masked

if TYPE_CHECKING:
    import sqlalchemy
    from sqlalchemy.engine import Connection

_MARKS = "etl_checkpoint"
_SAVEPOINT = "etl_batch"
_TYPES: dict[type, str] = {bool: "Boolean", int: "BigInteger", float: "Double", Decimal: "Numeric"}
_ARGUMENTS: dict[str, dict[str, Any]] = {
    # One of several sinks works in a thread of its own.
    "pysqlite": {"check_same_thread": False},
    # It forgets what it has prepared when a savepoint is taken back, and now and then asks for it all the same.
    "psycopg": {"prepare_threshold": None},
}
_PLACES = {"qmark": "?", "format": "%s", "pyformat": "%s"}
_SIMPLE = {str, int, float, bool, type(None)}
Row = tuple[Any, ...]


class Sql(Sink):
    help = """Put records into a table of a database: SQLite, PostgreSQL, or another that SQLAlchemy knows.

Each field goes into the column of its name; arrays and objects go as JSON text. A record with a field that has no column,
or that the database refuses (a constraint, a type), is rejected (sink_refused), and no other. What it takes it has in the
column's type: PostgreSQL rounds 1.5 for an integer. --mode upsert replaces the columns of a row whose --key fields are
equal. --create makes the table if it is not there, with a column for each field of the first records.

Nothing is to be seen in the table before the run is good: it is one transaction. In a recipe with checkpoints each of those
is a transaction, so that what a run has put in by then stays if it fails; a run that is gone on with puts every record in
exactly once, by a row in the table etl_checkpoint that it removes in the end. A database that was put back to an earlier
state meanwhile is refused; one in which somebody else changed the rows is not noticed. What the database refuses is not
tried again, and a connection that is lost ends the run (exit 69): the next one goes on.

The URL is SQLAlchemy's: sqlite:///file.db, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE. Take the password from the
environment (in a recipe ${env.NAME}) or a file such as ~/.pgpass: others can see a command line."""
    examples = (
        ("etl sql --url sqlite:///flights.db --table flights --create < flights.ndjson", "into a new table"),
        (
            "etl sql --url sqlite:///flights.db --table now --create --mode upsert --key carrier,flight < flights.ndjson",
            "new rows, and new values of those that are there",
        ),
    )
    waits = True
    elsewhere = True

    class Params(params.Declared):
        url = params.text("The database, as SQLAlchemy spells it.", required=True, metavar="URL")
        table = params.text("The table, perhaps with its schema: sales.orders.", required=True, metavar="NAME")
        mode = params.choice(("insert", "upsert"), "What to do with a record whose key is there.", default="insert")
        key = params.fields("Columns that say which row it is; they need a unique index.")
        create = params.flag("Make the table if it is not there.")

        def verify(self) -> None:
            if (self.mode == "upsert") != bool(self.key):
                raise ValueError("key: upsert needs a key, and insert has none")

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self._database = _Database(params.url, ctx)
        self._table: _Table | None = self._database.table(params.table)
        self._received = self._since = state["received"] if state else 0
        self._refused: dict[int, str] = {}
        self._digest = _Digest()
        """Of the records since the last checkpoint: a run that is gone on with has to get the same again."""
        self._before = self._database.marked(ctx.run, ctx.step) if state else _Mark(0, 0, {}, "")
        """The table may be further than the checkpoint that this run goes on from, and must not be behind it."""
        self._is_behind = self._before.received < self._received
        if self._table is None and not params.create:
            raise UsageError(
                f"--table: {masked(params.url)} has no table {params.table!r}",
                hint=f"{nearest(params.table, self._database.tables())}; --create makes it",
            )

    def write(self, batch: Batch) -> Sequence[Reject]:
        self._check_mark()
        start = self._received
        self._received += batch.count
        handled = min(batch.count, max(0, self._before.received - start))
        known = self._before.refused.items()
        refused = {number - start: why for number, why in known if start <= number < start + handled}
        if handled:
            self._pass_over(batch.take(range(handled)))
        if handled < batch.count:
            new = batch.take(range(handled, batch.count)) if handled else batch
            if self.ctx.files.keeps:
                self._digest.add(new)
            refused |= {index + handled: why for index, why in self._put(new).items()}
        if self.ctx.files.keeps:
            self._refused |= {start + index: why for index, why in refused.items()}
        rejects = [batch.reject(index, "sink_refused", [{"message": refused[index]}]) for index in sorted(refused)]
        for reject in rejects:
            reject.final = True  # in this transaction the database would say the same again
        return rejects

    def snapshot(self) -> State:
        """Commits what was put in, with a mark. Before the first record there is no mark: it would stay for ever if the run
        died before its first manifest. Where the table is further than this run, its mark stays as it is."""
        self._check_mark()
        if not self._received:
            self._database.make_marks()
        elif self._received >= self._before.received:
            mark = _Mark(self._since, self._received, self._refused, self._digest.hex)
            with self.ctx.waiting("database"):
                self._database.mark(self.ctx.run, self.ctx.step, mark)
            self._since, self._refused, self._digest = self._received, {}, _Digest()
        return {"received": self._received}

    def _pass_over(self, batch: Batch) -> None:
        """Records that are in the table already, which must be those that were put in then."""
        self._digest.add(batch)
        if self._received < self._before.received:
            return
        # From a checkpoint in between nothing is known of them.
        if self._since == self._before.since and self._digest.hex != self._before.digest:
            raise self._others()

    def _check_mark(self) -> None:
        """Not where a run died when all was committed: then there is no mark any more, and nothing else to be done."""
        if self._is_behind:
            raise CheckpointError(
                f"step {self.ctx.step}: the database has had {self._before.received} records of this run, and "
                f"{self._received} by its checkpoint",
                hint="it was restored from a copy, or is another one: bring back the one that it was, or empty the table "
                "and begin again with --fresh",
            )

    def _others(self) -> CheckpointError:
        return CheckpointError(
            f"step {self.ctx.step}: the records since the checkpoint are not those that table {self.params.table} has",
            hint="a step has given others the second time (a clock, a command); make it give the same, or put the "
            "records in by upsert, with --fresh",
        )

    def finish(self) -> None:
        self._check_mark()
        if self._received < self._before.received:
            raise self._others()

    def commit(self) -> None:
        if self._before.received:
            self._check_mark()
        if self.ctx.files.keeps:
            self._database.unmark(self.ctx.run, self.ctx.step)
        self._database.commit()
        self.ctx.log("info", "published", path=masked(self.params.url), table=self.params.table)

    def _put(self, batch: Batch) -> dict[int, str]:
        """The records that the database refuses: index -> why."""
        records = batch.records()
        if self._table is None:
            self._table = self._database.created(self.params.table, records, self.params.key)
        refused: dict[int, str] = {}
        at = 0
        for names, part in groupby(records, key=tuple):
            rows = [tuple(record.values()) for record in part]
            indices = range(at, at + len(rows))
            at += len(rows)
            unknown = set(names) - self._table.columns
            if unknown:
                refused |= dict.fromkeys(indices, f"the table has no column {min(unknown)!r}")
            else:
                self._execute(self._table.statement(names, self.params.key), indices, _plain(rows), refused)
        return refused

    def _execute(self, statement: str, indices: range, rows: list[Row], refused: dict[int, str]) -> None:
        """All rows at once; where the database refuses that, each half, until those it refuses stand alone."""
        with self.ctx.waiting("database"):
            why = self._database.execute(statement, rows)
        if why is None:
            return
        if len(rows) == 1:
            refused[indices[0]] = why
            return
        half = len(rows) // 2
        self._execute(statement, indices[:half], rows[:half], refused)
        self._execute(statement, indices[half:], rows[half:], refused)


class _Mark(NamedTuple):
    """What a checkpoint in the table says: which records the transaction had, by their numbers, which of those the
    database refused and why, and their digest."""

    since: int
    received: int
    refused: dict[int, str]
    digest: str

    def row(self, run: str, step: str) -> dict[str, Any]:
        """As the table of marks has it."""
        return {**self._asdict(), "run": run, "step": step, "refused": encode(self.refused).decode()}


class _Digest:
    """Of records, however they are cut into batches."""

    def __init__(self) -> None:
        from xxhash import xxh3_128

        self._hash = xxh3_128()

    def add(self, batch: Batch) -> None:
        self._hash.update(batch.chunk)

    @property
    def hex(self) -> str:
        return str(self._hash.hexdigest())


class _Table:
    def __init__(self, name: str, columns: Iterable[str], quote: Callable[[str], str], place: str) -> None:
        """`name` is as it stands in a statement."""
        self.columns = frozenset(columns)
        self._name = name
        self._quote = quote
        self._place = place

    def statement(self, names: Sequence[str], key: Sequence[str]) -> str:
        """An insert of these columns; with a `key` an upsert."""
        if not names:
            return f"INSERT INTO {self._name} DEFAULT VALUES"
        columns = list(map(self._quote, names))
        places = ", ".join([self._place] * len(names))
        statement = f"INSERT INTO {self._name} ({', '.join(columns)}) VALUES ({places})"
        if not key:
            return statement
        changes = [
            f"{column} = excluded.{column}" for name, column in zip(names, columns, strict=True) if name not in key
        ]
        action = f"UPDATE SET {', '.join(changes)}" if changes else "NOTHING"
        return f"{statement} ON CONFLICT ({', '.join(map(self._quote, key))}) DO {action}"


class _Database:
    """A connection with a transaction. Raises ServiceUnreachableError when there is none to be had, or it is lost."""

    def __init__(self, url: str, ctx: Context) -> None:
        self._shown = masked(url)
        import logging

        try:
            import sqlalchemy
        except ImportError:
            raise UsageError("the sql sink needs SQLAlchemy", hint="pip install 'etlcli[sql]'") from None
        self._sql = sqlalchemy
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it would say in its own way what we say
        try:
            address = sqlalchemy.make_url(url)
            if address.get_backend_name() == "sqlite" and address.database not in (None, "", ":memory:"):
                file = os.path.join(ctx.base_dir, str(address.database))
                ctx.files.claim(file)  # two connections would wait for each other
                address = address.set(database=file)
            given = _ARGUMENTS.get(address.get_driver_name(), {})
            engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, connect_args=given)
        except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise UsageError(
                f"--url {self._shown}: {masked(str(error))}", hint="for example sqlite:///file.db, or "
                "postgresql+psycopg://USER@HOST/DATABASE",
            ) from None  # fmt: skip
        except ImportError as error:
            raise UsageError(f"--url {self._shown}: {error}", hint="install the database's driver") from None
        if engine.dialect.name == "sqlite":
            _begin_by_hand(sqlalchemy, engine)
        self._engine = engine
        with self._explained():
            self._connection: Connection = engine.connect()
        ctx.resources.callback(self._close)
        self._quote = engine.dialect.identifier_preparer.quote_identifier
        place = _PLACES.get(engine.dialect.paramstyle)
        if place is None:
            raise UsageError(
                f"--url {self._shown}: the driver's parameter style {engine.dialect.paramstyle} is not known"
            )
        self._place = place

    def tables(self) -> list[str]:
        with self._explained():
            return list(self._sql.inspect(self._connection).get_table_names())

    def table(self, name: str) -> _Table | None:
        schema, _, own = name.rpartition(".")
        with self._explained():
            try:
                columns = self._sql.inspect(self._connection).get_columns(own, schema=schema or None)
            except self._sql.exc.NoSuchTableError:
                return None
        return _Table(self._spelled(name), (column["name"] for column in columns), self._quote, self._place)

    def created(self, name: str, records: Sequence[dict[str, Any]], key: Sequence[str]) -> _Table:
        """A table with a column for each field of the records."""
        sql = self._sql
        schema, _, own = name.rpartition(".")
        kinds: dict[str, set[type]] = {}
        for record in records:
            for field, value in record.items():
                kinds.setdefault(field, set()).add(type(value))
        for field in set(key).difference(kinds):
            raise UsageError(f"--key: the first records have no field {field!r}", hint=nearest(field, list(kinds)))
        columns = [
            sql.Column(field, getattr(sql, _type_of(found - {type(None)})), primary_key=field in key)
            for field, found in kinds.items()
        ]
        with self._explained():
            sql.Table(own, sql.MetaData(), *columns, schema=schema or None).create(self._connection)
        return _Table(self._spelled(name), kinds, self._quote, self._place)

    def execute(self, statement: str, rows: list[Row]) -> str | None:
        """All rows or none. Why the database would not have them."""
        exc = self._sql.exc
        with self._explained(), self._savepoint() as back:
            try:
                if rows[0]:
                    self._connection.exec_driver_sql(statement, rows)
                else:  # records without fields
                    for _ in rows:
                        self._connection.exec_driver_sql(statement)
            except (exc.DBAPIError, OverflowError) as error:
                orig = getattr(error, "orig", error)
                if not isinstance(error, _of_the_record(exc)) and type(orig).__name__ != "DatatypeMismatch":
                    raise
                back()
                return str(orig).strip().partition("\n")[0]
        return None

    def marked(self, run: str, step: str) -> _Mark:
        """What the last checkpoint of a run in this table says."""
        marks = self._marks()
        self._wait_for_others(marks, run, step)
        with self._explained():
            mine = marks.select().where(marks.c.run == run, marks.c.step == step)
            found = self._connection.execute(mine).fetchone()
        if not found:
            return _Mark(0, 0, {}, "")
        refused = {int(number): why for number, why in msgspec.json.decode(found.refused).items()}
        return _Mark(found.since, found.received, refused, found.digest)

    def make_marks(self) -> None:
        """Makes the table of marks, and ends a transaction for which others would have to wait."""
        self._marks()
        self.commit()

    def mark(self, run: str, step: str, mark: _Mark) -> None:
        """Commits what was put in, together with what `marked` tells then."""
        marks = self._marks()
        self._unmark(marks, run, step)
        with self._explained():
            self._connection.execute(marks.insert().values(mark.row(run, step)))
        self.commit()

    def _wait_for_others(self, marks: sqlalchemy.Table, run: str, step: str) -> None:
        """A server may still be at the commit of a process that has been killed since, and until it is done that one's mark
        cannot be seen. Who inserts the same key waits for it, whether it then succeeds or not."""
        with self._explained(), self._savepoint() as back:
            with suppress(self._sql.exc.IntegrityError):
                self._connection.execute(marks.insert().values(_Mark(0, 0, {}, "").row(run, step)))
            back()

    @contextmanager
    def _savepoint(self) -> Iterator[Callable[[], None]]:
        """What to call to take back what was done since. SQLAlchemy's own is not ended when it is taken back: others would
        be within it, and a server has room for some thousands."""
        connection, dialect = self._connection, self._engine.dialect
        dialect.do_savepoint(connection, _SAVEPOINT)
        yield lambda: dialect.do_rollback_to_savepoint(connection, _SAVEPOINT)
        dialect.do_release_savepoint(connection, _SAVEPOINT)

    def unmark(self, run: str, step: str) -> None:
        self._unmark(self._marks(), run, step)

    def commit(self) -> None:
        with self._explained():
            self._connection.commit()

    def _unmark(self, marks: sqlalchemy.Table, run: str, step: str) -> None:
        with self._explained():
            self._connection.execute(marks.delete().where(marks.c.run == run, marks.c.step == step))

    def _marks(self) -> sqlalchemy.Table:
        sql = self._sql
        marks: sqlalchemy.Table = sql.Table(
            _MARKS,
            sql.MetaData(),
            sql.Column("run", sql.String(16), primary_key=True),
            sql.Column("step", sql.String(200), primary_key=True),
            sql.Column("since", sql.BigInteger, nullable=False),
            sql.Column("received", sql.BigInteger, nullable=False),
            sql.Column("refused", sql.Text, nullable=False),
            sql.Column("digest", sql.String(32), nullable=False),
        )
        with self._explained():
            marks.create(self._connection, checkfirst=True)
        return marks

    def _spelled(self, name: str) -> str:
        return ".".join(map(self._quote, name.split(".")))

    def _close(self) -> None:
        # A server that is at something would be waited for to take it back: it does so when it is gone.
        with suppress(Exception):
            self._connection.invalidate()
        self._engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._sql.exc.DBAPIError as error:
            for before in _contexts(error):
                if not isinstance(before, Exception):  # a signal, after which the driver could not end what it was at
                    raise before from None
            raise self._explain(error) from error

    def _explain(self, error: Any) -> EtlError:
        why = str(error.orig).strip().partition("\n")[0]
        name = getattr(error.orig, "sqlite_errorname", "") or type(error.orig).__name__
        message = f"{self._shown}: {why}"
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "Deadlock", "SerializationFailure", "LockNotAvailable")):
            return TryLaterError(message, hint="somebody else is writing; run it again")
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "DiskFull", "IoError")):
            return InputOutputError(message, hint="free some space there; what was not committed is not in the table")
        if name == "SQLITE_ERROR" or isinstance(error, self._sql.exc.ProgrammingError):
            return UsageError(message, hint="the table, its columns or its keys are not as the options have it")
        if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_NOTADB", "InsufficientPrivilege")):
            return CannotCreateError(message)
        return ServiceUnreachableError(message, hint="what was not committed is not in the table; run it again")


def _contexts(error: BaseException) -> Iterator[BaseException]:
    """What was being handled when it was raised, and so on."""
    while context := error.__context__:
        yield context
        error = context


def _of_the_record(exc: Any) -> tuple[type[Exception], ...]:
    """Errors that another record would not have met."""
    return exc.IntegrityError, exc.DataError, OverflowError


def _begin_by_hand(sqlalchemy: Any, engine: sqlalchemy.Engine) -> None:
    """The driver would begin a transaction only at the first change, and savepoints need one."""

    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    sqlalchemy.event.listen(engine, "connect", connected)
    sqlalchemy.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


def _type_of(kinds: set[type]) -> str:
    """The name of the narrowest type that has them all."""
    if len(kinds) == 1:
        return _TYPES.get(kinds.pop(), "Text")
    if kinds <= {int, float}:
        return "Double"
    return "Numeric" if kinds and kinds <= {int, float, Decimal} else "Text"


def _plain(rows: list[Row]) -> list[Row]:
    """As drivers take them: arrays and objects as JSON, numbers that no double holds as they are spelled."""
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    odd = [number for number, column in enumerate(columns) if not _SIMPLE.issuperset(map(type, column))]
    for number in odd:
        columns[number] = list(map(_text_if_odd, columns[number]))
    return list(zip(*columns, strict=True)) if odd else rows


def _text_if_odd(value: Any) -> Any:
    if isinstance(value, list | dict):
        return encode(value).decode()
    return str(value) if isinstance(value, Decimal) else value
