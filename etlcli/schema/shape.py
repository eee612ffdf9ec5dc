"""The fast yes: a schema as the type of a typed decoder, so that decoding a chunk proves its records valid.

A shape promises one thing: a record it does not suspect is valid. What it suspects is judged by the engine, so it may err
that way, and a schema it cannot express has no shape at all. Only what the decoder means in the same way is taken over:

    type, enum, const of scalars    a union of types, a Literal. A bool is no int; 1.0 is none either (the engine judges it)
    minimum, exclusiveMaximum ...   bounds for int and float apart: as a float, 2**53 + 1 would equal 2**53
    minLength, maxLength            the decoder counts code points, too
    pattern, format                 each distinct string of a column is asked of the engine, once
    properties, required, items     nested types; of duplicate keys every value must fit, not the last one alone
    additionalProperties, $ref      only true or false; only to a subschema that does not contain itself

Any other keyword that constrains, such as `anyOf` or `uniqueItems`, is left to the engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from itertools import islice
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Union

import msgspec
from msgspec import UNSET, Meta, Raw

from etlcli.core.access import Access
from etlcli.core.batch import Batch
from etlcli.core.fields import NULLS, Column, Path, picked
from etlcli.core.projection import Decode, Projection, access_to, access_to_tuples
from etlcli.core.settling import Settling
from etlcli.schema.load import Schema

_SCALAR = {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
           "pattern", "format"}  # fmt: skip
_NESTED = {"properties", "required", "additionalProperties", "items", "minItems", "maxItems"}
_NOTES = {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "$defs",
          "definitions", "$anchor"}  # fmt: skip
_ROOT_NOTES = {"$schema", "$id", "id"}
_KINDS = ("null", "boolean", "integer", "number", "string", "array", "object")
_TYPES = {"null": type(None), "boolean": bool, "integer": int, "string": str}
_EXACT = 1 << 53
# Characters that stand for themselves in every dialect of regular expressions.
_LITERAL_PATTERN = re.compile(r"\^([A-Za-z0-9 _:/-]*)\$")
_KNOWN = 20_000
_MAX_NODES = 5_000
_BLOCK = 256
"""Records."""
_PATIENCE = 8
"""Blocks without a new string, before those that there are become a type."""
_FEW, _SHORT = 4096, 64
"""Strings that a type may have, and how long any may be that is remembered."""
# Time is counted in what it takes to look up the strings of one field in a block, some 20 us: a record's decoder takes that
# long for so many strings of its types, and this long for itself.
_STRINGS, _DECODER = 16, 32

# The types are made at run time, which a type checker need not follow.
_annotated: Any = Annotated
_literal: Any = Literal
_list: Any = list
_union: Any = Union

Values = Callable[[Sequence[Any]], Iterable[Any]]
"""From decoded records to the values at one place in them."""


class Engine(Protocol):
    def is_valid(self, instance: Any) -> bool: ...


class _Inexpressible(Exception):
    pass


class Shape:
    def __init__(
        self, record: type[msgspec.Struct], scalars: Mapping[str, _Scalar], checks: list[_StringCheck]
    ) -> None:
        """`scalars` are the fields that can be neither arrays nor objects."""
        decoder = msgspec.json.Decoder(record)
        self._decode = decoder.decode
        self._decode_lines = decoder.decode_lines
        self._record = record
        self._scalars = scalars
        self._checks = checks
        self._projection: _Proof | None = None

    @classmethod
    def of(cls, schema: Schema, compiled: Callable[[dict[str, Any]], Engine], *, formats: bool) -> Shape | None:
        """The shape of a schema that the engine accepts, or None. `compiled` makes an engine for a part of it."""
        builder = _Builder(schema, compiled, ("pattern", "format") if formats else ("pattern",))
        try:
            record = builder.record(schema.document)
            return cls(record, builder.scalars, builder.checks)
        except (_Inexpressible, ValueError, RecursionError):
            return None  # ValueError: the decoder cannot have fields of that name

    def projection(self, plain: Projection) -> Projection | None:
        """The same fields by a decoder that proves records valid at the same time, as `suspects` then need not. None where
        a value would not be the same."""
        names = {name: scalar.attribute for name, scalar in self._scalars.items()}
        others: dict[str, str] = {}
        known = set(self._record.__struct_encode_fields__)
        for top in dict.fromkeys(top for top, *_ in plain.paths if top not in names):
            if top in known or self._record.__struct_config__.forbid_unknown_fields:
                return None
            names[top] = f"other{len(others)}"
            others[names[top]] = top
        try:
            record = _struct([(name, Any, UNSET) for name in others], others, bases=(self._record,))
        except ValueError:  # the decoder cannot have fields of that name
            return None
        kinds: dict[Path, frozenset[type]] = {
            (name,): scalar.kinds for name, scalar in self._scalars.items() if scalar.kinds
        }
        flat = self._record.__struct_config__.forbid_unknown_fields and self._scalars.keys() == known
        self._projection = _Proof(plain, record, names, kinds, self._checks, flat=flat)
        return self._projection

    def suspects(self, batch: Batch) -> Sequence[int]:
        """The indices of the records that are not proven valid, in order."""
        decoded = batch.decoded_by(self._projection) if self._projection else None
        if isinstance(decoded, _Proven) and decoded.suspects is not None:
            return decoded.suspects
        kept: Sequence[int] = range(batch.count)
        try:
            rows: Sequence[Any] = self._decode_lines(batch.chunk)
        except (msgspec.MsgspecError, RecursionError):
            kept, rows = self._one_by_one(batch.lines)
        bad = set(_bad(self._checks, rows))
        if len(kept) == batch.count and not bad:
            return ()
        proven = {index for place, index in enumerate(kept) if place not in bad}
        return [index for index in range(batch.count) if index not in proven]

    def _one_by_one(self, lines: list[bytes]) -> tuple[list[int], list[Any]]:
        """The lines that decode, as indices and records. Gives up where most do not: then the engine is faster alone."""
        kept, rows = [], []
        decode = self._decode
        for index, line in enumerate(lines):
            try:
                rows.append(decode(line))
            except (msgspec.MsgspecError, RecursionError):
                if index > 64 and len(rows) * 2 < index:
                    break
            else:
                kept.append(index)
        return kept, rows


class _Scalar(NamedTuple):
    """A field that can be neither an array nor an object: its attribute, and the types that its values can have, if these
    say something of it: where a value may be inexact, or null and missing, it is better looked at."""

    attribute: str
    kinds: frozenset[type] | None


class _Proven:
    """So many records that were decoded: the values of some paths, and which are not proven valid, if that is known."""

    def __init__(self, columns: dict[Path, Column], count: int, suspects: list[int] | None) -> None:
        self.columns = columns
        self.suspects = suspects
        self._count = count
        self._rows: Sequence[Any] | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Sequence[Any]:
        """Tuples of the values."""
        if self._rows is None:
            columns = self.columns.values()
            self._rows = list(zip(*columns, strict=True)) if columns else range(self._count)
        return self._rows


class _Proof(Projection):
    """Decodes records by a shape, checks them, and keeps of each the values of the plain projection's paths. It goes block
    by block, so that what is not kept is gone before it has left the processor's cache.

    Where a field has had no new string for a while, those that there were become its type, so that nobody needs to look
    them up. A string that is new ends that, and then the while is twice as long. Decoders are made in the time that they
    have saved, and in a tenth of what blocks take.

    For one thread.
    """

    __slots__ = ("_checks", "_earned", "_kept", "_left", "_narrow", "_record", "flat")

    def __init__(
        self,
        plain: Projection,
        record: type[msgspec.Struct],
        names: Mapping[str, str],
        kinds: Mapping[Path, frozenset[type]],
        checks: list[_StringCheck],
        *,
        flat: bool,
    ) -> None:
        """`names` are the attributes of the record's fields."""
        super().__init__(plain.paths)
        self.plain = plain
        self.flat = flat
        self.kinds = {path: kinds[path] for path in plain.paths if path in kinds}
        self._record = record
        self._decode = msgspec.json.Decoder(record).decode
        kept = access_to(plain.paths, names)
        self._kept = [kept.values(path) for path in plain.paths]
        self._access = access_to_tuples(plain.paths)
        self._checks = checks
        self._narrow: Decode = self._decode
        """Takes only known strings, where that was learned."""
        self._left = checks
        """To be made of what it takes."""
        self._earned = 0
        """Time."""

    def decoded(self, chunk: bytes) -> tuple[Projection, _Proven]:
        columns = [Column((), self.kinds.get(path)) for path in self.paths]
        suspects: list[int] = []
        count = 0
        lines = BytesIO(chunk)
        while True:
            block, checks = self._block(lines)
            if not block:
                break
            suspects += [count + place for place in _bad(checks, block)]
            self._earned += 1 + len(self._checks) - len(checks)
            if any(check.is_settled for check in self._left):
                self._learn_strings()
            for column, values in zip(columns, self._kept, strict=True):
                column += values(block)
            count += len(block)
        return self, _Proven(dict(zip(self.paths, columns, strict=True)), count, suspects)

    def column(self, records: _Proven, path: Path) -> Column:
        return records.columns[path]

    def picked(self, records: _Proven, places: Sequence[int]) -> _Proven:
        columns = {
            path: Column(picked(column, places), self.kinds.get(path)) for path, column in records.columns.items()
        }
        return _Proven(columns, len(places), None)

    def rows(self, records: _Proven) -> Sequence[Any]:
        return records.rows

    def _block(self, lines: BytesIO) -> tuple[list[Any], list[_StringCheck]]:
        """The next records, and how they are to be checked."""
        start = lines.tell()
        try:
            return list(map(self._narrow, islice(lines, _BLOCK))), self._left
        except msgspec.ValidationError:
            lines.seek(start)
            rows = list(map(self._decode, islice(lines, _BLOCK)))  # if that fails, too, it was not for a string
        self._narrow, self._left = self._decode, self._checks
        return rows, self._left

    def _learn_strings(self) -> None:
        """Of settled fields, those with the fewest first, as far as the time was earned."""
        cost, learned = _DECODER, []
        for check in sorted((check for check in self._checks if check.is_settled), key=attrgetter("count")):
            if cost + check.count // _STRINGS > self._earned:
                break
            cost += check.count // _STRINGS
            learned.append(check)
        if len(learned) <= len(self._checks) - len(self._left):
            return
        self._earned -= cost
        fields, renamed = [], {}
        for check in learned:
            assert check.field
            name, attribute, required, nullable = check.field
            kind = _literal[tuple(check.strings)]
            kind = _union[kind, None] if nullable else kind
            fields.append((attribute, kind) if required else (attribute, kind, UNSET))
            renamed[attribute] = name
        self._narrow = msgspec.json.Decoder(_struct(fields, renamed, bases=(self._record,))).decode
        self._left = [check for check in self._checks if check not in learned]


