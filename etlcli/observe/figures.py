"""Figures as people read them."""

from __future__ import annotations


def count(number: float) -> str:
    """`1,204,331`."""
    return f"{round(number):,}"


def short(number: float) -> str:
    """`1.2 M`: three digits or so."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{_digits(number / unit)} {name}"
    return _digits(number)


def size(number: float) -> str:
    """Bytes: `64 MiB`, `1.5 GiB`."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= 0.9995 * unit:
            return f"{_digits(number / unit)} {name}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """`85 ms`, `12.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds <= 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{_digits(seconds * 1000)} ms" if seconds >= 0.001 else "< 1 ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def percent(part: float, whole: float) -> str:
    """`0.4 %`, `62 %`."""
    if not part or whole <= 0:
        return "0 %"
    share = 100 * part / whole
    return "< 0.1 %" if share < 0.1 else f"{share:.1f} %" if share < 9.95 else f"{share:.0f} %"


def moment(seconds: float) -> str:
    """`2026-03-01 14:05:09 UTC`."""
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def plural(number: int, word: str) -> str:
    return f"{count(number)} {word}" if number == 1 else f"{count(number)} {word}s"


def _digits(number: float) -> str:
    number = round(number, 1)
    return f"{number:.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"
