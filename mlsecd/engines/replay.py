"""Recorded records through the same fold as the daemon's: faster than time, to the same findings."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mlsecd.engines.fold import Fold
from mlsecd.engines.hold import Hold
from mlsecd.jsonlines import RECORDED_LINE_BYTES, Decoder
from mlsecd.meters import Meters
from mlsecd.records import Finding, Kind, Records, RequestBatch
from mlsecd.sources.files import read_chunks

__all__ = ["records_of", "replay"]

Progress = Callable[[int, int], None]  # bytes read, bytes in all (0 where unknown)

_EVERY_KIND = frozenset(Kind)


def replay(fold: Fold, records: Iterable[Records]) -> Iterator[Finding]:
    """Fold records and yield the findings' lines as they come."""
    for one in records:
        yield from fold.push([one])
    yield from fold.finish()


def records_of(paths: list[str], meters: Meters, progress: Progress | None = None) -> Iterator[Records]:
    """Records of one file in its own order; of several, merged by event time.

    Each path is a plain file, a ``.gz`` file, or ``-`` for standard input.

    Raises
    ------
    RecordError
        A file cannot be read; what was readable before it has been yielded.
    """
    readers = [_Reader(path, meters, progress) for path in paths]
    if len(readers) == 1:
        yield from readers[0].pieces
        return
    hold = Hold(sys.maxsize, meters)  # holds a chunk a file: the furthest behind is always read first
    while readers:
        furthest_behind = min(readers, key=lambda reader: reader.latest)
        if not furthest_behind.read(hold):
            readers.remove(furthest_behind)
        frontier = min((reader.latest for reader in readers), default=math.inf)
        yield from hold.release(frontier).pieces(_EVERY_KIND)


class _Reader:
    """One file, and the latest event time that was read from it."""

    def __init__(self, path: str, meters: Meters, progress: Progress | None) -> None:
        decoder = Decoder(meters, "replay", max_line_bytes=RECORDED_LINE_BYTES)
        source = path if path == "-" else Path(path)
        chunks = read_chunks(source, max_line_bytes=RECORDED_LINE_BYTES, progress=progress)
        self.pieces = (piece for lines in chunks for piece in decoder.decode(lines))
        self.latest = -math.inf

    def read(self, hold: Hold) -> bool:
        """Read one piece into ``hold``; False at the end of the file."""
        piece = next(self.pieces, None)
        if piece is None:
            return False
        hold.add(piece)
        last = float(piece.completion.max()) if isinstance(piece, RequestBatch) else piece.ts
        self.latest = max(self.latest, last)
        return True