class _Field(NamedTuple):
    """Of the record itself, that has strings, or null if it is `nullable`."""

    name: str
    attribute: str
    required: bool
    nullable: bool


class _StringCheck:
    """The strings at one place in the records, against a pattern or format."""

    def __init__(self, values: Values, engine: Engine, *, hashable: bool) -> None:
        self._values = values
        self._is_valid = engine.is_valid
        self._hashable = hashable
        self._known: set[Any] = set()
        """Valid strings, and what is none."""
        self._settling = Settling(_PATIENCE)
        self.field: _Field | None = None
        """Where the place is a field that has nothing but strings and null."""

    @property
    def strings(self) -> list[str]:
        """Valid ones that there were."""
        return [value for value in self._known if type(value) is str]

    @property
    def count(self) -> int:
        """How many `strings`, where the place is such a field."""
        return len(self._known) - (None in self._known) - (UNSET in self._known)

    @property
    def is_settled(self) -> bool:
        """Whether the field has some strings, and probably no others."""
        return self.field is not None and self._settling.is_over and 0 < self.count <= _FEW

    def bad(self, rows: Sequence[Any]) -> set[str]:
        """Those that are not valid."""
        known = self._known
        new = not (self._hashable and known.issuperset(self._values(rows)))
        self._settling.met(new=new)
        if not new:
            return set()
        values = self._values(rows)
        distinct = set(values) if self._hashable else {value for value in values if type(value) is str}
        unknown = distinct.difference(known)
        bad = {value for value in unknown if type(value) is str and not self._is_valid(value)}
        if not bad and len(known) + len(unknown) <= _KNOWN:
            known.update(value for value in unknown if type(value) is not str or len(value) <= _SHORT)
        return bad

    def hits(self, row: Any, bad: set[str]) -> bool:
        """Whether the record has one of these."""
        return any(type(value) is str and value in bad for value in self._values((row,)))


