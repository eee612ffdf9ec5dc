"""The sample does what its README says, as a recipe and as a pipe."""

from __future__ import annotations

import csv
import gzip
import re
import shutil
from pathlib import Path

import pytest
from conftest import run_etl


@pytest.fixture
def copy(sample: Path, tmp_path: Path) -> Path:
    target = tmp_path / "flights"
    shutil.copytree(sample, target, ignore=shutil.ignore_patterns("out"))
    return target


def _lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())


def test_the_counts_of_its_readme(copy: Path) -> None:
    done = run_etl("run", "recipe.yaml", cwd=copy)
    assert done.returncode == 0, done.stderr
    with gzip.open(copy / "flights.csv.gz", "rt", newline="") as file:
        read = len(list(csv.DictReader(file)))
    written, quarantined = _lines(copy / "out/flights.ndjson"), _lines(copy / "out/quarantine.ndjson")
    assert written + quarantined == read
    numbers = set(re.findall(r"\d+", (copy / "README.md").read_text().replace(",", "")))
    assert {str(read), str(written), str(quarantined)} <= numbers


def test_it_is_real_data_with_its_na(copy: Path) -> None:
    assert sum(path.stat().st_size for path in copy.iterdir()) < 1 << 20
    with gzip.open(copy / "flights.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert 9_500 < len(rows) < 10_500
    assert sum(row["dep_delay"] == "NA" for row in rows) > 100


def test_a_tight_error_budget_publishes_nothing(copy: Path) -> None:
    done = run_etl("run", "recipe.yaml", "--set", "errors.max=1%", cwd=copy)
    assert done.returncode == 1
    assert not (copy / "out/flights.ndjson").exists()
    assert _lines(copy / "out/quarantine.ndjson") > 0


def test_P3_the_recipe_and_the_pipe_give_the_same_bytes(copy: Path, shell) -> None:
    assert run_etl("run", copy / "recipe.yaml").returncode == 0
    done = shell(
        f"cd {copy}; etl read flights.csv.gz | etl validate --schema flight.schema.json --quarantine q.ndjson"
        " | etl sort --by=-dep_delay,carrier | etl write pipe.ndjson"
    )
    assert done.returncode == 0, done.stderr
    assert (copy / "pipe.ndjson").read_bytes() == (copy / "out/flights.ndjson").read_bytes()
    assert _lines(copy / "q.ndjson") == _lines(copy / "out/quarantine.ndjson")


def test_init_replaces_nothing(copy: Path) -> None:
    (copy / "recipe.yaml").write_text("mine")
    done = run_etl("init", copy)
    assert done.returncode == 73
    assert (copy / "recipe.yaml").read_text() == "mine"
