"""How far a drift stream may wander without meaning anything, and how to bet against the rest."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from mlsecd.kernels.drift_layout import BETS
from mlsecd.records import F8

__all__ = ["RATE_HEADROOM", "RATE_MIN", "Bets", "Wander", "calibrate", "make_bets", "threshold"]


# Means of m stretches of neighbours vary as those of independent rows do, unless their variance
# exceeds what is expected by so many standard errors, sqrt(2 / m) each. Where it does on any scale,
# what is assumed of every scale is what it might be: so many standard errors more than was seen.
_SHOWN_ERRORS: Final = 2.0
_UPPER_ERRORS: Final = 2.0
_PLAIN_ERRORS: Final = 5.0  # by which it shows beyond doubt: then no other stream of the model counts as independent
_STRETCHES_MIN: Final = 16

_WEEK: Final = 604_800.0
RATE_MIN: Final = 1.0 / 60.0  # rows a second; a model that was hardly used when it was learned
RATE_HEADROOM: Final = 2.0  # the promise holds up to this many times the reference's rate

# A mean that is so many standard errors off is conceded to the null hypothesis, where the bound on false
# alarms is exact. Beyond, by z standard errors in all, the smallest bet b alarms c^(2 (z - conceded) / margin)
# times too often, with the margin in standard errors that b must see beyond what is conceded to win twice over;
# so that the mean over references is the bound's all the same, what is conceded grows with log c (decision 0023).
_CONCEDED_MIN: Final = 1.5
_MARGIN: Final = 8.0
_LOG_LEVEL: Final = 5.0  # of S at rest, where it has no change behind it: that much of log c is there already

_REACH: Final = 0.5  # of the farthest that a mean rank can go; where more is conceded, a side has no bets
_STAKE: Final = 0.5  # of its capital that the largest bet loses at worst
_PAY_MAX: Final = 7.0  # and wins at best: a rare event must not alarm by itself


@dataclass(frozen=True, slots=True)
class Wander:
    """How the ranks of one stream vary within its reference.

    Attributes
    ----------
    variance
        Of a rank.
    inertia
        Variance of the mean of many neighbours over that of as many independent rows; at least 1.
    error
        Standard deviation of a future mean about the reference's own: its sampling error, and the
        slow variation between stretches of the reference.
    steady
        No dependence showed: rows can be taken for exchangeable.
    plain
        It showed beyond doubt.
    """

    variance: float
    inertia: float
    error: float
    steady: bool
    plain: bool


def calibrate(  # noqa: PLR0913, PLR0917
    ranks: F8,
    variance: float,
    squared_error: float,
    longest: int = sys.maxsize,
    hidden_errors: float = 0.0,
    cautious: bool = False,
    terms: int = 1,
) -> Wander:
    """How a stream wanders.

    Parameters
    ----------
    ranks
        float64[n]; mid-ranks of the reference's rows among themselves, in order of time.
    variance
        Of a rank, smoothed: a share that was never seen is not a share of none.
    squared_error
        Of the reference's mean rank, or of its season's at any hour, were its rows independent.
    longest
        Stretch of rows that were neighbours in the stream: a power of two.
    hidden_errors
        Standard errors of its variation that are allowed for, because what lasts longer cannot be seen.
    cautious
        Where no dependence shows, allow for what may be there all the same: other streams of these rows show it.
    terms
        Of the mean and the season that were fitted to these very ranks: so much less do stretches show.
    """
    seen, upper, steady, plain, slow, hidden = 1.0, 1.0, True, False, 0.0, 0.0
    length = 2
    fewest = _STRETCHES_MIN + terms - 1
    while length <= longest and len(ranks) // length >= fewest:
        ratio, spread = _ratio(ranks, length, variance, terms)
        steady = steady and ratio <= 1.0 + _SHOWN_ERRORS * spread
        plain = plain or ratio > 1.0 + _PLAIN_ERRORS * spread
        upper = max(upper, ratio * (1.0 + _UPPER_ERRORS * spread))
        last = 2 * length > longest or 2 * length * fewest > len(ranks)
        if last and ratio > seen * (1.0 + spread):
            # the longest stretches vary more than those of half their length explain: what that is, lasts longer still
            slow = (ratio * (1.0 + _UPPER_ERRORS * spread) - seen) * variance / (length / 2)
        if 2 * length > longest:
            # what a long sample's blocks are too few to show may be there all the same, and last for hours
            hidden = max(ratio - 1.0 + hidden_errors * spread, 0.0) * variance / length
        seen = max(seen, ratio)
        length *= 2
    if steady and not cautious:
        upper, slow = 1.0, 0.0
    slow = max(slow, hidden)
    return Wander(variance, upper, math.sqrt(upper * squared_error + slow), steady, plain)


def _ratio(ranks: F8, length: int, variance: float, terms: int) -> tuple[float, float]:
    """Variance of means of ``length`` neighbours over that of independent rows, and its standard error."""
    stretches = len(ranks) // length
    means = ranks[: stretches * length].reshape(stretches, length).mean(axis=1)
    return float(means.var(ddof=terms)) * length / variance, math.sqrt(2.0 / (stretches - terms + 1))


class Bets(NamedTuple):
    """The bets of one stream.

    Attributes
    ----------
    pays
        float64[2, 6]; by bet, its pay where x = 0, and what it pays more per unit of x.
    least
        The smallest shift of the mean rank that they win on.
    """

    pays: F8
    least: float


def threshold(streams: int, rate: float, alarms_per_week: float) -> float:
    """The threshold of each of K streams that share a budget B: c = K U / B, where each has U values a week.

    They alarm at most K U / c times a week in the mean. ``rate`` is the reference's, rows a second.
    """
    return max(streams * RATE_HEADROOM * max(rate, RATE_MIN) * _WEEK / alarms_per_week, 2.0)


def make_bets(wander: Wander, low: float, high: float, tolerance: float, c: float) -> Bets | None:
    """The bets of one stream.

    A bet b on the mean rank's sign pays f(x) = (1 + b x) / ((1 + |b| delta) (1 + b^2 v (inertia - 1) / 2)).
    The first factor below makes E f <= 1 while |E[x | past]| <= delta. The second is for neighbours
    that go together: the log of the product of n of (1 + b x) has variance b^2 v n inertia, where its
    mean is -b^2 v n / 2, and the product's own mean is kept at 1 by -b^2 v n inertia / 2 (Gaussian in
    the limit of many rows; exact without dependence).

    Parameters
    ----------
    low, high
        The ends of its ranks: -1/2 and 1/2, or the ranks of 0 and 1 of a two-valued stream.
    tolerance
        A shift of the mean rank that is of no interest, in standard deviations of a rank.
    c
        The threshold that the bets are made for.

    Returns
    -------
    Bets or None
        ``None`` where the reference varies so much that no shift would show.
    """
    power = wander.variance * wander.inertia
    ordinary = max(_CONCEDED_MIN, (math.log(c) - _LOG_LEVEL) / _MARGIN)
    losing = ordinary + _MARGIN / 2.0  # standard errors up to which every bet loses on average
    sides = []
    for sign, lose, win in ((1.0, -low, high), (-1.0, high, -low)):
        largest = min(_STAKE / max(lose, 1e-9), _PAY_MAX / max(win, 1e-9))
        # where the largest bet would win on what is ordinary, more is conceded instead
        conceded = max(ordinary, losing - largest * power / (2.0 * wander.error))
        delta = max(conceded * wander.error, tolerance * math.sqrt(wander.variance))
        if delta < _REACH * win:
            smallest = 2.0 * (losing - conceded) * wander.error / power
            sides.append((sign, delta, smallest, largest))
    if not sides:
        return None
    made, least = [], 0.0
    for sign, delta, smallest, largest in sides:
        least = max(least, delta + smallest * power / 2.0)
        sizes = np.geomspace(smallest, largest, BETS // len(sides))
        allowed = 1.0 + sizes**2 * wander.variance * (wander.inertia - 1.0) / 2.0
        scale = 1.0 / ((1.0 + sizes * delta) * allowed)
        made.append(np.stack((scale, sign * sizes * scale)))
    return Bets(np.concatenate(made, axis=1), least)
