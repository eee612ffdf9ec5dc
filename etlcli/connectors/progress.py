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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from etlcli.connectors.known import Entry, KnownFiles
from etlcli.core.stage import State
from etlcli.errors import CheckpointError, InputMissingError
from etlcli.io.compression import is_compressed
from etlcli.io.identity import Identity, change, identity_of, whole_lines_end
from etlcli.io.inputs import STDIN, Input, InputStream, expand, is_url, located
from etlcli.io.masking import masked

BEGIN_AGAIN = (
    "--fresh begins again from the start; of an incremental run, where the last one that finished was, and only etl "
    "checkpoint reset from the start"
)


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
        self._given = given
        self._entries: dict[int, Entry] = {}
        self._opened: dict[int, Entry] = {}
        """As they were when they were opened, with nothing read."""
        self._seen = KnownFiles(base_dir)
        """The files that an incremental run has opened."""
        self._left = KnownFiles(base_dir)
        """Those that were read before, as long as no input is known to be one of them."""
        self._at = -1
        self.is_incremental = False
        if state and "since" not in state:
            urls = {masked(path): path for path in given if is_url(path)}
            self.paths = [urls.get(path) or located(path, base_dir) for path in state["paths"]]
            self._at = state["at"]
            self.is_incremental = state["incremental"]
            for key, values in state["inputs"].items():
                number, entry = int(key), _entry(values)
                # Checkpoints of earlier versions do not tell it. What a run has left behind was read to its end.
                begun = entry.begun if len(values) == len(entry) else number == self._at
                self._entries[number] = entry._replace(begun=begun and number >= self._at)
            if self.is_incremental:
                self._left = KnownFiles(base_dir, [*self._entries.values(), *map(_entry, state["left"])])
                at = self._entries.get(self._at)
                self._entries = {self._at: at} if at and not at.identity else {}
            self._check_done()
        else:
            self.paths = expand(tuple(given), base_dir)
            if state:
                self.is_incremental = True
                before = KnownFiles(base_dir, _entries_of(state["since"]))
                self._left = before.older(list(map(self._from_recipe, self.paths)))

    @property
    def remaining(self) -> range:
        """The numbers of the inputs that are not known to be read entirely."""
        return range(max(0, self._at), len(self.paths))

    def offset(self, number: int) -> int:
        """How many bytes of an input that remains need not be read again, as far as its name tells."""
        entry = self._entries.get(number) or next(iter(self._left.named(self._from_recipe(self.paths[number]))), None)
        return entry.offset if entry else 0

    def numbers(self) -> Iterator[int]:
        """Of the inputs that remain, each in its turn; last the file within which an incremental run has ended, if it has
        got a name by then that is none of them. Raises CheckpointError when it is nowhere."""
        yield from self.remaining
        while unfinished := next((entry for entry in self._left if entry.is_unfinished), None):
            self.paths.append(self._whereabouts(unfinished))
            yield len(self.paths) - 1
            if unfinished in self._left:
                raise _gone(unfinished)

    def may_be_gone(self, number: int) -> bool:
        """Whether an input is not there and need not be: a glob has found it, for an incremental run."""
        path, named = self.paths[number], (located(path, self._base_dir) for path in self._given)
        is_named = self._from_recipe(path) in map(self._from_recipe, named)
        return self.is_incremental and not is_named and not os.path.lexists(path)

    def start(self, number: int, stream: Input, *, of_lines: bool) -> Start | None:
        """Where to begin in an input that was opened; None if there is nothing new in it. Where it consists of lines, an
        incremental run leaves a last one without an end for the next."""
        path, known = self._from_recipe(self.paths[number]), self._entries.get(number)
        fd = stream.fd if isinstance(stream, InputStream) else -1
        if not self._keeps or fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
            self._opened[number] = Entry(path, None)
            return _start(known) if known else Start()
        if self.is_incremental:
            return self._start_incremental(number, path, fd, of_lines=of_lines)
        if known:
            self._check(known, fd)
        identity = (known and known.identity) or identity_of(fd)
        limit = known.limit if known else identity.size
        self._opened[number] = Entry(path, identity, limit=limit)
        return _start(known) if known else Start(limit=limit)

    def _start_incremental(self, number: int, path: str, fd: int, *, of_lines: bool) -> Start | None:
        identity = identity_of(fd)
        if self._seen.find(path, identity, fd):
            return None
        known = self._known(path, identity, fd) or self._entries.get(number)
        if known and known.begun:
            limit = known.limit
        elif of_lines and not is_compressed(os.pread(fd, 8, 0)):
            limit = whole_lines_end(fd, identity.size)
            before = known.identity.size if known and known.identity else 0
            if limit < identity.size and (not limit or identity.size == before):  # else somebody is at it
                self._log("warning", "record_unfinished", path=path, offset=limit)
        else:
            limit = identity.size
        self._opened[number] = Entry(path, identity, limit=limit)
        self._seen.add(self._opened[number])
        if known is None:
            return Start(limit=limit)
        self._entries[number] = known._replace(path=path, identity=identity, age=0)
        return _start(known)._replace(limit=limit) if known.begun or known.limit != limit else None

    def _known(self, path: str, identity: Identity, fd: int) -> Entry | None:
        """What is known of a file from before, if anything is."""
        known = self._left.find(path, identity, fd)
        if known:
            self._left.remove(known)
            if known.path != path:
                self._log("info", "input_renamed", path=path, before=known.path)
            elif known.begun:
                self._check(known, fd)
        for entry in self._left.named(path):
            assert entry.identity
            if known is None and change(entry.identity, fd) == "cut short":
                raise CheckpointError(
                    f"{path} is shorter than it was when it was read",
                    where=path,
                    hint="bring back what it was; or give it another name, by which it is read from its start",
                )
            if known is None:
                self._log("warning", "input_replaced", path=path, read_before=entry.offset or entry.rows)
            if entry.is_unfinished:
                self._whereabouts(entry)
        return known

    def _whereabouts(self, entry: Entry) -> str:
        """The path of a file that was begun. Raises CheckpointError when it has none."""
        with suppress(InputMissingError):
            for path in expand(tuple(self._given), self._base_dir):
                if self._left.is_at(entry, self._from_recipe(path)):
                    return path
        raise _gone(entry)

    def passed(self, place: Place, line: int) -> None:
        """A part was worked on; the next line of its input is `line`."""
        self._entries[place.input] = self._opened[place.input]._replace(
            offset=place.offset, line=line, rows=place.rows, digest=place.digest, begun=True
        )
        self._at = place.input

    def snapshot(self) -> State:
        return {
            "paths": list(map(self._from_recipe, self.paths)),
            "at": self._at,
            "incremental": self.is_incremental,
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

    def _check_done(self) -> None:
        """A file that was read entirely must still be what it was: else the result would be of two different inputs."""
        for number, entry in self._entries.items():
            if number < self._at and entry.identity and entry.path != STDIN:
                try:
                    fd = os.open(located(entry.path, self._base_dir), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                except OSError as error:
                    raise _another(entry.path, f"cannot be opened ({error.strerror})") from None
                try:
                    self._check(entry, fd)
                finally:
                    os.close(fd)

    def _check(self, entry: Entry, fd: int) -> None:
        if entry.identity and (what := change(entry.identity, fd)):
            raise _another(entry.path, f"was {what}")


def _start(entry: Entry) -> Start:
    return Start(entry.offset, entry.line, entry.rows, entry.digest, entry.limit)


def _entries_of(since: State | None) -> Iterator[Entry]:
    """Of a run that has finished."""
    for values in (*since["inputs"].values(), *since["left"]) if since else ():
        yield _entry(values)._replace(begun=False)


def _entry(values: Sequence[Any]) -> Entry:
    path, identity, *rest = values
    return Entry(path, Identity(*identity) if identity else None, *rest)


def _another(path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what} since it was read",
        where=path,
        hint=f"the result would be of two different inputs; {BEGIN_AGAIN}",
    )


def _gone(entry: Entry) -> CheckpointError:
    return CheckpointError(
        f"{entry.path}, which the run was within when it ended, is no longer there, by no name",
        where=entry.path,
        hint=f"bring it back; or {BEGIN_AGAIN}",
    )
