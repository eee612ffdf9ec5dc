"""A run's report, written when it is over, however it ended: as JSON for programs and as one HTML page for people.

The page needs no network and no script. Both say the same: what came in and went out of every step, how fast over time,
where time was spent and who waited for whom, what was rejected with examples, the checkpoints, and what the run ran on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from threading import Event, Lock, Thread
from typing import Any

import msgspec

from etlcli.core.effort import BUCKETS
from etlcli.errors import CannotCreateError, UsageError
from etlcli.io.files import AtomicFile
from etlcli.io.inputs import is_url
from etlcli.io.masking import masked
from etlcli.io.terminal import safe_json
from etlcli.observe.status import Look, Observer, Status, records, rejects
from etlcli.observe.timeline import Timeline

FORMATS = ("json", "html")
VERSION = 1
"""Of the JSON report. What is added to it changes nothing; what is renamed or removed makes it another."""
"""The reason that the ledger gives for what was on its way when a run failed."""
_PATIENCE = 5.0
"""Seconds for the last look to end."""
_PACKAGES = {"yaml": "pyyaml"}
"""What is imported under another name than it is installed."""

Log = Callable[..., None]


def parse_report(texts: Iterable[str], log: Log) -> Report | None:
    """The report that `--report FORMAT=PATH`, given so many times, asks for; None for none. Raises UsageError."""
    paths: dict[str, str] = {}
    for text in texts:
        form, equals, path = text.partition("=")
        if form not in FORMATS or not equals:
            guess = "json" if text.endswith(".json") else "html"
            hint = f"--report {guess}={text}" if not equals else f"the formats are {' and '.join(FORMATS)}"
            raise UsageError(f"--report {text}: expected json=PATH or html=PATH", hint=hint)
        if not path:
            raise UsageError(f"--report {text}: names no file", hint=f"--report {form}=report.{form}")
        if path == "-":
            raise UsageError(f"--report {text}: a report goes to a file", hint=f"--report {form}=report.{form}")
        if form in paths:
            raise UsageError(f"--report {form}=... was given twice", hint="a run writes one report of a format")
        paths[form] = path
    return Report(**paths, log=log) if paths else None


class Report(Observer):
    """A report that cannot be written is a warning and changes nothing for the run."""

    def __init__(self, json: str | None = None, html: str | None = None, *, log: Log) -> None:
        """The files' paths. They are published whole, and take the place of older ones."""
        self.paths = {form: path for form, path in (("json", json), ("html", html)) if path is not None}
        self._targets = {form: os.path.abspath(path) for form, path in self.paths.items()}
        self._log = log
        self._timeline = Timeline()
        self._lock = Lock()
        self._over = Event()
        self._thread: Thread | None = None

    def check(self) -> None:
        """Before the run: whether its files can be made. Raises UsageError and CannotCreateError."""
        for path in self.paths.values():
            if is_url(path):
                raise UsageError(f"cannot write to {masked(path)}", hint="write to a file, and send that")
            _check_kind(path)
            AtomicFile(path).abort()

    def begin(self, look: Look) -> None:
        self._look = look

    def running(self) -> None:
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self, last: Status) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(_PATIENCE)
        with self._lock:
            self._timeline.add(last)
        for form, path in self._targets.items():
            try:
                _write(path, self._render(form, last))
            except Exception as error:  # an observer must not raise: what the run did is done
                self._log("warning", "report_failed", path=self.paths[form], reason=str(error))

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                status = self._look()
            except Exception as error:  # the report is then made from what was seen until now
                self._log("warning", "report_sampling_failed", reason=str(error))
                return
            with self._lock:
                if not self._over.is_set():
                    self._timeline.add(status)
            self._over.wait(self._timeline.interval)

    def _render(self, form: str, last: Status) -> bytes:
        if form == "json":
            return _json(document(last, self._timeline, environment(last)))
        from etlcli.observe.page import page

        return page(last, self._timeline, environment(last)).encode()


