"""The spectral test: do some accounts differ from ordinary ones in a common direction, and which.

An account with n rows has the mean ``x = mu + b + e``: b is what it is (between-client covariance B), e what its rows
happened to be (within-client covariance W, divided by n). Axes that make W the identity and B diagonal whiten any
account of any n: ``y = axes^T (x - mu) / sqrt(spread + 1 / n)``. Ordinary accounts then have length about
sqrt(D) and no common direction; a campaign's have one, and it shows as the top eigenvalue of the mean of ``y y^T``
(Baik, Ben Arous & Peche 2005). Lengths are cut, so that no loud account owns an axis (spatial signs, Visuri et al.
2000).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._sections import numbers
from mlsecd.detectors.base import Arrays
from mlsecd.errors import MALFORMED, BaselineError

__all__ = ["FEWEST", "ODD", "Null", "Side", "Spectrum", "edge", "members", "spectra", "spectrum"]

F8 = NDArray[np.float64]

FEWEST: Final = 20  # active accounts, below which no direction is common
ODD: Final = 1.301  # -log10 of 0.05: what one ordinary client in twenty shows in a channel
_EULER: Final = 0.5772156649015329
_LEAST_SPREAD: Final = 0.15  # of the null's statistic, of its mean: other populations differ more than resamples of one
_LONG: Final = 2.0  # times the cap: where members are told from others, loud ones may be louder
_OUTSIDE: Final = 0.98  # quantile of ordinary accounts' projections
_LEAST_OUTSIDE: Final = 0.95
_ROUNDS: Final = 8


@dataclass(frozen=True, slots=True)
class Null:
    """What ordinary accounts of one view do.

    Attributes
    ----------
    mean
        float64[D], mu.
    axes, spread
        float64[D, D], [D].
    cap
        The length that y is cut to.
    held
        float64[N, D], y of ordinary clients that none of the above was learned from.
    ratios
        float64[R], top eigenvalues of groups of them, as multiples of :func:`edge`.
    rates
        float64[3, C], the beta-binomial null of each channel: a, b and scale 1.
    tails
        float64[N, C], what the held clients show in each channel: -log10 of the chance of it.
    odd_ratios, far_ratios
        float64[R], as ``ratios``, of groups that are odd in some adversarial channel, and in any; empty where there are
        too few.
    """

    mean: F8
    axes: F8
    spread: F8
    cap: float
    held: F8
    ratios: F8
    rates: F8
    tails: F8
    odd_ratios: F8
    far_ratios: F8

    def whiten(self, counts: F8, sums: F8) -> F8:
        """Y of accounts, float64[A, D], of their rows (float64[A]) and the sums over them (float64[A, D])."""
        means: F8 = sums / counts[:, None] - self.mean
        return np.asarray(means @ self.axes / np.sqrt(self.spread + 1.0 / counts[:, None]))

    def threshold(self, level: float, accounts: int, ratios: F8 | None = None) -> float:
        """The top eigenvalue that ``accounts`` ordinary ones, or of the kind of ``ratios``, exceed with this chance.

        A Gumbel tail through mean and spread of the resampled ratios; the spread is taken for at least 15 % of the
        mean, which is what unseen benign populations needed (docs/detection.md). A model, not a certificate.
        """
        ratios = self.ratios if ratios is None else ratios
        mean = float(ratios.mean())
        spread = max(float(ratios.std()), _LEAST_SPREAD * mean)
        beyond = -math.log(-math.log1p(-level)) - _EULER
        return (mean + spread * max(beyond, 0.0) * math.sqrt(6.0) / math.pi) * edge(len(self.mean), accounts)

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """For a section."""
        return {
            f"{prefix}.mean": self.mean,
            f"{prefix}.axes": self.axes,
            f"{prefix}.spread": self.spread,
            f"{prefix}.cap": np.array([self.cap]),
            f"{prefix}.held": self.held.astype(np.float32),
            f"{prefix}.ratios": self.ratios,
            f"{prefix}.rates": self.rates,
            f"{prefix}.tails": self.tails.astype(np.float32),
            f"{prefix}.odd_ratios": self.odd_ratios,
            f"{prefix}.far_ratios": self.far_ratios,
        }

    @classmethod
    def of(cls, arrays: Arrays, prefix: str, dims: int, channels: int) -> Null:
        """Out of a section.

        Raises
        ------
        BaselineError
            Something is missing or does not belong together.
        """
        try:
            names = ("mean", "axes", "spread", "held", "ratios", "rates", "tails", "odd_ratios", "far_ratios")
            parts = {name: numbers(arrays, f"{prefix}.{name}") for name in names}
            made = cls(cap=float(numbers(arrays, f"{prefix}.cap")[0]), **parts)
        except MALFORMED as error:
            raise BaselineError(f"campaign_extraction: the baseline's part cannot be used: {error}") from error
        shapes = (made.mean.shape, made.axes.shape, made.spread.shape, made.held.shape[1:], made.rates.shape)
        sound = (
            made.tails.shape == (len(made.held), channels)
            and len(made.ratios) > 1
            and len(made.held) >= FEWEST
            and made.cap > 0
            and bool((made.rates > 0).all() and (made.spread >= 0).all())
            and {made.ratios.ndim, made.odd_ratios.ndim, made.far_ratios.ndim} == {1}
        )
        if shapes != ((dims,), (dims, dims), (dims,), (dims,), (3, channels)) or not sound:
            raise BaselineError("campaign_extraction: the baseline's part cannot be used: fit it again")
        return made


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The top of the spectrum of one set of accounts."""

    value: float
    direction: F8  # [D]


