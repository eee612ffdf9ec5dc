"""The schema that editors get agrees with the loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from etlcli.errors import EtlError
from etlcli.formats.yaml12 import YamlError, load
from etlcli.recipe.load import TOP, load_recipe
from etlcli.recipe.model import CheckpointSpec, LoggingSpec
from etlcli.recipe.schema import recipe_schema

ROOT = Path(__file__).parent.parent.parent
RECIPES = [*sorted((ROOT / "tests/cases/run").glob("*/recipe.yaml")), ROOT / "etlcli/sample/recipe.yaml"]


def test_the_committed_schema_is_a_schema() -> None:
    committed = json.loads((ROOT / "etlcli" / "recipe" / "recipe.schema.json").read_text())
    assert committed == recipe_schema()
    Draft202012Validator.check_schema(committed)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_what_loads_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILE", "input.ndjson")
    try:
        load_recipe(str(path))
    except EtlError:
        return
    assert Draft202012Validator(recipe_schema()).is_valid(load(path.read_bytes(), name=str(path)).plain())


def test_typos_are_invalid() -> None:
    validator = Draft202012Validator(recipe_schema())
    for slug in ("002-typo-in-key", "003-typo-in-uses", "012-yaml-traps", "019-version", "023-not-a-mapping"):
        path = ROOT / "tests" / "cases" / "run" / slug / "recipe.yaml"
        try:
            assert not validator.is_valid(load(path.read_bytes(), name=slug).plain()), slug
        except YamlError:
            pytest.fail(slug)


def test_every_section_is_in_the_schema() -> None:
    properties = recipe_schema()["properties"]
    assert set(properties) == set(TOP)
    assert set(properties["checkpoint"]["properties"]) == set(CheckpointSpec._fields)
    assert set(properties["logging"]["properties"]) == set(LoggingSpec._fields)
