"""The pipeline as a picture: a box a step, arrows as wide as what passed, and what left the stream on the way.

The stream goes down. What is rejected, discarded or absorbed leaves to the right. Branches of a fork stand side by side or,
when they are too many for the page, one beneath another along a rail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from unicodedata import combining, east_asian_width

from etlcli.core.ledger import ABANDONED
from etlcli.io.terminal import safe
from etlcli.observe.figures import count, duration, percent
from etlcli.observe.markup import Markup, join, tag
from etlcli.observe.status import StepStatus

_PAGE = 1100
"""A wider fork is drawn along a rail."""
_BOX, _TALL = 240, 66
_DOWN, _END = 48, 34
"""The length of an arrow between steps, and of one that comes in or goes out."""
_CAPTION = 18
_SIDE, _ASIDE = 26, (150, 220)
"""The length of a side arrow, and the least and the most room for what it says."""
_LINE = 36
"""The height of a side arrow with its text."""
_GAP = 28
_SMALLEST = 0.8
"""How much smaller than it is the picture may be shown, before it scrolls."""
_RAIL, _INDENT = 24, 116
"""How far into its box a fork's rail begins, and how far in its branches stand."""
_WIDEST, _THINNEST = 7.0, 1.25


class _Block(NamedTuple):
    """A step with all that is below it."""

    width: float
    height: float
    centre: float
    """Of the step's box, from the left."""
    draw: Callable[[float, float], list[Markup]]
    """Takes the upper left corner."""


class _Side(NamedTuple):
    kind: str
    what: str
    details: str


class Picture(NamedTuple):
    svg: Markup
    width: float
    height: float


def picture(steps: list[StepStatus]) -> Picture:
    """Of steps in pipeline order."""
    drawing = _Drawing(steps)
    tops = [step for step in steps if step.above is None or step.above not in drawing.ids]
    roots = [drawing.block(step) for step in tops]
    parts, y = [], 0.0
    for step, root in zip(tops, roots, strict=True):
        parts.extend(drawing.entrance(step.received, root.centre, y))
        parts.extend(root.draw(0, y + _CAPTION + _END))
        y += _CAPTION + _END + root.height + _GAP
    width, height = max((root.width for root in roots), default=0) + 2, max(0, y - _GAP) + 2
    svg = tag(
        "svg", tag("title", "The pipeline, with the number of records on every arrow"), *parts,
        viewBox=f"-1 -1 {width:g} {height:g}", width=width, height=height, role="img", class_="pipeline",
        style=f"--least:{_SMALLEST * width:.0f}px",
    )  # fmt: skip
    return Picture(svg, width, height)


