"""`map`: sets, drops, keeps and renames fields. All of it is `prepare`.

Expressions are computed over whole columns. Assignments are put into *passes*: within one, no expression reads what an
earlier assignment of it has set; mostly there is one pass. Where there are only assignments, a record to which they only
add fields keeps all of its bytes: the new members are put before its last brace. Any other record is opened as far as its
changes reach, and the rest of its values keep theirs. Which of the two it is depends on the record alone, never on its
neighbours, so that the same bytes come out however the input is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from etlcli.core import params
from etlcli.core.batch import Batch, lines_of
from etlcli.core.edit import encode, open_object, raw_at, with_members
from etlcli.core.expressions import Expression
from etlcli.core.fields import MISSING, Path, kinds_of, parse_path, pointer
from etlcli.core.reshape import Layout, Reshape, Unchangeable, encode_lines, keeper, open_lines, put
from etlcli.core.stage import Context, Prepared, Stage, State

# A name, or a JSON Pointer, which is also how a file's path may look: so that needs a space before the sign.
_ASSIGNMENT = re.compile(r"\s*(?:([^\s=/!<>()\"']+)\s*|(/[^=]*?)\s+)=(?!=)(.*)", re.DOTALL)
_OPENED = 64
_SPELLED_DIFFERENTLY = (float, Decimal, list, dict)


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
        reshape = Reshape(_paths(params.drop), _paths(params.keep), _renames(params.rename))
        self._passes = _passes(_assignments(params.set, ctx.started), reshape)
        only_keeps = not (params.set or params.drop or params.rename)
        self._keep = keeper(_paths(params.keep)) if only_keeps else None

    def reads(self) -> tuple[Path, ...]:
        return self._passes[0].paths

    def prepare(self, batch: Batch) -> Prepared:
        if self._keep is not None:
            return Prepared(batch.with_chunk(self._keep(batch.chunk)))
        failed: dict[int, list[dict[str, Any]]] = {}
        rows: Sequence[int] = range(batch.count)
        current = batch
        for part in self._passes:
            current, errors = part.run(current)
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
        if "[" in (match[1] or ""):
            raise ValueError(
                f"{match[1]}: an item of a list cannot be set; a field of that name is a JSON Pointer, /..."
            )
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


def _passes(assignments: Sequence[Assignment], reshape: Reshape) -> list[_Pass]:
    """The passes, one at least; the last one reshapes too."""
    parts: list[list[Assignment]] = []
    for assignment in assignments:
        targets = [earlier.path for earlier in parts[-1]] if parts else []
        if not parts or any(_overlap(path, target) for path in assignment.expression.paths for target in targets):
            parts.append([])
        parts[-1].append(assignment)
    *others, last = parts or [[]]
    return [*(_Pass(part, Reshape((), (), {})) for part in others), _Pass(last, reshape)]


def _spelled(batch: Batch, expression: Expression, values: list[Any]) -> list[bytes]:
    """The values as they will stand in the records. A field that is only copied keeps its spelling."""
    path, kinds = expression.field, kinds_of(values)
    if path and (not kinds.isdisjoint(_SPELLED_DIFFERENTLY) or (str in kinds and b"\\" in batch.chunk)):
        return [
            b"null" if value is None else raw_at(line, path) for line, value in zip(batch.lines, values, strict=True)
        ]
    return lines_of(encode_lines(values))


def _overlap(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


class _Pass:
    """Assignments whose expressions see the record as it was before all of them."""

    def __init__(self, assignments: Sequence[Assignment], reshape: Reshape) -> None:
        self._assignments = assignments
        self._reshape = reshape
        self._tops = tuple(dict.fromkeys(path[:1] for path, _ in assignments))
        read = [path for assignment in assignments for path in assignment.expression.paths]
        self.paths = tuple(dict.fromkeys([*self._tops, *read]))
        # Fields of the record itself are set, none of them twice.
        self._flat = len(self._tops) == len(assignments) and all(len(path) == 1 for path, _ in assignments)
        self._layouts = lru_cache(maxsize=64)(self._layout)

    def run(self, batch: Batch) -> tuple[Batch, dict[int, list[dict[str, Any]]]]:
        """The changed batch, with records that have errors as they were, and the errors by index."""
        columns = dict(zip(self.paths, batch.columns(self.paths), strict=True))
        errors: dict[int, list[dict[str, Any]]] = {}
        values = []
        for _, expression in self._assignments:
            found, failed = expression.values(batch.count, [columns[path] for path in expression.paths])
            for index, error in failed.items():
                errors.setdefault(index, []).append(error)
            values.append(_spelled(batch, expression, found))
        return self._changed(batch, columns, values, errors), errors

    def _changed(self, batch: Batch, columns: dict[Path, list[Any]], values: list[list[bytes]],
                 errors: dict[int, list[dict[str, Any]]]) -> Batch:  # fmt: skip
        editing: Sequence[int] = range(batch.count)
        lines: list[bytes] = []
        if self._flat and not self._reshape:
            known = zip(*(columns[top] for top in self._tops), strict=True)
            editing = [index for index, row in enumerate(known) if row.count(MISSING) < len(row)]
            if len(editing) < batch.count:
                lines = self._added(batch, values)
        if len(editing) == batch.count and batch.count:
            layout = self._layouts(tuple(open_object(batch.chunk[: batch.chunk.index(b"\n")])))
            if layout and (changed := layout.changed(batch.chunk, values)):
                return batch.with_chunk(changed)
        lines = lines or list(batch.lines)
        # A few records at a time: the objects of a whole batch would not stay in the processor's cache.
        for start in range(0, len(editing), _OPENED):
            self._edit(batch, editing[start : start + _OPENED], lines, values, errors)
        return batch.with_lines(lines)

    def _layout(self, names: tuple[str, ...]) -> Layout | None:
        """What to do with records that have these fields, if all of it is on the first level."""
        if not self._flat or not self._reshape.flat:
            return None
        try:
            return Layout(names, [path[0] for path, _ in self._assignments], self._reshape)
        except ValueError:
            return None

    def _added(self, batch: Batch, values: list[list[bytes]]) -> list[bytes]:
        """The lines with the new members put before the last brace."""
        names = [b"," + encode(path[-1]) + b":" for path, _ in self._assignments]
        members = [name + value for name, column in zip(names, values, strict=True) for value in column]
        if len(names) > 1:
            columns = [members[start : start + batch.count] for start in range(0, len(members), batch.count)]
            members = list(map(b"".join, zip(*columns, strict=True)))
        return with_members(batch, members)

    def _edit(self, batch: Batch, editing: Sequence[int], lines: list[bytes], values: list[list[bytes]],
              errors: dict[int, list[dict[str, Any]]]) -> None:  # fmt: skip
        """Puts the changed lines of some records into `lines`, and what cannot be done into `errors`."""
        changed, records = [], []
        opened = open_lines(b"\n".join(map(batch.lines.__getitem__, editing)))
        for index, record in zip(editing, opened, strict=True):
            lines[index] = batch.lines[index]
            if index in errors:
                continue
            try:
                different = False
                for (path, _), column in zip(self._assignments, values, strict=True):
                    different |= put(record, path, column[index])
                reshaped = self._reshape(record)
            except Unchangeable as error:
                errors[index] = [{"pointer": pointer(error.path), "message": error.message}]
                continue
            if different or reshaped is not None:
                changed.append(index)
                records.append(record if reshaped is None else reshaped)
        for index, line in zip(changed, encode_lines(records).split(b"\n"), strict=False):
            lines[index] = line