def edge(dims: int, accounts: int) -> float:
    """Where the spectrum of pure noise ends, per unit of variance (Marchenko & Pastur 1967)."""
    return (1.0 + math.sqrt(dims / accounts)) ** 2


def cut(y: F8, length: float) -> F8:
    """Rows of y, none longer than ``length``."""
    lengths = np.linalg.norm(y, axis=1, keepdims=True)
    return np.asarray(y * np.minimum(1.0, length / np.maximum(lengths, 1e-12)))


def spectra(y: F8, cap: float, most: int) -> list[Spectrum]:
    """Top eigenvalues and directions of accounts, about their own median: what moves them all is not common to some."""
    centred = cut(y - np.median(y, axis=0), cap)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    return [Spectrum(float(values[-i]), vectors[:, -i]) for i in range(1, min(most, len(values)) + 1)]


def spectrum(y: F8, cap: float) -> Spectrum:
    """The first of :func:`spectra`."""
    return spectra(y, cap, 1)[0]


@dataclass(frozen=True, slots=True)
class Side:
    """The accounts that lie out in a direction.

    Attributes
    ----------
    chosen
        bool[A].
    along, usual
        How far each account and each ordinary client lies out, float64[A], [N].
    """

    chosen: NDArray[np.bool_]
    along: F8
    usual: F8


def members(y: F8, held: F8, cap: float, direction: F8) -> Iterator[Side]:
    """The accounts that lie out in the direction, and those that lie out against it.

    ``held`` are ordinary ones of the same kind, float64[N, D]. The direction is turned to lead from the others to the
    members, and the cut moved half way between members and ordinary clients, until nobody changes sides.
    """
    here, ordinary = cut(y, _LONG * cap), cut(held, _LONG * cap)
    for sign in (1.0, -1.0):
        along = sign * direction
        chosen = here @ along > np.quantile(ordinary @ along, _OUTSIDE)
        for _ in range(_ROUNDS):
            if chosen.sum() < 2:
                break
            rest = here[~chosen].mean(axis=0) if not chosen.all() else np.zeros(len(along))
            towards = here[chosen].mean(axis=0) - rest
            along = towards / max(float(np.linalg.norm(towards)), 1e-12)
            usual = ordinary @ along
            half_way = (np.median(here[chosen] @ along) + np.median(usual)) / 2
            before, chosen = chosen, here @ along > max(half_way, np.quantile(usual, _LEAST_OUTSIDE))
            if np.array_equal(before, chosen):
                break
        yield Side(chosen, here @ along, ordinary @ along)
