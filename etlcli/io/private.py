"""The program's private directory, for what its processes have to tell each other: `$XDG_RUNTIME_DIR/etl`, else
`/tmp/etl-UID`, mode 0700."""

import os
import stat
from contextlib import suppress


def private_directory() -> str | None:
    """The directory, made if need be; None when it belongs to somebody else or is open to others. Raises OSError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    directory = f"{runtime}/etl" if runtime and os.path.isdir(runtime) else f"/tmp/etl-{os.geteuid()}"
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    status = os.lstat(directory)
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return directory if ours else None
