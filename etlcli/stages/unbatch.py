"""`unbatch`: the records of batches, as they were. All of it is `prepare`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from etlcli.core.batch import Batch, Reject
from etlcli.core.fields import MISSING
from etlcli.core.stage import Prepared, Stage

_RECORDS = "records"
_OUT = 16384
_open_records = msgspec.json.Decoder(
    msgspec.defstruct("Opened", [(_RECORDS, msgspec.Raw | msgspec.UnsetType, MISSING)])
).decode
_open_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Unbatch(Stage):
    help = """Put out the records that batches hold, each with its own bytes: what `etl batch` took in.

Only `records` is looked at: a batch may have lost or gained records since it was made. A record without `records`, or
with one that is no object, is rejected as a whole."""
    examples = (
        ("etl batch --size 100 flights.ndjson | etl unbatch", "the flights again"),
        ("etl group --by carrier --emit list flights.ndjson | etl unbatch", "the flights, carrier by carrier"),
    )

    def prepare(self, batch: Batch) -> Prepared:
        lines: list[bytes] = []
        rows: list[int] = []
        rejects: list[Reject] = []
        for index, line in enumerate(batch.lines):
            try:
                found = _records(line)
            except _NoBatch as problem:
                rejects.append(batch.reject(index, problem.code, [problem.error]))
                continue
            lines += found
            rows += [index] * len(found)
        return Prepared(batch.take(rows).replace(dict(enumerate(lines))), rejects, extra=batch.count - len(rejects))

    def apply(self, prepared: Prepared) -> Iterable[Batch]:
        self.ctx.absorb("unbatched", prepared.extra, into=prepared.batch.count)
        if prepared.batch.count <= _OUT:
            yield prepared.batch
            return
        for start in range(0, prepared.batch.count, _OUT):
            yield prepared.batch.take(range(start, min(start + _OUT, prepared.batch.count)))


class _NoBatch(Exception):
    def __init__(self, code: str, message: str, pointer: str = f"/{_RECORDS}") -> None:
        self.code = code
        self.error: dict[str, Any] = {"pointer": pointer, "message": message}


def _records(line: bytes) -> list[bytes]:
    opened: Any = _open_records(line)
    if opened.records is MISSING:
        raise _NoBatch("missing_field", "not a batch: it has no records")
    array = bytes(opened.records).strip()
    if array[:1] != b"[":
        raise _NoBatch("bad_type", "not a batch: its records are no array")
    found = list(map(bytes, _open_array(array)))
    for number, record in enumerate(found):
        if record[:1] != b"{":
            raise _NoBatch("bad_type", "not a record: no object", f"/{_RECORDS}/{number}")
    return found if b"[%b]" % b",".join(found) == array else _spaced(array, found)


def _spaced(array: bytes, records: list[bytes]) -> list[bytes]:
    """The same records with the space around them: a line may begin and end with some."""
    starts, at = [], 0
    for record in records:
        at = array.index(record, at) + len(record)
        starts.append(at)
    ends = [array.index(b",", at) for at in starts[:-1]]
    return [array[start + 1 : end] for start, end in zip([0, *ends], [*ends, len(array) - 1], strict=True)]
