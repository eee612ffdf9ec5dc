"""Cases as folders of files, run in every mode; all modes must give the same bytes.

A folder `cases/<command>/<nnn-slug>/` holds `cmd` (a bash line), whatever files it needs, and what is expected: `stdout`,
`stderr` (time stamps as T), `exit`, and in `expected/` the files it must make, all of them. A missing file stands for empty
output, exit 0, no files. `pytest --bless` rewrites the expectations.

A line that is one `etl` command is also turned into a recipe and run by `etl run`: same output, same exit code.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import environment

from etlcli.cli import component
from etlcli.core.fields import pointer
from etlcli.core.params import format_backoff
from etlcli.errors import UsageError
from etlcli.recipe.model import OnError, Recipe, StepSpec
from etlcli.registry import COMPONENTS

CASES = Path(__file__).parent / "cases"
SPLIT_ETL = Path(__file__).parent / "split_etl.py"
EXPECTATIONS = {"cmd", "stdout", "stderr", "exit", "expected"}
folders = sorted(path.parent for path in CASES.glob("*/*/cmd"))


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _work(folder: Path, tmp_path: Path) -> tuple[Path, set[str]]:
    """A copy of the case's inputs, and their names."""
    work = tmp_path / "work"
    shutil.copytree(
        folder, work, ignore=lambda at, names: [n for n in names if Path(at) == folder and n in EXPECTATIONS]
    )
    return work, {str(path.relative_to(work)) for path in work.rglob("*")}


def _run(line: str, work: Path, **extra: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", line], cwd=work, capture_output=True, stdin=subprocess.DEVNULL,
                          env=environment(**extra), timeout=60)  # fmt: skip


def _made(work: Path, inputs: set[str]) -> dict[str, bytes]:
    """Every file that was made, hidden ones too."""
    made = {str(path.relative_to(work)): path for path in work.rglob("*") if path.is_file()}
    return {name: _stable(name, path.read_bytes()) for name, path in made.items() if name not in inputs}


def _stable(name: str, content: bytes) -> bytes:
    """Without what differs between runs: time stamps and run ids."""
    content = re.sub(rb"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", b"T", content)
    content = re.sub(rb" run=[0-9a-f]{16}\b", b"", content)
    return re.sub(rb'"run":"[0-9a-f]{16}"', b'"run":"R"', content)