class _Drawing:
    def __init__(self, steps: list[StepStatus]) -> None:
        self.ids = {step.id for step in steps}
        self._below = {step.id: [each for each in steps if each.above == step.id != each.id] for step in steps}
        self._most = max((max(step.received, step.sent) for step in steps), default=0)
        self._seconds = sum(step.seconds for step in steps)
        longest = max((len(side.what) for step in steps for side in _sides(step)), default=0)
        self._aside = min(max(_ASIDE[0], 7.4 * longest + 16), _ASIDE[1])

    def block(self, step: StepStatus) -> _Block:
        sides = _sides(step)
        own = max(_TALL, len(sides) * _LINE)
        below = [self.block(each) for each in self._below[step.id]]
        counts = [each.received for each in self._below[step.id]]
        rest = self._rest(below, counts, step, own - _TALL)

        def draw(x: float, y: float) -> list[Markup]:
            left = x + rest.centre - _BOX / 2
            return [
                self._box(step, left, y),
                *(_side_arrow(side, left + _BOX, y + row * _LINE, self._aside - 8) for row, side in enumerate(sides)),
                *rest.draw(x, y + _TALL),
            ]

        right = rest.centre + _BOX / 2 + (_SIDE + self._aside if sides else 0)
        return _Block(max(rest.width, right), _TALL + max(rest.height, own - _TALL), rest.centre, draw)

    def entrance(self, number: int, x: float, y: float) -> list[Markup]:
        return [
            tag("text", f"{count(number)} in", x=x, y=y + 12, text_anchor="middle", class_="count"),
            self._arrow([(x, y + _CAPTION), (x, y + _CAPTION + _END)], number),
        ]

    def _rest(self, below: list[_Block], counts: list[int], step: StepStatus, spare: float) -> _Block:
        """What is below a box, which ends `spare` above where its side arrows do."""
        if not below:
            return self._exit(step, spare)
        if len(below) == 1:
            return self._chain(below[0], counts[0], spare + _DOWN)
        if sum(block.width for block in below) + _GAP * (len(below) - 1) <= _PAGE:
            return self._beside(below, counts, spare + _DOWN + 16)
        return self._along_rail(below, counts, spare)

    def _exit(self, step: StepStatus, spare: float) -> _Block:
        down, centre = spare + _END, _BOX / 2

        def draw(x: float, y: float) -> list[Markup]:
            words = f"{count(step.sent)} out"
            return [
                self._arrow([(x + centre, y), (x + centre, y + down)], step.sent),
                tag("text", words, x=x + centre, y=y + down + 15, text_anchor="middle", class_="count"),
            ]

        return _Block(_BOX, down + _CAPTION + 4, centre, draw)

    def _chain(self, block: _Block, number: int, down: float) -> _Block:
        def draw(x: float, y: float) -> list[Markup]:
            points = [(x + block.centre, y), (x + block.centre, y + down)]
            return [self._arrow(points, number), _label(number, points[-1]), *block.draw(x, y + down)]

        return _Block(block.width, down + block.height, block.centre, draw)

    def _beside(self, below: list[_Block], counts: list[int], down: float) -> _Block:
        lefts = [sum(block.width + _GAP for block in below[:number]) for number in range(len(below))]
        centres = [left + block.centre for left, block in zip(lefts, below, strict=True)]
        centre = (centres[0] + centres[-1]) / 2

        def draw(x: float, y: float) -> list[Markup]:
            parts = []
            turn = y + down - _DOWN
            for left, middle, block, number in zip(lefts, centres, below, counts, strict=True):
                points = [(x + centre, y), (x + centre, turn), (x + middle, turn), (x + middle, y + down)]
                parts += [self._arrow(points, number), _label(number, points[-1]), *block.draw(x + left, y + down)]
            return parts

        return _Block(lefts[-1] + below[-1].width, down + max(block.height for block in below), centre, draw)

    def _along_rail(self, below: list[_Block], counts: list[int], spare: float) -> _Block:
        def draw(x: float, y: float) -> list[Markup]:
            parts, top = [], y + spare + _GAP
            for block, number in zip(below, counts, strict=True):
                rail, target, middle = x + _RAIL, x + _INDENT + block.centre - _BOX / 2, top + _TALL / 2
                parts.append(self._arrow([(rail, y), (rail, middle), (target, middle)], number))
                words = tag("text", count(number), x=rail + 12, y=middle - 9, class_="count")
                parts.append(words)
                parts += block.draw(x + _INDENT, top)
                top += block.height + _GAP
            return parts

        height = spare + sum(block.height + _GAP for block in below)
        return _Block(_INDENT + max(block.width for block in below), height, _BOX / 2, draw)

    def _arrow(self, points: list[tuple[float, float]], number: int) -> Markup:
        """Along points that lie right above or beside one another, to the last."""
        width = max(_THINNEST, _WIDEST * number / self._most) if self._most else _THINNEST
        half = 3.5 + width / 2
        long = 1.5 * half
        x, y = points[-1]
        if points[-2][1] != y:
            head, end = [(x, y), (x - half, y - long), (x + half, y - long)], (x, y - long + 1)
        else:
            head, end = [(x, y), (x - long, y - half), (x - long, y + half)], (x - long + 1, y)
        line = tag(
            "polyline", points=_points([*points[:-1], end]), class_="flow", stroke_width=width,
            stroke_dasharray=None if number else "3 4",
        )  # fmt: skip
        return tag("g", line, tag("polygon", points=_points(head), class_="head"))

    def _box(self, step: StepStatus, x: float, y: float) -> Markup:
        share = step.seconds / self._seconds if self._seconds else 0
        inner = _BOX - 28
        uses = [] if step.uses in (step.id, step.kind) else [step.uses]
        kind = [] if uses and step.kind == "stage" else [step.kind]
        took = duration(step.seconds)
        spent = f"{took} · {percent(share, 1)}"
        room = inner - 12 - 6.9 * len(spent)
        title = f"{step.id} ({step.uses}, {step.kind}): {took} at work, {percent(share, 1)} of the work of all steps"
        return tag(
            "g",
            tag("title", title),
            tag("rect", x=x, y=y, width=_BOX, height=_TALL, rx=7, class_=f"box {step.kind if step.kind in _KINDS else ''}"),
            tag("text", fit(step.id, inner, 8.1), x=x + 14, y=y + 24, class_="id"),
            tag("text", fit(" · ".join(uses + kind), room, 6.6), x=x + 14, y=y + 42, class_="small"),
            tag("text", spent, x=x + _BOX - 14, y=y + 42, text_anchor="end", class_="spent"),
            tag("rect", x=x + 14, y=y + 51, width=inner, height=4, rx=2, class_="track"),
            tag("rect", x=x + 14, y=y + 51, width=max(inner * share, 4), height=4, rx=2, class_="work")
            if step.seconds
            else "",
        )  # fmt: skip


