"""YAML 1.2, of JSON's types only: recipes and YAML data are read by this one loader.

It is built on PyYAML's events, not on its constructors: libyaml's composer dies of deep nesting, and YAML 1.1 reads `no` as
false. Here plain scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/, 10.3): null, true and false
in their three spellings, decimal, `0o` and `0x` integers, floats. Everything else is a string, dates and `yes` among them.
Refused, with line and column: tags, merge keys, keys that are no scalars, duplicate keys, .inf and .nan, more than
`max_depth` levels, and aliases that unfold to more than MAX_UNFOLDED values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

MAX_DEPTH = 100
MAX_UNFOLDED = 1_000_000
"""Characters and values that all aliases of one document may stand for."""

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NO_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# More than any version takes for a number, a date or a base-60 integer: quoting too much does no harm.
_NUMBER_LIKE = re.compile(r"[-+]?\.?[0-9]|[-+]?\.(inf|nan)", re.IGNORECASE)
_WORDS_OF_YAML_1_1 = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """What is wrong, and where: `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"{message} (line {line}, column {column})")
        self.message = message
        self.line = line
        self.column = column


class Number:
    """A number in the spelling it had, which is valid JSON."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def plain(self) -> int | float:
        return int(self.text) if re.fullmatch(r"-?\d+", self.text) else float(self.text)


class Node:
    """A value and where it stands. `value` is None, bool, str, Number, a list of nodes, or a dict from key to node; for a
    dict, `key_marks` has the line and column of each key."""

    __slots__ = ("column", "key_marks", "line", "name", "size", "value")

    def __init__(self, value: Any, line: int, column: int) -> None:
        self.value = value
        self.line = line
        self.column = column
        self.size = 1
        self.name = ""
        """Where it comes from, if that is not a place in the text."""
        self.key_marks: dict[str, tuple[int, int]] = {}

    def copy(self) -> Node:
        """A node of its own, with the same nodes in it."""
        node = Node(self.value.copy() if isinstance(self.value, dict | list) else self.value, self.line, self.column)
        node.key_marks, node.name = dict(self.key_marks), self.name
        return node

    def plain(self) -> Any:
        """As Python data."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value.plain() if isinstance(self.value, Number) else self.value


def load(text: bytes, *, name: str, max_bytes: int = 1 << 20, max_depth: int = MAX_DEPTH) -> Node:
    """The one document in `text`; null if it is empty. Raises YamlError."""
    if len(text) > max_bytes:
        raise YamlError(f"{name} is larger than {max_bytes} bytes", 1, 1)
    nodes = documents(text, max_depth=max_depth)
    first = next(nodes, None) or Node(None, 1, 1)
    second = next(nodes, None)
    if second is not None:
        raise YamlError("a second document begins here; one is expected", second.line, second.column)
    return first


def documents(stream: Any, *, max_depth: int = MAX_DEPTH) -> Iterator[Node]:
    """The documents of a stream (bytes, or an object with `read`), one at a time. Raises YamlError."""
    builder = _Builder(max_depth)
    try:
        for event in yaml.parse(stream, Loader=_Loader):
            if isinstance(event, yaml.DocumentStartEvent):
                builder = _Builder(max_depth)
            elif isinstance(event, yaml.DocumentEndEvent):
                if builder.root is not None:
                    yield builder.root
            elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                builder.add(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(str(part) for part in (error.problem, error.context) if part)
        if "maximum nesting depth" in message:  # libyaml looks ahead, and has a limit of its own, far beyond this one
            raise YamlError(_too_deep(max_depth), *_place(mark)) from None
        raise YamlError(f"not YAML: {message}", *_place(mark)) from None
    except yaml.reader.ReaderError as error:
        raise YamlError(f"not YAML: {error.reason}", *_line_of(stream, error.position)) from None


def _too_deep(max_depth: int) -> str:
    return f"nested deeper than {max_depth} levels"


class _Builder:
    """Puts one document together from its events, without recursion."""

    def __init__(self, max_depth: int) -> None:
        self.root: Node | None = None
        self._max_depth = max_depth
        self._open: list[tuple[Node, str | None]] = []
        self._anchors: dict[str, Node] = {}
        self._unfolded = 0

    def add(self, event: Any) -> None:
        if isinstance(event, yaml.CollectionEndEvent):
            node, anchor = self._open.pop()
            self._anchor(anchor, node)
            if self._open:
                self._open[-1][0].size += node.size
            return
        line, column = _place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise YamlError(f"the alias *{event.anchor} stands for nothing that is complete here", line, column)
            node = self._anchors[event.anchor]
            self._unfolded += node.size
            if self._unfolded > MAX_UNFOLDED:
                raise YamlError(f"aliases unfolded are more than {MAX_UNFOLDED} values and characters", line, column)
            self._put(node, line, column)
            return
        if getattr(event, "tag", None) and not (event.tag == "!" and isinstance(event, yaml.ScalarEvent)):
            raise YamlError(f"tags such as {event.tag} are not taken; write the value itself", line, column)
        if isinstance(event, yaml.ScalarEvent):
            if self._wants_key():
                self._key(event, line, column)
                return
            node = Node(_scalar(event, line, column), line, column)
            node.size += len(event.value)
            self._anchor(event.anchor, node)
            self._put(node, line, column)
            return
        node = Node({} if isinstance(event, yaml.MappingStartEvent) else [], line, column)
        self._put(node, line, column)
        self._open.append((node, event.anchor))
        if len(self._open) > self._max_depth:
            raise YamlError(_too_deep(self._max_depth), line, column)

    def _wants_key(self) -> bool:
        """Whether the next event is the key of a mapping: none waits for its value."""
        if not self._open:
            return False
        node = self._open[-1][0]
        return isinstance(node.value, dict) and _WAITING not in node.value

    def _key(self, event: Any, line: int, column: int) -> None:
        node = self._open[-1][0]
        if event.value == "<<" and event.implicit[0]:
            raise YamlError("merge keys (<<) are not taken; repeat the values", line, column)
        if event.value in node.key_marks:
            first = node.key_marks[event.value][0]
            raise YamlError(f"the key {event.value!r} is there already, in line {first}", line, column)
        node.key_marks[event.value] = (line, column)
        node.value[_WAITING] = event.value

    def _put(self, node: Node, line: int, column: int) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1][0]
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif _WAITING not in parent.value:
            raise YamlError("a key must be a plain text or number", line, column)
        else:
            parent.value[parent.value.pop(_WAITING)] = node
        if node.value.__class__ not in (dict, list) or node.size > 1:
            parent.size += node.size

    def _anchor(self, name: str | None, node: Node) -> None:
        if name:
            self._anchors[name] = node


_WAITING: Any = object()


def _scalar(event: Any, line: int, column: int) -> Any:
    text: str = event.value
    if not event.implicit[0]:  # quoted or a block
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _JSON_NUMBER.fullmatch(text):
        return Number(text)
    if _NO_JSON.fullmatch(text):
        raise YamlError(f"JSON has no {text}", line, column)
    return _other_number(text)


def _other_number(text: str) -> Any:
    """Numbers YAML spells in ways JSON does not: 0x1f, 0o17, +1, .5, 1., 007."""
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return Number(str(int(text, 16)))
    if re.fullmatch(r"0o[0-7]+", text):
        return Number(str(int(text[2:], 8)))
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    sign = "-" if text[0] == "-" else ""
    digits, _, exponent = text.lstrip("+-").lower().partition("e")
    whole, point, fraction = digits.partition(".")
    spelled = sign + (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else ".0" if point else "")
    return Number(spelled + (f"e{exponent}" if exponent else ""))


def is_plain_string(text: str) -> bool:
    """Whether a reader of YAML 1.1 or 1.2 takes the unquoted text for a string. (Whether it can stand unquoted at all is
    the emitter's to know.)"""
    if text in _CONSTANTS or _NUMBER_LIKE.match(text) or text.lower() in _WORDS_OF_YAML_1_1:
        return False
    return text not in ("<<", "=") and not _CONTROL.search(text)


def _place(mark: Any) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _line_of(stream: Any, position: Any) -> tuple[int, int]:
    if not isinstance(stream, bytes) or not isinstance(position, int):
        return 1, 1
    before = stream[:position]
    return before.count(b"\n") + 1, position - before.rfind(b"\n")
