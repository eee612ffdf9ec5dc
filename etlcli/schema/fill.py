"""What a schema may change in a record before it is judged: defaults for what is missing, types without loss.

Both follow `properties`, `items`, `allOf` and `$ref` within the document, where a subschema holds for certain; not `anyOf`,
`oneOf` and `if`, where it may not. The schema is compiled once into a graph of nodes, one for each set of subschemas that
hold for the same value, and only what can change something is kept. A batch is looked at by columns, so that records
which need nothing cost a type check of the fields in question. What changes is edited in, the other bytes stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from etlcli.core.batch import Batch
from etlcli.core.edit import edit, encode
from etlcli.core.fields import MISSING, Path, exact_number
from etlcli.schema.load import Schema

_MAX_NODES = 10_000
_MAX_NESTED_DEFAULTS = 50
_MAX_DIGITS = 4300  # of a number that Python, and so every decoder here, takes in
_ALL = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
_BOOLEANS = {"true": True, "false": False}

_decode = msgspec.json.Decoder(dict[str, Any], float_hook=exact_number).decode
_open_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_open_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def raw_at(line: bytes, path: Sequence[str | int]) -> bytes:
    """The bytes of the value at a path that the record has."""
    raw = line
    for part in path:
        opened: Any = _open_object(raw) if raw.lstrip()[:1] == b"{" else _open_array(raw)
        raw = bytes(opened[int(part) if isinstance(opened, list) else part])
    return raw.strip()


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
    """The changes a schema asks for. Without `defaults` and `coerce` it changes nothing."""

    def __init__(self, schema: Schema, *, defaults: bool, coerce: bool) -> None:
        """Takes a schema that the engine has accepted. Raises SchemaError when its defaults have no end."""
        self._only_plain_integers = schema.draft == 4  # where 1.0 is no integer
        self._root = _Planner(schema, defaults=defaults, coerce=coerce).plan()
        self._names = list(dict.fromkeys([*self._root.properties, *self._root.defaults]))
        self._watched = [self._watch(name) for name in self._names]
        # A decoder of some fields cannot have such names.
        self._odd = any(re.search(r'["\\\x00-\x1f]', name) for name in self._names)

    @property
    def reads(self) -> tuple[Path, ...]:
        """The fields that `fill` asks a batch for."""
        return () if self._odd else tuple((name,) for name in self._names)

    def fill(self, batch: Batch) -> Batch:
        """The batch with its changes; the batch itself if there are none."""
        if not self._names or not batch.count:
            return batch
        columns = self._columns(batch)
        touched: set[int] = set()
        for column, watched in zip(columns, self._watched, strict=True):
            if not watched.isdisjoint(set(map(type, column))):
                touched.update(index for index, value in enumerate(column) if type(value) in watched)
        lines = {}
        for index in sorted(touched):
            line = batch.lines[index]
            record = {name: column[index] for name, column in zip(self._names, columns, strict=True)}
            record = {name: value for name, value in record.items() if value is not MISSING}
            changes = list(self._changes(self._root, record, (), line))
            if changes:
                lines[index] = edit(line, changes)
        return batch.replace(lines)

    def _watch(self, name: str) -> set[type]:
        child = self._root.properties.get(name)
        return (child.watched if child else set()) | ({type(MISSING)} if name in self._root.defaults else set())

    def _columns(self, batch: Batch) -> list[list[Any]]:
        try:
            if not self._odd:
                return batch.columns(self.reads)
            records = batch.records()
        except (msgspec.MsgspecError, ArithmeticError):
            # A record that cannot be decoded is left alone, as if no field were in need of anything.
            records = list(map(self._decode_or_none, batch.lines))
        return [[record.get(name, MISSING) for record in records] for name in self._names]

    def _decode_or_none(self, line: bytes) -> dict[str, Any]:
        try:
            return _decode(line)
        except (msgspec.MsgspecError, ArithmeticError):
            return dict.fromkeys(self._names)

    def _changes(self, node: Node, value: Any, path: Path, line: bytes) -> Iterator[tuple[Path, Any]]:
        """What to set where, outside in."""
        if isinstance(value, dict):
            for name, default in node.defaults.items():
                if name not in value:
                    yield (*path, name), default
            for name, child in node.properties.items():
                if type(value.get(name, MISSING)) in child.watched:
                    yield from self._changes(child, value[name], (*path, name), line)
        elif isinstance(value, list):
            if node.item is not None:
                for number, item in enumerate(value):
                    if type(item) in node.item.watched:
                        yield from self._changes(node.item, item, (*path, str(number)), line)
        elif (changed := self._coerced(node.types, value, path, line)) is not MISSING:
            yield path, changed

    def _coerced(self, types: frozenset[str], value: Any, path: Path, line: bytes) -> Any:
        """The value as one of the types, or MISSING when it must stay. Numbers keep their spelling in both directions."""
        if isinstance(value, str):
            if "boolean" in types and value in _BOOLEANS:
                return _BOOLEANS[value]
            fits = self._is_integer if "number" not in types else _is_number
            return msgspec.Raw(value.encode()) if "integer" in types and fits(value) else MISSING
        spelling = raw_at(line, path).decode()
        return MISSING if "integer" in types and self._is_integer(spelling) else spelling

    def _is_integer(self, text: str) -> bool:
        """Whether a text is a JSON number that denotes an integer."""
        match = _NUMBER.fullmatch(text) if len(text) <= _MAX_DIGITS else None
        if match is None:
            return False
        whole, fraction, exponent = match.groups()
        if fraction is None and exponent is None:
            return True
        digits = (whole + (fraction or "")).rstrip("0")
        dropped = len(whole + (fraction or "")) - len(digits)
        decimals = len(fraction or "") - int(exponent or 0)
        return not self._only_plain_integers and (not digits or dropped >= decimals)


def _is_number(text: str) -> bool:
    return len(text) <= _MAX_DIGITS and _NUMBER.fullmatch(text) is not None


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
