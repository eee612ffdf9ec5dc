"""Metrics that a recipe declares, through the installed program and its doors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import prometheus
import pytest
from conftest import BIN, environment, run_etl
from jsonschema import Draft202012Validator
from prometheus import fetch, free_port, gateway, until

from etlcli.formats.yaml12 import load
from etlcli.recipe.schema import recipe_schema

needs_prometheus = pytest.mark.skipif(bool(prometheus.missing()), reason="Prometheus is not installed")
SPLIT_ETL = Path(__file__).parent / "split_etl.py"
LINES = [{"id": number, "n": number % 7, "k": "abc"[number % 3], "t": number / 10} for number in range(300)]
FILTERED = [line for line in LINES if line["n"] < 6]
CUSTOM: list[dict[str, Any]] = [
    {"name": "late_total", "type": "counter", "help": "Late \\ ones.\nAll.", "step": "check", "when": "n > 3",
     "labels": {"kind": "k"}},
    {"name": "read_total", "type": "counter", "step": "read"},
    {"name": "tenths_total", "type": "counter", "value": "m"},
    {"name": "delay", "type": "histogram", "value": "n - 3", "buckets": [-1, 0, 2.5], "labels": {"kind": "k", "n": "n"},
     "max_labels": 4},
    {"name": "latest", "type": "gauge", "value": "id", "labels": {"kind": "k"}},
]  # fmt: skip


def ndjson(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


class Work:
    """A directory with a recipe in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.textfile = directory / "etl.prom"
        self.recipe: dict[str, Any] = {
            "version": 1,
            "name": "r",
            "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
            "steps": [
                {"id": "check", "uses": "filter", "with": {"expr": "n < 6"}},
                {"uses": "map", "with": {"set": ["m = t"]}},
                {"uses": "filter", "with": {"expr": "id >= 0"}},
            ],
            "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
        }
        self.write_input(LINES)
        self.write(CUSTOM)

    def write_input(self, records: list[Any]) -> None:
        (self.directory / "in.ndjson").write_bytes(ndjson(records))

    def write(self, custom: list[dict[str, Any]], *, doors: dict[str, Any] | None = None, **changes: Any) -> None:
        self.recipe |= changes
        self.recipe["metrics"] = {**(doors or {"textfile": "etl.prom"}), "custom": custom}
        (self.directory / "recipe.yaml").write_text(json.dumps(self.recipe))

    def run(self, *args: str, returns: int = 0) -> dict[str, float]:
        """The metrics that the recipe declares."""
        done = run_etl("run", "recipe.yaml", *args, cwd=self.directory)
        assert done.returncode == returns, done.stderr
        return self.shown()

    def split(self, **extra: str) -> int:
        """Runs it in small parts."""
        done = subprocess.run(
            [sys.executable, SPLIT_ETL, "run", "recipe.yaml"], cwd=self.directory, env=environment(**extra),
            capture_output=True, timeout=100,
        )  # fmt: skip
        assert b"metric_begins_anew" not in done.stderr
        return done.returncode

    def shown(self) -> dict[str, float]:
        return parsed(self.textfile.read_bytes().decode())


def parsed(text: str) -> dict[str, float]:
    """The recipe's series, as Prometheus's own client for Python reads them."""
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.startswith("etl_") or sample.name.startswith("etl_custom_"):
                labels = {name: value for name, value in sample.labels.items() if name not in ("job", "instance")}
                assert labels.pop("recipe") == "r"
                found[series(sample.name, **labels)] = sample.value
    return found


def series(name: str, **labels: str) -> str:
    return json.dumps([name, labels], sort_keys=True)


