"""`etl run --report`, however the run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, environment, run_etl
from prometheus import until

GOOD = b"".join(b'{"id":%d,"n":%d}\n' % (number, number % 7) for number in range(1000))
HOSTILE = b'{"id":1,"n":"</script><script>document.title=1</script>\\u001b[31m"}\n'
REPORTS = ("--report", "json=run.json", "--report", "html=run.html")


def write(directory: Path, **changes: Any) -> None:
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "reported",
        "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
        "steps": [
            {"id": "check", "uses": "validate", "with": {"rules": ["n < 6"]}, "on_error": {"then": "skip"}},
            {"uses": "sort", "with": {"by": ["n"]}},
        ],
        "route": [
            {"when": "n == 0", "sink": {"id": "zero", "uses": "write", "with": {"path": "zero.ndjson"}}},
            {"sink": {"id": "rest", "uses": "write", "with": {"path": "rest.ndjson"}}},
        ],
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe | changes))
    (directory / "in.ndjson").write_bytes(GOOD)


def reports(directory: Path) -> tuple[dict[str, Any], str]:
    return json.loads((directory / "run.json").read_text()), (directory / "run.html").read_text()


def test_of_a_good_run(tmp_path: Path) -> None:
    write(tmp_path, checkpoint={"dir": "state", "every": "0s"})
    (tmp_path / "in.ndjson").write_bytes(GOOD + HOSTILE)
    done = run_etl("run", "recipe.yaml", *REPORTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, page = reports(tmp_path)
    assert (found["state"], found["exit_code"], found["recipe"]) == ("succeeded", 0, "reported")
    assert found["records"] == {"read": 1001, "written": 858, "rejected": 143, "discarded": 0, "abandoned": 0}
    assert found["bytes"]["read"] == len(GOOD + HOSTILE)
    assert {step["id"]: step["out"] for step in found["steps"]} == {
        "read": 1001, "check": 858, "sort": 858, "route": 858, "zero": 143, "rest": 715,
    }  # fmt: skip
    assert {step["id"]: step["above"] for step in found["steps"]}["rest"] == "route"
    assert found["checkpoints"]["taken"]
    (rejects,) = found["rejects"]
    assert (rejects["step"], rejects["count"], len(rejects["examples"])) == ("check", 143, 5)
    assert rejects["examples"][0]["line"] == 7
    for text in ("Succeeded", "1,001", "858", "143", "reported"):
        assert text in page
    assert "<script" not in page


def test_of_a_run_that_fails(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "in.ndjson").write_bytes(GOOD + b"</script>no record\n")
    done = run_etl("run", "recipe.yaml", *REPORTS, cwd=tmp_path)
    assert done.returncode == 1
    found, page = reports(tmp_path)
    assert (found["state"], found["exit_code"]) == ("failed", 1)
    assert "bad_json" in found["error"]
    ((example,),) = [each["examples"] for each in found["rejects"]]
    assert (example["line"], example["raw"]) == (GOOD.count(b"\n") + 1, "</script>no record")
    assert "exit code 1" in page and "no example was kept" not in page
    assert not (tmp_path / "rest.ndjson").exists()


def test_of_a_run_that_never_began(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "in.ndjson").unlink()
    assert run_etl("run", "recipe.yaml", *REPORTS, cwd=tmp_path).returncode == 66
    found, _ = reports(tmp_path)
    assert (found["state"], found["exit_code"]) == ("failed", 66)


def test_of_a_run_that_is_interrupted(tmp_path: Path) -> None:
    write(tmp_path, source={"uses": "read", "with": {"paths": ["-"]}}, checkpoint={"dir": "state"})
    process = subprocess.Popen(
        [BIN / "etl", "run", "recipe.yaml", *REPORTS], cwd=tmp_path, env=environment(), stdin=subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(GOOD)
    process.stdin.flush()
    until(lambda: list((tmp_path / "state").glob("checkpoint-*.json")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    process.stdin.close()
    found, page = reports(tmp_path)
    assert (found["state"], found["exit_code"]) == ("failed", 143)
    assert "Terminated" in page


def test_a_directory_that_goes_away_costs_a_warning(tmp_path: Path) -> None:
    # A file stands where the directory was, which stops root, too.
    gone = "rm -r there; touch there; cat"
    write(tmp_path, steps=[{"uses": "retry-wrap", "with": {"command": ["sh", "-c", gone], "size": 10_000}}])
    (tmp_path / "there").mkdir()
    done = run_etl("run", "recipe.yaml", "--report", "html=there/run.html", cwd=tmp_path)
    assert done.returncode == 0
    assert b"report_failed" in done.stderr
    assert (tmp_path / "rest.ndjson").exists()


@pytest.mark.parametrize(
    ("reports", "code", "says"),
    [
        (["run.html"], 2, "--report html=run.html"),
        (["pdf=run.pdf"], 2, "the formats are json and html"),
        (["html=-"], 2, "a report goes to a file"),
        (["html=rest.ndjson"], 78, "report rest.ndjson is also a file"),
        (["html=in.ndjson"], 78, "report in.ndjson is also a file"),
        (["html=x", "json=./x"], 78, "report ./x is also a file"),
        (["html=recipe.yaml/run.html"], 73, "recipe.yaml/run.html"),
    ],
)
def test_paths_that_cannot_work_are_refused_before_the_run(
    tmp_path: Path, reports: list[str], code: int, says: str
) -> None:
    write(tmp_path)
    args = [arg for report in reports for arg in ("--report", report)]
    before = sorted(os.listdir(tmp_path))
    done = run_etl("run", "recipe.yaml", *args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr.decode()
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("changes", "args"),
    [
        ({"metrics": {"textfile": "recipe.yaml"}}, []),
        ({"logging": {"file": "recipe.yaml"}}, []),
        ({"lineage": {"file": "./recipe.yaml"}}, []),
        ({"route": [{"sink": {"id": "zero", "uses": "write", "with": {"path": "recipe.yaml"}}}]}, []),
        ({}, ["--report", "html=recipe.yaml"]),
    ],
)
def test_nothing_takes_the_place_of_the_recipe(tmp_path: Path, changes: dict[str, Any], args: list[str]) -> None:
    write(tmp_path, **changes)
    before = (tmp_path / "recipe.yaml").read_bytes()
    done = run_etl("run", "recipe.yaml", *args, cwd=tmp_path)
    assert done.returncode == 78, done.stderr
    assert (tmp_path / "recipe.yaml").read_bytes() == before


def test_secrets_of_the_environment_are_shown_nowhere(tmp_path: Path) -> None:
    step = {
        "uses": "validate",
        "with": {"rules": ['n != "${env.DB_TOKEN}"', "n < 6"]},
        "on_error": {"then": "quarantine"},
    }
    write(
        tmp_path,
        steps=[step],
        route=[{"sink": {"id": "rest", "uses": "write", "with": {"path": "${env.DB_TOKEN}.ndjson"}}}],
        errors={"quarantine": "quarantine.ndjson"},
        lineage={"file": "lineage.ndjson"},
        metrics={"textfile": "etl.prom"},
        logging={"level": "debug", "file": "run.log"},
    )
    env = environment(DB_TOKEN="tok3nvalue")
    done = run_etl("run", "recipe.yaml", *REPORTS, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    why = [
        run_etl("why", "in.ndjson:7", "--recipe", "recipe.yaml", *args, cwd=tmp_path, env=env)
        for args in ([], ["--json"])
    ]
    texts = [done.stderr, *(each.stdout + each.stderr for each in why)]
    names = ("run.html", "run.json", "lineage.ndjson", "etl.prom", "run.log", "quarantine.ndjson")
    texts += [(tmp_path / name).read_bytes() for name in names]
    assert all(b"tok3nvalue" not in text for text in texts)
    assert b"***" in (tmp_path / "run.json").read_bytes()
    assert (tmp_path / "tok3nvalue.ndjson").exists()
