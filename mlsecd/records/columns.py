"""Columns of many rows: numbers, flags, texts by code, and lists."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["F8", "I1", "I4", "I8", "Column", "Field", "Ragged", "Text", "Texts", "absent", "concat", "rows_of"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
I4 = NDArray[np.int32]
I1 = NDArray[np.int8]


class Field(enum.Enum):
    """How a request field is held in a column, and what "absent" looks like in it."""

    NUMBER = "number"  # float64, NaN where absent
    FLAG = "flag"  # int8: 1 true, 0 false, -1 absent
    TEXT = "text"  # Text, code -1 where absent
    TEXTS = "texts"  # Texts, an empty row where absent
    VECTOR = "vector"  # Ragged of float32, an empty row where absent
    IDS = "ids"  # Ragged of int64, an empty row where absent


@dataclass(frozen=True, slots=True)
class Text:
    """Dictionary-encoded strings: row i reads ``values[codes[i]]``; code -1 is absent."""

    codes: I4
    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def at(self, row: int) -> str | None:
        """The string of one row."""
        code = int(self.codes[row])
        return None if code < 0 else self.values[code]

    def take(self, rows: I8) -> Text:
        """These rows; the dictionary is shared."""
        return Text(self.codes[rows], self.values)

    def slice(self, start: int, stop: int) -> Text:
        """Rows ``start:stop``, a view."""
        return Text(self.codes[start:stop], self.values)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    offsets: I8
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> I8:
        """Items a row, int64[n]."""
        return np.diff(self.offsets)

    def at(self, row: int) -> NDArray[Any]:
        """One row, a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def matrix(self, rows: I8, width: int) -> NDArray[Any]:
        """These rows as ``(len(rows), width)``; each must hold exactly ``width`` items."""
        starts = self.offsets[rows]
        if len(rows) and np.array_equal(starts, starts[0] + width * np.arange(len(rows))):
            return self.values[starts[0] : starts[0] + width * len(rows)].reshape(-1, width)
        return self.values[starts[:, None] + np.arange(width)]

    def take(self, rows: I8) -> Ragged:
        """These rows, packed anew."""
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(offsets, self.values[np.repeat(self.offsets[rows], lengths) + within])

    def slice(self, start: int, stop: int) -> Ragged:
        """Rows ``start:stop``, a view."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])


@dataclass(frozen=True, slots=True)
class Texts:
    """Lists of strings: a ragged column of codes and their dictionary."""

    codes: Ragged
    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def at(self, row: int) -> tuple[str, ...]:
        """The strings of one row."""
        return tuple(self.values[code] for code in self.codes.at(row))

    def take(self, rows: I8) -> Texts:
        """These rows; the dictionary is shared."""
        return Texts(self.codes.take(rows), self.values)

    def slice(self, start: int, stop: int) -> Texts:
        """Rows ``start:stop``, a view."""
        return Texts(self.codes.slice(start, stop), self.values)


Column = F8 | I1 | Text | Texts | Ragged


def absent(kind: Field, n: int) -> Column:
    """A column of ``n`` absent values."""
    match kind:
        case Field.NUMBER:
            return np.full(n, np.nan)
        case Field.FLAG:
            return np.full(n, -1, np.int8)
        case Field.TEXT:
            return Text(np.full(n, -1, np.int32), ())
        case Field.TEXTS:
            return Texts(Ragged(np.zeros(n + 1, np.int64), np.zeros(0, np.int32)), ())
        case Field.VECTOR:
            return Ragged(np.zeros(n + 1, np.int64), np.zeros(0, np.float32))
        case Field.IDS:
            return Ragged(np.zeros(n + 1, np.int64), np.zeros(0, np.int64))


def concat(kind: Field, parts: list[Any]) -> Column:
    """One column of all parts, in order; dictionaries are merged."""
    match kind:
        case Field.NUMBER | Field.FLAG:
            joined: F8 = np.concatenate(parts)
            return joined
        case Field.TEXT:
            codes, values = _merge_codes([(part.codes, part.values) for part in parts])
            return Text(np.concatenate(codes), values)
        case Field.TEXTS:
            codes, values = _merge_codes([(part.codes.values, part.values) for part in parts])
            joined_codes = [Ragged(part.codes.offsets, code) for part, code in zip(parts, codes, strict=True)]
            return Texts(_concat_ragged(joined_codes), values)
        case Field.VECTOR | Field.IDS:
            return _concat_ragged(parts)


def _concat_ragged(parts: list[Ragged]) -> Ragged:
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = [part.values[part.offsets[0] : part.offsets[-1]] for part in parts]
    return Ragged(offsets, np.concatenate(values))


def _merge_codes(parts: list[tuple[I4, tuple[str, ...]]]) -> tuple[list[I4], tuple[str, ...]]:
    """Recode every part into one dictionary, in order of first part and code; unused values go."""
    merged: dict[str, int] = {}
    recoded = []
    for codes, values in parts:
        table = np.full(len(values) + 1, -1, np.int32)  # the last entry serves code -1
        for code in np.unique(codes[codes >= 0]):
            table[code] = merged.setdefault(values[code], len(merged))
        recoded.append(table[codes])
    return recoded, tuple(merged)


def rows_of(codes: I4) -> Iterator[tuple[int, I8]]:
    """Group rows by code, in order of each code's first appearance; code -1 is left out.

    Yields ``(code, rows)`` with ``rows`` ascending. The order matters: state that is bounded by
    recency then does not depend on how a stream was cut into batches.
    """
    order = np.argsort(codes, kind="stable")
    grouped = codes[order]
    starts = np.flatnonzero(np.diff(grouped, prepend=grouped[:1] - 1)) if len(codes) else np.zeros(0, np.int64)
    ends = np.append(starts[1:], len(codes))
    for at in np.argsort(order[starts], kind="stable"):
        rows = order[starts[at] : ends[at]]
        if grouped[starts[at]] >= 0:
            yield int(grouped[starts[at]]), rows