def _bad(checks: Iterable[_StringCheck], rows: Sequence[Any]) -> list[int]:
    """The places of the records that have a string which is not valid, in order."""
    bad = [(check, strings) for check in checks if (strings := check.bad(rows))]
    if not bad:
        return []
    return [place for place, row in enumerate(rows) if any(check.hits(row, strings) for check, strings in bad)]


class _Builder:
    """Turns subschemas into types. Raises _Inexpressible, or what the decoder raises, where there is none."""

    def __init__(self, schema: Schema, compiled: Callable[[dict[str, Any]], Engine], checked: tuple[str, ...]) -> None:
        self.checks: list[_StringCheck] = []
        self.scalars: dict[str, _Scalar] = {}
        self._schema = schema
        self._compiled = compiled
        self._checked = checked
        self._visited = 0

    def record(self, document: Any) -> Any:
        """The type of a whole record, which is always an object."""
        node = self._followed(document)
        if not isinstance(node, dict) or "object" not in _kinds(node) or not node.keys().isdisjoint(("enum", "const")):
            raise _Inexpressible
        return self._object(node, None)

    def _followed(self, node: Any) -> Any:
        """The subschema itself, behind its references, checked to have no keyword that is not understood."""
        self._visited += 1
        if self._visited > _MAX_NODES:
            raise _Inexpressible  # a subschema that contains itself gets here, too
        if not isinstance(node, dict):
            return node
        notes = _NOTES | _ROOT_NOTES if node is self._schema.document else _NOTES
        keywords = {key for key in node if not key.startswith("x-")} - notes
        if "$ref" not in node:
            if not keywords <= _SCALAR | _NESTED:
                raise _Inexpressible
            return node
        target = self._schema.resolve(node["$ref"], node)
        if keywords != {"$ref"} or target is None:
            raise _Inexpressible
        return self._followed(target)

    def _type(self, node: Any, values: Values) -> Any:
        """The type of the values at one place."""
        node = self._followed(node)
        if node is False or isinstance(node, list):  # a list: the older way to say prefixItems
            raise _Inexpressible
        if node is True or node.keys().isdisjoint(_SCALAR | _NESTED):
            return Raw
        if "enum" in node or "const" in node:
            return self._one_of(node, node.get("enum", [node.get("const")]))
        kinds = _kinds(node)
        parts = [self._of_kind(kind, node, values, kinds) for kind in kinds]
        return _union[tuple(parts)]

    def _of_kind(self, kind: str, node: dict[str, Any], values: Values, kinds: list[str]) -> Any:
        if kind == "object":
            return self._object(node, values)
        if kind == "array":
            item = self._type(node.get("items", True), _items(values))
            return _limited(_list[item], min_length=_length(node, "minItems"), max_length=_length(node, "maxItems"))
        if kind == "string":
            return self._string(node, values, hashable={"array", "object"}.isdisjoint(kinds))
        if kind == "integer":
            return _limited(int, **_int_bounds(node))
        if kind == "number":
            return _union[_limited(int, **_int_bounds(node)), _limited(float, **_float_bounds(node))]
        return {"null": None, "boolean": bool}[kind]

    def _object(self, node: dict[str, Any], values: Values | None) -> Any:
        """A struct type. Properties that nothing is asked of are skipped by the decoder, unless they have to be known."""
        is_open = node.get("additionalProperties", True)
        if not isinstance(is_open, bool):
            raise _Inexpressible
        properties = node.get("properties", {})
        required = set(node.get("required", ()))
        names = list(dict.fromkeys([*properties, *node.get("required", ())]))
        if not is_open and not required <= set(properties):
            raise _Inexpressible
        fields: list[Any] = []
        renamed = {}
        for number, name in enumerate(names):
            attribute, checked = f"field{number}", len(self.checks)
            kind = self._type(properties.get(name, True), _attributes(attribute, values))
            if kind is Raw and is_open and name not in required:
                continue
            fields.append((attribute, kind) if name in required else (attribute, kind, UNSET))
            renamed[attribute] = name
            if values is None and _is_scalar(inner := self._followed(properties.get(name, True))):
                kinds = _exact_kinds(inner)
                there = kinds if name in required else kinds and kinds | {type(UNSET)}
                self.scalars[name] = _Scalar(attribute, None if there and there >= NULLS else there)
                if len(self.checks) > checked and kinds and kinds <= {str, type(None)}:
                    self.checks[-1].field = _Field(name, attribute, name in required, type(None) in kinds)
        return _struct(fields, renamed, forbid_unknown_fields=not is_open)

    def _string(self, node: dict[str, Any], values: Values, *, hashable: bool) -> Any:
        own = {key: node[key] for key in ("minLength", "maxLength", *self._checked) if key in node}
        literal = _LITERAL_PATTERN.fullmatch(own.get("pattern", ""))
        if literal:
            return self._one_of({"type": "string", **own}, [literal[1]])
        if not own.keys().isdisjoint(self._checked):
            self.checks.append(_StringCheck(values, self._compiled({"type": "string", **own}), hashable=hashable))
        return _limited(str, min_length=_length(node, "minLength"), max_length=_length(node, "maxLength"))

    def _one_of(self, node: dict[str, Any], values: list[Any]) -> Any:
        """The strings, small integers and null among the values that the rest of the subschema allows, too."""
        engine = self._compiled({key: node[key] for key in _SCALAR if key in node})
        scalars = [value for value in values if value is None or type(value) is str or _is_small(value)]
        allowed = [value for value in scalars if engine.is_valid(value)]
        if not allowed:
            raise _Inexpressible
        return _literal[tuple(allowed)]