_APART = {"blank": "lines, passed over", ABANDONED: "when the run ended"}
"""What is counted as discarded, but not on purpose."""
_KINDS = ("source", "stage", "sink", "fork")


def fit(data: str, room: float, letter: float) -> str:
    """As much of a text as `room` pixels hold, when a letter has so many."""
    shown, used = "", 0.0
    data = safe(data)
    for char in data:
        used += letter * _width(char)
        if used > room:
            return shown[: max(1, len(shown) - 1)] + "…"
        shown += char
    return shown


def _width(char: str) -> float:
    """In letters."""
    if combining(char):
        return 0.2
    if east_asian_width(char) in "WF":
        return 1.8
    return 1.5 if char in "mwMW@%" else 1.25 if char.isupper() else 1


def _sides(step: StepStatus) -> list[_Side]:
    discarded = {reason: number for reason, number in step.discarded.items() if reason not in _APART}
    sides = [
        _Side("rejected", f"{count(sum(step.rejected.values()))} rejected", _listed(step.rejected)),
        _Side("discarded", f"{count(sum(discarded.values()))} discarded", _listed(discarded)),
        *(_Side(reason, f"{count(step.discarded.get(reason, 0))} {reason}", words) for reason, words in _APART.items()),
        _Side("absorbed", f"{count(sum(step.absorbed.values()))} {_absorbed(step)}", f"made {count(step.made)}"),
    ]
    return [side for side in sides if not side.what.startswith("0 ")]


def _absorbed(step: StepStatus) -> str:
    return next(iter(step.absorbed)).replace("_", " ") if len(step.absorbed) == 1 else "absorbed"


def _listed(counts: Mapping[str, int]) -> str:
    """The numbers only where there are several."""
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    if len(most_first) == 1:
        return most_first[0][0].replace("_", " ")
    return ", ".join(f"{name.replace('_', ' ')} {count(number)}" for name, number in most_first)


def _side_arrow(side: _Side, x: float, y: float, room: float) -> Markup:
    middle, end, text = y + 17, x + _SIDE, x + _SIDE + 8
    what = side.what if not side.details else f"{side.what}: {side.details}"
    return tag(
        "g",
        tag("title", what),
        tag("line", x1=x, y1=middle, x2=end - 6, y2=middle, class_="aside"),
        tag(
            "polygon", points=_points([(end, middle), (end - 7, middle - 3.5), (end - 7, middle + 3.5)]), class_="head"
        ),
        tag("text", fit(side.what, room, 7.4), x=text, y=middle - 1, class_="what"),
        tag("text", fit(side.details, room, 6.4), x=text, y=middle + 14, class_="small"),
        class_=f"side {side.kind}",
    )


def _label(number: int, end: tuple[float, float]) -> Markup:
    return tag("text", count(number), x=end[0] + 12, y=end[1] - _DOWN / 2 + 6, class_="count")


def _points(points: list[tuple[float, float]]) -> str:
    return join(f"{round(x, 1):g},{round(y, 1):g} " for x, y in points).strip()
