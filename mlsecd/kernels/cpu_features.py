"""Histograms and Kolmogorov-Smirnov distances of many features on the CPU; features are rows.

Both need to know how many of a row's ascending limits are at most a value. A row is laid on a grid first: the place of
a value on it is monotone, so limits in lower cells lie below the value, those in higher cells above it, and only the
few in its own cell are compared, all values one comparison at a time, so that no branch depends on data.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels.features import check_histograms, check_ks

__all__ = ["histograms", "ks_distances"]

_CELLS: Final = 4_096  # at most: 16 KiB, half of a first-level cache


def histograms(values: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.int64]:
    """As ``signatures.BatchKernels.histograms``."""
    check_histograms(values, edges)
    counts = np.zeros((len(edges), edges.shape[1] + 2), np.int64)
    _histograms(values, edges, counts)
    return counts


@njit(nogil=True, cache=True)
def _cells(values: NDArray[np.float32], low: Any, scale: Any, top: Any, out: NDArray[np.int32]) -> None:
    """The cell of each value, 0 to top; NaN and what has no place on a grid without width get 0."""
    for i in range(values.shape[0]):
        place = (values[i] - low) * scale
        place = max(np.float32(0.0), place)
        place = min(top, place)
        out[i] = np.int32(place)


@njit(nogil=True, cache=True)
def _at_most(row: Any, limits: Any, first: Any, cell: Any, padded: Any, out: Any) -> None:  # noqa: PLR0913, PLR0917
    """How many of the ascending ``limits`` are at most each value of ``row``; of NaN, nothing that means anything.

    Parameters
    ----------
    first
        int32[cells + 1], written: how many limits lie before each cell.
    cell, padded
        int32[at least n and m], float32[2 m]: scratch.
    out
        int32[n].
    """
    n, m, cells = row.shape[0], limits.shape[0], first.shape[0] - 1
    low, width = limits[0], limits[m - 1] - limits[0]
    scale = np.float32(cells) / width if width > np.float32(0.0) else np.float32(0.0)
    top = np.float32(cells - 1)
    _cells(limits, low, scale, top, cell)
    first[:] = 0
    for j in range(m):
        first[cell[j] + 1] += 1
    most = np.int32(0)
    for c in range(cells):
        most = max(most, first[c + 1])
        first[c + 1] += first[c]
    padded[:m] = limits
    padded[m:] = np.nan  # which is at most nothing: a search may look beyond the end
    _cells(row, low, scale, top, cell)
    for i in range(n):
        out[i] = first[cell[i]]
    while most > 0:  # a search by halving of the fullest cell's length, from each value's own cell on
        half = (most + 1) >> 1
        ahead = padded[half - 1 :]
        for i in range(n):
            out[i] += np.int32(half) * np.int32(ahead[out[i]] <= row[i])
        most -= half


@njit(nogil=True, cache=True)
def _histograms(values: Any, edges: Any, counts: Any) -> None:
    features, n = values.shape
    width = edges.shape[1]
    first = np.empty(max(min(_CELLS, 4 * width, n), 1) + 1, np.int32)
    cell, padded, at = np.empty(max(n, width), np.int32), np.empty(2 * width, np.float32), np.empty(n, np.int32)
    for f in range(features):
        row, to = values[f], counts[f]
        _at_most(row, edges[f], first, cell, padded, at)
        for i in range(n):
            to[at[i] if row[i] == row[i] else np.int32(width + 1)] += 1


def ks_distances(
    reference: NDArray[np.float32], sample: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """As ``signatures.BatchKernels.ks_distances``."""
    check_ks(reference, sample)
    out, used = np.zeros(len(sample), np.int64), np.zeros(len(sample), np.int32)
    _ks(reference, sample, out, used)
    return out, used


@njit(nogil=True, cache=True)
def _ks(reference: Any, sample: Any, out: Any, used: Any) -> None:
    """No sample is sorted: what counts is how many of its values lie between neighbours of the reference.

    Between two of them only the sample's own steps are left, all in one direction, so the gap is widest at their ends.
    """
    features, n = sample.shape
    m = reference.shape[1]
    first = np.empty(max(min(_CELLS, m, n), 1) + 1, np.int32)
    cell, padded, at = np.empty(max(n, m), np.int32), np.empty(2 * m, np.float32), np.empty(n, np.int32)
    between, equal = np.empty(m + 1, np.int32), np.empty(m + 1, np.int32)
    for f in range(features):
        row, theirs = sample[f], reference[f]
        _at_most(row, theirs, first, cell, padded, at)
        between[:] = 0
        equal[:] = 0
        held = 0
        for i in range(n):
            if row[i] == row[i]:
                held += 1
                between[at[i]] += 1
                equal[at[i]] += np.int32(at[i] > 0 and theirs[at[i] - 1] == row[i])
        used[f] = held
        out[f] = _widest(theirs, between, equal, held)


@njit(nogil=True, cache=True)
def _widest(theirs: Any, between: Any, equal: Any, n: int) -> int:
    """The widest gap times n times m.

    ``between[j]`` values have j of the reference at or below them; ``equal[j]`` of these equal the j-th.
    """
    m = theirs.shape[0]
    widest = below = start = 0
    for j in range(m):
        below += between[j]  # what lies below theirs[j], or below those that equal it
        if j + 1 < m and theirs[j + 1] == theirs[j]:
            continue
        widest = max(widest, abs(below * m - start * n), abs((below + equal[j + 1]) * m - (j + 1) * n))
        start = j + 1
    return widest
