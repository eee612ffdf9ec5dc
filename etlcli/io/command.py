"""External commands: bytes in, bytes out, and no way for one to outlive or outwait its caller.

A command runs in a session of its own, so that killing its process group takes whatever it started along. It has ended
when its own process has (pidfd_open(2)), even if a child it left behind still holds the pipes; that child is killed. Its
error output is kept for the message, the last of it.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from math import inf
from threading import Lock, RLock

from etlcli.core.batch import chunk_of, count_of
from etlcli.errors import UsageError
from etlcli.io.signals import held

MAX_OUTPUT = 256 << 20
_BLOCK = 1 << 18
_TAIL = 2048
_running: set[Command] = set()
"""All whose processes may be there."""


class CommandError(Exception):
    """`code` is a reject code: command_failed or timeout."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class MisalignedError(CommandError):
    def __init__(self, name: str) -> None:
        super().__init__("command_failed", f"{name} put out more lines than it was given")


def find_command(argv: Sequence[str], directory: str) -> None:
    """Raises UsageError for a command that cannot be run at all. A path is relative to the directory it will run in."""
    path = os.path.join(directory, argv[0]) if "/" in argv[0] else argv[0]
    if shutil.which(path) is None:
        if "/" in argv[0] and os.path.exists(path):
            raise UsageError(f"{argv[0]!r} is no program that may be executed", hint="chmod +x makes a script one")
        raise UsageError(f"no command is called {argv[0]!r}", hint="name one that PATH has, or a path to it")


