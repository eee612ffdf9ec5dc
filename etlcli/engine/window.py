"""Questions that a step has asked somebody else, several at a time, until they are answered.

Calls are made in threads: they wait and do not compute. Answers are taken in the order of the questions, or as they come.
The records that are held are those of four questions for each call that may be made at a time, at most.
"""

from __future__ import annotations

from collections import deque
from threading import Condition, Thread

from etlcli.core.stage import Question

_READY = 2
_HELD = 4
_SOON = 0.05


class Window:
    """`stop` it however the run ends."""

    def __init__(self, at_once: int, *, ordered: bool) -> None:
        """So many calls are made at a time."""
        self._at_once = at_once
        self._ordered = ordered
        self._held: list[Question] = []
        self._waiting: deque[Question] = deque()
        self._threads = 0
        self._busy = 0
        self._stopped = False
        self._changed = Condition()

    @property
    def is_empty(self) -> bool:
        return not self._held

    @property
    def is_full(self) -> bool:
        unanswered = sum(not question.is_answered for question in self._held)
        return len(self._held) >= _HELD * self._at_once or unanswered >= _READY * self._at_once

    def due(self) -> float | None:
        """Seconds until it should be looked for answers."""
        return _SOON if self._held else None

    def put(self, question: Question) -> None:
        self._held.append(question)
        if question.is_answered:
            return
        with self._changed:
            self._waiting.append(question)
            if self._busy + len(self._waiting) > self._threads < self._at_once:
                self._threads += 1
                Thread(target=self._work, daemon=True).start()
            self._changed.notify_all()

    def take(self) -> Question | None:
        """The next question that is answered, and is no longer held then. Raises what a call raised."""
        for question in self._held:
            if question.failure:
                raise question.failure
        for at, question in enumerate(self._held[:1] if self._ordered else self._held):
            if question.is_complete:
                return self._held.pop(at)
        return None

    def wait(self) -> Question:
        """As `take`, when there is one. Something must be held."""
        with self._changed:
            while True:
                question = self.take()
                if question:
                    return question
                self._changed.wait()

    def stop(self) -> None:
        """No other call is made. Those that are being made are nobody's any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting)
                if self._stopped:
                    return
                question = self._waiting.popleft()
                self._busy += 1
            question.ask()
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
