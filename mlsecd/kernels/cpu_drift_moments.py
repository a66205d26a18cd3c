"""What a test of whole vectors adds to Gaussian kernels: products of columns, single columns, and squared lengths.

Three numbers of each division of the rows: the squared distance of mean embeddings under the Gaussian kernels and a
share of (x y)^2, which sees variances and correlations; the squared distance of the column that is farthest apart; and
that of squared lengths, one direction where a common change of variance is 32 of 528. Each becomes the logarithm of how
rarely chance gives as much, by a formula, and a weighted sum of inverses makes one of the three. The formulas
only decide what weighs how much: all that they need is of the pooled rows, whichever side they came from, so that a
permutation test of the one number is as exact as of any other.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

__all__ = ["Moments"]

_WIDTH: Final = 32  # columns
_CLIP: Final = 3.0  # standard deviations: one row far out must not be the whole of a fourth moment
_SHARE: Final = 0.15  # of products beside the Gaussian kernels, in standard deviations under the null hypothesis
_WEIGHTS: Final = np.log([0.82, 0.14, 0.04])


class Moments(NamedTuple):
    """Of n + m pooled rows.

    Attributes
    ----------
    columns
        float32[n + m, d + 1]; standardised columns and squared lengths, so scaled that their sums over a random
        division have mean 0 and variance 1.
    products
        float32[n + m, d]; the squared products of these rows are what joins the kernel.
    unit
        Squared distance of two means of columns of variance 1, in the mean over random divisions.
    scale
        Standard deviation of the squared distance over random divisions, by its second moment.
    shape
        Of the gamma distribution that it is taken to follow: half the dimensions that the rows' variance lies in.
    """

    columns: Any
    products: Any
    unit: float
    scale: float
    shape: float

    @staticmethod
    def of(centred: Any, n: int, deviation: float) -> Moments:
        """Of rows about 0, float32[n + m, d], and the standard deviation of the kernel that products join."""
        rows = len(centred)
        m = rows - n
        variances = np.einsum("ij,ij->j", centred, centred, dtype=np.float64) / rows
        shape = 0.5 * variances.sum() ** 2 / max(float((variances**2).sum()), 1e-300)
        scores = _standard(np.clip(_standard(centred[:, :_WIDTH]), -_CLIP, _CLIP))
        lengths = _standard(np.einsum("ij,ij->i", scores, scores)[:, None])
        factor = np.sqrt(m * n / (rows - 1.0))
        columns = (np.concatenate((scores, lengths), axis=1) / factor).astype(np.float32)
        correlations = scores.T @ scores / rows
        squared = correlations @ correlations
        twice, fourth = float(np.trace(squared)), float((squared**2).sum())
        ratio = 1.0 / np.sqrt(max(2.0 * twice**2 + 2.0 * fourth, 1e-300))  # that of normal columns
        products = (scores * (_SHARE * deviation * ratio) ** 0.25).astype(np.float32)
        unit = rows**2 / (m * n * (rows - 1.0))
        scale = np.sqrt(2.0 + 2.0 * _SHARE**2) * deviation * (1.0 / n + 1.0 / m)
        return Moments(columns, products, unit, float(scale), max(float(shape), 0.5))

    def apart(self, divided: Any) -> Any:
        """By division, float32[n + m, b]: squared distances of the farthest column and of lengths, less the usual."""
        squares = (self.columns.T @ divided).astype(np.float64) ** 2
        return self.unit * np.stack((squares[:-1].max(axis=0) - self.usual, squares[-1] - 1.0))

    @property
    def usual(self) -> float:
        """About the mean of the largest of so many squares of normal numbers."""
        sides = 2.0 * (self.columns.shape[1] - 1)
        return float(max(2.0 * np.log(sides) - np.log(np.log(sides)) - 1.4, 1.0))

    def evidence(self, apart: Any) -> Any:
        """One number of the three, float64[3, b] to float64[b]; it grows with each."""
        columns = self.columns.shape[1] - 1
        farthest = np.sqrt(np.maximum(apart[1] / self.unit + self.usual, 0.0))
        length = np.sqrt(np.maximum(apart[2] / self.unit + 1.0, 0.0))
        logs = np.stack(
            (
                _log_tail(_normal(apart[0] / self.scale, self.shape)),
                np.minimum(_log_tail(farthest) + np.log(2.0 * columns), 0.0),
                _log_tail(length) + np.log(2.0),
            )
        )
        found = _WEIGHTS[:, None] - logs
        most = found.max(axis=0)
        return most + np.log(np.exp(found - most).sum(axis=0))


def _standard(columns: Any) -> Any:
    """Columns of mean 0 and variance 1, of which a constant one is 0 throughout."""
    centred = columns - columns.mean(axis=0, dtype=np.float64)
    deviations = np.sqrt((centred**2).mean(axis=0))
    return centred / np.where(deviations > 1e-9, deviations, np.inf)


def _normal(squares: Any, shape: float) -> Any:
    """Standardised gamma numbers as normal ones (Wilson & Hilferty 1931)."""
    ratio = np.maximum(squares / np.sqrt(shape) + 1.0, 1e-9)
    return (np.cbrt(ratio) - 1.0 + 1.0 / (9.0 * shape)) * np.sqrt(9.0 * shape)


def _log_tail(z: Any) -> Any:
    """About the logarithm of P(Z > z): within 1 % above 0, by Birnbaum's bound."""
    far = np.abs(z)
    above = 0.5 * np.log(2.0 / np.pi) - 0.5 * far**2 - np.log(far + np.sqrt(far**2 + 8.0 / np.pi))
    return np.where(z > 0.0, above, np.log1p(-np.exp(above)))
