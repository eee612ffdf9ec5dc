"""The source `read`, part by part."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from etlcli.connectors.read import Read
from etlcli.core.ledger import StepCount
from etlcli.core.stage import Context
from etlcli.io.stepfiles import StepFiles


def _no_log(*_: Any, **__: Any) -> None:
    pass


@pytest.mark.parametrize("how", ["renamed", "deleted"])
def test_parts_are_read_of_files_whose_names_have_gone(tmp_path: Path, how: str) -> None:
    """Workers come to a part when the input behind it may have been opened already."""
    contents = [b'{"n":%d}\n' % number for number in range(10)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.ndjson").write_bytes(content)
    with ExitStack() as resources:
        files = StepFiles("read", resources, _no_log)
        context = Context(
            StepCount("read"), resources=resources, files=files, log=_no_log, reject=_no_log, memory=1 << 20,
            base_dir=str(tmp_path),
        )  # fmt: skip
        read = Read(Read.Params(paths=["*.ndjson"]), context)
        parts = list(read.parts())
        for number in range(10):
            path = tmp_path / f"{number}.ndjson"
            if how == "renamed":
                path.rename(tmp_path / f"{number}.old")
                path.write_bytes(b"{}\n")
            else:
                path.unlink()
        assert [read.prepare(part).batch.chunk for part in parts] == contents
    assert not any(str(tmp_path) in os.readlink(f"/proc/self/fd/{fd}") for fd in _open_files())


def _open_files() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]
