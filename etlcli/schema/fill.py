"""What a schema may change in a record before it is judged: defaults for what is missing, types without loss.

Both follow `properties`, `items`, `allOf` and `$ref` within the document, where a subschema holds for certain; not `anyOf`,
`oneOf` and `if`, where it may not. The schema is compiled once into a graph of nodes, one for each set of subschemas that
hold for the same value, and only what can change something is kept. What changes is edited in, the other bytes stay.

A valid record needs neither: what is required is there, and every value is of a type that is wanted. So only records that
are invalid, or under suspicion, need to be asked about, and clean data costs nothing.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import msgspec

from etlcli.core.batch import Batch
from etlcli.core.edit import edit, encode, raw_at
from etlcli.core.fields import MISSING, Path
from etlcli.schema.load import Schema

_MAX_NODES = 10_000
_MAX_NESTED_DEFAULTS = 50
_ALL = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,18}))?")
"""A JSON number, without an exponent that is too large for any program to read."""
_BOOLEANS = {"true": True, "false": False}

_open_lines = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode_lines
_encode_lines = msgspec.json.Encoder().encode_lines

Change = tuple[Path, Any]


class Node:
    """What holds for the values at one place: the types wanted, defaults for properties, and what is inside.

    `watched` are the Python types of values that may change, in themselves or inside.
    """

    __slots__ = ("default", "defaults", "item", "properties", "types", "watched")

    def __init__(self) -> None:
        self.types: frozenset[str] = _ALL
        self.default: Any = MISSING
        self.defaults: dict[str, Any] = {}
        self.properties: dict[str, Node] = {}
        self.item: Node | None = None
        self.watched: set[type] = set()


class Fill:
    """The changes a schema asks for."""

    def __init__(self, schema: Schema, *, defaults: bool, coerce: bool) -> None:
        """Takes a schema that the engine has accepted. Raises SchemaError when its defaults have no end."""
        self._root = _Planner(schema, defaults=defaults, coerce=coerce).plan()
        self._plain_integers = schema.draft == 4  # where 1.0 is no integer
        self._fields = list(dict.fromkeys([*self._root.properties, *self._root.defaults]))
        self.active = bool(self._fields)

    def changes(self, batch: Batch) -> dict[int, bytes]:
        """The records in which something is to be changed, changed, by index."""
        flat: dict[int, dict[str, Any]] = {}
        deep: dict[int, list[Change]] = {}
        records = batch.records()
        for name in self._fields:
            self._look(name, [record.get(name, MISSING) for record in records], batch.lines, flat, deep)
        lines = {}
        for index, found in deep.items():
            if found:
                own = [((name,), value) for name, value in flat.pop(index, {}).items()]
                lines[index] = edit(batch.lines[index], [*own, *found])
        # Most changes are of a record's own fields, and those are made for all records at once.
        opened = _open_lines(b"\n".join([batch.lines[index] for index in flat]))
        for fields, new in zip(opened, flat.values(), strict=True):
            fields.update(new)
        return {**lines, **dict(zip(flat, _encode_lines(opened).split(b"\n"), strict=False))}

    def _look(
        self,
        name: str,
        column: list[Any],
        lines: list[bytes],
        flat: dict[int, dict[str, Any]],
        deep: dict[int, list[Change]],
    ) -> None:
        """Adds what to change in one of the records' own fields (`flat`), and inside it (`deep`)."""
        node = self._root.properties.get(name, Node())
        default = self._root.defaults.get(name, MISSING)
        kinds = set(map(type, column)) & (node.watched if default is MISSING else node.watched | {type(MISSING)})
        texts = {}
        if str in kinds:
            distinct = {value for value in column if type(value) is str}
            texts = {text: _from_text(text, node.types, self._plain_integers) for text in distinct}
        for index, value in enumerate(column) if kinds else ():
            kind = type(value)
            if kind not in kinds:
                continue
            if kind is str or value is MISSING:
                new = default if value is MISSING else texts[value]
                if new is not MISSING:
                    flat.setdefault(index, {})[name] = new
            else:
                self._collect(node, value, (name,), lines[index], deep.setdefault(index, []))

    def _collect(self, node: Node, value: Any, path: Path, line: bytes, found: list[Change]) -> None:
        """Adds what to set where, outside in."""
        if isinstance(value, dict):
            for name, default in node.defaults.items():
                if name not in value:
                    found.append(((*path, name), default))
            for name, child in node.properties.items():
                inner = value.get(name, MISSING)
                if type(inner) in child.watched:
                    self._collect(child, inner, (*path, name), line, found)
        elif isinstance(value, list):
            if node.item is not None:
                for number, item in enumerate(value):
                    if type(item) in node.item.watched:
                        self._collect(node.item, item, (*path, str(number)), line, found)
        elif isinstance(value, str):
            if (changed := _from_text(value, node.types, self._plain_integers)) is not MISSING:
                found.append((path, changed))
        else:
            # An integer is spelled in one way, but for -0.
            spelling = str(value) if type(value) is int and value else raw_at(line, path).decode()
            if not ("integer" in node.types and _is_integer(spelling, self._plain_integers)):
                found.append((path, spelling))


def _from_text(text: str, types: frozenset[str], plain_integers: bool) -> Any:
    """A text as one of the types, a number spelled as it was; MISSING where it is no such value."""
    if "boolean" in types and text in _BOOLEANS:
        return _BOOLEANS[text]
    if "number" in types:
        return msgspec.Raw(text.encode()) if _NUMBER.fullmatch(text) else MISSING
    return msgspec.Raw(text.encode()) if "integer" in types and _is_integer(text, plain_integers) else MISSING


