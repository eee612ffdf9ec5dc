"""A store against a dict, whatever it is asked, and however much of it is on disk."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from etlcli.state.store import Store

keys = st.integers(-3, 12) | st.sampled_from(["", '"a"', '"b"', "1.5", "null"])
batches = st.lists(keys, min_size=1, max_size=4, unique=True)
calls = st.lists(st.tuples(st.sampled_from(["admit", "admit", "admit", "admit", "put", "get", "flush"]), batches))
# As numbers come that are given out in order, with a call in between.
rising = st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=8), calls).map(
    lambda drawn: [("admit", [10 * at + step for step in range(size)]) for at, size in enumerate(drawn[0])] + drawn[1]
)


def bounds_of(keys: list[Any]) -> tuple[Any, Any] | None:
    return (min(keys), max(keys)) if len(set(map(type, keys))) == 1 else None


@settings(deadline=None, max_examples=300)
@given(rising | calls, st.booleans(), st.sampled_from([1, 900, 1 << 20]))
@example([("admit", [1, 2]), ("admit", ['"a"']), ("admit", [2, 3])], True, 1 << 20)
@example([("admit", [1, 2]), ("put", [9]), ("admit", [9, 10])], True, 1 << 20)
@example([("admit", [1, 2]), ("admit", [3]), ("admit", [2, 4]), ("admit", [5])], True, 1)
def test_a_store_is_a_dict(calls: list[tuple[str, list[Any]]], bounded: bool, memory: int) -> None:
    model: dict[Any, Any] = {}
    with ExitStack() as resources:
        store: Store[Any] = Store(memory, resources)
        for number, (call, keys) in enumerate(calls):
            value = {"number": number}
            if call == "admit":
                new = [place for place, key in enumerate(keys) if key not in model]
                assert list(store.admit(keys, bounds_of(keys) if bounded else None, value)) == new
                model |= dict.fromkeys((keys[place] for place in new), value)
            elif call == "put":
                store.put(dict.fromkeys(keys, value))
                model |= dict.fromkeys(keys, value)
            elif call == "get":
                assert store.get(keys) == {key: model[key] for key in keys if key in model}
            else:
                store.flush()
        assert store.get(list(model)) == model
        held = store.in_memory()
        assert held is None or held == model


def test_keys_that_rise_are_not_looked_up() -> None:
    with ExitStack() as resources, mock.patch.object(Store, "_unknown", side_effect=AssertionError):
        store: Store[Any] = Store(2000, resources)
        for start in range(0, 100, 5):  # twice what fits into memory
            assert store.admit([start + 1, start + 4, start], (start, start + 4), None) == range(3)
            assert store._rising is not None and len(store._rising) <= 10 // 3
    assert store._table is not None


@pytest.mark.parametrize("rising", [0, 90, 99])
def test_memory_is_counted_however_keys_come(rising: int) -> None:
    limit = 100 * 220
    with ExitStack() as resources:
        store: Store[Any] = Store(limit, resources)
        for key in range(rising):
            assert store.admit([key], (key, key), None) == range(1)
        held = []
        for number in range(300):
            assert list(store.admit([1000 + number * 7919 % 300], None, None)) == [0]
            held.append(len(store._newest))
            assert not store._rising
    assert held[0] == rising + 1
    assert 90 <= max(held) <= 110
