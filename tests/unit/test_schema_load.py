"""Schema files: what is read, what is refused and where a message says the fault is."""

from __future__ import annotations

from pathlib import Path

import pytest

from etlcli.errors import InputMissingError, SchemaError
from etlcli.schema.load import Schema, load


@pytest.mark.parametrize(
    ("uri", "draft"),
    [
        ("http://json-schema.org/draft-04/schema#", 4),
        ("http://json-schema.org/draft-06/schema", 6),
        ("https://json-schema.org/draft-07/schema#", 7),
        ("https://json-schema.org/draft/2019-09/schema", 2019),
        ("http://json-schema.org/draft/2020-12/schema#", 2020),
    ],
)
def test_the_draft_is_the_one_that_schema_names(uri: str, draft: int) -> None:
    assert Schema({"$schema": uri}, "s").draft == draft


def test_without_a_draft_it_is_the_newest() -> None:
    assert Schema({}, "s").draft == Schema(True, "s").draft == 2020


@pytest.mark.parametrize("uri", ["http://json-schema.org/draft-03/schema#", "http://example.com/mine", "", 7, None])
def test_an_unknown_draft_is_refused(uri: object) -> None:
    with pytest.raises(SchemaError, match=r"unknown \$schema") as error:
        Schema({"$schema": uri}, "s.json")
    assert error.value.where == "s.json#/$schema"
    assert error.value.exit_code == 78


@pytest.mark.parametrize(
    ("content", "message", "where"),
    [
        (b'{"a": 1,\n "b" 2}', "not JSON: expected ':'", ":2:6"),
        (b'{"a": 1,\n\n', "not JSON: cut short", ":3:1"),
        (b"", "not JSON: cut short", ":1:1"),
        ('{"é" 2}'.encode(), "not JSON", ":1:6"),
        (b'{"a": "\xff"}', "not UTF-8", ":1:8"),
        (b"[]", "expected an object, true or false, not an array", ""),
        (b"12", "not a number", ""),
        (b'{"items":' * 5000 + b"{}" + b"}" * 5000, "nested too deep", ""),
        (b'{"items":' * 200_000 + b"{}" + b"}" * 200_000, "nested too deep", ""),
    ],
)
def test_what_is_no_schema_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str, where: str) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=message) as error:
        load(str(path), "s.json")
    assert error.value.where == "s.json" + where


def test_a_byte_order_mark_and_duplicate_keys_are_fine(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(b'\xef\xbb\xbf{"type": "null", "type": "object"}')
    assert load(str(tmp_path / "s.json")).document == {"type": "object"}


def test_a_missing_or_unreadable_file_is_input_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputMissingError, match="cannot read the schema") as error:
            load(str(path), "named")
        assert error.value.where == "named"


def test_yaml_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="must be JSON") as error:
        load(str(tmp_path / "s.yaml"))
    assert "etl read" in error.value.hint


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(SchemaError, match="over 16 MiB"):
        load("/dev/zero")


DOCUMENT = {
    "$id": "http://example.com/root.json",
    "properties": {
        "a": {"$ref": "other.json#/$defs/z"},
        "b": {"$ref": "#anchored"},
        "c": {"$ref": "http://elsewhere/x"},
    },
    "enum": [{"$ref": "#/no/reference"}],
    "$defs": {
        "o": {"$id": "other.json", "items": {"$ref": "#/$defs/z"}, "$defs": {"z": {"type": "string"}}},
        "n": {"$anchor": "anchored", "type": "null"},
        "u": {"$id": "urn:example:u", "not": {"$ref": "#/$defs/v"}, "$defs": {"v": {}}},
        "odd/~ name": {"items": [{"$ref": "#/$defs/odd~1~0%20name/items/1"}, {"const": 1}]},
        "enum": {"$ref": "#"},
    },
}


def test_references_lead_where_the_standard_says() -> None:
    schema = Schema(DOCUMENT, "s")
    found = {"/".join(map(str, place)): target for place, _, target in schema.references()}
    defs = DOCUMENT["$defs"]
    assert found == {
        "properties/a/$ref": defs["o"]["$defs"]["z"],
        "properties/b/$ref": defs["n"],
        "properties/c/$ref": None,
        "$defs/o/items/$ref": defs["o"]["$defs"]["z"],
        "$defs/u/not/$ref": defs["u"]["$defs"]["v"],
        "$defs/odd/~ name/items/0/$ref": {"const": 1},
        "$defs/enum/$ref": DOCUMENT,
    }


def test_a_location_in_an_embedded_resource_is_found_from_the_root() -> None:
    schema = Schema(DOCUMENT, "s")
    assert schema.locate("http://example.com/other.json#/$defs/z/type") == "/$defs/o/$defs/z/type"
    assert schema.locate("http://example.com/root.json#/properties") == "/properties"
    assert schema.locate("https://json-schema.org/x#/type") == "https://json-schema.org/x#/type"
