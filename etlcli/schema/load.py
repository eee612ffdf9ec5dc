"""A schema file, read and indexed: the document, its draft, and where its references lead.

Nothing outside the file is ever asked: a reference is either to somewhere in the document or it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple
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

_MAX_BYTES = 16 << 20
_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
_DATA = {"enum", "const", "default", "examples"}
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_decode = msgspec.json.Decoder(float_hook=exact_number).decode


class Reference(NamedTuple):
    pointer: str
    text: str
    target: Any
    """The subschema it leads to, or None where it leads out of the document or to nothing."""


class Schema:
    """A schema document. `draft` is 4, 6, 7, 2019 or 2020; `name` is what messages call the file."""

    def __init__(self, document: Any, name: str) -> None:
        """Raises SchemaError when the document cannot be a schema or is of an unknown draft."""
        self.document = document
        self.name = name
        if not isinstance(document, dict | bool):
            raise self.error(f"a schema is an object, true or false, not {_kind(document)}")
        self.draft = self._draft()
        self._bases: dict[int, str] = {}
        self._resources: dict[str, Any] = {"": document}
        self._anchors: dict[str, Any] = {}
        self._pointers: dict[int, tuple[str | int, ...]] = {}
        self._index(document, (), "", False)

    def error(self, message: str, path: tuple[str | int, ...] | str = "", hint: str = "") -> SchemaError:
        """The error to raise for something wrong at a place in the schema."""
        place = path if isinstance(path, str) else pointer(path)
        return SchemaError(f"bad schema: {message}", where=f"{self.name}#{place}", hint=hint)

    def resolve(self, text: str, at: dict[str, Any]) -> Any:
        """What a reference written in the subschema `at` leads to; None if that is not in the document."""
        uri, _, fragment = self._absolute(text, self._bases[id(at)]).partition("#")
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            return self._anchors.get(f"{uri}#{fragment}")
        target = self._resources.get(uri)
        for part in fragment.split("/")[1:]:
            target = _child(target, part.replace("~1", "/").replace("~0", "~"))
        return target

    def references(self) -> Iterator[Reference]:
        """Every reference in the document, in the order it is written."""
        for place, path in list(self._pointers.items()):
            schema = self._schemas[place]
            for keyword in _REFERENCES:
                text = schema.get(keyword)
                if isinstance(text, str):
                    yield Reference(pointer((*path, keyword)), text, self.resolve(text, schema))

    def _draft(self) -> int:
        if isinstance(self.document, bool) or "$schema" not in self.document:
            return 2020
        uri = self.document["$schema"]
        known = isinstance(uri, str) and DRAFTS.get(re.sub(r"^https?://", "", uri).removesuffix("#"))
        if not known:
            hint = "known drafts: 4, 6, 7, 2019-09, 2020-12; other meta-schemas are not fetched"
            raise self.error(f"unknown $schema {uri!r}", "/$schema", hint)
        return known

    @property
    def _schemas(self) -> dict[int, dict[str, Any]]:
        return self._by_id

    def _index(self, value: Any, path: tuple[str | int, ...], base: str, is_map: bool) -> None:
        """Notes every subschema's place and base URI, and what `$id` and anchors name."""
        raise NotImplementedError

    @staticmethod
    def _absolute(text: str, base: str) -> str:
        # urljoin knows only hierarchical schemes; a fragment alone never changes the rest.
        return base + text if text.startswith("#") else urljoin(base, text)


def _child(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    return None


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number")
