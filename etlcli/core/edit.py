"""Changing some fields of a record while every other value keeps its bytes.

A record is opened one level at a time: values stay raw bytes until a change needs to go through them, so `1.10`,
`1e400`, a 30-digit integer or `\\u00e9` beside the change come out as they went in. Space between members is not kept
in an object that changes, and of duplicate keys the last stays, as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from etlcli.core.batch import Batch
from etlcli.core.fields import Path

open_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
open_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
encode = msgspec.json.Encoder(decimal_format="number").encode
_BEFORE_BRACE = (b"{", b" ", b"\t")
"""What stands before the brace that ends an empty object; seldom, before any other."""
_EMPTY = re.compile(rb"\{\s*\}\n")


def edit(line: bytes, changes: Iterable[tuple[Path, Any]]) -> bytes:
    """The line with each path set to its value, in order. Missing objects on the way are not made: the parent must be
    there (KeyError otherwise). A new key goes last. Values are anything JSON can say, or `msgspec.Raw`."""
    record: dict[str, Any] = open_object(line)
    for path, value in changes:
        target: Any = record
        for part in path[:-1]:
            target = _step_into(target, part)
        if isinstance(target, list):
            target[int(path[-1])] = value
        else:
            target[path[-1]] = value
    return encode(record)


def _step_into(parent: Any, part: str) -> Any:
    """The child object or array, opened in its parent if it was still raw."""
    key: Any = int(part) if isinstance(parent, list) else part
    child = parent[key]
    if isinstance(child, msgspec.Raw):
        raw = bytes(child)
        child = parent[key] = open_object(raw) if raw.lstrip()[:1] == b"{" else open_array(raw)
    return child


def raw_at(line: bytes, path: Sequence[str | int]) -> bytes:
    """The bytes of the value at a path that the record has."""
    raw = line
    for part in path:
        opened: Any = open_object(raw) if raw.lstrip()[:1] == b"{" else open_array(raw)
        raw = bytes(opened[int(part) if isinstance(opened, list) else part])
    return raw.strip()


def with_members(batch: Batch, members: Sequence[bytes]) -> list[bytes]:
    """The lines with new members put before the last brace: `,"name":value` as often as wanted, for each record."""
    ends = {line[-2:] for line in batch.lines}
    closed = all(end.endswith(b"}") for end in ends)
    if closed and (not any(end[:1] in _BEFORE_BRACE for end in ends) or not _EMPTY.search(batch.chunk)):
        return [line[:-1] + new + b"}" for line, new in zip(batch.lines, members, strict=True)]
    return [_with_members(line, new) if new else line for line, new in zip(batch.lines, members, strict=True)]


def _with_members(line: bytes, members: bytes) -> bytes:
    opened = line.rstrip()[:-1]
    return opened + (members[1:] if opened.strip() == b"{" else members) + b"}"
