"""Figures as people read them."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def count(number: float) -> str:
    """1234567 -> 1,234,567"""
    return f"{number:,.0f}"


def size(bytes: float) -> str:
    """1536 -> 1.5 KiB"""
    for unit in _UNITS:
        if bytes < 1000 or unit == _UNITS[-1]:
            break
        bytes /= 1024
    return f"{bytes:.0f} {unit}" if unit == "B" or bytes >= 100 else f"{bytes:.1f} {unit}"


def duration(seconds: float) -> str:
    """75 -> 1:15, 4000 -> 1:06:40, 0.123 -> 123 ms"""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(part: float, whole: float) -> str:
    return f"{100 * min(1.0, part / whole):.0f} %" if whole else "-"
