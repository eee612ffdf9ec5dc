"""Meters: counters, gauges and histograms of what batches hold, which change nothing of them.

A meter looks at every batch that passes one place of a pipeline, in order. What it knows depends on the records and their
order alone, not on how they were cut into batches: sums are exact, and which combinations of label values are among the
first is decided record by record.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import compress, repeat
from typing import Any, ClassVar, NamedTuple

from etlcli.core import exact
from etlcli.core.batch import Batch
from etlcli.core.edit import encode
from etlcli.core.exact import Exact, Number
from etlcli.core.expressions import Expression
from etlcli.core.fields import Column, Path
from etlcli.core.stage import State

OTHER = "other"
"""The value of every label of what is beyond the cap."""
MAX_LABEL = 200
"""Bytes of a label's value."""
_LONG_NUMBER = 4000
_BYTES_OF_A_CHARACTER = 4

Labels = tuple[str, ...]
"""The values of a meter's labels, in the order of their names."""
Columns = Mapping[Path, list[Any]]


class Meter:
    """What the kinds share: which records are looked at, and what their labels are.

    Where the condition does not hold there is no observation. A record whose value is no number, or of which an expression
    cannot be computed, makes none either, and is `skipped`."""

    start: Any = None
    """What a meter without labels shows before there was anything; None for nothing."""
    rises: ClassVar[bool] = False
    """Whether only numbers from 0 on are observed."""

    def __init__(
        self,
        *,
        value: str | None = None,
        when: str | None = None,
        labels: Sequence[str] = (),
        most: int = 100,
        now: float = 0.0,
        state: State | None = None,
    ) -> None:
        """`value`, `when` and `labels` are expressions; without a value every record counts 1. Of more than `most`
        combinations of label values the others are one. `state` is what `snapshot` returned."""
        self._value = Expression(value, now=now) if value is not None else None
        self._when = Expression(when, now=now) if when is not None else None
        self._labels = [Expression(label, now=now) for label in labels]
        self._most = most
        seen = [each for each in (self._value, *self._labels) if each]
        self._seen = tuple(dict.fromkeys(path for each in seen for path in each.paths))
        self.paths = tuple(dict.fromkeys((*(self._when.paths if self._when else ()), *self._seen)))
        """The fields it asks a batch for."""
        self.skipped = 0
        self._cells: dict[Labels, Any] = {}
        if state is not None:
            self.skipped = state["skipped"]
            self._cells = {tuple(labels): self._loaded(cell) for labels, cell in state["cells"]}
        elif self.start is not None and not labels:
            self._cells[()] = self.start

    def values(self) -> list[tuple[Labels, Any]]:
        """What is known, by label values. Any thread may ask; nobody may change it."""
        return list(self._cells.items())

    def snapshot(self) -> State:
        """As JSON can say it."""
        return {
            "skipped": self.skipped,
            "cells": [[list(labels), self._dumped(cell)] for labels, cell in self._cells.items()],
        }

    def see(self, batch: Batch) -> None:
        count = batch.count
        if not count:
            return
        columns: Columns = dict(zip(self.paths, batch.columns(self.paths), strict=True)) if self.paths else {}
        if self._when:
            count, columns = self._selected(self._when, count, columns)
        lost: set[int] = set()
        numbers = self._numbers(count, columns, lost)
        texts = [self._texts(label, count, columns, lost) for label in self._labels]
        if lost:
            self.skipped += len(lost)
            good = [index not in lost for index in range(count)]
            count -= len(lost)
            numbers = list(compress(numbers, good)) if numbers is not None else None
            texts = [list(compress(column, good)) for column in texts]
        if count:
            self._observe(count, numbers, texts)

    def _selected(self, condition: Expression, count: int, columns: Columns) -> tuple[int, Columns]:
        """How many records the condition holds for, and their values."""
        kept, errors = condition.select(count, [columns[path] for path in condition.paths])
        self.skipped += len(errors)
        if len(kept) == count:
            return count, columns
        return len(kept), {path: Column(map(columns[path].__getitem__, kept)) for path in self._seen}

    def _numbers(self, count: int, columns: Columns, lost: set[int]) -> list[Number] | None:
        """The value of each record; `lost` gets those that have none that counts."""
        if self._value is None:
            return None
        values, _ = self._value.values(count, [columns[path] for path in self._value.paths])
        if not self._all_count(values):
            lost.update(index for index, value in enumerate(values) if not self._counts(value))
        return values

    def _all_count(self, values: list[Any]) -> bool:
        """Whether all values surely do, found out at once."""
        return set(map(type, values)) <= {int, float} and not (self.rises and min(values, default=0) < 0)

    def _counts(self, value: Any) -> bool:
        number = type(value) in (int, float, Decimal) and exact.is_countable(value)
        return number and not (self.rises and value < 0)

    def _texts(self, label: Expression, count: int, columns: Columns, lost: set[int]) -> list[str]:
        values, errors = label.values(count, [columns[path] for path in label.paths])
        lost.update(errors)
        return label_texts(values)

    def _observe(self, count: int, numbers: list[Number] | None, texts: list[list[str]]) -> None:
        if not texts:
            groups: Mapping[Labels, list[Number]] = {(): [count] if numbers is None else numbers}
        else:
            keys = self._admitted(list(zip(*texts, strict=True)))
            groups = _tallied(keys) if numbers is None else _grouped(keys, numbers)
        for labels, group in groups.items():
            self._cells[labels] = self._added(self._cells.get(labels, self.start), group)

    def _admitted(self, keys: list[Labels]) -> list[Labels]:
        """The labels under which records count."""
        strange = [key for key in dict.fromkeys(keys) if key not in self._cells]
        beyond = set(strange[max(0, self._most - len(self._cells)) :])
        other = (OTHER,) * len(self._labels)
        return [other if key in beyond else key for key in keys] if beyond else keys

    def _added(self, cell: Any, numbers: list[Number]) -> Any:
        """A cell with one or more numbers, in order, added to it. `cell` stays as it was: another thread may read it."""
        raise NotImplementedError

    def _dumped(self, cell: Any) -> Any:
        return _spelled(cell)

    def _loaded(self, text: Any) -> Any:
        return _read(text)