def _struct(fields: list[Any], renamed: dict[str, str], **options: Any) -> type[msgspec.Struct]:
    return msgspec.defstruct("Shaped", fields, rename=renamed, kw_only=True, gc=False, **options)


def _attributes(name: str, parents: Values | None) -> Values:
    """The values of an attribute: of the records, or of the structs at another place."""
    if parents is None:
        return Access({(name,): f"row.{name}"}).values((name,))
    get = attrgetter(name)
    return lambda rows: [get(parent) for parent in parents(rows) if isinstance(parent, msgspec.Struct)]


def _items(parents: Values) -> Values:
    return lambda rows: [item for parent in parents(rows) if type(parent) is list for item in parent]


def _kinds(node: dict[str, Any]) -> list[str]:
    """The types a subschema allows; `number` stands for `integer`, too."""
    named = node.get("type", _KINDS)
    kinds = [named] if isinstance(named, str) else list(named)
    return [kind for kind in kinds if kind != "integer" or "number" not in kinds]


def _is_scalar(node: Any) -> bool:
    """Whether what the subschema allows, as `_Builder` takes it over, can be neither an array nor an object."""
    if not isinstance(node, dict):
        return False
    return "enum" in node or "const" in node or {"array", "object"}.isdisjoint(_kinds(node))


