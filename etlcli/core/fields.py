"""Field paths, and decoding only the fields a stage names.

A path is `a.b.c`, or for names with odd characters a JSON Pointer (RFC 6901) such as `/a.b/c`. Each segment is an
object key; on an array a segment of digits is an index. *Missing* and *null* are different: a missing field decodes
as `MISSING`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec

Path = tuple[str, ...]
MISSING = msgspec.UNSET


def parse_path(text: str) -> Path:
    """The segments of a field path. Raises ValueError when the text is not a path."""
    if text.startswith("/"):
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/"))
    parts = tuple(text.split("."))
    if not all(parts):
        raise ValueError(f"{text!r} is not a field path; write a.b.c, or /a.b/c for a name with odd characters")
    return parts


def pointer(path: Sequence[str | int]) -> str:
    """The JSON Pointer of a path: `` for the record itself, `/a/b` for a field."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def walk(value: Any, path: Path) -> Any:
    """The value a path leads to from `value`, or MISSING."""
    for part in path:
        if isinstance(value, dict):
            value = value.get(part, MISSING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


class Projection:
    """Decodes the named fields of whole lines, and nothing else of them.

    Skipped values are checked for syntax by the decoder but never built. `decode` keeps integers of any size exact; a
    number no double can hold (1e400) is an error there, and a Decimal in `decode_exact`.
    """

    __slots__ = ("_attributes", "decode", "decode_exact", "paths")

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        tops = list(dict.fromkeys(path[0] for path in paths))
        names = {top: f"f{number}" for number, top in enumerate(tops)}
        struct = msgspec.defstruct(
            "Projected",
            [(names[top], Any, MISSING) for top in tops],
            rename={name: top for top, name in names.items()},
            gc=False,
        )
        self._attributes = {path: names[path[0]] for path in paths}
        self.decode: Callable[[bytes], list[Any]] = msgspec.json.Decoder(struct).decode_lines
        self.decode_exact: Callable[[bytes], Any] = msgspec.json.Decoder(struct, float_hook=exact_number).decode

    def column(self, structs: list[Any], path: Path) -> list[Any]:
        """The values of one of the projection's paths, a record each; MISSING where there is none."""
        name = self._attributes[path]
        values = list(map(attrgetter(name), structs))
        return values if len(path) == 1 else [walk(value, path[1:]) for value in values]


@lru_cache(maxsize=64)
def projection(paths: tuple[Path, ...]) -> Projection:
    return Projection(paths)


def exact_number(text: str) -> float | Decimal:
    """A JSON number with a fraction or exponent: a float, or a Decimal where a double would overflow."""
    number = float(text)
    return Decimal(text) if number in (float("inf"), float("-inf")) else number