def expected() -> dict[str, float]:
    """What CUSTOM must come to, worked out once more."""
    found: dict[str, float] = {series("read_total"): 300}
    found[series("tenths_total")] = sum(line["id"] for line in FILTERED) / 10
    known: list[tuple[str, str]] = []
    for line in FILTERED:
        key = line["k"], str(line["n"])
        if key not in known:
            if len(known) < 4:
                known.append(key)
            else:
                key = ("other", "other")
        labels = {"kind": key[0], "n": key[1]}
        value = line["n"] - 3
        for end in ("-1.0", "0.0", "2.5", "+Inf"):
            bucket = series("delay_bucket", le=end, **labels)
            found[bucket] = found.get(bucket, 0) + (value <= float(end))
        for name, more in (("delay_count", 1), ("delay_sum", value)):
            found[series(name, **labels)] = found.get(series(name, **labels), 0) + more
        found[series("latest", kind=line["k"])] = line["id"]
        if line["n"] > 3:
            late = series("late_total", kind=line["k"])
            found[late] = found.get(late, 0) + 1
    return found | {series("etl_custom_skipped_total", metric=each["name"]): 0 for each in CUSTOM}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def lint(work: Work) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=work.textfile.read_bytes(), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@needs_prometheus
def test_what_is_shown(work: Work) -> None:
    assert work.run() == expected()
    lint(work)
    text = work.textfile.read_text()
    assert "# HELP late_total Late \\\\ ones.\\nAll.\n# TYPE late_total counter\n" in text
    assert "# TYPE delay histogram" in text
    assert "# TYPE latest gauge" in text


@pytest.mark.parametrize("workers", ["1", "2", "3"])
def test_P3_any_number_of_workers(work: Work, workers: str) -> None:
    assert work.split(ETL_TEST_WORKERS=workers) == 0
    assert work.shown() == expected()


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_P3_killed_and_gone_on_with(work: Work, when: str, workers: str) -> None:
    work.write(CUSTOM, checkpoint={"dir": "state", "every": "0s"})
    dead = 0
    while (code := work.split(ETL_TEST_WORKERS=workers, ETL_TEST_DIE=f"25 {when}")) == -signal.SIGKILL:
        dead += 1
    assert code == 0
    assert dead > 2
    assert work.shown() == expected()


def test_P3_killed_when_nothing_was_left_but_to_publish(work: Work) -> None:
    work.write(CUSTOM, checkpoint={"dir": "state", "every": "1h"})
    assert work.split(ETL_TEST_KILL="2") == -signal.SIGKILL
    assert not (work.directory / "out.ndjson").exists()
    assert work.split() == 0
    assert work.shown() == expected()


def test_a_metric_that_is_declared_otherwise_begins_anew(work: Work) -> None:
    work.write(CUSTOM, checkpoint={"dir": "state", "every": "0s"})
    assert work.split(ETL_TEST_KILL="60") == -signal.SIGKILL
    changed = [{"name": "read_total", "type": "counter", "step": "read", "value": "1"}, *CUSTOM[2:]]
    work.write([*changed, {"name": "new_total", "type": "counter"}])
    done = run_etl("run", "recipe.yaml", cwd=work.directory)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"metric_begins_anew") == 2
    shown, whole = work.shown(), expected()
    assert 0 < shown[series("new_total")] < len(FILTERED)
    same = [name for name in whole if "read_total" not in name and "late_total" not in name]
    assert {name: shown[name] for name in same} == {name: whole[name] for name in same}


def test_no_counter_goes_back_behind_a_checkpoint(work: Work) -> None:
    """What was shown after the last checkpoint of a run that was killed; only a sum of negative values may fall."""
    from prometheus_client import CollectorRegistry

    from etlcli.observe.series import Collector
    from etlcli.observe.status import CustomMetric, CustomSeries, Status

    def status(value: float, count: int, falls: bool) -> Status:
        metrics = [
            CustomMetric(name="a_total", type="counter", help="A.", step="s", labels=["l", "m"],
                         series=[CustomSeries(["x\0", "y"], value), CustomSeries(["x", "\0y"], 1)]),
            CustomMetric(name="h", type="histogram", help="H.", step="s", bounds=[1.0], skipped=count,
                         series=[CustomSeries([], value, [count, 0], falls)]),
            CustomMetric(name="g", type="gauge", help="G.", step="s", series=[CustomSeries([], value)]),
        ]  # fmt: skip
        return Status(
            run="1", recipe="r", path=None, pid=1, version="0", state="running", started=0, now=1, custom=metrics
        )

    def status_is(status: Status) -> Status:
        return status

    shown = str(work.directory / "shown")
    values = []
    for current in (status(5, 3, False), status(2, 1, False), status(2, 1, True)):
        registry = CollectorRegistry()
        registry.register(Collector(partial(status_is, current), shown))
        values.append([
            registry.get_sample_value("a_total", {"recipe": "r", "l": "x\0", "m": "y"}),
            registry.get_sample_value("a_total", {"recipe": "r", "l": "x", "m": "\0y"}),
            registry.get_sample_value("h_bucket", {"recipe": "r", "le": "1.0"}),
            registry.get_sample_value("h_sum", {"recipe": "r"}),
            registry.get_sample_value("g", {"recipe": "r"}),
            registry.get_sample_value("etl_custom_skipped_total", {"recipe": "r", "metric": "h"}),
        ])  # fmt: skip
    assert values == [[5, 1, 3, 5, 5, 3], [5, 1, 3, 5, 2, 3], [5, 1, 3, 2, 2, 3]]


