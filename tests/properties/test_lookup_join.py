"""`lookup` against a join of a few lines with a dict: the table in memory, spilled, in a database, and asked of a command."""

from __future__ import annotations

import json
import sqlite3
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_dedupe_cache import decoded, same

from etlcli.core.batch import Batch
from etlcli.core.ledger import StepCount
from etlcli.core.stage import Context
from etlcli.io.stepfiles import StepFiles
from etlcli.stages.lookup import Failure, Lookup, _Asked

MISSES = ("keep", "reject", "default")
keys = st.sampled_from([b"1", b"1.0", b"10e-1", b"2", b'"1"', b"true", b"null", b"[1]", b"[1.0]", b"1" * 30, b'{"a":1,"b":2}',
                        b'{"b":2.0, "a":1}', b"1e400", b'"' + b"x" * 99 + b'"'])  # fmt: skip
texts = st.sampled_from([b"1.10", b"1e400", b'"\\u00e9"', b"null", b'{"q": 1.0}', b"12345678901234567890123"])


@st.composite
def objects(draw: Any, key: str) -> bytes:
    """An object, perhaps with a key, and with some of the fields that tables have and records may have, too."""
    names = draw(st.lists(st.sampled_from(["n", "m", "o"]), unique=True, max_size=3))
    members = [b'"%s":%s' % (name.encode(), draw(texts)) for name in names]
    if draw(st.integers(0, 9)):
        members.insert(draw(st.integers(0, len(members))), b'"%s":%s' % (key.encode(), draw(keys)))
    return b"{" + draw(st.sampled_from([b",", b", "])).join(members) + draw(st.sampled_from([b"}", b" }", b"} "]))


@st.composite
def tables(draw: Any) -> list[bytes]:
    """Entries that have keys, none of them twice."""
    found = {}
    for key in draw(st.lists(keys, max_size=8)):
        entry = draw(objects("other"))
        fields = [b"%s:%s" % pair for pair in raw(entry).items() if pair[0] != b'"code"']
        found[same(decoded(b'{"k":%s}' % key)["k"])] = b"{" + b",".join([b'"code":' + key, *fields]) + b"}"
    return list(found.values())


def raw(line: bytes) -> dict[bytes, bytes]:
    """Members in the order in which they stand, values as they are spelled (none has a comma or colon in a text)."""
    decoder, found, text, place = json.JSONDecoder(), {}, line.decode(), 1
    while (start := text.find('"', place)) >= 0:
        _, end = decoder.raw_decode(text, start)
        value = text.index(":", end) + 1
        value += len(text[value:]) - len(text[value:].lstrip())
        _, place = decoder.raw_decode(text, value)
        found[text[start:end].encode()] = text[value:place].encode()
    return found


def key_of(line: bytes, name: str) -> Any:
    """None for none."""
    value = decoded(line).get(name)
    return None if value is None else same(value)


def model(lines: list[bytes], table: list[bytes], fields: list[bytes], on_miss: str) -> tuple[list[bytes], list[bytes]]:
    """What comes out, and what is rejected."""
    entries = {key_of(entry, "code"): raw(entry) for entry in table if key_of(entry, "code") is not None}
    out, rejected = [], []
    for line in lines:
        entry = entries.get(key_of(line, "k"))
        if entry is None and on_miss == "reject":
            rejected.append(line)
            continue
        added = ({b'"n"': b"0.0"} if on_miss == "default" else {}) if entry is None else entry
        names = fields if entry is not None and fields else [name for name in added if name != b'"code"']
        added = {name: added[name] for name in names if name in added}
        old = raw(line)
        if all(old.get(name) == value for name, value in added.items()):
            out.append(line)
        elif old.keys() & added.keys():
            out.append(b"{" + b",".join(b"%s:%s" % pair for pair in {**old, **added}.items()) + b"}")
        else:
            members = b",".join(b"%s:%s" % pair for pair in added.items())
            opened = line.rstrip()[:-1]
            out.append(opened + (b"," if old else b"") + members + b"}")
    return out, rejected


def run(
    lines: list[bytes], cuts: list[int], options: dict[str, Any], memory: int, base: str
) -> tuple[list[bytes], list[bytes]]:
    count = StepCount("lookup")
    edges = [0, *sorted(cut % (len(lines) + 1) for cut in cuts), len(lines)]
    out: list[bytes] = []
    rejected: list[bytes] = []

    def reject(rejects: Any) -> None:
        rejected.extend(reject.raw for reject in rejects)

    with ExitStack() as resources:
        context = Context(
            count,
            resources=resources,
            files=StepFiles("step", resources, lambda *a, **k: None),
            log=lambda *a, **k: None,
            reject=reject,
            memory=memory,
            base_dir=base,
        )
        stage = Lookup(Lookup.Params(**options), context)
        for start, end in pairwise(edges):
            prepared = stage.prepare(Batch.of_lines(lines[start:end]))
            reject(prepared.rejects)
            for batch in stage.apply(prepared):
                out += batch.lines
        list(stage.finish())
        stage.commit()
    return out, rejected


