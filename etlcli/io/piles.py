"""Records on disk whose keys are few: runs of piles, which are merged without a look at the records.

A pile is a stretch of lines with equal keys. The piles of a run lie one after another, in the order of their keys, and an
index in a file of its own has a line for each: its key in hex, the run's number, the pile's in the run, its records and
its bytes. In the order of their bytes these lines are in the order of the result, so a merge sorts them and copies the
piles one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etlcli.core.files import Run, Spill
from etlcli.io.spill import LineSorter, merged_down, share_of

_BLOCK = 1 << 20


class Pile(NamedTuple):
    key: bytes
    """In hex."""
    records: int
    chunk: bytes
    """Its lines, each with its newline."""


class PiledRun(NamedTuple):
    number: int
    lines: Run
    entries: Run
    """Its part of the index."""

    @classmethod
    def load(cls, state: Sequence[Any]) -> PiledRun:
        """What a snapshot made of it."""
        number, lines, entries = state
        return cls(number, Run(*lines), Run(*entries))


class Piles:
    """Piles in, run by run, and out in the order of their keys, those of earlier runs first among equals. About `memory`
    bytes of them are loaded at a time, or one pile of each run."""

    def __init__(self, lines: Spill, index: Spill, memory: int, runs: Iterable[PiledRun] = ()) -> None:
        """`runs` are in the files already."""
        self._lines = lines
        self._index = index
        self._memory = memory
        self.runs = list(runs)

    def add(self, piles: Iterable[Pile]) -> None:
        """A run, in the order of its keys; equal ones are neighbours."""
        self.runs.append(self._write(len(self.runs), piles))

    def merged(self) -> Iterator[Pile]:
        """All piles."""
        return self._merge(merged_down(self.runs, self._memory // 2, self._merge_to_run))

    def _merge_to_run(self, runs: Sequence[PiledRun]) -> PiledRun:
        return self._write(runs[-1].number, self._merge(runs))

    def _write(self, number: int, piles: Iterable[Pile]) -> PiledRun:
        lines, index = _Writer(self._lines), _Writer(self._index)
        for place, (key, records, chunk) in enumerate(piles):
            lines.write(chunk)
            index.write(b"%b %08x %012x %d %d\n" % (key, number, place, records, len(chunk)))
        return PiledRun(number, lines.run(), index.run())

    def _merge(self, runs: Sequence[PiledRun]) -> Iterator[Pile]:
        share = share_of(self._memory // 2, runs)
        readers = {run.number: _Reader(self._lines.take_run(run.lines, share)) for run in runs}
        for entries in LineSorter(self._index, self._memory // 2, [run.entries for run in runs]).sorted():
            for entry in entries:
                key, number, _, records, size = entry.split(b" ")
                yield Pile(key, int(records), readers[int(number, 16)].read(int(size)))


class _Writer:
    """Writes a run piece by piece."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._pieces: list[bytes] = []
        self._held = 0
        self._run: Run | None = None

    def write(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held >= _BLOCK:
            self._flush()

    def run(self) -> Run:
        """Where it all is."""
        self._flush()
        assert self._run is not None
        return self._run

    def _flush(self) -> None:
        written = self._spill.write_run([b"".join(self._pieces)])
        self._run = Run(self._run.start, self._run.size + written.size) if self._run else written
        self._pieces, self._held = [], 0


class _Reader:
    """Reads the piles of a run, one after another."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._block = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """The next so many bytes. Less than that are there only if the file is damaged."""
        end = self._at + size
        if end > len(self._block):
            rest = [self._block[self._at :]]
            while end > len(self._block):
                end -= len(self._block)
                self._block = next(self._blocks)
                rest.append(self._block[:end])
            self._at = end
            return b"".join(rest)
        self._at, start = end, self._at
        return self._block[start:end]