def test_a_failed_run_shows_what_it_has_seen(work: Work) -> None:
    work.write([{"name": "seen_total", "type": "counter", "step": "read"}])
    work.write_input([*LINES[:10], {"n": "no number"}])
    assert work.run(returns=1)[series("seen_total")] == 11
    if not prometheus.missing():
        lint(work)


def test_what_makes_no_observation_is_counted_and_rejects_nothing(work: Work) -> None:
    odd: list[Any] = [1, 2.5, None, "text", True, [1], -3]
    work.write_input([{"v": value} for value in odd] + [{}])
    custom = [
        {"name": "sum_of_total", "type": "counter", "value": "v"},
        {"name": "clash_total", "type": "counter", "when": "v > 0"},
        {"name": "joined_total", "type": "counter", "labels": {"l": "v + 1"}},
        {"name": "last", "type": "gauge", "value": "v"},
    ]
    work.write(custom, steps=[])
    shown = work.run()
    assert shown[series("sum_of_total")] == 3.5
    assert shown[series("clash_total")] == 2
    assert shown[series("last")] == -3
    skipped = {name: shown[series("etl_custom_skipped_total", metric=name)] for name in
               ("sum_of_total", "clash_total", "joined_total", "last")}  # fmt: skip
    assert skipped == {"sum_of_total": 6, "clash_total": 3, "joined_total": 3, "last": 5}
    assert (work.directory / "out.ndjson").read_bytes() == (work.directory / "in.ndjson").read_bytes()


@needs_prometheus
def test_hostile_label_values(work: Work) -> None:
    hostile = [
        'a"} 1\nforged_total{recipe="r"} 7', "back\\slash\\n", "\x1b[31mred\x1b[0m", "# HELP x y", "\r", "\0", "\u202e", "",
        "other", "é" * 150, "\netl_last_success_timestamp_seconds 1\n",
    ]  # fmt: skip
    work.write_input([{"v": value} for value in hostile])
    work.write([{"name": "hostile_total", "type": "counter", "labels": {"v": "v"}}], steps=[])
    shown = work.run()
    cut = [value if len(value.encode()) <= 200 else "é" * 100 for value in hostile]
    assert {name for name in shown if "etl_custom_" not in name} == {series("hostile_total", v=value) for value in cut}
    assert set(shown.values()) == {0, 1}
    lint(work)
    assert work.run() == shown


def test_label_values_are_text_or_as_JSON_has_them(work: Work) -> None:
    given: list[Any] = ["1", 1, 1.0, 1.5, True, False, None, [1, "a"], {"a": None}]
    work.write_input([{"v": value} for value in given] + [{}])
    work.write([{"name": "v_total", "type": "counter", "labels": {"v": "v"}}], steps=[])
    spelled = {"1": 2, "1.0": 1, "1.5": 1, "true": 1, "false": 1, "": 2, '[1,"a"]': 1, '{"a":null}': 1}
    shown = work.run()
    assert {name: value for name, value in shown.items() if "etl_custom_" not in name} == {
        series("v_total", v=text): count for text, count in spelled.items()
    }


