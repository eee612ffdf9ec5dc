"""The quarantine: one NDJSON line for each rejected record, with what is needed to understand it and to run it again.

The file is appended to. A record counts as handled when its line is on disk (fsync), so a crash can leave a reject twice,
after a second run, but never nowhere. The envelope's fields are set out in the design: etl_quarantine (format version),
run, recipe, recipe_digest, step, code, errors, origin, attempts, at, and raw, or raw_base64 for bytes that are no UTF-8.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from etlcli.core.batch import Reject
from etlcli.core.edit import encode
from etlcli.errors import CannotCreateError
from etlcli.io.files import io_error, write_all
from etlcli.recipe.model import Recipe

VERSION = 1


class Quarantine:
    """Raises CannotCreateError when the file cannot be opened, InputOutputError when it cannot be written."""

    def __init__(self, recipe: Recipe, run_id: str) -> None:
        assert recipe.quarantine is not None
        self._path = os.path.join(recipe.base_dir, recipe.quarantine)
        self._constant = {"run": run_id, "recipe": recipe.name, "recipe_digest": recipe.digest}
        try:
            os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
            self._new = not os.path.exists(self._path)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotCreateError(
                f"cannot open the quarantine {self._path}: {error.strerror}", where=self._path
            ) from error
        self._written = False

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
        if self._new and not self._written:
            os.unlink(self._path)

    def put(self, step: str, rejects: Sequence[Reject]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        block = b"".join(encode(self._envelope(step, reject, now)) + b"\n" for reject in rejects)
        self._written = True
        try:
            write_all(self._fd, block)
            os.fsync(self._fd)
        except OSError as error:
            raise io_error(error, self._path) from error

    def _envelope(self, step: str, reject: Reject, now: str) -> dict[str, Any]:
        return {
            "etl_quarantine": VERSION,
            **self._constant,
            "step": step,
            "code": reject.code,
            "errors": reject.errors,
            "origin": reject.origin._asdict() if reject.origin else None,
            "attempts": 1,
            "at": now,
            **_raw(reject.raw),
        }


def _raw(raw: bytes) -> dict[str, str]:
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": b64encode(raw).decode()}
