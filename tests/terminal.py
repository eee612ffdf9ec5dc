"""A terminal for the program to write to."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

from conftest import BIN


class Terminal:
    """`etl ARGS...` with a terminal for its output; stdin is a pipe, and stdout is one too if it is asked for."""

    def __init__(
        self, *args: str, env: dict[str, str], cwd: Path | None = None, pipe: bool = False, **own: str
    ) -> None:
        self._mine, theirs = pty.openpty()
        self.resize(theirs, 100)
        self.process = subprocess.Popen(
            [BIN / "etl", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE if pipe else theirs, stderr=theirs,
            cwd=cwd, env={**env, "TERM": "xterm", **own},
        )  # fmt: skip
        os.close(theirs)
        self.shown = b""

    def resize(self, fd: int | None, columns: int) -> None:
        fcntl.ioctl(self._mine if fd is None else fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read_until(self, text: bytes) -> bytes:
        """All that was shown, as soon as the text is among it."""
        while text not in self.shown:
            self.shown += os.read(self._mine, 65536)
        return self.shown

    def rest(self) -> bytes:
        """All that was shown, when the program has closed the terminal."""
        try:
            while block := os.read(self._mine, 65536):
                self.shown += block
        except OSError:  # the other side is closed
            pass
        self.go_away()
        return self.shown

    def go_away(self) -> None:
        os.close(self._mine)
