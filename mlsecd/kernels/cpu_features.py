"""Histograms and Kolmogorov-Smirnov distances of many features on the CPU; features are rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels.features import check_histograms, check_ks

__all__ = ["histograms", "ks_distances"]


def histograms(values: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.int64]:
    """As ``signatures.BatchKernels.histograms``."""
    check_histograms(values, edges)
    counts = np.zeros((len(edges), edges.shape[1] + 2), np.int64)
    _histograms(values, edges, counts)
    return counts


@njit(nogil=True, cache=True)
def _histograms(values: Any, edges: Any, counts: Any) -> None:
    """Halving without a branch on data, eight values side by side so that their loads overlap."""
    features, n = values.shape
    width = edges.shape[1]
    at = np.empty(8, np.int64)
    for f in range(features):
        row, limits = values[f], edges[f]
        for first in range(0, n, 8):
            size = min(8, n - first)
            at[:] = 0
            left = width
            while left > 0:
                half = (left + 1) >> 1
                for i in range(size):
                    at[i] += half if limits[at[i] + half - 1] <= row[first + i] else 0
                left -= half
            for i in range(size):
                value = row[first + i]
                counts[f, at[i] if value == value else width + 1] += 1  # noqa: PLR0124 - NaN


def ks_distances(
    reference: NDArray[np.float32], sample: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """As ``signatures.BatchKernels.ks_distances``."""
    check_ks(reference, sample)
    ordered = np.sort(sample, axis=1)  # NaN at the end
    used = (sample.shape[1] - np.isnan(sample).sum(axis=1)).astype(np.int32)
    out = np.zeros(len(sample), np.int64)
    _ks(reference, ordered, used, out)
    return out, used


@njit(nogil=True, cache=True)
def _ks(reference: Any, ordered: Any, used: Any, out: Any) -> None:
    """Both rows are walked once; at each value of the sample the gap is looked at on either side of it."""
    m = reference.shape[1]
    for f in range(out.shape[0]):
        theirs, ours, n = reference[f], ordered[f], np.int64(used[f])
        below = i = 0
        widest = np.int64(0)
        while i < n:
            value = ours[i]
            while below < m and theirs[below] < value:
                below += 1
            widest = max(widest, abs(below * n - i * m))
            while i < n and ours[i] == value:
                i += 1
            upto = below
            while upto < m and theirs[upto] == value:
                upto += 1
            widest = max(widest, abs(upto * n - i * m))
            below = upto
        out[f] = widest