@pytest.mark.parametrize("folder", folders, ids=_name)
def test_case(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    work, inputs = _work(folder, tmp_path)
    done = _run((folder / "cmd").read_text(), work)
    made = _made(work, inputs)
    got = _got(done, work)
    if request.config.getoption("--bless"):
        _bless(folder, got, made)
    _compare(folder, got, made)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("folder", folders, ids=_name)
def test_P3_same_with_workers(folder: Path, workers: int, tmp_path: Path) -> None:
    """The case with that many worker processes, and parts of a record or two."""
    work, inputs = _work(folder, tmp_path)
    done = _run((folder / "cmd").read_text(), work, PATH=_split_path(tmp_path), ETL_TEST_WORKERS=str(workers))
    got, stdout = _got(done, work), folder / "stdout"
    if done.returncode and not stdout.exists():
        # How much a run that fails has put out by then depends on the parts; never is it anything else.
        del got["stdout"]
    _compare(folder, got, _made(work, inputs))


def _split_path(tmp_path: Path) -> str:
    """A PATH on which `etl` works in small parts."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "etl").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SPLIT_ETL}" "$@"\n')
    (programs / "etl").chmod(0o755)
    return os.pathsep.join([str(programs), environment()["PATH"]])


def _got(done: subprocess.CompletedProcess[bytes], work: Path) -> dict[str, bytes]:
    stderr = _stable("stderr", done.stderr).replace(str(work).encode(), b".")
    return {"stdout": done.stdout, "stderr": stderr, "exit": b"%d\n" % done.returncode}


def _compare(folder: Path, got: dict[str, bytes], made: dict[str, bytes]) -> None:
    for name, content in got.items():
        path = folder / name
        expected = path.read_bytes() if path.exists() else b"0\n" if name == "exit" else b""
        assert content == expected, f"{name} of {_name(folder)}; stderr: {got['stderr'].decode(errors='replace')}"
    expected_files = {
        str(p.relative_to(folder / "expected")): p for p in (folder / "expected").rglob("*") if p.is_file()
    }
    assert sorted(made) == sorted(expected_files)
    for name, path in expected_files.items():
        assert made[name] == path.read_bytes(), name


def _bless(folder: Path, got: dict[str, bytes], made: dict[str, bytes]) -> None:
    for name, content in got.items():
        path = folder / name
        if content and not (name == "exit" and content == b"0\n"):
            path.write_bytes(content)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "expected", ignore_errors=True)
    for name, content in made.items():
        path = folder / "expected" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _as_recipe(line: str) -> tuple[str, str] | None:
    """The recipe a command line stands for, and what remains for the shell; None for a line that stands for none: a pipe,
    `run` itself, a usage error."""
    words = shlex.split(line.strip())
    if len(words) < 2 or words[0] != "etl" or words[1] not in COMPONENTS or set(line) & set("|;&>$("):
        return None
    stdin = ""
    if "<" in words:
        at = words.index("<")
        stdin = f" < {shlex.quote(words[at + 1])}"
        words[at : at + 2] = []
    name = words[1]
    if "--help" in words or "-h" in words:
        return None
    try:
        values = component.component_command(name).make_context(name, words[2:]).params
        recipe = component.recipe_of(name, COMPONENTS[name].kind, values)
    except (click.ClickException, UsageError):
        return None
    return json.dumps(_recipe_data(recipe)), stdin


def _recipe_data(recipe: Recipe) -> dict[str, Any]:
    data: dict[str, Any] = {
        "version": 1,
        "name": recipe.name,
        "source": _step_data(recipe.source),
        "steps": [{"id": spec.id, **_step_data(spec)} for spec in recipe.steps],
        "sink": _step_data(recipe.sink),
        "runtime": {"memory": recipe.memory},
        "errors": {},
    }
    if recipe.budget.text is not None:
        data["errors"]["max"] = recipe.budget.text
    if recipe.quarantine:
        data["errors"]["quarantine"] = recipe.quarantine
    return data


def _step_data(spec: StepSpec) -> dict[str, Any]:
    given = {name: value for name, value in spec.params.values().items() if value not in (None, ())}
    return {"uses": spec.uses, "with": given, "on_error": _on_error_data(spec.on_error)}


def _on_error_data(on_error: OnError) -> dict[str, Any]:
    retry, fallback, then = on_error
    data: dict[str, Any] = {"retry": {**retry.values(), "backoff": format_backoff(retry.backoff)}, "then": then}
    if fallback and fallback.value is not None:
        data["fallback"] = {"value": json.loads(fallback.value)}
    elif fallback:
        data["fallback"] = {"set": {pointer(path): json.loads(bytes(value)) for path, value in fallback.set}}
    return data


plain_commands = [folder for folder in folders if _as_recipe((folder / "cmd").read_text())]


@pytest.mark.parametrize("folder", plain_commands, ids=_name)
def test_P3_same_as_recipe(folder: Path, tmp_path: Path) -> None:
    work, inputs, stdin = _recipe_work(folder, tmp_path)
    done = _run("etl run recipe.yaml" + stdin, work)
    assert done.stdout == ((folder / "stdout").read_bytes() if (folder / "stdout").exists() else b"")
    _compare_recipe(folder, done, _made(work, inputs))


# What would spill goes into the checkpoint directory then.
elsewhere = [folder for folder in plain_commands if folder.name != "022-no-spill-directory"]


@pytest.mark.parametrize("folder", elsewhere, ids=_name)
def test_P3_same_when_killed_and_resumed(folder: Path, tmp_path: Path) -> None:
    """Killed after its second checkpoint, then after another three, and then another four; then left alone."""
    work, inputs, stdin = _recipe_work(folder, tmp_path, checkpoint={"dir": "state", "every": "0s"})
    path, output = _split_path(tmp_path), b""
    # Of a group workers combine what they have worked out.
    workers = "2" if folder.parent.name == "group" else "1"
    for kill in ("2", "3", "4", "0"):
        done = _run("etl run recipe.yaml" + stdin, work, PATH=path, ETL_TEST_KILL=kill, ETL_TEST_WORKERS=workers)
        output += done.stdout
        if done.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            break
    expected = (folder / "stdout").read_bytes() if (folder / "stdout").exists() else b""
    # How much a run that fails has put out by then depends on the parts; never is it anything else.
    assert output == expected or (done.returncode and not expected)
    # A run that fails, and can be gone on with when what made it fail has been mended, leaves what it had.
    ours = ("state/", ".etl-part") if done.returncode else ("state/",)
    made = {name: content for name, content in _made(work, inputs).items() if not any(each in name for each in ours)}
    _compare_recipe(folder, done, made)


def _recipe_work(folder: Path, tmp_path: Path, **more: Any) -> tuple[Path, set[str], str]:
    """The case's inputs with the recipe its line stands for, their names, and what remains for the shell."""
    found = _as_recipe((folder / "cmd").read_text())
    assert found
    work, inputs = _work(folder, tmp_path)
    recipe, stdin = found
    (work / "recipe.yaml").write_text(json.dumps(json.loads(recipe) | more))
    return work, inputs | {"recipe.yaml"}, stdin


def _compare_recipe(folder: Path, done: subprocess.CompletedProcess[bytes], made: dict[str, bytes]) -> None:
    expected = int((folder / "exit").read_text()) if (folder / "exit").exists() else 0
    # What a shell reports as usage is an error of the recipe, and found as such.
    assert done.returncode in ({expected, 78} if expected == 2 else {expected}), done.stderr
    expected_dir = folder / "expected"
    expected_files = {str(p.relative_to(expected_dir)): p for p in expected_dir.rglob("*") if p.is_file()}
    assert sorted(made) == sorted(expected_files)
    for name, path in expected_files.items():
        digest = rb'"recipe_digest":("\w+"|null)'  # of a recipe's text, which a command line has not
        assert re.sub(digest, b"", made[name]) == re.sub(digest, b"", path.read_bytes()), name
