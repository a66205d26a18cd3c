"""What ordinary clients do, in numbers: cuts of single scores, and the beta-binomial null of counts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.kernels import Kernels

__all__ = ["RARE_TAILS", "TAILS", "cuts_of", "null_of", "scale_of", "sharp_null_of", "weights_of"]

F8 = NDArray[np.float64]

TAILS: Final = (0.05, 0.005)
RARE_TAILS: Final = (0.005, 0.0005)
_ROUNDS: Final = 20
# Shrinkage of the two moments: as if this many clients more had been seen, of this overdispersion.
_PRIOR_CLIENTS: Final = 10.0
_PRIOR_OVERDISPERSION: Final = 0.05
_OVERDISPERSION: Final = (0.01, 0.33)
_PRIOR_SPREAD: Final = 1.0  # the same for rates relative to their mean: standard deviation over mean
_LEAST_SPREAD: Final = 0.5
_LOUDEST: Final = 0.05
_MEAN: Final = (1e-4, 0.9999)
_RARE: Final = 0.005  # prior mean of an indicator that has no nominal level
_TOP_SHARE: Final = 0.1
_DISTANT: Final = ("ood_", "resid_")  # channels in which customers of a launch or a season are odd
_DISTANCE_WEIGHT: Final = 1.0 / 1.5
_HIGHEST: Final = 0.01


def cuts_of(scores: F8, levels: tuple[float, ...] = TAILS) -> F8:
    """Scores above ``cuts[i]`` have the conformal p-value ``(1 + #{calibration >= s}) / (n + 1) <= levels[i]``.

    Infinite where n is too small for a p-value that low.
    """
    falling = np.sort(scores)[::-1]
    cuts = np.full(len(levels), np.inf)
    for i, tail in enumerate(levels):
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
        mean, rho, clients = _mean_of(tallies[:, :, c], name)
        rho = (clients * rho + _PRIOR_CLIENTS * _PRIOR_OVERDISPERSION) / (clients + _PRIOR_CLIENTS)
        null[:2, c] = _beta(mean, float(np.clip(rho, *_OVERDISPERSION)))
    return null


def sharp_null_of(tallies: NDArray[np.int32], channels: tuple[str, ...], kernels: Kernels) -> F8:
    """As :func:`null_of`, for scores whose threshold other clients set: what counts is power, not the null's own level.

    A few honest clients of an odd kind would widen the null for all, and hide a thief of many queries who does
    a little of the same; so each channel leaves out its loudest twentieth (the scales and the threshold see them).
    What is shrunk is how much rates differ *relative* to their mean: an intraclass correlation of 0.01 is
    little where one query in twenty fires, and more than the mean itself where one in two hundred does.
    Channels of nearness keep the wide null: whole kinds of honest clients do nothing else (a video), and
    a draw of the reference that has one of them by chance must not make the others of the kind suspects.
    """
    null = null_of(tallies, channels)
    for c, name in enumerate(channels):
        if name in _BY_KIND:
            continue
        null[:2, c] = _relative(tallies[:, :, c], name)
        own = tallies[tallies[:, 1, c] > 1, :, c]
        loud = kernels.tails(np.ascontiguousarray(own.T), np.tile(null[:, c : c + 1], len(own)))
        order = np.argsort(-loud, kind="stable")[: round(_LOUDEST * len(own))]
        null[:2, c] = _relative(np.delete(own, order[loud[order] > 0], axis=0), name)
    return null


def _relative(tallies: NDArray[np.int32], name: str) -> tuple[float, float]:
    """The beta of one channel, shrunk towards ten clients whose rates differ by as much as their mean."""
    mean, rho, clients = _mean_of(tallies, name)
    odds = mean / (1.0 - mean)  # the intraclass correlation of rates whose spread is their mean
    rho = (clients * rho + _PRIOR_CLIENTS * _PRIOR_SPREAD**2 * odds) / (clients + _PRIOR_CLIENTS)
    return _beta(mean, min(max(rho, _LEAST_SPREAD**2 * odds), _OVERDISPERSION[1]))


def _mean_of(tallies: NDArray[np.int32], name: str) -> tuple[float, float, int]:
    """Mean, shrunk towards one client of the nominal level; overdispersion; clients."""
    mean, rho, clients = _moments(tallies[:, 0].astype(float), tallies[:, 1].astype(float))
    return float(np.clip((clients * mean + _nominal(name)) / (clients + 1), *_MEAN)), rho, clients


def _nominal(name: str) -> float:
    """How often a channel fires on ordinary rows by construction."""
    if name.endswith("_rare"):
        return RARE_TAILS[1]
    if name.endswith("_tail"):
        return TAILS[1]
    return TAILS[0] if name in _GRADED else _RARE


def _beta(mean: float, rho: float) -> tuple[float, float]:
    strength = max(1.0 / rho - 1.0, 1.0 / (1.0 - mean))  # b >= 1: tails fall
    return mean * strength, (1.0 - mean) * strength


_BY_KIND: Final = frozenset({"knn", "knn_tail", "neardup", "crowd", "flip", "far", "farflip"})
# fire on 5 % of ordinary rows by construction
_GRADED: Final = frozenset({"ood_f", "ood_e", "unc", "knn", "neardup", "resid_f", "resid_e"})


def weights_of(channels: tuple[str, ...]) -> F8:
    """What scales are multiplied with: distance counts less, for customers of a launch are odd there too."""
    return np.array([_DISTANCE_WEIGHT if name.startswith(_DISTANT) else 1.0 for name in channels])


def scale_of(best: F8) -> Any:
    """Scales that make each channel's score read "2 is what 1 % of ordinary clients reach": float64[C].

    The 99 % quantile is drawn from the mean excess over the 90 % one, as for an exponential tail: a
    maximum of a hundred clients would be one client's doing. Where fewer than a tenth of the clients have
    any score, it is drawn from how many have. A channel is never scaled up.

    Parameters
    ----------
    best
        float64[clients, C]: each client's highest tail of each channel.
    """
    base = np.quantile(best, 1.0 - _TOP_SHARE, axis=0)
    above = best > base
    share = above.mean(axis=0)
    excess = np.where(above, best - base, 0.0).sum(axis=0) / np.maximum(above.sum(axis=0), 1)
    highest = base + excess * np.log(np.maximum(share, _HIGHEST) / _HIGHEST)
    return 2.0 / np.maximum(highest, 2.0)
