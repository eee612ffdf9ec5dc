"""Data made safe to show."""

from __future__ import annotations

import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etlcli.io.terminal import safe, safe_json

# What a terminal obeys or turns around: C0, DEL, C1, zero-width and bidirectional controls, line separators, surrogates.
OBEYED = [
    *map(chr, range(0x00, 0x09)),
    *map(chr, range(0x0A, 0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff\ud800\udfff",
]


@pytest.mark.parametrize("char", OBEYED, ids=lambda char: f"{ord(char):04x}")
def test_everything_a_terminal_obeys_is_spelled_out(char: str) -> None:
    shown = safe(f"a{char}b")
    assert char not in shown
    assert shown.isascii()
    assert shown.startswith("a\\")
    assert shown.endswith("b")


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_unprintable_is_left(text: str) -> None:
    shown = safe(text)
    assert not [char for char in shown if unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} and char != "\t"]
    assert safe(shown) == shown
    shown.encode()


def test_plain_text_stays() -> None:
    text = 'a\tb é 漢字 🙂 "quoted" \\ path/to'
    assert safe(text) == text


def test_long_text_is_cut() -> None:
    assert safe("x" * 2000) == "x" * 2000
    assert safe("x" * 2001) == "x" * 2000 + "…"
    assert safe("abc", limit=2) == "ab…"


@given(st.text())
def test_json_stays_json(text: str) -> None:
    encoded = msgspec.json.encode({"a": text}).decode()
    assert msgspec.json.decode(safe_json(encoded)) == {"a": text}
    assert safe(safe_json(encoded), limit=1 << 20) == safe_json(encoded)


@pytest.mark.parametrize("text", ["##[error]x", "a ###[group]", "##vso[task.setvariable]x", "##[##["])
def test_no_command_to_a_runner_of_jobs(text: str) -> None:
    for shown in (safe(text), safe_json(f'"{text}"')):
        assert "##[" not in shown and "##vso[" not in shown
    assert safe("# a ## b [c] ##") == "# a ## b [c] ##"
