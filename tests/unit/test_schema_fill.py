"""Defaults and lossless coercion: what changes, into what, and what must not."""

from __future__ import annotations

from typing import Any

import pytest

from etlcli.core.batch import Batch
from etlcli.errors import SchemaError
from etlcli.schema.fill import Fill
from etlcli.schema.load import Schema

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


def filled(schema: Any, *lines: str, defaults: bool = True, coerce: bool = True) -> list[str]:
    batch = Batch.of_lines([line.encode() for line in lines])
    changes = Fill(Schema(schema, "s"), defaults=defaults, coerce=coerce).changes(batch)
    assert all(line != batch.lines[index] for index, line in changes.items())
    return [line.decode() for line in batch.replace(changes).lines]


def coerced(types: Any, value: str, draft: str = "https://json-schema.org/draft/2020-12/schema") -> str:
    """What becomes of a value, as JSON text, where the schema wants these types."""
    schema = {"$schema": draft, "properties": {"a": {"type": types}}}
    (line,) = filled(schema, f'{{"a":{value}}}')
    return line.removeprefix('{"a":').removesuffix("}")


@pytest.mark.parametrize(
    ("types", "value", "result"),
    [
        ("integer", '"12"', "12"),
        ("integer", '"-12"', "-12"),
        ("integer", '"-0"', "-0"),
        ("integer", '"1.0"', "1.0"),
        ("integer", '"1e2"', "1e2"),
        ("integer", '"120e-1"', "120e-1"),
        ("integer", '"0.00"', "0.00"),
        ("integer", '"1e400"', "1e400"),
        ("integer", '"123456789012345678901234567890"', "123456789012345678901234567890"),
        ("integer", '"\\u0031"', "1"),
        ("number", '"1.10"', "1.10"),
        ("number", '"-1.5E+3"', "-1.5E+3"),
        ("number", '"1e400"', "1e400"),
        ("number", '"12"', "12"),
        ("boolean", '"true"', "true"),
        ("boolean", '"false"', "false"),
        (["boolean", "integer"], '"1"', "1"),
        (["boolean", "integer"], '"true"', "true"),
        (["null", "number"], '"1.5"', "1.5"),
        ("string", "12", '"12"'),
        ("string", "-0", '"-0"'),
        ("string", "0", '"0"'),
        ("string", "1.10", '"1.10"'),
        ("string", "1e400", '"1e400"'),
        ("string", "123456789012345678901234567890", '"123456789012345678901234567890"'),
        (["string", "null"], "1E2", '"1E2"'),
        (["string", "integer"], "1.5", '"1.5"'),
    ],
)
def test_a_type_changes_where_nothing_is_lost(types: Any, value: str, result: str) -> None:
    assert coerced(types, value) == result


@pytest.mark.parametrize(
    ("types", "value"),
    [
        *(
            ("integer", f'"{text}"')
            for text in ("NA", "", " 12", "12 ", "+12", "007", "0x1F", "1.5", "1e-1", "12.", "١", "1_0")
        ),
        *(
            ("integer", f'"{text}"')
            for text in ("1\\n", "true", "null", "NaN", "--1", "1e", "12.50", "1e99999999999999999999")
        ),
        *(("number", f'"{text}"') for text in ("NA", ".5", "5.", "01", "Infinity", "1,5", "1e9999999999999999999")),
        *(("boolean", value) for value in ("1", "0", "1.0", '"TRUE"', '"yes"', '"1"', "null", '""')),
        *(("string", value) for value in ("true", "null", "[1]", '{"a":1}')),
        *(("null", value) for value in ('""', '"null"', "0")),
        *((["integer", "string"], value) for value in ('"12"', "12", "1.0", '"NA"')),
        ("integer", "1.5"),
        ("integer", "true"),
        ("integer", "null"),
        ("number", "true"),
        (["integer", "null"], '""'),
        ("array", '"12"'),
        (["object", "null"], "12"),
    ],
)
def test_a_type_stays_where_something_would_be_lost_or_the_type_is_wanted(types: Any, value: str) -> None:
    assert coerced(types, value) == value