class Command:
    """One process of a command. Use it once with `run`, or again and again with `ask`; `kill` ends it and all it started,
    more than once if you like. `stop` may come from another thread than the one that waits for it: that finds its process
    ended, and cleans up."""

    def __init__(self, argv: Sequence[str], directory: str, timeout: float | None, name: str = "") -> None:
        """Raises CommandError when it cannot be started. `timeout` is how long `run` and `ask` may take, in seconds. `name`
        is what messages call it."""
        self._name = name or argv[0]
        self._timeout = timeout
        self._tail = b""
        self._rest = b""
        self._lock = RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = -1
        try:
            with held():  # or a process might have begun that nobody knows of
                self._start(argv, directory)
                _running.add(self)
            self._poll = select.poll()
            for stream in (self._in, self._out, self._err):
                os.set_blocking(stream.fileno(), False)
            for fd in (self._out.fileno(), self._err.fileno(), self._ended):
                self._poll.register(fd, select.POLLIN)
        except BaseException:
            self.kill()
            raise

    def _start(self, argv: Sequence[str], directory: str) -> None:
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=directory or None,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
            assert self._process.stdin and self._process.stdout and self._process.stderr
            self._in, self._out, self._err = self._process.stdin, self._process.stdout, self._process.stderr
            self._ended = os.pidfd_open(self._process.pid)
        except OSError as error:
            raise CommandError("command_failed", f"{self._name} cannot be started: {error.strerror}") from None

    def run(self, data: bytes) -> bytes:
        """Everything it puts out for `data`, until it ends. Raises CommandError when it does not end well."""
        try:
            output = self._converse(data, None)
            self._check_status()
            return output
        finally:
            self.kill()

    def ask(self, lines: Sequence[bytes]) -> list[bytes]:
        """A line of output for each line of input. Raises CommandError when it ends, or takes too long, before all are
        answered; which answer belonged to which line is then unknown. Raises MisalignedError when it has put out more
        lines than it was given, now or in an earlier answer."""
        if self._rest or self._read(self._out.fileno()):
            raise MisalignedError(self._name)
        *answers, self._rest = self._converse(chunk_of(lines), len(lines)).split(b"\n")
        if len(answers) < len(lines):
            self._check_status()
            raise CommandError("command_failed", f"{self._name} ended before it had answered")
        if len(answers) > len(lines) or self._rest:
            raise MisalignedError(self._name)
        return answers

    def finish(self) -> None:
        """Closes its input and waits for its end. Raises as `run` does, and MisalignedError."""
        if self.run(b""):
            raise MisalignedError(self._name)

    def kill(self) -> None:
        if self._process is None:
            return
        self.stop()
        with self._lock:
            self._process.wait()
        _running.discard(self)
        if self._ended >= 0:
            os.close(self._ended)
            self._ended = -1
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                if stream:
                    stream.close()

    def stop(self) -> None:
        # Until the process has been waited for its number is nobody else's.
        with self._lock, suppress(ProcessLookupError):
            if self._process and self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _converse(self, data: bytes, lines: int | None) -> bytes:
        """Writes `data` while reading, until there are so many lines, or without a number until the process has ended (its
        input is closed then)."""
        unwritten, blocks, size, found = memoryview(data), [self._rest], len(self._rest), 0
        if unwritten:
            self._poll.register(self._in.fileno(), select.POLLOUT)
        elif lines is None:
            self._in.close()
        ended = False
        deadline = inf if self._timeout is None else time.monotonic() + self._timeout
        while not ended and (lines is None or found < lines):
            left = deadline - time.monotonic()
            ready = dict(self._poll.poll(None if left == inf else max(0, left * 1000)))
            if not ready or left < 0:
                raise CommandError("timeout", f"{self._name} took longer than {self._timeout:g} s")
            if not self._in.closed and self._in.fileno() in ready:
                unwritten = self._write(unwritten, close=lines is None)
            ended = self._ended in ready
            # What it wrote before it ended is in the pipes by now.
            while block := self._read(self._out.fileno()) if ended or self._out.fileno() in ready else b"":
                blocks.append(block)
                found += count_of(b"\n", block)
                size += len(block)
                if size > MAX_OUTPUT:
                    raise CommandError("command_failed", f"{self._name} put out more than {MAX_OUTPUT >> 20} MiB")
            while block := self._read(self._err.fileno()) if ended or self._err.fileno() in ready else b"":
                self._tail = (self._tail + block)[-_TAIL:]
        return b"".join(blocks)

    def _write(self, data: memoryview, *, close: bool) -> memoryview:
        try:
            data = data[os.write(self._in.fileno(), data[:_BLOCK]) :]
        except BlockingIOError:
            return data
        except BrokenPipeError:  # it wants no more, which is its right
            data = data[:0]
            close = True
        if not data:
            self._poll.unregister(self._in.fileno())
            if close:
                self._in.close()
        return data

    def _read(self, fd: int) -> bytes:
        try:
            block = os.read(fd, _BLOCK)
        except BlockingIOError:
            return b""
        if not block:
            with suppress(KeyError):
                self._poll.unregister(fd)
        return block

    def _check_status(self) -> None:
        """Of a process that has ended."""
        self.kill()
        assert self._process
        status = self._process.returncode
        if status:
            how = f"exit {status}" if status > 0 else f"died by {_signal_name(-status)}"
            said = _last_said(self._tail.decode(errors="replace"))
            raise CommandError("command_failed", f"{self._name}: {how}{said and ': ' + said}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # only the first and the last of the real-time signals have names
        return f"signal {number}"


def _last_said(text: str) -> str:
    """The last line that is not indented: indented ones go on with what a line above them says."""
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if not line[0].isspace()), lines[-1].strip() if lines else "")


class Commands:
    """A command, in as many processes as there are threads that call it. After `stop`, which ends all that run, none
    begins."""

    def __init__(self, argv: Sequence[str], directory: str, timeout: float | None, name: str = "") -> None:
        self._make = partial(Command, argv, directory, timeout, name)
        self._running: set[Command] = set()
        self._stopped = False
        self._lock = Lock()

    def run(self, data: bytes) -> bytes:
        """As `Command.run`."""
        with self._lock:
            if self._stopped:
                raise InterruptedError
            command = self._make()
            self._running.add(command)
        try:
            return command.run(data)
        finally:
            self._running.discard(command)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        for command in list(self._running):
            command.stop()


def stop_all() -> None:
    """For a program that ends without clean-up."""
    for command in list(_running):
        command.stop()
