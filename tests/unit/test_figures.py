"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etlcli.observe import figures


@pytest.mark.parametrize(
    "function, value, shown",
    [
        (figures.duration, 0, "0 s"), (figures.duration, 0.0004, "< 1 ms"), (figures.duration, 0.042, "42 ms"),
        (figures.duration, 0.9996, "1.0 s"), (figures.duration, 59.96, "1 min 00 s"), (figures.duration, 7512, "2 h 05 min"),
        (figures.size, 0, "0 B"), (figures.size, 1023.9, "1 KiB"), (figures.size, 64 << 20, "64 MiB"), (figures.size, 1.5 * 2**40, "1.5 TiB"),
        (figures.short, 999, "999"), (figures.short, 999.9, "1 k"), (figures.short, 13_690, "13.7 k"), (figures.short, 2.5e9, "2.5 G"),
        (figures.count, 1_204_331, "1,204,331"),
    ],
)  # fmt: skip
def test_quantities(function: Callable[[float], str], value: float, shown: str) -> None:
    assert function(value) == shown


def test_shares() -> None:
    assert figures.percent(1, 100_000) == "< 0.1 %"
    assert figures.percent(1, 3) == "33 %"
    assert figures.percent(1, 0) == "0 %"
