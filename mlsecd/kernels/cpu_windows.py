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
    """Sums in variables of their own: kept in ``counts``, each would be stored in every pass, and nothing vectorises.

    They are cast back at once, since numba adds in 64 bits, half as many to a register.
    """
    old = max(squares.shape[0] - RECENT, 0)
    near, near_differs, far, far_differs = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
    for i in range(old):
        differs = np.int32((labels[i] >= 0) & (labels[i] != label))
        within, within_far = np.int32(squares[i] <= radius), np.int32(squares[i] <= far_radius)
        near = np.int32(near + within)
        near_differs = np.int32(near_differs + (within & differs))
        far = np.int32(far + within_far)
        far_differs = np.int32(far_differs + (within_far & differs))
    for i in range(old, squares.shape[0]):
        within = np.int32(squares[i] <= radius)
        near = np.int32(near + within)
        near_differs = np.int32(near_differs + (within & np.int32((labels[i] >= 0) & (labels[i] != label))))
    counts[0], counts[2] = near, far
    if label >= 0:
        counts[1], counts[3] = near_differs, far_differs


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
