"""The report as one HTML page that loads nothing and runs nothing: its policy forbids both, whatever a record says.

The sections are in the order of the questions that a run leaves: did it go well, where did the records go, how fast was
it, what held it up, what was wrong with the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from etlcli.core.effort import BUCKETS
from etlcli.observe.chart import chart
from etlcli.observe.figures import count, duration, moment, percent, plural, short, size
from etlcli.observe.markup import Markup, join, tag, text, visible
from etlcli.observe.picture import fit, picture
from etlcli.observe.status import SUCCEEDED, Status, StepStatus, records, rejects
from etlcli.observe.timeline import Timeline

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_BINS = 96
"""The most values that a chart shows."""
_SHOWN = 400
"""Characters of a record."""
_EXAMPLES = 5
"""Of a step and code."""
_NAME = 48
"""Characters of a step's id."""
_LINES = 40
"""The most checkpoints that are drawn."""
_MARKS = 20
"""The most checkpoints that are listed."""
_COUNTS = (
    "In", "Made", "Out", "Discarded", "Rejected", "Absorbed", "Healed", "Retries", "Cache", "Batches", "Median",
)  # fmt: skip
_WAITS = {
    "input": "input",
    "output": "its output",
    "command": "its command",
    "database": "the database",
    "workers": "the workers",
}
"""What a step waits for; anything else is the id of a step."""
_SIGNALS = {130: "Interrupted", 141: "Cut off", 143: "Terminated"}


