"""HTML and SVG that is escaped by construction.

Only what `tag` and `join` return is markup; any other text is data, and data is hostile: what could be markup is escaped,
and control characters are spelled out.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby

from etlcli.io.terminal import safe

EMPTY = frozenset({"meta", "circle", "line", "path", "rect", "polygon", "polyline"})
"""Elements that hold nothing here."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: str | float | None) -> Markup:
    """An element. Attributes that are None are left out; `_` in a name stands for `-`, and one at the end for nothing."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = f"</{name}>" if name not in EMPTY else ""
    if name in EMPTY and name != "meta":
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(content)}{end}")


def join(parts: Iterable[str], between: str = "") -> Markup:
    return Markup(text(between).join(text(part) for part in parts))


def text(data: str) -> Markup:
    return data if isinstance(data, Markup) else Markup(escape(safe(data, len(data))))


def visible(data: str, limit: int) -> Markup:
    """The beginning of a text from a record, in which control characters stand out."""
    cut = data[:limit]
    parts = [
        tag("span", *(r"\t" if char == "\t" else char for char in run), class_="control") if control else text("".join(run))
        for control, run in groupby(cut, lambda char: char == "\t" or safe(char) != char)
    ]  # fmt: skip
    return join([*parts, *(["…"] if len(data) > limit else [])])


def _attribute(value: str | float) -> str:
    return escape(safe(value, len(value))) if isinstance(value, str) else f"{round(value, 2):g}"
