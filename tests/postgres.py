"""A real PostgreSQL for the tests: a cluster of its own, on a socket in a directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import Any


def binaries() -> Path | None:
    """Where initdb and pg_ctl are: Debian keeps them off the PATH."""
    found = [*map(os.path.dirname, sorted(glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True))]
    on_path = shutil.which("initdb")
    places = [*found, *([os.path.dirname(on_path)] if on_path else [])]
    return Path(places[0]) if places else None


@contextmanager
def cluster() -> Iterator[str]:
    """The URL of its database, as SQLAlchemy spells it."""
    where = binaries()
    assert where
    # Short, for the socket's sake, and where the server's user may be: it does not run as root.
    directory = tempfile.mkdtemp(prefix="etl-pg-", dir="/tmp")
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        import pwd

        name = "nobody"
        with suppress(KeyError):
            name = pwd.getpwnam("postgres").pw_name
        entry = pwd.getpwnam(name)
        os.chown(directory, entry.pw_uid, entry.pw_gid)
        as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    data, quiet = f"{directory}/data", {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Few locks, so that who collects them is noticed.
    options = (
        f"-k {directory} -c listen_addresses='' -c fsync=off -c max_locks_per_transaction=10 -c max_connections=20"
    )
    try:
        subprocess.run(
            [where / "initdb", "-D", data, "-U", "etl", "-A", "trust", "-N"], cwd=directory, **quiet, **as_user
        )
        subprocess.run(
            [where / "pg_ctl", "-D", data, "-o", options, "-l", f"{directory}/log", "-w", "start"],
            cwd=directory, **quiet, **as_user,
        )  # fmt: skip
        yield f"postgresql+psycopg://etl@/postgres?host={directory}"
    finally:
        subprocess.run(
            [where / "pg_ctl", "-D", data, "-m", "immediate", "stop"], cwd=directory, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, check=False, **as_user,
        )  # fmt: skip
        shutil.rmtree(directory, ignore_errors=True)
