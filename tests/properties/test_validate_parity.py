"""Verdicts against python-jsonschema, the shape against the engine, and what a repair may never do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jsonschema
import jsonschema_rs
import msgspec
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from etlcli.core.batch import Batch, Span
from etlcli.core.fields import MISSING, Path, exact_number, pointer
from etlcli.core.intake import parse
from etlcli.core.projection import projection
from etlcli.schema.fill import Fill
from etlcli.schema.load import Schema
from etlcli.schema.shape import Shape, _struct
from etlcli.schema.verdict import Verdict, compiled, subvalidator

DRAFTS = {
    "http://json-schema.org/draft-04/schema#": jsonschema.Draft4Validator,
    "http://json-schema.org/draft-06/schema#": jsonschema.Draft6Validator,
    "http://json-schema.org/draft-07/schema#": jsonschema.Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema.Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": jsonschema.Draft202012Validator,
}
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
NAMES = ["a", "b", "c", "a b", "é", ""]
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# JSON as text, so that spellings, duplicate keys and numbers beyond any type are in it.
NUMBERS = ["0", "-0", "1", "2", "3", "-1", "12", "1.0", "1.5", "-0.0", "1e2", "1.10", "2e0", "0.1", "10",
           "9007199254740992", "9007199254740993", "9007199254740993.0", "9223372036854775807", "9223372036854775808",
           "123456789012345678901234567890", "-123456789012345678901234567890", "1e30", "1e300", "1e-400"]  # fmt: skip
HUGE = ["1e400", "-1e400", "1.5e999"]
STRINGS = ['""', '"a"', '"aa"', '"abc"', '"A1"', '"12"', '"1.10"', '"true"', '"null"', '"NA"', '"\\u00e9"', '"é"',
           '"😀"', '"\\ud83d\\ude00"', '"a b"', '" 12"', '"007"', '"x/y~z"']  # fmt: skip


def texts(numbers: list[str]) -> st.SearchStrategy[str]:
    scalars = st.sampled_from([*numbers, *STRINGS, "null", "true", "false"])
    return st.recursive(scalars, lambda inner: arrays(inner) | objects(inner), max_leaves=6)


def arrays(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]")


def objects(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    keys = st.sampled_from([*(json.dumps(name, ensure_ascii=False) for name in NAMES), '"\\u0061"', '"z"'])
    members = st.tuples(keys, inner).map(lambda pair: f"{pair[0]}: {pair[1]}")
    return st.lists(members, max_size=5).map(lambda found: "{" + ", ".join(found) + "}")


records = objects(texts(NUMBERS))
exact_records = objects(texts(NUMBERS + HUGE))
batches = st.lists(exact_records, min_size=1, max_size=6)

bounds = st.sampled_from([0, 1, 2, 10, -1, 0.5, 1.5, 100.0, 9007199254740992, 9007199254740993, 1e300, 10**30])
lengths = st.integers(0, 3)
scalar_values = st.sampled_from([None, True, False, 0, 1, 2, 12, 1.0, 1.5, "a", "aa", "NA", "é", "", 10**30])
# Without a newline in the data, Python's `$` means what it should.
patterns = st.sampled_from(["^a", "a$", "^[a-c]+$", "^NA$", "[0-9]", "^.$", "^(a|12)$", "^$"])


def schemas(depth: int, *, shaped: bool, draft4: bool = False) -> st.SearchStrategy[Any]:
    """Random schemas; `shaped`: of the keywords that a shape knows."""
    optional: dict[str, Any] = {
        "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True),
        "minimum": bounds,
        "maximum": bounds,
        "minLength": lengths,
        "maxLength": lengths,
        "pattern": patterns,
        "title": st.just("a title"),
    }
    if not draft4:
        optional |= {"exclusiveMinimum": bounds, "exclusiveMaximum": bounds}
    few = {"enum": st.lists(scalar_values, min_size=1, max_size=4, unique_by=lambda value: (type(value), value))}
    if not draft4:
        few["const"] = scalar_values
    if depth:
        inner = schemas(depth - 1, shaped=shaped, draft4=draft4)
        names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
        optional |= {
            "properties": st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
            "required": names,
            "additionalProperties": st.booleans(),
            "items": inner,
            "minItems": lengths,
            "maxItems": lengths,
        }
        if not shaped:
            several = st.lists(inner, min_size=1, max_size=2)
            few |= {
                "anyOf": several, "allOf": several, "oneOf": several, "not": inner, "if": inner, "then": inner,
                "else": inner, "contains": inner, "multipleOf": st.integers(1, 3), "minProperties": lengths,
                "maxProperties": lengths, "patternProperties": st.dictionaries(st.just("^a"), inner, max_size=1),
                "propertyNames": st.fixed_dictionaries({"maxLength": lengths}),
                "dependentRequired": st.dictionaries(st.sampled_from(NAMES), names, max_size=2),
            }  # fmt: skip
    chosen = st.fixed_dictionaries({}, optional=optional)
    rare = st.fixed_dictionaries({}, optional=few).map(lambda found: dict(list(found.items())[:2]))
    return st.tuples(chosen, st.one_of(st.just({}), rare)).map(lambda pair: {**pair[0], **pair[1]})


def whole(schema: dict[str, Any]) -> dict[str, Any]:
    """For a record: the root does not rule out objects, or most of the test would be about that."""
    return {key: value for key, value in schema.items() if key not in ("type", "enum", "const")} | {"type": "object"}


def decode(line: bytes) -> Any:
    return msgspec.json.Decoder(float_hook=exact_number).decode(line)


def batch_of(lines: list[str]) -> Batch:
    return Batch.of_lines([line.encode() for line in lines])


@pytest.mark.parametrize("uri", DRAFTS)
@many
@given(data=st.data())
def test_verdicts_are_those_of_python_jsonschema(uri: str, data: st.DataObject) -> None:
    schema = {"$schema": uri} | whole(data.draw(schemas(2, shaped=data.draw(st.booleans()), draft4="04" in uri)))
    lines = data.draw(st.lists(records, min_size=1, max_size=5))
    reference = DRAFTS[uri](schema)
    expected = [index for index, line in enumerate(lines) if not reference.is_valid(json.loads(line))]
    assert Verdict(Schema(schema, "s")).invalid(batch_of(lines)) == expected


@many
@given(schema=schemas(2, shaped=True), lines=st.lists(records, min_size=1, max_size=3))
def test_errors_are_at_the_places_python_jsonschema_names(schema: Any, lines: list[str]) -> None:
    assume(
        '""' not in json.dumps([schema, lines]).replace('\\"', '"')
    )  # the engine leaves empty names out of its paths
    schema = whole(schema)
    verdict, reference = Verdict(Schema(schema, "s")), jsonschema.Draft202012Validator(schema)
    batch = batch_of(lines)
    for index in verdict.invalid(batch):
        found = [(e["pointer"], e["keyword"], e["schema_pointer"]) for e in verdict.errors(batch.lines[index])]
        expected = [
            (pointer(e.absolute_path), e.validator, pointer(e.absolute_schema_path))
            for e in reference.iter_errors(json.loads(lines[index]))
        ]
        # For a closed object that requires a name it does not list, the engine says `required` even if it is there.
        more = [error for error in found if error not in expected]
        assert sorted(found) == sorted(expected + more)
        assert {keyword for _, keyword, _ in more} <= {"required"}


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(uri=st.sampled_from(list(DRAFTS)), schema=schemas(2, shaped=True, draft4=True), lines=batches)
@example(uri="", schema={"properties": {"a": {"type": "number", "maximum": 2**53}}}, lines=['{"a": 9007199254740993}'])
@example(uri="", schema={"properties": {"a": {"type": "integer"}}}, lines=['{"a": true}', '{"a": 1.0}'])
@example(uri="", schema={"properties": {"a": {"enum": [1]}}}, lines=['{"a": true}', '{"a": 1}'])
@example(uri="", schema={"properties": {"a": {"maxLength": 1}}}, lines=['{"a": "\\ud83d\\ude00"}', '{"a": "aa"}'])
@example(uri="", schema={"properties": {"a": {"type": "integer"}}}, lines=['{"a": 1, "a": "x"}'])
@example(uri="", schema={"properties": {"a": {"pattern": "^a$"}}}, lines=['{"a": "a\\n"}', '{"a": "a"}'])
@example(
    uri="", schema={"properties": {"a": {"pattern": "^[a-c]$"}}}, lines=['{"a": "a\\n"}', '{"a": 1}', '{"a": "b"}']
)
@example(uri="", schema={"required": ["a"], "properties": {"a": {"type": "null"}}}, lines=["{}", '{"a": null}'])
@example(
    uri="", schema={"properties": {"a": {}}, "additionalProperties": False}, lines=['{"z": 1}', '{"\\u0061": 1e400}']
)
@example(
    uri="", schema={"properties": {"a": {"exclusiveMinimum": 1, "minimum": 1.5}}}, lines=['{"a": 1}', '{"a": 1.5}']
)
def test_what_a_shape_does_not_suspect_is_valid(uri: str, schema: Any, lines: list[str]) -> None:
    known = Schema({"$schema": uri} | whole(schema) if uri else whole(schema), "s")
    engine = compiled(known, False)
    shape = Shape.of(known, lambda part: subvalidator(part, known.draft, False), formats=False)
    if shape is None:
        return
    batch = batch_of(lines)
    for _ in range(2):  # the second time with the strings that it has learnt
        trusted = set(range(len(lines))) - set(shape.suspects(batch))
        assert all(engine.is_valid(decode(batch.lines[index])) for index in trusted)


fields = st.lists(
    st.sampled_from(NAMES).map(lambda name: (name,)) | st.sampled_from([("a", "b"), ("b", "0"), ("z",), ("other0",)]),
    max_size=3,
    unique=True,
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=schemas(2, shaped=True), lines=batches, paths=fields.map(tuple))
@example(schema={"properties": {"a": {"type": "number"}}}, lines=['{"a": 9007199254740993.0}'], paths=(("a",),))
@example(schema={"properties": {"a": {"type": "number"}}}, lines=['{"a": 1e400}', '{"a": 1}'], paths=(("a",),))
@example(schema={"properties": {"a": {"type": "integer"}}}, lines=['{"b": {"x": [1]}, "a": 1}'], paths=(("b", "x"),))
@example(schema={"properties": {"a": {"type": "object"}}}, lines=['{"a": {"b": 1}}'], paths=(("a", "b"),))
@example(schema={"required": ["a"]}, lines=['{"a": {"b": 1}}'], paths=(("a", "b"),))
def test_one_decode_serves_the_shape_and_the_columns(schema: Any, lines: list[str], paths: tuple[Path, ...]) -> None:
    known = Schema(whole(schema), "s")
    alone, shared = (
        Shape.of(known, lambda part: subvalidator(part, known.draft, False), formats=False) for _ in range(2)
    )
    plain = projection(paths)
    both = shared and shared.projection(plain)
    if not (alone and shared and both):
        return
    chunk = b"".join(line.encode() + b"\n" for line in lines)
    for once in (chunk, *(line.encode() + b"\n" for line in lines)):
        with mock.patch("etlcli.schema.shape._BLOCK", 2):
            batch, same = (parse(once, Span("in", 1, 0, once), how).batch for how in (both, plain))
        assert list(shared.suspects(batch)) == list(alone.suspects(same))
        assert repr(batch.columns(paths)) == repr(same.columns(paths))
        for path, column, kinds in zip(paths, same.columns(paths), map(batch.rows(paths).kinds, paths), strict=True):
            assert kinds >= set(map(type, column)), path


TYPED = {
    "n": "1 2.0 null",
    "s": '"a" "aa" "b"',
    "z": '"ab" null "b"',
    "b": "true false",
    "f": "1 0.5 1e400",
    "e": '"x" 3 null',
}
TYPED_SCHEMA = {
    "n": {"type": "integer"},
    "s": {"type": "string", "pattern": "^a*$"},
    "z": {"type": ["string", "null"], "pattern": "^ab?$"},
    "b": {"type": "boolean"},
    "f": {"type": "number"},
    "e": {"enum": ["x", 3, None]},
}
members = {name: st.sampled_from(tokens.split()) for name, tokens in TYPED.items()}
typed = st.lists(
    st.fixed_dictionaries({}, optional=members) | st.fixed_dictionaries({"s": members["s"], "z": members["z"]})
)


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Of two records. Strings are learned as soon as they come again, unless they are more than two."""
    numbers = {"_BLOCK": 2, "_PATIENCE": 1, "_FEW": 2, "_DECODER": 0}
    with mock.patch.multiple("etlcli.schema.shape", **numbers):
        yield


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(typed, min_size=1), st.sampled_from([[], ["s"], ["z", "b"]]), st.booleans())
def test_one_decode_proves_and_keeps_scalars(
    small_blocks: None, batches: list[list[dict[str, str]]], required: list[str], closed: bool
) -> None:
    schema = {"properties": TYPED_SCHEMA, "required": required, "additionalProperties": not closed}
    known = Schema(schema, "s")
    alone, shared = (
        Shape.of(known, lambda part: subvalidator(part, known.draft, False), formats=False) for _ in range(2)
    )
    assert alone and shared
    plain = projection(tuple((name,) for name in TYPED))
    both = shared.projection(plain)
    assert both
    for records in batches:
        lines = ["{" + ",".join(f'"{name}":{token}' for name, token in record.items()) + "}" for record in records]
        chunk = "".join(line + "\n" for line in lines).encode()
        batch, same = (parse(chunk, Span("in", 1, 0, chunk), how).batch for how in (both, plain))
        assert list(shared.suspects(batch)) == list(alone.suspects(same))
        assert repr(batch.columns(plain.paths)) == repr(same.columns(plain.paths))
        rows = batch.rows(plain.paths)
        for path, column in zip(plain.paths, same.columns(plain.paths), strict=True):
            assert rows.kinds(path) >= set(map(type, column)), path