def page(last: Status, timeline: Timeline, environment: dict[str, Any]) -> str:
    """Of a run that is over."""
    verdict = _verdict(last)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{last.recipe}: {verdict.lower()} · etl run report"),
        tag("style", _style()),
    )
    body = tag(
        "body",
        tag(
            "main",
            _header(last, timeline, verdict),
            _overview(last, timeline),
            _section("Where time went", _time(last)),
            _section("Rejected records", _rejects(last)),
            _section("Step by step", _steps(last)),
            _section("Checkpoints", _checkpoints(last)),
            _section("Environment", _environment(last, environment)),
        ),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _style() -> Markup:
    with open(os.path.join(os.path.dirname(__file__), "report.css"), encoding="utf-8") as file:
        return Markup(file.read())


def _section(title: str, content: Markup) -> Markup:
    name = title.lower().replace(" ", "-")
    return tag("section", tag("h2", title, id=name), content, aria_labelledby=name, class_=name)


def _verdict(last: Status) -> str:
    if last.state == SUCCEEDED:
        return "Succeeded"
    return _SIGNALS.get(last.exit_code or 0, "Failed")


def _header(last: Status, timeline: Timeline, verdict: str) -> Markup:
    good = last.state == SUCCEEDED
    code = "" if good or last.exit_code is None else f", exit code {last.exit_code}"
    badge = tag("p", _sign(good), f"{verdict}{code}", class_=f"verdict {'good' if good else 'bad'}")
    facts = [f"Run {last.run}", f"{moment(last.started)}", last.path or "a subcommand"]
    if last.resumed:
        facts.append("went on from a checkpoint")
    if last.generation > 1:
        facts.append(f"{last.generation} configurations")
    error = tag("div", *(tag("p", line) for line in last.error.split("\n")), class_="error") if last.error else ""
    return tag(
        "header", tag("p", "etl run report", class_="kind"), tag("div", tag("h1", last.recipe), badge, class_="title"),
        tag("p", join((tag("span", fact) for fact in facts), " "), class_="facts"), error, _numbers(last, timeline),
    )  # fmt: skip


def _sign(good: bool) -> Markup:
    shape = "M3.5 8.5l3 3 6-7" if good else "M4 4l8 8M12 4l-8 8"
    return tag("svg", tag("path", d=shape), viewBox="0 0 16 16", width=16, height=16, aria_hidden="true")


def _numbers(last: Status, timeline: Timeline) -> Markup:
    sums = records(last)
    seconds = max(1e-6, last.now - last.started)
    written = sum(step.bytes_out for step in last.steps if step.kind == "sink")
    done, read, lasted = last.received, last.read, seconds
    if last.resumed:
        first = timeline.samples[0]
        done, read, lasted = done - first.records, read - first.bytes, max(1e-6, timeline.seconds)
    left = f"and {count(sums['abandoned'])} abandoned" if sums["abandoned"] else "on purpose"
    part = f" of {size(last.size)}" if last.size and last.size != last.read else ""
    tiles = [
        ("Took", duration(seconds), plural(last.workers, "worker")),
        ("Read", count(sums["read"]), size(last.read) + part),
        ("Out", count(sums["written"]), size(written)),
        ("Rejected", count(sums["rejected"]), f"{percent(sums['rejected'], sums['read'])} of what was read"),
        ("Discarded", count(sums["discarded"]), left),
        ("Records per second", short(done / lasted), f"{size(read / lasted)} per second"),
    ]
    return tag("dl", *(_tile(*each) for each in tiles), class_="numbers")


def _tile(name: str, number: str, note: str) -> Markup:
    strong = tag("strong", number, class_="long" if len(number) > 11 else None)
    return tag("div", tag("dt", name), tag("dd", strong, " ", tag("small", note)))


def _overview(last: Status, timeline: Timeline) -> Markup:
    """Side by side where there is room for both. On paper a small picture stays beside the charts, a tall one comes behind
    them, on a page of its own, and a long one on several."""
    drawn = picture(last.steps)
    extent = "small" if drawn.width <= 420 and drawn.height <= 1100 else "tall" if drawn.height > 800 else "broad"
    extent += " long" if drawn.height > 1900 else ""
    note = (
        "Records on every arrow, which is as wide as they are many. In each box: the time at work and its share of the "
        "work of all steps."
    )
    content = join([tag("p", note, class_="note"), _wide(drawn.svg, "The pipeline")])
    return tag(
        "div",
        _section("Pipeline", content if last.steps else tag("p", "The run ended before it had a pipeline.")),
        _section("Over time", _charts(last, timeline)),
        class_=f"overview {extent}",
    )


def _wide(content: Markup, name: str) -> Markup:
    """What may be wider than the window: it scrolls by itself, with the keyboard too."""
    return tag("div", content, class_="wide", tabindex="0", role="region", aria_label=name)


def _charts(last: Status, timeline: Timeline) -> Markup:
    bins = min(_BINS, len(timeline.samples) - 1)
    if bins < 4 or not timeline.seconds:
        return tag("p", "The run was too short for a timeline.")
    edges = [number * timeline.seconds / bins for number in range(bins + 1)]
    flow = timeline.rates(edges, lambda sample: sample.records)
    stream = timeline.rates(edges, lambda sample: sample.bytes)
    queue = [max(0.0, value) for value in timeline.at(edges, lambda sample: sample.queued)[1:]]
    marks = [mark.at - timeline.begun for mark in last.checkpoints if timeline.begun <= mark.at <= last.now]
    if len(marks) > _LINES:
        marks = []
    full = f", of {size(last.queue)} at most" if last.queue else ""
    charts = [
        chart("Records per second", _spread(flow, short), edges, flow, short, marks=marks),
        chart("Bytes per second", _spread(stream, size), edges, stream, size, binary=True, marks=marks),
        chart("Queue", _spread(queue, size) + full, edges, queue, size, binary=True, limit=last.queue, marks=marks),
    ]
    words = "The time is that since the first record."
    words += f" {plural(len(marks), 'dotted line')}: {plural(len(marks), 'checkpoint')}." if marks else ""
    return join([tag("p", words, class_="note"), *charts])


def _spread(values: list[float], show: Callable[[float], str]) -> str:
    return f"{show(sum(values) / len(values))} on average, {show(max(values))} at most"


def _time(last: Status) -> Markup:
    longest = max((step.seconds + sum(step.blocked.values()) for step in last.steps), default=0)
    if not longest:
        return tag("p", "No time was measured.")
    kinds = {"work": "at work"}
    for step in last.steps:
        for what, seconds in step.blocked.items():
            if seconds > 0:
                kinds.setdefault(*_waiting(what))
    order = [kind for kind in ("work", *_WAITS, "queue") if kind in kinds]
    legend = tag("ul", *(tag("li", tag("i", class_=f"part {kind}"), kinds[kind]) for kind in order), class_="legend")
    rows = [_bar(step, longest) for step in last.steps]
    return join([tag("p", *_story(last), class_="story"), legend, tag("div", *rows, class_="bars")])


def _waiting(what: str) -> tuple[str, str]:
    """The kind of a wait, and its words."""
    if what in _WAITS:
        return what, f"waiting for {_WAITS[what]}"
    return "queue", "waiting for a step whose queue was full"


def _bar(step: StepStatus, longest: float) -> Markup:
    waits = sorted(
        ((what, seconds) for what, seconds in step.blocked.items() if seconds > 0), key=lambda wait: -wait[1]
    )
    parts = [("work", "at work", step.seconds)]
    parts += [
        (_waiting(what)[0], f"waiting for {_WAITS.get(what) or fit(what, _NAME, 1)}", seconds)
        for what, seconds in waits
    ]
    bar = [
        tag(
            "i",
            class_=f"part {kind}",
            style=f"width:{100 * seconds / longest:.2f}%",
            title=f"{duration(seconds)} {words}",
        )
        for kind, words, seconds in parts
        if seconds > 0
    ]
    said = [f"{duration(seconds)} {words}" for kind, words, seconds in parts]
    return tag(
        "div", tag("p", _step(step.id), class_="name"), tag("div", *bar, class_="bar", aria_hidden="true"),
        tag("p", join(said, " · "), class_="said"), class_="row",
    )  # fmt: skip


def _story(last: Status) -> list[str]:
    """Who did most of the work, and who waited for whom."""
    work = sum(step.seconds for step in last.steps)
    slowest = max(last.steps, key=lambda step: step.seconds)
    said: list[str] = []
    if work:
        said += [_step(slowest.id), f" did the most work: {duration(slowest.seconds)}, "]
        said += [f"{percent(slowest.seconds, work)} of the work of all steps. "]
    waits = [(what == "input", -waited, step.id, what) for step in last.steps for what, waited in step.blocked.items()]
    waits = sorted(wait for wait in waits if wait[1] <= -0.01)[:2]  # a wait for input is mostly what another's came to
    for _, waited, waiter, what in waits:
        said += [_step(waiter), f" waited {duration(-waited)} for "]
        said += [_WAITS[what]] if what in _WAITS else [_step(what), ", whose queue was full"]
        said.append(". ")
    if not waits:
        said.append("No step waited for long. ")
    if last.workers > 1:
        said.append(f"Work is that of all processes together: {last.workers} workers and the one that leads them.")
    return said


def _step(name: str) -> Markup:
    cut = name if len(name) <= _NAME else name[:_NAME] + "…"
    return tag("code", cut, class_="step", title=name if cut != name else None)


def _rejects(last: Status) -> Markup:
    found = rejects(last)
    if not found:
        return tag("p", "No record was rejected.")
    groups = [_group(each) for each in found]
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("Where", "What was wrong", "Record"))))
    return _wide(tag("table", head, *groups, class_="examples"), "Rejected records")


