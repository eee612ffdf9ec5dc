"""The process that shows a run's metrics, so that no answer waits for the run's work, and the run for no answer.

It is a fork, made before the run has threads, files or records. A thread of the run tells it its `Status` now and then, one
line of JSON each, and what Prometheus gets is made from the latest: at most a second old, or as old as the one operation,
such as sorting many records, that lets no other thread of the run have its turn. What it has to say to the log comes back
as lines, too. When the run is dead, the exporter ends without another word.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread, Timer
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from etlcli.io.signals import held
from etlcli.observe.metrics import MetricsSpec
from etlcli.observe.periodic import Periodic
from etlcli.observe.status import FAILED, STARTING, SUCCEEDED, Look, Observer, Status

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from etlcli.observe.doors import Door

Log = Callable[..., None]
_FRESH = 1.0
"""Seconds between two looks at the run."""
_LAST_WORD = b"null\n"
"""Of either side. Whose socket closes without it is dead."""
_PATIENCE = 2.0
"""Seconds beyond its time-out that a door may need to close."""


class Metrics(Observer):
    """Nothing that goes wrong here fails a run."""

    waits = True

    def __init__(self, spec: MetricsSpec, base_dir: str, log: Log, shown: str | None) -> None:
        """`shown` is the file in which a run that may be gone on with remembers what it has shown."""
        self._spec = spec
        self._base_dir = base_dir
        self._shown = shown
        self._log = log
        self._exporter: _Exporter | None = None
        self._telling: Periodic | None = None

    def begin(self, look: Look) -> None:
        self._exporter = self._started(look())
        if exporter := self._exporter:
            try:
                self._telling = Periodic(min(_FRESH, self._spec.every), lambda: exporter.tell(look()))
            except RuntimeError as error:  # no room for a thread
                _say_failed(self._log, str(error))

    def end(self, last: Status) -> None:
        patience = self._spec.timeout + _PATIENCE
        if self._exporter and not self._exporter.end(last, self._telling, patience):
            # It was dead. How the run ended is what alerts look at, so another one shows that.
            self._exporter = self._started(last)
            if self._exporter:
                self._exporter.end(last, None, patience)

    def _started(self, status: Status) -> _Exporter | None:
        try:
            return _Exporter(self._spec, self._base_dir, self._shown, status, self._log)
        except (OSError, RuntimeError) as error:
            _say_failed(self._log, getattr(error, "strerror", None) or str(error))
            return None


class _Exporter:
    """The process, as the run sees it. Raises OSError or RuntimeError when there is no room for it."""

    def __init__(self, spec: MetricsSpec, base_dir: str, shown: str | None, first: Status, log: Log) -> None:
        self._log = log
        self._has_said_last = False
        self._socket, theirs = socket.socketpair()
        with theirs, held():  # or the child would answer a signal as if it were the run
            try:
                self._pid = os.fork()
            except OSError:
                self._socket.close()
                raise
            if not self._pid:
                self._socket.close()
                _live(theirs, spec, base_dir, shown, first)
        os.register_at_fork(after_in_child=self._let_go)
        self._listening = Thread(target=self._listen, name="etl-metrics", daemon=True)
        try:
            self._listening.start()
        except RuntimeError:
            self._socket.close()
            self._wait()
            raise

    @property
    def is_dead(self) -> bool:
        return not self._listening.is_alive()

    def tell(self, status: Status) -> None:
        with suppress(OSError):  # it is dead, which the thread that listens finds out
            self._socket.sendall(msgspec.json.encode(status) + b"\n")

    def end(self, last: Status, telling: Periodic | None, patience: float) -> bool:
        """Tells it the last, after what `telling` tells, and returns when it has ended; after `patience` it is killed.
        False if it died before it had shown that."""
        limit = Timer(patience, self._kill)
        limit.daemon = True
        limit.start()
        if telling:
            telling.stop()
        self.tell(last)
        with suppress(OSError):
            self._socket.sendall(_LAST_WORD)
        self._listening.join(patience + _PATIENCE)  # longer only where the log takes no line
        limit.cancel()
        self._socket.close()
        return self._has_said_last

    def _kill(self) -> None:
        if not self.is_dead:
            _say_failed(self._log, "the process that shows them does not go on")
            self._has_said_last = True
            os.kill(self._pid, signal.SIGKILL)

    def _let_go(self) -> None:
        """In a worker, which would keep the exporter alive."""
        with suppress(OSError):
            os.close(self._socket.fileno())

    def _listen(self) -> None:
        with self._socket.makefile("rb") as said, suppress(OSError):
            for line in said:
                if line == _LAST_WORD:
                    self._has_said_last = True
                    break
                level, event, fields = msgspec.json.decode(line)
                self._log(level, event, **fields)
        how = self._wait()
        if not self._has_said_last:
            _say_failed(self._log, f"the process that shows them was ended{how}")

    def _wait(self) -> str:
        """Until it has ended. What by, where that is known."""
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:  # who started this program has told it to forget its children
            return ""
        return f" by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else ""


def _say_failed(log: Log, reason: str) -> None:
    log("warning", "metrics_failed", reason=reason, hint="the run goes on without them")


def _live(run: socket.socket, spec: MetricsSpec, base_dir: str, shown: str | None, first: Status) -> NoReturn:
    """The life of the exporter. What stops a run is for the run to decide about, which then has a last word."""

    def say(level: str, event: str, **fields: Any) -> None:
        with suppress(OSError):
            run.sendall(msgspec.json.encode((level, event, fields)) + b"\n")

    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        devnull = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(devnull, standard)
        _show(run, spec, base_dir, shown, first, say)
    except Exception as error:
        _say_failed(say, str(error) or type(error).__name__)
    finally:
        with suppress(OSError):
            run.sendall(_LAST_WORD)
        os._exit(0)


def _show(run: socket.socket, spec: MetricsSpec, base_dir: str, shown: str | None, status: Status, say: Log) -> None:
    from prometheus_client import CollectorRegistry

    from etlcli.observe.series import Collector

    series = CollectorRegistry()
    series.register(Collector(lambda: status, shown))
    doors = _opened(spec, base_dir, series, status.recipe, say)
    started = False
    decoder = msgspec.json.Decoder(Status)
    with run.makefile("rb") as told:
        for line in told:
            if line == _LAST_WORD:
                break
            status = decoder.decode(line)
            if status.state not in (STARTING, SUCCEEDED, FAILED) and not started:
                started = True
                for door in doors:
                    with _harmless(say):
                        door.start()
        else:
            return
        with _harmless(say):
            Thread(target=_end_with, args=(run,), daemon=True).start()
        for door in doors:
            with _harmless(say):
                door.close(status)


def _end_with(run: socket.socket) -> None:
    """Nobody speaks for a run that is dead: the next one may be there already."""
    run.recv(1)
    os._exit(0)


@contextmanager
def _harmless(say: Log) -> Iterator[None]:
    """What is wrong with one door does no harm to the others."""
    try:
        yield
    except Exception as error:
        _say_failed(say, str(error) or type(error).__name__)


def _opened(spec: MetricsSpec, base_dir: str, series: CollectorRegistry, job: str, log: Log) -> list[Door]:
    """The doors that a recipe asks for; paths are relative to `base_dir`. Those that can keep others waiting come
    last."""
    from etlcli.observe.doors import Listening, Pushing, TextFile

    doors: list[Door] = []
    if spec.listen:
        with _harmless(log):
            doors.append(Listening(spec.listen, series, log))
    if spec.textfile:
        doors.append(TextFile(os.path.join(base_dir, spec.textfile), spec.every, series, log))
    if spec.pushgateway:
        doors.append(Pushing(spec.pushgateway, spec.every, spec.timeout, series, job, log))
    return doors