def test_a_field_of_few_strings_is_of_that_type(small_blocks: None) -> None:
    known = Schema({"properties": {"s": {"type": "string", "pattern": "^a*$"}}}, "s")
    shape = Shape.of(known, lambda part: subvalidator(part, known.draft, False), formats=False)
    assert shape
    both = shape.projection(projection((("s",),)))
    assert both
    checked = mock.Mock(wraps=shape._checks[0].bad)

    def suspects(*strings: str) -> list[int]:
        chunk = "".join(f'{{"s":"{string}"}}'.ljust(30) + "\n" for string in strings).encode()
        with mock.patch.object(shape._checks[0], "bad", checked):
            return list(shape.suspects(parse(chunk, Span("in", 1, 0, chunk), both).batch))

    assert suspects("a", "aa", "a", "aa") == []
    assert checked.call_count == 2  # in the second block they are known
    assert suspects("a", "a", "aa", "a") == []
    assert checked.call_count == 2
    assert suspects("a", "b", "a", "a") == [1]
    assert checked.call_count == 4
    assert suspects("a", "aa", "a", "a") == []
    assert checked.call_count == 5  # twice as long as before
    assert suspects("a", "aaa", "a", "a", "a", "a", "a", "a", "a", "a") == []
    assert checked.call_count == 10  # there are more than a few