some_records = st.lists(objects("k"), max_size=12)
cuts = st.lists(st.integers(0, 100), max_size=3)
fields = st.sampled_from([[], ["n"], ["o", "n"]])


def options_for(names: list[str], on_miss: str) -> dict[str, Any]:
    return {"on": "k=code", "on_miss": on_miss, **({"fields": names} if names else {}),
            **({"default": '{"n":0.0}'} if on_miss == "default" else {})}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(some_records, tables(), cuts, fields, st.sampled_from(MISSES), st.sampled_from([1 << 20, 600, 1]))
@example([b'{"k":1, "n":1.10 }', b"{ }", b'{"k":1.0}'], [b'{"code":1,"n":1.10}'], [1], [], "default", 1)
def test_a_table(
    lines: list[bytes], table: list[bytes], cuts: list[int], names: list[str], on_miss: str, memory: int
) -> None:
    with TemporaryDirectory() as base:
        (Path(base) / "t.ndjson").write_bytes(b"".join(entry + b"\n" for entry in table))
        names = [name for name in names if any(name in decoded(entry) for entry in table)]
        options = {**options_for(names, on_miss), "from": "t.ndjson"}
        expected = model(lines, table, [b'"%s"' % name.encode() for name in names], on_miss)
        assert run(lines, cuts, options, memory, base) == expected


@settings(max_examples=80, deadline=None)
@given(
    some_records, tables(), cuts, fields, st.sampled_from(MISSES), st.sampled_from([None, 1, 3]), st.sampled_from([1 << 20, 1]),
)  # fmt: skip
def test_a_command(
    lines: list[bytes], table: list[bytes], cuts: list[int], names: list[str], on_miss: str, most: Any, memory: int
) -> None:
    """Twice with one cache; what is asked, once at most while everything is remembered."""
    entries = {key_of(entry, "code"): entry for entry in table}
    asked: list[Any] = []

    def ask(self: Any, keys: Any) -> list[str | None] | Failure:
        asked.extend(key_of(b'{"code":%s}' % spelled(values[0]), "code") for values in keys)
        return [self._text(entries.get(key, b"{}")) for key in asked[-len(keys) :]]

    with TemporaryDirectory() as base, mock.patch.object(_Asked, "_ask", ask):
        options = {**options_for(names, on_miss), "command": ["cat"], "cache": "c", "max_entries": most}
        expected = model(lines, table, [b'"%s"' % name.encode() for name in names], on_miss)
        assert run(lines, cuts, options, memory, base) == expected
        before = len(asked)
        assert run(lines, [], options, memory, base) == expected
        if most is None:
            assert len(asked) == before == len(set(asked)), "no key is asked for twice"
            assert set(asked) == {key for line in lines if (key := key_of(line, "k")) is not None}
        if not asked:
            return
        with closing(sqlite3.connect(f"{base}/c")) as connection:
            assert connection.execute("select count(*) from unnamed").fetchone()[0] <= (most or 1000)


def spelled(value: Any) -> bytes:
    from etlcli.core.edit import encode

    return encode(value)


numbers = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, 1.5, "a", "1", "é", "x" * 80]))


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, unique_by=lambda value: (type(value) is str, value), max_size=6), st.lists(numbers, max_size=10),
       st.sampled_from(["", "integer", "text collate nocase", "real"]))  # fmt: skip
def test_a_database_is_a_table(known: list[Any], asked: list[Any], kind: str) -> None:
    """Whatever SQLite makes of the keys' types."""
    with TemporaryDirectory() as base:
        connection = sqlite3.connect(f"{base}/db")
        connection.execute(f"create table t (code {kind}, n)")
        connection.executemany("insert into t values (?, ?)", [(value, repr(value)) for value in known])
        stored = connection.execute("select * from t").fetchall()
        connection.commit()
        connection.close()
        table = [spelled({"code": code, "n": n}) for code, n in stored]
        if len({key_of(entry, "code") for entry in table}) < len(table):
            return
        lines = [spelled({"k": value}) for value in asked]
        options = {"on": "k=code", "from": "db"}
        assert run(lines, [], options, 1 << 20, base) == model(lines, table, [], "keep")
