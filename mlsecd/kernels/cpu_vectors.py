"""Vectors on the CPU: projection, whitening, rounding to bytes, and distances to a window of bytes.

A window lies with coordinates as rows (int8[d, m]), so that the inner loops run over its queries and
vectorise: at d = 32 and m = 1,024 that measured three times as fast as one query a row.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels import formulas

__all__ = [
    "mahalanobis",
    "nearest_mean",
    "project",
    "quantise",
    "squared_distances",
    "squared_lengths",
    "top_scores",
    "vector_keys",
]

_FAST: Final = {"reassoc", "contract", "nsz", "arcp"}  # NaN and infinity keep their meaning
_LIMIT: Final = np.float32(1e4)  # spreads; further out is as far as it can be

_mix = njit(nogil=True, cache=True)(formulas.mix)


@njit(nogil=True, cache=True, fastmath=_FAST)
def project(x: NDArray[np.float32], offset: NDArray[np.float32], matrix: NDArray[np.float32]) -> Any:
    """``(x - offset) @ matrix`` row by row, clipped; BLAS would round differently for other batch sizes."""
    out = np.zeros((x.shape[0], matrix.shape[1]), np.float32)
    for row in range(x.shape[0]):
        for i in range(matrix.shape[0]):
            value = x[row, i] - offset[i]
            for j in range(matrix.shape[1]):
                out[row, j] += value * matrix[i, j]
        for j in range(matrix.shape[1]):
            if not abs(out[row, j]) < _LIMIT:  # and so for the NaN of two infinities
                out[row, j] = -_LIMIT if out[row, j] < 0 else _LIMIT
    return out


@njit(nogil=True, cache=True)
def quantise(u: NDArray[np.float32], step: float) -> Any:
    """``u / step`` rounded to int8, clipped to +-127."""
    out = np.empty(u.shape, np.int8)
    for row in range(u.shape[0]):
        for j in range(u.shape[1]):
            out[row, j] = np.int8(min(max(round(u[row, j] / step), -127.0), 127.0))
    return out


@njit(nogil=True, cache=True, fastmath=_FAST)
def mahalanobis(
    u: NDArray[np.float32],
    whiten: NDArray[np.float32],
    centroids: NDArray[np.float32],
    classes: NDArray[np.int32],
) -> Any:
    """Squared distance of ``u @ whiten`` to its class's centroid (Lee et al. 2018, eq. 2)."""
    out = np.empty(u.shape[0])
    white = np.empty(whiten.shape[1], np.float32)
    for row in range(u.shape[0]):
        for j in range(white.shape[0]):
            white[j] = -centroids[classes[row], j]
        for i in range(whiten.shape[0]):
            for j in range(whiten.shape[1]):
                white[j] += u[row, i] * whiten[i, j]
        total = 0.0
        for j in range(white.shape[0]):
            total += white[j] * white[j]
        out[row] = total
    return out


@njit(nogil=True, cache=True, fastmath=_FAST)
def squared_lengths(u: NDArray[np.float32]) -> Any:
    """Squared length of each row."""
    out = np.zeros(u.shape[0])
    for row in range(u.shape[0]):
        for j in range(u.shape[1]):
            out[row] += np.float64(u[row, j]) * np.float64(u[row, j])
    return out


@njit(nogil=True, cache=True)
def vector_keys(x: NDArray[np.float32]) -> Any:
    """MurmurHash3 of each row's bits."""
    out = np.empty(x.shape[0], np.uint32)
    words = x.view(np.uint32)
    for row in range(x.shape[0]):
        state = x.shape[1]
        for j in range(x.shape[1]):
            state = _mix(state, 0 if x[row, j] == 0.0 else int(words[row, j]))  # -0.0 is 0.0
        out[row] = state
    return out


@njit(nogil=True, cache=True)
def top_scores(offsets: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
    """The highest value of each ragged row, NaN where it has none."""
    out = np.empty(offsets.shape[0] - 1)
    for row in range(out.shape[0]):
        top = np.nan
        for i in range(offsets[row], offsets[row + 1]):
            if not values[i] <= top:
                top = values[i]
        out[row] = top
    return out


@njit(nogil=True, cache=True)
def squared_distances(window: NDArray[np.int8], query: NDArray[np.int8], out: NDArray[np.int32]) -> None:
    """Squared distances to the first ``len(out)`` columns; four coordinates a pass keep the sums in registers."""
    size = out.shape[0]
    dims = query.shape[0]
    out[:] = 0
    for j in range(0, dims - dims % 4, 4):
        a, b, c, e = np.int32(query[j]), np.int32(query[j + 1]), np.int32(query[j + 2]), np.int32(query[j + 3])
        for i in range(size):
            s = np.int32(window[j, i]) - a
            t = np.int32(window[j + 1, i]) - b
            u = np.int32(window[j + 2, i]) - c
            v = np.int32(window[j + 3, i]) - e
            out[i] += s * s + t * t + u * u + v * v
    for j in range(dims - dims % 4, dims):
        a = np.int32(query[j])
        for i in range(size):
            s = np.int32(window[j, i]) - a
            out[i] += s * s


@njit(nogil=True, cache=True)
def nearest_mean(squares: NDArray[np.int32], k: int) -> float:
    """Mean of the k smallest distances: an insertion sort of k, since few of m rows get into it."""
    held = np.full(k, np.int32(2**31 - 1))
    for i in range(squares.shape[0]):
        value = squares[i]
        if value < held[k - 1]:
            at = k - 1
            while at > 0 and held[at - 1] > value:
                held[at] = held[at - 1]
                at -= 1
            held[at] = value
    total = 0.0
    for i in range(k):
        total += math.sqrt(held[i])
    return total / k
