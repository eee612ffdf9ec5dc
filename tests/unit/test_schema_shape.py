"""The fast yes: which schemas have one, what it suspects, and that the sample's is used."""

from __future__ import annotations

import csv
import gzip
import json
from importlib.resources import files
from typing import Any

import pytest

from etlcli.core.batch import Batch
from etlcli.schema.load import Schema
from etlcli.schema.shape import Shape
from etlcli.schema.verdict import Verdict, subvalidator


def shape_of(schema: Any, *, formats: bool = False) -> Shape | None:
    known = Schema(schema, "s")
    return Shape.of(known, lambda part: subvalidator(part, known.draft, formats), formats=formats)


def suspects(schema: Any, *lines: str, formats: bool = False) -> list[int]:
    shape = shape_of(schema, formats=formats)
    assert shape is not None
    return list(shape.suspects(Batch.of_lines([line.encode() for line in lines])))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "http://h/x", "title": "t", "x-note": {"not": {}}},
        {"properties": {"a": {"type": ["integer", "null", "string"], "minimum": 0, "maxLength": 3, "default": 1}}},
        {"properties": {"a": {"$ref": "#/$defs/a"}, "b": {"items": {"$ref": "#/$defs/a"}}}, "$defs": {"a": {"enum": ["x", 1]}}},
        {"properties": {"a b": {"type": "number", "exclusiveMinimum": 0.5}, "é": {"type": "object", "required": ["z"]}}},
        {"properties": {"a": {"pattern": "^(?=x).*$"}}},
        {"properties": {'q"uote': True}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
    ],
)  # fmt: skip
def test_schemas_of_tables_have_a_shape(schema: Any) -> None:
    assert shape_of(schema) is not None


@pytest.mark.parametrize(
    "schema",
    [
        True,
        False,
        {"type": "array"},
        {"enum": [{}]},
        {"anyOf": [{}]},
        {"minProperties": 1},
        {"patternProperties": {"a": {}}},
        {"additionalProperties": {"type": "null"}},
        {"additionalProperties": False, "required": ["a"]},
        {"unknown": 1},
        {"properties": {"a": False}},
        {"properties": {"a": {"$ref": "#"}}},
        {"properties": {"a": {"$ref": "#/$defs/a", "type": "null"}}, "$defs": {"a": {}}},
        {"properties": {"a": {"$id": "http://h/x"}}},
        {"properties": {"a": {"uniqueItems": True}}},
        {"properties": {"a": {"prefixItems": [{}]}}},
        {"properties": {"a": {"enum": [1.5, {}]}}},
        {"properties": {"a": {"maximum": 2**53 + 1}}},
        {"properties": {"a": {"maximum": 1e300}}},
        {"properties": {"a": {"minLength": 2.0}}},
        {"properties": {'q"uote': {"type": "null"}}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"$schema": "http://json-schema.org/draft-04/schema#", "properties": {"a": {"minimum": 1, "exclusiveMinimum": True}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"items": [{"type": "null"}]}}},
    ],
)  # fmt: skip
def test_what_a_shape_cannot_express_it_leaves_to_the_engine(schema: Any) -> None:
    assert shape_of(schema) is None


def test_a_schema_that_multiplies_is_left_to_the_engine() -> None:
    """Twenty definitions, each with two references to the next: a million types."""
    defs = {
        f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}, "b": {"$ref": f"#/$defs/d{n + 1}"}}}
        for n in range(20)
    }
    assert shape_of({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**defs, "d20": {"type": "null"}}}) is None


def test_only_the_failing_records_are_suspected() -> None:
    schema = {
        "properties": {
            "a": {"type": "integer"},
            "s": {"pattern": "^a.$"},
            "n": {"items": {"properties": {"p": {"pattern": "b$"}}}},
        }
    }
    lines = [
        '{"a":1,"s":"ab"}',
        '{"a":"x"}',
        '{"a":2,"s":"b"}',
        '{"a":3,"s":"ac","n":[{"p":"b"},{"p":"c"}]}',
        '{"n":[{"p":"ab"},{"p":1},5]}',
        '{"n":{"p":"c"}}',
        '{"s":"b","a":null}',
    ]
    assert suspects(schema, *lines) == [1, 2, 3, 6]
    assert suspects(schema, lines[0], lines[4], lines[5]) == []


def test_a_batch_that_mostly_fails_is_left_to_the_engine_as_a_whole() -> None:
    good, bad = '{"a":1}', '{"a":"x"}'
    schema = {"properties": {"a": {"type": "integer"}}}
    lines = [bad] * 100 + [good] * 10
    assert suspects(schema, *lines) == list(range(110))
    assert Verdict(Schema(schema, "s")).invalid(Batch.of_lines([line.encode() for line in lines])) == list(range(100))


def test_a_string_that_was_bad_once_stays_bad() -> None:
    shape = shape_of({"properties": {"a": {"pattern": "^a"}}})
    assert shape is not None
    for _ in range(3):
        assert list(shape.suspects(Batch.of_lines([b'{"a":"a1"}', b'{"a":"b"}', b'{"a":"a2"}']))) == [1]


def test_formats_are_checked_when_they_are_asserted() -> None:
    schema = {"properties": {"a": {"type": "string", "format": "date"}, "b": {"format": "ipv4"}}}
    lines = ['{"a":"2013-01-01"}', '{"a":"x"}', '{"b":5}', '{"b":"x"}']
    assert suspects(schema, *lines) == []
    assert suspects(schema, *lines, formats=True) == [1, 3]


def sample(name: str) -> bytes:
    return files("etlcli").joinpath("sample", name).read_bytes()


def test_the_sample_schema_is_answered_by_its_shape_alone() -> None:
    schema = Schema(json.loads(sample("flight.schema.json")), "s")
    lines = [json.dumps({k: as_number(v) for k, v in row.items()}).encode() for row in flights()]
    verdict = Verdict(schema)
    assert verdict._shape is not None
    batch = Batch.of_lines(lines)
    invalid = verdict.invalid(batch)
    assert 0 < len(invalid) < len(lines) / 10
    assert list(verdict.suspects(batch)) == invalid  # nothing valid was sent to the engine
    verdict._shape = None
    assert verdict.invalid(batch) == invalid


def flights() -> list[dict[str, str]]:
    return list(csv.DictReader(gzip.decompress(sample("flights.csv.gz")).decode().splitlines()))


def as_number(cell: str) -> Any:
    return int(cell) if cell.lstrip("-").isdigit() else cell
