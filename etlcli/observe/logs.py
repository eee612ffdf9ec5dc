"""Log lines on stderr.

One line an event, with fixed field names in all formats: `ts` (UTC), `level`, `event`, then the event's own fields. Values
come from data, so on a console and in logfmt everything a terminal could obey is escaped; JSON escapes by itself.

What happens to single records is shown for the first SHOWN of a step, then only counted, and summed up at the end: log
lines are suppressed, records never.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "console", "json", "logfmt")
SHOWN = 20


class Log:
    """`log("warning", "bom_dropped", path=...)` writes a line if the level is reached."""

    def __init__(self, level: str = "warning", format: str = "auto") -> None:
        self.level = level
        self._format = ("console" if sys.stderr and sys.stderr.isatty() else "logfmt") if format == "auto" else format
        self._seen: Counter[tuple[str, str]] = Counter()

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        if self._reached(level):
            self._write(level, event, fields)

    def record(self, level: str, event: str, step: str, describe: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """For what happens to one record: the lines that `describe` gives, for the first SHOWN records a step. It is not
        called for the others, since describing them all can cost more than the run."""
        if self._reached(level):
            self._seen[event, step] += 1
            if self._seen[event, step] <= SHOWN:
                for fields in describe():
                    self._write(level, event, {"step": step, **fields})

    def close(self) -> None:
        """Says of how many records the lines were suppressed."""
        for (event, step), seen in self._seen.items():
            if seen > SHOWN:
                fields = {"of": event, "step": step, "suppressed": seen - SHOWN, "total": seen}
                self._write("warning", "log_lines_suppressed", fields)
        self._seen.clear()

    def _reached(self, level: str) -> bool:
        return LEVELS.index(level) >= LEVELS.index(self.level)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        line = _console(level, event, fields) if self._format == "console" else self._timed(level, event, fields)
        with suppress(OSError):  # nobody can be told
            os.write(2, line.encode(errors="backslashreplace") + b"\n")

    def _timed(self, level: str, event: str, fields: dict[str, Any]) -> str:
        line = {"ts": now(), "level": level, "event": event, **fields}
        if self._format == "json":
            import msgspec

            from etlcli.io.terminal import safe_json

            # A path may hold what is no text, and JSON cannot.
            texts = {
                name: value.encode(errors="backslashreplace").decode()
                for name, value in line.items()
                if isinstance(value, str)
            }
            return safe_json(msgspec.json.encode({**line, **texts}).decode())
        return " ".join(f"{name}={_logfmt(value)}" for name, value in line.items() if value is not None)


def now() -> str:
    """The time as logs and quarantines have it: UTC, to the millisecond."""
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _console(level: str, event: str, fields: dict[str, Any]) -> str:
    place = ":".join(str(fields[name]) for name in ("path", "line") if fields.get(name) is not None)
    rest = {
        name: value for name, value in fields.items() if name not in ("path", "line", "offset") and value is not None
    }
    parts = [f"etl: {level}:", event.replace("_", " "), *([_safe(place)] if place else [])]
    return " ".join([*parts, *(f"{name}={_logfmt(value)}" for name, value in rest.items())])


def _logfmt(value: Any) -> str:
    text = _safe(str(value))
    if text and not any(char in text for char in ' ="\\'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _safe(text: str) -> str:
    from etlcli.io.terminal import safe

    return safe(text)