def _is_integer(text: str, plain_only: bool) -> bool:
    """Whether a text is a JSON number that denotes an integer: 12, and where it need not be plain 12.0 and 1.2e1."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return False
    whole, fraction, exponent = match.groups()
    if plain_only or (fraction is None and exponent is None):
        return fraction is None and exponent is None
    digits = whole + (fraction or "")
    zeros = len(digits) - len(digits.rstrip("0"))
    return zeros == len(digits) or zeros >= len(fraction or "") - int(exponent or 0)


class _Planner:
    """Compiles a schema into nodes."""

    def __init__(self, schema: Schema, *, defaults: bool, coerce: bool) -> None:
        self._schema = schema
        self._defaults = defaults
        self._coerce = coerce
        self._nodes: dict[tuple[int, ...], Node] = {}

    def plan(self) -> Node:
        """The root's node, with nothing in it that cannot change a record."""
        if not (self._defaults or self._coerce):
            return Node()
        try:
            root = self._node([self._schema.document])
        except RecursionError:
            raise self._schema.error("nested too deep for --defaults and --coerce") from None
        self._watch()
        for node in self._nodes.values():
            for name in node.defaults:
                node.defaults[name] = self._expanded(node.properties[name], node.defaults[name], 0)
        for node in self._nodes.values():
            node.defaults = {name: msgspec.Raw(encode(value)) for name, value in node.defaults.items()}
            node.properties = {name: child for name, child in node.properties.items() if child.watched}
            node.item = node.item if node.item and node.item.watched else None
        return root

    def _node(self, subschemas: list[Any]) -> Node:
        """The node of the values for which all these hold. One that is inside itself is made once."""
        holding = self._holding(subschemas)
        key = tuple(map(id, holding))
        if key in self._nodes:
            return self._nodes[key]
        if len(self._nodes) >= _MAX_NODES:
            raise self._schema.error("too intricate for --defaults and --coerce")
        node = self._nodes[key] = Node()
        named: dict[str, list[Any]] = {}
        required: set[str] = set()
        items = []
        for subschema in holding:
            node.types &= _expanded_types(subschema.get("type"))
            node.default = subschema.get("default", MISSING) if node.default is MISSING else node.default
            required.update(subschema.get("required", ()))
            if isinstance(subschema.get("items"), dict) and "prefixItems" not in subschema:
                items.append(subschema["items"])
            for name, child in subschema.get("properties", {}).items():
                named.setdefault(name, []).append(child)
        node.properties = {name: self._node(children) for name, children in named.items()}
        node.item = self._node(items) if items else None
        if self._defaults:
            children = node.properties.items()
            node.defaults = {
                name: child.default for name, child in children if name in required and child.default is not MISSING
            }
        return node

    def _holding(self, subschemas: list[Any]) -> list[dict[str, Any]]:
        """Those subschemas and all that hold with them, each once."""
        holding: dict[int, dict[str, Any]] = {}
        waiting = list(reversed(subschemas))
        while waiting:
            subschema = waiting.pop()
            if not isinstance(subschema, dict) or id(subschema) in holding:
                continue
            target = self._schema.resolve(subschema["$ref"], subschema) if "$ref" in subschema else None
            if "$ref" in subschema and self._schema.draft <= 7:  # where it stands for the whole subschema
                holding[id(subschema)] = {}
                waiting.append(target)
                continue
            holding[id(subschema)] = subschema
            waiting += [*reversed(subschema.get("allOf", ())), target]
        return [subschema for subschema in holding.values() if subschema]

    def _watch(self) -> None:
        """Works out `watched`, from the leaves up; nodes can be inside themselves, so until nothing is added."""
        for node in self._nodes.values():
            node.watched = _changing_types(node.types) if self._coerce else set()
        grown = True
        while grown:
            grown = False
            for node in self._nodes.values():
                size = len(node.watched)
                if node.defaults or any(child.watched for child in node.properties.values()):
                    node.watched.add(dict)
                if node.item is not None and node.item.watched:
                    node.watched.add(list)
                grown = grown or len(node.watched) > size

    def _expanded(self, node: Node, value: Any, depth: int) -> Any:
        """A default with the defaults that it lacks itself."""
        if depth > _MAX_NESTED_DEFAULTS:
            raise self._schema.error("its defaults have no end: each one lacks the next")
        if isinstance(value, list) and node.item is not None:
            return [self._expanded(node.item, item, depth) for item in value]
        if not isinstance(value, dict):
            return value
        value = {**value, **{name: default for name, default in node.defaults.items() if name not in value}}
        children = node.properties
        return {k: self._expanded(children[k], v, depth + 1) if k in children else v for k, v in value.items()}


def _expanded_types(declared: Any) -> frozenset[str]:
    """The types a `type` keyword allows; a number may be an integer, too."""
    if declared is None:
        return _ALL
    types = {declared} if isinstance(declared, str) else set(declared)
    return frozenset(types | {"integer"} if "number" in types else types)


def _changing_types(types: frozenset[str]) -> set[type]:
    """The Python types of scalars that may have to become another of these types."""
    if "string" not in types:
        return {str} if {"integer", "boolean"} & types else set()
    if "number" in types:
        return set()
    return {float, Decimal} if "integer" in types else {int, float, Decimal}
