"""Changing which fields records have, and what they are called, while the values keep their bytes.

Three ways, which give the same bytes wherever more than one of them can go. `put` and `Reshape` change one opened record,
whatever it looks like. A `Layout` changes many at once: those that have the same fields in the same order, as compactly
as JSON can be; that it was right about them it proves by writing them back before it changes anything. `keeper`
decodes nothing but the fields that are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from operator import attrgetter, is_, is_not
from typing import Any

import msgspec

from etlcli.core.edit import open_object
from etlcli.core.fields import MISSING, Path

Object = dict[str, Any]
"""An opened object: its values are raw, or opened in turn."""
Change = Callable[[Object], Object | None]
open_lines: Callable[[bytes], list[Object]] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode_lines
encode_lines: Callable[[Iterable[Any]], bytes] = msgspec.json.Encoder(decimal_format="number").encode_lines
_SAMPLE = 4096
"""Bytes, and to the end of the line, by which records are judged before all of them are."""


class Unchangeable(Exception):
    """A change that the record does not allow."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


def _object(value: Any) -> Object | None:
    """The value opened, if it is an object."""
    if isinstance(value, msgspec.Raw):
        raw = bytes(value)
        return open_object(raw) if raw[:1] == b"{" else None
    return value if isinstance(value, dict) else None


def put(record: Object, path: Path, raw: bytes, at: int = 0) -> bool:
    """Sets the value at `path[at:]`, and makes the objects on the way to it where there are none, or null. Whether that
    changed anything."""
    name = path[at]
    old = record.get(name)
    if at == len(path) - 1:
        if isinstance(old, msgspec.Raw) and bytes(old) == raw:
            return False
        record[name] = msgspec.Raw(raw)
        return True
    child = {} if old is None or (isinstance(old, msgspec.Raw) and bytes(old) == b"null") else _object(old)
    if child is None:
        raise Unchangeable(path[: at + 1], f"cannot set {'.'.join(path)}: {'.'.join(path[: at + 1])} is no object")
    if not put(child, path, raw, at + 1):
        return False
    record[name] = child
    return True


class Reshape:
    """Drops, keeps and renames, in this order. `rename` has new names by old ones, for the fields of each parent."""

    def __init__(self, drop: Sequence[Path], keep: Sequence[Path], rename: Mapping[Path, Mapping[str, str]]) -> None:
        self._changes = [_within(path[:-1], _dropping(path[-1])) for path in drop]
        if keep:
            self._changes.append(_keeping(_tree(keep)))
        self._changes += [_within(parents, _renaming(parents, names)) for parents, names in rename.items()]
        self.flat = not keep and all(len(path) == 1 for path in drop) and not any(rename)
        """Whether fields of the record itself are dropped and renamed, and nothing else is done."""
        self.dropped = [path[0] for path in drop]
        self.renamed = rename.get((), {})

    def __bool__(self) -> bool:
        return bool(self._changes)

    def __call__(self, record: Object) -> Object | None:
        """The changed object, which may be the one it was given; None if nothing is to be changed in it."""
        reshaped = None
        for change in self._changes:
            changed = change(record)
            if changed is not None:
                record = reshaped = changed
        return reshaped


def _within(parents: Path, change: Change) -> Change:
    """The change made in an object inside the record, where it is there."""
    if not parents:
        return change
    name, inner = parents[0], _within(parents[1:], change)

    def change_inside(record: Object) -> Object | None:
        child = _object(record.get(name))
        changed = None if child is None else inner(child)
        if changed is None:
            return None
        record[name] = changed
        return record

    return change_inside


def _dropping(name: str) -> Change:
    return lambda record: None if record.pop(name, None) is None else record


def _renaming(parents: Path, names: Mapping[str, str]) -> Change:
    @lru_cache(maxsize=256)
    def new_names(old: tuple[str, ...]) -> tuple[str, ...]:
        new = tuple(names.get(name, name) for name in old)
        if len(set(new)) < len(new):
            taken = next(name for name in new if new.count(name) > 1)
            raise Unchangeable((*parents, taken), "cannot rename to a field that is there already; drop that one")
        return new

    def rename(record: Object) -> Object | None:
        if names.keys().isdisjoint(record):
            return None
        return dict(zip(new_names(tuple(record)), record.values(), strict=True))

    return rename


Tree = dict[str, Any]
"""Names to keep, in their order, each with those to keep inside it; an empty tree keeps all."""


