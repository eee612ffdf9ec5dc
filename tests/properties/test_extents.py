"""Extents give the lines that reading in one go gives, wherever they are cut."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etlcli.errors import InputOutputError
from etlcli.io import extents
from etlcli.io.extents import ExtentReader, extents_of, start_of
from etlcli.io.inputs import open_input

lines = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=12)


def read(
    path: Path, part: int, skipped: int = 0, max_line: int = 1 << 20, scale: int = 1
) -> list[tuple[bytes, int, bytes, int]]:
    """Chunk, offset, start of a long line and its length, of each block of each extent."""
    before = extents.PART, extents._NEAR
    extents.PART, extents._NEAR = part, max(1, part // 2)
    stream, reader = open_input(str(path)), ExtentReader()
    try:
        start = start_of(stream)
        found = extents_of(stream, str(path), start, skipped, scale=lambda: scale) if start is not None else ()
        return [tuple(reader.read(block, max_line)) for extent in found for block in extent.blocks()]
    finally:
        extents.PART, extents._NEAR = before
        reader.close()
        stream.close()


@settings(max_examples=150, deadline=None)
@given(lines, st.booleans(), st.integers(1, 40), st.integers(0, 5), st.integers(1, 4))
def test_all_lines_once_in_order(lines: list[bytes], ended: bool, part: int, skipped: int, scale: int) -> None:
    content = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    skipped = min(skipped, len(content))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "in")
        path.write_bytes(content)
        found = read(path, part, skipped, scale=scale)
        assert found == read(path, part, skipped)  # blocks are what parts of the usual size would be
    rest = content[skipped:]
    assert b"".join(chunk for chunk, *_ in found) == (rest if rest.endswith(b"\n") or not rest else rest + b"\n")
    for chunk, offset, *_ in found:
        assert (content + b"\n")[offset : offset + len(chunk)] == chunk


@settings(max_examples=150, deadline=None)
@given(lines, st.integers(1, 40), st.integers(1, 8))
def test_a_long_line_is_told_and_not_held(lines: list[bytes], part: int, max_line: int) -> None:
    content = b"\n".join([*lines, b""])
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "in")
        path.write_bytes(content)
        found = read(path, part, max_line=max_line)
    told = []
    for chunk, offset, long, size in found:
        told += chunk.splitlines(keepends=True)
        if size:
            assert size > max_line and content[offset + len(chunk) :].startswith(long)
            told.append(content[offset + len(chunk) :][: size + 1])
    assert b"".join(told) == content


@pytest.mark.parametrize("data", [b'{"a":1234}\r\n{"a":1}\n', b'{"a":1}\n{"a":1234}\r', b'{"a":1234}'])
def test_a_line_may_be_of_the_limit_wherever_an_extent_ends(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in"
    path.write_bytes(data)
    for part in range(1, len(data) + 1):
        assert not any(size for *_, size in read(path, part, max_line=10))


def test_short_lines_make_small_extents(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"{}\n" * 100_000)
    assert max(chunk.count(b"\n") for chunk, *_ in read(path, 1 << 20)) <= extents._LINES + 1


def test_what_is_appended_later_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"{}\n{")
    stream, reader = open_input(str(path)), ExtentReader()
    (extent,) = extents_of(stream, str(path), start_of(stream) or b"", 0)
    with path.open("ab") as file:
        file.write(b'"a":1}\n{}\n')
    assert reader.read(extent, 100).chunk == b"{}\n{\n"
    os.truncate(path, 2)
    with pytest.raises(InputOutputError, match="cut short"):
        reader.read(extent, 100)
    reader.close()
    stream.close()


def test_a_file_that_is_changed_where_it_stands_gives_no_half_lines(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b'{"a":1}\n{"a":2}\n')
    stream, reader = open_input(str(path)), ExtentReader()
    (extent,) = extents_of(stream, str(path), start_of(stream) or b"", 0)
    pread = extents._pread

    def pread_and_change(*args: Any) -> bytes:
        data = pread(*args)
        path.write_bytes(b'{"a":1234,"b":5}')
        return data

    with mock.patch.object(extents, "_pread", pread_and_change), pytest.raises(InputOutputError, match="changed"):
        reader.read(extent, 100)
    reader.close()
    stream.close()
