"""`lookup`: fields from a reference table, or from the answers of a command.

A reference answers keys with *members*: text such as `,"name":"x"` that can be put before a record's last brace, so that
neither the record's values nor those of the reference are decoded. A record that has such a field already is opened.

A table that fits into memory is a dict, and the join is all `prepare`. Whatever else a reference is (a table on disk, a
database, a command with a cache) is asked in `apply`, for the distinct keys of a batch at once; or, where a command may be
asked several questions at a time, before it, in the engine's threads. What a run has learnt from
a command is committed to the cache file when its output is published, never before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import compress, repeat
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from etlcli.core import params
from etlcli.core.batch import Batch, Origin, Reject, Span
from etlcli.core.edit import encode, open_object, with_members
from etlcli.core.explain import told
from etlcli.core.fields import MISSING, Path, parse_path, pointer
from etlcli.core.intake import parse
from etlcli.core.keys import texts_of
from etlcli.core.projection import projection
from etlcli.core.reshape import encode_lines
from etlcli.core.stage import Context, Prepared, Question, Stage, State
from etlcli.errors import DataError, EtlError, UsageError, nearest
from etlcli.formats import ReadOptions, format_of, records
from etlcli.io.compression import opened
from etlcli.io.inputs import STDIN, check_input, is_url, located, open_input
from etlcli.io.masking import masked
from etlcli.state.store import RecentStore, Store

if TYPE_CHECKING:
    from etlcli.state.database import Database
    from etlcli.state.sqlite import CacheFile

_SQLITE = b"SQLite format 3\0"
_NO_KEY = "null"
"""The key of a record that has none. References do not have it."""
_TEXT_OVERHEAD = 50
"""Bytes of memory that a text takes beside its characters."""


class Pair(NamedTuple):
    """A field of the record and the field of the reference that belongs to it."""

    own: Path
    other: Path


class Failure(NamedTuple):
    """Why some keys have no answer."""

    code: str
    message: str
    attempts: int = 1


Answers = dict[str, "bytes | Failure"]
"""Members by key; none for a key that is not in the reference."""


class Reference(Protocol):
    @property
    def names(self) -> Iterable[str]:
        """The fields it has added so far, or may add."""

    def find(self, keys: Mapping[str, Sequence[Any]]) -> Answers:
        """Answers for those keys, each with the values it is made of, in first-seen order."""


class Lookup(Stage):
    help = """Add fields from a reference table, or from the answers of a command.

--on names the key fields; where the reference's field has another name, both: --on carrier=code. Values are compared, not
their spelling: 1 is 1.0, but not "1". A record whose key field is missing or null is a miss. --fields names the
reference's fields to add (by default all but the key fields), --fields airline=name under another name. A field that the
record has already is replaced; new ones go last. All other fields keep their bytes, and so does the whole of a record that
nothing changes.

--from reads the table at the start: a file or URL in any format of etl read, compressed or not, or a SQLite
database, which is opened for reading and asked for a batch's keys at a time. A key that is twice in the table is an error;
an entry whose key is null is passed over. What is beyond --memory goes to a temporary file.

A command after -- is asked about keys that are not known yet: it gets an object of the key fields for each, a line each,
and has to print as many objects with the fields to add, in that order; {} says that there is no such key. A command that
fails, takes longer than --timeout or prints anything else is run again as --attempts says; then the records with
those keys are rejected (lookup_failed). Answers, {} too, are remembered, the --max-entries last used ones. --cache keeps
them in a file, written when this run's output is published, for --ttl after the command gave them.