def _group(each: dict[str, Any]) -> Markup:
    shown, number = each["examples"][:_EXAMPLES], each["count"]
    title = [
        _step(each["step"]),
        " ",
        tag("b", each["code"]),
        " ",
        tag("span", plural(number, "record"), class_="many"),
    ]
    rows = [tag("tr", tag("th", *title, colspan=3, scope="rowgroup"))]
    for example in shown:
        origin = ":".join(str(part) for part in (example["path"], example["line"]) if part is not None)
        rows.append(
            tag(
                "tr", tag("td", text(origin or "unknown"), class_="origin"),
                tag("td", visible(example["message"], _SHOWN)), tag("td", tag("code", visible(example["raw"], _SHOWN))),
            )
        )  # fmt: skip
    if not shown:
        rows.append(tag("tr", tag("td", "no example was kept", colspan=3, class_="more")))
    elif number > len(shown):
        rows.append(tag("tr", tag("td", f"and {count(number - len(shown))} more", colspan=3, class_="more")))
    return tag("tbody", *rows)


def _steps(last: Status) -> Markup:
    rows = [
        tag(
            "tr",
            tag("th", _step(step.id), scope="row"),
            *(tag("td", number, class_=None if number.strip("0-") else "zero") for number in _counts(step)),
        )
        for step in last.steps
    ]
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("Step", *_COUNTS))))
    note = tag(
        "p", "In and made are as many as out, discarded, rejected and absorbed; here blank lines, and records that were on "
        "their way when the run failed, are among the discarded. Cache: keys that were found, of those that were asked "
        "for. Median: half of the batches took no longer.", class_="note",
    )  # fmt: skip
    return join([note, _wide(tag("table", head, tag("tbody", *rows), class_="counts"), "Step by step")])


