"""What can be said of one record to a person: its values as they are spelled, what a condition makes of them, and in what
it differs from what it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from etlcli.core.batch import Batch
from etlcli.core.edit import open_object, raw_at
from etlcli.core.fields import MISSING, Path, pointer

if TYPE_CHECKING:
    from etlcli.core.expressions import Expression  # not every stage that explains itself has one

_MAX_SHOWN = 80
_WORDS = {True: "true", False: "false", None: "unknown"}


class Change(msgspec.Struct):
    """A value that is another than it was, each as it is spelled; UNSET where there is none."""

    pointer: str
    old: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    new: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def told(record: Batch, paths: Sequence[Path]) -> str:
    """The values of some fields of a batch's only record: `a is 1, b.c is missing`."""
    columns = record.columns(tuple(paths))
    return ", ".join(
        f"{name_of(path)} is {'missing' if column[0] is MISSING else _spelled(record, path)}"
        for path, column in zip(paths, columns, strict=True)
    )


def name_of(path: Path) -> str:
    """A path as a person writes it."""
    return ".".join(path) if all(part and not set(part) & set("./ ") for part in path) else pointer(path)


def judged(record: Batch, condition: Expression) -> list[str]:
    """What a condition is for a batch's only record: the whole, its parts, and the values that it goes by."""
    columns = record.columns(condition.paths)
    found = [f"{_in_a_line(condition.text)} is {_outcome(condition, columns)}"]
    found += [f"{_in_a_line(part.text)} is {_outcome(part, columns)}" for part in condition.parts()]
    return [*found, told(record, condition.paths)] if condition.paths else found


def changes(before: bytes, after: bytes) -> Iterator[Change]:
    """In what two records differ, field by field in the order of the first; an array that has other items is one change if
    it has another length."""
    yield from _changes(before.strip(), after.strip(), ())


def _changes(before: bytes, after: bytes, path: tuple[str | int, ...]) -> Iterator[Change]:
    if before == after:
        return
    if before[:1] == after[:1] == b"{":
        old, new = _members(before), _members(after)
        for name in [*old, *(name for name in new if name not in old)]:
            if name in old and name in new:
                yield from _changes(old[name], new[name], (*path, name))
            else:
                yield _change((*path, name), old.get(name), new.get(name))
        return
    if before[:1] == after[:1] == b"[":
        ours, theirs = _items(before), _items(after)
        if len(ours) == len(theirs):
            for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                yield from _changes(one, other, (*path, at))
            return
    yield _change(path, before, after)


def _change(path: Sequence[str | int], old: bytes | None, new: bytes | None) -> Change:
    raw = (msgspec.UNSET if value is None else msgspec.Raw(value) for value in (old, new))
    return Change(pointer(path), *raw)


def _members(raw: bytes) -> dict[str, bytes]:
    return {name: bytes(value).strip() for name, value in open_object(raw).items()}


def _items(raw: bytes) -> list[bytes]:
    return [bytes(item).strip() for item in msgspec.json.decode(raw, type=list[msgspec.Raw])]


def _spelled(record: Batch, path: Path) -> str:
    text = raw_at(record.lines[0], path).decode()
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def _outcome(condition: Expression, columns: list[list[Any]]) -> str:
    (value,), errors = condition.values(1, columns)
    if errors:
        return f"refused: {errors[0]['message']}"
    return _WORDS[value] if value is None or isinstance(value, bool) else "neither true nor false"


def _in_a_line(text: str) -> str:
    return text.strip().replace("\n", " ")