--on-miss says what becomes of a record without an answer: keep it as it is, reject it (lookup_failed), or add the fields
of --default."""
    examples = (
        ("etl lookup --on carrier=code --from airlines.csv --fields airline=name flights.ndjson", "names for codes"),
        (
            "etl lookup --on carrier=code --from airlines.csv --on-miss default --default '{\"name\":null}' flights.ndjson",
            "every record gets the field",
        ),
        (
            "etl lookup --on tailnum --cache planes.db --ttl 30d flights.ndjson -- sed s/tailnum/plane/",
            "a command, asked about what no run of the last 30 days has asked",
        ),
    )

    class Params(params.Declared):
        on = params.fields("Key fields; FIELD=OTHER where the reference calls it OTHER.", required=True)
        from_ = params.path("Reference table: a file or URL in a format of etl read, or a SQLite database.")
        command = params.command("A command that answers keys, after --.")
        table = params.text("Table of the database, where it has several.", metavar="NAME")
        fields = params.fields("Fields to add; FIELD=OTHER to call OTHER of the reference FIELD. By default all.")
        on_miss = params.choice(
            ("keep", "reject", "default"), "What becomes of a record whose key is not found.", default="keep"
        )
        default = params.json_object("Fields of a record whose key is not found, with --on-miss default.")
        timeout = params.duration("How long the command may take to answer before it is killed.", default=300.0)
        concurrency = params.integer(
            "Commands that answer at a time, each some of a batch's keys.", default=1, minimum=1
        )
        ordered = params.ordered("Whether records keep their order, with concurrency; else they go on as answers come.")
        cache = params.path("File that keeps the answers for the next run; made if it is not there.", written=True)
        ttl = params.duration("How long an answer is good.")
        max_entries = params.integer("Most answers that are remembered.", default=1_000_000, minimum=1)

        def verify(self) -> None:
            for name, check in (("on", _pairs), ("fields", _added)):
                try:
                    check(getattr(self, name))
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
            if bool(self.from_) == bool(self.command):
                raise ValueError("from: lookup needs a table or a command, one of the two")
            if self.from_ == STDIN:
                raise ValueError("from: standard input is for the records; name a file")
            if self.table and not self.from_:
                raise ValueError("table: goes with from")
            for name in ("cache", "ttl") if self.from_ else ():
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: goes with a command")
            if self.from_ and self.concurrency > 1:
                raise ValueError("concurrency: goes with a command")
            for name in ("ttl", "timeout"):
                if getattr(self, name) == 0:
                    raise ValueError(f"{name}: must be more than 0")
            if (self.default is not None) != (self.on_miss == "default"):
                raise ValueError("default: goes with on_miss default, which needs it")

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        pairs, fields = _pairs(params.on), _added(params.fields)
        self._paths = tuple(pair.own for pair in pairs)
        default = open_object(params.default or "{}")
        self._default, self._default_names = _members(default, {}), tuple(default)
        self._table: dict[str, bytes] | None = None
        self._reference: Reference
        self._asked: _Asked | None = None
        if params.command:
            self._reference = self._asked = _Asked(params, ctx, pairs, fields)
            self.asks = f"the command {params.command[0]}"
            self.waits = self.at_once > 1
        else:
            self._reference = _opened_table(located(params.from_, ctx.base_dir), params.table, ctx, pairs, fields)
            self._table = self._reference.table if isinstance(self._reference, _Loaded) else None
            self.asks = masked(params.from_) if isinstance(self._reference, _Unread) else ""

    def reads(self) -> tuple[Path, ...]:
        return (*self._paths, *self._added_paths())

    def prepare(self, batch: Batch) -> Prepared:
        keys = self._keys(batch.columns(self.reads())[: len(self._paths)])
        if self._table is None:
            return Prepared(batch, extra=keys)
        return self._joined(batch, keys, self._table)

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        batch, keys = prepared.batch, prepared.extra
        if keys is None or not batch.count:
            yield batch
            return
        if isinstance(keys, _Answered):
            keys, answers = keys
        else:
            asked = self._distinct(batch, keys)
            answers = self._reference.find(asked) if asked else {}
        joined = self._joined(batch, keys, answers)
        self.ctx.reject(joined.rejects)
        yield joined.batch

    @property
    def at_once(self) -> int:
        return int(self.params.concurrency)

    @property
    def in_order(self) -> bool:
        return bool(self.params.ordered)

    def questions(self, batch: Batch) -> Iterator[Question]:
        assert self._asked
        keys = self.prepare(batch).extra
        share = -(-batch.count // self.at_once)
        for start in range(0, batch.count, share):
            own, its_keys = batch.take(range(start, min(start + share, batch.count))), keys[start : start + share]
            yield self._asked.question(own, its_keys, self._distinct(own, its_keys))

    def answered(self, question: Question) -> Prepared:
        assert self._asked
        return Prepared(question.batch, extra=self._asked.answered(question))

    def _distinct(self, batch: Batch, keys: Sequence[str]) -> dict[str, Sequence[Any]]:
        """The keys to be asked for, each with the values it is made of."""
        asked: dict[str, Sequence[Any]] = {}
        for key, values in zip(keys, zip(*batch.columns(self._paths), strict=True), strict=True):
            asked.setdefault(key, values)
        asked.pop(_NO_KEY, None)
        return asked

    def explain(self, record: Batch) -> list[str]:
        columns = record.columns(self.reads())[: len(self._paths)]
        (key,) = self._keys(columns)
        asked = f"asked for {told(record, self._paths)}"
        if key == _NO_KEY:
            return [f"{asked}: nothing has such a key"]
        if self.asks:
            return [asked]
        found = self._reference.find({key: [column[0] for column in columns]})
        return [f"{asked}: {'found' if key in found else f'no entry has this key (on_miss: {self.params.on_miss})'}"]

    def finish(self) -> Iterable[Batch]:
        if self._asked:
            self._asked.finish()
        return ()

    def commit(self) -> None:
        if self._asked:
            self._asked.commit()

    def _added_paths(self) -> tuple[Path, ...]:
        return tuple((name,) for name in dict.fromkeys([*self._reference.names, *self._default_names]))

    def _keys(self, columns: list[list[Any]]) -> list[str]:
        columns = [[None if value is MISSING else value for value in column] if MISSING in column else column
                   for column in columns]  # fmt: skip
        keys = texts_of(columns)
        if len(columns) > 1 and any(None in column for column in columns):
            lacking = [None in values for values in zip(*columns, strict=True)]
            return [_NO_KEY if lacks else key for key, lacks in zip(keys, lacking, strict=True)]
        return keys

    def _joined(self, batch: Batch, keys: list[str], answers: Mapping[str, bytes | Failure]) -> Prepared:
        missed: Any = self._default if self.params.on_miss == "default" else b""
        if self.params.on_miss == "reject":
            missed = Failure("lookup_failed", "no entry has this key")
        found: list[Any] = list(map(answers.get, keys, repeat(missed)))
        failed = Failure in set(map(type, found))
        failures = [(index, each) for index, each in enumerate(found) if type(each) is Failure] if failed else []
        rejects = [self._reject(batch, index, failure) for index, failure in failures]
        if rejects:
            kept = [type(members) is bytes for members in found]
            batch, found = batch.take(list(compress(range(batch.count), kept))), list(compress(found, kept))
        return Prepared(self._with(batch, found), rejects)

    def _reject(self, batch: Batch, index: int, failure: Failure) -> Reject:
        error = {"pointer": pointer(self._paths[0]), "message": failure.message}
        reject = batch.reject(index, failure.code, [error])
        # A table does not change, and a command was asked as often as the policy has it.
        reject.attempts, reject.final = failure.attempts, True
        return reject

    def _with(self, batch: Batch, found: list[bytes]) -> Batch:
        """The records with the members found for each."""
        if not any(found):
            return batch
        paths = (*self._paths, *self._added_paths())
        there = batch.columns(paths)[len(self._paths) :]
        having = [column for column in there if column.count(MISSING) < batch.count]
        lines = with_members(batch, found)
        if having:
            for index, values in enumerate(zip(*having, strict=True)):
                if values.count(MISSING) < len(values):
                    lines[index] = _edited(batch.line(index), found[index])
        return batch.with_lines(lines)


def _edited(line: bytes, members: bytes) -> bytes:
    """The line with fields replaced or added; as it was, if that changes no value."""
    record, added = open_object(line), open_object(b"{" + members[1:] + b"}")
    if record.keys().isdisjoint(added):
        return with_members(Batch.of_lines([line]), [members])[0]
    if all(name in record and bytes(record[name]) == bytes(value) for name, value in added.items()):
        return line
    return encode({**record, **added})


# -- Options ----------------------------------------------------------------------------------------------------------


def _pairs(texts: Sequence[str]) -> list[Pair]:
    """`a=b` pairs a field of the record with one of the reference; `a` stands for `a=a`."""
    halves = [text.partition("=") for text in texts]
    return [Pair(parse_path(own.strip()), parse_path(other.strip() if sign else own)) for own, sign, other in halves]


def _added(texts: Sequence[str]) -> dict[str, str]:
    """New names by those of the reference."""
    pairs = _pairs(texts)
    for pair in pairs:
        if len(pair.own) > 1 or len(pair.other) > 1:
            raise ValueError(f"lookup adds whole fields, not {'.'.join(pair.other)} as {'.'.join(pair.own)}")
    names = {pair.other[0]: pair.own[0] for pair in pairs}
    if len(set(names.values())) < len(pairs):
        raise ValueError("a field is named twice")
    return names


def _members(record: Mapping[str, Any], fields: Mapping[str, str], keys: Iterable[Path] = ()) -> bytes:
    """The members of a record: those of `fields`, under their new names, or all but the keys."""
    if fields:
        record = {new: record[name] for name, new in fields.items() if name in record}
    else:
        record = {name: value for name, value in record.items() if (name,) not in keys}
    return b"," + encode(record)[1:-1] if record else b""


# -- Tables -----------------------------------------------------------------------------------------------------------


def _opened_table(path: str, table: str | None, ctx: Context, pairs: list[Pair], fields: dict[str, str]) -> Reference:
    check_input(path)
    if ctx.checking and is_url(path):
        return _Unread(fields)
    if os.path.isfile(path) and _starts(path) == _SQLITE:
        return _InDatabase(path, table, ctx, pairs, fields)
    if table:
        raise UsageError(f"--table: {masked(path)} is no SQLite database")
    return _Loaded(path, ctx, pairs, fields)


def _starts(path: str) -> bytes:
    with closing(open_input(path)) as stream:
        return stream.read(len(_SQLITE))


class _Unread:
    """Stands for a table that a check does not fetch."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.names = list(fields.values())

    def find(self, keys: Mapping[str, Sequence[Any]]) -> Answers:
        return {}