def test_in_draft_4_only_a_plain_integer_is_one() -> None:
    assert coerced("integer", '"1.0"', DRAFT_4) == '"1.0"'
    assert coerced("integer", '"1"', DRAFT_4) == "1"
    assert coerced(["integer", "string"], "1.0", DRAFT_4) == '"1.0"'
    assert coerced("number", '"1.0"', DRAFT_4) == "1.0"


def test_a_column_of_equal_numbers_keeps_each_spelling() -> None:
    schema = {"properties": {"a": {"type": "string"}}}
    lines = [f'{{"a":{number}}}' for number in ("1", "1.0", "1.00", "1e0", "0", "-0", "0.0")]
    assert filled(schema, *lines) == [line.replace(":", ':"').replace("}", '"}') for line in lines]


def test_the_other_fields_of_a_changed_record_keep_their_bytes() -> None:
    line = r'{"n": 123456789012345678901234567890, "e":"\u00e9\/", "f": 1.10, "h":1e400, "a":"12", "d":{"x" : 1.0}}'
    (changed,) = filled({"properties": {"a": {"type": "integer"}}}, line)
    assert changed == r'{"n":123456789012345678901234567890,"e":"\u00e9\/","f":1.10,"h":1e400,"a":12,"d":{"x" : 1.0}}'


def test_coercion_reaches_through_objects_arrays_references_and_all_of() -> None:
    schema = {
        "properties": {"o": {"$ref": "#/$defs/o"}, "l": {"items": {"items": {"$ref": "#/$defs/o"}}}},
        "allOf": [{"properties": {"o": {"properties": {"b": {"type": "boolean"}}}}}],
        "$defs": {"o": {"properties": {"a": {"type": "integer"}, "o": {"$ref": "#/$defs/o"}}}},
    }
    line = '{"o":{"a":"1","b":"true","o":{"a":"2"}},"l":[[{"a":"3"},"4",{"o":{"a":"5"}}],"6"]}'
    assert filled(schema, line) == ['{"o":{"a":1,"b":true,"o":{"a":2}},"l":[[{"a":3},"4",{"o":{"a":5}}],"6"]}']


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_choices_change_nothing(keyword: str) -> None:
    choice = {"properties": {"a": {"type": "integer", "default": 1}}, "required": ["a"]}
    for schema in ({keyword: [choice]}, {"if": choice, "then": choice, "else": choice}, {"not": choice}):
        assert filled(schema, '{"a":"1"}', "{}") == ['{"a":"1"}', "{}"]


def test_types_of_all_that_holds_are_taken_together() -> None:
    wanted = {
        "properties": {"a": {"type": ["integer", "string"]}},
        "allOf": [{"properties": {"a": {"type": "number"}}}],
    }
    assert filled(wanted, '{"a":"12"}', '{"a":"1.5"}') == ['{"a":12}', '{"a":"1.5"}']


def test_a_default_is_filled_in_where_its_field_is_required_and_missing() -> None:
    schema = {
        "properties": {
            "a": {"default": 1},
            "b": {"default": "é"},
            "c": {"default": None},
            "d": {},
            "e": {"default": 5},
        },
        "required": ["c", "a", "b", "d"],
    }
    assert filled(schema, '{"x": 1.10}', '{"b":null,"a":""}', '{"a":0,"b":0,"c": 0}', "{}") == [
        '{"x":1.10,"a":1,"b":"é","c":null}',
        '{"b":null,"a":"","c":null}',
        '{"a":0,"b":0,"c": 0}',
        '{"a":1,"b":"é","c":null}',
    ]


