"""The manifest of a checkpoint: all that another process needs to go on with a run.

A file of two lines of JSON in the checkpoint directory, `checkpoint-EPOCH.json`: the manifest, and the CRC-32 of that line.
It comes into being by a rename, and from that moment the checkpoint counts. Every file it names only grows, so that an
older manifest is as good as the newest for as long as it is there; tables are further then.
"""

from __future__ import annotations

import os
import re
import zlib
from contextlib import suppress
from typing import Any

import msgspec

from etlcli.core.stage import State
from etlcli.errors import CheckpointError, InputMissingError
from etlcli.io.files import AtomicFile
from etlcli.io.inputs import read_whole

VERSION = 1
MAX_BYTES = 1 << 30
RUNNING, PUBLISHING, FINISHED = "running", "publishing", "finished"
_NAME = re.compile(r"checkpoint-(\d{8,})\.json")


class DamagedError(CheckpointError):
    """What is there is no manifest that this program can read."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    etl_checkpoint: int = VERSION
    epoch: int
    status: str
    """running: to be gone on with; publishing: everything is complete and may be partly published; finished."""
    directory: str
    """Where it was taken."""
    run: str
    recipe: str
    facts: dict[str, str]
    """What the result depends on (`recipe.facts`)."""
    started: float
    at: str
    source: State | None
    steps: dict[str, State | None]
    sinks: dict[str, State | None]
    outputs: dict[str, dict[str, Any]]
    """Files that will be published, by where they will be: `io.kept.Position`."""
    spills: dict[str, int]
    """Files in the checkpoint directory, and how long they were."""
    quarantine: dict[str, Any] | None
    counts: list[dict[str, Any]]
    findings: int
    efforts: list[dict[str, Any]] = []
    """What the work took, of the same steps as `counts`."""
    elsewhere: bool = False
    """Whether a sink keeps its own count of what it has, so that there is no going back to an earlier checkpoint."""
    custom: dict[str, State] = {}
    """What the recipe's metrics know, by their names."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do but to publish."""
        return self.status == PUBLISHING


def epochs(directory: str) -> list[int]:
    """Those that there are manifests of, the oldest first."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, os.listdir(directory)) if match)
    return []


def manifest_path(directory: str, epoch: int) -> str:
    return os.path.join(directory, f"checkpoint-{epoch:08}.json")


def save(directory: str, manifest: Manifest) -> None:
    line = msgspec.json.encode(manifest)
    file = AtomicFile(manifest_path(directory, manifest.epoch))
    try:
        file.write(line + b'\n{"crc32":"%08x"}\n' % zlib.crc32(line))
        file.commit()
    finally:
        file.abort()


def load(directory: str, epoch: int) -> Manifest:
    """Raises DamagedError when it is damaged, or of a version that this program does not know."""
    path = manifest_path(directory, epoch)
    try:
        content = read_whole(path, MAX_BYTES)
    except InputMissingError as error:
        raise DamagedError(error.message, where=path) from None
    line, _, rest = content.partition(b"\n")
    if rest != b'{"crc32":"%08x"}\n' % zlib.crc32(line):
        raise DamagedError(
            f"{path} is damaged: its checksum is not that of its content", where=path,
            hint="etl checkpoint rewind goes back to the one before; etl checkpoint reset forgets them all",
        )  # fmt: skip
    try:
        version = msgspec.json.decode(line, type=dict[str, Any])["etl_checkpoint"]
        if version != VERSION:
            raise DamagedError(
                f"{path} has version {version}, and this etl writes {VERSION}", where=path,
                hint="finish the run with the etl that began it, or begin again with --fresh",
            )  # fmt: skip
        return msgspec.json.decode(line, type=Manifest)
    except (msgspec.MsgspecError, KeyError) as error:
        raise DamagedError(f"{path} is no checkpoint: {error}", where=path) from None
