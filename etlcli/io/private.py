"""The program's private directory, for what its processes have to tell each other: `$XDG_RUNTIME_DIR/etl`, else
`/tmp/etl-UID`, mode 0700."""

import os
import stat
from contextlib import suppress


def private_directory() -> str | None:
    """The directory, made if need be; None when it belongs to somebody else or is open to others. Raises OSError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    usable = runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK | os.X_OK, effective_ids=True)
    directory = f"{runtime}/etl" if usable else f"/tmp/etl-{os.geteuid()}"
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    status = os.lstat(directory)
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return directory if ours else None


def private_directories() -> list[str]:
    """Where any of the user's processes may have its private directory: a session has one that cron has not."""
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    found = dict.fromkeys((f"{runtime}/etl", f"/run/user/{uid}/etl", f"/tmp/etl-{uid}"))
    return [directory for directory in found if os.path.isdir(directory) and os.lstat(directory).st_uid == uid]
