"""How far a run has read its inputs, and where another goes on: one that takes its place, or the next (`incremental`).

How far is a byte offset for plain NDJSON. Any other input (compressed, CSV, a pipe, a URL) is read again from its start:
what is known of it is how many rows were read, lines of its NDJSON, and their digest, so that those which are passed over
are known to be the same. A regular file must be the one it was (`io.identity`); it may have grown, and a run that is gone
on with does not look at what was added.

An incremental run finds a file that was read before under its old name, or by its content under another; it reads what was
added, in whole lines. A file that took the name of another is a new one, and is said to be.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

from etlcli.core.stage import State
from etlcli.errors import CheckpointError
from etlcli.io.compression import is_compressed
from etlcli.io.identity import Identity, change, identity_of, whole_lines_end
from etlcli.io.inputs import STDIN, Input, InputStream, expand, is_url, located
from etlcli.io.masking import masked


class Place(NamedTuple):
    """How far an input was read at the end of a part of it."""

    input: int
    """Its number."""
    offset: int = 0
    rows: int = 0
    digest: str = ""


class Start(NamedTuple):
    """Where to begin in an input, and where to end (None: at its end)."""

    offset: int = 0
    line: int = 1
    rows: int = 0
    digest: str = ""
    limit: int | None = None


class _Entry(NamedTuple):
    """What is known of an input that was read, or begun."""

    path: str
    identity: Identity | None
    offset: int
    line: int
    rows: int
    digest: str
    limit: int | None

    @property
    def start(self) -> Start:
        return Start(self.offset, self.line, self.rows, self.digest, self.limit)


class Progress:
    """`state` is what `snapshot` gave in a run that this one takes the place of, or {"since": ...} with that of the last
    run that finished, or None. Without `keeps` nobody will ask for a snapshot. Raises CheckpointError when an input is not
    what it was."""

    def __init__(
        self, given: Sequence[str], base_dir: str, state: State | None, log: Callable[..., None], *, keeps: bool
    ) -> None:
        """`given` are paths, globs and URLs."""
        self._log = log
        self._base_dir = base_dir
        # Where nobody asks for a snapshot names do not matter, and the working directory may be gone.
        bases = (base_dir, os.path.abspath(base_dir)) if keeps else ()
        self._bases = [os.path.join(base, "") for base in bases if base]
        """What a path below the recipe's directory may begin with."""
        self._keeps = keeps
        self._entries: dict[int, _Entry] = {}
        self._opened: dict[int, tuple[str, Identity | None, int | None]] = {}
        self._at = -1
        self._incremental = False
        self._left: list[_Entry] = []
        """Of inputs that are none of this run."""
        if state and "since" not in state:
            urls = {masked(path): path for path in given if is_url(path)}
            self.paths = [urls.get(path) or located(path, base_dir) for path in state["paths"]]
            self._at = state["at"]
            self._incremental = state["incremental"]
            self._entries = {int(number): _entry(values) for number, values in state["inputs"].items()}
            self._left = list(map(_entry, state["left"]))
            self._check_done()
            if self._incremental:  # what was not reached yet may have been rotated since
                ahead = range(self._at + 1, len(self.paths))
                known = [self._entries.pop(number) for number in ahead if number in self._entries]
                self._left += self._match(known, ahead)
        else:
            self.paths = expand(tuple(given), base_dir)
            if state:
                self._incremental = True
                known = [] if state["since"] is None else _entries_of(state["since"])
                here = set(map(self._from_recipe, self.paths))
                self._left = [
                    entry
                    for entry in self._match(known, range(len(self.paths)))
                    if entry.path not in here and os.path.exists(located(entry.path, base_dir))
                ]

    @property
    def remaining(self) -> range:
        """The numbers of the inputs that are not known to be read entirely."""
        return range(max(0, self._at), len(self.paths))

    @property
    def passed_bytes(self) -> int:
        """Of the inputs that remain, how many need not be read again."""
        return sum(entry.offset for number, entry in self._entries.items() if number in self.remaining)

    def start(self, number: int, stream: Input, *, of_lines: bool) -> Start | None:
        """Where to begin in an input that was opened; None if there is nothing new in it. Where it consists of lines, an
        incremental run leaves a last one without an end for the next."""
        entry, path = self._entries.get(number), self._from_recipe(self.paths[number])
        fd = stream.fd if isinstance(stream, InputStream) else -1
        if not self._keeps or fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
            self._opened[number] = path, None, None
            return entry.start if entry and number == self._at else Start()
        if entry and number == self._at:
            self._check(entry, fd)
            self._opened[number] = path, entry.identity, entry.limit
            return entry.start
        identity = identity_of(fd)
        limit = identity.size
        if self._incremental and of_lines and not is_compressed(os.pread(fd, 8, 0)):
            limit = whole_lines_end(fd, limit)
        if entry and entry.identity and change(entry.identity, fd) == "replaced":  # since it was matched
            self._say_replaced(entry, path)
            self._left.append(self._entries.pop(number))
            entry = None
        self._opened[number] = path, identity, limit
        if entry is None:
            return Start(limit=limit)
        return entry.start._replace(limit=limit) if entry.limit != limit else None

    def passed(self, place: Place, line: int) -> None:
        """A part was worked on; the next line of its input is `line`."""
        path, identity, limit = self._opened[place.input]
        self._entries[place.input] = _Entry(path, identity, place.offset, line, place.rows, place.digest, limit)
        self._at = place.input

    def snapshot(self) -> State:
        return {
            "paths": list(map(self._from_recipe, self.paths)),
            "at": self._at,
            "incremental": self._incremental,
            "inputs": {str(number): list(entry) for number, entry in self._entries.items()},
            "left": self._left,
        }

    def _from_recipe(self, path: str) -> str:
        """As it stands in a checkpoint: the same wherever the run is gone on with from, and without credentials."""
        if path == STDIN or is_url(path):
            return masked(path)
        # As text: what `..` leads to depends on links.
        base = next(filter(path.startswith, self._bases), "")
        return path.removeprefix(base)

    def _check_done(self) -> None:
        """A file that was read entirely must still be what it was: else the result would be of two different inputs."""
        for number, entry in self._entries.items():
            if number < self._at and entry.identity and entry.path != STDIN and not self._incremental:
                try:
                    fd = os.open(located(entry.path, self._base_dir), os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise _another(entry.path, f"cannot be opened ({error.strerror})") from None
                try:
                    self._check(entry, fd)
                finally:
                    os.close(fd)

    def _check(self, entry: _Entry, fd: int) -> None:
        if entry.identity and (what := change(entry.identity, fd)):
            raise _another(entry.path, f"was {what}")

    def _match(self, known: Sequence[_Entry], numbers: range) -> list[_Entry]:
        """Finds the files of an earlier run among those of this one that have these numbers. What was not found."""
        by_path: dict[str, list[_Entry]] = {}
        for entry in known:
            by_path.setdefault(entry.path, []).append(entry)
        unmatched = []
        for number in numbers:
            path = self.paths[number]
            named = by_path.get(self._from_recipe(path), [])
            same = next((entry for entry in named if self._is_same(entry, path)), None)
            if same:
                self._entries[number] = same
                named.remove(same)
            else:
                unmatched.append((number, path, named[:1]))
        for number, path, replaced in unmatched:
            others = chain.from_iterable(by_path.values())
            renamed = next((other for other in others if self._is_same(other, path)), None)
            if renamed:
                self._log("info", "input_renamed", path=path, before=renamed.path)
                self._entries[number] = renamed._replace(path=self._from_recipe(path))
                by_path[renamed.path].remove(renamed)
            for entry in replaced:
                self._say_replaced(entry, path)
        return list(chain.from_iterable(by_path.values()))

    def _say_replaced(self, entry: _Entry, path: str) -> None:
        self._log("warning", "input_replaced", path=masked(path), read_before=entry.offset or entry.rows)

    def _is_same(self, entry: _Entry, path: str) -> bool:
        if entry.identity is None or not entry.identity.size:
            return entry.path == self._from_recipe(path)
        with suppress(OSError):
            fd = 0 if path == STDIN else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                what = change(entry.identity, fd)
                if entry.path != self._from_recipe(path):
                    alike = entry.identity.is_telling or os.fstat(fd).st_ino == entry.identity.inode
                    return what in (None, "changed") and alike
                if what == "cut short":
                    raise _another(path, "was cut short")
                return what != "replaced"
            finally:
                if fd:
                    os.close(fd)
        return False


def _entries_of(state: State) -> list[_Entry]:
    return [_entry(values) for values in (*state["inputs"].values(), *state["left"])]


def _entry(values: Sequence[Any]) -> _Entry:
    path, identity, *rest = values
    return _Entry(path, Identity(*identity) if identity else None, *rest)


def _another(path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what} since it was read",
        where=path,
        hint="the result would be of two different inputs; --fresh begins again: from the start, or of an incremental run "
        "where the last finished one was",
    )
