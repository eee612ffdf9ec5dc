"""P1 and P2 at size: no record is lost, none is changed, and a stage that loses one fails the run."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, run_etl

ODD = [
    b'{"id":%d,"v": 1.10}',
    b'{"id":%d ,"v":1e400}',
    b' {"id":%d,"v":123456789012345678901234567890}\t',
    b'{"v":"\\u00e9\\/\\ud83d\\ude00","id":%d}',
    '{"v":"é🙂\u2028","id":%d}'.encode(),
    b'{"id":0,"id":%d,"v":[1,  2]}',
    b'{"v":-0,"id":%d}',
    b'{"v":-0.0e-0,"id":%d}',
    b'{"\\u0069d":%d}',
    b'{"id":%d,"v":{"v":{"v":null}}}',
    b'{"id":%d.0}',
    b'{"id":"%d"}',
    b'{"id":[%d]}',
    b'{"id":null,"n":%d}',
    b'{"n":%d,"pad":"' + b"x" * 3000 + b'"}',
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 4 MB of records in every odd spelling, in no order, with CRLF here and there and blank lines."""
    directory = tmp_path_factory.mktemp("odd")
    generator = random.Random(3)
    with (directory / "in").open("wb") as file:
        for number in range(20_000):
            line = ODD[number % len(ODD)] % generator.randrange(5000)
            file.write(line + generator.choice([b"\n", b"\n", b"\n", b"\r\n", b"\n\n"]))
    (directory / "schema.json").write_text('{"properties": {"n": {"type": "integer"}}}')
    (directory / "recipe.yaml").write_text(
        "version: 1\nname: r\nsource: {uses: read, with: {paths: [in]}}\nsteps:\n"
        "  - {id: check, uses: validate, with: {schema: schema.json, coerce: true, defaults: true}}\n"
        "  - {id: order, uses: sort, with: {by: [-id, v]}}\n"
        "sink: {uses: write, with: {path: recipe.out}}\nruntime: {memory: 1MiB}\n"
    )
    return directory


def digest(content: bytes) -> str:
    """Of the lines, whatever their order."""
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    return hashlib.sha256(b"\n".join(sorted(line for line in lines if line))).hexdigest()


@pytest.mark.parametrize(
    "line",
    [
        "etl read in",
        "etl read in | etl sort --by id | etl write -",
        "cat in | etl sort --by=-id,v --memory 64KiB",
        "etl sort --by v --numeric --nulls first --memory 1MiB in",
        "etl validate --schema schema.json --coerce --defaults in | etl read",
        "etl run recipe.yaml && cat recipe.out",
        "etl write - < in | gzip | etl sort --by id",
        "etl write parts.zst < in && etl read parts.zst",
        "etl group --by id --emit stream --memory 64KiB in",
        "etl group --by v --emit list --memory 1MiB in | etl unbatch",
        "etl batch --size 700 --bytes 100KiB --key v in | etl unbatch",
    ],
)
def test_P2_every_line_comes_out_as_it_went_in(line: str, odd: Path, shell: Run) -> None:
    done = shell(f"cd {odd} && {line}")
    assert done.returncode == 0, done.stderr
    assert digest(done.stdout) == digest((odd / "in").read_bytes())


def test_P3_pipe_and_recipe_give_the_same_bytes(odd: Path, shell: Run) -> None:
    piped = shell(f"cd {odd} && etl read in | etl validate --schema schema.json | etl sort --by=-id,v").stdout
    assert shell(f"cd {odd} && etl run recipe.yaml --set sink.with.path=other").returncode == 0
    assert (odd / "other").read_bytes() == piped


@pytest.mark.parametrize("memory", ["64KiB", "1MiB", "512MiB"])
@pytest.mark.parametrize("options", [[], ["--unique"], ["--top", "100"], ["--unique", "--top", "100"]])
def test_P1_and_P3_memory_changes_neither_result_nor_balance(options: list[str], memory: str, odd: Path) -> None:
    done = run_etl("sort", "--by", "id", *options, "--memory", memory, "--stats", "in", cwd=odd)
    assert done.stdout == run_etl("sort", "--by", "id", *options, "in", cwd=odd).stdout
    for step in json.loads(done.stderr)["steps"]:
        gone = sum(sum(step[kind].values()) for kind in ("discarded", "rejected", "absorbed"))
        assert step["in"] == step["out"] + gone, step


