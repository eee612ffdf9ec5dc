"""One run of a recipe at a time, for cron jobs that may take longer than the time between them.

A run holds a lock (fcntl(2), so that its children do not hold it too) on a file that is named after the recipe's path, so
that a recipe which is edited meanwhile is still the same. One with checkpoints always holds another in the checkpoint
directory, so that wherever its recipe lies and whoever runs it, the directory is its own. The kernel drops the locks when
the process ends, however it ends. Beside that directory, runs of other users, and on other machines, are not noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from contextlib import ExitStack, suppress
from math import inf

from etlcli.core.params import parse_duration
from etlcli.errors import CannotCreateError, TryLaterError
from etlcli.io.files import make_directories, make_durable
from etlcli.io.private import private_directory

_PAUSE = 0.1
LOCK = "lock"


class Overlap:
    """What a run does when another of its recipe is going on: `fail`, `skip`, `wait`, or `wait=DURATION`."""

    def __init__(self, text: str) -> None:
        """Raises ValueError."""
        self.how, equals, patience = text.partition("=")
        if self.how not in ("fail", "skip", "wait") or (equals and self.how != "wait"):
            raise ValueError(f"expected fail, skip, wait or wait=DURATION, not {text!r}")
        self.patience = parse_duration(patience) if equals else inf if self.how == "wait" else 0.0


def take_turn(path: str, overlap: Overlap, resources: ExitStack) -> bool:
    """Waits for, and holds until `resources` close, the turn of the recipe in `path`. False when another run has it and
    this one is to be skipped. Raises TryLaterError when it is to fail, or has waited long enough."""
    return _locked(_open(os.path.realpath(path)), path, overlap, resources)


def take_directory(directory: str, path: str, overlap: Overlap, resources: ExitStack) -> bool:
    """The same for the recipe's checkpoint directory, which is made if it is not there."""
    try:
        made: list[str] = []
        make_directories(directory, made, 0o700)
        fd = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        make_durable(directory, made)
    except OSError as error:
        raise CannotCreateError(
            f"cannot use the checkpoint directory {directory}: {error.strerror}", where=directory
        ) from error
    return _locked(fd, path, overlap, resources)


def _locked(fd: int, path: str, overlap: Overlap, resources: ExitStack) -> bool:
    resources.callback(os.close, fd)
    deadline = time.monotonic() + overlap.patience
    while True:
        with suppress(BlockingIOError, PermissionError):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            break
        time.sleep(_PAUSE)
    if overlap.how == "skip":
        return False
    waited = f", and did not end within {overlap.patience:g} s" if overlap.patience else ""
    raise TryLaterError(
        f"another run of {path} is going on{waited}",
        where=path,
        hint="run it again later; --on-overlap wait waits for it",
    )


def _open(path: str) -> int:
    name = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
    try:
        private = private_directory()
        if private is None:
            raise PermissionError("the private directory is open to others, or belongs to somebody else")
        os.makedirs(f"{private}/locks", mode=0o700, exist_ok=True)
        return os.open(f"{private}/locks/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotCreateError(
            f"cannot make a lock for {path}: {error.strerror or error}",
            hint="set XDG_RUNTIME_DIR to a directory of yours",
        ) from error