def test_a_fork_its_branches_and_its_sinks(work: Work) -> None:
    route = [
        {"when": "n > 3", "steps": [{"id": "cut", "uses": "filter", "with": {"expr": "n < 5"}}],
         "sink": {"id": "one", "uses": "write", "with": {"path": "one.ndjson"}}},
        {"sink": {"id": "two", "uses": "write", "with": {"path": "two.ndjson"}}},
    ]  # fmt: skip
    del work.recipe["sink"]
    custom = [{"name": "all_total", "type": "counter"}] + [
        {"name": f"{step}_total", "type": "counter", "step": step} for step in ("check", "cut", "one", "two")
    ]
    work.write(custom, route=route)
    shown = work.run()
    counts = {name: shown[series(f"{name}_total")] for name in ("all", "check", "cut", "one", "two")}
    cut, rest = (sum(test(line["n"]) for line in FILTERED) for test in (lambda n: n == 4, lambda n: n <= 3))
    assert counts == {"all": len(FILTERED), "check": len(FILTERED), "cut": cut, "one": cut, "two": rest}


@needs_prometheus
def test_behind_a_step_that_holds_state(work: Work) -> None:
    """In other processes, what leaves such a step is not what they made."""
    steps = [{"uses": "group", "with": {"by": ["k"], "agg": ["n=sum(n)"]}}]
    work.write([{"name": "groups_total", "type": "counter", "value": "n", "labels": {"kind": "k"}}], steps=steps)
    assert work.split(ETL_TEST_WORKERS="2") == 0
    shown = work.shown()
    for kind in "abc":
        total = sum(line["n"] for line in LINES if line["k"] == kind)
        assert shown[series("groups_total", kind=kind)] == total


@needs_prometheus
def test_the_gateway_gets_them(work: Work, tmp_path: Path) -> None:
    with gateway(tmp_path) as url:
        work.write(CUSTOM, doors={"pushgateway": url})
        assert run_etl("run", "recipe.yaml", cwd=work.directory).returncode == 0
        lines = [line for line in fetch(f"{url}/metrics").splitlines() if 'recipe="r"' in line]
    found = parsed("\n".join(lines) + "\n")
    assert found[series("latest", kind="a")] == expected()[series("latest", kind="a")]
    assert found[series("tenths_total")] == expected()[series("tenths_total")]
    other = series("delay_count", kind="other", n="other")
    assert found[other] == expected()[other]


