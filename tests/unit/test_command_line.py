"""What a stage's own positional arguments share the command line with: the input files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from conftest import Run

from etlcli.cli.component import component_command, step
from etlcli.errors import UsageError


def parsed(name: str, *words: str) -> dict[str, Any]:
    return component_command(name).make_context(name, list(words)).params


def test_words_that_are_assignments_are_the_options() -> None:
    found = parsed("map", "a = 1", "x.ndjson", "b.c=a+1", "-", "/o/d d = 2", "--drop", "z")
    assert (
        found["set"] == ("a = 1", "b.c=a+1", "/o/d d = 2")
        and found["inputs"] == ("x.ndjson", "-")
        and found["drop"] == "z"
    )


@pytest.mark.parametrize(
    "word", ["x.ndjson", "/data/year=2013/x.ndjson", "./a=1", "a == 1", "a<=1", "-", "../a = 1", "dir/a=1", "f(a) = 1"]
)
def test_other_words_are_files(word: str) -> None:
    found = parsed("map", "--drop", "a", word)
    assert found["set"] == () and found["inputs"] == (word,)


def test_an_assignment_that_is_a_file_too_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=1").touch()
    with pytest.raises(click.UsageError, match="is a file too"):
        parsed("map", "a=1")


def test_the_first_word_of_filter_is_the_expression() -> None:
    found = parsed("filter", "a > 1", "x.ndjson", "y.ndjson")
    assert found["expr"] == "a > 1" and found["inputs"] == ("x.ndjson", "y.ndjson")
    with pytest.raises(click.MissingParameter):
        parsed("filter")


def test_a_rule_a_flag() -> None:
    assert parsed("validate", "--rule", "a > 1", "--rule", "b > 1")["rules"] == ("a > 1", "b > 1")


@pytest.mark.parametrize(
    ("name", "option", "shown"),
    [
        ("dedupe-cache", "cache", "--cache"),
        ("dedupe-cache", "key", "--key"),
        ("dedupe-cache", "ttl", "--ttl"),
        ("group", "by", "--by"),
        ("filter", "expr", "EXPR"),
    ],
)
def test_an_empty_value_is_not_taken_for_none(name: str, option: str, shown: str) -> None:
    """--cache "$SEEN" without SEEN is no run without a cache, and no key is not the whole record."""
    with pytest.raises(UsageError, match=f"^{shown}: .*(empty|'')"):
        step(name, {option: ""})


def test_a_fallback_that_is_empty_is_refused(etl: Run) -> None:
    done = etl("filter", "true", "--fallback", "")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--fallback: '' is not a JSON object" in done.stderr
