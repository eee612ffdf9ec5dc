"""`dedupe-cache` against models of a few lines: in one run and over several, in memory and spilled."""

from __future__ import annotations

import json
from contextlib import ExitStack
from decimal import Decimal
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_sort import few, records, values

from etlcli.core.batch import Batch
from etlcli.core.keys import keys_of, texts_of, texts_of_records
from etlcli.core.ledger import StepCount
from etlcli.core.stage import Context
from etlcli.io.stepfiles import StepFiles
from etlcli.stages import dedupe_cache
from etlcli.stages.dedupe_cache import DedupeCache

MEMORY = 512 << 20

# -- The model -------------------------------------------------------------------------------------------------------


def same(value: Any) -> Any:
    """Something hashable that is equal where values are."""
    if isinstance(value, dict):
        return "object", tuple(sorted((name, same(item)) for name, item in value.items()))
    if isinstance(value, list):
        return "array", tuple(map(same, value))
    return ("number", value) if isinstance(value, Decimal) else (type(value).__name__, value)


def decoded(line: bytes) -> Any:
    return json.loads(line, parse_int=Decimal, parse_float=Decimal)


def field(record: Any, path: str) -> Any:
    for part in path.split("."):
        record = record[part] if isinstance(record, dict) and part in record else KeyError
    return record


def key_of(line: bytes, fields: list[str]) -> Any:
    record = decoded(line)
    return same([field(record, path) for path in fields] if fields else record)


def model(lines: list[bytes], fields: list[str], keep: str) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """What passes, the duplicates, and what lacks a key field."""
    lacking = [line for line in lines if any(field(decoded(line), path) is KeyError for path in fields)]
    rest = [line for line in lines if line not in lacking]
    keys = [key_of(line, fields) for line in rest]
    step = 1 if keep == "first" else -1
    places = dict(zip(keys[::-step], range(len(keys))[::-step], strict=True))
    passing = set(places.values())
    return (
        [line for place, line in enumerate(rest) if place in passing],
        [line for place, line in enumerate(rest) if place not in passing],
        lacking,
    )


class Remembering:
    """The cache over several runs: keys in the order of their last use, each with the time it was seen."""

    def __init__(self, ttl: float | None, most: int | None) -> None:
        self.seen: dict[Any, float] = {}
        self.ttl = ttl
        self.most = most

    def run(self, keys: list[Any], now: float) -> list[int]:
        passing = []
        for place, key in enumerate(keys):
            seen = self.seen.get(key)
            if seen is None or (self.ttl is not None and now - seen >= self.ttl):
                passing.append(place)
                seen = now
            if self.most is not None:
                self.seen.pop(key, None)
            self.seen[key] = seen
            if self.most is not None and len(self.seen) > self.most:
                del self.seen[next(iter(self.seen))]
        return passing


# -- The stage -------------------------------------------------------------------------------------------------------


def run(
    lines: list[bytes], cuts: list[int], options: dict[str, Any], memory: int = MEMORY, base: str = "", publish=True
) -> tuple[list[bytes], list[bytes], dict[str, int]]:
    """What comes out, what is rejected, and what is discarded. Every other batch comes from a worker."""
    count = StepCount("dedupe-cache")
    edges = [0, *sorted(cut % (len(lines) + 1) for cut in cuts), len(lines)]
    out: list[bytes] = []
    rejected: list[bytes] = []
    with ExitStack() as resources:
        context = Context(
            count,
            resources=resources,
            files=StepFiles("step", resources, lambda *a, **k: None),
            log=lambda *a, **k: None,
            reject=rejected.extend,
            memory=memory,
            base_dir=base,
        )
        stage = DedupeCache(DedupeCache.Params(**options), context)
        for number, (start, end) in enumerate(pairwise(edges)):
            prepared = stage.prepare(Batch.of_lines(lines[start:end]))
            rejected += [reject.raw for reject in prepared.rejects]
            if number % 2 == 0:
                prepared = stage.unsent(prepared)
            for batch in stage.apply(prepared):
                out += batch.lines
        for batch in stage.finish():
            out += batch.lines
        if publish:
            stage.commit()
    return out, rejected, dict(count.discarded)


cuts = st.lists(st.integers(0, 1000), max_size=4)


@settings(max_examples=80, deadline=None)
@given(records(st.one_of(few, values)), cuts, st.sampled_from([[], ["k"], ["k", "s"], ["in.k"]]),
       st.sampled_from(["first", "last"]), st.sampled_from([MEMORY, 2000, 1]))  # fmt: skip
