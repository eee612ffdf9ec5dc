"""Meters against a plain model that goes from record to record, however the input is cut and wherever it is gone on with."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from etlcli.core.batch import Batch
from etlcli.core.meters import MAX_LABEL, Counter, Gauge, Histogram, Meter, label_texts

Record = dict[str, Any]
BOUNDS = (-1.5, 0.0, 0.1, 2.0)
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.1, 0.2, 0.3, -1.5, 2.0, 2.5, 10**25, 1e23, 1e300, 10**400, -(10**400)])
)
values = st.one_of(numbers, numbers, numbers, st.none(), st.booleans(), st.sampled_from(["1", "x"]), st.just([1]))
texts = st.one_of(
    st.sampled_from(["a", "b", "other", "", 'q"\n\\']), st.integers(0, 2), st.sampled_from([1.5, 1.0, None, True, [1]])
)
records = st.lists(
    st.fixed_dictionaries(
        {}, optional={"v": values, "w": st.sampled_from([1, 0, -1, None, "x"]), "l": texts, "m": texts}
    ),
    max_size=12,
)
declared = st.fixed_dictionaries(
    {
        "when": st.sampled_from([None, "w > 0"]),
        "labels": st.sampled_from([[], ["l"], ["l", "m"], ["l + 1"]]),
        "most": st.integers(1, 3),
    }
)


class Skip(Exception):
    pass


def text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def label(expression: str, record: Record) -> str:
    if expression != "l + 1":
        return text(record.get(expression))
    value = record.get("l")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Skip
    return text(value + 1)


def holds(record: Record) -> bool:
    if isinstance(record.get("w"), str):
        raise Skip
    return (record.get("w") or 0) > 0


def model(
    records: list[Record], value: str | None, when: str | None, labels: list[str], most: int, *, rises: bool
) -> tuple[dict[tuple[str, ...], list[Fraction]], int]:
    """The values observed under each combination of labels, and how many records were skipped."""
    cells: dict[tuple[str, ...], list[Fraction]] = {}
    skipped = 0
    for record in records:
        try:
            if when and not holds(record):
                continue
            number = record.get("v") if value else 1
            if isinstance(number, bool) or not isinstance(number, int | float) or (rises and number < 0):
                raise Skip
            key = tuple(label(each, record) for each in labels)
        except Skip:
            skipped += 1
            continue
        if key not in cells and len(cells) >= most:
            key = ("other",) * len(labels)
        cells.setdefault(key, []).append(Fraction(Decimal(repr(number))))
    return cells, skipped


def batches(records: list[Record], cuts: list[int]) -> list[Batch]:
    places = [0, *sorted(cut % (len(records) + 1) for cut in cuts), len(records)]
    parts = [records[start:end] for start, end in pairwise(places)]
    return [Batch.of_lines([json.dumps(record).encode() for record in part]) for part in parts]


def seen(kind: type[Meter], records: list[Record], cuts: list[int], **options: Any) -> Meter:
    """A meter that has seen it all, and was another after every batch."""
    meter = kind(**options)
    for batch in batches(records, cuts):
        meter.see(batch)
        meter = kind(**options, state=json.loads(json.dumps(meter.snapshot())))
    return meter


cut_anywhere = st.lists(st.integers(0, 12), max_size=4)


@settings(max_examples=400, deadline=None)
@given(records, cut_anywhere, declared, st.sampled_from([None, "v"]))
def test_a_counter(records: list[Record], cuts: list[int], options: dict[str, Any], value: str | None) -> None:
    cells, skipped = model(records, value, **options, rises=True)
    meter = seen(Counter, records, cuts, value=value, **options)
    expected = {key: sum(found) for key, found in cells.items()}
    if not options["labels"]:
        expected = {(): Fraction(0)} | expected
    assert [(key, Fraction(cell)) for key, cell in meter.values()] == list(expected.items())
    assert meter.skipped == skipped


@settings(max_examples=300, deadline=None)
@given(records, cut_anywhere, declared)
def test_a_gauge(records: list[Record], cuts: list[int], options: dict[str, Any]) -> None:
    cells, skipped = model(records, "v", **options, rises=False)
    meter = seen(Gauge, records, cuts, value="v", **options)
    assert [(key, Fraction(cell)) for key, cell in meter.values()] == [(key, found[-1]) for key, found in cells.items()]
    assert meter.skipped == skipped


@settings(max_examples=300, deadline=None)
@given(records, cut_anywhere, declared)
def test_a_histogram(records: list[Record], cuts: list[int], options: dict[str, Any]) -> None:
    cells, skipped = model(records, "v", **options, rises=False)
    meter = seen(Histogram, records, cuts, value="v", bounds=BOUNDS, **options)
    if not options["labels"]:
        cells = {(): []} | cells
    bounds = [Fraction(Decimal(repr(bound))) for bound in BOUNDS]
    assert [key for key, _ in meter.values()] == list(cells)
    for key, cell in meter.values():
        found = cells[key]
        upto = [sum(number <= bound for number in found) for bound in bounds] + [len(found)]
        assert [sum(cell.buckets[: at + 1]) for at in range(len(upto))] == upto
        assert Fraction(cell.sum) == sum(found)
        assert cell.falls == any(number < 0 for number in found)
    assert meter.skipped == skipped


@given(records, declared)
def test_the_columns_alone_are_enough(records: list[Record], options: dict[str, Any]) -> None:
    """As another process sends them."""
    whole, bare = (Counter(value="v", **options) for _ in range(2))
    (batch,) = batches(records, [])
    whole.see(batch)
    sent = batch.columns_only(bare.paths)
    assert not sent.size
    bare.see(sent)
    assert (bare.values(), bare.skipped) == (whole.values(), whole.skipped)


@given(st.lists(st.text(max_size=300)))
def test_a_label_is_cut_between_characters(values: list[str]) -> None:
    for value, label in zip(values, label_texts(values), strict=True):
        assert value.startswith(label)
        size = len(label.encode())
        assert size <= MAX_LABEL
        assert label == value or size > MAX_LABEL - 4


def test_integers_stay_integers_and_floats_are_what_is_written() -> None:
    lines = [b'{"v":9007199254740993}', b'{"v":1}'] * 50
    meter = Counter(value="v")
    meter.see(Batch.of_lines(lines))
    ((_, total),) = meter.values()
    assert (type(total), total) == (int, 50 * 9007199254740994)
    meter = Counter(value="v")
    for _ in range(10):
        meter.see(Batch.of_lines([b'{"v":0.1}']))
    assert meter.values() == [((), Decimal("1.0"))]


def test_what_was_read_does_not_change() -> None:
    """Another thread may still look at it."""
    meter = Histogram(value="v", bounds=(1.0,), labels=["l"])
    meter.see(Batch.of_lines([b'{"v":1,"l":"a"}']))
    before = meter.values()
    copy = list(before)
    meter.see(Batch.of_lines([b'{"v":1,"l":"a"}', b'{"v":1,"l":"b"}']))
    assert before == copy != meter.values()
