"""The maximum mean discrepancy of two samples, and what chance makes of it, on the CPU.

After Gretton, Borgwardt, Rasch, Schölkopf, Smola 2012, lemma 6: the unbiased estimate. All permutations of a
round cost one product of matrices; the rounds end as soon as the answer is plain. Gaussian kernels hardly see a
change of variances or correlations, nor one column among many: second moments and single columns are
held against the same permutations, in one number of all (:mod:`mlsecd.kernels.cpu_drift_moments`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlsecd.kernels.cpu_drift_gram import Gram, add_products, gaussian
from mlsecd.kernels.cpu_drift_moments import Moments

__all__ = ["STOP", "MmdTest", "drift_mmd", "drift_mmd_widths"]

_ROUND = 100  # permutations in one product
STOP = 20  # exceedances that end the search: the p-value is then known to within a quarter of itself


class MmdTest(NamedTuple):
    """What a test gave.

    Attributes
    ----------
    mmd2
        Squared distance of the two mean embeddings, unbiased: it may be negative. Gaussian kernels alone.
    spread
        One minus the mean kernel value among the reference: the variance of its embedding.
    exceeded, drawn
        Of ``drawn`` random divisions so many reached what was seen less what was conceded.
    p
        Valid at any size: P(p <= a) <= a where both samples are exchangeable (Besag & Clifford 1991).
    apart
        How far the samples are apart in what a concession is granted of.
    """

    mmd2: float
    spread: float
    exceeded: int
    drawn: int
    p: float
    apart: tuple[float, ...]


def drift_mmd_widths(reference: Any) -> Any:
    """Three bandwidths of a reference: those of 1/4, 1 and 4 times its median distance, as exp(-gamma d^2).

    Parameters
    ----------
    reference
        float32[n, d], n >= 2. At most 500 evenly spaced rows are compared.

    Returns
    -------
    float64[3]
    """
    rows = reference[:: max(1, len(reference) // 500)].astype(np.float64)
    squares = np.einsum("ij,ij->i", rows, rows)
    distances = squares[:, None] + squares - 2.0 * rows @ rows.T
    middle = max(float(np.median(distances[np.triu_indices(len(rows), 1)])), 1e-12)
    return 0.5 / (middle * np.array([0.0625, 1.0, 16.0]))


_NOTHING = np.zeros(3)


class _Kept(NamedTuple):
    """What every division of the rows is judged by; the first n are the reference's."""

    gram: Gram
    n: int
    moments: Moments | None

    def apart(self, divided: Any) -> Any:
        """How far the sides of each division are apart: float32[n + m, b] to float64[1 or 3, b]."""
        squares = _distances(self.gram, divided, self.n)[None]
        return squares if self.moments is None else np.concatenate((squares, self.moments.apart(divided)))

    def evidence(self, apart: Any) -> Any:
        """One number by division."""
        return apart[0] if self.moments is None else self.moments.evidence(apart)


def drift_mmd(  # noqa: PLR0913, PLR0917
    reference: Any, window: Any, gammas: Any, draw: Any, most: int = 9_999, concession: Any = _NOTHING, stop: int = STOP
) -> MmdTest:
    """Whether two samples of vectors come from one distribution.

    With K the Gram matrix without its diagonal, r its row sums, T their sum, and Z an indicator of which rows
    are the window's: q = sum of Z (K Z), s = Z r; among the window q, among the rest T - 2 s + q, between them s - q.

    Parameters
    ----------
    reference, window
        float32[n, d], float32[m, d]; at least two rows each. Moments are those of the first 32 columns.
    gammas
        float64[g]; the kernel is the mean of exp(-gamma d^2).
    draw
        A ``numpy.random.Generator``.
    most
        Permutations at most.
    concession
        Granted to the null hypothesis: float64[3], of squared distance with products of columns, of the farthest
        column's squared distance, and of that of squared lengths. Or float64[1]: the Gaussian kernels alone are
        tested, and this is granted of their squared distance.
    stop
        Permutations that exceed what was seen, at which the search ends.
    """
    n, m = len(reference), len(window)
    kept, mmd2, spread = _keep(reference, window, gammas, len(concession) > 1)
    own = np.zeros((n + m, 1), np.float32)
    own[n:] = 1.0
    seen = kept.apart(own)
    bound = float(kept.evidence(seen - np.asarray(concession, np.float64)[:, None])[0])
    bound -= 1e-7 if kept.moments is None else 1e-3  # sums are float32's: the same division must not look smaller
    exceeded = drawn = 0
    while drawn < most and exceeded < stop:
        size = min(_ROUND, most - drawn)
        chosen = np.argpartition(draw.random((n + m, size), np.float32), m, axis=0)[:m]
        divided = np.zeros((n + m, size), np.float32)
        np.put_along_axis(divided, chosen, 1.0, axis=0)
        hits = np.flatnonzero(kept.evidence(kept.apart(divided)) >= bound)
        if exceeded + len(hits) >= stop:
            drawn += int(hits[stop - exceeded - 1]) + 1
            return MmdTest(mmd2, spread, stop, drawn, stop / drawn, tuple(seen[:, 0].tolist()))
        exceeded += len(hits)
        drawn += size
    return MmdTest(mmd2, spread, exceeded, drawn, (exceeded + 1) / (drawn + 1), tuple(seen[:, 0].tolist()))


def _keep(reference: Any, window: Any, gammas: Any, moments: bool) -> tuple[_Kept, float, float]:
    """What divisions are judged by, and the distance and spread in the Gaussian kernels alone."""
    n, m = len(reference), len(window)
    rows = np.concatenate((reference, window), dtype=np.float32)
    rows -= rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    gram = gaussian(rows, gammas, n)
    among = float(gram.sums[0, :n].sum()) / (n * (n - 1))
    beside = float(gram.sums[1, n:].sum()) / (m * (m - 1))
    mmd2 = among + beside - 2.0 * float(gram.sums[1, :n].sum()) / (n * m)
    if not moments:
        return _Kept(gram, n, None), mmd2, 1.0 - among
    more = Moments.of(rows, n, gram.deviation)
    return _Kept(add_products(gram, more.products, n), n, more), mmd2, 1.0 - among


def _distances(gram: Gram, divided: Any, n: int) -> Any:
    """MMD^2 of each division: float32[n + m, b] to float64[b]."""
    sums = gram.sums.sum(axis=0)
    m = len(sums) - n
    among, touched = gram.inside(divided), sums @ divided
    between = touched - among
    return among / (m * (m - 1)) + (float(sums.sum()) - touched - between) / (n * (n - 1)) - 2.0 * between / (n * m)
