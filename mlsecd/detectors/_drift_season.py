"""The part of a stream's variation that comes back with the hour of the day and of the week."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from mlsecd.records import F8

__all__ = ["DAY", "HOURS", "WEEK", "Season", "at_times", "fit_season", "weekdays"]

DAY: Final = 86_400.0
WEEK: Final = 604_800.0
HOURS: Final = 168  # of a week: a season is kept as its value at each, read in between by straight lines

_EPOCH_MONDAY: Final = 345_600.0  # the first Monday after the epoch, UTC
_DAYS_MIN: Final = 0.95  # of a day before a daily season can be seen at all
_WEEKS_MIN: Final = 1.95  # before a weekly one is told from a single odd day
_DAILY: Final = 3  # harmonics
_WEEKLY: Final = 4
_SHOWN_ERRORS: Final = 4.0  # of the chi-square of what chance explains, before a season is believed
_DAYS_FOLDED: Final = 3.0  # fewer have too little to leave out
_FOLDS: Final = 4
_PARTS: Final = 28  # in turn: half days of two weeks, 50 minutes of one day; neighbours may go together
_REACH: Final = 0.4  # of a mean rank, whose ends are +-1/2


class Season(NamedTuple):
    """A stream's mean rank by hour of the week, and how well each hour is known.

    Attributes
    ----------
    table
        float64[168], Monday 00:00 UTC first.
    weights
        float64[168], at most 1: a rank less its hour's mean, times this, errs alike at every hour.
    leverage
        Squared standard error of a mean so weighted, over the variance of a rank.
    """

    table: F8
    weights: F8
    leverage: float
    terms: int = 1  # that were fitted, with the mean


def fit_season(times: F8, ranks: F8, variance: float) -> Season:
    """Harmonics of the day, and from two weeks on of the week; nothing where chance explains as much.

    Chance explains more where rows go together than where they do not, and nobody knows how much: a season is
    believed where it tells rows that it was not fitted to better than the one before it does, from three days on.

    Parameters
    ----------
    times, ranks
        float64[n], in order of time.
    variance
        Of a rank.
    """
    none = Season(np.zeros(HOURS), np.ones(HOURS), 1.0 / max(len(ranks), 1))
    span = float(times[-1] - times[0]) if len(times) else 0.0
    if span < _DAYS_MIN * DAY or len(ranks) < 20 * _DAILY:
        return none
    best, known, missed = none, 0, float((ranks**2).sum())
    for weekly in (False, True):
        if weekly and span < _WEEKS_MIN * WEEK:
            break
        basis, hours = _basis(times, weekly=weekly), _basis(_EPOCH_MONDAY + 3_600.0 * np.arange(HOURS), weekly=weekly)
        inverse = np.linalg.pinv(basis.T @ basis)
        found = inverse @ (basis.T @ ranks)
        explained = float(((basis @ found) ** 2).sum()) / variance
        before = 0.0 if not known else float((_read(best.table, times) ** 2).sum()) / variance
        added = basis.shape[1] - known
        left = _left_out(basis, ranks) if span >= _DAYS_FOLDED * DAY else 0.0
        if explained - before > added + _SHOWN_ERRORS * math.sqrt(2.0 * added) and left < missed:
            missed = left
            leverages = np.einsum("ij,jk,ik->i", hours, inverse, hours)
            least = float(leverages.min())
            best = Season(np.clip(hours @ found, -_REACH, _REACH), np.sqrt(least / leverages), least, basis.shape[1])
            known = basis.shape[1]
    return best


def _left_out(basis: F8, ranks: F8) -> float:
    """Squares that are left of rows, each told by the others of its four folds."""
    parts = np.arange(len(ranks)) * _PARTS // len(ranks)
    folds = (parts + parts // _FOLDS) % _FOLDS  # turned each time: in seven days a fold would be one time of the day
    total = 0.0
    for fold in range(_FOLDS):
        out = folds == fold
        found = np.linalg.lstsq(basis[~out], ranks[~out], rcond=None)[0]
        total += float(((ranks[out] - basis[out] @ found) ** 2).sum())
    return total


def _basis(times: Any, *, weekly: bool) -> F8:
    """float64[n, 7 or 19]: one, waves of the day, of the week, and the week's first changing the day's first."""
    day = [2.0 * math.pi * k * times / DAY for k in range(1, _DAILY + 1)]
    angles = list(day)
    if weekly:
        week = [2.0 * math.pi * k * (times - _EPOCH_MONDAY) / WEEK for k in range(1, _WEEKLY + 1)]
        angles += [*week, day[0] + week[0], day[0] - week[0]]
    return np.column_stack([np.ones(len(times)), *(wave(angle) for angle in angles for wave in (np.cos, np.sin))])


def at_times(tables: Any, times: F8) -> F8:
    """What tables by hour of the week hold at these times: float64[k, 168], float64[n] to float64[n, k]."""
    return _read(tables.T, times)


def _read(table: Any, times: F8) -> F8:
    hours = np.mod((times - _EPOCH_MONDAY) / 3_600.0, HOURS)
    first = np.minimum(hours.astype(np.int64), HOURS - 1)
    share = (hours - first).reshape(-1, *([1] * (table.ndim - 1)))
    read: F8 = table[first] * (1.0 - share) + table[(first + 1) % HOURS] * share
    return read


def weekdays(start: float, end: float) -> frozenset[int]:
    """The days of the week (UTC, Monday is 0) that a stretch of time touches."""
    first, last = (math.floor((at - _EPOCH_MONDAY) / DAY) for at in (start, end))
    return frozenset(day % 7 for day in range(first, min(last, first + 6) + 1))
