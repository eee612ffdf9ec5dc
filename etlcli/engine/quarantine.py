"""The quarantine: one NDJSON line for each rejected record, with what is needed to understand it and to run it again.

The file is appended to. A record counts as handled when its line is on disk (fsync), so a crash can leave a reject twice,
after a second run, but never nowhere. The envelope's fields are set out in the design: etl_quarantine (format version),
run, recipe, recipe_digest, step, code, errors, origin, attempts, at, and raw, or raw_base64 for bytes that are no UTF-8.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import msgspec

from etlcli.core.batch import Reject
from etlcli.core.edit import encode
from etlcli.io.files import AppendFile, Position
from etlcli.io.masking import without_secrets
from etlcli.observe.logs import now
from etlcli.recipe.model import Recipe

VERSION = 1


class Quarantine:
    """Raises CannotCreateError when the file cannot be opened, InputOutputError when it cannot be written."""

    def __init__(self, recipe: Recipe, run_id: str, position: Position | None = None) -> None:
        """`position` is that of a run with this id, of which nothing later shall be there."""
        assert recipe.quarantine is not None
        self._file = AppendFile(os.path.join(recipe.base_dir, recipe.quarantine))
        if position is not None:
            self._file.cut_back(position, lambda line: _run_of(line) not in (run_id, None))
        self._constant = {"run": run_id, "recipe": recipe.name, "recipe_digest": recipe.digest}

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def put(self, step: str, rejects: Sequence[Reject]) -> None:
        at = now()
        self._file.append(b"".join(encode(self._envelope(step, reject, at)) + b"\n" for reject in rejects))

    def position(self) -> Position:
        return self._file.position()

    def _envelope(self, step: str, reject: Reject, at: str) -> dict[str, Any]:
        return {
            "etl_quarantine": VERSION,
            **self._constant,
            "step": step,
            "code": reject.code,
            "errors": [{**error, "message": without_secrets(error["message"])} for error in reject.errors],
            "origin": reject.origin._asdict() if reject.origin else None,
            "attempts": reject.attempts,
            "at": at,
            **_raw(reject.raw),
        }


def _run_of(line: bytes) -> str | None:
    """The run that has put a line there, if any; None for a line that a crash cut short."""
    try:
        return str(msgspec.json.decode(line, type=dict[str, Any]).get("run", ""))
    except msgspec.MsgspecError:
        return None


def _raw(raw: bytes) -> dict[str, str]:
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": b64encode(raw).decode()}
