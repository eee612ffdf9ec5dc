"""A recipe's lineage and tracing, through the installed program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import environment, run_etl

LINES = b"".join(b'{"id":%d}\n' % number for number in range(10))


def write(directory: Path, **changes: Any) -> None:
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "traced",
        "source": {"uses": "read", "with": {"paths": ["in*.ndjson"]}},
        "steps": [{"uses": "filter", "with": {"expr": "id < 5"}}],
        "sinks": [
            {"uses": "write", "with": {"path": "out.ndjson"}},
            {"id": "db", "uses": "sql", "with": {"url": "sqlite:///out.db", "table": "t", "create": True}},
            {"id": "parts", "uses": "write", "with": {"path_template": "parts/{id}.ndjson"}},
        ],
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe | changes))
    (directory / "in.ndjson").write_bytes(LINES)


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "lineage.ndjson").read_text().splitlines()]


def test_a_good_run_says_what_it_read_and_wrote(tmp_path: Path) -> None:
    write(tmp_path, lineage={"file": "lineage.ndjson", "namespace": "tests"})
    done = run_etl("run", "recipe.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    start, complete = events(tmp_path)
    assert [start["eventType"], complete["eventType"]] == ["START", "COMPLETE"]
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert (complete["job"]["namespace"], complete["job"]["name"]) == ("tests", "traced")
    assert [each["name"] for each in start["inputs"]] == [str(tmp_path / "in.ndjson")]
    read = complete["inputs"][0]["inputFacets"]["inputStatistics"]
    assert (read["rowCount"], read["size"]) == (10, len(LINES))
    outputs = {each["name"]: each["outputFacets"]["outputStatistics"] for each in complete["outputs"]}
    assert outputs[str(tmp_path / "out.ndjson")]["rowCount"] == 5
    assert outputs[str(tmp_path / "out.ndjson")]["size"] == (tmp_path / "out.ndjson").stat().st_size
    assert outputs["t"]["rowCount"] == 5
    assert outputs[str(tmp_path / "parts/{id}.ndjson")]["rowCount"] == 5


def test_a_run_that_fails_says_why_also_before_it_has_begun(tmp_path: Path) -> None:
    write(tmp_path, lineage={"file": "lineage.ndjson"})
    (tmp_path / "in.ndjson").write_bytes(LINES + b"no record\n")
    assert run_etl("run", "recipe.yaml", cwd=tmp_path).returncode == 1
    (tmp_path / "in.ndjson").unlink()
    assert run_etl("run", "recipe.yaml", cwd=tmp_path).returncode == 66
    found = events(tmp_path)
    assert [each["eventType"] for each in found] == ["START", "FAIL", "START", "FAIL"]
    assert "bad_json" in found[1]["run"]["facets"]["errorMessage"]["message"]
    assert "no file matches" in found[3]["run"]["facets"]["errorMessage"]["message"]


def test_spans_of_the_run_and_its_steps(tmp_path: Path) -> None:
    write(tmp_path, tracing={"otel": True})
    done = run_etl("run", "recipe.yaml", cwd=tmp_path, env=environment(OTEL_TRACES_EXPORTER="console"))
    assert (done.returncode, done.stdout) == (0, b"")
    decoder, text, spans = json.JSONDecoder(), done.stderr.decode(), []
    while text.strip():
        span, end = decoder.raw_decode(text.lstrip())
        spans.append(span)
        text = text.lstrip()[end:]
    names = [span["name"] for span in spans]
    assert sorted(names) == sorted(["read", "filter", "sinks", "write", "db", "parts", "etl run traced"])
    (run,) = [span for span in spans if span["name"] == "etl run traced"]
    assert {span["parent_id"] for span in spans if span is not run} == {run["context"]["span_id"]}
    assert [span["attributes"]["etl.out"] for span in spans if span["name"] == "filter"] == [5]


def test_both_of_file_and_url_are_refused(tmp_path: Path) -> None:
    write(tmp_path, lineage={"file": "x", "url": "http://x"})
    done = run_etl("run", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 78
    assert b"lineage needs a file or a url" in done.stderr
