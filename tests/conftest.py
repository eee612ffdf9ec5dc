"""Shared fixtures: the installed program, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite what the cases expect; review it with git diff")
    parser.addoption("--faults", action="store_true", help="every crash point of the fault matrix, not a sample")


def environment(**extra: str) -> dict[str, str]:
    """A user's environment with `etl` on the PATH; PYTHONUNBUFFERED would hide what happens to buffers at exit."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "TMPDIR")}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8", **extra}


def run_etl(*args: str | Path, stdin: bytes = b"", cwd: Path | None = None, env: dict[str, str] | None = None):
    """`etl ARGS...` to its end; stdout and stderr as bytes."""
    command = [str(BIN / "etl"), *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, env=env or environment(), timeout=100)


@pytest.fixture
def etl() -> Run:
    return run_etl


@pytest.fixture
def shell(tmp_path: Path) -> Run:
    """A bash line in a directory of its own, without pipefail, as people write them."""

    def run(line: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["bash", "-c", line], input=stdin, capture_output=True, cwd=tmp_path, env=environment(), timeout=100
        )

    return run


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample that `etl init` writes."""
    directory = tmp_path_factory.mktemp("sample") / "flights"
    assert run_etl("init", directory).returncode == 0
    return directory


@pytest.fixture(scope="session")
def flights(sample: Path) -> Path:
    """The sample's flights as NDJSON."""
    path = sample.parent / "flights.ndjson"
    assert run_etl("read", sample / "flights.csv.gz", "-o", path).returncode == 0
    return path