class _Loaded:
    """A file's records. While they are loaded each is held as its line's number and its members, to name both places of a
    key that is there twice."""

    def __init__(self, path: str, ctx: Context, pairs: list[Pair], fields: dict[str, str]) -> None:
        self._source = path
        self._path = masked(path)
        self._others = tuple(pair.other for pair in pairs)
        self._fields = fields
        self._seen: dict[str, None] = {}
        self._store: Store[str] = Store(ctx.memory // 2, ctx.resources, weigh=lambda text: len(text) + _TEXT_OVERHEAD)
        count = sum(map(self._add, self._batches(ctx)))
        for name in fields if count else ():
            if name not in self._seen:
                raise UsageError(
                    f"no record of {self._path} has the field {name!r}", hint=nearest(name, list(self._seen))
                )
        self.names = list(fields.values()) or [name for name in self._seen if (name,) not in self._others]
        held = self._store.in_memory()
        self.table = None if held is None else {key: _after_number(text) for key, text in held.items()}

    def find(self, keys: Mapping[str, Sequence[Any]]) -> Answers:
        return {key: _after_number(text) for key, text in self._store.get(keys).items()}

    def _batches(self, ctx: Context) -> Iterator[Batch]:
        with closing(open_input(self._source)) as stream:
            options = ReadOptions(format_of(stream.name, stream.media_type), stream.path, ctx.log)
            for (batch, rejects, _), _ in records(opened(stream), options, projection(self._others)):
                if rejects:
                    raise self._error(f"{rejects[0].code}: {rejects[0].message}", rejects[0].origin)
                yield batch

    def _add(self, batch: Batch) -> int:
        columns = batch.columns(self._others)
        for path, column in zip(self._others, columns, strict=True):
            if MISSING in column:
                raise self._error(f"the key field {pointer(path)} is missing", batch.origin(column.index(MISSING)))
        entries: dict[str, str] = {}
        for index, key in enumerate(texts_of(columns)):
            text = self._text(batch.line(index))
            if any(column[index] is None for column in columns):
                continue
            origin = batch.origin(index)
            if key in entries:
                raise self._twice(key, entries[key], origin)
            entries[key] = f"{origin.line if origin else 0}{text}"
        for key, text in self._store.get(entries).items():
            raise self._twice(key, text, Origin(self._path, _number(entries[key]), 0))
        self._store.put(entries)
        return batch.count

    def _text(self, line: bytes) -> str:
        record = open_object(line)
        self._seen.update(dict.fromkeys(record))
        return _members(record, self._fields, self._others).decode()

    def _twice(self, key: str, earlier: str, origin: Origin | None) -> DataError:
        return self._error(
            f"the key {key} is there twice, also on line {_number(earlier)}", origin, hint="a key stands for one entry"
        )

    def _error(self, message: str, origin: Origin | None, hint: str = "") -> DataError:
        return DataError(f"{origin or self._path}: {message}", where=str(origin or self._path), hint=hint)


def _number(text: str) -> int:
    return int(text.partition(",")[0])


def _after_number(text: str) -> bytes:
    _, comma, members = text.partition(",")
    return (comma + members).encode()


class _InDatabase:
    """A table of a SQLite database, each of whose columns is a field."""

    def __init__(self, path: str, table: str | None, ctx: Context, pairs: list[Pair], fields: dict[str, str]) -> None:
        from etlcli.state.database import Database

        self._database: Database = Database(path, table)
        ctx.resources.callback(self._database.close)
        self._place = f"{path}, table {self._database.table}"
        self._keys = [pair.other[0] for pair in pairs]
        for pair in pairs:
            self._database.check_column(".".join(pair.other))
        for name in fields:
            self._database.check_column(name)
        others = [name for name in self._database.columns if name not in self._keys]
        self._fields = fields or {name: name for name in others}
        self.names = list(self._fields.values())

    def find(self, keys: Mapping[str, Sequence[Any]]) -> Answers:
        rows = self._database.rows(self._keys, keys.values(), [*self._keys, *self._fields])
        if not rows:
            return {}
        columns = list(map(list, zip(*rows, strict=True)))
        if any(bytes in set(map(type, column)) for column in columns):
            raise DataError("a row that is asked for holds bytes, which JSON cannot say", where=self._place)
        texts = encode_lines(dict(zip(self.names, row[len(self._keys) :], strict=True)) for row in rows).split(b"\n")
        answers: Answers = {}
        for key, text in zip(texts_of(columns[: len(self._keys)]), texts, strict=False):
            if key in answers:
                raise DataError(f"the key {key} is there twice", where=self._place)
            if key in keys:
                answers[key] = b"," + text[1:-1] if len(text) > 2 else b""
        return answers


# -- A command --------------------------------------------------------------------------------------------------------


_Outcome = tuple["list[str | None] | Failure", int]
"""What a command says of some keys, and how many tries it took."""


_Said = dict[str, "bytes | Failure | None"]
"""Members by key. None is an answer, too: there is no such key."""


class _Asking(NamedTuple):
    """What a question goes by: the batch's keys, what was known of them, and which this question asks for, and others."""

    keys: Sequence[str]
    known: _Said
    unknown: list[str]
    asked: dict[str, Question]


class _Answered(NamedTuple):
    """The keys of a batch, and all that is known of them."""

    keys: Sequence[str]
    answers: Answers


def _answers(keys: Sequence[str], outcome: _Outcome) -> _Said:
    given, tries = outcome
    if isinstance(given, Failure):
        return dict.fromkeys(keys, given._replace(attempts=tries))
    return {key: None if text is None else text.encode() for key, text in zip(keys, given, strict=True)}


class _Asked:
    """What a command answers, each key asked for once as long as the answer is remembered."""

    def __init__(self, params: Any, ctx: Context, pairs: list[Pair], fields: dict[str, str]) -> None:
        from etlcli.io.command import Commands, find_command

        self._params = params
        self._ctx = ctx
        self._others = tuple(pair.other for pair in pairs)
        self._fields = fields
        directory = os.path.abspath(ctx.base_dir) if ctx.base_dir else ""
        find_command(params.command, directory)
        self._commands = Commands(params.command, directory, params.timeout)
        ctx.resources.callback(self._commands.stop)
        self.names: dict[str, None] = dict.fromkeys(fields.values())
        self._path = os.path.join(ctx.base_dir, params.cache) if params.cache else ""
        self._about = {
            "stage": "lookup",
            "on": list(map(pointer, self._others)),
            "fields": fields,
            "command": list(params.command),
        }
        self._asked: dict[str, Question] = {}
        """Which question asks for a key."""
        self._cache: CacheFile | None = None
        self._store: RecentStore | None = None
        if self._path and os.path.lexists(self._path):
            from etlcli.state.sqlite import check_cache

            check_cache(self._path, self._about)

    def find(self, keys: Mapping[str, Sequence[Any]]) -> Answers:
        known = self._known(keys)
        unknown = [key for key in keys if key not in known]
        self._ctx.looked_up(len(known), len(unknown))
        if unknown:
            with self._ctx.waiting("command"):
                outcome = self._ctx.retry(partial(self._ask, [keys[key] for key in unknown]))
            self._remember(unknown, outcome)
            known |= _answers(unknown, outcome)
        return self._named(known)

    def question(self, batch: Batch, batch_keys: Sequence[str], keys: Mapping[str, Sequence[Any]]) -> Question:
        """About those `keys` of a batch that are not known. What another question asks is not asked again."""
        known = self._known(keys)
        asked = {key: self._asked[key] for key in keys if key in self._asked and key not in known}
        unknown = [key for key in keys if key not in known and key not in asked]
        self._ctx.looked_up(len(known) + len(asked), len(unknown))
        call = partial(self._ctx.retry, partial(self._ask, [keys[key] for key in unknown])) if unknown else None
        extra = _Asking(batch_keys, known, unknown, asked)
        question = Question(batch, call, extra, list(dict.fromkeys(asked.values())))
        self._asked |= dict.fromkeys(unknown, question)
        return question

    def answered(self, question: Question) -> _Answered:
        keys, answers, unknown, asked = question.extra
        if unknown:
            self._remember(unknown, question.answer)
            answers |= _answers(unknown, question.answer)
            for key in unknown:
                del self._asked[key]
        for other in dict.fromkeys(asked.values()):
            found = _answers(other.extra.unknown, other.answer)
            answers |= {key: found[key] for key in asked if asked[key] is other and key in found}
        return _Answered(keys, self._named(answers))

    def _known(self, keys: Mapping[str, Sequence[Any]]) -> _Said:
        """What is remembered."""
        store = self._store = self._store or self._open_store()
        found = {key: self._remembered(value) for key, value in store.get(keys).items() if self._is_fresh(value)}
        return {key: None if text is None else text.encode() for key, text in found.items()}

    def _remember(self, keys: Sequence[str], outcome: _Outcome) -> None:
        given, _ = outcome
        if not isinstance(given, Failure):
            assert self._store
            now = round(time(), 3)
            self._store.put({key: {"seen": now, "found": text} for key, text in zip(keys, given, strict=True)})

    def finish(self) -> None:
        if self._cache and self._store:
            self._cache.settle()
            self._store.flush()

    def commit(self) -> None:
        if self._cache:
            try:
                self._cache.commit()
            except EtlError as error:
                error.hint = "the output was published all the same; the next run will ask again"
                raise

    def _open_store(self) -> RecentStore:
        """At the first record, not before: a dry run makes no cache file, and does not wait for one."""
        table = None
        if self._path and not self._ctx.trial:
            from etlcli.state.sqlite import CacheFile

            self._cache = CacheFile(self._path, self._about)
            self._ctx.resources.callback(self._cache.close)
            table = self._cache.table
        return RecentStore(self._params.max_entries, self._ctx.memory // 2, self._ctx.resources, table, _weigh)

    def _is_fresh(self, value: Any) -> bool:
        try:
            return self._params.ttl is None or bool(time() - value["seen"] < self._params.ttl)
        except (TypeError, KeyError):
            raise self._foreign(value) from None

    def _remembered(self, value: Any) -> str | None:
        try:
            text = value["found"]
            open_object(b"{" + (text or "").encode()[1:] + b"}")
        except (TypeError, KeyError, AttributeError, ValueError):
            raise self._foreign(value) from None
        return str(text) if text is not None else None

    def _foreign(self, value: Any) -> DataError:
        return DataError(f"{self._path} holds a value that is no answer of lookup: {value!r}", where=self._path)

    def _named(self, said: _Said) -> Answers:
        """The answers that are something, their fields noted."""
        answers: Answers = {key: each for key, each in said.items() if each is not None}
        if not self._fields:
            for members in set(answers.values()):
                if isinstance(members, bytes) and members:
                    self.names.update(dict.fromkeys(open_object(b"{" + members[1:] + b"}")))
        return answers

    def _ask(self, keys: Sequence[Sequence[Any]]) -> list[str | None] | Failure:
        from etlcli.io.command import CommandError

        name = self._params.command[0]
        questions = encode_lines([_nested(self._others, values) for values in keys])
        try:
            output = self._commands.run(questions)
        except CommandError as error:
            return Failure("lookup_failed", error.message)
        chunk = output if output.endswith(b"\n") or not output else output + b"\n"
        found, rejects, _ = parse(chunk, Span(name, 1, 0, chunk), projection(()))
        if rejects:
            return Failure("lookup_failed", f"{rejects[0].origin}, its output: {rejects[0].message}")
        if found.count != len(keys):
            return Failure("lookup_failed", f"{name} gave {found.count} answers for {len(keys)} keys")
        return list(map(self._text, found.lines))

    def _text(self, line: bytes) -> str | None:
        answer = open_object(line)
        return _members(answer, self._fields, self._others).decode() if answer else None


def _nested(paths: Sequence[Path], values: Sequence[Any]) -> dict[str, Any]:
    """An object with these values at these paths."""
    made: dict[str, Any] = {}
    for (*parents, name), value in zip(paths, values, strict=True):
        inner = made
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return made


def _weigh(value: Any) -> int:
    """A dict and what is in it, about; whatever it is, since a cache file may hold anything."""
    return 300 + len(str(value))
