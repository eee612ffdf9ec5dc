"""A schema file, read and indexed: the document, its draft, and where its references lead.

Nothing outside the file is ever asked: a reference leads to somewhere in the document, or it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urljoin

import msgspec

from etlcli.core.fields import exact_number, pointer
from etlcli.errors import InputMissingError, SchemaError

DRAFTS = {
    "json-schema.org/draft-04/schema": 4,
    "json-schema.org/draft-06/schema": 6,
    "json-schema.org/draft-07/schema": 7,
    "json-schema.org/draft/2019-09/schema": 2019,
    "json-schema.org/draft/2020-12/schema": 2020,
}
"""The drafts, by `$schema` without its scheme and its empty fragment. Without `$schema` it is the newest."""

MAX_BYTES = 16 << 20

_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
_DATA = {"enum", "const", "default", "examples"}
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_decode = msgspec.json.Decoder(float_hook=exact_number).decode

Place = tuple[str | int, ...]


class Schema:
    """A schema document. `draft` is 4, 6, 7, 2019 or 2020; `name` is what messages call the file."""

    def __init__(self, document: Any, name: str) -> None:
        """Raises SchemaError when the document cannot be a schema, or is of an unknown draft."""
        self.document = document
        self.name = name
        if not isinstance(document, dict | bool):
            raise self.error(f"expected an object, true or false, not {_kind(document)}")
        self.draft = self._draft()
        self._places: list[tuple[Place, dict[str, Any]]] = []
        self._bases: dict[int, str] = {}
        self._resources: dict[str, Any] = {"": document}
        self._resource_places: dict[str, Place] = {"": ()}
        self._anchors: dict[str, Any] = {}
        try:
            self._index(document, (), "", keys_are_names=False)
        except RecursionError:
            raise self.error("nested too deep") from None

    def error(self, message: str, place: Place = (), hint: str = "") -> SchemaError:
        """The error to raise about a place in the schema."""
        where = f"{self.name}#{pointer(place)}" if place else self.name
        return SchemaError(f"bad schema: {message}", where=where, hint=hint)

    def resolve(self, text: str, at: dict[str, Any]) -> Any:
        """What a reference written in the subschema `at` leads to; None if that is not in the document."""
        base = self._bases.get(id(at))
        if base is None:
            return None
        uri, _, fragment = _absolute(text, base).partition("#")
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            return self._anchors.get(f"{uri}#{fragment}")
        target = self._resources.get(uri)
        for part in fragment.split("/")[1:]:
            target = _child(target, part.replace("~1", "/").replace("~0", "~"))
        return target

    def locate(self, uri: str) -> str:
        """The pointer from the document's root to an absolute location; the URI itself if it is not in the document."""
        resource, _, fragment = uri.partition("#")
        place = self._resource_places.get(resource)
        return uri if place is None else pointer(place) + unquote(fragment)

    def references(self) -> Iterator[tuple[Place, str, Any]]:
        """Every reference of the document, as its place, its text and what it leads to (None: nothing in here)."""
        for place, subschema in self._places:
            for keyword in _REFERENCES:
                text = subschema.get(keyword)
                if isinstance(text, str):
                    yield (*place, keyword), text, self.resolve(text, subschema)

    def _draft(self) -> int:
        if isinstance(self.document, bool) or "$schema" not in self.document:
            return 2020
        uri = self.document["$schema"]
        draft = DRAFTS.get(re.sub(r"^https?://", "", uri).removesuffix("#")) if isinstance(uri, str) else None
        if draft is None:
            hint = "known are drafts 4, 6, 7, 2019-09 and 2020-12; other meta-schemas are not fetched"
            raise self.error(f"unknown $schema {uri!r}", ("$schema",), hint)
        return draft

    def _index(self, value: Any, place: Place, base: str, *, keys_are_names: bool) -> None:
        """Notes every object's place and base URI, and what `$id` and anchors name."""
        if isinstance(value, list):
            for number, item in enumerate(value):
                self._index(item, (*place, number), base, keys_are_names=False)
        if not isinstance(value, dict):
            return
        if not keys_are_names:
            base = self._name(value, place, base)
            self._bases[id(value)] = base
            self._places.append((place, value))
        for key, child in value.items():
            if keys_are_names or key not in _DATA:
                self._index(child, (*place, key), base, keys_are_names=not keys_are_names and key in _MAPS)

    def _name(self, subschema: dict[str, Any], place: Place, base: str) -> str:
        """Registers what the subschema calls itself; the base URI inside it."""
        name = subschema.get("id" if self.draft == 4 else "$id")
        if isinstance(name, str) and not (self.draft <= 7 and "$ref" in subschema):
            if name.startswith("#"):
                self._anchors[base + name] = subschema
            else:
                base = _absolute(name, base).removesuffix("#")
                self._resources[base] = subschema
                self._resource_places[base] = place
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(subschema.get(keyword), str):
                self._anchors[f"{base}#{subschema[keyword]}"] = subschema
        return base


def load(path: str, name: str = "") -> Schema:
    """Reads a schema file; `name` is what to call it in messages.

    Raises InputMissingError when it cannot be read, SchemaError when it is not JSON or no schema.
    """
    name = name or path
    if path.endswith((".yaml", ".yml")):
        raise SchemaError("a schema file must be JSON", where=name, hint="convert it first: etl read --format yaml")
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "give the path of a JSON Schema file with --schema"
        raise InputMissingError(f"cannot read the schema: {error.strerror}", where=name, hint=hint) from None
    if len(raw) > MAX_BYTES:
        raise SchemaError(f"a schema file over {MAX_BYTES >> 20} MiB", where=name)
    return Schema(_parse(raw.removeprefix(b"\xef\xbb\xbf"), name), name)


def _parse(raw: bytes, name: str) -> Any:
    try:
        raw.decode()
        return _decode(raw)
    except UnicodeDecodeError as error:
        raise SchemaError("the schema is not UTF-8", where=f"{name}:{_position(raw, error.start)}") from None
    except RecursionError:
        raise SchemaError("the schema is nested too deep", where=name) from None
    except msgspec.MsgspecError as error:
        found = re.search(r"\(byte (\d+)\)", str(error))
        at = int(found[1]) if found else len(raw)
        reason = str(error).removeprefix("JSON is malformed: ").partition(" (byte")[0]
        reason = reason.replace("Input data was truncated", "cut short")
        raise SchemaError(f"the schema is not JSON: {reason}", where=f"{name}:{_position(raw, at)}") from None


def _position(raw: bytes, at: int) -> str:
    """`line:column` of a byte, both from 1."""
    before = raw[:at]
    column = len(before.rpartition(b"\n")[2].decode(errors="replace")) + 1
    line = before.count(b"\n") + 1
    return f"{line}:{column}"


def _absolute(text: str, base: str) -> str:
    # urljoin knows hierarchical schemes only, and would drop a urn: base.
    return base + text if text.startswith("#") else urljoin(base, text)


def _child(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    return None


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number")
