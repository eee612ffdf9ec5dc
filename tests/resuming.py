"""Recipes with checkpoints, whose runs are stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import BIN, environment, run_etl

SPLIT_ETL = Path(__file__).parent / "split_etl.py"
LINES = [b'{"id":%d,"k":"%s","n":%d.50}\n' % (number, b"abc"[number % 3 :][:1], number % 7) for number in range(3000)]
SLOW = {"uses": "retry-wrap", "with": {"command": ["sh", "-c", "sleep 0.02; cat"]}}


class Work:
    """A directory with a recipe in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.recipe: dict[str, Any] = {
            "version": 1,
            "source": {"uses": "read", "with": {"paths": ["in/*.ndjson"]}},
            "steps": [{"uses": "sort", "with": {"by": ["n"]}}],
            "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
            "checkpoint": {"dir": "state", "every": "0s"},
        }
        (directory / "in").mkdir()
        (directory / "in" / "one.ndjson").write_bytes(b"".join(LINES))

    def write(self, **changes: Any) -> None:
        self.recipe |= changes
        (self.directory / "recipe.yaml").write_text(json.dumps(self.recipe))

    def in_parts(self) -> None:
        """Its input in many files, each of which takes its time."""
        (self.directory / "in" / "one.ndjson").unlink()
        for number in range(0, len(LINES), 30):
            (self.directory / "in" / f"{number:05}.ndjson").write_bytes(b"".join(LINES[number : number + 30]))
        self.write(steps=[SLOW, *self.recipe["steps"]])

    def run(self, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return run_etl("run", "recipe.yaml", *args, cwd=self.directory, stdin=stdin)

    def start(self, *args: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [BIN / "etl", "run", "recipe.yaml", *args], cwd=self.directory, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
        )  # fmt: skip

    def interrupted(self, *args: str, signum: int = signal.SIGTERM) -> None:
        """A run that a signal ends when it has read some of its input."""
        process = self.start("--workers", "1", *args)
        until(lambda: 0 < self.read() < len(LINES))
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == -signum, stderr
        assert 0 < self.read() < len(LINES)

    def shown(self) -> list[dict[str, Any]]:
        done = run_etl("checkpoint", "show", "recipe.yaml", "--json", cwd=self.directory)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def read(self) -> int:
        """Records that were read up to the newest checkpoint."""
        shown = self.shown()
        return shown[-1]["read"] if shown else 0

    @property
    def output(self) -> bytes:
        return (self.directory / "out.ndjson").read_bytes()

    def left(self) -> list[str]:
        return [name for name in os.listdir(self.directory) if ".etl-" in name]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