def test_defaults_are_filled_in_inside_objects_arrays_and_other_defaults() -> None:
    schema = {
        "properties": {"o": {"$ref": "#/$defs/o"}, "l": {"items": {"$ref": "#/$defs/o"}}},
        "required": ["o"],
        "$defs": {
            "o": {"default": {"k": 0}, "properties": {"q": {"default": 1.5}, "r": {"default": [{}], "items": {"$ref": "#/$defs/i"}}},
                  "required": ["q", "r"]},
            "i": {"properties": {"z": {"default": 1e300}}, "required": ["z"]},
        },
    }  # fmt: skip
    inside = '"q":1.5,"r":[{"z":1e300}]'
    assert filled(schema, '{"l":[{"q":0},5,{}]}', '{"o":{"r":[{"z":1},{}]}}', '{"o":5}') == [
        f'{{"l":[{{"q":0,"r":[{{"z":1e300}}]}},5,{{{inside}}}],"o":{{"k":0,{inside}}}}}',
        '{"o":{"r":[{"z":1},{"z":1e300}],"q":1.5}}',
        '{"o":5}',
    ]


def test_one_record_can_need_everything_at_once() -> None:
    schema = {
        "properties": {"a": {"type": "integer"}, "d": {"default": 1}, "o": {"properties": {"b": {"type": "string"}}}},
        "required": ["d"],
    }
    assert filled(schema, '{"o":{"b":1.10},"a":"1"}', '{"a":"2"}') == [
        '{"o":{"b":"1.10"},"a":1,"d":1}',
        '{"a":2,"d":1}',
    ]


def test_required_and_default_may_come_from_different_places() -> None:
    schema = {
        "allOf": [{"required": ["a"]}, {"properties": {"a": {"$ref": "#/$defs/a"}}}],
        "$defs": {"a": {"default": 7}},
    }
    assert filled(schema, "{}") == ['{"a":7}']
    # Until draft 7 a reference stands for the whole subschema: what is beside it does not count.
    beside = {
        "$schema": DRAFT_7,
        "properties": {"a": {"$ref": "#/definitions/a", "default": 1}},
        "required": ["a"],
        "definitions": {"a": {}},
    }
    assert filled(beside, "{}") == ["{}"]


def test_each_of_the_two_can_be_had_alone() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "d": {"default": 1}}, "required": ["d"]}
    assert filled(schema, '{"a":"1"}', coerce=False) == ['{"a":"1","d":1}']
    assert filled(schema, '{"a":"1"}', defaults=False) == ['{"a":1}']
    assert not Fill(Schema(schema, "s"), defaults=False, coerce=False).active
    assert not Fill(Schema({"properties": {"a": {"type": "object"}}}, "s"), defaults=True, coerce=True).active


def test_of_duplicate_keys_the_last_counts_and_stays() -> None:
    assert filled({"properties": {"a": {"type": "integer"}}}, '{"a":"1","a":"2"}', '{"a":"1","a":2}') == [
        '{"a":2}',
        '{"a":"1","a":2}',
    ]


def test_names_may_be_odd() -> None:
    schema = {
        "properties": {
            'q"': {"type": "integer"},
            "": {"type": "integer"},
            "a/b.c~": {"properties": {"0": {"type": "integer"}}},
        }
    }
    line = r'{"q\"":"1","":"2","a/b.c~":{"0":"3"}}'
    assert filled(schema, line) == [r'{"q\"":1,"":2,"a/b.c~":{"0":3}}']


def test_a_number_beyond_all_bounds_keeps_its_bytes() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "d": {"default": 1}}, "required": ["d"]}
    huge = '{"x":1e9999999999999999999,"a":"1"}'
    assert filled(schema, '{"a":"1"}', huge, "{}") == [
        '{"a":1,"d":1}', '{"x":1e9999999999999999999,"a":1,"d":1}', '{"d":1}',
    ]  # fmt: skip


def test_defaults_without_end_are_a_bad_schema() -> None:
    with pytest.raises(SchemaError, match="no end"):
        filled({"properties": {"n": {"$ref": "#", "default": {}}}, "required": ["n"]}, "{}")


def test_a_schema_that_multiplies_is_refused_or_small() -> None:
    """Subschemas that hold together are one node, so twenty levels of two references each are twenty nodes."""
    defs = {
        f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}, "b": {"$ref": f"#/$defs/d{n + 1}"}}}
        for n in range(20)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": {**defs, "d20": {"type": "integer"}}}
    line = '{"a":' * 20 + '"1"' + "}" * 20
    assert filled(schema, line) == [line.replace('"1"', "1")]
