"""Decoding only the fields that somebody names, by types that are learned from the records themselves."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from copy import copy
from functools import lru_cache
from io import BytesIO
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal, Union

import msgspec

from etlcli.core.access import Access
from etlcli.core.fields import MISSING, Column, Kinds, Path, decode_long, exact_number, picked, walk
from etlcli.core.settling import Settling

Decode = Callable[[bytes], Any]
"""Of one line."""
# Types that say all of a value. Not float, which may not be what the record says; nor what has values inside.
_NARROW: Kinds = frozenset({int, str, bool, type(None), type(MISSING)})
_ENOUGH = 64
"""Records that say something about others."""
_PATIENCE = 16
"""How often records may not fit what was learned of others."""
_FEW, _SHORT = 256, 64
"""Strings that a type may have, and their length."""
_CALM, _LOOKS = 1, 64
"""Chunks without a new string, before those that there are become a type; and how many are looked at altogether."""
# A type that is made at run time, which a type checker need not follow.
_literal: Any = Literal


class Projection:
    """Decodes the named fields of lines, and nothing else of them.

    Skipped values are checked for syntax by the decoder but never built. `decoded` takes many lines and keeps integers
    beyond 64 bits exact; what it refuses (a number no double can hold, an integer of thousands of digits) `decode_exact`
    takes as a Decimal. A stage that looks at more of each record than these fields may have a projection of its own, which
    gives them, too; what that refuses is for the `plain` one.

    Fields are mostly of one type all along. Once some records have been seen, others are decoded by a narrowed projection,
    which takes only the types there were: what fits has them, so that nobody needs to look at the values (`kinds`). That
    one may be narrowed in turn: to the strings there were.
    """

    flat = False
    """Whether it decodes only records that have no arrays and objects inside."""

    __slots__ = (
        "_access",
        "_decode",
        "_decode_exact",
        "_names",
        "_narrowed",
        "_patience",
        "_seen",
        "_struct",
        "kinds",
        "paths",
        "plain",
    )

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        self.plain = self
        self.kinds: dict[Path, frozenset[type]] = {}
        """Of some paths: the types that their values can have, none of which is inexact."""
        tops = list(dict.fromkeys(path[0] for path in paths))
        self._names = names = {top: f"f{number}" for number, top in enumerate(tops)}
        self._struct: Any = projected_struct(names)
        kind = self._struct or dict[str, Any]
        self._decode: Decode = msgspec.json.Decoder(kind).decode
        self._decode_exact: Decode = msgspec.json.Decoder(kind, float_hook=exact_number).decode
        self._access: Access | None = None
        self._narrowed: Projection | None = None
        narrowable = [path[0] for path in paths if len(path) == 1 and self._struct]
        self._seen: dict[str, frozenset[type]] = dict.fromkeys(narrowable, frozenset())
        """By the names of fields that may be narrowed: the types there were."""
        self._patience = _PATIENCE

    def decoded(self, chunk: bytes) -> tuple[Projection, Any]:
        """The records of whole lines, one each, and the narrowest projection that they fit, by which they were decoded and
        which knows what they are; they have a length. Raises msgspec.DecodeError if any line is not one JSON object,
        perhaps with white space around it."""
        narrowed = self._narrowed  # another thread may learn meanwhile
        if narrowed:
            try:
                return narrowed.decoded(chunk)
            except msgspec.ValidationError:
                self._patience -= 1
        if self._patience <= 0:
            self._seen, self._narrowed = {}, None
        structs = self._each(chunk)
        if self._seen and len(structs) >= _ENOUGH:
            self._learn(structs)
        return self, structs

    def _each(self, chunk: bytes) -> list[Any]:
        """Line by line, so that a record over two lines, or two on one, cannot pass. A line is gone before the next one is
        cut: to keep them takes half as long again, most of it for memory that is not in the cache."""
        return list(map(self._decode, BytesIO(chunk)))

    def _learn(self, structs: list[Any]) -> None:
        """From records that fit no narrower projection."""
        seen = {
            name: kinds.union(map(type, map(attrgetter(self._names[name]), structs)))
            for name, kinds in self._seen.items()
        }
        self._seen = seen = {name: kinds for name, kinds in seen.items() if kinds <= _NARROW}
        there = {name: kinds for name, kinds in seen.items() if kinds - {type(MISSING)}}
        self._narrowed = _Typed(self, there) if there else None

    def decode_exact(self, line: bytes) -> Any:
        """The record of a line, as the plain projection has it. Raises msgspec.ValidationError for what is no object,
        msgspec.DecodeError for no JSON."""
        try:
            return self._decode_exact(line)
        except msgspec.ValidationError:
            if not line.lstrip().startswith(b"{"):
                raise
            record = decode_long(line)
            if self._struct is None:
                return record
            return self._struct(**{name: record[top] for top, name in self._names.items() if top in record})

    def column(self, records: Any, path: Path) -> Column:
        """The values of one of the projection's paths, a record each; MISSING where there is none."""
        return Column(self.access.values(path)(records), self.kinds.get(path))

    def picked(self, records: Any, places: Sequence[int]) -> Any:
        """The records at these places."""
        return picked(records, places)

    def rows(self, records: Any) -> Sequence[Any]:
        """The records as an object each, which `access` knows."""
        rows: Sequence[Any] = records
        return rows

    @property
    def access(self) -> Access:
        """To the values of the projection's paths in `rows`; MISSING where there is none."""
        if self._access is None:
            self._access = access_to(self.paths, self._names if self._struct else None)
        return self._access