@pytest.mark.parametrize(
    "options",
    [
        ["--agg", "n=count()", "--agg", "all=list(v)", "--agg", "odd=distinct(v)", "--agg", "high=max(v)"],
        ["--emit", "list"],
        ["--emit", "stream"],
    ],
)
def test_P1_and_P3_memory_changes_no_group(options: list[str], odd: Path) -> None:
    done = run_etl("group", "--by", "id", *options, "--memory", "64KiB", "--stats", "in", cwd=odd)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_etl("group", "--by", "id", *options, "in", cwd=odd).stdout
    for step in json.loads(done.stderr)["steps"]:
        gone = sum(sum(step[kind].values()) for kind in ("discarded", "rejected", "absorbed"))
        assert step["in"] + step.get("made", 0) == step["out"] + gone, step


# -- A stage that loses records --------------------------------------------------------------------------------------

LOSSES = {
    "in prepare": "def prepare(self, batch): return Prepared(batch.take(range(1, len(batch))))",
    "in apply": "def apply(self, prepared): return ()",
    "twice": "def apply(self, prepared): yield prepared.batch; yield prepared.batch",
    "a reject that was not lost": "def prepare(self, batch): return Prepared(batch, [batch.reject(0, 'rule', [{'message': 'm'}])])",
    "a discard that was not lost": "def prepare(self, batch): return Prepared(batch, discards={'dropped': 1})",
}
PROGRAM = """
import sys
from etlcli.core import params
from etlcli.core.stage import Prepared, Stage
from etlcli.registry import COMPONENTS, Entry

class Leaky(Stage):
    class Params(params.Declared):
        pass
    {method}

COMPONENTS["leaky"] = Entry("stage", "__main__:Leaky", "")
from etlcli.cli.main import main
main()
"""


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("where", ["alone", "recipe"])
def test_P1_a_stage_that_loses_records(loss: str, where: str, shell: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(method=LOSSES[loss]))
    (tmp_path / "in").write_bytes(b'{"a":1}\n{"a":2}\n{"a":3}\n')
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: r\nsource: {uses: read, with: {paths: [in]}}\n"
        "steps: [{id: order, uses: sort, with: {by: a}}, {id: here, uses: leaky, on_error: {then: skip}}]\n"
        "sink: {uses: write, with: {path: out}}\n"
    )
    command = {"alone": "leaky in -o out --on-error skip", "recipe": "run recipe.yaml"}[where]
    done = shell(f"{sys.executable} program.py {command}")
    assert done.returncode == 70, done.stderr
    assert {"alone": b"leaky: ", "recipe": b"here: "}[where] in done.stderr
    assert b"records unaccounted for" in done.stderr
    assert not (tmp_path / "out").exists()


# -- P6: what is shown -----------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[31m\r\x08\u202e\u2066\u009b2J\u2028::error::x\x00"


def shown(stderr: bytes) -> str:
    text = stderr.decode()
    assert not set(text) & {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2066", "\u2028"} - {"\n"}
    assert not [line for line in text.split("\n") if line.startswith("::")]
    return text


@pytest.mark.parametrize("form", ["console", "logfmt", "json", "auto"])
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_P6_names_of_files_and_fields_cannot_steer_the_terminal(form: str, policy: str, tmp_path: Path) -> None:
    name = "in" + HOSTILE.replace("\x00", "").replace("/", "")
    (tmp_path / name).write_bytes(b'{"a":1}\n{"' + HOSTILE.encode() + b"\n")
    options: list[Any] = ["--on-error", policy, "--log-format", form, "--log-level", "debug"]
    done = run_etl("read", name, "-o", "out", *options, cwd=tmp_path)
    assert done.returncode == (1 if policy == "fail" else 0)
    assert "owned" in shown(done.stderr)
    for arguments in (
        ["read", name + "x"],
        ["sort", "--by", f"{name}.", name],
        ["run", name],
        ["read", "--format", name],
        [name],
    ):
        done = run_etl(*arguments, cwd=tmp_path)
        assert done.returncode in (2, 66, 78), done.stderr
        assert "owned" in shown(done.stderr)


def test_P6_a_recipe_cannot_steer_the_terminal(tmp_path: Path) -> None:
    for key in (["bad"], ["source", "uses"], ["source", "with", "paths"], ["name"]):
        recipe: dict[str, Any] = {"version": 1, "name": "r", "source": {"uses": "read", "with": {"paths": ["in"]}},
                                  "sink": {"uses": "write", "with": {"path": "out"}}}  # fmt: skip
        at = recipe
        for part in key[:-1]:
            at = at[part]
        at[key[-1]] = HOSTILE
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        for arguments in (["run", "r.yaml"], ["run", "r.yaml", "--dry-run"]):
            done = run_etl(*arguments, cwd=tmp_path)
            shown(done.stderr + done.stdout)
