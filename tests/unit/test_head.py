"""What comes of a part with several blocks, and how many a part may have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from etlcli.core import stage
from etlcli.engine.head import Head, Worked
from etlcli.engine.pipeline import Pipeline, Plan
from etlcli.io import extents
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe

LINES = [b'{"k":%d}\n' % (number % 3) for number in range(60)]
BAD = 31
STEPS = [{"uses": "filter", "with": {"expr": "k < 2"}}, {"uses": "group", "with": {"by": ["k"], "agg": ["n=count()"]}}]
METRIC = [{"name": "read_total", "type": "counter", "step": "read"}]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    for module in (stage, extents):
        monkeypatch.setattr(module, "PART", 5 * len(LINES[0]))
    with ExitStack() as resources:
        yield Work(tmp_path, resources)


class Work:
    def __init__(self, directory: Path, resources: ExitStack) -> None:
        self._directory = directory
        self._resources = resources

    def pipeline(self, lines: list[bytes] = LINES, steps: Any = STEPS, **recipe: Any) -> tuple[Pipeline, Plan, Head]:
        (self._directory / "in.ndjson").write_bytes(b"".join(lines))
        recipe = {
            "version": 1,
            "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}, "on_error": {"then": "skip"}},
            "steps": steps,
            "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
            **recipe,
        }
        (self._directory / "recipe.yaml").write_text(json.dumps(recipe))
        pipeline = Pipeline(load_recipe(str(self._directory / "recipe.yaml")), Log("error", "json"))
        plan = pipeline._build(self._resources)
        return pipeline, plan, Head(plan.source, plan.trunk)

    def made(self, *, seen: bool = False, blocks: int = 4, **recipe: Any) -> list[list[Worked]]:
        """What came of each part."""
        _, plan, head = self.pipeline(**recipe)
        plan.source.component.ctx.scale = blocks
        return [head.work_on_blocks(part, seen=seen) for part in plan.source.component.parts()]


def records(worked: Worked) -> int:
    return sum(prepared.batch.count for prepared in worked.prepared)


def test_what_came_of_blocks_is_one(work: Work) -> None:
    made = work.made()
    assert [len(each) for each in made] == [1, 1, 1]
    for (worked,), lines in zip(made, (LINES[at : at + 20] for at in range(0, 60, 20)), strict=True):
        kept = [line for line in lines if json.loads(line)["k"] < 2]
        assert worked.passed[:2] == [20, len(kept)]
        assert worked.sizes[:2] == [len(b"".join(lines)), len(b"".join(kept))]
        assert worked.prepared[0].extra.size == len(b"".join(lines))
        assert worked.prepared[0].extra.rows == 20
        assert sum(worked.prepared[1].discards.values()) == 20 - len(kept)
        assert records(worked) == 0


def test_a_block_with_a_reject_stays_apart(work: Work) -> None:
    lines = [*LINES[:BAD], b'{"k":z}\n', *LINES[BAD + 1 :]]
    made = work.made(lines=lines)
    assert [[worked.passed[0] for worked in each] for each in made] == [[20], [10, 4, 5], [20]]
    assert [len(worked.prepared[0].rejects) for worked in made[1]] == [0, 1, 0]


def test_records_that_somebody_sees_are_kept(work: Work) -> None:
    made = work.made(seen=True)
    assert [len(each) for each in made] == [4, 4, 4]
    assert [worked.prepared[0].batch.count for each in made for worked in each] == [5] * 12


@pytest.mark.parametrize(
    "recipe",
    [
        {"steps": STEPS[:1]},
        {"steps": [*STEPS[:1], {"uses": "sort", "with": {"by": ["k"]}}]},
        {"steps": [*STEPS[:1], {**STEPS[1], "on_error": {"fallback": {"set": {"k": 0}}}}]},
        {"metrics": {"textfile": "etl.prom", "custom": METRIC}},
    ],
    ids=["no state", "records go on", "rejects may be healed", "a metric"],
)
def test_what_needs_the_records_is_not_made_one(work: Work, recipe: dict[str, Any]) -> None:
    made = work.made(**recipe)
    assert [len(each) for each in made] == [4, 4, 4]
    assert min(map(records, (worked for each in made for worked in each))) > 0


def test_how_many_blocks_a_part_may_have(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def scale(size: int, count: int = 2, **recipe: Any) -> int:
        pipeline, plan, head = work.pipeline(**recipe)
        monkeypatch.setattr(plan.source.component, "size", lambda: size)
        return pipeline._scale(plan.source.component, head, count)

    large = 1 << 40
    assert scale(large) == 4
    assert scale(large, steps=STEPS[:1]) == 1
    assert scale(64 << 20) == 2, "there must be parts enough to go round several times"
    assert scale(16 << 20) == 1
    assert scale(64 << 20, count=4) == 1
    assert scale(large, runtime={"queue": "24MiB"}) == 3, "and room for those that are in flight"
    assert scale(large, runtime={"queue": "1MiB"}) == 1
