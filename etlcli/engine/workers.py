"""Worker processes for the head of a pipeline.

The coordinator hands out parts of the input and takes back what came of them, in the order of the input unless the run does
without it. A worker is a fork of the coordinator, made before anything was read, and holds no state beside what it has
answered; so one that dies (killed, out of memory, a crash in a C library) costs nothing but time: another takes its place
and does the part again. A part that kills workers again and again is halved until the record that does it stands alone, and
that one is rejected as `worker_killed`.

No more than `window` parts are in flight, those that are done and wait for their turn among them: that is the
backpressure. Messages are pickled: these are pipes between a process and its own children, which nobody else can write to.
The records' bytes lie in memory that a worker shares with the coordinator, in as many slots as it may have tasks: the one
that a task's result is put into was emptied before the task was given.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from mmap import mmap
from select import POLLIN, poll
from struct import Struct
from typing import Any, NamedTuple, NoReturn

from etlcli.core.stage import Source
from etlcli.engine.head import Head, Result, Worked
from etlcli.errors import EtlError, TryLaterError
from etlcli.io.inputs import grow_pipe
from etlcli.io.signals import held

_HEADER = Struct("<Q")
_AHEAD = 2
_FAR = 8
"""Windows that the input may be drawn beyond a part that is not done."""
_SMALL = 4096
"""Bytes of a message that fits into a pipe even if nobody reads it yet."""
_LITTLE = 64 << 10
_SLOT = 2 << 20
_TRIES = 3
"""Of a part, and of a record alone: fewer deaths may be chance. What is halved has its rejects in another order, too."""
_STARTS = 3
_ALIVE = b"+"
_CPU_MAX = "/sys/fs/cgroup/cpu.max"


class Workers:
    """Made just before the run; `close` it however the run ends. `ready` of the source is asked before the next part is
    drawn, so that results do not wait for input."""

    def __init__(
        self,
        source: Source,
        head: Head,
        count: int,
        window: int,
        log: Callable[..., None],
        *,
        scale: int = 1,
        ordered: bool = True,
        held: Callable[[], bool] = bool,
    ) -> None:
        """Parts have `scale` blocks as long as answers are small: many small ones are most of the work to be done here, and
        few large ones would take memory. Not `ordered`: results are given as they come, and no part is drawn while it is
        `held`."""
        self._scale = scale
        self._ordered = ordered
        self._held = held
        self._source = source
        self._head = head
        self._window = max(window, count)
        self._log = log
        self._poll = poll()
        self._workers: dict[int, _Worker] = {}
        """By the descriptor of their answers."""
        self._waiting: deque[_Task] = deque()
        self._done: dict[int, list[Worked] | BaseException] = {}
        self._given: set[int] = set()
        """The numbers of parts that were done with before an earlier one."""
        self.in_flight = 0
        """How many parts were drawn and are not done with."""
        for _ in range(count):
            self._add_worker()

    def results(self, parts: Iterator[Any]) -> Iterator[Result]:
        """What came of the parts. Raises what a worker raised."""
        drawn = turn = 0
        wanted = self._head.wanted
        tasks: Iterator[_Task] | None = (_Task(number, part, wanted()) for number, part in enumerate(parts))
        while True:
            while self._hand_out() and tasks and self._may_draw(drawn - turn):
                task = next(tasks, None)
                if task is None:
                    tasks = None
                    break
                self._waiting.append(task)
                drawn += 1
                self.in_flight += 1
            number = turn if self._ordered else next(iter(self._done), turn)
            if number in self._done:
                worked = self._done.pop(number)
                if isinstance(worked, BaseException):
                    raise worked
                yield number, worked
                self.in_flight -= 1
                self._given.add(number)
                while turn in self._given:
                    self._given.remove(turn)
                    turn += 1
            elif self.in_flight:
                self._receive()
            else:
                break
        for worker in self._workers.values():
            worker.dismiss()

    def _may_draw(self, behind: int) -> bool:
        """Whether there is room for another part, of which the first that is not done with is so many `behind`."""
        if not self.in_flight:
            return True
        room = self.in_flight < self._window and behind < self._window * _FAR
        return room and not self._held() and self._source.ready()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()

    def _add_worker(self) -> None:
        """Fewer will do where the system has no room for another. Raises TryLaterError when there would be none."""
        try:
            worker = _started(self._head, self._workers.values())
        except TryLaterError as error:
            if not self._workers:
                raise
            self._log("warning", "worker_missing", reason=error.message)
            return
        self._workers[worker.answers] = worker
        self._poll.register(worker.answers, POLLIN)

    def _hand_out(self) -> bool:
        """Whether every task that waits was given to a worker."""
        while self._waiting:
            worker = min(self._workers.values(), key=lambda each: len(each.tasks))
            if not worker.has_room(self._waiting[0]):
                return False
            worker.give(self._waiting.popleft())
        return True

    def _receive(self) -> None:
        for fd, _ in self._poll.poll():
            worker = self._workers[fd]
            try:
                answer = worker.answer()
            except EOFError:
                self._bury(worker)
                continue
            self._source.ctx.scale = self._scale if worker.said <= _LITTLE else 1
            self._done[worker.tasks.popleft().number] = answer if isinstance(answer, BaseException) else answer.made

    def _bury(self, worker: _Worker) -> None:
        self._poll.unregister(worker.answers)
        del self._workers[worker.answers]
        self._log("warning", "worker_died", how=worker.kill())
        self._add_worker()
        if not worker.tasks:
            return
        # The first is the one it was at.
        task = worker.tasks[0]
        task.deaths += 1
        if task.deaths == _TRIES:
            worker.tasks.popleft()
            self._done[task.number] = list(self._halved(task.part))
        self._waiting.extendleft(reversed(worker.tasks))

    def _halved(self, part: Any) -> Iterator[Worked]:
        """What comes of a part that kills workers."""
        halves = self._source.halves(part)
        if len(halves) == 1:
            yield from self._alone(part)
            return
        for half in halves:
            made = self._tried(_Task(0, half))
            yield from self._halved(half) if made is None else made

    def _alone(self, record: Any) -> list[Worked]:
        """What comes of a single record."""
        farthest: Worked | None = None
        for _ in range(_TRIES):
            steps: list[Worked] = []
            self._tried(_Task(0, record, alone=True), steps)
            farthest = steps[-1] if steps else None
            if farthest and self._head.is_whole(farthest):
                return [farthest]
        return [self._head.refused(record, farthest, "worker_killed", "a worker process died of this record")]

    def _tried(self, task: _Task, steps: list[Worked] | None = None) -> list[Worked] | None:
        """What comes of a task on a worker of its own; None when that dies. Of a record alone the `steps` tell how far it
        came."""
        worker = _started(self._head, self._workers.values())
        try:
            worker.give(task)
            while True:
                answer = worker.answer()
                if isinstance(answer, BaseException):
                    raise answer
                if answer.final:
                    return answer.made
                if steps is not None:
                    steps += answer.made
        except EOFError:
            return None
        finally:
            worker.kill()


class _Task:
    """`alone`: tell of every step as soon as it is done. `wanted` are steps whose records are to be sent, too."""

    def __init__(self, number: int, part: Any, wanted: frozenset[int] = frozenset(), *, alone: bool = False) -> None:
        self.number = number
        self.part = part
        self.deaths = 0
        self.message = pickle.dumps((number, part, wanted, alone), pickle.HIGHEST_PROTOCOL)


class _Answer(NamedTuple):
    """`chunks` are the bytes of the last batch of each, or where they lie in the shared memory: start and end."""

    made: list[Worked]
    chunks: list[bytes | tuple[int, int]]
    final: bool = True


class _Worker:
    """A process, as the coordinator sees it. `tasks` are those it has been given and has not answered."""

    def __init__(self, head: Head, others: Any) -> None:
        self.tasks: deque[_Task] = deque()
        self.said = 0
        """Bytes of its last answer."""
        self._dismissed = False
        theirs, self._given = os.pipe()
        self.answers, ours = os.pipe()
        grow_pipe(self._given)
        grow_pipe(ours)
        self._memory = mmap(-1, _AHEAD * _SLOT)
        # A pipe ends when its last writer is gone: so no child may keep what belongs to the coordinator.
        foreign = [self._given, self.answers, *(fd for other in others for fd in (other._given, other.answers))]
        with held():  # or the child would answer a signal as if it were the coordinator
            try:
                self._pid = os.fork()
            except OSError as error:
                for fd in (theirs, ours, self._given, self.answers):
                    os.close(fd)
                raise TryLaterError(
                    f"cannot start a worker process: {error.strerror}", hint="--workers 1 does without them"
                ) from error
            if not self._pid:
                _work(head, theirs, ours, self._memory, foreign)
        os.close(theirs)
        os.close(ours)

    def is_alive(self) -> bool:
        """Waits for its first word."""
        return os.read(self.answers, 1) == _ALIVE

    def has_room(self, task: _Task) -> bool:
        """Whether giving it the task cannot block while it waits for its own answer to be read."""
        return not self.tasks or (len(self.tasks) < _AHEAD and len(task.message) <= _SMALL)

    def give(self, task: _Task) -> None:
        self.tasks.append(task)
        with suppress(BrokenPipeError):  # it is dead, which shows when its answer is read
            _send(self._given, task.message)

    def answer(self) -> _Answer | BaseException:
        """What came of its task, or what that raised. Raises EOFError when it has died."""
        message = _received(self.answers)
        self.said = len(message)
        answer: _Answer | BaseException = pickle.loads(message)
        if isinstance(answer, BaseException):
            return answer
        chunks = (chunk if isinstance(chunk, bytes) else self._memory[slice(*chunk)] for chunk in answer.chunks)
        return answer._replace(made=list(map(Head.unpacked, answer.made, chunks)))

    def dismiss(self) -> None:
        """Nobody needs it any more. It takes its time to end, and `kill` waits for that. Once is enough: later its number
        may be that of another process."""
        if not self._dismissed:
            self._dismissed = True
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def kill(self) -> str:
        """Ends it, if it is not dead. What it died of."""
        self.dismiss()
        os.close(self._given)
        os.close(self.answers)
        self._memory.close()
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:  # who started this program has told it to forget its children
            return "unknown"
        code = os.waitstatus_to_exitcode(status)
        return f"exit {code}" if code >= 0 else signal.Signals(-code).name


def _started(head: Head, others: Iterable[_Worker]) -> _Worker:
    """A worker that has begun. One that is killed at once may just have been picked by the system, which is out of memory;
    several are no accident."""
    for _ in range(_STARTS):
        worker = _Worker(head, others)
        if worker.is_alive():
            return worker
        how = worker.kill()
    raise EtlError(f"worker processes end before they have begun ({how})", hint="--workers 1 does without them")


def _work(head: Head, given: int, answers: int, memory: mmap, foreign: list[int]) -> NoReturn:
    """The life of a worker. It ends with the coordinator, whose end of the pipe closes then."""
    try:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the coordinator has got it too, and decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for fd in foreign:
            os.close(fd)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.write(answers, _ALIVE)
        slot, latest = 0, -1
        while True:
            number, part, wanted, alone = pickle.loads(_received(given))
            # One that another worker has died of may come late.
            in_turn, latest = number > latest, max(number, latest)
            try:
                if alone:
                    for worked in head.growing(part):
                        grown, chunk = head.packed(worked)
                        _answer(answers, _Answer([grown], [chunk], final=False))
                answer = _Answer([], [])
                for worked in () if alone else head.work_on_blocks(part, seen=bool(wanted)):
                    packed, chunk = head.packed(worked, wanted, in_turn=in_turn)
                    shared = not answer.made and len(chunk) <= _SLOT
                    if shared:
                        memory[slot : slot + len(chunk)] = chunk
                    answer.made.append(packed)
                    answer.chunks.append((slot, slot + len(chunk)) if shared else chunk)
                _answer(answers, answer)
                slot = (slot + _SLOT) % len(memory)
            except EOFError:
                raise
            except Exception as error:
                error.add_note("in a worker: " + "".join(traceback.format_tb(error.__traceback__)))
                _answer(answers, error)
    except (EOFError, BrokenPipeError):
        os._exit(0)
    finally:
        os._exit(70)


def _answer(fd: int, answer: Any) -> None:
    _send(fd, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


def _send(fd: int, message: bytes) -> None:
    rest = memoryview(_HEADER.pack(len(message)) + message)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _received(fd: int) -> bytearray:
    (size,) = _HEADER.unpack(_exactly(fd, _HEADER.size))
    return _exactly(fd, size)


def _exactly(fd: int, size: int) -> bytearray:
    """Raises EOFError when the other side is gone."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = os.readv(fd, [rest])
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


def available_cpus() -> int:
    """How many processes can compute at once: processors this process may use, and its share of them."""
    count = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        with open(_CPU_MAX) as file:
            quota, period = file.read().split()
        count = min(count, -(-int(quota) // int(period)))
    return max(1, count)