@needs_prometheus
def test_prometheus_scrapes_them(work: Work, tmp_path: Path) -> None:
    port = free_port()
    source = {"uses": "read", "with": {"paths": ["-"]}}
    work.write(CUSTOM, doors={"listen": f"127.0.0.1:{port}"}, source=source)
    process = subprocess.Popen(
        [BIN / "etl", "run", "recipe.yaml"], cwd=work.directory, env=environment(), stdin=subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(ndjson(LINES))
    process.stdin.flush()
    with prometheus.server(tmp_path, f"127.0.0.1:{port}") as ask:
        late = expected()[series("late_total", kind="a")]
        assert until(lambda: ask(f'late_total{{recipe="r",kind="a"}} == {late}'))
        assert ask(f"sum(delay_count) == {len(FILTERED)}")
        assert ask("histogram_quantile(0.5, sum by (le) (delay_bucket))")
    process.stdin.close()
    assert process.wait(60) == 0


GOOD = "{name: a_total, type: counter"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["@{type: counter}"], "needs the key 'name'"),
        (["@{name: a_total}"], "needs the key 'type'"),
        (["@3"], "must be a mapping"),
        (["{name: a_total, type: @countr}"], "counter, gauge, histogram"),
        ([GOOD + ", @lables: {}}"], "did you mean 'labels'?"),
        (["{name: @a-total, type: counter}"], "no name for a metric"),
        (['{name: @"a:b_total", type: counter}'], "no name for a metric"),
        (["{name: @etl_a_total, type: counter}"], "the program's own"),
        (["{name: @a, type: counter}"], "a_total"),
        (["{name: @_total, type: counter}"], "ends in _total"),
        (["{name: @a_total, type: gauge, value: n}"], "no gauge's ends in"),
        (["{name: @a_sum, type: histogram, value: n, buckets: [1]}"], "no histogram's ends in"),
        (["@{name: a, type: gauge}"], "a gauge needs one"),
        (["@{name: a, type: histogram, value: n}"], "for example [0.1, 1, 10]"),
        ([GOOD + ", buckets: @[1]}"], "a counter has none"),
        (["{name: a, type: histogram, value: n, buckets: @[1, 1]}"], "1 comes after 1"),
        (["{name: a, type: histogram, value: n, buckets: @[1, x]}"], "expected a number, not 'x'"),
        (["{name: a, type: histogram, value: n, buckets: @[true]}"], "expected a number, not True"),
        (["{name: a, type: histogram, value: n, buckets: @[1e999]}"], "expected a number, not inf"),
        (["{name: a, type: histogram, value: n, buckets: @[]}"], "expected a list of numbers"),
        ([GOOD + ", value: @n +}"], "value: "),
        ([GOOD + ", value: @lenn(n)}"], "did you mean 'len'?"),
        ([GOOD + ", when: @'\"a\"'}"], "no condition"),
        ([GOOD + ", step: @chck}"], "did you mean 'check'?"),
        ([GOOD + ", max_labels: @0}"], "at least 1"),
        ([GOOD + ", labels: @[n]}"], "expected a mapping"),
        ([GOOD + ", labels: {a: n, b-c: @n}}"], "a label's name"),
        ([GOOD + ", labels: {__a: @n}}"], "a label's name"),
        ([GOOD + ", labels: {recipe: @n}}"], "a meaning of its own"),
        ([GOOD + ", labels: {step: @n}}"], "a meaning of its own"),
        ([GOOD + ", labels: {le: @n}}"], "a meaning of its own"),
        ([GOOD + ", labels: {job: @n}}"], "a meaning of its own"),
        ([GOOD + ", labels: {a: @3}}"], "as text"),
        ([GOOD + ", labels: {a: @'n +'}}"], "labels.a: "),
        ([GOOD + "}", "{name: @a_total, type: counter}"], "the same series as a_total"),
        ([GOOD + "}", "{name: @a, type: gauge, value: n}"], "the same series as a_total"),
        (["{name: x, type: gauge, value: n}", "{name: @x, type: histogram, value: n, buckets: [1]}"],
         "the same series as x"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(work: Work, lines: list[str], says: str) -> None:
    """An @ stands before the place."""
    text = """version: 1
source: {uses: read, with: {paths: [in.ndjson]}}
steps:
  - {id: check, uses: filter, with: {expr: "n < 6"}}
sink: {uses: write, with: {path: out.ndjson}}
metrics:
  textfile: etl.prom
  custom:
""" + "".join(f"    - {line}\n" for line in lines)
    before = text[: text.index("@")].split("\n")
    (work.directory / "recipe.yaml").write_text(text.replace("@", ""))
    done = run_etl("run", "recipe.yaml", "--dry-run", cwd=work.directory)
    assert done.returncode == 78, done.stderr
    assert f"recipe.yaml:{len(before)}:{len(before[-1]) + 1}: ".encode() in done.stderr, done.stderr
    assert says.encode() in done.stderr, done.stderr


@pytest.mark.parametrize("custom", ["3", "{name: a_total}"])
def test_custom_must_be_a_list(work: Work, custom: str) -> None:
    text = f"version: 1\nsource: {{uses: read}}\nsink: {{uses: write, with: {{path: out}}}}\nmetrics:\n  textfile: x\n  custom: {custom}\n"
    (work.directory / "recipe.yaml").write_text(text)
    done = run_etl("run", "recipe.yaml", cwd=work.directory)
    assert done.returncode == 78
    assert b"recipe.yaml:6:11: " in done.stderr


def test_the_schema_of_recipes_knows_them(work: Work) -> None:
    validator = Draft202012Validator(recipe_schema())

    def valid() -> bool:
        return validator.is_valid(load((work.directory / "recipe.yaml").read_bytes(), name="recipe").plain())

    assert valid()
    for bad in (
        {"type": "counter"},
        {"name": "a_total", "type": "meter"},
        {"name": "a_total", "type": "counter", "lables": {}},
    ):
        work.write([bad])
        assert not valid(), bad


def test_a_dry_run_takes_what_is_good(work: Work) -> None:
    assert run_etl("run", "recipe.yaml", "--dry-run", cwd=work.directory).returncode == 0
    assert not work.textfile.exists()
