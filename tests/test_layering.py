"""Who may import whom: the house's floors, held by reading every import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "etlcli"

# From the ground up. A module may import its own floor and those below; `registry` and `errors` are below all.
FLOORS = [
    "errors",
    "registry",
    "core",
    "io",
    "formats",
    "schema",
    "state",
    "stages",
    "connectors",
    "observe",
    "recipe",
    "engine",
    "cli",
]
BESIDE = {
    ("core", "io"),
    ("stages", "connectors"),
    ("connectors", "stages"),
    ("schema", "formats"),
    ("state", "formats"),
    ("state", "schema"),
}
HEAVY = {
    "click",
    "rich",
    "prometheus_client",
    "structlog",
    "yaml",
    "jsonschema_rs",
    "jsonschema",
    "tenacity",
    "stevedore",
    "orjson",
    "sqlitedict",
    "xxhash",
    "opentelemetry",
    "openlineage",
}
ALLOWED_HEAVY = {
    "core": {"xxhash"},
    "connectors": {"xxhash"},
    "cli": {"click", "orjson", "rich"},
    "formats": {"yaml"},
    "schema": {"jsonschema_rs"},
    "engine": {"tenacity"},
    "state": {"orjson", "sqlitedict"},
    "observe": {"openlineage", "opentelemetry", "prometheus_client", "rich"},
}

modules = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(str(node.module))
            names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "etlcli")
    return names


def _floor(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", modules, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here not in FLOORS:
        return  # __init__, __main__, and `testing`, which may look at everything
    for name in _imports(path):
        if name.startswith("etlcli."):
            there = _floor(name)
            if there in FLOORS:
                down = FLOORS.index(there) <= FLOORS.index(here) and (here, there) not in BESIDE
                assert down, f"{path.name} ({here}) imports {name}"
        elif name.split(".")[0] in HEAVY:
            assert name.split(".")[0] in ALLOWED_HEAVY.get(here, set()), f"{path.name} ({here}) imports {name}"


def test_a_stage_imports_no_other_stage() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not [name for name in _imports(path) if name.startswith("etlcli.stages.")], path.name


def test_P6_no_pickle_and_no_eval() -> None:
    for path in modules:
        # A run's own processes talk in pickles, over pipes that nobody else has; nothing that comes from outside is one.
        talks = path.relative_to(PACKAGE) == Path("engine/workers.py")
        assert talks or not _imports(path) & {"pickle", "marshal", "shelve", "dill"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                # Trees are compiled, which were built here, and never a text.
                builds = path.relative_to(PACKAGE) == Path("core/code.py") and node.func.id == "compile"
                assert builds or node.func.id not in {"eval", "exec", "compile"}, f"{path}:{node.lineno}"
