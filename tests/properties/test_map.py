"""`map` against a plain model over dicts, and `filter` and `map` however the input is cut."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from etlcli.core import reshape
from etlcli.core.batch import Batch
from etlcli.core.ledger import StepCount
from etlcli.core.stage import Context, Prepared
from etlcli.io.stepfiles import StepFiles
from etlcli.stages.map import Map

Record = dict[str, Any]
NAMES = ("a", "b", "o", "é")
names = st.sampled_from(NAMES)
paths = st.one_of(
    names, names, st.tuples(st.just("o"), names).map(".".join), st.tuples(names, names, names).map(".".join)
)
numbers = st.integers(-3, 3)
values = st.one_of(
    numbers,
    numbers,
    st.none(),
    st.sampled_from(["x", "é"]),
    st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, numbers)),
)
records = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, values)), max_size=6)
# Alike, so that many can be changed at once.
alike = st.permutations(NAMES).flatmap(
    lambda order: st.lists(
        st.tuples(*(values for _ in order)).map(lambda row: dict(zip(order, row, strict=True))), min_size=2, max_size=4
    )
)
spacing = st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")])


class Bad(Exception):
    pass


def look(record: Any, path: str) -> Any:
    for name in path.split("."):
        record = record.get(name) if isinstance(record, dict) else None
    return record


def put(record: Record, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if record.get(name) is None:
            record[name] = {}
        record = record[name]
        if not isinstance(record, dict):
            raise Bad
    record[last] = value


def parent_of(record: Any, path: str) -> Any:
    head, _, last = path.rpartition(".")
    return (look(record, head) if head else record), last


def keep(record: Record, kept: list[str]) -> Record:
    tree: dict[str, list[str] | None] = {}
    for path in kept:
        name, _, rest = path.partition(".")
        if not rest:
            tree[name] = None
        elif tree.get(name, []) is not None:
            tree[name] = [*(tree.get(name) or []), rest]
    found: Record = {}
    for name, inner in tree.items():
        if name in record:
            if inner is None:
                found[name] = record[name]
            elif isinstance(record[name], dict) and (part := keep(record[name], inner)):
                found[name] = part
    return found


def model(
    record: Record, sets: list[tuple[str, str, int]], drop: list[str], kept: list[str], rename: tuple[str, str] | None
) -> Record:
    record = json.loads(json.dumps(record))
    for target, source, number in sets:
        value = look(record, source)
        if value is not None:
            if not isinstance(value, int):
                raise Bad
            value += number
        put(record, target, value)
    for path in drop:
        parent, last = parent_of(record, path)
        if isinstance(parent, dict):
            parent.pop(last, None)
    if kept:
        record = keep(record, kept)
    if rename:
        old, new = rename
        parent, last = parent_of(record, old)
        if isinstance(parent, dict) and last in parent:
            if new in parent:
                raise Bad
            items = [(new if name == last else name, value) for name, value in parent.items()]
            parent.clear()
            parent.update(items)
    return record


def outcome(record: Record, *changes: Any) -> Record | None:
    try:
        return model(record, *changes)
    except Bad:
        return None


def stage(options: dict[str, Any]) -> Map:
    context = Context(
        StepCount("map"),
        resources=ExitStack(),
        files=StepFiles("step", ExitStack(), lambda *a, **k: None),
        log=lambda *a, **k: None,
        reject=lambda rejects: None,
    )
    return Map(Map.Params(**options), context)


def lines_of(prepared: list[Prepared]) -> list[bytes]:
    return [line for part in prepared for line in part.batch.lines]


assignments = st.lists(st.tuples(paths, paths, st.integers(0, 2)), max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    records=records | alike, sets=assignments, drop=st.lists(paths, max_size=2), kept=st.lists(paths, max_size=3),
    rename=st.none() | st.tuples(paths, st.sampled_from([*NAMES, "new"])), separators=spacing,
)  # fmt: skip
def test_as_a_plain_model_has_it(records: list[Record], sets: list[tuple[str, str, int]], drop: list[str], kept: list[str],
                                 rename: tuple[str, str] | None, separators: tuple[str, str]) -> None:  # fmt: skip
    if rename and rename[0].rpartition(".")[2] == rename[1]:
        rename = None
    options: dict[str, Any] = {"set": [f"{a} = {b} + {n}" for a, b, n in sets], "drop": drop, "keep": kept}
    if rename:
        head, dot, _ = rename[0].rpartition(".")
        options["rename"] = f"{rename[0]}={head}{dot}{rename[1]}"
    options = {name: value for name, value in options.items() if value}
    if not options:
        return
    lines = [json.dumps(record, separators=separators, ensure_ascii=False).encode() for record in records]
    found = [outcome(record, sets, drop, kept, rename) for record in records]

    prepared = stage(options).prepare(Batch.of_lines(lines))
    out = lines_of([prepared])
    # Order of the fields too, which the text of a dict shows and its value does not.
    assert [json.dumps(json.loads(line)) for line in out] == [
        json.dumps(record) for record in found if record is not None
    ]
    assert [reject.raw for reject in prepared.rejects] == [
        line for line, record in zip(lines, found, strict=True) if record is None
    ]
    assert {reject.code for reject in prepared.rejects} <= {"bad_type"}
    unchanged = {
        line for line, record, new in zip(lines, records, found, strict=True) if json.dumps(record) == json.dumps(new)
    }
    if not sets and not (kept and len(options) == 1):
        assert unchanged <= set(out)

    with mock.patch.object(reshape, "_PART", 10):  # a record or two at a time
        assert lines_of([stage(options).prepare(Batch.of_lines(lines))]) == out
    alone = [stage(options).prepare(Batch.of_lines([line])) for line in lines]
    assert lines_of(alone) == out
    assert [reject for part in alone for reject in part.rejects] == list(prepared.rejects)
