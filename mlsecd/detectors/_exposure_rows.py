"""Request rows, as places in a chart."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._exposure_cells import Codebook
from mlsecd.detectors._exposure_sight import COLUMNS_MAX, KEY_BITS
from mlsecd.detectors._extraction_channels import COLUMNS, request_keys, usable
from mlsecd.kernels import Kernels
from mlsecd.records import RequestBatch

__all__ = ["Placed", "place"]

I8 = NDArray[np.int64]

_SPREAD: Final = np.uint32(2_654_435_761)  # Knuth's multiplicative hash; the upper bits are the good ones
_SHIFT: Final = np.uint32(32 - (KEY_BITS.bit_length() - 1))


class Placed(NamedTuple):
    """n rows, of which m have a vector of the chart's width.

    Attributes
    ----------
    good
        bool[n]: those m.
    cells
        int64[m, 2]: the cell in each column of the chart, -1 where the row lacks it.
    bits
        uint32[m]: the place of the request among 4,096, equal for exact repeats.
    """

    good: NDArray[np.bool_]
    cells: I8
    bits: NDArray[np.uint32]


def place(batch: RequestBatch, rows: I8, books: dict[str, Codebook], kernels: Kernels) -> Placed:
    """Find the cells of these rows of a batch."""
    cells = np.full((len(rows), COLUMNS_MAX), -1, np.int64)
    having = np.zeros((len(rows), COLUMNS_MAX), np.bool_)
    for i, (letter, book) in enumerate(books.items()):
        column = batch.ragged(COLUMNS[letter])
        own: NDArray[np.bool_] = usable(column, book.width)[rows]
        x = np.array(column.matrix(rows[own], book.width), np.float32)
        cells[own, i], having[:, i] = book.places(x, kernels), own
    good: NDArray[np.bool_] = having[:, 0] | having[:, 1]
    keys = np.zeros(len(rows), np.uint32)
    for pattern in np.unique(having[good], axis=0):
        own = (having == pattern).all(axis=1)
        widths = {letter: book.width for has, (letter, book) in zip(pattern, books.items(), strict=False) if has}
        keys[own] = request_keys(batch, rows[own], widths, kernels)
    return Placed(good, cells[good], (keys[good] * _SPREAD) >> _SHIFT)