def test_what_is_taken_of_a_proven_batch_is_looked_at_again() -> None:
    known = Schema({"properties": {"s": {"type": "string", "pattern": "^a*$"}}}, "s")
    shape = Shape.of(known, lambda part: subvalidator(part, known.draft, False), formats=False)
    both = shape and shape.projection(projection((("s",),)))
    assert shape and both
    chunk = b'{"s":"a"}\n{"s":"b"}\n{"s":"aa"}\n'
    batch = parse(chunk, Span("in", 1, 0, chunk), both).batch
    taken = batch.take([1, 2])
    assert taken.columns((("s",),)) == [["b", "aa"]]
    assert [list(shape.suspects(each)) for each in (batch, taken, batch.take([0, 2]))] == [[1], [0], []]


def test_decoders_are_made_in_the_time_that_was_earned() -> None:
    """One of two fields has a new string every third block: the other's would be learned again each time."""
    text = {"type": "string", "pattern": "^[0-9]*$"}
    known = Schema({"properties": {"s": text, "t": text}}, "s")
    with (
        mock.patch.multiple("etlcli.schema.shape", _BLOCK=1, _PATIENCE=1),
        mock.patch("etlcli.core.settling._MOST", 1),
        mock.patch("etlcli.schema.shape._struct", wraps=_struct) as made,
    ):
        shape = Shape.of(known, lambda part: subvalidator(part, known.draft, False), formats=False)
        both = shape and shape.projection(projection((("s",),)))
        assert shape and both
        made.reset_mock()
        for block in range(600):
            new = {"st"[block % 2]: str(block)} if block % 3 == 0 else {}
            chunk = json.dumps({"s": "", "t": "", **new}).encode() + b"\n"
            assert list(shape.suspects(parse(chunk, Span("in", 1, 0, chunk), both).batch)) == []
    assert 0 < made.call_count <= 600 * 3 / 32


