"""Kernels of drift detection on the CPU: which rows count, and what is made of their vectors.

Each runs row by row in a fixed order of operations, so that results are the same to the last bit
however a stream is cut into batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["drift_admit", "drift_project", "drift_sketch"]


@njit(nogil=True, cache=True)
def drift_admit(  # noqa: PLR0913, PLR0917
    clients: Any, bodies: Any, times: Any, table: Any, window: Any, limits: Any
) -> Any:
    """Leave out exact retries, and what a client sends beyond its share.

    A window ends when it has admitted ``limits[0]`` rows or is ``limits[1]`` seconds old; within
    it a client counts with ``limits[2]`` rows. A row whose body is that of the same client's row
    before it is a retry.

    Parameters
    ----------
    clients, bodies
        uint64[n]; hashes, 0 where unknown: an unknown client has no share to exceed.
    times
        float64[n], seconds.
    table
        uint64[slots, 4]; slots a power of two: client, last body, window, rows in it. A client that
        meets another in its slot takes it over.
    window
        float64[3]: number, start in seconds, rows admitted.

    Returns
    -------
    bool[n]
    """
    keep = np.ones(len(clients), np.bool_)
    mask = np.uint64(len(table) - 1)
    for i in range(len(clients)):
        age = times[i] - window[1]
        if window[2] >= limits[0] or age >= limits[1] or age < -limits[1]:
            window[0] += 1.0
            window[1] = times[i]
            window[2] = 0.0
        slot = table[np.int64(clients[i] & mask)]
        number = np.uint64(window[0])
        if slot[0] != clients[i]:
            slot[0], slot[1], slot[2], slot[3] = clients[i], 0, number, 0
        elif bodies[i] != 0 and slot[1] == bodies[i]:
            keep[i] = False
            continue
        slot[1] = bodies[i]
        if slot[2] != number:
            slot[2], slot[3] = number, 0
        if clients[i] != 0 and slot[3] >= limits[2]:
            keep[i] = False
            continue
        slot[3] += np.uint64(1)
        window[2] += 1.0
    return keep


@njit(nogil=True, cache=True)
def drift_sketch(vectors: Any, width: int) -> Any:
    """Fold long vectors into ``width`` coordinates: a count sketch, which keeps inner products on average.

    Charikar, Chen, Farach-Colton 2002; as features: Weinberger et al. 2009, eq. 1. Coordinate and
    sign come from SplitMix64 of the index, so every process folds alike.

    Parameters
    ----------
    vectors
        float32[n, d], d > width, a power of two.

    Returns
    -------
    float32[n, width]
    """
    n, d = vectors.shape
    sums = np.zeros((n, width))
    for j in range(d):
        z = np.uint64(j + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        to = np.int64(z & np.uint64(width - 1))
        sign = 1.0 if z >> np.uint64(63) else -1.0
        for i in range(n):
            sums[i, to] += sign * vectors[i, j]
    return sums.astype(np.float32)


@njit(nogil=True, cache=True)
def drift_project(  # noqa: PLR0913, PLR0917
    vectors: Any, centre: Any, medians: Any, widths: Any, axes: Any, middle: float
) -> Any:
    """Whitened principal scores and the scalars that tell of variance and correlation.

    Parameters
    ----------
    vectors
        float32[n, d].
    centre, medians, widths
        float64[d]: mean, median, and standard deviation (inf leaves a coordinate out) of the reference.
    axes
        float64[d, m]: principal directions, largest variance first, each over its standard deviation.
    middle
        Median squared Mahalanobis distance of the reference.

    Returns
    -------
    float64[n, m + 5]
        m scores; spread, the mean of |x - median| / sd; squared Mahalanobis distance; its parts in
        the leading and in the remaining half of the axes (Hotelling's T^2 and the residual, after
        Jackson & Mudholkar 1979); |distance - middle|. NaN where any coordinate is not finite.
    """
    n, d = vectors.shape
    m = axes.shape[1]
    scores = np.zeros((n, m + 5))
    half = (m + 1) // 2
    for i in range(n):
        row = scores[i]
        for j in range(d):
            centred = vectors[i, j] - centre[j]
            for a in range(m):
                row[a] += centred * axes[j, a]
            row[m] += abs(vectors[i, j] - medians[j]) / widths[j]
        for a in range(half):
            row[m + 2] += row[a] * row[a]
        for a in range(half, m):
            row[m + 3] += row[a] * row[a]
        row[m] /= d
        row[m + 1] = row[m + 2] + row[m + 3]
        row[m + 4] = abs(row[m + 1] - middle)
        if not np.isfinite(row[m] + row[m + 1]):
            row[:] = np.nan
    return scores