def _counts(step: StepStatus) -> list[str]:
    numbers = [step.received, step.made, step.sent]
    numbers += [sum(each.values()) for each in (step.discarded, step.rejected, step.absorbed, step.healed)]
    asked = step.cache_hits + step.cache_misses
    batches = sum(step.buckets)
    return [
        *map(count, numbers),
        count(step.retries),
        f"{count(step.cache_hits)} / {count(asked)}" if asked else "-",
        count(batches) if batches else "-",
        _median(step.buckets) if batches else "-",
    ]


def _median(buckets: list[int]) -> str:
    """The end of the bucket that the batch in the middle is in."""
    seen = 0
    for number, end in zip(buckets, BUCKETS, strict=False):
        seen += number
        if 2 * seen >= sum(buckets):
            return f"≤ {duration(end)}"
    return f"> {duration(BUCKETS[-1])}"


def _checkpoints(last: Status) -> Markup:
    taken = last.checkpoints
    if not taken:
        return tag("p", "None was taken.")
    every = f", one every {duration(last.checkpoint_every)}" if last.checkpoint_every else ""
    longest = max(mark.seconds for mark in taken)
    together = duration(sum(mark.seconds for mark in taken))
    words = f"{plural(len(taken), 'checkpoint')}{every}. They took {together} in all, {duration(longest)} at most."
    words += f" The last {_MARKS} are listed." if len(taken) > _MARKS else ""
    rows = [
        tag("tr", tag("td", moment(mark.at)), tag("td", count(mark.received)), tag("td", duration(mark.seconds)))
        for mark in taken[-_MARKS:]
    ]
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("When", "Records read", "Took"))))
    table = tag("table", head, tag("tbody", *rows), class_="marks")
    return join([tag("p", words, class_="note"), _wide(table, "Checkpoints")])


def _environment(last: Status, environment: dict[str, Any]) -> Markup:
    libraries = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())
    facts = [
        ("etl", environment["etl"]),
        ("Python", f"{environment['python']} ({environment['implementation']})"),
        ("Platform", environment["platform"]),
        ("Processors", environment["cpus"]),
        ("Workers", last.workers),
        ("Libraries", libraries or "none"),
        ("Recipe digest", last.digest or "none"),
    ]
    return tag(
        "dl", *(tag("div", tag("dt", name), tag("dd", str(value))) for name, value in facts), class_="environment"
    )
