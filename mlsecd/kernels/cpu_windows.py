"""Ragged windows on the CPU: all that account scoring asks of the distances to a window, in one pass a query."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels.cpu_vectors import squared_distances
from mlsecd.kernels.ragged import FAR, NEAREST, RECENT, Near, Windows, check_windows

__all__ = ["window_neighbours"]


def window_neighbours(asked: Windows) -> Near:
    """As ``signatures.BatchKernels.window_neighbours``."""
    check_windows(asked)
    n = len(asked.queries)
    found = Near(np.full((n, NEAREST), FAR, np.int32), np.zeros((n, 4), np.int32))
    _neighbours(*asked, *found)
    return found


@njit(nogil=True, cache=True)
def _keep_smallest(squares: NDArray[np.int32], kept: NDArray[np.int32]) -> None:
    """The ten smallest, ascending. Eight are looked at together: most eights hold none that gets in."""
    last = NEAREST - 1
    size = squares.shape[0]
    for first in range(0, size, 8):
        stop = min(first + 8, size)
        if stop - first == 8:
            least = squares[first]
            for i in range(first + 1, first + 8):
                least = min(least, squares[i])
            if least >= kept[last]:
                continue
        for i in range(first, stop):
            value = squares[i]
            if value >= kept[last]:
                continue
            at = last
            while at > 0 and kept[at - 1] > value:
                kept[at] = kept[at - 1]
                at -= 1
            kept[at] = value


@njit(nogil=True, cache=True)
def _count(  # noqa: PLR0913, PLR0917
    squares: Any, labels: Any, label: Any, radius: Any, far_radius: Any, counts: Any
) -> None:
    old = max(squares.shape[0] - RECENT, 0)
    for i in range(squares.shape[0]):
        differs = np.int32((label >= 0) & (labels[i] >= 0) & (labels[i] != label))
        near = np.int32(squares[i] <= radius)
        far = np.int32((squares[i] <= far_radius) & (i < old))
        counts[0] += near
        counts[1] += near & differs
        counts[2] += far
        counts[3] += far & differs


@njit(nogil=True, cache=True)
def _neighbours(  # noqa: PLR0913, PLR0917
    codes: Any, labels: Any, queries: Any, starts: Any, near: Any, squares: Any, counts: Any
) -> None:
    scratch = np.empty(near.shape[0], np.int32)
    query = np.empty(codes.shape[0], np.int8)
    for i in range(queries.shape[0]):
        start, at = starts[i], queries[i]
        held = at - start
        for j in range(codes.shape[0]):
            query[j] = codes[j, at]
        squared_distances(codes[:, start:at], query, scratch[:held])
        _keep_smallest(scratch[:held], squares[i])
        old = near[max(held - RECENT, 0)]
        _count(scratch[:held], labels[start:at], labels[at], near[held], old, counts[i])
