"""YAML documents as records, by the rules of YAML 1.2 (`yaml12`), and records as YAML documents.

A document that is a mapping is a record; one that is a sequence is a record an item; an empty one counts as blank. Numbers
keep their spelling both ways. YAML is for small data: a document is held in memory, up to `max_line` bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import yaml

from etlcli.core.batch import Batch, Reject, Span, chunk_of
from etlcli.core.edit import encode, open_array, open_object
from etlcli.errors import DataError
from etlcli.formats import ByteStream, RawChunk, ReadOptions, WriteOptions
from etlcli.formats.yaml12 import Node, Number, YamlError, documents, is_plain_string

_CHUNK = 1 << 18


class Reader:
    """Raises DataError where the YAML is broken: there is no telling where the next document would begin."""

    def __init__(self, stream: ByteStream, options: ReadOptions) -> None:
        self._stream = _Counted(stream, options)
        self._options = options

    def chunks(self) -> Iterator[RawChunk | Reject]:
        lines: list[bytes] = []
        places: list[int] = []
        size = 0
        try:
            for document in documents(self._stream):
                self._stream.document_done()
                for node in document.value if isinstance(document.value, list) else [document]:
                    lines.append(b"" if node.value is None and node is document else encode(_data(node)))
                    places.append(node.line)
                    size += len(lines[-1])
                if size > _CHUNK:
                    yield self._raw(lines, places)
                    lines, places, size = [], [], 0
        except YamlError as error:
            where = f"{self._options.path}:{error.line}"
            raise DataError(f"{where}: {error.message}", where=where, hint="nothing was published") from None
        if lines:
            yield self._raw(lines, places)

    def _raw(self, lines: list[bytes], places: list[int]) -> RawChunk:
        chunk = chunk_of(lines)
        offsets = [self._stream.offset_of(line) for line in places]
        self._stream.forget_before(places[-1])
        return RawChunk(chunk, Span(self._options.path, places[0], offsets[0], chunk, places, offsets))


class _Counted:
    """The stream as the parser reads it: remembers where lines start, and bounds what one document may take."""

    def __init__(self, stream: ByteStream, options: ReadOptions) -> None:
        self._stream = stream
        self._options = options
        self._starts = [0]
        self._forgotten = 0
        self._total = 0
        self._done = 0

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        start = block.find(b"\n") + 1
        while start:
            self._starts.append(self._total + start)
            start = block.find(b"\n", start) + 1
        self._total += len(block)
        if self._total - self._done > self._options.max_line:
            raise DataError(
                f"{self._options.path}: a YAML document of more than --max-line {self._options.max_line} bytes",
                where=self._options.path,
                hint="raise --max-line",
            )
        return block

    def document_done(self) -> None:
        self._done = self._total

    def offset_of(self, line: int) -> int:
        return self._starts[line - 1 - self._forgotten]

    def forget_before(self, line: int) -> None:
        """Nobody will ask for the lines before this one again."""
        del self._starts[: line - 1 - self._forgotten]
        self._forgotten = line - 1


def _data(node: Node) -> Any:
    """The node as data whose numbers are raw text."""
    value = node.value
    if isinstance(value, dict):
        return {key: _data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_data(item) for item in value]
    return msgspec.Raw(value.text.encode()) if isinstance(value, Number) else value


class Writer:
    """A document a record, in block style, each beginning with `---`."""

    def __init__(
        self, out: Callable[[bytes], object], options: WriteOptions, state: dict[str, Any] | None = None
    ) -> None:
        self._out = out

    @classmethod
    def following(cls, old: ByteStream, path: str, options: WriteOptions) -> WriteOptions:
        return options

    def write(self, batch: Batch) -> list[Reject]:
        nodes = [_node(msgspec.Raw(line)) for line in batch.lines]
        if nodes:
            text = yaml.serialize_all(nodes, Dumper=_Dumper, explicit_start=True, allow_unicode=True, width=1 << 30)
            self._out(text.encode())
        return []

    def snapshot(self) -> None:
        return None

    def close(self) -> None:
        pass


_decode = msgspec.json.Decoder(strict=True).decode


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes plain exactly what `_node` tagged as plain; everything else is quoted as need be."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012


def _node(raw: msgspec.Raw) -> yaml.Node:
    """The YAML node of a JSON value, the text of numbers as it stands."""
    text = bytes(raw).strip()
    start = text[:1]
    if start == b"{":
        pairs = [(_string(key), _node(value)) for key, value in open_object(text).items()]
        return yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=not pairs)
    if start == b"[":
        items = [_node(item) for item in open_array(text)]
        return yaml.SequenceNode("tag:yaml.org,2002:seq", items, flow_style=not items)
    if start == b'"':
        return _string(_decode(text))
    # With no implicit resolvers the dumper takes any scalar for a string: numbers, true and null go out as they are.
    return yaml.ScalarNode("tag:yaml.org,2002:str", text.decode())


def _string(value: str) -> yaml.Node:
    style = None if is_plain_string(value) else '"'
    return yaml.ScalarNode("tag:yaml.org,2002:str", value, style=style)