@pytest.mark.parametrize("closed", [True, False])
def test_what_is_nested_too_deeply_is_refused_whatever_a_shape_expects(closed: bool) -> None:
    known = Schema({"properties": {"n": {"type": "integer"}}, "additionalProperties": not closed}, "s")
    shape = Shape.of(known, lambda part: subvalidator(part, known.draft, False), formats=False)
    both = shape and shape.projection(projection((("n",),)))
    assert both and both.flat == closed
    deep = b"[" * 300 + b"]" * 300
    chunk = b'{"n":1}\n{"n":%b}\n{"n":2,"x":%b}\n' % (deep, deep)
    batch, rejects, _ = parse(chunk, Span("in", 1, 0, chunk), both)
    assert batch.columns((("n",),)) == [[1]]
    assert [reject.code for reject in rejects] == ["too_deep", "too_deep"]


def test_one_decode_serves_the_sample() -> None:
    """Beyond the property, which would hold if no decode were ever shared."""
    schema = Schema({"properties": {"id": {"type": "integer"}, "tail": {"type": ["string", "null"]}}}, "s")
    shape = Shape.of(schema, lambda part: subvalidator(part, schema.draft, False), formats=False)
    assert shape
    both = shape.projection(projection((("id",), ("else", "deep"))))
    assert both
    chunk = b'{"id":1,"tail":null,"else":{"deep":"x"}}\n{"id":2}\n'
    batch = parse(chunk, Span("in", 1, 0, chunk), both).batch
    assert batch.decoded_by(both)
    assert list(shape.suspects(batch)) == []
    assert batch.columns(both.paths) == [[1, 2], ["x", MISSING]]


