"""Noticing, at the lower end of a shell pipe, that the `etl` at the upper end did not finish.

A pipe tells its reader that the writer is gone, never why. Two processes joined by a pipe see the same inode, so the
writer leaves a marker named after it when it starts and removes the marker when it has finished well. A reader that
comes to the end of its pipe and finds a marker knows that its input is incomplete. Nothing is put into the stream, and
a neighbour that is not `etl` sees and needs nothing.

Markers lie in the program's private directory. One is named
`<boot>-<device>-<inode>.<pid>`; that of a writer which is gone stays behind, is called `.dead` by the first process to
see it, and is swept an hour after that, long before the kernel can give its inode number to another pipe. Where no such
directory can be had, pipes work as they always did.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

from etlcli.io.private import private_directory

_STALE_SECONDS = 3600
_DEAD = ".dead"


def announce(fd: int) -> str | None:
    """Say that this process writes to the pipe `fd`. Returns the marker for `finish`; None if `fd` is no pipe."""
    with suppress(OSError):
        pipe = _pipe_name(fd)
        directory = private_directory() if pipe else None
        if directory:
            _sweep(directory)
            marker = f"{directory}/{pipe}.{os.getpid()}"
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            return marker
    return None


def finish(marker: str | None) -> None:
    """Everything was written: the reader may believe the end of its input. Call it before the pipe is closed."""
    if marker:
        with suppress(OSError):
            os.unlink(marker)


def upstream_unfinished(fd: int) -> bool:
    """Whether a writer announced itself on the pipe `fd` and never finished. Ask at the end of input."""
    try:
        pipe, directory = _pipe_name(fd), private_directory()
        return bool(pipe and directory) and any(name.startswith(f"{pipe}.") for name in os.listdir(directory))
    except OSError:
        return False


def _pipe_name(fd: int) -> str | None:
    status = os.fstat(fd)
    # Not a named FIFO: that is a file, whose inode number lives on and may be another file's next.
    if not stat.S_ISFIFO(status.st_mode) or not os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
        return None
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return f"{file.read(8).decode()}-{status.st_dev}-{status.st_ino}"


def _sweep(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    continue
                if entry.name.endswith(_DEAD):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        os.unlink(entry.path)
                elif not os.path.exists(f"/proc/{entry.name.rpartition('.')[2]}"):
                    os.utime(entry.path)
                    os.rename(entry.path, entry.path + _DEAD)
