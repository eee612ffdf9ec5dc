"""What a run says of its steps at the start, at intervals, and at the end."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from etlcli.observe.heartbeat import Heartbeat
from etlcli.observe.logs import Log
from etlcli.observe.status import RUNNING, Observer, Status, StepStatus


def status(now: float, received: int, **more: Any) -> Status:
    steps = [
        StepStatus(id="read", uses="read", kind="source", above=None, received=received + 2, sent=received,
                   rejected={"bad_json": 2}),
        StepStatus(id="check", uses="validate", kind="stage", above="read", received=received, sent=received - 4, made=1,
                   rejected={"rule": 1, "schema": 2}, discarded={"expr": 1}, absorbed={"held": 1},
                   seconds=1.23456, blocked={"input": 0.25, "output": 0.5}),
    ]  # fmt: skip
    return Status(run="r", recipe="n", path=None, pid=1, version="1", state=RUNNING, started=0.0, now=now,
                  received=received, read=10 * received, steps=steps, **more)  # fmt: skip


class Run:
    """A run that goes on by 100 records in 2 s whenever somebody looks."""

    def __init__(self, stop_after: int, **more: Any) -> None:
        self.looks = 0
        self.seen = threading.Event()
        self._stop_after = stop_after
        self._more = more

    def look(self) -> Status:
        self.looks += 1
        if self.looks == 2:
            raise RuntimeError("dictionary changed size during iteration")
        if self.looks > self._stop_after:
            self.seen.set()
        return status(2.0 * self.looks, 100 * self.looks, **self._more)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_start_progress_and_finish(tmp_path: Path) -> None:
    log = Log("debug", "json", path=str(tmp_path / "log"))
    heart: Observer = Heartbeat(log, 0.001)
    run = Run(stop_after=3, size=5000)
    heart.begin(run.look)
    heart.running()
    assert [(each["event"], each["step"], each["uses"], each["kind"]) for each in entries(tmp_path / "log")[:2]] == [
        ("step_started", "read", "read", "source"),
        ("step_started", "check", "validate", "stage"),
    ]
    assert run.seen.wait(60)
    heart.end(status(100.0, 1000))
    looks = run.looks
    log.close()
    lines = entries(tmp_path / "log")
    assert len([each for each in lines if each["event"] == "progress_missed"]) == 1
    (_, first), (_, second), *_ = [
        (each.pop("ts"), each) for each in lines if each["event"] == "run_progress" and each.pop("level")
    ]
    # The look in between failed: the rate is since the last line.
    assert first == {
        "event": "run_progress",
        "records": 300,
        "bytes": 3000,
        "of": 5000,
        "records_per_second": 50.0,
        "rejected": 5,
    }
    assert second["records"] == 400 and second["records_per_second"] == 50.0
    step = next(each for each in lines if each["event"] == "step_progress" and each["step"] == "check")
    counts = {"in": 300, "made": 1, "out": 296, "rejected": 3, "discarded": 1, "absorbed": 1}
    assert {name: step[name] for name in counts} == counts and "seconds" not in step
    read, check = [each for each in lines if each["event"] == "step_finished"]
    assert lines[-2:] == [read, check]
    assert (read["in"], read["out"], read["rejected"], read["discarded"]) == (1002, 1000, 2, 0)
    assert (check["seconds"], check["blocked"]) == (1.235, 0.75) and "made" not in read
    assert run.looks == looks and not [each for each in threading.enumerate() if each.name == "etl-heartbeat"]


def test_levels_of_steps(tmp_path: Path) -> None:
    log = Log("warning", "json", path=str(tmp_path / "log"), per_step={"check": "info"})
    heart = Heartbeat(log, 0.001)
    run = Run(stop_after=3)
    heart.begin(run.look)
    heart.running()
    assert run.seen.wait(60)
    heart.end(status(100.0, 1000))
    assert {each["step"] for each in entries(tmp_path / "log")} == {"check"}


def test_a_log_that_wants_nothing_of_it_costs_nothing(tmp_path: Path) -> None:
    log = Log("warning", "json", path=str(tmp_path / "log"))
    heart = Heartbeat(log, 0.001)
    run = Run(stop_after=0)
    heart.begin(run.look)
    heart.running()
    assert not [each for each in threading.enumerate() if each.name == "etl-heartbeat"]
    heart.end(status(100.0, 1000))
    assert run.looks == 1 and entries(tmp_path / "log") == []
