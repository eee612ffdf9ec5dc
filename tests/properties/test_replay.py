"""What a run puts aside and a replay brings back is, together, what a run without rejects gives."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from etlcli.engine.pipeline import Pipeline
from etlcli.engine.replay import Replay, waiting
from etlcli.observe.logs import Log
from etlcli.recipe.load import load_recipe

RECIPE = """
version: 1
name: r
source: {uses: read, with: {paths: in}, on_error: {then: quarantine}}
steps:
  - {id: first, uses: validate, with: {schema: first}, on_error: {then: quarantine}}
  - {id: order, uses: sort, with: {by: n}}
  - {id: second, uses: validate, with: {schema: second}, on_error: {then: quarantine}}
sink: {uses: write, with: {path: out}}
errors: {quarantine: q}
"""
LINES = st.sampled_from(
    ['{"n":%d,"id":%d}', '{"n":"%d","id":%d}', "garbage %d %d", '{"n":%d,"id":"%d"}', '{ "n": %d.0 , "id":%d}']
)
LOG = Log("error")


class Work:
    def __init__(self, directory: str, lines: list[str]) -> None:
        self.at = Path(directory)
        (self.at / "recipe").write_text(RECIPE)
        (self.at / "in").write_text("".join(line + "\n" for line in lines))

    def schemas(self, first: Any, second: Any) -> None:
        for name, schema in (("first", first), ("second", second)):
            (self.at / name).write_text(json.dumps(schema))

    def run(self) -> list[bytes]:
        Pipeline(load_recipe(str(self.at / "recipe")), LOG).run()
        return (self.at / "out").read_bytes().splitlines()

    def replay(self) -> tuple[list[bytes], int]:
        """The healed records, and how many stay."""
        recipe = load_recipe(str(self.at / "recipe"), ["sink.with.path=healed"])
        run = Replay(recipe, str(self.at / "q"), waiting(str(self.at / "q"), LOG), LOG)
        run.run()
        return (self.at / "healed").read_bytes().splitlines(), run.kept


@settings(max_examples=60, deadline=None)
@given(st.lists(LINES, max_size=12), st.booleans(), st.booleans())
def test_a_run_and_its_replay_are_a_clean_run(shapes: list[str], mend_first: bool, mend_second: bool) -> None:
    lines = [shape % (number * 7 % 5, number) for number, shape in enumerate(shapes)]
    strict, loose = {"properties": {"n": {"type": "integer"}}}, {"properties": {"id": {"type": "integer"}}}
    with TemporaryDirectory() as directory:
        work = Work(directory, lines)
        mended = {} if mend_first else strict, {} if mend_second else loose
        work.schemas(*mended)
        clean = work.run()
        (work.at / "q").unlink(missing_ok=True)
        work.schemas(strict, loose)
        first = work.run()
        (work.at / "q").touch()
        rejected = len(lines) - len(first)
        work.schemas(*mended)
        healed, kept = work.replay()
        assert sorted(first + healed) == sorted(clean)
        assert len(healed) + kept == rejected
        assert work.replay() == ([], kept)  # what was healed is not touched again, what stays is not twice there