@many
@given(schema=schemas(2, shaped=False), lines=batches, defaults=st.booleans(), data=st.data())
def test_a_valid_record_is_never_changed(schema: Any, lines: list[str], defaults: bool, data: st.DataObject) -> None:
    schema = whole(schema)
    for child in schema.get("properties", {}).values():
        if data.draw(st.booleans()):
            child["default"] = data.draw(scalar_values)
    known = Schema(schema, "s")
    verdict = Verdict(known)
    batch = batch_of(lines)
    valid = batch.without(set(verdict.invalid(batch)))
    assert Fill(known, defaults=defaults, coerce=True).changes(valid) == {}


@many
@given(schema=schemas(2, shaped=True), lines=batches)
def test_coercion_changes_types_and_nothing_else(schema: Any, lines: list[str]) -> None:
    fill = Fill(Schema(whole(schema), "s"), defaults=False, coerce=True)
    batch = batch_of(lines)
    changes = fill.changes(batch)
    for index, line in changes.items():
        before, after = flattened(batch.lines[index]), flattened(line)
        assert before != after
        assert {k: v.strip(b'"') for k, v in before.items()} == {k: v.strip(b'"') for k, v in after.items()}
    assert fill.changes(batch.replace(changes)) == {}


def flattened(line: bytes, at: str = "") -> dict[str, bytes]:
    """The scalars of a value by pointer, as they are spelled."""
    if line[:1] == b"{":
        inside: Any = msgspec.json.decode(line, type=dict[str, msgspec.Raw]).items()
    elif line[:1] == b"[":
        inside = enumerate(msgspec.json.decode(line, type=list[msgspec.Raw]))
    else:
        return {at: line}
    return {k: v for name, child in inside for k, v in flattened(bytes(child).strip(), f"{at}/{name}").items()}


# Where the two engines differ, and which is right.


def test_python_takes_a_dollar_before_a_newline_for_the_end() -> None:
    schema = {"properties": {"a": {"pattern": "^a$"}}}
    assert jsonschema.Draft202012Validator(schema).is_valid({"a": "a\n"})  # ECMA 262 says no
    assert Verdict(Schema(schema, "s")).invalid(batch_of(['{"a":"a\\n"}'])) == [0]


def test_python_has_no_unicode_property_escapes() -> None:
    schema = {"properties": {"a": {"pattern": r"^\p{L}+$"}}}
    with pytest.raises(Exception, match="bad escape"):
        jsonschema.Draft202012Validator(schema).is_valid({"a": "é"})
    assert Verdict(Schema(schema, "s")).invalid(batch_of(['{"a":"é"}', '{"a":"1"}'])) == [1]


def test_multiples_of_decimals_are_judged_as_decimals() -> None:
    schema = {"properties": {"a": {"multipleOf": 0.01}}}
    assert jsonschema_rs.is_valid(schema, {"a": 19.99})
    assert Verdict(Schema(schema, "s")).invalid(batch_of(['{"a":19.99}', '{"a":4.35}', '{"a":4.355}'])) == [2]
