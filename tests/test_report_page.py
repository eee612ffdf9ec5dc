"""The report's page in a real browser: that it fits, that nothing in it runs, and what it looks like on paper and at night."""

from __future__ import annotations

import json
import re
import zlib
from html import escape, unescape
from pathlib import Path

import browser
import pytest
import statuses

from etlcli.io.terminal import safe
from etlcli.observe.page import page
from etlcli.observe.report import environment
from etlcli.observe.status import Status
from etlcli.observe.timeline import Timeline

pytestmark = pytest.mark.skipif(not browser.present(), reason="chromium is not installed")

WIDTHS = (400, 700, 1000, 1600)
MEASURE = """<script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const root = frame.contentDocument.documentElement;
    const overlaps = [];
    for (const box of root.querySelectorAll("svg.pipeline rect.box")) {
      const inside = box.getBBox(), group = box.parentNode;
      for (const text of group.querySelectorAll("text")) {
        const it = text.getBBox();
        if (it.x < inside.x || it.x + it.width > inside.x + inside.width) overlaps.push(text.textContent);
      }
      const uses = group.querySelector(".small").getBBox(), spent = group.querySelector(".spent").getBBox();
      if (uses.x + uses.width > spent.x) overlaps.push(group.querySelector(".small").textContent);
    }
    for (const svg of root.querySelectorAll("svg.pipeline")) {
      const whole = svg.getBBox(), view = svg.viewBox.baseVal;
      if (whole.x < view.x || whole.x + whole.width > view.x + view.width) overlaps.push("picture");
      if (whole.y < view.y || whole.y + whole.height > view.y + view.height) overlaps.push("picture");
    }
    const late = [...root.querySelectorAll(".numbers dd, .row, figcaption, .error")]
      .filter((each) => each.scrollWidth > each.clientWidth + 1).map((each) => each.className + each.textContent);
    found[frame.name] = {
      width: root.clientWidth, needed: root.scrollWidth, title: frame.contentDocument.title, overlaps, late,
      scripts: root.querySelectorAll("script, img").length, ground: frame.contentWindow.getComputedStyle(root.querySelector("body")).backgroundColor,
    };
  }
  document.body.textContent = JSON.stringify(found);
});
</script>"""


def _page(last: Status) -> str:
    timeline = Timeline()
    for each in statuses.growing(last, 60):
        timeline.add(each)
    timeline.add(last)
    return page(last, timeline, environment(last))


def _measured(pages: dict[str, str], tmp_path: Path, *flags: str) -> dict[str, dict]:
    """Each page in a frame of each width, without its policy: what it does then, nothing but its own text prevents."""
    frames = []
    for name, text in pages.items():
        text, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert removed == 1
        frames += [f'<iframe name="{name} {width}" style="width:{width}px;height:900px;border:0" srcdoc="{escape(text)}"></iframe>'
                   for width in WIDTHS]  # fmt: skip
    harness = tmp_path / "harness.html"
    harness.write_text(f'<!doctype html><meta charset="utf-8">{MEASURE}<body>{"".join(frames)}</body>')
    found = browser.chromium(harness, "--dump-dom", *flags)
    return json.loads(unescape(re.search(r"<body>(.*)</body>", found, re.DOTALL)[1]))


def test_it_fits_and_nothing_in_it_runs(tmp_path: Path) -> None:
    found = _measured({name: _page(make()) for name, make in statuses.CASES.items()}, tmp_path)
    assert len(found) == len(statuses.CASES) * len(WIDTHS)
    for name, each in found.items():
        case, width = name.split()
        assert each["width"] == int(width)
        assert each["needed"] <= int(width), name
        assert each["overlaps"] == [], name
        assert each["late"] == [], name
        assert each["scripts"] == 0
        assert each["title"].startswith(safe(statuses.CASES[case]().recipe)), name


def test_the_policy_stops_what_gets_into_a_page(tmp_path: Path) -> None:
    """As a defect of the escaping would let it."""
    bad = _page(statuses.single()).replace(
        "</h1>", f"</h1>{statuses.SCRIPT}<img src=x onerror=\"document.title='owned'\">"
    )
    path = tmp_path / "page.html"
    path.write_text(bad)
    assert "<title>read: succeeded" in browser.chromium(path, "--dump-dom")
    path.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", bad))
    assert "<title>owned" in browser.chromium(path, "--dump-dom")


def test_day_and_night(tmp_path: Path) -> None:
    pages = {"linear": _page(statuses.linear())}
    light, dark = (_measured(pages, tmp_path, flag)["linear 1000"]["ground"] for flag in (browser.LIGHT, browser.DARK))
    assert (light, dark) == ("rgb(252, 252, 251)", "rgb(20, 23, 27)")


@pytest.mark.parametrize(
    "case, pages", [("linear", 3), ("fork", 3), ("many-branches", 4), ("empty", 2), ("hostile", 4)]
)
def test_paper(case: str, pages: int, tmp_path: Path) -> None:
    path, printed = tmp_path / "page.html", tmp_path / "page.pdf"
    path.write_text(_page(statuses.CASES[case]()))
    browser.chromium(path, f"--print-to-pdf={printed}", browser.DARK)
    content = printed.read_bytes()
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= pages
    assert re.search(rb"/MediaBox \[0 0 59[45][.\d]* 84[12]", content), "A4"
    drawn = _colours(b"".join(_streams(content)))
    assert "111418" in drawn, "the ink of paper"
    assert not drawn & {"14171b", "1b1f25", "e6e9ed"}, "colours of the night"


def _streams(content: bytes) -> list[bytes]:
    streams = []
    for match in re.finditer(rb"stream\r?\n", content):
        inflate = zlib.decompressobj()
        try:
            streams.append(inflate.decompress(content[match.end() :]))
        except zlib.error:
            continue  # a font or a picture in another format
    return streams


def _colours(drawn: bytes) -> set[str]:
    """That something was filled with."""
    found = re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", drawn)
    return {"".join(f"{round(255 * float(part)):02x}" for part in colour) for colour in found}
