"""Compiling a schema, judging records, explaining what is wrong."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from etlcli.core.batch import Batch
from etlcli.errors import SchemaError
from etlcli.schema import verdict as verdict_module
from etlcli.schema.load import Schema
from etlcli.schema.verdict import MAX_ERRORS, MAX_EXCERPT, Verdict

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
ALL_DRAFTS = [
    DRAFT_4,
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-07/schema#",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
]


def invalid(schema: Any, *lines: str | bytes, formats: bool = False) -> list[int]:
    """The indices of the invalid lines: by the shape if there is one, and by the engine alone, which must agree."""
    batch = [line.encode() if isinstance(line, str) else line for line in lines]
    verdict = Verdict(Schema(schema, "s"), formats=formats)
    found = verdict.invalid(Batch.of_lines(batch))
    verdict._shape = None
    assert verdict.invalid(Batch.of_lines(batch)) == found
    return found


def errors(schema: Any, line: str | bytes) -> list[dict[str, Any]]:
    return Verdict(Schema(schema, "s")).errors(line.encode() if isinstance(line, str) else line)


# A bad schema


@pytest.mark.parametrize(
    ("schema", "message", "where"),
    [
        ({"properties": {"a/b": {"type": "integr"}}}, '"integr" is not a type', "s#/properties/a~1b/type"),
        ({"items": {"pattern": "(a"}}, '"\\(a" is not a regular expression', "s#/items/pattern"),
        ({"patternProperties": {"(a": {}}}, '"\\(a" is not a regular expression', "s#/patternProperties/(a"),
        ({"allOf": [{"minimum": "3"}]}, '"3" is not of type "number"', "s#/allOf/0/minimum"),
        ({"required": "a"}, "is not of type", "s#/required"),
        ({"properties": {"a": {"$ref": "#/$defs/a"}}}, "'#/\\$defs/a' leads to nothing", "s#/properties/a/$ref"),
        ({"$ref": "#nowhere"}, "'#nowhere' leads to nothing", "s#/$ref"),
        ({"$id": "http://[bad"}, "URI", "s"),
    ],
)  # fmt: skip
def test_a_bad_schema_names_the_place(schema: Any, message: str, where: str) -> None:
    with pytest.raises(SchemaError, match=message) as error:
        Verdict(Schema(schema, "s"))
    assert error.value.where == where
    assert error.value.exit_code == 78


@pytest.mark.parametrize("uri", ALL_DRAFTS)
def test_a_pattern_is_compiled_at_the_start_in_every_draft(uri: str) -> None:
    with pytest.raises(SchemaError, match="not a regular expression"):
        Verdict(Schema({"$schema": uri, "properties": {"a": {"pattern": "[z-a]"}}}, "s"))


@pytest.mark.parametrize("depth", [300, 900])
def test_a_schema_too_deep_for_the_engine_is_refused(depth: int) -> None:
    document: dict[str, Any] = {}
    for _ in range(depth):
        document = {"items": document}
    with pytest.raises(SchemaError):
        Verdict(Schema(document, "s"))


# P6: no network and no other file for schemas


@pytest.mark.parametrize(
    ("keyword", "place"),
    [("$ref", "root"), ("$ref", "property"), ("$ref", "unused"), ("$dynamicRef", "root"), ("$dynamicRef", "property")],
)
def test_p6_references_out_of_the_schema_are_refused_and_never_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyword: str, place: str
) -> None:
    (tmp_path / "other.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        monkeypatch.chdir(tmp_path)
        for uri in (f"http://127.0.0.1:{port}/x", (tmp_path / "other.json").as_uri(), "other.json", "other.json#/a"):
            inner = {keyword: uri}
            schema = {"root": inner, "property": {"properties": {"a": inner}}, "unused": {"$defs": {"a": inner}}}[place]
            with pytest.raises(SchemaError, match="leads out of the schema") as error:
                Verdict(Schema(schema, "s"))
            assert error.value.where.endswith(f"/{keyword}")
            assert "$defs" in error.value.hint
        with pytest.raises(SchemaError, match=r"unknown \$schema"):
            Schema({"$schema": f"http://127.0.0.1:{port}/x"}, "s")
        with pytest.raises(TimeoutError):
            server.accept()


def test_embedded_resources_anchors_and_the_meta_schema_are_in_reach() -> None:
    embedded = {
        "$id": "http://h/x/",
        "properties": {"a": {"$ref": "o.json"}},
        "$defs": {"o": {"$id": "o.json", "type": "null"}},
    }
    assert invalid(embedded, '{"a":null}', '{"a":1}') == [1]
    urn = {
        "properties": {"a": {"$ref": "urn:x:o#t"}},
        "$defs": {"o": {"$id": "urn:x:o", "$defs": {"t": {"$anchor": "t", "type": "null"}}}},
    }
    assert invalid(urn, '{"a":null}', '{"a":1}') == [1]
    assert invalid({"$ref": "https://json-schema.org/draft/2020-12/schema"}, '{"type":"null"}', '{"type":1}') == [1]


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"properties": {"a": {"$ref": "#"}}, "additionalProperties": {"$ref": "#"}},
    ],
)
def test_a_schema_inside_itself_ends(schema: Any) -> None:
    deep = '{"a":' * 249 + "1" + "}" * 249
    assert invalid(schema, "{}", deep) == []


# Verdicts


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"type": "integer"},
            ["1", "-0", "1.0", "1e2", "1e400", "1" + "0" * 30, "-0.0"],
            ["1.5", "true", '"1"', "null"],
        ),
        ({"type": "number"}, ["1", "1e400", "-1e400", "1e-400", "1.10", "9" * 4000], ["true", '"1"']),
        ({"maximum": 10**30}, ["1" + "0" * 30, "-1e400"], ["1" + "0" * 29 + "1" + "0", "1e400"]),
        ({"minimum": -(2**63)}, [str(-(2**63)), "1e400"], [str(-(2**63) - 1), "-1e400"]),
        ({"maximum": 9007199254740992}, ["9007199254740992"], ["9007199254740993"]),
        ({"exclusiveMaximum": 9007199254740993}, ["9007199254740992"], ["9007199254740993"]),
        ({"multipleOf": 3}, ["3" + "0" * 30, "3e400", "9007199254740993"], ["1" + "0" * 30, "1e400"]),
        ({"multipleOf": 0.01}, ["19.99", "4.35", "1.10"], ["0.001"]),
        ({"const": 10**30}, ["1" + "0" * 30], ["1" + "0" * 29 + "1"]),
        ({"enum": [1, "a", None]}, ["1", "1.0", '"a"', "null", '"\\u0061"'], ["true", '"1"', "false"]),
        ({"maxLength": 1}, ['"é"', '"😀"', '"\\ud83d\\ude00"', "12"], ['"ab"', '"e\u0301"']),
        ({"pattern": r"^\p{L}+$"}, ['"é"', "1"], ['"1"', '"a\\n"']),
        ({"uniqueItems": True}, ["[1, true]", "[]", '[1, "1"]'], ["[1, 1.0]", "[1e400, 1e400]"]),
    ],
)
def test_values_are_judged_exactly(schema: Any, good: list[str], bad: list[str]) -> None:
    lines = [f'{{"a": {value}}}' for value in good + bad]
    assert invalid({"properties": {"a": schema}}, *lines) == list(range(len(good), len(lines)))


def test_in_draft_4_a_float_is_no_integer() -> None:
    schema = {"$schema": DRAFT_4, "properties": {"a": {"type": "integer"}}}
    assert invalid(schema, '{"a":1}', '{"a":1.0}', '{"a":1e2}') == [1, 2]
    exclusive = {"$schema": DRAFT_4, "properties": {"a": {"minimum": 1, "exclusiveMinimum": True}}}
    assert invalid(exclusive, '{"a":1}', '{"a":2}') == [0]


@pytest.mark.parametrize("uri", ALL_DRAFTS)
def test_format_is_asserted_only_when_asked_for(uri: str) -> None:
    schema = {"$schema": uri, "properties": {"a": {"type": "string", "format": "date-time"}}}
    lines = ['{"a":"2013-01-01T10:00:00Z"}', '{"a":"yesterday"}']
    assert invalid(schema, *lines) == []
    assert invalid(schema, *lines, formats=True) == [1]


def test_a_boolean_schema_is_one() -> None:
    assert invalid(True, "{}", '{"a":1}') == []
    assert invalid(False, "{}", '{"a":1}') == [0, 1]


def test_an_integer_of_thousands_of_digits_is_one() -> None:
    endless = '{"a":' + "1" * 5000 + "}"
    assert invalid({"properties": {"a": {"type": "integer", "minimum": 5}}}, '{"a":1}', endless, '{"a":7}') == [0]
    # The engine cannot show it, but that must not end the run.
    assert "cannot be judged" in errors({"properties": {"a": {"type": "string"}}}, endless)[0]["message"]


def test_a_number_beyond_all_bounds_is_a_number() -> None:
    schema = {"properties": {"a": {"type": "number"}}, "required": ["a"]}
    endless = '{"a":1e9999999999999999999}'
    assert invalid(schema, '{"a":1}', endless, '{"a":2}', '{"b":1}') == [3]
    assert errors({"properties": {"a": {"type": "string"}}}, endless)[0]["value"] == "1e9999999999999999999"


def test_a_hostile_pattern_ends_in_a_reject() -> None:
    hostile = '{"a":"' + "a" * 40 + 'c"}'
    assert invalid({"properties": {"a": {"pattern": r"^(a*)*\1b$"}}}, hostile) == [0]
    assert invalid({"properties": {"a": {"pattern": "^(a+)+$"}}}, '{"a":"' + "a" * 100_000 + '!"}') == [0]


def test_an_engine_that_raises_makes_a_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def is_valid(self, record: Any) -> bool:
            raise ValueError("out of order")

        iter_errors = is_valid

    monkeypatch.setattr(verdict_module, "compiled", lambda schema, formats: Broken())
    verdict = Verdict(Schema({"not": {}}, "s"))
    assert verdict.invalid(Batch.of_lines([b"{}", b"{}"])) == [0, 1]
    assert verdict.errors(b"{}") == [{"pointer": "", "message": "cannot be judged: out of order"}]


# Explanations


def test_every_error_of_a_record_is_listed_in_full() -> None:
    schema = {
        "properties": {"a/b": {"items": {"type": "integer"}}, "n": {"$ref": "#/$defs/n"}},
        "required": ["z"],
        "$defs": {"n": {"maximum": 1}},
    }
    assert errors(schema, '{"a/b": [1, "x", 1.10], "n": 1e400}') == [
        {"pointer": "", "keyword": "required", "schema_pointer": "/required",
         "message": '"z" is a required property', "value": '{"a/b": [1, "x", 1.10], "n": 1e400}'},
        {"pointer": "/a~1b/1", "keyword": "type", "schema_pointer": "/properties/a~1b/items/type",
         "message": '"x" is not of type "integer"', "value": '"x"'},
        {"pointer": "/a~1b/2", "keyword": "type", "schema_pointer": "/properties/a~1b/items/type",
         "message": '1.10 is not of type "integer"', "value": "1.10"},
        {"pointer": "/n", "keyword": "maximum", "schema_pointer": "/$defs/n/maximum",
         "message": "1e400 is greater than the maximum of 1", "value": "1e400"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "record", "keyword", "pointer"),
    [
        ({"additionalProperties": False}, {"a": 1}, "additionalProperties", ""),
        ({"properties": {"b": {}}, "additionalProperties": False}, {"a": 1}, "additionalProperties", ""),
        ({"properties": {"a": False}}, {"a": 1}, "falseSchema", "/a"),
        ({"properties": {"additionalProperties": False}}, {"additionalProperties": 1}, "falseSchema", "/additionalProperties"),
        ({"propertyNames": {"maxLength": 0}}, {"a": 1}, "maxLength", ""),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, "dependentRequired", ""),
        ({"properties": {"a": {"contains": {}, "minContains": 2}}}, {"a": [1]}, "minContains", "/a"),
        ({"anyOf": [{"required": ["b"]}, {"required": ["c"]}]}, {}, "anyOf", ""),
        ({"if": {}, "then": {"required": ["b"]}}, {}, "required", ""),
        (False, {}, "falseSchema", ""),
    ],
)  # fmt: skip
def test_the_keyword_is_the_one_that_failed(schema: Any, record: Any, keyword: str, pointer: str) -> None:
    found = errors(schema, json.dumps(record))
    assert [(error["keyword"], error["pointer"]) for error in found] == [(keyword, pointer)]


def test_the_schema_pointer_leads_through_embedded_resources_from_the_root() -> None:
    schema = {
        "$id": "http://h/x/",
        "$ref": "o.json",
        "$defs": {"o": {"$id": "o.json", "properties": {"a": {"type": "null"}}}},
    }
    assert errors(schema, '{"a":1}')[0]["schema_pointer"] == "/$defs/o/properties/a/type"


def test_an_empty_name_on_the_way_to_an_error_does_no_harm() -> None:
    schema = {"properties": {"": {"items": {"properties": {"b": {"type": "null"}}}}}}
    (error,) = errors(schema, '{"":[{"b":"x"}]}')
    assert error["value"] == '"x"' and error["keyword"] == "type"


def test_values_and_messages_are_cut_and_a_character_is_not() -> None:
    for text in ("é" * 10_000_000, "😀" * 200, "\\u00e9" * 500):
        (error,) = errors({"properties": {"a": {"type": "null"}}}, f'{{"a": "{text}"}}')
        assert len(error["value"]) == MAX_EXCERPT
        assert error["value"].startswith('"' + text[:20]) and error["value"].endswith("…")
        assert len(error["message"]) < 100
    many = json.dumps({f"name{number}": 1 for number in range(1000)})
    assert len(errors({"properties": {"a": {}}, "additionalProperties": False}, many)[0]["message"]) <= 400


def test_the_number_of_errors_is_capped_and_says_so() -> None:
    found = errors({"required": [f"q{number}" for number in range(150)]}, "{}")
    assert len(found) == MAX_ERRORS + 1
    assert "the first 100" in found[-1]["message"]
    assert len(errors({"required": [f"q{number}" for number in range(100)]}, "{}")) == 100
