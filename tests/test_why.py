"""`etl why`: what is said of one record is what a run does with it, and nothing comes of asking."""

from __future__ import annotations

import gzip
import json
import os
import pty
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from conftest import BIN, Run, environment, run_etl
from hypothesis import given, settings
from hypothesis import strategies as st

from etlcli.engine.pipeline import Pipeline
from etlcli.engine.why import Place, Why
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe

LONG = 123456789012345678901234567890
Asked = Callable[..., dict[str, Any]]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """The recipe of some steps, and an input of some lines."""

    def write(steps: Any, *lines: Any, **more: Any) -> None:
        sink = {} if {"route", "sinks"} & more.keys() else {"sink": {"uses": "write", "with": {"path": "out.ndjson"}}}
        source = {"uses": "read", "with": {"paths": ["in.ndjson"]}}
        recipe = {"version": 1, "name": "r", "source": source, "steps": steps, **sink, **more}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "in.ndjson").write_text("".join(line + "\n" for line in text))

    return write


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """What --json says of a line; nothing else in the directory has changed then, and nothing is on stderr."""

    def asked(line: int = 1, *options: str, exit: int = 0, file: str = "in.ndjson", mark: str = ":") -> dict[str, Any]:
        before = _files(tmp_path)
        done = run_etl("why", f"{file}{mark}{line}", "--recipe", "recipe.yaml", "--json", *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (exit, b"")
        assert _files(tmp_path) == before
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return asked


def _files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _step(trace: dict[str, Any], at: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = trace["steps"][at]
    return found


# -- What each step says ----------------------------------------------------------------------------------------------


def test_filter(write: Any, asked: Asked) -> None:
    steps = [{"uses": "filter", "with": {"expr": "a > 1 and (b == 'x' or c.d < 5)"}}]
    write(steps, {"a": 2, "b": "x", "c": None}, {"a": 0, "b": "x"}, {"a": 9, "b": "y", "c": {"d": LONG}}, {"b": "x"})
    assert _step(asked(1))["decision"] == "passed"
    dropped = asked(2, exit=1)
    assert dropped["outcome"] == "dropped" and "sinks" not in dropped
    assert _step(dropped) == {
        "step": "filter", "uses": "filter", "kind": "stage", "decision": "dropped", "discarded": {"filtered": 1},
        "reason": [
            "a > 1 and (b == 'x' or c.d < 5) is false",
            "a > 1 is false",
            "b == 'x' or c.d < 5 is true",
            'a is 0, b is "x", c.d is missing',
        ],
    }  # fmt: skip
    assert _step(asked(3, exit=1))["reason"][3] == f'a is 9, b is "y", c.d is {LONG}'
    assert _step(asked(4, exit=1))["reason"][:2] == ["a > 1 and (b == 'x' or c.d < 5) is unknown", "a > 1 is unknown"]


def test_filter_that_cannot_be_told(write: Any, asked: Asked) -> None:
    write([{"uses": "filter", "with": {"expr": "a > 1"}, "on_error": {"then": "skip"}}], {"a": "x"})
    rejected = asked(exit=1)
    assert rejected["outcome"] == "rejected"
    (error,) = _step(rejected)["errors"]
    assert (error["code"], error["pointer"], error["value"]) == ("bad_type", "/a", '"x"')
    assert _step(rejected)["on_error"] == "skip"


def test_validate_by_schema_and_rule(write: Any, asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"properties": {"a": {"type": "integer"}, "b": {"enum": ["x"]}}}')
    step = {"id": "check", "uses": "validate", "with": {"schema": "s.json", "rules": ["a > 1"]},
            "on_error": {"then": "quarantine"}}  # fmt: skip
    write([step], {"a": "q", "b": "y"}, {"a": 0}, errors={"quarantine": "aside.ndjson"})
    check = _step(asked(1, exit=1))
    assert (check["step"], check["uses"], check["decision"], check["on_error"]) == (
        "check", "validate", "rejected", "quarantine",
    )  # fmt: skip
    assert [(error["code"], error["keyword"], error["pointer"]) for error in check["errors"]] == [
        ("schema", "type", "/a"), ("schema", "enum", "/b"), ("schema", "rule", "/a"),
    ]  # fmt: skip
    assert check["errors"][0]["schema_pointer"] == "/properties/a/type"
    assert _step(asked(2, exit=1))["errors"][0]["message"] == "rule a > 1: a is number 0"
    assert not (tmp_path / "aside.ndjson").exists()


def test_validate_that_repairs(write: Any, asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"properties": {"a": {"type": "integer"}}}')
    write([{"uses": "validate", "with": {"schema": "s.json", "coerce": True}}], '{"a": "12", "b": 1.10}')
    trace = asked()
    assert _step(trace)["changes"] == [{"pointer": "/a", "old": "12", "new": 12}]
    assert trace["sinks"] == {"write": [{"a": 12, "b": 1.1}]}


def test_validate_that_only_reports(write: Any, asked: Asked) -> None:
    write([{"uses": "validate", "with": {"rules": ["a > 1"], "check": True}}], {"a": 2}, {"a": 0})
    good, bad = asked(1, exit=1), asked(2, exit=1)
    assert (good["outcome"], _step(good)["discarded"]) == ("dropped", {"checked": 1})
    assert (bad["outcome"], _step(bad)["on_error"]) == ("rejected", "report")


def test_map(write: Any, asked: Asked) -> None:
    assignments = {"set": ["n = a + 1"], "drop": ["b"], "rename": ["/c~1d=e"]}
    write([{"uses": "map", "with": assignments}], {"a": 1, "b": None, "c/d": {"x": 1}, "l": [1, 2]})
    trace = asked()
    assert _step(trace)["decision"] == "changed"
    assert _step(trace)["changes"] == [
        {"pointer": "/b", "old": None},
        {"pointer": "/c~1d", "old": {"x": 1}},
        {"pointer": "/e", "new": {"x": 1}},
        {"pointer": "/n", "new": 2},
    ]


def test_changes_reach_into_objects_and_arrays(write: Any, asked: Asked) -> None:
    write(
        [{"uses": "map", "with": {"set": ["o.x = 2"]}}, {"id": "again", "uses": "map", "with": {"keep": ["b", "o"]}}],
        '{ "o": {"x": 1, "y": [1, {"z": 0}]}, "b": 1}',
    )
    trace = asked()
    assert _step(trace)["changes"] == [{"pointer": "/o/x", "old": 1, "new": 2}]
    again = _step(trace, 2)
    assert again["decision"] == "changed" and "changes" not in again, "only the order is another"


def test_lookup(write: Any, asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("k,name\n1,one\n")
    step = {
        "uses": "lookup",
        "with": {"on": ["id=k"], "from": "t.csv", "on_miss": "reject"},
        "on_error": {"then": "skip"},
    }
    write([step], {"id": 1}, {"id": 2}, {"id": None})
    assert _step(asked(1)) | {"reason": []} == {
        "step": "lookup", "uses": "lookup", "kind": "stage", "decision": "changed", "reason": [],
        "changes": [{"pointer": "/name", "new": "one"}],
    }  # fmt: skip
    assert _step(asked(1))["reason"] == ["asked for id is 1: found"]
    assert _step(asked(2, exit=1))["errors"][0]["code"] == "lookup_failed"
    write([{**step, "with": {**step["with"], "on_miss": "keep"}}], {"id": 2}, {"id": None})
    assert _step(asked(1))["reason"] == ["asked for id is 2: no entry has this key (on_miss: keep)"]
    assert _step(asked(2))["reason"] == ["asked for id is null: nothing has such a key"]


def test_commands_are_asked_only_on_demand(write: Any, asked: Asked, tmp_path: Path) -> None:
    mark = tmp_path.parent / f"{tmp_path.name}-asked"
    command = ["sh", "-c", f"touch {mark}; sed s/1/2/"]
    cached = {"on": ["a"], "command": command, "fields": ["b=a"], "cache": "c.db"}
    write(
        [{"uses": "retry-wrap", "with": {"command": command}}, {"uses": "lookup", "with": cached}],
        {"a": 1},
    )
    trace = asked()
    assert [step["decision"] for step in trace["steps"]] == ["read", "not_asked", "not_asked", "reached"]
    assert _step(trace)["reason"] == ["the command sh decides, and was not asked (--run-commands)"]
    assert not mark.exists()
    trace = asked(1, "--run-commands")
    assert mark.exists()
    assert [step["decision"] for step in trace["steps"]] == ["read", "changed", "changed", "reached"]
    assert trace["sinks"] == {"write": [{"a": 2, "b": 2}]}
    assert not (tmp_path / "c.db").exists()


def test_a_fallback_that_asks(write: Any, asked: Asked, tmp_path: Path) -> None:
    mark = tmp_path.parent / f"{tmp_path.name}-asked"
    steps = [{"uses": "retry-wrap", "with": {"command": ["sh", "-c", f"touch {mark}; cat"]}}]
    step = {
        "uses": "validate",
        "with": {"rules": ["a > 1"]},
        "on_error": {"fallback": {"steps": steps}, "then": "skip"},
    }
    write([step], {"a": 1})
    trace = asked(exit=1)
    assert _step(trace)["reason"] == ["its fallback asks the command sh, and did not (--run-commands)"]
    assert not mark.exists()
    assert _step(asked(1, "--run-commands"))["healed"] == "fallback"
    assert mark.exists()


def test_a_server_is_asked_only_on_demand(write: Any, asked: Asked) -> None:
    write([{"uses": "lookup", "with": {"on": ["a"], "from": "http://u:secret@127.0.0.1:9/t.csv"}}], {"a": 1})
    assert _step(asked())["reason"][0] == "http://***@127.0.0.1:9/t.csv decides, and was not asked (--run-commands)"


def test_sort_group_and_batch_see_it_alone(write: Any, asked: Asked) -> None:
    write([{"uses": "sort", "with": {"by": ["-a"], "top": 1}}], {"a": LONG}, {"a": 2})
    trace = asked(2)
    assert (_step(trace)["decision"], _step(trace)["alone"]) == ("held", True)
    assert _step(trace)["reason"] == [
        "sorted by -a: a is 2",
        "its place, and whether it is kept, cannot be told from this record alone",
    ]
    group = {"uses": "group", "with": {"by": ["k"], "agg": ["n=count()", "s=sum(a)"]}}
    write([group, {"uses": "filter", "with": {"expr": "n > 1"}}], {"k": "x", "a": 5}, {"k": "x", "a": "bad"})
    trace = asked(1)
    assert trace["outcome"] == "absorbed" and len(trace["steps"]) == 2, (
        "what comes of the group is not shown as its own"
    )
    assert _step(trace)["reason"][:3] == [
        'its group: k is "x"',
        "to n=count() it gives: 1",
        "to s=sum(a) it gives: a is 5",
    ]
    assert asked(2, exit=1)["outcome"] == "rejected"
    write([{"uses": "group", "with": {"by": ["k"], "emit": "stream"}}], {"k": 1})
    assert _step(asked())["decision"] == "held"
    write([{"uses": "batch", "with": {"size": 2, "key": ["k"]}}], {"k": 1})
    trace = asked()
    assert trace["outcome"] == "absorbed" and _step(trace)["reason"][0] == "a batch has one k is 1"


def test_unbatch_makes_several(write: Any, asked: Asked) -> None:
    steps = [{"uses": "unbatch"}, {"uses": "filter", "with": {"expr": "a > 1"}}]
    write(steps, {"records": [{"a": 1}, {"a": 2}, {"a": 3}]}, {"records": []}, {})
    trace = asked(1)
    assert (_step(trace)["decision"], len(_step(trace)["records"])) == ("split", 3)
    assert (_step(trace, 2)["decision"], _step(trace, 2)["discarded"]) == ("reduced", {"filtered": 1})
    assert trace["sinks"] == {"write": [{"a": 2}, {"a": 3}]}
    assert asked(2, exit=1)["outcome"] == "dropped"
    assert asked(3, exit=1)["outcome"] == "rejected"


def test_dedupe_cache(write: Any, asked: Asked, tmp_path: Path) -> None:
    step = {"uses": "dedupe-cache", "with": {"key": ["id"], "cache": "seen.db", "dupes": "again.ndjson"}}
    write([step], {"id": 1}, {"id": 2}, {})
    assert _step(asked(1))["reason"][0] == "the key is 1: id is 1"
    assert "alone" in _step(asked(1))["reason"][-1]
    assert not (tmp_path / "seen.db").exists()
    assert (
        run_etl("run", "recipe.yaml", "--set", "source.on_error={then: skip}", "--limit", "1", cwd=tmp_path).returncode
        == 0
    )
    known = asked(1, exit=1)
    assert (known["outcome"], _step(known)["discarded"]) == ("dropped", {"duplicate": 1})
    assert _step(known)["reason"][1].startswith("the cache has seen it, in this record or another, at 2")
    assert asked(2)["outcome"] == "reached"
    # Another run may hold the cache file meanwhile.
    holder = sqlite3.connect(tmp_path / "seen.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert run_etl("why", "in.ndjson:1", "--recipe", "recipe.yaml", cwd=tmp_path).returncode == 1
    holder.close()
    assert _step(asked(3, exit=1))["errors"][0] == {
        "code": "missing_field", "message": "the key field is missing", "pointer": "/id",
    }  # fmt: skip
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    recipe["steps"][0]["with"]["ttl"] = "1ms"
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert _step(asked(1))["reason"][1].endswith("too long ago to count")


def test_policy_heals(write: Any, asked: Asked) -> None:
    rule = {"uses": "validate", "with": {"rules": ["a > 1"]}}
    write([{**rule, "on_error": {"fallback": {"set": {"a": 0}}}}], {"a": 1})
    healed = _step(asked())
    assert (healed["decision"], healed["healed"], healed["errors"][0]["code"]) == ("changed", "fallback", "rule")
    assert healed["changes"] == [{"pointer": "/a", "old": 1, "new": 0}]
    retry = {"retry": {"attempts": 3, "backoff": "1ms..2ms"}, "then": "skip"}
    write([{"uses": "retry-wrap", "with": {"command": ["false"]}, "on_error": retry}], {"a": 1})
    failed = _step(asked(1, "--run-commands", exit=1))
    assert (failed["decision"], failed["tries"]) == ("rejected", 3)


def test_route_and_sinks(write: Any, asked: Asked, tmp_path: Path) -> None:
    def sink(id: str) -> dict[str, Any]:
        return {"id": id, "uses": "write", "with": {"path": f"{id}.ndjson"}}

    late = {"when": "a > 1", "steps": [{"uses": "map", "with": {"set": ["late = true"]}}], "sink": sink("late")}
    write([], {"a": 2}, {"a": 1, "b": 1}, {"a": 0}, {"a": "x"}, route=[late, {"when": "b == 1", "sink": sink("b")}])
    trace = asked(1)
    assert [step["step"] for step in trace["steps"]] == ["read", "route", "map", "late"]
    assert _step(trace)["reason"] == ["late: a > 1 is true", "late: a is 2", "goes to late"]
    assert (_step(trace, 2)["branch"], trace["sinks"]) == ("late", {"late": [{"a": 2, "late": True}]})
    assert list(asked(2)["sinks"]) == ["b"]
    assert _step(asked(3, exit=1))["discarded"] == {"no_route": 1}
    assert asked(4, exit=1)["outcome"] == "rejected"
    by_name = {"id": "some", "uses": "write", "with": {"path_template": "{b}.ndjson"}}
    write([], {"a": 2, "b": 1}, {"a": 1}, sinks=[sink("all"), by_name])
    assert list(asked(1)["sinks"]) == ["all", "some"]
    assert asked(2, exit=1)["outcome"] == "rejected", "one reject fails the run, and nothing is published"
    write([], {"a": 1}, sinks=[sink("all"), {**by_name, "on_error": {"then": "skip"}}])
    assert list(asked(1)["sinks"]) == ["all"]


def test_sinks_that_refuse(write: Any, asked: Asked) -> None:
    template = {"uses": "write", "with": {"path_template": "out/{k}.ndjson"}, "on_error": {"then": "skip"}}
    write([], {"k": "x"}, {"a": 1}, sink=template)
    assert asked(1)["outcome"] == "reached"
    assert _step(asked(2, exit=1))["errors"][0]["code"] == "missing_field"
    write([], {"k": "x"}, sink={"uses": "write", "with": {"path": "-"}})
    assert asked(1)["sinks"] == {"write": [{"k": "x"}]}
    write([], {"k": "x"}, sink={"uses": "sql", "with": {"url": "sqlite:///none.db", "table": "t", "create": True}})
    assert _step(asked(1))["reason"] == ["whether it takes the record was not asked"]


# -- Finding the record -----------------------------------------------------------------------------------------------


def test_lines_are_those_of_the_origins(write: Any, asked: Asked, tmp_path: Path) -> None:
    lines = [{"a": 1}, '{"a": ', {"a": 3}, "[4]", {"a": 5}]
    write([], *lines, errors={"quarantine": "aside.ndjson"})
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    recipe["source"]["on_error"] = {"then": "quarantine"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert run_etl("run", "recipe.yaml", cwd=tmp_path).returncode == 0
    for line in (tmp_path / "aside.ndjson").read_text().splitlines():
        envelope = json.loads(line)
        origin = envelope["origin"]
        for mark, number in ((":", origin["line"]), ("@", origin["offset"])):
            trace = asked(number, exit=1, mark=mark)
            assert (trace["raw"], _step(trace, 0)["errors"][0]["code"]) == (envelope["raw"], envelope["code"])
            assert (trace["line"], trace["offset"]) == (origin["line"], origin["offset"])
    assert [asked(line)["record"]["a"] for line in (1, 3, 5)] == [1, 3, 5]


def test_a_line_that_is_no_text(write: Any, asked: Asked, tmp_path: Path) -> None:
    write([])
    (tmp_path / "in.ndjson").write_bytes(b'{"a":"\xff"}\n')
    trace = asked(exit=1)
    assert trace["raw_base64"] == "eyJhIjoi/yJ9" and _step(trace, 0)["errors"][0]["code"] == "bad_utf8"


def test_a_line_that_a_fallback_saves(write: Any, asked: Asked, tmp_path: Path) -> None:
    write([], {"a": 1}, "nothing", {"a": 3})
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    recipe["source"]["on_error"] = {"fallback": {"value": {"a": 0}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    trace = asked(2)
    assert trace["sinks"] == {"write": [{"a": 0}]} and _step(trace, 0)["healed"] == "fallback"


def test_csv_and_gzip(write: Any, asked: Asked, tmp_path: Path) -> None:
    write([{"uses": "filter", "with": {"expr": "n > 1"}}])
    text = 'n,t\n1,one\n2,"two\nlines"\n\n3,three\n'
    (tmp_path / "in.csv").write_text(text)
    with gzip.open(tmp_path / "in.csv.gz", "wt") as file:
        file.write(text)
    for name in ("in.csv", "in.csv.gz"):
        assert asked(2, exit=1, file=name)["record"] == {"n": 1, "t": "one"}
        assert asked(3, file=name)["record"] == {"n": 2, "t": "two\nlines"}
        assert asked(6, file=name)["record"] == {"n": 3, "t": "three"}
        done = run_etl("why", f"{name}:4", "--recipe", "recipe.yaml", cwd=tmp_path)
        assert done.returncode == 66 and b"no record begins at that line; the nearest begin at 3 and 6" in done.stderr
    assert asked(2, "--set", "source.with.types=string", "--set", "steps=[]", file="in.csv")["record"]["n"] == "1"


def test_several_records_on_a_line(write: Any, asked: Asked, tmp_path: Path) -> None:
    write([])
    (tmp_path / "in.json").write_text('[{"a":1},{"a":2}]')
    done = run_etl("why", "in.json:1", "--recipe", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2 and b"in.json@1, in.json@9" in done.stderr
    assert asked(9, file="in.json", mark="@")["record"] == {"a": 2}


def test_what_is_not_there(write: Any, asked: Asked, tmp_path: Path) -> None:
    write([], {"a": 1}, "  ", {"a": 3}, "")
    (tmp_path / "last.ndjson").write_text('{"a":1}\n{"a":2}')
    (tmp_path / "empty.ndjson").touch()
    assert asked(2, file="last.ndjson")["record"] == {"a": 2}
    os.mkfifo(tmp_path / "pipe")
    for place, code, said in (
        ("in.ndjson:2", 66, "the line is blank"),
        ("in.ndjson:4", 66, "the line is blank"),
        ("in.ndjson:5", 66, "there is no such line; the last record begins at line 3"),
        ("in.ndjson:0", 66, "the nearest begin at 1"),
        ("in.ndjson@1", 66, "no record begins at that offset; the nearest begin at 0 and 12"),
        ("last.ndjson:3", 66, "there is no such line; the last record begins at line 2"),
        ("empty.ndjson:1", 66, "there is no such line; there is no record at all"),
        ("missing.ndjson:1", 66, "cannot open missing.ndjson"),
        ("-:1", 2, "put its content into a file"),
        ("<stdin>:1", 2, "put its content into a file"),
        ("pipe:1", 2, "put its content into a file"),
        ("http://127.0.0.1:9/x.ndjson:1", 2, "put its content into a file"),
        ("in.ndjson", 2, "write FILE:LINE"),
        ("in.ndjson:x", 2, "write FILE:LINE"),
    ):
        done = run_etl("why", place, "--recipe", "recipe.yaml", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, b""), (place, done.stderr)
        assert said in done.stderr.decode(), (place, done.stderr)


def test_a_recipe_with_checkpoints_and_odd_names(write: Any, asked: Asked, tmp_path: Path) -> None:
    write([{"uses": "dedupe-cache", "with": {"key": ["a"], "keep": "last"}}], {"a": 1}, checkpoint={"dir": "state"})
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    recipe["source"]["incremental"] = True
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert run_etl("run", "recipe.yaml", cwd=tmp_path).returncode == 0
    assert _step(asked())["decision"] == "held", "it was read by a run before, and is read again"
    odd = tmp_path / "a:\udcff*[1].ndjson"
    odd.write_text('{"a":2}\n')
    os.rename(tmp_path / "recipe.yaml", tmp_path / "\udcff.yaml")
    for option in ((), ("--json",)):
        done = run_etl("why", f"{odd.name}:1", "--recipe", "\udcff.yaml", *option, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"") and b"xff*[1].ndjson" in done.stdout


def test_beyond_the_first_parts(write: Any, asked: Asked, tmp_path: Path) -> None:
    write([], *({"n": number, "pad": "x" * 90} for number in range(40_000)))
    assert asked(39_999)["record"]["n"] == 39_998
    with gzip.open(tmp_path / "in.gz", "wb") as file:
        file.write((tmp_path / "in.ndjson").read_bytes())
    assert asked(20_001, file="in.gz")["record"]["n"] == 20_000


def test_a_bad_recipe(write: Any, etl: Run, tmp_path: Path) -> None:
    write([{"uses": "validate", "with": {"schema": "none.json"}}], {"a": 1})
    assert etl("why", "in.ndjson:1", "--recipe", "recipe.yaml", cwd=tmp_path).returncode in (66, 78)
    write([{"uses": "filtr"}], {"a": 1})
    assert etl("why", "in.ndjson:1", "--recipe", "recipe.yaml", cwd=tmp_path).returncode == 78
    write([{"uses": "filter", "with": {"expr": "a >"}}], {"a": 1})
    assert etl("why", "in.ndjson:1", "--recipe", "recipe.yaml", cwd=tmp_path).returncode == 78
    write([{"uses": "dedupe-cache", "with": {"dupes": "out.ndjson"}}], {"a": 1})
    done = etl("why", "in.ndjson:1", "--recipe", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 78 and b"step dedupe-cache" in done.stderr


# -- For people -------------------------------------------------------------------------------------------------------


def test_the_text(write: Any, etl: Run, tmp_path: Path) -> None:
    steps = [
        {"uses": "map", "with": {"set": ["b = a"], "drop": ["c"]}},
        {"id": "late", "uses": "filter", "with": {"expr": "a > 1"}},
    ]
    write(steps, f'{{"a":1,"c":"\\u001b[31m\\u202e","d":{LONG}}}')
    done = etl("why", "in.ndjson:1", "--recipe", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.decode() == (
        "in.ndjson:1 (byte 0) through recipe.yaml\n"
        f'  {{"a":1,"c":"\\u001b[31m\\u202e","d":{LONG}}}\n'
        "\n"
        "read  read as a record\n"
        "\n"
        "map  changed\n"
        '  /c  "\\u001b[31m\\u202e" -> nothing\n'
        "  /b  nothing -> 1\n"
        "\n"
        "late (filter)  dropped\n"
        "  filtered: 1\n"
        "  a > 1 is false\n"
        "  a is 1\n"
        "\n"
        "It does not reach the output: late drops it.\n"
    )


def test_nothing_that_a_terminal_obeys(write: Any, etl: Run, tmp_path: Path) -> None:
    hostile = "\x9b31m\u202e\u2028"
    steps = [{"uses": "map", "with": {"set": ["b = a"]}}, {"uses": "filter", "with": {"expr": "b == 'x'"}}]
    write(steps, json.dumps({"a": hostile, hostile: 1}, ensure_ascii=False), "\x1b[2J" + hostile)
    for line in (1, 2):
        for option in ((), ("--json",)):
            done = etl("why", f"in.ndjson:{line}", "--recipe", "recipe.yaml", *option, cwd=tmp_path)
            assert done.returncode == 1
            shown = done.stdout.decode()
            assert not set(shown) & {"\x1b", "\x9b", "\u202e", "\u2028"}
            if option:
                assert hostile in json.loads(shown).get("record", {hostile: 1})


def test_colours_only_on_a_terminal(write: Any, tmp_path: Path) -> None:
    write([], {"a": 1})
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        main, other = pty.openpty()
        env = {**environment(**extra), "TERM": "xterm"}
        if not extra:
            env.pop("NO_COLOR", None)
        command = [str(BIN / "etl"), "why", "in.ndjson:1", "--recipe", "recipe.yaml"]
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=other, timeout=60)
        os.close(other)
        shown = os.read(main, 65536)
        os.close(main)
        assert done.returncode == 0
        assert (b"\x1b[" in shown) is coloured


# -- What it says is what a run does ----------------------------------------------------------------------------------

VALUES = st.sampled_from(["1", "2", "3.0", '"x"', "null", '"2"', str(LONG), "[1]"])
LINES = st.one_of(
    st.builds('{{"id":%d,"a":{}}}'.format, VALUES),
    st.builds('{{"id":%d,"a":{},"b":{}}}'.format, VALUES, VALUES),
    st.sampled_from(['{"id":%d}', "no record %d", "  "]),
)
STEPS = st.lists(
    st.sampled_from(
        [
            {"uses": "filter", "with": {"expr": "a > 1 or exists(b)"}},
            {"uses": "filter", "with": {"expr": "not (a == 2) and coalesce(b, 1) != 'x'"}},
            {"uses": "map", "with": {"set": ["b = a + 1"]}},
            {"uses": "map", "with": {"set": ["a = coalesce(b, a)"], "drop": ["b"]}},
            {"uses": "validate", "with": {"rules": ["a > 0"]}},
            {"uses": "validate", "with": {"schema": "s.json", "coerce": True}},
        ]
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LINES, max_size=8), STEPS)
def test_it_reaches_the_sink_if_a_run_puts_it_out(shapes: list[str], steps: list[dict[str, Any]]) -> None:
    lines = [shape % number if "%d" in shape else shape for number, shape in enumerate(shapes)]
    with TemporaryDirectory() as directory:
        at = Path(directory)
        (at / "s.json").write_text('{"properties": {"a": {"type": "integer"}}}')
        (at / "in.ndjson").write_text("".join(line + "\n" for line in lines))
        skip = {"on_error": {"then": "skip"}}
        recipe = {
            "version": 1,
            "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}, **skip},
            "steps": [{"id": f"s{number}", **step, **skip} for number, step in enumerate(steps)],
            "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
        }
        (at / "recipe.yaml").write_text(json.dumps(recipe))
        log = Log("error")
        Pipeline(load_recipe(str(at / "recipe.yaml")), log).run()
        expected = (at / "out.ndjson").read_bytes().splitlines()
        found = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = Place(str(at / "in.ndjson"), number)
                trace = Why(load_recipe(str(at / "recipe.yaml")), place, log).trace()
                assert (trace.outcome == "reached") == bool(trace.sinks)
                found += [bytes(record) for records in trace.sinks.values() for record in records]
        assert found == expected
