"""The validate stage: what goes on, what is rejected, and with what."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from etlcli.core.batch import Batch, Reject, Span
from etlcli.core.intake import parse
from etlcli.core.ledger import StepCount
from etlcli.core.projection import projection
from etlcli.core.stage import Context
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import InputMissingError, SchemaError
from etlcli.io.stepfiles import StepFiles
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe
from etlcli.schema.shape import Shape
from etlcli.stages.validate import Validate

SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "integer"}, "price": {"type": "number", "minimum": 0}, "unit": {"type": "string", "default": "kg"}},
    "required": ["id", "unit"],
}  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    def make(schema: Any = SCHEMA, **options: Any) -> Validate:
        (tmp_path / "s.json").write_text(json.dumps(schema))
        rejects: list[Reject] = []
        ctx = Context(
            StepCount("check"),
            resources=ExitStack(),
            files=StepFiles("step", ExitStack(), lambda *a, **k: None),
            log=lambda *a, **k: None,
            reject=rejects.extend,
            base_dir=str(tmp_path),
        )
        return Validate(Validate.Params(schema="s.json", **options), ctx)

    return make


def batch(*lines: str) -> Batch:
    chunk = "".join(line + "\n" for line in lines).encode()
    return Batch(len(lines), chunk=chunk, span=Span("in.ndjson", 1, 0, chunk))


def test_valid_records_go_on_byte_for_byte(stage: Any) -> None:
    lines = ['{"id": 1, "unit":"kg", "x": 1.10, "big": 123456789012345678901234567890}', '{"unit":"\\u00e9","id":1e2}']
    given = batch(*lines)
    prepared = stage().prepare(given)
    assert prepared.batch.chunk is given.chunk
    assert not prepared.rejects and not prepared.discards


def test_an_invalid_record_is_rejected_with_all_its_errors_and_its_origin(stage: Any) -> None:
    prepared = stage().prepare(batch('{"id":1,"unit":"kg"}', '{"id":"x","price":-1.50}', '{"id":2,"unit":"kg"}'))
    assert prepared.batch.lines == [b'{"id":1,"unit":"kg"}', b'{"id":2,"unit":"kg"}']
    assert prepared.batch.origin(1).line == 3
    (reject,) = prepared.rejects
    assert reject.code == "schema" and reject.raw == b'{"id":"x","price":-1.50}'
    assert tuple(reject.origin) == ("in.ndjson", 2, 21)
    assert [(e["pointer"], e["keyword"], e["value"]) for e in reject.errors] == [
        ("", "required", '{"id":"x","price":-1.50}'),
        ("/id", "type", '"x"'),
        ("/price", "minimum", "-1.50"),
    ]


def test_an_empty_batch_stays_one(stage: Any) -> None:
    for options in ({}, {"check": True}, {"coerce": True, "defaults": True}):
        prepared = stage(**options).prepare(Batch.of_lines([]))
        assert prepared.batch.count == 0 and not prepared.rejects


def test_repairs_are_made_before_the_verdict_and_a_reject_holds_what_came(stage: Any) -> None:
    lines = ['{"id":"7"}', '{"id": 1, "unit" :"g"}', '{"id":"NA","price":"1.10"}', '{"id":3}']
    given = batch(*lines)
    prepared = stage(coerce=True, defaults=True).prepare(given)
    assert prepared.batch.lines == [b'{"id":7,"unit":"kg"}', b'{"id": 1, "unit" :"g"}', b'{"id":3,"unit":"kg"}']
    assert [prepared.batch.origin(index).line for index in range(3)] == [1, 2, 4]
    (reject,) = prepared.rejects
    assert reject.raw == lines[2].encode() and reject.origin.line == 3
    assert [(e["pointer"], e["value"]) for e in reject.errors] == [("/id", '"NA"')]
    assert given.lines == [line.encode() for line in lines]


@pytest.mark.parametrize("extra", [{}, {"minProperties": 0}])
def test_repairs_are_the_same_with_and_without_a_shape(stage: Any, extra: dict[str, Any]) -> None:
    lines = [f'{{"id":"{number}"}}' if number % 3 else f'{{"id":{number},"unit":"g"}}' for number in range(200)]
    prepared = stage({**SCHEMA, **extra}, coerce=True, defaults=True).prepare(batch(*lines))
    assert [json.loads(line)["id"] for line in prepared.batch.lines] == list(range(200))
    assert all(line == lines[index].encode() for index, line in enumerate(prepared.batch.lines) if index % 3 == 0)


def test_check_puts_nothing_out_and_counts_what_is_valid(stage: Any) -> None:
    checking = stage(check=True)
    prepared = checking.prepare(batch('{"id":1,"unit":"kg"}', "{}", '{"id":2,"unit":"kg"}'))
    assert checking.reports and not stage().reports
    assert prepared.batch.count == 0 and prepared.discards == {"checked": 2}
    assert [reject.raw for reject in prepared.rejects] == [b"{}"]


def test_formats_are_asserted_on_request(stage: Any) -> None:
    schema = {"properties": {"mail": {"format": "email"}}}
    assert not stage(schema).prepare(batch('{"mail":"x"}')).rejects
    assert len(stage(schema, formats=True).prepare(batch('{"mail":"x"}')).rejects) == 1


def test_rejects_are_explained_on_demand(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checker = stage()
    asked = []
    explain = checker._verdict.errors
    monkeypatch.setattr(checker._verdict, "errors", lambda line: asked.append(line) or explain(line))
    rejects = checker.prepare(batch("{}", '{"id":1}', '{"id":2}')).rejects
    assert len(rejects) == 3 and not asked
    assert [(reject.index, reject.raw) for reject in rejects] == [(0, b"{}"), (1, b'{"id":1}'), (2, b'{"id":2}')]
    assert not asked and rejects[1].errors and asked == [b'{"id":1}']
    monkeypatch.undo()
    assert pickle.loads(pickle.dumps(rejects)) == rejects


def test_any_cut_of_the_input_gives_the_same_output(stage: Any) -> None:
    lines = ['{"id":"%d"}' % n if n % 7 else '{"id":null}' for n in range(300)]  # noqa: UP031
    checker = stage(coerce=True, defaults=True)
    whole = checker.prepare(batch(*lines))
    for size in (1, 2, 100):
        parts = [checker.prepare(batch(*lines[start : start + size])) for start in range(0, 300, size)]
        assert b"".join(part.batch.chunk for part in parts) == whole.batch.chunk
        assert [reject.errors for part in parts for reject in part.rejects] == [
            reject.errors for reject in whole.rejects
        ]


def test_the_schema_is_found_from_the_base_directory_or_by_its_full_path(stage: Any, tmp_path: Path) -> None:
    relative = stage()
    absolute = Validate(Validate.Params(schema=str(tmp_path / "s.json")), relative.ctx)
    assert not absolute.prepare(batch('{"id":1,"unit":"kg"}')).rejects
    with pytest.raises(InputMissingError) as error:
        Validate(Validate.Params(schema="none.json"), relative.ctx)
    assert error.value.where == "none.json" and error.value.exit_code == 66
    with pytest.raises(SchemaError):
        stage({"type": "nope"})
    with pytest.raises(ValueError, match="schema: nothing to check by"):
        Validate.Params()


def test_p7_rules_alone_do_not_import_the_engine(tmp_path: Path) -> None:
    code = (
        "import sys; from contextlib import ExitStack; from etlcli.core.ledger import StepCount; from etlcli.core.stage import Context\n"
        "from etlcli.stages.validate import Validate\n"
        "Validate(Validate.Params(rules=['a > 1']), Context(StepCount('x'), resources=ExitStack(), files=None, log=print, reject=print))\n"
        "print([name for name in sys.modules if name.startswith(('jsonschema', 'etlcli.schema'))])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "[]\n", run.stderr


def test_many_broken_rules_are_explained_one_at_a_time(stage: Any) -> None:
    validate = Validate(Validate.Params(rules=["id > 1", "exists(x)"]), stage().ctx)
    rejects = validate.prepare(batch('{"id":1}', '{"id":2,"x":0}', '{"id":"a"}')).rejects
    assert len(rejects) == 2 and rejects[1].code == "rule"
    assert [error["message"] for error in rejects[0].errors] == [
        "rule id > 1: id is number 1",
        "rule exists(x): x is missing",
    ]
    assert {error["keyword"] for reject in rejects for error in reject.errors} == {"rule"}
    assert pickle.loads(pickle.dumps(rejects)) == list(rejects)


def test_p7_the_engine_is_imported_only_when_there_is_a_schema() -> None:
    code = "import sys, etlcli.stages.validate; print([m for m in sys.modules if m.startswith(('jsonschema', 'etlcli.schema'))])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "[]\n"


def test_records_are_decoded_once_for_the_schema_and_for_those_who_come_after(tmp_path: Path) -> None:
    (tmp_path / "in.ndjson").write_text('{"id": 3, "unit": "kg"}\n{"id": 1, "unit": "kg"}\n')
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    recipe = {
        "version": 1,
        "name": "once",
        "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
        "steps": [{"uses": "validate", "with": {"schema": "s.json"}}, {"uses": "sort", "with": {"by": ["id"]}}],
        "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    decodes: list[Any] = []
    suspects = Shape.suspects

    def watched(shape: Shape, batch: Batch) -> Any:
        decodes.append(shape._projection and batch.decoded_by(shape._projection))
        return suspects(shape, batch)

    with mock.patch.object(Shape, "suspects", watched):
        Pipeline(load_recipe(str(tmp_path / "recipe.yaml")), Log("error", "json")).run()
    assert [len(decoded) for decoded in decodes] == [2]
    assert (tmp_path / "out.ndjson").read_text() == '{"id": 1, "unit": "kg"}\n{"id": 3, "unit": "kg"}\n'


def test_what_was_decoded_for_the_schema_alone_is_not_kept(stage: Any) -> None:
    check = stage()
    project = check.projection(projection((("id",),)))
    chunk = b'{"id": 1, "unit": "kg"}\n{"id": 2}\n'
    read = parse(b'{"id": 1, "unit": "kg"}\n', Span("in", 1, 0, b""), project).batch
    assert read.decoded_by(project).columns == {("id",): [1]}
    prepared = check.prepare(read)
    assert prepared.batch.columns((("id",),)) == [[1]]
    prepared = check.prepare(parse(chunk, Span("in", 1, 0, chunk), project).batch)  # the second is not valid
    assert prepared.batch.columns((("id",),)) == [[1]]
    assert [reject.code for reject in prepared.rejects] == ["schema"]