def _exact_kinds(node: dict[str, Any]) -> frozenset[type] | None:
    """The types of the values of a scalar subschema, as `_Builder` takes it over; None where a number may be inexact."""
    if "enum" in node or "const" in node:
        return frozenset(map(type, node.get("enum", [node.get("const")]))) & {str, int, type(None)}
    named = _kinds(node)
    return None if "number" in named else frozenset(_TYPES[kind] for kind in named)


def _limited(kind: Any, **limits: Any) -> Any:
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return _annotated[kind, Meta(**given)] if given else kind


def _length(node: dict[str, Any], keyword: str) -> int | None:
    length = node.get(keyword)
    if length is not None and type(length) is not int:
        raise _Inexpressible
    return length


def _bound(node: dict[str, Any], keyword: str) -> Any:
    """A numeric bound or None. Draft 4's exclusiveMinimum is a bool; beyond 2**53 int and float comparisons part."""
    bound = node.get(keyword)
    if bound is not None and (type(bound) not in (int, float) or not -_EXACT <= bound <= _EXACT):
        raise _Inexpressible
    return bound


def _int_bounds(node: dict[str, Any]) -> dict[str, int | None]:
    low, over = _bound(node, "minimum"), _bound(node, "exclusiveMinimum")
    high, under = _bound(node, "maximum"), _bound(node, "exclusiveMaximum")
    lows = [None if low is None else math.ceil(low), None if over is None else math.floor(over) + 1]
    highs = [None if high is None else math.floor(high), None if under is None else math.ceil(under) - 1]
    return {
        "ge": max((bound for bound in lows if bound is not None), default=None),
        "le": min((bound for bound in highs if bound is not None), default=None),
    }


def _float_bounds(node: dict[str, Any]) -> dict[str, float | None]:
    low, over = _bound(node, "minimum"), _bound(node, "exclusiveMinimum")
    high, under = _bound(node, "maximum"), _bound(node, "exclusiveMaximum")
    bounds: dict[str, float | None] = {}
    # The decoder takes one bound a side: the tighter.
    bounds.update({"gt": over} if over is not None and (low is None or over >= low) else {"ge": low})
    bounds.update({"lt": under} if under is not None and (high is None or under <= high) else {"le": high})
    return bounds


def _is_small(value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63
