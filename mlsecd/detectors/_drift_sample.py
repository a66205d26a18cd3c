"""The bounded sample of a model's ordinary rows that a drift reference is frozen from."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_streams import CATEGORIES, SCALARS, SKETCH_WIDTH, Columns
from mlsecd.kernels import Kernels
from mlsecd.records import F8, I4, I8, Text

__all__ = ["NO_CLASS", "OTHER_CLASS", "Sample", "class_name"]

NO_CLASS: Final = -1  # the row has no text in this column
OTHER_CLASS: Final = -2  # it has one that the table has no room for
_BLOCK: Final = 128
_CLASSES_MAX: Final = 1_024
_CLASS_CHARS: Final = 64  # of a class's name: an attacker may choose it


def class_name(name: str) -> str:
    """A class's name, cut to what is kept of it."""
    return name[:_CLASS_CHARS]


@dataclass(slots=True)
class Sample:
    """Rows of a model's beginning, evenly thinned where there are too many.

    Of the rows that count, every ``stride``-th block of neighbours is kept. Whenever ``limit`` rows are
    held before the sample is complete, every second block goes and the stride doubles: the rows in
    between span any time, and within a block they stand as close as the stream's.

    Attributes
    ----------
    limit, block
        Rows held at most, an even number of blocks, and rows in a block, a power of two.
        Memory: 80 bytes a row and 4 a coordinate, at most 64 of them.
    stride, seen
        Every ``stride``-th block is kept; rows that counted so far.
    times, clients, scalars, classes, vectors
        float64[limit], uint64[limit], float32[limit, 13], int32[limit, 3], float32[limit, d]; ``count`` rows are
        filled.
    width, votes
        Length of most rows' vectors so far (Boyer & Moore's majority), and its lead.
    tables
        By text column, its values in order of appearance.
    """

    limit: int
    block: int
    stride: int = 1
    seen: int = 0
    count: int = 0
    width: int = 0
    votes: int = 0
    tables: tuple[dict[str, int], ...] = field(default_factory=lambda: tuple({} for _ in CATEGORIES))
    times: F8 = field(default_factory=lambda: np.zeros(0))
    clients: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    scalars: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, len(SCALARS)), np.float32))
    classes: I4 = field(default_factory=lambda: np.zeros((0, len(CATEGORIES)), np.int32))
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @staticmethod
    def of(rows: int) -> Sample:
        """An empty sample for a reference of so many rows; thinned, it never falls below one and a half times that."""
        block = min(_BLOCK, 1 << max(2, (rows // 16).bit_length() - 1))
        half = -(-3 * rows // (2 * block))
        return Sample(2 * half * block, block)

    def add(self, columns: Columns, rows: I8, need: tuple[int, float], kernels: Kernels) -> I8 | None:
        """Take rows until the sample is complete.

        Parameters
        ----------
        need
            Rows and seconds of event time that make a sample complete.

        Returns
        -------
        int64[m] or None
            The rows that are left over once it is complete; ``None`` where it is not.
        """
        while len(rows):
            blocks = (self.seen + np.arange(len(rows))) // self.block
            kept = np.flatnonzero(blocks % self.stride == 0)[: self.limit - self.count]
            times = columns.times[rows[kept]]
            begun = self.times[0] if self.count else times[0] if len(times) else 0.0
            enough = (self.count + 1 + np.arange(len(kept)) >= need[0]) & (times - begun >= need[1])
            done = int(np.argmax(enough)) if enough.any() else -1
            full = self.count + len(kept) == self.limit
            if done >= 0:
                kept = kept[: done + 1]
            taken = int(kept[-1]) + 1 if done >= 0 or full else len(rows)
            self._store(columns, rows[kept], kernels)
            self.seen += taken
            rows = rows[taken:]
            if done >= 0:
                return rows
            if full:
                self._thin()
        return None

    def without(self, clients: Container[int]) -> Sample:
        """The same less the rows of some clients; only to make a reference of."""
        kept = np.array([client not in clients for client in self.clients[: self.count].tolist()], bool)
        if kept.all():
            return self
        names = ("times", "clients", "scalars", "classes", "vectors")
        rows = {name: getattr(self, name)[: self.count][kept] for name in names}
        return replace(self, count=int(kept.sum()), **rows)

    def complete(self, rows: int, seconds: float) -> bool:
        """Whether it holds so many rows over so much event time."""
        return self.count >= rows and float(self.times[self.count - 1] - self.times[0]) >= seconds

    def _store(self, columns: Columns, rows: I8, kernels: Kernels) -> None:
        if not len(rows):
            return
        widths = columns.widths(rows)
        lengths = set(widths[widths > 0].tolist())
        if len(lengths | {self.width} - {0}) > 1 and len(rows) > 1:  # a majority may change at any row
            for row in rows:
                self._store(columns, row[None], kernels)
            return
        for width in lengths:
            self._vote(width, int((widths > 0).sum()))
        self._grow(self.count + len(rows))
        here = slice(self.count, self.count + len(rows))
        self.times[here] = columns.times[rows]
        self.clients[here] = columns.clients[rows]
        self.scalars[here] = columns.scalars[rows]
        for at, category in enumerate(columns.categories):
            self.classes[here, at] = self._encode(category.take(rows), self.tables[at])
        if self.width:
            self.vectors[here] = columns.vectors(rows, self.width, kernels)
        self.count += len(rows)

    def _vote(self, width: int, rows: int) -> None:
        """Votes for a vector's length; when the majority changes, what was kept is of no use."""
        if width != self.width and self.votes:
            self.votes -= rows
            return
        if width != self.width:
            self.width = width
            self.vectors = np.full((len(self.times), min(width, SKETCH_WIDTH)), np.nan, np.float32)
        self.votes += rows

    @staticmethod
    def _encode(texts: Text, table: dict[str, int]) -> I4:
        """Codes of this sample's own table; it is bounded, and what comes later shares one code."""
        codes = np.full(len(texts.values) + 1, NO_CLASS, np.int32)
        used, first = np.unique(texts.codes, return_index=True)
        for code in used[np.argsort(first)].tolist():  # in order of appearance, whatever the batch's dictionary
            if code >= 0:
                name = class_name(texts.values[code])
                if name not in table and len(table) < _CLASSES_MAX:
                    table[name] = len(table)
                codes[code] = table.get(name, OTHER_CLASS)
        encoded: I4 = codes[texts.codes]
        return encoded

    def _grow(self, rows: int) -> None:
        """Make room, by doubling."""
        if rows <= len(self.times):
            return
        size = min(self.limit, max(256, rows, 2 * len(self.times)))
        self.times = _longer(self.times, size, 0.0)
        self.clients = _longer(self.clients, size, 0)
        self.scalars = _longer(self.scalars, size, np.nan)
        self.classes = _longer(self.classes, size, NO_CLASS)
        self.vectors = _longer(self.vectors, size, np.nan)

    def _thin(self) -> None:
        """Drop every second block."""
        half = self.count // 2
        for array in (self.times, self.clients, self.scalars, self.classes, self.vectors):
            blocks = array[: self.count].reshape(half // self.block, 2, self.block, *array.shape[1:])
            array[:half] = blocks[:, 0].reshape(half, *array.shape[1:]).copy()
        self.vectors[half:] = np.nan
        self.count = half
        self.stride *= 2

    def dump(self) -> dict[str, Any]:
        """All of it, for a snapshot."""
        filled = slice(self.count)
        return {
            **{name: getattr(self, name) for name in ("limit", "block", "stride", "seen", "count", "width", "votes")},
            "tables": [list(table) for table in self.tables],
            "times": self.times[filled],
            "clients": self.clients[filled],
            "scalars": self.scalars[filled],
            "classes": self.classes[filled],
            "vectors": self.vectors[filled],
        }

    @staticmethod
    def load(state: dict[str, Any]) -> Sample:
        """What :meth:`dump` gave.

        Raises
        ------
        ValueError, KeyError, TypeError
            It does not fit.
        """
        tables = tuple({name: code for code, name in enumerate(table)} for table in state["tables"])
        made = Sample(**{**state, "tables": tables})
        lengths = {len(array) for array in (made.times, made.clients, made.scalars, made.classes, made.vectors)}
        widths = (len(tables), made.scalars.shape[1], made.classes.shape[1], made.vectors.shape[1])
        need = (len(CATEGORIES), len(SCALARS), len(CATEGORIES), min(made.width, SKETCH_WIDTH))
        if lengths != {made.count} or widths != need or made.limit % (2 * made.block):
            raise ValueError("a sample's columns do not fit each other")
        return made


def _longer(array: NDArray[Any], size: int, blank: float) -> NDArray[Any]:
    made = np.full((size, *array.shape[1:]), blank, array.dtype)
    made[: len(array)] = array
    return made
