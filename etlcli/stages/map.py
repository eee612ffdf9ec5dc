"""`map`: sets, drops, keeps and renames fields. All of it is `prepare`.

Expressions are computed over whole columns. Assignments are put into *passes*: within one, no expression reads what an
earlier assignment of it has set; mostly there is one pass. Where there are only assignments, a record to which they only
add fields keeps all of its bytes: the new members are put before its last brace. Any other record is opened as far as its
changes reach, and the rest of its values keep theirs. Which of the two it is depends on the record alone, never on its
neighbours, so that the same bytes come out however the input is cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import is_
from typing import Any, NamedTuple

import msgspec

from etlcli.core import params
from etlcli.core.batch import Batch
from etlcli.core.edit import encode, open_object
from etlcli.core.expressions import Expression
from etlcli.core.fields import MISSING, Path, parse_path, pointer
from etlcli.core.stage import Context, Prepared, Stage, State

# A name, or a JSON Pointer, which is also how a file's path may look: so that needs a space before the sign.
_ASSIGNMENT = re.compile(r"\s*(?:([^\s=/!<>()\"']+)\s*|(/[^=]*?)\s+)=(?!=)(.*)", re.DOTALL)
_OPENED = 64
_EMPTY = re.compile(rb"\{\s*\}\n")
_open_lines = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode_lines
_encode_lines = msgspec.json.Encoder(decimal_format="number").encode_lines

Object = dict[str, Any]
"""An opened object: its values are raw, or opened in turn."""


class Map(Stage):
    help = """Set, drop, keep and rename fields.

Each assignment 'FIELD = EXPR' sets a field to what an expression gives for the record; etl filter --help tells what
expressions can say. A later one sees what an earlier one has set. FIELD may be nested (a.b = 1 makes a if there is none),
or a JSON Pointer for an odd name ('/a.b = 1', with the space). Null and missing fields are null in an expression, and a
result that is null sets null. A record that an expression cannot be computed for is rejected (bad_type).

