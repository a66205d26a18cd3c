"""Scalar formulas that every backend compiles for itself, and the signatures that backends share.

The formulas are plain Python on numbers: `cpu` compiles them with numba, a CUDA backend as device
functions, and the tests run them as they stand against float64 oracles.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_TAIL", "AccountKernels", "beta_binomial_tail", "mix"]

MAX_TAIL = 300.0  # -log10 of the smallest tail that is told from 0
_LN10 = math.log(10.0)


def beta_binomial_tail(k: int, n: int, a: float, b: float) -> float:
    """``-log10 P(K >= k)`` for K beta-binomial: n trials, their rate drawn from Beta(a, b).

    The first term comes from log-gamma, the others from the ratio of neighbours,
    ``pmf(j+1) / pmf(j) = (n-j)(a+j) / ((j+1)(b+n-j-1))`` (Skellam 1948). With ``b >= 1`` that ratio
    stays below 1 once it is, so ``term * (terms left)`` bounds what is cut off: relative error 1e-7.

    Parameters
    ----------
    k, n
        Successes and trials, ``0 <= k <= n``.
    a, b
        Of the beta distribution, ``a > 0``, ``b >= 1``.

    Returns
    -------
    float
        0 where k is no more than expected; at most :data:`MAX_TAIL`.
    """
    if k <= 0 or k * (a + b) <= n * a:
        return 0.0
    first = math.lgamma(n + 1.0) - math.lgamma(k + 1.0) - math.lgamma(n - k + 1.0)
    first += math.lgamma(k + a) + math.lgamma(n - k + b) - math.lgamma(n + a + b)
    first -= math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    term = 1.0
    total = 1.0
    for j in range(k, n):
        ratio = (n - j) * (a + j) / ((j + 1.0) * (b + n - j - 1.0))
        term *= ratio
        total += term
        if ratio <= 1.0 and term * (n - j) < 1e-7 * total:
            break
    return min(max(-(first + math.log(total)) / _LN10, 0.0), MAX_TAIL)


def mix(state: int, word: int) -> int:
    """One step of MurmurHash3's 32-bit body (Appleby, public domain); both are unsigned 32-bit numbers."""
    word = (word * 0xCC9E2D51) & 0xFFFFFFFF
    word = ((word << 15) | (word >> 17)) & 0xFFFFFFFF
    word = (word * 0x1B873593) & 0xFFFFFFFF
    state ^= word
    state = ((state << 13) | (state >> 19)) & 0xFFFFFFFF
    return (state * 5 + 0xE6546B64) & 0xFFFFFFFF


class AccountKernels(Protocol):
    """What a backend offers to account scoring. n rows, D raw and d kept coordinates, C channels, W window rows.

    Every function treats each row by itself and in order, so that results do not depend, to the
    last bit, on how rows were cut into batches.
    """

    def project(self, x: NDArray[np.float32], offset: NDArray[np.float32], matrix: NDArray[np.float32]) -> Any:
        """``(x - offset) @ matrix``, clipped to +-1e4: float32[n, D], [D], [D, d] to float32[n, d], never NaN."""

    def quantise(self, u: NDArray[np.float32], step: float) -> Any:
        """``u / step`` rounded to int8[n, d], clipped to +-127."""

    def mahalanobis(
        self,
        u: NDArray[np.float32],
        whiten: NDArray[np.float32],
        centroids: NDArray[np.float32],
        classes: NDArray[np.int32],
    ) -> Any:
        """Squared distance of ``u @ whiten`` (float32[n, d]) to row ``classes[i]`` of ``centroids``: float64[n]."""

    def squared_lengths(self, u: NDArray[np.float32]) -> Any:
        """Squared length of each row of float32[n, d]: float64[n]."""

    def top_scores(self, offsets: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
        """The highest value of each ragged row, NaN where it has none: float64[n]."""

    def vector_keys(self, x: NDArray[np.float32]) -> Any:
        """uint32[n]: MurmurHash3 of each row's bits; -0.0 counts as 0.0."""

    def squared_distances(self, window: NDArray[np.int8], query: NDArray[np.int8], out: NDArray[np.int32]) -> None:
        """Squared distance of ``query`` (int8[d]) to each column of ``window`` (int8[d, m]) into ``out`` (int32[m])."""

    def nearest_mean(self, squares: NDArray[np.int32], k: int) -> float:
        """Mean of the k smallest distances, given their squares, int32[m] with m >= k, 1 <= k <= 16."""

    def mark(
        self,
        fired: NDArray[np.uint16],
        tried: NDArray[np.uint16],
        bit: int,
        scores: NDArray[np.float64],
        cuts: NDArray[np.float64],
    ) -> None:
        """Set bits ``bit``, ``bit + 1``, ... of each row by whether its score is above each cut; NaN is not tried."""

    def tails(self, tally: NDArray[np.int32], null: NDArray[np.float64]) -> Any:
        """Scaled :func:`beta_binomial_tail` of all channels: float64[C]; see :meth:`scan`."""

    def scan(  # noqa: PLR0913, PLR0917
        self, account: Any, rows: Any, plan: Any, gate: NDArray[np.float64], start: int, stop: int
    ) -> tuple[int, float]:
        """Fold rows of one account, up to the first that should be told; see ``cpu_accounts.scan``."""
