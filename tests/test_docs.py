"""What the documentation shows is what the program does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import environment

from etlcli.cli.main import EXIT_CODES, etl
from etlcli.observe.logs import LEVELS
from etlcli.registry import COMMANDS, COMPONENTS, load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "man").glob("*.1"))


def _commands(block: str) -> list[tuple[str, str]]:
    """(command, expected output) pairs of a console block."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def test_every_console_block_of_the_readme(tmp_path: Path) -> None:
    """They are one story: each block goes on where the one before it ended."""
    blocks = re.findall(r"^```console\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        for command, expected in _commands(block):
            done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(), text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)  # fmt: skip
            assert done.stdout == expected, command


@pytest.mark.parametrize("name", COMPONENTS)
def test_examples_run(name: str, sample: Path, flights: Path, tmp_path: Path) -> None:
    for file in sample.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    shutil.copy(flights, tmp_path / "flights.ndjson")
    prepare = (
        "etl write flights.json < flights.ndjson && head -50 flights.ndjson > monday.ndjson && "
        "tail -50 flights.ndjson > tuesday.ndjson && cp flights.ndjson log.ndjson && gzip log.ndjson && "
        "printf 'code,name\\nUA,United\\n' > airlines.csv"
    )
    assert subprocess.run(["bash", "-c", prepare], cwd=tmp_path, env=environment()).returncode == 0
    examples = load(COMPONENTS[name].target).examples
    assert examples
    for command, _ in examples:
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, timeout=60)
        # 1: the data has findings, which is what some examples show.
        assert done.returncode in (0, 1), (command, done.stderr)


@pytest.mark.parametrize("name", [*COMPONENTS, *COMMANDS])
def test_help_and_man_page_name_every_option(name: str) -> None:
    command = etl.get_command(click.Context(etl), name)
    assert command is not None
    page = (ROOT / "man" / f"etl-{name}.1").read_text().replace("\\-", "-")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.opts[-1] in page


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_man_page_lints(page: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_readme_lists_every_command_and_exit_code() -> None:
    for name in [*COMPONENTS, *COMMANDS]:
        assert f"| `etl {name}` |" in README
    for code in EXIT_CODES:
        assert f"| {code} |" in README


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "gen", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("number", range(1, 9))
def test_every_promise_has_a_test(number: int) -> None:
    """P8 is measured by scripts/bench, never asserted."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert number == 8 or f"def test_P{number}_" in tests


def test_every_event_of_the_log_is_documented() -> None:
    section = README.partition("\n## Logs\n")[2].partition("\n## ")[0]
    documented = [
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall("`(.*?)`", row)
    ]
    source = "".join(path.read_text() for path in (ROOT / "etlcli").rglob("*.py"))
    logged = re.findall(r'(?:"(?:debug|info|warning|error)"|\(level|repeats\.level),\s*"([a-z_]+)"', source)
    logged += re.findall(r'_tell\(\s*"([a-z_]+)"', source)
    logged = [name for name in logged if name not in LEVELS]
    assert len(logged) > 20 and set(logged) == set(documented) and len(documented) == len(set(documented))
