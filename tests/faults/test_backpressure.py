"""P4: a slow sink stops the reading. The source could deliver gigabytes, and what is on its way does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, environment

RECORD = '{"id":12345,"name":"somebody","amount":12.50,"tags":["a","b"],"note":"%s"}' % ("x" * 400)
RATE = 1 << 20
"""Bytes a second that the sink's reader takes."""
SINK = {"uses": "write", "with": {"path": "slow", "format": "ndjson"}}
FILE = {"id": "file", "uses": "write", "with": {"path": "file.ndjson"}}
RECIPES: dict[str, dict[str, Any]] = {
    "one": {"sink": SINK},
    "several": {"sinks": [{"id": "slow", **SINK}, FILE]},
    "routed": {"route": [{"when": "id > 0", "sink": {"id": "slow", **SINK}}, {"sink": FILE}]},
}


@pytest.fixture(params=RECIPES)
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    recipe = {
        "version": 1,
        "source": {"uses": "read"},
        "steps": [{"uses": "filter", "with": {"expr": "amount > 1"}}],
        "runtime": {"queue": "8MiB", "memory": "32MiB"},
        **RECIPES[request.param],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    os.mkfifo(tmp_path / "slow")
    with subprocess.Popen(["yes", RECORD], stdout=subprocess.PIPE) as source:
        process = subprocess.Popen(
            [BIN / "etl", "run", "recipe.yaml"], cwd=tmp_path, env=environment(), stdin=source.stdout
        )
        yield process
        process.kill()
        process.wait()
        source.kill()


def test_P4_memory_is_flat_behind_a_slow_sink(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    taken, sizes, ends = 0, [], time.monotonic() + 4
    with open(tmp_path / "slow", "rb", buffering=0) as reader:
        while time.monotonic() < ends:
            taken += len(reader.read(RATE // 10))
            time.sleep(0.1)
            sizes.append(resident(running.pid))
    read = int(dict(line.split(": ") for line in Path(f"/proc/{running.pid}/io").read_text().splitlines())["rchar"])
    assert taken > 2 * RATE
    # What was read and not taken: the queue, a part or two on the way, what the pipe holds; and the program's own files.
    assert read - taken < 32 << 20
    settled = len(sizes) // 2
    assert max(sizes[settled:]) - sizes[settled] < 4 << 20, sizes
    assert max(sizes) < 120 << 20


def resident(pid: int) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
