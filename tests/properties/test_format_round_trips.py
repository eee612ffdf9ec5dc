"""What is written is read again, and the size of the blocks it is read in makes no difference."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from formats import read, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etlcli.formats import csv

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
# Texts that some reader somewhere takes for something else.
traps = st.sampled_from(["no", "Yes", "null", "~", "1:30", "017", "0x1f", "1e3", "-", "---", "...", "- a", "a: b", "#c", "", " ", "NA",
                         "2013-01-01", "<<", "=", "!x", "&a", "*a", "%x", "@a", "`a", "'", '"', '""', "a,b", "a\tb", "a\nb", "\r", "\x00",
                         "\x85", "\u2028", "\ufeff", "|", ">", "?", ":", "true", "+1", ".5", "[", "{", "]", "🙂"])  # fmt: skip
numbers = st.sampled_from(
    ["0", "-0", "1.10", "1e400", "-1E-5", "123456789012345678901234567890", "0.1", "1e2", "9007199254740993"]
)
scalars = st.one_of(
    st.one_of(texts, traps).map(json.dumps), numbers, st.sampled_from(["null", "true", "false"]),
    st.integers().map(str),
)  # fmt: skip


def _object(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.dictionaries(st.one_of(texts, traps), values, max_size=5)
    return members.map(lambda d: "{" + ",".join(f"{json.dumps(k)}:{v}" for k, v in d.items()) + "}")


values = st.recursive(
    scalars, lambda inner: st.one_of(_object(inner), st.lists(inner, max_size=3).map(lambda v: f"[{','.join(v)}]"))
)
records = st.lists(_object(values), max_size=6)


def exact(line: str | bytes) -> Any:
    """The value with its numbers as they are spelled."""
    return json.loads(line, parse_int=lambda text: ("number", text), parse_float=lambda text: ("number", text))


@pytest.mark.parametrize("name", ["ndjson", "json"])
@given(lines=records)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
def test_P2_bytes_survive(name: str, lines: list[str]) -> None:
    assert [item[0].decode() for item in read(name, write(name, lines))] == lines


@given(lines=records)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_yaml_keeps_values_and_spelling_of_numbers(lines: list[str]) -> None:
    got = [exact(item[0]) for item in read("yaml", write("yaml", lines))]
    assert got == [exact(line) for line in lines]


@pytest.mark.parametrize("name", ["csv", "tsv"])
@given(rows=st.lists(st.tuples(scalars, scalars), min_size=1, max_size=6))
def test_csv_keeps_what_it_can_say(name: str, rows: list[tuple[str, str]]) -> None:
    """Everything but the difference between a string that spells a number, true, null, and the value itself."""
    lines = [f'{{"a":{a},"b":{b}}}' for a, b in rows]
    got = [exact(item[0]) for item in read(name, write(name, lines))]
    assert [{key: _as_cell(value) for key, value in record.items()} for record in got] == [
        {key: _as_cell(value) for key, value in exact(line).items()} for line in lines
    ]


@pytest.mark.parametrize("header", ["k", "k,%s"])
@given(
    text=st.lists(
        st.sampled_from(["1", "a", "%", "007", "1.10", "é", "١", ",", ",", "\n", "\n", "\r\n", '"', '"x,"', "\r"])
    ).map("".join)
)
@settings(max_examples=150)
def test_csv_a_chunk_at_a_time_and_row_by_row_are_the_same(header: str, text: str) -> None:
    data = f"{header}\n{text}".encode()
    with mock.patch.object(csv.Reader, "_convert_plain", return_value=None):
        row_by_row = read("csv", data)
    assert read("csv", data) == row_by_row


def _as_cell(value: Any) -> str:
    if isinstance(value, tuple):
        return str(value[1])
    return {None: "", True: "true", False: "false"}.get(value, value) if not isinstance(value, str) else value


@pytest.mark.parametrize("name", ["ndjson", "json", "csv", "tsv", "yaml"])
@given(lines=st.lists(st.tuples(scalars, scalars), min_size=1, max_size=5), size=st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_block_size_makes_no_difference(name: str, lines: list[tuple[str, str]], size: int) -> None:
    data = write(name, [f'{{"a":{a},"é":{b}}}' for a, b in lines])
    assert read(name, data, size) == read(name, data)


@pytest.mark.parametrize("name", ["ndjson", "json", "csv", "tsv", "yaml"])
@given(lines=st.lists(st.tuples(scalars, scalars), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_offsets_point_at_the_record(name: str, lines: list[tuple[str, str]]) -> None:
    data = write(name, [f'{{"a":{a},"é":{b}}}' for a, b in lines])
    for _, line, offset in read(name, data):
        assert data[:offset].count(b"\n") + 1 == line