Then --drop, --keep and --rename are done, in this order: the first two know fields by their names before renaming. A new
field goes last, a changed or renamed one stays where it is, and --keep puts fields in the order in which it names them.
Other fields keep their bytes, and so does the whole of a record that nothing changes."""
    examples = (
        ("etl map 'gained = dep_delay - arr_delay' flights.ndjson", "a new field"),
        ("etl map 'speed = round(distance / air_time * 60)' 'fast = speed > 500' flights.ndjson", "one from the other"),
        ("etl map --keep carrier,origin,dest --rename dest=to flights.ndjson", "three fields, one renamed"),
        ("etl map 'route.from = origin' 'route.to = dest' --drop origin,dest flights.ndjson", "fields into an object"),
    )

    class Params(params.Declared):
        set = params.texts(
            "Field to set and the expression for it: FIELD = EXPR.",
            metavar="ASSIGNMENT",
            takes=lambda word: bool(_ASSIGNMENT.fullmatch(word)),
        )
        drop = params.fields("Fields to drop.")
        keep = params.fields("Fields to keep, in this order; all others are dropped.")
        rename = params.fields("Fields to rename: OLD=NEW,...", metavar="OLD=NEW")

        def verify(self) -> None:
            for name, check in (("set", _assignments), ("drop", _paths), ("keep", _paths), ("rename", _renames)):
                try:
                    check(getattr(self, name))
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
            if not (self.set or self.drop or self.keep or self.rename):
                raise ValueError("set: nothing to do; give an assignment, --drop, --keep or --rename")

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self._passes = _passes(_assignments(params.set, ctx.started))
        self._reshape = _reshaping(_paths(params.drop), _paths(params.keep), _renames(params.rename))
        if self._reshape and not self._passes:
            self._passes.append(_Pass([]))
        only_keeps = not (params.set or params.drop or params.rename)
        self._kept = _kept_type(_paths(params.keep)) if only_keeps else None

    def reads(self) -> tuple[Path, ...]:
        return self._passes[0].paths

    def prepare(self, batch: Batch) -> Prepared:
        if self._kept is not None:
            return Prepared(batch.with_lines(_encode_lines(self._kept(batch.chunk)).split(b"\n")[:-1]))
        failed: dict[int, list[dict[str, Any]]] = {}
        rows: Sequence[int] = range(batch.count)
        current = batch
        for number, part in enumerate(self._passes, 1):
            current, errors = part.run(current, self._reshape if number == len(self._passes) else None)
            if errors:
                failed |= {rows[index]: found for index, found in errors.items()}
                rows = [row for index, row in enumerate(rows) if index not in errors]
                current = current.without(errors)
        return Prepared(current, [batch.reject(row, "bad_type", failed[row]) for row in sorted(failed)])


# -- Options ----------------------------------------------------------------------------------------------------------


class Assignment(NamedTuple):
    path: Path
    expression: Expression


def _assignments(texts: Sequence[str], now: float = 0.0) -> list[Assignment]:
    found = []
    for text in texts:
        match = _ASSIGNMENT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no assignment; write FIELD = EXPR")
        path = parse_path(match[1] or match[2])
        try:
            found.append(Assignment(path, Expression(match[3], now=now)))
        except ValueError as error:
            raise ValueError(f"{match[1] or match[2]} = {match[3].strip()}: {error}") from None
    return found


def _paths(names: Iterable[str]) -> list[Path]:
    return [parse_path(name) for name in names]


def _renames(pairs: Sequence[str]) -> dict[Path, dict[str, str]]:
    """New names by old ones, of the fields of each parent."""
    found: dict[Path, dict[str, str]] = {}
    for pair in pairs:
        old, sign, new = pair.partition("=")
        if not sign:
            raise ValueError(f"{pair!r} is no pair of names; write OLD=NEW")
        source, target = parse_path(old.strip()), parse_path(new.strip())
        if source[:-1] != target[:-1]:
            raise ValueError(f"{pair!r} would move a field; set it by an assignment and drop the old one")
        names = found.setdefault(source[:-1], {})
        if source[-1] in names or target[-1] in names.values():
            raise ValueError(f"{pair!r} names a field that another pair names too")
        names[source[-1]] = target[-1]
    return found


# -- Assigning --------------------------------------------------------------------------------------------------------


def _passes(assignments: Sequence[Assignment]) -> list[_Pass]:
    parts: list[list[Assignment]] = []
    for assignment in assignments:
        targets = [earlier.path for earlier in parts[-1]] if parts else []
        if not parts or any(_overlap(path, target) for path in assignment.expression.paths for target in targets):
            parts.append([])
        parts[-1].append(assignment)
    return list(map(_Pass, parts))


def _overlap(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


class _Pass:
    """Assignments whose expressions see the record as it was before all of them."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = assignments
        self._tops = tuple(dict.fromkeys(path[:1] for path, _ in assignments))
        read = [path for assignment in assignments for path in assignment.expression.paths]
        self.paths = tuple(dict.fromkeys([*self._tops, *read]))
        # Fields may be put before the brace if they are new, and none is named twice.
        self._plain = len(self._tops) == len(assignments) and all(len(path) == 1 for path, _ in assignments)

    def run(self, batch: Batch, reshape: Reshaping | None) -> tuple[Batch, dict[int, list[dict[str, Any]]]]:
        """The changed batch, with records that have errors as they were, and the errors by index."""
        columns = dict(zip(self.paths, batch.columns(self.paths), strict=True))
        errors: dict[int, list[dict[str, Any]]] = {}
        values = []
        for _, expression in self._assignments:
            found, failed = expression.values(batch.count, [columns[path] for path in expression.paths])
            for index, error in failed.items():
                errors.setdefault(index, []).append(error)
            values.append(_encode_lines(found).split(b"\n")[:-1])
        lines = list(batch.lines)
        if reshape is None and self._plain:
            known = zip(*(columns[top] for top in self._tops), strict=True)
            editing = [index for index, row in enumerate(known) if row.count(MISSING) < len(row)]
            if len(editing) < batch.count:
                lines = self._added(batch, values)
        else:
            editing = list(range(batch.count))
        # A few records at a time: the objects of a whole batch would not stay in the processor's cache.
        for start in range(0, len(editing), _OPENED):
            self._edit(batch, editing[start : start + _OPENED], lines, values, reshape, errors)
        return batch.with_lines(lines), errors

    def _added(self, batch: Batch, values: list[list[bytes]]) -> list[bytes]:
        """The lines with the new members put before the last brace."""
        names = [b"," + encode(path[-1]) + b":" for path, _ in self._assignments]
        members = [name + value for name, column in zip(names, values, strict=True) for value in column]
        if len(names) > 1:
            columns = [members[start : start + batch.count] for start in range(0, len(members), batch.count)]
            members = list(map(b"".join, zip(*columns, strict=True)))
        if batch.chunk.count(b"}\n") == batch.count and not _EMPTY.search(batch.chunk):
            return [line[:-1] + member + b"}" for line, member in zip(batch.lines, members, strict=True)]
        return list(map(_with_members, batch.lines, members))

    def _edit(self, batch: Batch, editing: Sequence[int], lines: list[bytes], values: list[list[bytes]],
              reshape: Reshaping | None, errors: dict[int, list[dict[str, Any]]]) -> None:  # fmt: skip
        """Puts the changed lines of some records into `lines`, and what cannot be done into `errors`."""
        changed, records = [], []
        opened = _open_lines(b"\n".join(map(batch.lines.__getitem__, editing)))
        for index, record in zip(editing, opened, strict=True):
            lines[index] = batch.lines[index]
            if index in errors:
                continue
            try:
                different = False
                for (path, _), column in zip(self._assignments, values, strict=True):
                    different |= _put(record, path, column[index])
                if reshape is not None:
                    reshaped = reshape(record)
                    different |= reshaped is not None
                    record = record if reshaped is None else reshaped
            except Unchangeable as error:
                errors[index] = [{"pointer": pointer(error.path), "message": error.message}]
                continue
            if different:
                changed.append(index)
                records.append(record)
        for index, line in zip(changed, _encode_lines(records).split(b"\n"), strict=False):
            lines[index] = line


