"""Account sketches on the CPU: a query as coordinates that add up, and queries that come back to an earlier one."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels.cpu_vectors import squared_distances

__all__ = ["FIXED_POINT", "GRADES", "Trail", "add_rows", "grade", "revisit", "spread"]

FIXED_POINT: Final = float(1 << 20)  # sums are whole numbers of 1 / 2^20: they add up to the same in any order
GRADES: Final = 3  # of a score: above its 5 % cut, above its 0.5 % cut, and -log10 of its p-value, at most 3
_STEPS: Final = 10.0  # of the p-value's decade in a grid
_FAST: Final = {"reassoc", "contract", "nsz", "arcp"}
_WENT_ON: Final = -2
_LOOK_BACK: Final = 3  # rows: what varies one of them goes on with it, what varies an older one comes back to it


class Trail(NamedTuple):
    """The last queries of one account (:class:`~mlsecd.windows.recent.Recent`). ``revisit`` writes into the arrays."""

    codes: NDArray[np.int8]  # [d, capacity]
    labels: NDArray[np.int16]  # [capacity], -1 where there was none, -2 where the query went on with the one before
    keys: NDArray[np.uint32]  # [capacity]
    pushed: NDArray[np.int64]  # [1]: queries ever pushed


@njit(nogil=True, cache=True, fastmath=_FAST)
def spread(
    u: NDArray[np.float32],
    whiten: NDArray[np.float32],
    centroids: NDArray[np.float32],
    classes: NDArray[np.int32],
    out: NDArray[np.float32],
) -> Any:
    """Write ``u @ whiten`` less its class's centroid into the first d columns of ``out``; return its squared length.

    What is written is cut to the length sqrt(d), which ordinary rows have: an odd row counts as odd
    in its direction, and one very odd row no more than that.
    """
    dims = whiten.shape[1]
    squares = np.empty(u.shape[0])
    for row in range(u.shape[0]):
        for j in range(dims):
            out[row, j] = -centroids[classes[row], j]
        for i in range(whiten.shape[0]):
            for j in range(dims):
                out[row, j] += u[row, i] * whiten[i, j]
        total = 0.0
        for j in range(dims):
            total += out[row, j] * out[row, j]
        squares[row] = total
        if total > dims:
            shrink = np.float32(math.sqrt(dims / total))
            for j in range(dims):
                out[row, j] *= shrink
    return squares


@njit(nogil=True, cache=True)
def grade(
    scores: NDArray[np.float64], cuts: NDArray[np.float64], grid: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Write a score's grades into three columns of ``out``; NaN gets what an ordinary score has on average.

    Parameters
    ----------
    cuts
        float64[2]: of p <= 0.05 and p <= 0.005.
    grid
        float64[G], ascending: entry i is the score whose p-value is ``10 ** (-i / 10)``.
    """
    for row in range(scores.shape[0]):
        if math.isnan(scores[row]):
            out[row, 0], out[row, 1], out[row, 2] = 0.05, 0.005, 0.43
            continue
        out[row, 0] = 1.0 if scores[row] > cuts[0] else 0.0
        out[row, 1] = 1.0 if scores[row] > cuts[1] else 0.0
        step = 0
        while step + 1 < grid.shape[0] and scores[row] > grid[step + 1]:
            step += 1
        out[row, 2] = step / _STEPS


@njit(nogil=True, cache=True)
def _hold_against_trail(  # noqa: PLR0913, PLR0917
    trail: Trail, limit: int, squares: NDArray[np.int32], label: Any, key: Any, near: int, dims: int
) -> tuple[int, bool]:
    """What one row is (see :func:`revisit`), and whether it goes on with one of the last three."""
    newest = trail.pushed[0] - 1
    went_on, back, flipped = False, False, False
    for j in range(squares.shape[0]):
        if squares[j] <= dims and trail.keys[j] == key:  # rounding differs by a step where batching does
            return -1, False
        if squares[j] > near:
            continue
        if (newest - j) % limit < _LOOK_BACK:
            went_on = True
        elif trail.labels[j] != _WENT_ON:
            back = True
            if label >= 0 and trail.labels[j] >= 0 and label != trail.labels[j]:
                flipped = True
    if went_on or not back:
        return 0, went_on
    return (3 if flipped else 1), False


@njit(nogil=True, cache=True)
def revisit(  # noqa: PLR0913, PLR0917 - one account's trail, its rows, and where they lie
    trail: Trail,
    limit: int,
    codes: NDArray[np.int8],
    labels: NDArray[np.int16],
    keys: NDArray[np.uint32],
    near: int,
    out: NDArray[np.int8],
    start: int,
    stop: int,
) -> None:
    """Fold rows ``start:stop`` of one account into its trail, and say of each what it is.

    A row *comes back* when it varies a query that the account had left behind: nearer than ``near``
    to one of the trail, but not to the last three (frames of a video, edits of a text *go on*), and
    to one that was itself no variant of those just before it.

    Parameters
    ----------
    limit
        The most queries that the trail holds; its capacity is that, or holds all rows.
    near
        Squared distance, in units of ``codes``.
    out
        int8[n]: -1 an exact repeat, 0 neither, 1 comes back, 3 comes back and got another label.
    """
    scratch = np.empty(trail.labels.shape[0], np.int32)
    for i in range(start, stop):
        held = min(int(trail.pushed[0]), limit)
        squared_distances(trail.codes, codes[i], scratch[:held])
        out[i], went_on = _hold_against_trail(trail, limit, scratch[:held], labels[i], keys[i], near, codes.shape[1])
        if out[i] < 0:
            continue
        at = trail.pushed[0] % limit
        for j in range(codes.shape[1]):
            trail.codes[j, at] = codes[i, j]
        trail.labels[at] = np.int16(_WENT_ON) if went_on else labels[i]
        trail.keys[at] = keys[i]
        trail.pushed[0] += 1


@njit(nogil=True, cache=True)
def add_rows(
    values: NDArray[np.float32], kinds: NDArray[np.int8], start: int, stop: int, sums: NDArray[np.int64]
) -> int:
    """Add rows ``start:stop`` of ``values`` (float32[n, D]) that are no repeats to ``sums``; how many they were."""
    count = 0
    for i in range(start, stop):
        if kinds[i] < 0:
            continue
        count += 1
        for j in range(values.shape[1]):
            sums[j] += np.int64(np.rint(values[i, j] * FIXED_POINT))
    return count