def _tree(paths: Iterable[Path]) -> Tree:
    tree: Tree = {}
    for path in paths:
        node = tree
        for name in path[:-1]:
            if name in node and not node[name]:
                break  # kept whole already
            node = node.setdefault(name, {})
        else:
            node[path[-1]] = {}
    return tree


def _keeping(tree: Tree) -> Change:
    """Keeps the fields of a tree. An object of which nothing is kept goes too."""
    inside = {name: _keeping(inner) for name, inner in tree.items() if inner}

    def keep(record: Object) -> Object | None:
        kept = {name: record[name] for name in tree if name in record}
        for name in inside.keys() & kept.keys():
            child = _object(kept[name])
            inner = None if child is None else inside[name](child)
            if not child or inner == {}:
                del kept[name]
            elif inner is not None:
                kept[name] = inner
        same = list(kept) == list(record) and all(map(is_, kept.values(), record.values()))
        return None if same else kept

    return keep


# -- Many records at once -----------------------------------------------------------------------------------------------


class Layout:
    """The fields that records have, in order, and how to set, drop and rename some of them."""

    def __init__(self, names: Iterable[str], sets: Sequence[str], reshape: Reshape) -> None:
        """Raises ValueError where the result depends on more than a layout can say: a new name that is there already, a
        name the decoder does not take."""
        self._known = tuple(names)
        ordered = list(dict.fromkeys([*self._known, *sets]))
        for old, new in reshape.renamed.items():
            if new in ordered:
                raise ValueError(f"{new!r} is there already")
            if old in ordered:
                ordered.insert(ordered.index(old) + 1, new)
        attributes = {name: f"f{number}" for number, name in enumerate(ordered)}
        self._sets = [(attributes[name], name in self._known) for name in sets]
        self._drops = [attributes[name] for name in reshape.dropped if name in attributes]
        self._renames = [
            (attributes[old], attributes[new]) for old, new in reshape.renamed.items() if old in attributes
        ]
        self._decode = _raw_fields(attributes, closed=True)

    def changed(self, chunk: bytes, values: Sequence[Sequence[bytes]]) -> bytes | None:
        """The records of `chunk` changed, the i-th field to set having `values[i]`. None if not all records are of this
        layout."""
        sample = chunk[: chunk.find(b"\n", _SAMPLE) + 1]
        records = None if self._records(sample) is None else self._records(chunk)
        if records is None:
            return None
        for (attribute, _), column in zip(self._sets, values, strict=True):
            _set(records, attribute, map(msgspec.Raw, column))
        for attribute in self._drops:
            _set(records, attribute, repeat(MISSING))
        for old, new in self._renames:
            _set(records, new, map(attrgetter(old), records))
            _set(records, old, repeat(MISSING))
        return encode_lines(records)

    def _records(self, chunk: bytes) -> list[Any] | None:
        try:
            records = self._decode(chunk)
        except msgspec.ValidationError:
            return None
        if encode_lines(records) != chunk:
            return None
        # A field to set must be in all of them or in none, or it would not go where it goes in a single record.
        for attribute, known in self._sets:
            if any(map(is_ if known else is_not, map(attrgetter(attribute), records), repeat(MISSING))):
                return None
        taken = (any(map(is_not, map(attrgetter(new), records), repeat(MISSING))) for _, new in self._renames)
        return None if any(taken) else records


def _set(records: list[Any], attribute: str, values: Iterable[Any]) -> None:
    deque(map(setattr, records, repeat(attribute), values), maxlen=0)


def keeper(paths: Sequence[Path]) -> Callable[[bytes], bytes] | None:
    """Makes of whole lines those that have only these fields; None if they are not all fields of the record itself with
    names that the decoder takes."""
    if any(len(path) > 1 for path in paths):
        return None
    try:
        decode = _raw_fields({path[0]: f"f{number}" for number, path in enumerate(dict.fromkeys(paths))}, closed=False)
    except ValueError:
        return None
    return lambda chunk: encode_lines(decode(chunk))


def _raw_fields(attributes: Mapping[str, str], *, closed: bool) -> Callable[[bytes], list[Any]]:
    """Decodes lines to structs of raw values, each field to the attribute it is mapped to; a `closed` one takes no other
    fields. Raises ValueError for names the decoder does not take."""
    fields = [(attribute, msgspec.Raw | msgspec.UnsetType, MISSING) for attribute in attributes.values()]
    renamed = {attribute: name for name, attribute in attributes.items()}
    kind = msgspec.defstruct("Fields", fields, rename=renamed, gc=False, forbid_unknown_fields=closed)
    return msgspec.json.Decoder(kind).decode_lines