def _with_members(line: bytes, members: bytes) -> bytes:
    opened = line.rstrip()[:-1]
    return opened + (members[1:] if opened.strip() == b"{" else members) + b"}"


# -- Editing an opened record -------------------------------------------------------------------------------------------


class Unchangeable(Exception):
    """A change that the record does not allow."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


Reshaping = Callable[[Object], Object | None]
"""Gives the changed object, which may be the one it was given; None if nothing is to be changed in it."""


def _object(value: Any) -> Object | None:
    """The value opened, if it is an object."""
    if isinstance(value, msgspec.Raw):
        raw = bytes(value)
        return open_object(raw) if raw[:1] == b"{" else None
    return value if isinstance(value, dict) else None


def _put(record: Object, path: Path, raw: bytes, at: int = 0) -> bool:
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
    if not _put(child, path, raw, at + 1):
        return False
    record[name] = child
    return True


def _reshaping(drop: Sequence[Path], keep: Sequence[Path], rename: dict[Path, dict[str, str]]) -> Reshaping | None:
    """Drops, keeps and renames, in this order; None for nothing of that."""
    changes = [_within(path[:-1], _dropping(path[-1])) for path in drop]
    if keep:
        changes.append(_keeping(_tree(keep)))
    changes += [_within(parents, _renaming(parents, names)) for parents, names in rename.items()]
    if not changes:
        return None

    def reshape(record: Object) -> Object | None:
        reshaped = None
        for change in changes:
            changed = change(record)
            if changed is not None:
                record = reshaped = changed
        return reshaped

    return changes[0] if len(changes) == 1 else reshape


def _within(parents: Path, change: Reshaping) -> Reshaping:
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


def _dropping(name: str) -> Reshaping:
    return lambda record: None if record.pop(name, None) is None else record


def _renaming(parents: Path, names: dict[str, str]) -> Reshaping:
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


def _keeping(tree: Tree) -> Reshaping:
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


def _kept_type(paths: Sequence[Path]) -> Callable[[bytes], list[Any]] | None:
    """A decoder of lines to structs that have these fields and no others, where they are nothing but names of top-level
    fields that the decoder takes. None otherwise."""
    names = list(dict.fromkeys(path[0] for path in paths))
    if any(len(path) > 1 for path in paths):
        return None
    fields = [(f"f{number}", msgspec.Raw | msgspec.UnsetType, MISSING) for number in range(len(names))]
    renamed = {f"f{number}": name for number, name in enumerate(names)}
    try:
        kept = msgspec.defstruct("Kept", fields, rename=renamed, gc=False)
    except ValueError:
        return None
    return msgspec.json.Decoder(kept).decode_lines
