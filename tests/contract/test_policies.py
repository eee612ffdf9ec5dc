"""Every policy by every stage, as flags and in a recipe. Generated: a stage that is registered and not named here fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from etlcli.cli import component
from etlcli.engine.pipeline import Pipeline
from etlcli.errors import REJECT_CODES, FindingsError
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe
from etlcli.recipe.model import Recipe
from etlcli.registry import COMPONENTS

LINES = ['{"a":1,"t":1}', '{"a":"x"}', '{"a":3,"t":2}', '{"b":4}', '{"a":null,"t":3}', '{"a":1,"t":4}', "{}"]
FALLBACK = '{"fallback":1.10}'


class Trial(NamedTuple):
    """Options of a stage, as words of a command line and as a recipe has them, that make it reject some of LINES."""

    words: list[str]
    options: dict[str, Any]


POISON = ["sh", "-c", "tee lines | grep -q x && exit 1; cat lines"]
TRIALS = {
    "validate": Trial(["--schema", "schema"], {"schema": "schema"}),
    "filter": Trial(["a > 0"], {"expr": "a > 0"}),
    "map": Trial(["c = a + 1"], {"set": ["c = a + 1"]}),
    "batch": Trial(["--window", "t:2s"], {"window": "t:2s"}),
    "unbatch": Trial([], {}),
    "group": Trial(["--by", "t", "--agg", "s=sum(a)"], {"by": "t", "agg": ["s=sum(a)"]}),
    "dedupe-cache": Trial(["--key", "a"], {"key": "a"}),
    "retry-wrap": Trial(["--isolate", "--", *POISON], {"isolate": True, "command": POISON}),
    "lookup": Trial(
        ["--on", "a", "--from", "table.ndjson", "--on-miss", "reject"],
        {"on": "a", "from": "table.ndjson", "on_miss": "reject"},
    ),
}
TAKES_ALL = {"sort"}
STAGES = [name for name, entry in COMPONENTS.items() if entry.kind == "stage" and name not in TAKES_ALL]

pytestmark = pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in STAGES for form in ("flags", "recipe")]
)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES))
    (tmp_path / "schema").write_text('{"properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    (tmp_path / "table.ndjson").write_text('{"a":1,"name":"one"}\n')
    return tmp_path


def recipe_of(name: str, form: str, flags: list[str], on_error: dict[str, Any], errors: dict[str, Any]) -> Recipe:
    trial = TRIALS[name]
    if form == "flags":
        at = trial.words.index("--") if "--" in trial.words else len(trial.words)
        words = [*trial.words[:at], *flags, "in", "-o", "out", *trial.words[at:]]
        values = component.component_command(name).make_context(name, words).params
        return component.recipe_of(name, "stage", values)
    Path("recipe").write_text(json.dumps({
        "version": 1, "source": {"uses": "read", "with": {"paths": "in"}},
        "steps": [{"id": name, "uses": name, "with": trial.options, "on_error": on_error}],
        "sink": {"uses": "write", "with": {"path": "out"}}, "errors": errors,
    }))  # fmt: skip
    return load_recipe("recipe")


class Ran(NamedTuple):
    out: list[str]
    rejected: int
    healed: dict[str, int]


def run(name: str, form: str, flags: list[str], on_error: dict[str, Any], errors: dict[str, Any] | None = None) -> Ran:
    """Its output and counts. That they balance is checked by the run itself."""
    Path("out").unlink(missing_ok=True)
    pipeline = Pipeline(recipe_of(name, form, flags, on_error, errors or {}), Log("error"))
    pipeline.run()
    count = pipeline.ledger.steps[1]
    return Ran(Path("out").read_text().splitlines(), count.rejected.total(), dict(count.healed))


def skipping(name: str, form: str) -> Ran:
    ran = run(name, form, ["--on-error", "skip"], {"then": "skip"})
    assert ran.rejected > 0 and not ran.healed
    return ran


def test_fail(name: str, form: str) -> None:
    with pytest.raises(FindingsError) as caught:
        run(name, form, [], {})
    assert f"(step {name})" in caught.value.where
    assert not Path("out").exists()


def test_skip_and_quarantine(name: str, form: str) -> None:
    skipped = skipping(name, form)
    quarantined = run(name, form, ["--quarantine", "q"], {"then": "quarantine"}, {"quarantine": "q"})
    assert quarantined == skipped
    envelopes = list(map(json.loads, Path("q").read_text().splitlines()))
    assert len(envelopes) == skipped.rejected
    for envelope in envelopes:
        assert envelope["raw"] in LINES and envelope["step"] == name and envelope["code"] in REJECT_CODES
        assert envelope["errors"][0]["message"] and envelope["origin"]["line"] == LINES.index(envelope["raw"]) + 1


def test_the_error_budget(name: str, form: str) -> None:
    rejected = skipping(name, form).rejected
    for limit, over in ((rejected, False), (rejected - 1, True), ("100%", False), ("0.1%", True)):
        flags, errors = ["--on-error", "skip", "--max-errors", str(limit)], {"max": limit}
        if not over:
            assert run(name, form, flags, {"then": "skip"}, errors).rejected == rejected
            continue
        Path("out").unlink(missing_ok=True)
        with pytest.raises(FindingsError, match="error budget"):
            run(name, form, flags, {"then": "skip"}, errors)
        assert not Path("out").exists()


def test_a_fallback_takes_the_record_s_place(name: str, form: str) -> None:
    skipped = skipping(name, form)
    ran = run(name, form, ["--fallback", FALLBACK], {"fallback": {"value": json.loads(FALLBACK)}})
    made = [line for line in ran.out if "fallback" in line]
    assert len(made) == skipped.rejected and ran.healed == {"fallback": skipped.rejected} and not ran.rejected
    assert [line for line in ran.out if "fallback" not in line] == skipped.out


def test_a_field_is_set(name: str, form: str) -> None:
    skipped = skipping(name, form)
    ran = run(name, form, ["--fallback-set", "healed=true"], {"fallback": {"set": {"healed": True}}})
    rejected = [line for line in ran.out if "healed" in line]
    assert [line for line in ran.out if line not in rejected] == skipped.out
    assert {line.replace(',"healed":true', "").replace('"healed":true', "") for line in rejected} <= set(LINES)
    assert len(rejected) == skipped.rejected


def test_a_fallback_that_fails(name: str, form: str) -> None:
    """There is no object to set the field in."""
    ran = run(name, form, ["--fallback-set", "no.where=1", "--on-error", "skip"],
              {"fallback": {"set": {"no.where": 1}}, "then": "skip"})  # fmt: skip
    assert ran == skipping(name, form)


def test_tries_change_nothing_for_what_stays_wrong(name: str, form: str) -> None:
    flags = ["--attempts", "2", "--backoff", "1ms", "--on-error", "skip"]
    on_error = {"retry": {"attempts": 2, "backoff": "1ms"}, "then": "skip"}
    assert run(name, form, flags, on_error) == skipping(name, form)
