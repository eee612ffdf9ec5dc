"""Data made safe to show to a person: no terminal control, no text that turns around, no command to a CI runner."""

from __future__ import annotations

import re

# C0 but tab, DEL, C1, zero-width and bidirectional controls, line separators, surrogates; and the first # of ##[ and
# ##vso[, which runners of CI jobs obey anywhere in a line.
_UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
    r"|#(?=#(?:vso)?\[)"
)


def safe(text: str, limit: int = 2000) -> str:
    """`text` with everything a terminal could obey spelled as an escape, cut at `limit` characters."""
    shown = text if len(text) <= limit else text[:limit] + "…"
    return _UNSAFE.sub(_escape, shown)


def safe_json(text: str) -> str:
    """JSON text with the same characters, which can only stand in its strings, as JSON's own escapes."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