@example([b'{"k":1}', b'{"k":1.0}', b'{"k":true}', b'{"k":"1"}'], [2], ["k"], "first", MEMORY)
@example([b'{"a":1,"b":[2]}', b'{"b":[2.0], "a":10e-1}', b'{"a":-0,"b":0}', b'{"a":0.0,"b":-0.0}'], [], [], "last", 1)
@example(
    [b'{"k":1e23}', b'{"k":1' + b"0" * 23 + b"}", b'{"k":1e5000}', b'{"k":1' + b"0" * 5000 + b"}"], [], [], "first", 1
)
@example([b'{"k":null}', b'{"s":1}', b'{"k":null}'], [1], ["k"], "first", 1)
@example([b'{"k":1e3999}', b'{"k":1' + b"0" * 3999 + b"}"], [], ["k"], "first", MEMORY)
@example([b'{"k":-1e4299}', b'{"k":-1' + b"0" * 4299 + b"}"], [], ["k"], "first", MEMORY)
def test_against_the_model(lines: list[bytes], cuts: list[int], fields: list[str], keep: str, memory: int) -> None:
    passing, duplicates, lacking = model(lines, fields, keep)
    with TemporaryDirectory() as directory, mock.patch.object(dedupe_cache, "_OUT", 2):
        options = {"key": fields or None, "keep": keep, "dupes": "dupes"}
        out, rejected, discarded = run(lines, cuts, options, memory, directory)
        assert out == passing
        assert rejected == lacking
        assert discarded.get("duplicate", 0) == len(duplicates)
        assert (Path(directory) / "dupes").read_bytes() == b"".join(line + b"\n" for line in duplicates)


# Batches of keys, each greater than those before, in some order; and some other keys among them.
rising = st.lists(st.permutations(range(4)), max_size=6).map(
    lambda batches: [[5 * number + key for key in keys] for number, keys in enumerate(batches)]
)


@settings(max_examples=200, deadline=None)
@given(
    rising,
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=3),
    st.booleans(),
    st.sampled_from([MEMORY, 2000, 1]),
)
@example([[1, 50, 30, 35, 40], [41, 50, 60]], [], False, MEMORY)
@example([[3, 10], [11, 3, 12, 13, 14]], [], False, MEMORY)
def test_keys_that_rise_from_batch_to_batch(
    batches: list[list[int]], others: list[tuple[int, int]], text: bool, memory: int
) -> None:
    for place, key in others:
        if place < len(batches):
            batches[place].append(key)
    lines = [b'{"k":"%06d"}' % key if text else b'{"k":%d}' % key for keys in batches for key in keys]
    ends = list(accumulate(map(len, batches)))
    out, _, _ = run(lines, ends, {"key": ["k"]}, memory)
    assert out == list(dict.fromkeys(lines))


runs = st.lists(st.tuples(st.lists(st.integers(0, 7), max_size=12), cuts, st.integers(0, 40)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(runs, st.sampled_from([None, 5, 30]), st.sampled_from([None, 1, 2, 3, 5]), st.sampled_from([MEMORY, 1000, 1]))
def test_over_several_runs(batches: Any, ttl: float | None, most: int | None, memory: int) -> None:
    remembered, now = Remembering(ttl, most), 1000.0
    with TemporaryDirectory() as directory:
        for keys, edges, later in batches:
            now += later
            lines = [b'{"k":%d,"n":%d}' % (key, place) for place, key in enumerate(keys)]
            options = {"key": "k", "cache": "c", "ttl": ttl, "max_entries": most}
            with mock.patch.object(dedupe_cache, "time", lambda now=now: now):
                forgotten, _, _ = run(lines, edges, options, memory, directory, publish=False)
                out, _, _ = run(lines, edges, options, memory, directory)
            expected = [lines[place] for place in remembered.run(keys, now)]
            assert forgotten == out == expected, "a run that was not published leaves no trace"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5),
    st.sampled_from([None, 5, 15, 30]),
    st.sampled_from([MEMORY, 1]),
)
@example([[0] * 9, [1] * 9, [0] * 9], 15, MEMORY)
def test_time_that_passes_in_one_run(batches: list[list[int]], ttl: float | None, memory: int) -> None:
    remembered, expected = Remembering(ttl, None), []
    lines = [b'{"k":%d,"n":%d}' % (key, place) for place, key in enumerate(chain.from_iterable(batches))]
    rest, times = iter(lines), []
    for number, keys in enumerate(batches):
        if keys:
            times.append(1000.0 + 10 * number)
            here = list(islice(rest, len(keys)))
            expected += [here[place] for place in remembered.run(keys, times[-1])]
    ends = list(accumulate(map(len, batches)))
    with mock.patch.object(dedupe_cache, "time", iter(times).__next__):
        out, _, _ = run(lines, ends, {"key": "k", "ttl": ttl}, memory)
    assert out == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=3),
    cuts,
    st.integers(1, 6),
    st.sampled_from([MEMORY, 700, 1]),
)
def test_most_recent_in_one_run(keys: list[list[int]], cuts: list[int], most: int, memory: int) -> None:
    flat = [key for part in keys for key in part]
    lines = [b'{"k":%d,"n":%d}' % (key, place) for place, key in enumerate(flat)]
    out, _, _ = run(lines, cuts, {"key": "k", "max_entries": most}, memory)
    assert out == [lines[place] for place in Remembering(None, most).run(flat, 0.0)]


@settings(max_examples=150, deadline=None)
@given(st.lists(values, min_size=1, max_size=6))
def test_whole_record_and_its_only_field_agree(found: list[str]) -> None:
    lines = [f'{{"k":{value}}}'.encode() for value in found]
    keys = texts_of_records(Batch.of_lines(lines))
    equal = [[same(decoded(one)) == same(decoded(other)) for other in lines] for one in lines]
    assert equal == [[one == other for other in keys] for one in keys]
    columns = Batch.of_lines(lines).columns((("k",),))
    short = keys_of(columns)
    assert equal == [[one == other for other in short] for one in short]
    assert list(map(str, short)) == texts_of(columns)