class Counter(Meter):
    """The sum of the values."""

    start = 0
    rises = True

    def _added(self, cell: Exact, numbers: list[Number]) -> Exact:
        return exact.add(cell, exact.total(numbers))


class Gauge(Meter):
    """The value of the last record."""

    def _added(self, cell: Number | None, numbers: list[Number]) -> Number:
        return numbers[-1]


class Observed(NamedTuple):
    """What a histogram knows."""

    buckets: tuple[int, ...]
    """How many values were in each: up to the first bound, up to the next, and so on, and beyond the last."""
    sum: Exact = 0
    falls: bool = False
    """Whether there were negative values, so that the sum may fall."""


class Histogram(Meter):
    """How many values lie where, and their sum."""

    def __init__(self, *, bounds: Sequence[float], **rest: Any) -> None:
        """`bounds` rise; a value that is one of them is below it."""
        self._bounds = bounds
        self._exact_bounds = list(map(exact.exact, bounds))
        self.start = Observed((0,) * (len(bounds) + 1))
        super().__init__(**rest)

    def _added(self, cell: Observed, numbers: list[Number]) -> Observed:
        buckets = list(cell.buckets)
        for place, count in Tally(self._places(numbers)).items():
            buckets[place] += count
        sum_ = exact.add(cell.sum, exact.total(numbers))
        return Observed(tuple(buckets), sum_, cell.falls or min(numbers) < 0)

    def _places(self, numbers: list[Number]) -> Any:
        if Decimal in set(map(type, numbers)):
            return map(bisect_left, repeat(self._exact_bounds), map(exact.exact, numbers))
        return map(bisect_left, repeat(self._bounds), numbers)

    def _dumped(self, cell: Observed) -> Any:
        return [cell.buckets, _spelled(cell.sum), cell.falls]

    def _loaded(self, text: Any) -> Any:
        buckets, sum_, falls = text
        return Observed(tuple(buckets), _read(sum_), falls)


def label_texts(values: list[Any]) -> list[str]:
    """Values as those of a label: text as it is, null as an empty one, anything else as JSON has it; cut where it is too
    long."""
    kinds = set(map(type, values))
    texts = values if kinds == {str} else list(map(_text, values))
    if max(map(len, texts), default=0) * _BYTES_OF_A_CHARACTER > MAX_LABEL:
        texts = [text.encode()[:MAX_LABEL].decode(errors="ignore") for text in texts]
    return texts


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    return "" if value is None else encode(value).decode()


def _tallied(keys: list[Labels]) -> dict[Labels, list[Number]]:
    return {key: [count] for key, count in Tally(keys).items()}


def _grouped(keys: list[Labels], numbers: list[Number]) -> dict[Labels, list[Number]]:
    groups: defaultdict[Labels, list[Number]] = defaultdict(list)
    for key, number in zip(keys, numbers, strict=True):
        groups[key].append(number)
    return groups


def _spelled(number: Number) -> str:
    return str(exact.spelled(exact.exact(number)))


def _read(text: str) -> Exact:
    whole = text.removeprefix("-").isdecimal() and len(text) < _LONG_NUMBER
    return int(text) if whole else Decimal(text)
