"""P7: a subcommand imports only what it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import environment

# Third-party packages, and the slow modules of the standard library, that each command may load.
ALLOWED = {
    "--help": {"click"},
    "read": {"click", "msgspec"},
    "sort": {"click", "msgspec"},
    "filter": {"click", "msgspec"},
    "map": {"click", "msgspec"},
    "dedupe-cache": {"click", "msgspec", "xxhash"},
    "retry-wrap": {"click", "msgspec"},
    "lookup": {"click", "msgspec", "xxhash"},
    "write": {"click", "msgspec"},
    "validate": {"click", "msgspec", "jsonschema_rs"},
    "group": {"click", "msgspec"},
    "batch": {"click", "msgspec"},
    "unbatch": {"click", "msgspec"},
}
WATCHED = {
    "click", "msgspec", "rich", "orjson", "yaml", "jsonschema", "jsonschema_rs", "prometheus_client", "tenacity",
    "sqlitedict", "stevedore", "xxhash", "backports", "asyncio", "logging", "sqlite3", "multiprocessing", "concurrent", "unittest",
    "urllib", "http", "email", "ssl", "socket", "tempfile", "pathlib", "csv", "json", "gzip", "bz2", "lzma", "importlib.metadata",
    "pickle",
}  # fmt: skip
ARGUMENTS = {
    "filter": ["a > 1"],
    "map": ["a = 1"],
    "sort": ["--by", "a"],
    "group": ["--by", "a"],
    "batch": ["--size", "2"],
    "retry-wrap": ["--", "cat"],
    "lookup": ["--on", "a", "--from", "table.ndjson"],
    "write": ["-"],
    "validate": ["--schema", "schema.json"],
}
LOADED_ANYWAY = "import sys; print('MODULES', *sys.modules)"


def _modules(code: str, tmp_path) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          cwd=tmp_path, env=environment(), timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.partition("MODULES")[2].split())


@pytest.mark.parametrize("command", sorted(ALLOWED))
def test_P7_imports_only_what_it_runs(command: str, tmp_path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "table.ndjson").write_text('{"a": 1, "b": 2}')
    arguments = [command, *ARGUMENTS.get(command, [])]
    code = f"import sys, os; sys.argv[1:] = {arguments}; os._exit = lambda code: print('MODULES', *sys.modules); "
    loaded = _modules(code + "from etlcli.cli.main import main; main()", tmp_path)
    # What click and msgspec load themselves is theirs to answer for.
    allowed = ALLOWED[command]
    ours = loaded - _modules(f"import {', '.join(allowed)}, click.shell_completion, shutil; " + LOADED_ANYWAY, tmp_path)
    third_party = {name for name in WATCHED & loaded if name in ("rich", "orjson", "yaml", "jsonschema", "jsonschema_rs",
                   "prometheus_client", "tenacity", "sqlitedict", "stevedore", "xxhash", "backports", "msgspec", "click")}  # fmt: skip
    assert third_party <= allowed
    assert not (WATCHED & ours) - allowed
    assert ("etlcli.core.expressions" in loaded) == (command in ("filter", "map", "validate"))


def test_P7_help_lists_without_importing(tmp_path) -> None:
    code = "import sys, os; sys.argv[1:] = ['--help']; os._exit = lambda code: print('MODULES', *sys.modules); "
    loaded = _modules(code + "from etlcli.cli.main import main; main()", tmp_path)
    assert not {name for name in loaded if name.startswith(("etlcli.stages", "etlcli.connectors", "etlcli.engine"))}
