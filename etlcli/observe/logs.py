"""Log lines, on stderr or in a file.

One line an event, which is out when the call returns. The same fields in the same order in all formats: `ts` (UTC),
`level`, `event`, then `run`, `recipe` and `step` where there is one, then the event's own fields. Values come from data:
secrets are masked, and what a terminal, a CI runner or a parser of lines could obey is escaped.

What repeats is summed up: of an event of a step the first few are shown, then at most one every few seconds, which says how
many were not, and the rest is told at the end. Log lines are suppressed, records never. A log that cannot be written to
never ends a run.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from etlcli.errors import CannotCreateError, Interrupted, TimedOut

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "console", "json", "logfmt")
SAMPLE = 20
EVERY = 10.0
_RANKS = {level: rank for rank, level in enumerate(LEVELS)}
_STDERR = 2
_LONGEST = 2000
"""Characters of a text."""
_EXACT = 1 << 63


class _Repeats:
    """How often an event of a step was logged."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.seen = 0
        self.suppressed = 0
        """In all."""
        self.since = 0
        """Since the last line."""
        self.shown_at = 0.0


class Log:
    """`log("warning", "bom_dropped", path=...)` writes a line if the level is reached. Any thread may."""

    def __init__(
        self,
        level: str = "warning",
        format: str = "auto",
        *,
        path: str | None = None,
        per_step: Mapping[str, str] | None = None,
        sample: int = SAMPLE,
        every: float = EVERY,
    ) -> None:
        """`path` is a file that is appended to, instead of stderr; `per_step` has levels by the ids of steps; `sample` is
        of how many records an event and step show lines before they do so at most every `every` seconds, and 0 for never.
        Raises CannotCreateError."""
        self._rank = _RANKS[level]
        self._ranks = {step: _RANKS[own] for step, own in (per_step or {}).items()}
        self._sample = sample
        self._every = every
        self._repeats: dict[tuple[str, str | None], _Repeats] = {}
        self._about: dict[str, Any] = {}
        self._path = path
        self._fd = _STDERR if path is None else _opened(path)
        self._format = ("console" if os.isatty(self._fd) else "logfmt") if format == "auto" else format
        self._lent: Callable[[str], None] | None = None
        self._torn = path is not None and _is_torn(path)
        self._lost = 0
        self._waits = True

    @property
    def in_file(self) -> bool:
        return self._path is not None

    def about(self, run: str, recipe: str | None = None) -> None:
        """What all lines from now on are about."""
        self._about = {"run": run, "recipe": recipe}

    def lend(self, write: Callable[[str], None] | None) -> None:
        """How to write a line to the terminal while somebody else draws there; None for as ever."""
        self._lent = write

    def hurry(self) -> None:
        """From now on a line that its reader does not take at once is lost: nobody may keep a run from ending."""
        self._waits = False

    def reaches(self, level: str, step: str | None = None) -> bool:
        """Whether lines of that level are written: of a step, or of none."""
        return _RANKS[level] >= (self._rank if step is None else self._ranks.get(step, self._rank))

    def __call__(self, level: str, event: str, *, step: str | None = None, **fields: Any) -> None:
        if self.reaches(level, step) and (repeats := self._counted(level, event, step, SAMPLE)):
            self._write(level, event, {"step": step, **fields, **_unseen(repeats)})

    def record(self, level: str, event: str, step: str, describe: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """For what happens to one record: the lines that `describe` gives. It is not called for records that are only
        counted, since describing them all can cost more than the run."""
        if self.reaches(level, step) and (repeats := self._counted(level, event, step, self._sample)):
            unseen = _unseen(repeats)
            for fields in describe():
                self._write(level, event, {"step": step, **fields, **unseen})

    def regular(self, level: str, event: str, *, step: str | None = None, always: bool = False, **fields: Any) -> None:
        """For what is logged at intervals, and does not count as repeated; `always` whatever level is reached."""
        if always or self.reaches(level, step):
            self._write(level, event, {"step": step, **fields})

    def close(self) -> None:
        """Says how many lines were suppressed, and how many could not be written."""
        for (event, step), repeats in self._repeats.items():
            if repeats.suppressed:
                fields = {"of": event, "suppressed": repeats.suppressed, "total": repeats.seen}
                self._write(repeats.level, "log_lines_suppressed", {"step": step, **fields})
        self._repeats.clear()
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lost:
            lost, self._lost = self._lost, 0
            self._tell("log_lines_lost", {"path": self._path, "lost": lost})

    def _counted(self, level: str, event: str, step: str | None, sample: int) -> _Repeats | None:
        """What is known of the event, if a line is due."""
        repeats = self._repeats.get((event, step))
        if repeats is None:
            repeats = self._repeats[event, step] = _Repeats(level)
        repeats.seen += 1
        if repeats.seen < sample:
            return repeats
        at = monotonic()
        if not sample or (repeats.seen > sample and at - repeats.shown_at < self._every):
            repeats.suppressed += 1
            repeats.since += 1
            return None
        repeats.shown_at = at
        return repeats

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        line = self._line(level, event, fields)
        try:
            if self._fd < 0 or not (self._waits or _takes_more(self._fd)):
                raise OSError
            self._put(b"\n" + line if self._torn else line)
        except OSError as error:
            self._lost += 1
            if self._lost == 1 and self._path is not None:
                self._tell("log_failed", {"path": self._path, "reason": error.strerror or "closed"})

    def _put(self, line: bytes) -> None:
        """A line that cannot be written in full is ended by the next, so that every other stands alone."""
        if self._lent and self._fd == _STDERR:
            self._lent(line.decode().rstrip("\n"))
            return
        while line:
            try:
                written = os.write(self._fd, line)
            except (Interrupted, TimedOut):
                self.hurry()
                raise
            line = line[written:]
            self._torn = bool(line)

    def _tell(self, event: str, fields: dict[str, Any]) -> None:
        """About the log itself, on stderr."""
        with suppress(OSError):  # nobody can be told
            os.write(_STDERR, self._line("warning", event, fields))

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> bytes:
        given = {"ts": now(), "level": level, "event": event, **self._about, **fields}
        line = {name: _clean(value) for name, value in given.items() if value is not None}
        return _FORMATTERS[self._format](line).encode() + b"\n"


def now() -> str:
    """The time as logs and quarantines have it: UTC, to the millisecond."""
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _opened(path: str) -> int:
    """Like a quarantine, a log may hold what not everybody should read. A FIFO that nobody reads is refused."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotCreateError(
            f"cannot open the log {path}: {reason}",
            where=path,
            hint="logging.file names a file in a directory that exists and may be written; nothing was run",
        ) from error
    os.set_blocking(fd, True)
    return fd


def _takes_more(fd: int) -> bool:
    """Whether a line can be written without waiting for who reads it."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _is_torn(path: str) -> bool:
    """Whether the file ends in a line that a full disk cut short."""
    with suppress(OSError):
        if os.path.isfile(path) and os.path.getsize(path):
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() != b"\n"
    return False


def _unseen(repeats: _Repeats) -> dict[str, int]:
    """How many lines were suppressed since the last one."""
    since, repeats.since = repeats.since, 0
    return {"suppressed": since} if since else {}


def _clean(value: Any) -> Any:
    """A value that can be written in every format, with no secrets in it."""
    if isinstance(value, str):
        from etlcli.io.masking import hidden

        # A path may hold what is no text, and JSON cannot.
        text = hidden(value).encode(errors="backslashreplace").decode()
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < _EXACT else str(value)
    if isinstance(value, Mapping):
        return {_clean(str(name)): _clean(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_clean, value))
    return _clean(value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value))


def _json(value: Any) -> str:
    import msgspec

    from etlcli.io.terminal import safe_json

    return safe_json(msgspec.json.encode(value).decode())


def _logfmt(line: dict[str, Any]) -> str:
    return " ".join(f"{name}={_word(value)}" for name, value in line.items())


def _console(line: dict[str, Any]) -> str:
    """Logfmt without the names of the first three."""
    start = f"{line.pop('ts')} {line.pop('level'):7} {line.pop('event')}"
    return f"{start} {_logfmt(line)}" if line else start


_FORMATTERS: dict[str, Callable[[dict[str, Any]], str]] = {"json": _json, "logfmt": _logfmt, "console": _console}


def _word(value: Any) -> str:
    from etlcli.io.terminal import safe

    text = safe(value) if isinstance(value, str) else _json(value)
    if text and not any(char in text for char in ' ="\\\t'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
