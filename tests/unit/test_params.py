"""Options, declared once: what values they take, from a command line and from a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from etlcli.core import params
from etlcli.core.params import Declared, format_size, parse_duration, parse_size


class Example(Declared):
    name = params.text("A name.")
    file = params.path("A file.")
    inputs = params.paths("Inputs.")
    rules = params.texts("Rules.")
    by = params.fields("Fields.")
    quick = params.flag("Quick.")
    count = params.integer("A count.", minimum=1)
    room = params.size("Room.", default=1024)
    wait = params.duration("A wait.", default=1.5)
    kind = params.choice(("one", "two"), "A kind.", default="one")


class Positional(Declared):
    set = params.texts("Assignments.", metavar="ASSIGNMENT", takes=lambda word: "=" in word)
    rules = params.texts("Rules.", singular="rule")
    expr = params.text("An expression.", metavar="EXPR", positional=True)


def test_what_an_option_is_called_on_the_command_line() -> None:
    by_name = {option.name: option for option in Positional.options}
    assert by_name["rules"].flag == by_name["rules"].shown == "--rule"
    assert by_name["expr"].shown == "EXPR" and by_name["set"].shown == "ASSIGNMENT"
    assert by_name["set"].positional and by_name["set"].repeats


def test_defaults() -> None:
    assert Example().values() == {
        "name": None,
        "file": None,
        "inputs": (),
        "rules": (),
        "by": (),
        "quick": False,
        "count": None,
        "room": 1024,
        "wait": 1.5,
        "kind": "one",
    }


@pytest.mark.parametrize(
    ("name", "given", "parsed"),
    [
        ("name", "x", "x"),
        ("inputs", "a", ("a",)),
        ("inputs", ["a", "b"], ("a", "b")),
        ("rules", ("a,b",), ("a,b",)),
        ("by", "a, -b.c", ("a", "-b.c")),
        ("by", ["a", "b,c"], ("a", "b", "c")),
        ("quick", True, True),
        ("count", "7", 7),
        ("count", 7, 7),
        ("room", "64MiB", 64 << 20),
        ("room", 4096, 4096),
        ("wait", "500ms", 0.5),
        ("wait", 2, 2),
        ("kind", "two", "two"),
    ],
)
def test_text_and_yaml_values(name: str, given: Any, parsed: Any) -> None:
    assert getattr(Example(**{name: given}), name) == parsed


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("name", 1, "name: expected text"),
        ("name", "a\0b", "name: must not hold a NUL"),
        ("inputs", [1], "inputs: expected text"),
        ("by", "a,,b", "by: a field name is empty"),
        ("by", "", "by: a field name is empty"),
        ("quick", "yes", "quick: expected true or false"),
        ("quick", 1, "quick: expected true or false"),
        ("count", 0, "count: must be at least 1"),
        ("count", "x", "count: expected a whole number"),
        ("count", 1.0, "count: expected a whole number"),
        ("count", True, "count: expected a whole number"),
        ("count", "9" * 30, "count: expected a whole number"),
        ("room", "64 parsecs", "room: expected a size"),
        ("room", "0", "room: expected a size"),
        ("room", True, "room: expected a size"),
        ("room", -1, "room: expected a size"),
        ("wait", "1 fortnight", "wait: expected a duration"),
        ("wait", "-1s", "wait: expected a duration"),
        ("kind", "three", "kind: expected one of one, two"),
        ("nmae", "x", "unknown option 'nmae'"),
    ],
)
def test_values_that_cannot_be(name: str, given: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Example(**{name: given})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, -1])
def test_no_size_or_duration_is_negative_or_endless(value: float) -> None:
    for name in ("room", "wait"):
        with pytest.raises(ValueError, match=f"^{name}: "):
            Example(**{name: value})


def test_required() -> None:
    class Needs(Declared):
        by = params.fields("Fields.", required=True)

    for values in ({}, {"by": None}):
        with pytest.raises(ValueError, match="by: required"):
            Needs(**values)
    with pytest.raises(ValueError, match="by: the list is empty"):
        Needs(by=[])


def test_options_are_inherited_and_in_order() -> None:
    class More(Example):
        extra = params.text("More.")

    assert [option.name for option in More.options] == [*(option.name for option in Example.options), "extra"]
    assert More.options[-1].flag == "--extra"
    assert "extra" not in {option.name for option in Example.options}


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1k", 1024), ("1KiB", 1024), ("1kB", 1000), ("1.5MiB", 3 << 19), ("2 GiB", 2 << 30), ("1T", 1 << 40), ("3b", 3)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("2m", 120), ("1.5h", 5400), ("1d", 86400), ("7", 7), ("5us", 5e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("size", [1, 1000, 1024, 1536, 64 << 20, 512 << 20, 1 << 30])
def test_a_formatted_size_reads_as_itself(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_schemas_for_recipes() -> None:
    schemas = {option.name: option.schema() for option in Example.options}
    assert schemas["count"] == {"type": "integer", "minimum": 1, "description": "A count."}
    assert schemas["kind"]["enum"] == ["one", "two"]
    assert schemas["by"]["anyOf"][1] == {"type": "array", "items": {"type": "string"}}
