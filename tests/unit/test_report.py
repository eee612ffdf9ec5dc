"""The run report without a browser: what is written, what of it is true, and what hostile texts can do (nothing)."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from threading import Event

import msgspec
import pytest
import statuses

import etlcli.observe
from etlcli.errors import CannotCreateError, EtlError, UsageError
from etlcli.io.terminal import safe
from etlcli.observe import markup
from etlcli.observe.page import page
from etlcli.observe.report import Report, environment, parse_report
from etlcli.observe.status import Status
from etlcli.observe.timeline import FIRST_INTERVAL, MOST, Timeline

EMPTY_ELEMENTS = {"meta"}


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict]] = []

    def __call__(self, level: str, event: str, **fields) -> None:
        self.lines.append((level, event, fields))


class Parsed(HTMLParser):
    """The elements of a page: (name, attributes, text in it)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, name, attributes) -> None:
        self.elements.append((name, dict(attributes), []))
        if name not in EMPTY_ELEMENTS:
            self._open.append((name, self.elements[-1][2]))

    def handle_startendtag(self, name, attributes) -> None:
        self.elements.append((name, dict(attributes), []))

    def handle_endtag(self, name) -> None:
        assert self._open.pop()[0] == name

    def handle_data(self, data) -> None:
        for _, texts in self._open:
            texts.append(data)

    def texts(self, name: str, **wanted: str) -> list[str]:
        return [
            "".join(texts)
            for each, attributes, texts in self.elements
            if each == name and all(attributes.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]


def timeline(last: Status, samples: int = 40) -> Timeline:
    made = Timeline()
    for each in statuses.growing(last, samples):
        made.add(each)
    made.add(last)
    return made


def html(last: Status) -> str:
    return page(last, timeline(last), environment(last))


def reports(last: Status, tmp_path: Path) -> tuple[dict, str]:
    """Both reports of a run, the way they come to be."""
    log = Log()
    report = parse_report([f"json={tmp_path}/r.json", f"html={tmp_path}/r.html"], log)
    report.check()
    report.begin(lambda: msgspec.structs.replace(last, now=last.started, state="running", exit_code=None))
    report.running()
    report.end(last)
    assert not log.lines
    return json.loads((tmp_path / "r.json").read_text()), (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("case", statuses.CASES)
def test_every_run_leaves_both_reports(case: str, tmp_path: Path) -> None:
    last = statuses.CASES[case]()
    assert statuses.balanced(last)
    document, text = reports(last, tmp_path)
    assert list(document) == [
        "etl_report", "run", "recipe", "path", "digest", "state", "exit_code", "error", "resumed", "generation", "started",
        "finished", "duration", "records", "bytes", "workers", "queue", "bucket_ends", "steps", "timeline", "rejects",
        "checkpoints", "environment",
    ]  # fmt: skip
    assert document["etl_report"] == 1
    assert (document["state"], document["exit_code"], document["error"]) == (last.state, last.exit_code, last.error)
    assert document["duration"] == pytest.approx(last.now - last.started, abs=0.001)
    assert [each["in"] for each in document["steps"]] == [each.received for each in last.steps]
    assert [each["out"] for each in document["steps"]] == [each.sent for each in last.steps]
    assert [each["rejected"] for each in document["steps"]] == [each.rejected for each in last.steps]
    assert Counter({(each["step"], each["code"]): each["count"] for each in document["rejects"]}) == Counter(
        {(each.id, code): number for each in last.steps for code, number in each.rejected.items()}
    )
    assert sum(len(each["examples"]) for each in document["rejects"]) == len(last.rejects)
    lengths = {len(document["timeline"][name]) for name in ("seconds", "records", "bytes", "queued", "rejected")}
    assert len(lengths) == 1
    assert document["timeline"]["records"][-1] == last.received
    assert {len(each) for each in document["timeline"]["steps"].values()} <= lengths
    assert Parsed(text).texts("h1") == [safe(last.recipe)]


def test_moments_and_what_is_said_of_checkpoints(tmp_path: Path) -> None:
    document, text = reports(statuses.linear(), tmp_path)
    assert (document["started"], document["finished"]) == ("2026-09-21T14:13:20.000Z", "2026-09-21T14:13:44.600Z")
    assert document["checkpoints"]["every"] == 5.0
    assert document["checkpoints"]["taken"][0] == {
        "at": "2026-09-21T14:13:25.000Z",
        "records": 68_000,
        "seconds": 0.031,
    }
    assert "2026-09-21 14:13:25 UTC" in text
    assert "4 checkpoints, one every 5.0 s" in text


def test_the_records_of_a_failed_run_are_told_apart(tmp_path: Path) -> None:
    document, text = reports(statuses.failed(), tmp_path)
    assert document["records"] == {"read": 51_204, "written": 0, "rejected": 1, "discarded": 0, "abandoned": 51_203}
    found = Parsed(text)
    assert found.texts("p", class_="verdict bad") == ["Failed, exit code 1"]
    assert "bad_json: expected `,` or `}` at byte 118" in found.texts("div", class_="error")[0]
    assert "and 51,203 abandoned" in text


@pytest.mark.parametrize(
    "code, verdict", [(1, "Failed"), (130, "Interrupted"), (143, "Terminated"), (141, "Cut off"), (None, "Failed")]
)
def test_the_verdict(code: int | None, verdict: str) -> None:
    last = msgspec.structs.replace(statuses.interrupted(), exit_code=code)
    shown = f"{verdict}, exit code {code}" if code else verdict
    assert Parsed(html(last)).texts("p", class_="verdict bad") == [shown]


@pytest.mark.parametrize("case", ["linear", "fork", "many-branches", "failed", "empty", "single", "hostile"])
def test_the_counts_on_the_arrows_are_those_of_the_status(case: str) -> None:
    last = statuses.CASES[case]()
    above = {step.above for step in last.steps}
    expected = [f"{last.steps[0].received:,} in"]
    expected += [f"{step.received:,}" for step in last.steps if step.above is not None]
    expected += [f"{step.sent:,} out" for step in last.steps if step.id not in above]
    assert Counter(Parsed(html(last)).texts("text", class_="count")) == Counter(expected)


def test_what_leaves_the_stream_is_shown_with_its_reasons() -> None:
    found = Parsed(html(statuses.linear()))
    shown = found.texts("text", class_="what")
    assert shown == ["12 blank", "8,294 rejected", "3 rejected", "12,204 discarded"]
    assert "schema 8,255, rule 39" in found.texts("text", class_="small")


def test_who_waited_for_whom() -> None:
    story = Parsed(html(statuses.linear())).texts("p", class_="story")[0]
    assert "check did the most work: 17.9 s, 51 % of the work of all steps." in story
    assert "read waited 7.9 s for check, whose queue was full. write waited 2.3 s for its output." in story
    alone = Parsed(html(statuses.single())).texts("p", class_="story")[0]
    assert "No step waited for long." in alone


@pytest.mark.parametrize("case", statuses.CASES)
def test_a_page_loads_nothing_and_runs_nothing(case: str) -> None:
    text = html(statuses.CASES[case]())
    found = Parsed(text)
    names = {name for name, _, _ in found.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "a", "base", "form", "image", "use"}
    for _, attributes, _ in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "xlink:href")]
    style = found.texts("style")[0]
    assert not re.search(r"url\(|@import|https?:|//", style)
    policy = next(given["content"] for name, given, _ in found.elements if given.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "script" not in policy


def test_hostile_texts_stay_texts() -> None:
    text = html(statuses.hostile())
    assert statuses.SCRIPT not in text
    assert not [char for char in text if char != "\n" and safe(char) != char]
    found = Parsed(text)
    assert found.texts("title")[0].startswith(safe(statuses.HOSTILE))
    assert {r"\x1b", r"\x00\u202e", r"\ud800"} <= set(found.texts("span", class_="control"))
    assert r"\x00\x07\t\x0d\x0a\u2028\u200b" in found.texts("span", class_="control")
    assert max(map(len, found.texts("td"))) < 500


def test_hostile_texts_in_json(tmp_path: Path) -> None:
    last = statuses.hostile()
    document, _ = reports(last, tmp_path)
    text = (tmp_path / "r.json").read_text()
    assert not [char for char in text if char != "\n" and safe(char) != char]
    assert document["error"] == statuses.HOSTILE
    assert document["rejects"][0]["examples"][1]["path"] == r"caf\udce9"


def test_headings_and_tables_can_be_heard() -> None:
    found = Parsed(html(statuses.linear()))
    assert next(given for name, given, _ in found.elements if name == "html") == {"lang": "en"}
    assert found.texts("title")[:1] == ["flights: succeeded · etl run report"]
    assert found.texts("h2") == [
        "Pipeline", "Over time", "Where time went", "Rejected records", "Step by step", "Checkpoints", "Environment",
    ]  # fmt: skip
    assert all(given.get("scope") for name, given, _ in found.elements if name == "th")
    assert all(given.get("aria-label") or given.get("class") == "pipeline" for name, given, _ in found.elements
               if given.get("role") == "img")  # fmt: skip


def _themes() -> dict[str, dict[str, str]]:
    style = (Path(etlcli.observe.__file__).parent / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]
    return dict(zip(("light", "dark", "paper"), themes, strict=True))


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_contrast(theme: str) -> None:
    colours = _themes()[theme]
    texts = [("ink", "page"), ("ink", "raised"), ("ink", "bad-soft"), ("muted", "page"), ("muted", "raised"),
             ("muted", "bad-soft"), ("bad", "page"), ("bad", "bad-soft"), ("good", "good-soft")]  # fmt: skip
    for text, ground in texts:
        assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    shapes = [("accent", "faint"), ("amber", "faint"), ("violet", "faint"), ("teal", "faint"), ("rose", "faint")]
    for shape, ground in shapes:
        assert _contrast(colours[shape], colours[ground]) >= 2.5, (shape, ground)


def test_samples_are_taken_while_the_run_goes_on(tmp_path: Path) -> None:
    last = statuses.linear()
    on_its_way = iter(statuses.growing(last, 50))
    seen, enough = [], Event()

    def look() -> Status:
        seen.append(next(on_its_way))
        if len(seen) == 3:
            enough.set()
        return seen[-1]

    report = Report(json=str(tmp_path / "r.json"), log=Log())
    report.begin(look)
    report.running()
    assert enough.wait(30)
    report.end(last)
    found = json.loads((tmp_path / "r.json").read_text())["timeline"]
    assert found["records"][:3] == [each.received for each in seen[:3]]
    assert found["queued"][:3] == [each.queued for each in seen[:3]]
    assert found["steps"]["check"][-1] == last.steps[1].sent
    assert statuses.ascending(found["records"])


def test_samples_stay_bounded() -> None:
    made, status = Timeline(), statuses.linear()
    now, most = statuses.START, 0
    for number in range(3_000):
        made.add(msgspec.structs.replace(status, now=now, received=number))
        now += made.interval
        most = max(most, len(made.samples))
    assert most <= MOST
    assert made.begun == statuses.START
    assert made.samples[-1].records == 2_999
    assert made.interval > 16 * FIRST_INTERVAL
    gaps = [after.at - before.at for before, after in zip(made.samples, made.samples[1:], strict=False)]
    assert max(gaps) <= made.interval * 1.001


def test_rates_add_up_to_what_was_read() -> None:
    last = statuses.linear()
    made = timeline(last, 97)
    edges = [made.seconds * number / 30 for number in range(31)]
    rates = made.rates(edges, lambda sample: sample.records)
    assert sum(rates) * made.seconds / 30 == pytest.approx(last.received)


def test_a_run_too_short_for_a_timeline() -> None:
    last = statuses.empty()
    made = Timeline()
    made.add(last)
    text = page(last, made, environment(last))
    assert "too short for a timeline" in text
    assert "figure" not in {name for name, _, _ in Parsed(text).elements}


def test_a_clock_that_goes_back(tmp_path: Path) -> None:
    last = statuses.linear()
    made = Timeline()
    for number in range(20):
        made.add(msgspec.structs.replace(last, now=last.now - number))
    assert "too short for a timeline" in page(last, made, environment(last))
    document, text = reports(msgspec.structs.replace(last, now=last.started - 5), tmp_path)
    assert document["duration"] == 0
    assert "Succeeded" in text


@pytest.mark.parametrize(
    "texts, message, hint",
    [
        (["report.html"], "expected json=PATH or html=PATH", "--report html=report.html"),
        (["out/run.json"], "expected json=PATH or html=PATH", "--report json=out/run.json"),
        (["pdf=x"], "expected json=PATH or html=PATH", "the formats are json and html"),
        (["html="], "names no file", "--report html=report.html"),
        (["json=-"], "a report goes to a file", "--report json=report.json"),
        (["json=a", "json=b"], "was given twice", "a run writes one report of a format"),
    ],
)
def test_what_cannot_be_asked_for(texts: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_report(texts, Log())
    assert message in raised.value.message
    assert raised.value.hint == hint


def test_no_report_is_asked_for() -> None:
    assert parse_report([], Log()) is None
    assert parse_report(["html=a=b.html"], Log()).paths == {"html": "a=b.html"}


@pytest.mark.parametrize(
    "path, message, error",
    [
        ("", "is a directory", CannotCreateError),
        ("/dev/null", "is not a plain file", CannotCreateError),
        ("file/r.html", "cannot create", CannotCreateError),
        ("/proc/self/r.html", "cannot create", CannotCreateError),  # where nobody may write, root neither
        ("x" * 300, "cannot create", CannotCreateError),
        ("https://u:secret@example.org/r.html", "cannot write to", UsageError),
    ],
)
def test_a_path_that_cannot_work_is_refused_before_the_run(
    path: str, message: str, error: type, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    where = path if "//" in path else str(tmp_path / path)
    with pytest.raises(error) as raised:
        Report(html=where, log=Log()).check()
    assert message in raised.value.message
    assert "secret" not in raised.value.message
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    Report(html=str(tmp_path / "new/dir/r.html"), json=str(tmp_path / "old.json"), log=Log()).check()
    assert [each.name for each in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    log = Log()
    report = Report(json=str(tmp_path / "gone/r.json"), html=str(tmp_path / "r.html"), log=log)
    report.check()
    report.begin(statuses.linear)
    report.running()
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").write_text("in the way")
    report.end(statuses.linear())
    [(level, event, fields)] = log.lines
    assert (level, event, fields["path"]) == ("warning", "report_failed", str(tmp_path / "gone/r.json"))
    assert "Not a directory" in fields["reason"]
    assert "Succeeded" in (tmp_path / "r.html").read_text()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["gone", "r.html"]


def test_a_look_that_fails_costs_the_timeline_only(tmp_path: Path) -> None:
    log, looked = Log(), Event()

    def look() -> Status:
        looked.set()
        raise EtlError("no longer there")

    report = Report(json=str(tmp_path / "r.json"), log=log)
    report.begin(look)
    report.running()
    assert looked.wait(30)
    report.end(statuses.fork())
    assert [line[:2] for line in log.lines] == [("warning", "report_sampling_failed")]
    assert len(json.loads((tmp_path / "r.json").read_text())["timeline"]["seconds"]) == 1


def test_the_paths_are_those_of_the_directory_it_was_asked_for_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(json="r.json", log=Log())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    report.end(statuses.linear())
    assert (tmp_path / "r.json").exists()


def test_the_environment_is_nobodys(monkeypatch) -> None:
    import os
    import platform

    monkeypatch.setenv("ETL_TEST_SECRET", "hunter2-hunter2")
    known = json.dumps(environment(statuses.linear()))
    assert "hunter2" not in known
    assert platform.node() not in known
    assert os.getcwd() not in known
    assert environment(statuses.linear())["libraries"]["msgspec"] == msgspec.__version__


def test_markup_escapes_all_but_markup() -> None:
    made = markup.tag("p", "<b>\x1b", markup.tag("i", "&"), title='"<\n', data_x=1.5, class_=None)
    assert made == '<p title="&quot;&lt;\\x0a" data-x="1.5">&lt;b&gt;\\x1b<i>&amp;</i></p>'
    assert markup.join(["<", markup.Markup("<br>")], " & ") == "&lt; &amp; <br>"
