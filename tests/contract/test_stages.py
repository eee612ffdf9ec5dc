"""The stage contract, for every stage in the registry.

What to try each stage with comes from its cases: every case that is one command and can be built gives its options and its
input. Configurations that no case has are added here.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest

from etlcli.cli import component
from etlcli.connectors.read import Read
from etlcli.core.ledger import StepCount
from etlcli.core.stage import Context, Prepared
from etlcli.errors import EtlError
from etlcli.io import spill
from etlcli.io.stepfiles import StepFiles
from etlcli.registry import COMPONENTS, load
from etlcli.stages import batch, dedupe_cache, group, lookup, sort, unbatch
from etlcli.testing.contract import CHECKS, Trial

CASES = Path(__file__).parent.parent / "cases"
STAGES = [name for name, entry in COMPONENTS.items() if entry.kind == "stage"]

MIXED = [
    b'{"k":%s,"s":"%s","n":%d}' % (value, text, number)
    for number, (value, text) in enumerate(
        (value, text)
        for text in (b"b", b"a", b"\xc3\xa9", b"\\u0000")
        for value in (b"2", b"1", b"1.0", b"null", b'"x"', b"[1]", b"{}", b"true", b"1e400", b"1" * 5000, b"-0")
    )
]
ORDERED = [b'{"k":%d,"n":%d}' % (number // 3, number) for number in range(30)]
SORTS: dict[str, tuple[dict[str, Any], list[bytes], int]] = {
    "memory": ({"by": "k"}, MIXED, 1 << 20),
    "spilled": ({"by": "-k,s"}, MIXED, 600),
    "every-record-a-run": ({"by": "k"}, MIXED, 1),
    "unique": ({"by": "s", "unique": True}, MIXED, 600),
    "unique-in-memory": ({"by": "k", "unique": True}, MIXED, 1 << 20),
    "top": ({"by": "k", "top": 7}, MIXED, 600),
    "top-unique": ({"by": "-k", "top": 5, "unique": True}, MIXED, 1),
    "nulls-first": ({"by": "-k", "nulls": "first"}, MIXED, 2000),
    "numeric": ({"by": "s,k", "numeric": True}, MIXED, 2000),
    "check": ({"by": "k", "check": True}, ORDERED, 1 << 20),
    "check-fails": ({"by": "-k", "check": True}, ORDERED, 1 << 20),
    "check-unique-fails": ({"by": "k", "check": True, "unique": True}, ORDERED, 1 << 20),
    "merge": ({"by": "k", "merge": True}, ORDERED, 600),
    "merge-fails": ({"by": "-k", "merge": True}, ORDERED, 600),
}
DEDUPES: dict[str, tuple[dict[str, Any], list[bytes], int]] = {
    "memory": ({"key": "k"}, MIXED, 1 << 20),
    "spilled": ({"key": "k,s"}, MIXED, 600),
    "whole-record": ({}, MIXED + MIXED[::2], 1),
    "missing": ({"key": "k"}, [*MIXED[:9], b'{"s":1}', *MIXED[3:12], b'{"s":2}'], 1 << 20),
    "last": ({"key": "s", "keep": "last"}, MIXED, 1 << 20),
    "last-spilled": ({"key": "k", "keep": "last"}, MIXED, 600),
    "last-every-record-a-run": ({"key": "k", "keep": "last"}, MIXED, 1),
    "most-recent": ({"key": "k", "max_entries": 3}, MIXED, 1 << 20),
    "most-recent-spilled": ({"key": "k", "max_entries": 5, "ttl": "1h"}, MIXED, 1),
}


GROUPS: dict[str, tuple[dict[str, Any], list[bytes], int]] = {
    "memory": ({"by": "k", "agg": ["n=count()", "sum=sum(n)", "low=min(s)"]}, MIXED, 1 << 20),
    "spilled": ({"by": "s,k", "agg": ["sd=stddev(n)", "all=list(s)", "d=distinct(k)"]}, MIXED, 20_000),
    "every-batch-a-run": ({"by": "k", "agg": ["p=p90(n)", "last=last(s)"]}, MIXED, 1),
    "rejects": ({"by": "s", "agg": ["n=count()", "mean=mean(k)"]}, MIXED, 1),
    "all": ({"agg": ["n=count()", "mean=mean(n)", "high=max(k)", "first=first(k)"]}, MIXED, 1 << 20),
    "keys-only": ({"by": "k"}, MIXED, 1 << 20),
    "sorted": ({"by": "k", "agg": ["n=count()", "median=median(n)"], "assume_sorted": True}, ORDERED, 1),
    "comes-back": ({"by": "k", "agg": "n=count()", "assume_sorted": True}, [*ORDERED, ORDERED[3]], 1),
    "list": ({"by": "k", "emit": "list"}, MIXED, 1 << 20),
    "list-spilled": ({"by": "s", "emit": "list"}, MIXED, 600),
    "list-sorted": ({"by": "k", "emit": "list", "assume_sorted": True}, ORDERED, 1),
    "stream": ({"by": "k", "emit": "stream"}, MIXED, 1 << 20),
    "stream-spilled": ({"by": "k", "emit": "stream"}, MIXED, 600),
    "stream-sorted": ({"by": "k", "emit": "stream", "assume_sorted": True}, ORDERED, 1),
}
BATCHES: dict[str, tuple[dict[str, Any], list[bytes], int]] = {
    "size": ({"size": 7}, MIXED, 1 << 20),
    "bytes": ({"bytes": 100, "size": 5}, MIXED, 1 << 20),
    "key": ({"key": "k", "size": 2}, ORDERED, 1 << 20),
    "window": ({"window": "n:5s"}, ORDERED, 1 << 20),
    "window-rejects": ({"window": "k:1h", "size": 3}, MIXED, 1 << 20),
    "memory": ({"every": "1h"}, MIXED, 1000),
}
UNBATCHES: dict[str, tuple[dict[str, Any], list[bytes], int]] = {
    "batches": ({}, [b'{"records":[%b]}' % b" ,".join(MIXED[at : at + 5]) for at in range(0, 40, 5)], 1 << 20),
    "rejects": ({}, [*ORDERED[:2], b'{"records":[{"a":1},2]}', b'{"records":[]}', b'{"records":[ {"a":1} ]}'], 1 << 20),
    "nothing": ({}, [b"{}"], 1 << 20),
}
TRIED = {
    sort.Sort: SORTS,
    dedupe_cache.DedupeCache: DEDUPES,
    group.Group: GROUPS,
    batch.Batcher: BATCHES,
    unbatch.Unbatch: UNBATCHES,
}


KEYED = [
    b'{"k":%s, "s":"%d"}' % (key, n) for n, key in enumerate([b"1", b"2", b"1.0", b'"1"', b"null", b"[1,{}]", b"7"])
]
KEYED += [b'{"s":"x"}', b"{}", b'{"n":"one","k":1}', b'{"n":"none", "k":1}', b'{"k":1, "b":"x"}']
COMMAND = ["sed", r's/}$/,"n":"one"}/; s/.*"7.*/{}/; s/.*:2,/{"m":1,/']
LOOKUPS: dict[str, tuple[dict[str, Any], int]] = {
    "memory": ({"on": "k", "from": "008-numbers/table.ndjson"}, 1 << 20),
    "spilled": ({"on": "k", "from": "008-numbers/table.ndjson", "on_miss": "reject"}, 1),
    "default": ({"on": "k", "from": "008-numbers/table.ndjson", "on_miss": "default", "default": {"z": 1}}, 1 << 20),
    "database": ({"on": "k=code,b", "from": "017-sqlite/ref.db", "table": "t", "fields": ["n"]}, 1 << 20),
    "command": ({"on": "k", "command": COMMAND}, 1 << 20),
    "command-rejects": ({"on": "k", "command": COMMAND, "on_miss": "reject", "max_entries": 2}, 1),
}


def _trials() -> Iterator[Any]:
    for name, (options, memory) in LOOKUPS.items():
        yield pytest.param(Trial(lookup.Lookup, options, KEYED, memory, str(CASES / "lookup")), id=f"lookup-{name}")
    for stage, configurations in TRIED.items():
        command = stage.__module__.rpartition(".")[2].replace("_", "-")
        for name, (options, lines, memory) in configurations.items():
            yield pytest.param(Trial(stage, options, lines, memory), id=f"{command}-{name}")
    for folder in sorted(path.parent for stage in STAGES for path in CASES.glob(f"{stage}/*/cmd")):
        if trial := _of_case(folder):
            yield pytest.param(trial, id=f"{folder.parent.name}/{folder.name}")


def _of_case(folder: Path) -> Trial | None:
    """The stage and the input of a case; None for a case that is no single command, or is about one that cannot run."""
    name = folder.parent.name
    line = (folder / "cmd").read_text()
    words = shlex.split(line)
    if words[:2] != ["etl", name] or set(line) & set("|;&>$("):
        return None
    words = [word for word in words if word != "<"]
    stage = load(COMPONENTS[name].target)
    try:
        values = component.component_command(name).make_context(name, words[2:]).params
        spec = component.step(name, {option.name: values.get(option.name) for option in stage.Params.options})
        lines = _good_lines(folder, values["inputs"])
        with ExitStack() as resources:
            stage(spec.params, _context(folder, resources))
    except (click.exceptions.ClickException, click.exceptions.Exit, EtlError):
        return None
    return Trial(stage, spec.params.values(), lines, base_dir=str(folder))


def _good_lines(folder: Path, inputs: tuple[str, ...]) -> list[bytes]:
    with ExitStack() as resources:
        source = Read(Read.Params(paths=inputs), _context(folder, resources))
        return [
            line
            for part in source.parts()
            for line in (part if isinstance(part, Prepared) else source.prepare(part)).batch.lines
        ]


def _context(folder: Path, resources: ExitStack) -> Context:
    count = StepCount("contract")
    return Context(
        count,
        resources=resources,
        files=StepFiles("step", resources, lambda *a, **k: None),
        log=lambda *a, **k: None,
        reject=lambda rejects: None,
        base_dir=str(folder),
    )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few records make many runs, many blocks and several passes of merging."""
    monkeypatch.setattr(sort, "_OUT", 2)
    monkeypatch.setattr(spill, "_MIN_BLOCK", 64)
    monkeypatch.setattr(spill, "_MAX_FAN_IN", 3)
    monkeypatch.setattr(group, "_OUT", 2)
    monkeypatch.setattr(dedupe_cache, "_OUT", 2)
    monkeypatch.setattr(dedupe_cache, "_BLOCK", 64)


TRIALS = list(_trials())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("trial", TRIALS)
def test_contract(trial: Trial, check: Any) -> None:
    check(trial)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_with_a_cache_file(check: Any, tmp_path: Path) -> None:
    check(Trial(dedupe_cache.DedupeCache, {"key": "k", "cache": str(tmp_path / "c")}, MIXED, 600))


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_tried(name: str) -> None:
    assert len([trial for trial in TRIALS if str(trial.id).startswith(name)]) >= 3