def document(last: Status, timeline: Timeline, environment: dict[str, Any]) -> dict[str, Any]:
    """The JSON report: the names are stable, moments are RFC 3339 in UTC, times in seconds, sizes in bytes."""
    return {
        "etl_report": VERSION,
        "run": last.run,
        "recipe": last.recipe,
        "path": last.path,
        "digest": last.digest,
        "state": last.state,
        "exit_code": last.exit_code,
        "error": last.error,
        "resumed": last.resumed,
        "generation": last.generation,
        "started": _moment(last.started),
        "finished": _moment(last.now),
        "duration": _seconds(last.now - last.started),
        "records": records(last),
        "bytes": {
            "read": last.read,
            "size": last.size,
            "written": sum(step.bytes_out for step in last.steps if step.kind == "sink"),
        },
        "workers": last.workers,
        "queue": last.queue,
        "bucket_ends": BUCKETS,
        "steps": [_step(step) for step in msgspec.to_builtins(last.steps)],
        "timeline": _timeline(timeline),
        "rejects": rejects(last),
        "checkpoints": {
            "every": last.checkpoint_every,
            "taken": [
                {"at": _moment(mark.at), "records": mark.received, "seconds": _seconds(mark.seconds)}
                for mark in last.checkpoints
            ],
        },
        "environment": environment,
    }


def environment(last: Status) -> dict[str, Any]:
    """What the run ran on. Nothing in it says whose machine it was: no name, no user, no environment variable."""
    import platform

    return {
        "etl": last.version,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "libraries": _libraries(),
    }


def _libraries() -> dict[str, str]:
    """The versions of the packages that were imported, by the name that they are installed under."""
    import sys
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for module in sorted({name.partition(".")[0] for name in list(sys.modules)} - sys.stdlib_module_names):
        name = _PACKAGES.get(module, module)
        try:
            found[name.replace("_", "-")] = version(name)
        except (PackageNotFoundError, ValueError):
            continue  # a module that is no package's, or has another name than it
    found.pop("etlcli", None)
    return found


def _step(step: dict[str, Any]) -> dict[str, Any]:
    """With the ledger's names for what came in and went out."""
    names = {"received": "in", "sent": "out"}
    return {names.get(name, name): value for name, value in step.items()}


def _timeline(timeline: Timeline) -> dict[str, Any]:
    samples = timeline.samples
    return {
        "begun": _moment(timeline.begun),
        "seconds": [_seconds(sample.at - timeline.begun) for sample in samples],
        "records": [sample.records for sample in samples],
        "bytes": [sample.bytes for sample in samples],
        "queued": [sample.queued for sample in samples],
        "rejected": [sample.rejected for sample in samples],
        "steps": {step: [sample.sent.get(step, 0) for sample in samples] for step in timeline.steps()},
    }


def _seconds(value: float) -> float:
    return round(max(0.0, value), 3)


def _moment(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(value: dict[str, Any]) -> bytes:
    """A line for each of the document's members."""
    members = {name: safe_json(msgspec.json.encode(_valid(each)).decode()) for name, each in value.items()}
    return ("{" + ",\n ".join(f'"{name}": {each}' for name, each in members.items()) + "}\n").encode()


def _valid(value: Any) -> Any:
    """A path may hold what is no text, and JSON cannot."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_valid(name): _valid(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(each) for each in value]
    return value


def _check_kind(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or nothing that can be: the next step says so
    if stat.S_ISDIR(mode):
        raise CannotCreateError(f"{path} is a directory", where=path, hint="name a file in it for the report")
    if not stat.S_ISREG(mode):
        raise CannotCreateError(f"{path} is not a plain file", where=path, hint="a report takes the place of a file")


def _write(path: str, content: bytes) -> None:
    file = AtomicFile(path)
    try:
        file.write(content)
        file.commit()
    finally:
        file.abort()
