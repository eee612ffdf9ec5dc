"""Names, and where they live. Importing this imports nothing else, and listing imports no component.

A name is a subcommand, a recipe's `uses:`, a case folder and a man page at once. A new stage is one file in `stages/`, one
row here, and its cases.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from etlcli.errors import UsageError, nearest


class Entry(NamedTuple):
    kind: str
    target: str
    help: str


COMPONENTS: dict[str, Entry] = {
    "read": Entry("source", "etlcli.connectors.read:Read", "Read files, globs or stdin as records"),
    "validate": Entry("stage", "etlcli.stages.validate:Validate", "Check records against a JSON Schema"),
    "filter": Entry("stage", "etlcli.stages.filter:Filter", "Keep the records for which an expression is true"),
    "map": Entry("stage", "etlcli.stages.map:Map", "Set, drop, keep and rename fields"),
    "lookup": Entry("stage", "etlcli.stages.lookup:Lookup", "Add fields from a reference table or a command"),
    "sort": Entry("stage", "etlcli.stages.sort:Sort", "Sort records by fields, in bounded memory"),
    "group": Entry("stage", "etlcli.stages.group:Group", "Aggregate or collect records by fields, in bounded memory"),
    "batch": Entry("stage", "etlcli.stages.batch:Batcher", "Put runs of records into one record each"),
    "unbatch": Entry("stage", "etlcli.stages.unbatch:Unbatch", "Put out the records that batches hold"),
    "dedupe-cache": Entry(
        "stage",
        "etlcli.stages.dedupe_cache:DedupeCache",
        "Drop records whose key was seen before, also in earlier runs",
    ),
    "retry-wrap": Entry("stage", "etlcli.stages.retry_wrap:RetryWrap", "Put records through an external command"),
    "sql": Entry("sink", "etlcli.connectors.sql:Sql", "Put records into a database's table, exactly once"),
    "write": Entry("sink", "etlcli.connectors.write:Write", "Write records to a file, all or nothing"),
}
"""Sources, stages and sinks, in the order a pipeline uses them."""

FORMATS: dict[str, str] = {
    "ndjson": "etlcli.formats.ndjson",
    "json": "etlcli.formats.json",
    "csv": "etlcli.formats.csv",
    "tsv": "etlcli.formats.csv",
    "yaml": "etlcli.formats.yaml",
}

COMMANDS: dict[str, Entry] = {
    "run": Entry("command", "etlcli.cli.run:command", "Run a recipe"),
    "ps": Entry("command", "etlcli.cli.ps:command", "List the runs that are going on"),
    "top": Entry("command", "etlcli.cli.top:command", "Watch runs as they go on"),
    "tap": Entry("command", "etlcli.cli.tap:command", "See the records that pass through a run"),
    "checkpoint": Entry(
        "command", "etlcli.cli.checkpoint:command", "Look at the checkpoints of a recipe, or forget them"
    ),
    "cache": Entry("command", "etlcli.cli.cache:command", "Look into a cache file, and prune it"),
    "replay": Entry("command", "etlcli.cli.replay:command", "Run quarantined records again"),
    "why": Entry("command", "etlcli.cli.why:command", "Show what becomes of one record in a recipe, and why"),
    "init": Entry("command", "etlcli.cli.init:command", "Write a sample recipe with real data"),
}


def find(kind: str, name: str) -> Any:
    """The class behind a name. Raises UsageError with the nearest known name."""
    entry = COMPONENTS.get(name)
    if entry is None or entry.kind != kind:
        known = [known for known, entry in COMPONENTS.items() if entry.kind == kind]
        raise UsageError(f"no {kind} is called {name!r}", hint=nearest(name, known))
    return load(entry.target)


def load(target: str) -> Any:
    """The object behind `module:name`."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
