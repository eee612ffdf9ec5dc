"""How far a run has read its inputs, and where another goes on: one that takes its place, or the next (`incremental`).

How far is a byte offset for plain NDJSON. Any other input (compressed, CSV, a pipe, a URL) is read again from its start:
what is known of it is how many rows were read, lines of its NDJSON, and their digest, so that those which are passed over
are known to be the same. A regular file must be the one it was (`io.identity`); it may have grown, and a run that is gone
on with does not look at what was added.

An incremental run asks of each file, once it is open, which of those that were read before it is, whatever they are called
by now: files are rotated at any time, also while a run goes on or between its death and the next. It reads what was added,
in whole lines, and each file once. A file that took the name of another is a new one, and is said to be.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from etlcli.core.stage import State
from etlcli.errors import CheckpointError, InputMissingError
from etlcli.io.compression import is_compressed
from etlcli.io.identity import Identity, change, identity_of, whole_lines_end
from etlcli.io.inputs import STDIN, Input, InputStream, expand, is_url, located
from etlcli.io.masking import masked

_KEPT_RUNS = 2
"""For so many runs a file that was not found is still known: one may be renamed while a run goes on."""


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
    offset: int = 0
    line: int = 1
    rows: int = 0
    digest: str = ""
    limit: int | None = None
    """How far it is read when nothing is missing; None: to its end."""
    age: int = 0
    """Runs since it was seen."""

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
        self._opened: dict[int, _Entry] = {}
        """As they were when they were opened, with nothing read."""
        self._seen = _Files()
        """Of those that are open or were, the regular ones."""
        self._left = _Files()
        """That were read before, and that no input of this run is known to be."""
        self._at = -1
        self._incremental = False
        self._named = {self._from_recipe(located(path, base_dir)) for path in given}
        if state and "since" not in state:
            urls = {masked(path): path for path in given if is_url(path)}
            self.paths = [urls.get(path) or located(path, base_dir) for path in state["paths"]]
            self._at = state["at"]
            self._incremental = state["incremental"]
            self._entries = {int(number): _entry(values) for number, values in state["inputs"].items()}
            if self._incremental:
                begun = self._entries.pop(self._at, None)
                self._left = _Files([*self._entries.values(), *map(_entry, state["left"])])
                self._entries.clear()
                if begun:
                    self._go_on_with(begun, given)
            else:
                self._check_done()
        else:
            self.paths = expand(tuple(given), base_dir)
            if state:
                self._incremental = True
                self._left = _Files(self._still_known(state["since"]))

    @property
    def remaining(self) -> range:
        """The numbers of the inputs that are not known to be read entirely."""
        return range(max(0, self._at), len(self.paths))

    @property
    def passed_bytes(self) -> int:
        """Of the inputs that remain, how many need not be read again, as far as names tell."""
        left = {entry.path: entry for entry in self._left}
        known = (
            self._entries.get(number) or left.get(self._from_recipe(self.paths[number])) for number in self.remaining
        )
        return sum(entry.offset for entry in known if entry)

    def is_gone(self, number: int) -> bool:
        """Whether an input need not be there: a glob has found it, for an incremental run, and would not find it now."""
        path = self.paths[number]
        return self._incremental and self._from_recipe(path) not in self._named and not os.path.lexists(path)

    def start(self, number: int, stream: Input, *, of_lines: bool) -> Start | None:
        """Where to begin in an input that was opened; None if there is nothing new in it. Where it consists of lines, an
        incremental run leaves a last one without an end for the next."""
        begun, path = self._entries.get(number), self._from_recipe(self.paths[number])
        fd = stream.fd if isinstance(stream, InputStream) else -1
        if not self._keeps or fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
            self._opened[number] = _Entry(path, None)
            return begun.start if begun else Start()
        if begun:
            self._check(begun, fd)
            self._opened[number] = _Entry(path, begun.identity, limit=begun.limit)
            self._seen.add(self._opened[number])
            return begun.start
        identity = identity_of(fd)
        limit = identity.size
        if not self._incremental:
            self._opened[number] = _Entry(path, identity, limit=limit)
            return Start(limit=limit)
        if of_lines and not is_compressed(os.pread(fd, 8, 0)):
            limit = whole_lines_end(fd, limit)
        opened = _Entry(path, identity, limit=limit)
        if again := self._found(self._seen, opened, fd):
            self._log("info", "input_seen", path=path, before=again.path)
            return None
        self._opened[number] = opened
        self._seen.add(opened)
        known = self._found(self._left, opened, fd)
        for entry in self._left.like(path):
            if entry != known and entry.path == path and entry.age < _KEPT_RUNS:
                self._log("warning", "input_replaced", path=path, read_before=entry.offset or entry.rows)
        if known is None:
            return Start(limit=limit)
        if known.path != path:
            self._log("info", "input_renamed", path=path, before=known.path)
        self._left.remove(known)
        self._entries[number] = known._replace(path=path, age=0)
        return known.start._replace(limit=limit) if known.limit != limit else None

    def passed(self, place: Place, line: int) -> None:
        """A part was worked on; the next line of its input is `line`."""
        self._entries[place.input] = self._opened[place.input]._replace(
            offset=place.offset, line=line, rows=place.rows, digest=place.digest
        )
        self._at = place.input

    def check_end(self) -> None:
        """At the end of all inputs: raises CheckpointError when one that was begun has not turned up again."""
        for entry in self._left:
            if entry.limit is None:
                raise _another(entry.path, "was replaced")

    def snapshot(self) -> State:
        return {
            "paths": list(map(self._from_recipe, self.paths)),
            "at": self._at,
            "incremental": self._incremental,
            "inputs": {str(number): list(entry) for number, entry in self._entries.items()},
            "left": list(self._left),
        }

    def _from_recipe(self, path: str) -> str:
        """As it stands in a checkpoint: the same wherever the run is gone on with from, and without credentials."""
        if path == STDIN or is_url(path):
            return masked(path)
        # As text: what `..` leads to depends on links.
        base = next(filter(path.startswith, self._bases), "")
        return path.removeprefix(base)

    def _still_known(self, since: State | None) -> Iterator[_Entry]:
        """What the last run has left: what it has read, and what it has not found if that may turn up again."""
        here = set(map(self._from_recipe, self.paths))
        for entry in map(_entry, [*since["inputs"].values(), *since["left"]] if since else ()):
            left_out = entry.path not in here and os.path.exists(located(entry.path, self._base_dir))
            if left_out or entry.age < _KEPT_RUNS:
                limit = entry.offset if entry.limit is None else entry.limit  # a run that finished has missed nothing
                yield entry._replace(limit=limit, age=entry.age + (not left_out))

    def _go_on_with(self, begun: _Entry, given: Sequence[str]) -> None:
        """With the file within which an incremental run ended, or with whichever file has its name now. It was renamed
        then, and is read in its turn, or last of all."""
        if begun.identity is None or self._is_at(begun, self.paths[self._at]):
            self._entries[self._at] = begun
            return
        if begun.offset == begun.limit:
            self._left.add(begun)
            return
        self._left.add(begun._replace(limit=None))
        if not any(self._is_at(begun, path) for path in self.paths[self._at + 1 :]):
            with suppress(InputMissingError):
                for path in expand(tuple(given), self._base_dir):
                    if self._is_at(begun, path):
                        self.paths.append(path)
                        return
            raise _another(begun.path, "was replaced")

    def _check_done(self) -> None:
        """A file that was read entirely must still be what it was: else the result would be of two different inputs."""
        for number, entry in self._entries.items():
            if number < self._at and entry.identity and entry.path != STDIN:
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

    def _found(self, files: _Files, opened: _Entry, fd: int) -> _Entry | None:
        """Which of them an input that was opened is."""
        assert opened.identity
        like = files.like(opened.identity.inode, opened.path, opened.identity.head)
        return next((entry for entry in like if self._is(entry, fd, opened.path)), None)

    def _is(self, entry: _Entry, fd: int, path: str) -> bool:
        """Whether it is this file, which is open. It is by its name if it was there the last time; else if it was renamed,
        and has its inode; or if nothing else can have so much of its beginning, and its name has gone to another."""
        if entry.identity is None:
            return False
        what = change(entry.identity, fd)
        named = entry.path == path
        if named and entry.age < _KEPT_RUNS:
            if what == "cut short":
                raise _another(path, "was cut short")
            return what != "replaced"
        if what is None and entry.identity.inode == os.fstat(fd).st_ino:
            return True
        return what in (None, "changed") and entry.identity.is_telling and (named or not self._is_at(entry, entry.path))

    def _is_at(self, entry: _Entry, path: str) -> bool:
        path = located(path, self._base_dir)
        if path != STDIN and not os.path.isfile(path):  # a pipe must not be opened in vain
            return False
        with suppress(OSError):
            fd = os.dup(0) if path == STDIN else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return stat.S_ISREG(os.fstat(fd).st_mode) and self._is(entry, fd, self._from_recipe(path))
            finally:
                os.close(fd)
        return False


class _Files:
    """Entries of regular files, to be found by inode, path or head. Of an empty file nothing is known."""

    def __init__(self, entries: Iterable[_Entry] = ()) -> None:
        self._entries: dict[_Entry, None] = {}
        self._like: dict[str | int, list[_Entry]] = defaultdict(list)
        for entry in entries:
            self.add(entry)

    def __iter__(self) -> Iterator[_Entry]:
        return iter(self._entries)

    def add(self, entry: _Entry) -> None:
        if entry.identity and entry.identity.size:
            self._entries[entry] = None
            for key in (entry.identity.inode, entry.path, entry.identity.head):
                self._like[key].append(entry)

    def remove(self, entry: _Entry) -> None:
        del self._entries[entry]

    def like(self, *keys: str | int) -> Iterator[_Entry]:
        """Those that have any of these, in the order of the keys."""
        return (entry for key in keys for entry in self._like.get(key, ()) if entry in self._entries)


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
