"""Charts that need no script: the shape is an SVG that stretches, its axes are text beside it that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import floor, log10

from etlcli.observe.markup import Markup, tag

_WIDE, _TALL = 1000.0, 100.0
_STEPS = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    43200,
    86400,
)
"""Seconds between the marks of a time axis."""
_ROUND = ((1, 2), (1.5, 3), (2, 2), (3, 3), (4, 2), (5, 2), (6, 3), (8, 2), (10, 2))
"""Where an axis may end, and into how many parts it is then divided."""
_ROUND_BINARY = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def chart(
    title: str,
    note: str,
    edges: Sequence[float],
    values: Sequence[float],
    show: Callable[[float], str],
    *,
    binary: bool = False,
    limit: float | None = None,
    marks: Sequence[float] = (),
) -> Markup:
    """An area over time. `edges` are seconds from 0, one more than the values, each of which holds between two of them.
    `show` says a value with its unit; `binary` when it is one of bytes. `limit` is drawn as a line, `marks` are moments."""
    top, between = _scale(max([*values, limit or 0.0, 0.0]), binary=binary)
    seconds = edges[-1] or 1.0
    grid = [number * between for number in range(round(top / between) + 1)]
    spots = [(_WIDE * edge / seconds, _TALL - _TALL * value / top) for edge, value in _corners(edges, values)]
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    lines = [tag("line", x1=0, x2=_WIDE, y1=_up(value, top), y2=_up(value, top), class_="grid") for value in grid]
    drawing = tag(
        "svg", *lines,
        tag("polygon", points=f"0,{_TALL:g} {outline} {_WIDE:g},{_TALL:g}", class_="area"),
        tag("polyline", points=outline, class_="outline"),
        tag("line", x1=0, x2=_WIDE, y1=_up(limit, top), y2=_up(limit, top), class_="limit") if limit else "",
        *(tag("line", x1=_WIDE * x / seconds, x2=_WIDE * x / seconds, y1=0, y2=_TALL, class_="mark") for x in marks),
        *_hover(edges, values, show, seconds),
        viewBox=f"0 0 {_WIDE:g} {_TALL:g}", preserveAspectRatio="none", role="img", aria_label=f"{title}: {note}",
    )  # fmt: skip
    heights = [tag("span", show(value), style=f"bottom:{100 * value / top:.2f}%") for value in grid]
    times = [tag("span", words, style=f"left:{100 * at / seconds:.2f}%") for at, words in _times(seconds)]
    caption = tag("figcaption", tag("strong", title), " ", tag("span", note))
    return tag(
        "figure", caption, tag("div", *heights, class_="heights", aria_hidden="true"), tag("div", drawing, class_="plot"),
        tag("div", *times, class_="times", aria_hidden="true"), class_="chart",
    )  # fmt: skip


def _corners(edges: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """The middle of each value's time, and the ends of the first and the last one's."""
    middles = [((start + end) / 2, value) for (start, end), value in zip(pairwise(edges), values, strict=True)]
    return [(edges[0], values[0]), *middles, (edges[-1], values[-1])]


def _hover(
    edges: Sequence[float], values: Sequence[float], show: Callable[[float], str], seconds: float
) -> list[Markup]:
    return [
        tag(
            "rect", tag("title", f"{at(start, seconds)}: {show(value)}"),
            x=_WIDE * start / seconds, width=_WIDE * (end - start) / seconds, y=0, height=_TALL, class_="hover",
        )
        for (start, end), value in zip(pairwise(edges), values, strict=True)
    ]  # fmt: skip


def _up(value: float, top: float) -> float:
    return _TALL - _TALL * value / top


def _scale(most: float, *, binary: bool) -> tuple[float, float]:
    """A round number that `most` fits under, and a round part of it."""
    if most <= 0:
        return 1.0, 1.0
    unit = 1.0
    while binary and most >= 1024 * unit:
        unit *= 1024
    power = 10.0 ** floor(log10(most / unit))
    if binary:
        top = next(each for each in _ROUND_BINARY if most / unit <= each) * unit
        return top, top / 2
    digits, parts = next(each for each in _ROUND if most / unit <= each[0] * power * 1.0001)
    top = digits * power * unit
    return top, top / parts


def _times(seconds: float) -> list[tuple[float, str]]:
    step = next((each for each in _STEPS if seconds / each <= 8), 86400 * (seconds // (8 * 86400) + 1))
    return [(number * step, at(number * step, seconds)) for number in range(int(seconds / step + 1e-9) + 1)]


def at(moment: float, seconds: float) -> str:
    """A moment of a run of so many seconds: `12 s`, `3:20`, `2:05 h`."""
    if seconds <= 120:
        return f"{round(moment, 2):g} s"
    minutes, rest = divmod(round(moment), 60)
    return f"{minutes}:{rest:02}" if seconds < 7200 else f"{minutes // 60}:{minutes % 60:02} h"
