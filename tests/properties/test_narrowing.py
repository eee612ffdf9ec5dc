"""What a projection has learned of earlier records changes nothing that later ones say: values, their types, and what is no
record, against decoding line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etlcli.core import projection
from etlcli.core.batch import Batch, Span, decode_record
from etlcli.core.fields import MISSING, Path, are_labels, kinds_of, walk
from etlcli.core.intake import parse
from etlcli.core.ordering import KeyMaker
from etlcli.core.projection import Projection

PATHS: tuple[Path, ...] = (("a",), ("b",), ("c", "d"), ("e",))
TOKENS = ["1", "0", "-0", "1.0", "1e2", "1.10", "123456789012345678901234567890", "1" * 5000, "1e400", '"1"', '"\\u00e9"', '""',
          "true", "false", "null", "[]", '[1, "x"]', '{"d": 1}', '{"d": 0.1}']  # fmt: skip
PLAIN = ["1", "0", "-0", "1.0", "2e0", '"1"', "true", "null", "missing"]
FEW = st.sampled_from(["1", "2", '"x"', '"y"', "null"])


@pytest.fixture(autouse=True)
def learning_from_few() -> Iterator[None]:
    with mock.patch.object(projection, "_ENOUGH", 2):
        yield


def line(members: dict[str, str]) -> bytes:
    return ("{" + ", ".join(f"{json.dumps(name)}: {token}" for name, token in members.items()) + "}").encode()


def lines(tokens: st.SearchStrategy[str]) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.dictionaries(st.sampled_from("abcez"), tokens).map(line), max_size=6)


# Mostly alike, then something else, then alike again.
chunks = st.lists(lines(FEW) | lines(st.sampled_from(TOKENS)), max_size=8)


def same(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return [(type(one), repr(one)) for one in ones] == [(type(other), repr(other)) for other in others]


@settings(deadline=None)
@given(chunks)
def test_columns_and_rows(chunks: list[list[bytes]]) -> None:
    project = Projection(PATHS)
    for lines in chunks:
        chunk = b"".join(line + b"\n" for line in lines)
        batch, rejects, blank = parse(chunk, Span("in", 1, 0, chunk), project)
        assert (batch.lines, rejects, blank) == (lines, [], 0)
        rows = batch.rows(PATHS)
        for path, column in zip(PATHS, batch.columns(PATHS), strict=True):
            expected = [walk(decode_record(line), path) for line in lines]
            assert same(column, expected), path
            assert same(rows.access.values(path)(rows.items), expected), path
            present = [value for value in expected if value is not None and value is not MISSING]
            for kinds in (kinds_of(column), rows.kinds(path)):
                assert kinds >= set(map(type, expected))
                assert same(rows.access.present(path, kinds)(rows.items), present), path


@settings(deadline=None)
@given(st.lists(lines(FEW) | lines(st.sampled_from(PLAIN[:-1]))), st.permutations(PATHS), st.integers(1, len(PATHS)))
def test_records_are_dealt_by_what_is_equal(chunks: list[list[bytes]], paths: list[Path], count: int) -> None:
    project, by = Projection(PATHS), paths[:count]
    for lines in chunks:
        batch, *_ = parse(b"".join(line + b"\n" for line in lines), Span("in", 1, 0, b""), project)
        rows = batch.rows(PATHS)
        if not are_labels(map(rows.kinds, by)):
            continue
        piles: dict[Any, list[Any]] = {}
        for row, values in zip(rows.items, zip(*batch.columns(tuple(by)), strict=True), strict=True):
            piles.setdefault(values, []).append(row)
        assert rows.access.dealer(by)(rows.items) == list(piles.values())


@settings(deadline=None)
@given(chunks, st.sampled_from([b"[1]", b"1", b"nul", b'{"a":1}{"a":2}', b'{"a":1', b"", b'{"a":\xff}']))
def test_bad_lines_are_bad_whatever_was_learned(chunks: list[list[bytes]], bad: bytes) -> None:
    project = Projection(PATHS)
    for lines in chunks:
        chunk = b"".join(line + b"\n" for line in [*lines, bad])
        batch, rejects, blank = parse(chunk, Span("in", 1, 0, chunk), project)
        assert batch.lines == lines
        assert len(rejects) + blank == 1
        assert all(reject.raw == bad for reject in rejects)


@given(
    st.lists(
        st.lists(st.sampled_from(PLAIN) | st.sampled_from([*TOKENS, "missing"]), min_size=2, max_size=2), max_size=8
    )
)
def test_labels_are_equal_where_keys_are(tokens: list[list[str]]) -> None:
    rows = [[MISSING if token == "missing" else decode_record(b'{"v":%b}' % token.encode())["v"] for token in row]
            for row in tokens]  # fmt: skip
    both = [list(column) for column in zip(*rows, strict=True)] or [[], []]
    for columns in (both, both[:1]):
        if not are_labels(map(kinds_of, columns)):
            continue
        labels = list(zip(*columns, strict=True))
        keys = KeyMaker([False] * len(columns)).keys(columns)
        assert [labels.index(label) for label in labels] == [keys.index(key) for key in keys]


def test_what_is_given_to_another_process_has_rows_too() -> None:
    batch = Batch.of_lines([b'{"a":1,"b":"x"}', b'{"b":null}']).columns_only((("a",), ("b",)))
    rows = batch.rows((("b",), ("a",)))
    assert [rows.access.values((name,))(rows.items) for name in "ab"] == [[1, MISSING], ["x", None]]
    assert rows.kinds(("a",)) == {int, type(MISSING)}
    assert list(batch.rows(()).items) == [0, 1]


def test_learning_comes_to_an_end() -> None:
    """A field that is there twice, with two types, fits nothing that can be learned."""
    project = Projection(PATHS)
    learn = mock.Mock(wraps=project._learn)
    with mock.patch.object(Projection, "_learn", learn):
        for number in range(100):
            lines = [b'{"a":"x","a":%d}' % number] * 3
            batch, *_ = parse(b"".join(line + b"\n" for line in lines), Span("in", 1, 0, b""), project)
            assert batch.columns((("a",),)) == [[number] * 3]
    assert 0 < learn.call_count <= projection._PATIENCE


def decoded(project: Projection, *strings: str) -> list[Any]:
    chunk = b"".join(b'{"a":"%b"}\n' % string.encode() for string in strings)
    batch, *_ = parse(chunk, Span("in", 1, 0, chunk), project)
    (column,) = batch.columns((("a",),))
    assert column == list(strings)
    return column


def are_found(column: list[Any]) -> bool:
    """Whether equal strings are one object, which a decoder does not make of two."""
    return column[0] is column[1]


def test_few_strings_are_found_rather_than_made() -> None:
    project = Projection((("a",),))
    chunks = [decoded(project, "one", "one", "two") for _ in range(4)]
    assert [*map(are_found, chunks)] == [False, False, False, True]
    assert not are_found(decoded(project, "new", "new", "one"))
    assert not are_found(decoded(project, "one", "one"))  # it takes twice as long as before
    decoded(project, "new", "one", "two")
    assert are_found(decoded(project, "new", "new"))
    decoded(project, "x" * 100, "one")
    for _ in range(20):
        assert not are_found(decoded(project, "one", "one"))


def test_where_strings_are_always_new_nobody_looks_for_long() -> None:
    project = Projection((("a",),))
    with (
        mock.patch.object(projection, "_LOOKS", 5),
        mock.patch.object(projection._Strings, "meet", autospec=True) as meet,
    ):
        meet.side_effect = lambda strings, values: setattr(strings, "_looks", strings._looks - 1)
        for number in range(20):
            decoded(project, f"{number}", "x")
    assert meet.call_count == 5


def test_many_strings_are_no_type() -> None:
    project = Projection((("a",),))
    for _ in range(4):
        assert not are_found(decoded(project, "0", *map(str, range(300)))[:2])
