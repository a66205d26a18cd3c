"""What ordinary clients do, in numbers: cuts of single scores, and the beta-binomial null of counts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["TAILS", "cuts_of", "null_of", "scale_of"]

F8 = NDArray[np.float64]

TAILS: Final = (0.05, 0.005)
_ROUNDS: Final = 20
# Shrinkage of the two moments: as if this many clients more had been seen, of this overdispersion.
_PRIOR_CLIENTS: Final = 10.0
_PRIOR_OVERDISPERSION: Final = 0.05
_OVERDISPERSION: Final = (0.01, 0.33)
_MEAN: Final = (1e-4, 0.9999)
_RARE: Final = 0.005  # prior mean of an indicator that has no nominal level
_TOP_SHARE: Final = 0.1
_HIGHEST: Final = 0.01


def cuts_of(scores: F8) -> F8:
    """Scores above ``cuts[i]`` have the conformal p-value ``(1 + #{calibration >= s}) / (n + 1) <= TAILS[i]``.

    Infinite where n is too small for a p-value that low.
    """
    falling = np.sort(scores)[::-1]
    cuts = np.full(len(TAILS), np.inf)
    for i, tail in enumerate(TAILS):
        most = int(np.floor(tail * (len(scores) + 1) + 1e-9)) - 1  # calibration scores that may reach s
        if most >= 0:
            cuts[i] = falling[most]
    return cuts


def _moments(fired: F8, tried: F8) -> tuple[float, float, int]:
    """Mean rate and intraclass correlation of counts by client (Kleinman 1973, eq. 2.5), and the clients used."""
    used = tried > 1
    k, n = fired[used], tried[used]
    if not len(n):
        return 0.0, 0.0, 0
    rate, rho = k / n, 0.0
    mean = 0.0
    for _ in range(_ROUNDS):
        weight = n / (1.0 + rho * (n - 1.0))
        total = weight.sum()
        mean = float((weight * rate).sum() / total)
        if not 0.0 < mean < 1.0 or len(n) < 2:
            return mean, 0.0, len(n)
        free = weight * (1.0 - weight / total)
        between = (weight * (rate - mean) ** 2).sum() / (mean * (1.0 - mean))
        rho = float(np.clip((between - (free / n).sum()) / (free * (1.0 - 1.0 / n)).sum(), 0.0, 1.0))
    return mean, rho, len(n)


def null_of(tallies: NDArray[np.int32], channels: tuple[str, ...]) -> F8:
    """a, b and scale 1 of every channel's beta-binomial null: float64[3, C].

    Parameters
    ----------
    tallies
        int32[clients, 2, C]: fired, tried.
    """
    null = np.ones((3, len(channels)))
    for c, name in enumerate(channels):
        nominal = TAILS[1] if name.endswith("_tail") else TAILS[0] if name in _GRADED else _RARE
        mean, rho, clients = _moments(tallies[:, 0, c].astype(float), tallies[:, 1, c].astype(float))
        mean = float(np.clip((clients * mean + nominal) / (clients + 1), *_MEAN))
        rho = (clients * rho + _PRIOR_CLIENTS * _PRIOR_OVERDISPERSION) / (clients + _PRIOR_CLIENTS)
        strength = max(1.0 / float(np.clip(rho, *_OVERDISPERSION)) - 1.0, 1.0 / (1.0 - mean))  # b >= 1: tails fall
        null[0, c], null[1, c] = mean * strength, (1.0 - mean) * strength
    return null


_GRADED: Final = frozenset({"ood_f", "ood_e", "unc", "knn", "neardup"})  # fire on 5 % of ordinary rows by construction


def scale_of(best: F8) -> Any:
    """Scales that make each channel's score read "2 is what 1 % of ordinary clients reach": float64[C].

    The 99 % quantile is drawn from the mean excess over the 90 % one, as for an exponential tail: a
    maximum of a hundred clients would be one client's doing. A channel is never scaled up.

    Parameters
    ----------
    best
        float64[clients, C]: each client's highest tail of each channel.
    """
    base = np.quantile(best, 1.0 - _TOP_SHARE, axis=0)
    above = best > base
    excess = np.where(above, best - base, 0.0).sum(axis=0) / np.maximum(above.sum(axis=0), 1)
    highest = base + excess * np.log(_TOP_SHARE / _HIGHEST)
    return 2.0 / np.maximum(highest, 2.0)
