"""The door of a run to the other processes of its user: a Unix socket in `runs/` of the private directory.

A client sends one line of JSON and gets lines back. `{"ask":"status"}` is answered with a `Status`; `{"ask":"tap", ...}`
with a header line, and then frames for as long as the client stays: a line `{"lines":n,"dropped":m}` and n lines, which
are records as they pass. A tap never holds the run up: what its client does not take in time is dropped, and counted.

Only processes of the same user are heard (SO_PEERCRED). A socket whose run is dead is removed by whoever finds it.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import BoundedSemaphore, Condition, Thread
from typing import Any, NamedTuple, Protocol

import msgspec

from etlcli.core.batch import Batch
from etlcli.errors import InputMissingError, ServiceUnreachableError, UsageError, nearest
from etlcli.io.private import private_directories, private_directory
from etlcli.observe.status import Look, Observer, Status

_RUNS = "runs"
_NAME = re.compile(r"\d+-[0-9a-f]+\.sock")
_LONGEST = 107
"""Bytes of a socket's path."""
_MAX_REQUEST = 4096
_CLIENTS = 16
_PATIENCE = 5.0
_HELD = 4 << 20
"""Bytes that may wait for the client of a tap."""


class Tap:
    """Takes batches in passing, for somebody who may be too slow."""

    def __init__(self) -> None:
        self._waiting: deque[Batch] = deque()
        self._size = 0
        self._dropped = 0
        self._over = False
        self._changed = Condition()

    def put(self, batch: Batch) -> None:
        """Never waits for the client."""
        with self._changed:
            if self._size > _HELD:
                self._dropped += batch.count
                return
            self._waiting.append(batch.twin())
            self._size += batch.size
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()

    def frames(self) -> Iterator[bytes]:
        """Until it is closed; an empty frame now and then, so that it shows when the client has gone."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over, 1.0)
                batch = self._waiting.popleft() if self._waiting else None
                dropped, self._dropped = self._dropped, 0
                self._size -= batch.size if batch else 0
                over = self._over
            count = batch.count if batch else 0
            yield msgspec.json.encode({"lines": count, "dropped": dropped}) + b"\n" + (batch.chunk if batch else b"")
            if over and batch is None:
                return


class Tappable(Protocol):
    """What a run lets be tapped."""

    def tap(self, step: str, side: str, tap: Tap) -> Callable[[], None]:
        """Puts what passes there into the tap until what is returned is called. Raises UsageError when there is no such
        step."""


class Control(Observer):
    """An observer that answers."""

    def __init__(self, run: Tappable, log: Callable[..., None]) -> None:
        self._run = run
        self._log = log
        self._path = ""
        self._slots = BoundedSemaphore(_CLIENTS)
        self._taps: set[Tap] = set()

    def begin(self, look: Look) -> None:
        self._look = look
        try:
            self._listen(look())
        except OSError as error:
            self._log(
                "warning", "control_failed", reason=error.strerror or str(error), hint="etl ps will not see the run"
            )
            return
        Thread(target=self._serve, daemon=True).start()

    def end(self, last: Status) -> None:
        if not self._path:
            return
        with suppress(OSError):
            os.unlink(self._path)
        self._listening.close()
        for tap in list(self._taps):
            tap.close()

    def _listen(self, status: Status) -> None:
        directory = private_directory()
        if directory is None:
            raise OSError(0, "the private directory is not private")
        os.makedirs(os.path.join(directory, _RUNS), 0o700, exist_ok=True)
        path = os.path.join(directory, _RUNS, f"{status.pid}-{os.urandom(4).hex()}.sock")
        if len(os.fsencode(path)) > _LONGEST:
            raise OSError(0, f"{directory} has too long a name for a socket")
        self._listening = socket.socket(socket.AF_UNIX)
        try:
            before = os.umask(0o077)
            try:
                self._listening.bind(path)
            finally:
                os.umask(before)
            self._listening.listen()
        except OSError:
            self._listening.close()
            raise
        self._path = path

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            if _user_of(client) != os.geteuid() or not self._slots.acquire(blocking=False):
                client.close()
                continue
            Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):
                client.settimeout(_PATIENCE)
                try:
                    request = msgspec.json.decode(_line(client), type=dict[str, str])
                    self._reply(client, request)
                except (msgspec.MsgspecError, KeyError):
                    client.sendall(_error("not a request that this etl understands"))
                except UsageError as error:
                    client.sendall(_error(error.message, error.hint))
        finally:
            self._slots.release()

    def _reply(self, client: socket.socket, request: dict[str, str]) -> None:
        if request["ask"] == "status":
            client.sendall(msgspec.json.encode(self._look()) + b"\n")
            return
        if request["ask"] != "tap":
            raise KeyError
        tap = Tap()
        forget = self._run.tap(request["step"], request["side"], tap)
        self._taps.add(tap)
        try:
            client.sendall(b'{"tap":1}\n')
            for frame in tap.frames():
                client.sendall(frame)
        finally:
            forget()
            self._taps.discard(tap)


def _error(message: str, hint: str = "") -> bytes:
    return msgspec.json.encode({"error": message, "hint": hint}) + b"\n"


def _user_of(client: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def _line(client: socket.socket) -> bytes:
    """The request. Raises OSError when it is too long, or does not come."""
    line = b""
    while not line.endswith(b"\n"):
        block = client.recv(_MAX_REQUEST)
        if not block or len(line) > _MAX_REQUEST:
            raise OSError
        line += block
    return line


# -- the other side -------------------------------------------------------------------------------------------------------


class Live(NamedTuple):
    """A run that is going on."""

    path: str
    """Of its socket."""
    status: Status


def live_runs() -> list[Live]:
    """All runs of this user, the oldest first. Sockets whose run is dead are removed."""
    found = []
    for directory in private_directories():
        runs = os.path.join(directory, _RUNS)
        for name in os.listdir(runs) if os.path.isdir(runs) else ():
            if not _NAME.fullmatch(name):
                continue
            path = os.path.join(runs, name)
            try:
                found.append(Live(path, status_of(path)))
            except ServiceUnreachableError:
                continue
    return sorted(found, key=lambda live: live.status.started)


def find_run(text: str, runs: Sequence[Live]) -> Live:
    """The run that is meant: by its id or the beginning of it, its process number, or the name of its recipe. Raises
    InputMissingError when there is none, UsageError when there are several."""
    found = [
        live
        for live in runs
        if text in (str(live.status.pid), live.status.recipe) or (len(text) >= 4 and live.status.run.startswith(text))
    ]
    if not found:
        names = [live.status.recipe for live in runs]
        raise InputMissingError(
            f"no run of {text!r} is going on", hint=nearest(text, names) if names else "etl ps shows those that are"
        )
    if len(found) > 1:
        pids = ", ".join(str(live.status.pid) for live in found)
        raise UsageError(f"{len(found)} runs of {text!r} are going on", hint=f"name one by its process: {pids}")
    return found[0]


def status_of(path: str) -> Status:
    """Raises ServiceUnreachableError when nobody answers."""
    with _asked(path, {"ask": "status"}) as stream:
        try:
            return msgspec.json.decode(stream.readline(), type=Status)
        except (msgspec.MsgspecError, OSError) as error:
            raise ServiceUnreachableError(f"{path} does not answer as a run does: {error}") from None


def tapped(path: str, step: str, side: str) -> Iterator[tuple[bytes, int]]:
    """Chunks of records as they pass, each with how many were dropped before; until the run ends."""
    with _asked(path, {"ask": "tap", "step": step, "side": side}) as stream:
        header = msgspec.json.decode(stream.readline() or b"{}", type=dict[str, Any])
        if "error" in header:
            raise UsageError(header["error"], hint=header["hint"])
        while line := stream.readline():
            frame = msgspec.json.decode(line, type=dict[str, int])
            yield b"".join(stream.readline() for _ in range(frame["lines"])), frame["dropped"]


def _asked(path: str, request: dict[str, str]) -> Any:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(_PATIENCE)
    try:
        client.connect(path)
        client.sendall(msgspec.json.encode(request) + b"\n")
    except (ConnectionRefusedError, FileNotFoundError):
        with suppress(OSError):
            os.unlink(path)
        raise ServiceUnreachableError(f"the run of {path} is over") from None
    except OSError as error:
        raise ServiceUnreachableError(f"{path}: {error.strerror or error}") from error
    try:
        return client.makefile("rb")
    finally:
        client.close()