class _Typed(Projection):
    """Decodes records whose fields have these types, and in turn those whose strings were met before: such a string need
    not be made, and knows its hash."""

    __slots__ = ("_best", "_strings", "_types")

    def __init__(self, wider: Projection, types: Mapping[str, frozenset[type]]) -> None:
        self.paths, self.plain = wider.paths, wider.plain
        self.kinds = {(name,): kinds for name, kinds in types.items()}
        self._names, self._struct, self._decode_exact = wider._names, wider._struct, wider._decode_exact
        self._types = types
        self._strings = {name: _Strings() for name, kinds in types.items() if str in kinds}
        """Of fields that have few, as far as is known."""
        self._access = None
        self._decode = self._decoder({})
        self._best: tuple[Projection, Set[str]] = self, frozenset()
        """What records are decoded by first, and the fields that it narrows to their strings."""

    def decoded(self, chunk: bytes) -> tuple[Projection, list[Any]]:
        fitted, learned = self._best  # another thread may learn meanwhile
        try:
            records = fitted._each(chunk)
        except msgspec.ValidationError:
            if fitted is self:
                raise
            records = self._each(chunk)
            fitted, learned = self._best = self, frozenset()
        if len(records) >= _ENOUGH and self._strings.keys() > learned:
            self._meet(fitted, learned, records)
        return fitted, records

    def _meet(self, fitted: Projection, learned: Set[str], records: list[Any]) -> None:
        """Looks at the strings of fields that are not `learned`."""
        before = self._strings
        for name in before.keys() - learned:
            before[name].meet(fitted.access.values((name,))(records))
        self._strings = {name: strings for name, strings in before.items() if not strings.is_hopeless}
        settled = {name: frozenset(strings.known) for name, strings in self._strings.items() if strings.are_settled}
        if settled.keys() > learned:
            narrowed = copy(self)
            narrowed._access, narrowed._decode = None, self._decoder(settled)
            self._best = narrowed, settled.keys()

    def _decoder(self, strings: Mapping[str, Iterable[str]]) -> Decode:
        types = {name: _type_of(kinds, strings.get(name, ())) for name, kinds in self._types.items()}
        optional = {name for name, kinds in self._types.items() if type(MISSING) in kinds}
        decode: Decode = msgspec.json.Decoder(projected_struct(self._names, types=types, optional=optional)).decode
        return decode


class _Strings:
    """Those of a field, that were met in some chunks."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self._settling = Settling(_CALM)
        self._looks = _LOOKS

    def meet(self, values: Iterable[Any]) -> None:
        new = {value for value in set(values).difference(self.known) if type(value) is str}
        self.known |= new
        self._settling.met(new=bool(new))
        self._looks -= 1

    @property
    def are_settled(self) -> bool:
        return bool(self.known) and self._settling.is_over

    @property
    def is_hopeless(self) -> bool:
        """Whether there are too many, or new ones all the time."""
        few = len(self.known) <= _FEW and max(map(len, self.known), default=0) <= _SHORT
        return not few or (self._looks <= 0 and not self.are_settled)


def _type_of(kinds: Kinds, strings: Iterable[str]) -> Any:
    """A type for the decoder: of the strings only these, if any are given."""
    named = _literal[tuple(strings)] if strings else str
    return Union[*(named if kind is str else kind for kind in kinds)]


def access_to(paths: Iterable[Path], attributes: Mapping[str, str] | None) -> Access:
    """To the values of paths in structs, whose attributes are mapped to by the names of fields, or in dicts."""
    terms: dict[Path, str] = {}
    names: dict[str, Any] = {"walk": walk}
    for number, path in enumerate(paths):
        top, rest = ("row", path) if attributes is None else (f"row.{attributes[path[0]]}", path[1:])
        names[f"path{number}"] = rest
        terms[path] = f"walk({top}, path{number})" if rest else top
    return Access(terms, **names)


@lru_cache(maxsize=64)
def access_to_tuples(paths: tuple[Path, ...]) -> Access:
    """To the values of paths in tuples of them."""
    return Access({path: f"row[{number}]" for number, path in enumerate(paths)})


def projected_struct(
    names: Mapping[str, str],
    *,
    forbid_unknown: bool = False,
    kind: Any = Any,
    types: Mapping[str, Any] = MappingProxyType({}),
    optional: Container[str] = (),
) -> Any:
    """A struct type that decodes the named fields, each to the attribute it is mapped to. One of `types` must have that
    type, and be there unless it is `optional`. None when a name has characters the decoder does not take in a struct
    (quotes, backslashes, controls)."""
    fields: list[Any] = []
    for name, attribute in names.items():
        expected = types.get(name, kind)
        required = name in types and name not in optional
        fields.append((attribute, expected) if required else (attribute, expected, MISSING))
    renamed = {attribute: name for name, attribute in names.items()}
    try:
        return msgspec.defstruct(
            "Projected", fields, rename=renamed, kw_only=True, gc=False, forbid_unknown_fields=forbid_unknown
        )
    except ValueError:
        return None


@lru_cache(maxsize=64)
def projection(paths: tuple[Path, ...]) -> Projection:
    return Projection(paths)
