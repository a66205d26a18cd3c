"""Kernels of drift detection on the CPU: ranks among a reference, and the sequential bets on them.

Each runs row by row in a fixed order of operations, so that results are the same to the last bit
however a stream is cut into batches. All state is in the arrays that are handed in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from mlsecd.kernels.cpu_drift_rows import drift_admit, drift_project, drift_sketch
from mlsecd.kernels.drift_layout import (
    BETS,
    BINS,
    BLOCK,
    COUNT,
    COUNT_0,
    DAY,
    LATCHED,
    LATCHES,
    SAID,
    START,
    SUM_VALUE,
    SUM_VALUE_0,
    SUM_X,
    SUM_X_0,
    TODAY,
    YESTERDAY,
    S,
    W,
)

__all__ = ["drift_admit", "drift_fold", "drift_project", "drift_ranks", "drift_sketch"]

_DAY_SECONDS = 86_400.0
_CEILING = np.exp(1.0)  # no bet's S or W exceeds what this many thresholds need: it must come down again


@njit(nogil=True, cache=True)
def _count_below(  # noqa: PLR0913, PLR0917
    wanted: Any, values: Any, first: int, last: int, counts: Any, over: bool = False
) -> None:
    """How many of sorted ``values[first:last]`` are less than each wanted, or with ``over`` at most: uint64.

    One level of all searches after the other: their loads overlap, and no branch depends on data. Unsigned, for what
    may be negative is tested for it at each load.
    """
    counts[:] = first
    length = last - first
    while length > 0:
        half = (length + 1) >> 1
        step, before = np.uint64(half), np.uint64(half - 1)
        for i in range(len(wanted)):
            count = counts[i]
            seen = values[count + before]
            counts[i] = count + step if (seen < wanted[i]) | (over & (seen == wanted[i])) else count
        length -= half
    counts -= np.uint64(first)


@njit(nogil=True, cache=True)
def drift_ranks(values: Any, references: Any, offsets: Any, two_valued: Any) -> Any:
    """Mid-ranks of values among each stream's reference, minus one half: in (-1/2, 1/2), NaN kept.

    One minus the smoothed conformal p (Vovk, Gammerman, Shafer 2005, eq. 2.20) with the random
    tie-breaker at its mean: bets that are linear in p need E p = 1/2 only, and this keeps it.

    Parameters
    ----------
    values
        float64[n, k]; what is not finite counts as absent.
    references
        float32; sorted reference values, stream by stream.
    offsets
        int64[k + 1]; an empty stretch is a stream of zeros and ones.
    two_valued
        float64[k, 2]; the ranks of 0 and 1 in such a stream.

    Returns
    -------
    float64[n, k]
    """
    n, k = values.shape
    ranks = np.empty((n, k))
    wanted = np.empty(n, np.float32)
    below = np.empty(n, np.uint64)
    upto = np.empty(n, np.uint64)
    for j in range(k):
        first, last = offsets[j], offsets[j + 1]
        for i in range(n):
            wanted[i] = values[i, j]
        tied = False
        if first < last:
            _count_below(wanted, references, first, last, below)
            for i in range(n):
                at = first + np.int64(below[i])
                tied |= at < last and references[at] == wanted[i]
            if tied:
                _count_below(wanted, references, first, last, upto, over=True)
        for i in range(n):
            if not np.isfinite(wanted[i]):
                ranks[i, j] = np.nan
            elif first == last:
                ranks[i, j] = two_valued[j, 1 if wanted[i] > 0.5 else 0]
            else:
                equal = np.int64(upto[i] - below[i]) if tied else 0
                ranks[i, j] = (np.int64(below[i]) + 0.5 * (equal + 1)) / (last - first + 1) - 0.5
    return ranks


@njit(nogil=True, cache=True)
def _bet(j: int, state: Any, runs: Any, bets: Any, x: float, value: float, time: float, most: float) -> float:  # noqa: PLR0913, PLR0917
    """Bet on one value of stream j; the mean of S is what the stream has against its reference.

    Whole arrays and an index, here and below: a slice of one counts its references, which costs more than the bets.
    """
    total = 0.0
    for b in range(BETS):
        if runs[j, b, W] <= 1.0:  # W = max(W, 1): the likeliest beginning of a change is here
            runs[j, b, W] = 1.0
            runs[j, b, START] = time
            runs[j, b, COUNT_0] = state[j, COUNT]
            runs[j, b, SUM_X_0] = state[j, SUM_X]
            runs[j, b, SUM_VALUE_0] = state[j, SUM_VALUE]
        pay = bets[j, 0, b] + bets[j, 1, b] * x
        runs[j, b, W] = min(runs[j, b, W] * pay, most)
        runs[j, b, S] = min((runs[j, b, S] + 1.0) * pay, most)
        total += runs[j, b, S]
    state[j, COUNT] += 1.0
    state[j, SUM_X] += x
    state[j, SUM_VALUE] += value
    return total / BETS


@njit(nogil=True, cache=True)
def _rests(j: int, runs: Any, evidence: float, c: float) -> bool:
    """Whether a latched stream is back: at the root of c, or nothing but old sums is left over it."""
    if evidence * evidence <= c:
        return True
    likeliest = 0.0
    for b in range(BETS):
        likeliest += runs[j, b, W]
    return (likeliest / BETS) ** 4 <= c


@njit(nogil=True, cache=True)
def drift_fold(  # noqa: PLR0913, PLR0917 - state and law are arrays that are kept apart
    values: Any,
    times: Any,
    start: int,
    ranks: Any,
    thresholds: Any,
    bets: Any,
    repeat_seconds: float,
    state: Any,
    runs: Any,
    clock: Any,
    bins: Any,
) -> int:
    """Conformal e-detectors of many streams; stops at the row that something is to be said at.

    With x a value's rank, bet b pays f_b(x), linear in x, whose mean is at most 1 while the stream is
    like its reference. Each bet has its sum over all times at which a change may have begun of what it would
    have won since, S = (S + 1) * f (Shiryaev and Roberts), and the mean of S over the bets is an e-detector:
    in the mean it takes at least c values to reach c (Shin, Ramdas, Rinaldo 2024, definition 2.2,
    theorem 2.4, and section 4 for the mixture). Beside it runs W = max(W, 1) * f (Page), which is never more:
    where it last left 1 is the likeliest beginning. A stream at c is latched; back at the root of c, or
    W at its fourth root, it starts anew.

    Parameters
    ----------
    values
        float64[n, k]; summed over a run for the size of the effect.
    times
        float64[n], seconds, in the order of the fold.
    start
        The row to begin with.
    ranks
        float64[n, k], from :func:`drift_ranks`; NaN where a row does not have this stream's value.
    thresholds
        float64[k]; c.
    bets
        float64[k, 2, b]: what a bet pays where x = 0, and how much more per unit of x.
    repeat_seconds
        At least this long between two stops while any stream stays latched.
    state, runs, clock, bins
        Laid out as in :mod:`mlsecd.kernels.drift_layout`, changed in place; zeros to begin with.

    Returns
    -------
    int
        The row to speak of (go on with the next), or n.
    """
    n, k = ranks.shape
    for i in range(start, n):
        _count_day(clock, times[i])
        fresh = clock[LATCHES] == 0.0
        above = False
        for j in range(k):
            x = ranks[i, j]
            if np.isnan(x):
                continue
            c = thresholds[j]
            most = BETS * c * _CEILING
            _count_bin(j, bins, state[j, COUNT], x)
            evidence = _bet(j, state, runs, bets, x, values[i, j], times[i], most)
            if evidence >= c:
                above = True
                clock[LATCHES] += 1.0 - state[j, LATCHED]
                state[j, LATCHED] = 1.0
            elif state[j, LATCHED] > 0.0 and _rests(j, runs, evidence, c):
                clock[LATCHES] -= 1.0
                state[j, LATCHED] = 0.0
                runs[j, :, S] = 0.0
                runs[j, :, W] = 0.0
        if above and (fresh or times[i] - clock[SAID] >= repeat_seconds):
            clock[SAID] = times[i]
            return i
    return n


@njit(nogil=True, cache=True)
def _count_bin(j: int, bins: Any, count: float, x: float) -> None:
    """Count a rank to its sixteenth; a new block of rows begins with an empty row of bins."""
    if int(count) & (BLOCK - 1) == 0:  # BLOCK is a power of two; a float's remainder would be a call
        for b in range(BINS):
            bins[j, 1, b] = bins[j, 0, b]
            bins[j, 0, b] = 0.0
    bins[j, 0, min(max(int((x + 0.5) * BINS), 0), BINS - 1)] += 1.0


@njit(nogil=True, cache=True)
def _count_day(clock: Any, time: float) -> None:
    """Count a scored row to its day."""
    day = np.floor(time / _DAY_SECONDS)
    if day != clock[DAY]:
        clock[YESTERDAY] = clock[TODAY] if day == clock[DAY] + 1.0 else 0.0
        clock[DAY] = day
        clock[TODAY] = 0.0
    clock[TODAY] += 1.0
