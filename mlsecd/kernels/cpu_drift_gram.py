"""A kernel of all pairs of rows: its lower half, in stretches of 128 rows, and what divisions of the rows need of it.

A stretch is at most a few MiB. One array of the whole would be twice that much work, and what an allocator hands out in
huge pages costs more to touch for the first time than the kernel costs to compute.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

__all__ = ["Gram", "add_products", "gaussian"]

_STRETCH: Final = 128


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _distances_of(products: Any, squares: Any, first: int) -> None:
    """Products of rows ``first, first + 1, ...`` with all up to the last of them become squared distances, in place."""
    for i in range(products.shape[0]):
        own, row = squares[first + i], products[i]
        for j in range(products.shape[1]):
            row[j] = max(own + squares[j] - np.float32(2.0) * row[j], np.float32(0.0))


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _add_sums(stretch: Any, first: int, n: int, sums: Any) -> float:
    """Add a stretch to each row's sums over the first n rows and over the others, float64[2, rows].

    Its part left of ``first`` counts for both of a pair's rows. Its sum of squares, all pairs told twice.
    """
    squares = 0.0
    for i in range(stretch.shape[0]):
        row, side = stretch[i], 0 if first + i < n else 1
        for j in range(first):
            sums[side, j] += row[j]
            squares += 2.0 * row[j] * row[j]
        for j in range(first, row.shape[0]):
            squares += row[j] * row[j]
        cut = min(n, row.shape[0])
        for j in range(cut):
            sums[0, first + i] += row[j]
        for j in range(cut, row.shape[0]):
            sums[1, first + i] += row[j]
    return squares


class Gram(NamedTuple):
    """A symmetric kernel without its diagonal.

    Attributes
    ----------
    stretches
        float32[128, 128], float32[128, 256], ...: 128 rows each, up to the last of them; zeros on the diagonal.
    sums
        float64[2, rows]; of each row over the first n rows, and over the others.
    second
        Sum of squares of all entries.
    """

    stretches: list[Any]
    sums: Any
    second: float

    @staticmethod
    def of(stretches: list[Any], n: int) -> Gram:
        """With the sums of stretches."""
        sums, second = np.zeros((2, stretches[-1].shape[1])), 0.0
        for i, stretch in enumerate(stretches):
            second += _add_sums(stretch, i * _STRETCH, n, sums)
        return Gram(stretches, sums, second)

    @property
    def deviation(self) -> float:
        """Standard deviation of the entries about the means of their row and column."""
        rows = self.sums.shape[1]
        means = self.sums.sum(axis=0) / (rows - 1.0)
        second = self.second / (rows * (rows - 1.0))
        return float(np.sqrt(max(second - 2.0 * float((means**2).mean()) + float(means.mean()) ** 2, 1e-12)))

    def inside(self, divided: Any) -> Any:
        """Sum over pairs that are both of a division, each told twice: float32[rows, b] to float64[b]."""
        among = np.zeros(divided.shape[1])
        for i, stretch in enumerate(self.stretches):
            first, last = i * _STRETCH, stretch.shape[1]
            touching = stretch[:, first:] @ divided[first:last]
            touching += np.float32(2.0) * (stretch[:, :first] @ divided[:first])
            among += np.einsum("ij,ij->j", divided[first:last], touching, dtype=np.float64)
        return among


def gaussian(centred: Any, gammas: Any, n: int) -> Gram:
    """The mean of Gaussian kernels of rows, float32[rows, d], that lie about 0.

    numpy's exponentials are vectors, numba's a call for each number.
    """
    squares = np.einsum("ij,ij->i", centred, centred)
    stretches = []
    for first in range(0, len(centred), _STRETCH):
        rows, upto = centred[first : first + _STRETCH], centred[: first + _STRETCH]
        distances, part = rows @ upto.T, np.empty((len(rows), len(upto)), np.float32)
        _distances_of(distances, squares, first)
        total = np.zeros_like(part)
        for gamma in gammas.astype(np.float32):
            total += np.exp(np.multiply(distances, -gamma, out=part), out=part)
        total /= np.float32(len(gammas))
        np.fill_diagonal(total[:, first:], 0.0)
        stretches.append(total)
    return Gram.of(stretches, n)


def add_products(gram: Gram, scores: Any, n: int) -> Gram:
    """Add squared products of rows, float32[rows, d], to a kernel, in place; it, with new sums."""
    for i, stretch in enumerate(gram.stretches):
        first = i * _STRETCH
        products = scores[first : first + _STRETCH] @ scores[: stretch.shape[1]].T
        np.add(stretch, np.square(products, out=products), out=stretch)
        np.fill_diagonal(stretch[:, first:], 0.0)
    return Gram.of(gram.stretches, n)
