"""Account scoring on the CPU: one query against its account's window, and the running counts."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels import formulas
from mlsecd.kernels.cpu_vectors import nearest_mean, squared_distances

__all__ = ["CHANNELS", "Account", "Plan", "Rows", "mark", "scan", "tails"]

# The order of channels in tallies, nulls and bit masks. Those before "knn" are decided by the row alone.
CHANNELS: Final = (
    "ood_f",
    "ood_f_tail",
    "ood_e",
    "ood_e_tail",
    "unc",
    "unc_tail",
    "resid_f",
    "resid_f_tail",
    "resid_e",
    "resid_e_tail",
    "central_f_tail",
    "knn",
    "knn_tail",
    "neardup",
    "crowd",
    "flip",
    "far",
    "farflip",
    "back_tail",
    "back_rare",
)

_KNN, _KNN_TAIL, _NEARDUP, _CROWD, _FLIP, _FAR, _FARFLIP, _BACK, _BACK_RARE, _ECHO = range(11, 21)
_ROW_CHANNELS: Final = (1 << _KNN) - 1
_NEIGHBOURS: Final = 10  # of the crowding score; also the fewest window rows that a row is held against
_CROWD_MIN: Final = 16  # neighbours within the near radius that make a crowd
_RECENT: Final = 32  # what lies further back than this is "far": beyond a session's own flow
_SAME: Final = 2  # what `_repeats` says of the very same request
_MEMORY: Final = 2_048  # trials after which a channel's counts are halved: old honesty must not dilute what is new


class Account(NamedTuple):
    """What is held of one account. ``scan`` writes into the arrays."""

    window: NDArray[np.int8]  # [d, capacity]; capacity 0: this account has no window
    labels: NDArray[np.int16]  # [capacity], -1 where there was none
    keys: NDArray[np.uint32]  # [capacity]
    pushed: NDArray[np.int64]  # [1]: rows ever pushed into this window
    seen: NDArray[np.int64]  # [2]: rows, distinct rows
    tally: NDArray[np.int16]  # [2, C]: fired, tried; below _MEMORY
    best: NDArray[np.float64]  # [C]: highest scaled tail on the path


class Rows(NamedTuple):
    """Rows, each account's own next to each other and in order."""

    codes: NDArray[np.int8]  # [n, d]
    labels: NDArray[np.int16]  # [n]
    keys: NDArray[np.uint32]  # [n]: equal for exact repeats
    fired: NDArray[np.uint16]  # [n], bit c: channel c fired; row channels only
    tried: NDArray[np.uint16]  # [n], bit c: the row has what channel c needs; row channels only
    ts: NDArray[np.float64]  # [n], seconds
    crowding: NDArray[np.float64]  # [n], written: the crowding score, NaN where it was not measured
    back: NDArray[np.float64]  # [n], written: the score of coming back, NaN where it was not measured
    repeats: NDArray[np.bool_]  # [n], written: whether the window had its key, be the vector the same or not


class Plan(NamedTuple):
    """What a model's accounts are held against."""

    null: NDArray[np.float64]  # [3, C]: a, b, scale
    near: NDArray[np.int32]  # [W + 1]: squared near radius, by rows in the window
    typical: NDArray[np.float64]  # [W + 1]: log of the typical mean distance to 10 neighbours
    cuts: NDArray[np.float64]  # [2]: crowding above these has p <= 0.05, 0.005
    law: NDArray[np.float64]  # [2]: a, b; log of the near radius among m rows is a + b log(m)
    shares: NDArray[np.float64]  # [known classes + 1]: of ordinary rows, by label; the last is 1
    back_cuts: NDArray[np.float64]  # [2]: coming back above these has p <= 0.005, 0.0005


_tail = njit(nogil=True, cache=True)(formulas.beta_binomial_tail)


@njit(nogil=True, cache=True)
def mark(
    fired: NDArray[np.uint16],
    tried: NDArray[np.uint16],
    bit: int,
    scores: NDArray[np.float64],
    cuts: NDArray[np.float64],
) -> None:
    """Set bits ``bit``, ``bit + 1``, ... of each row by whether its score is above each cut; NaN is not tried."""
    for row in range(scores.shape[0]):
        if math.isnan(scores[row]):
            continue
        for i in range(cuts.shape[0]):
            tried[row] |= np.uint16(1 << (bit + i))
            if scores[row] > cuts[i]:
                fired[row] |= np.uint16(1 << (bit + i))


@njit(nogil=True, cache=True)
def _repeats(account: Account, held: int, key: Any, code: NDArray[np.int8]) -> int:
    """2: the window has this very request, an equal key and a vector equal up to rounding; 1: an equal key; 0: neither.

    A key is 32 bits of a hash, so alone it could be forged; rounding differs by one step where the
    server's arithmetic does (batching).
    """
    found = 0
    for i in range(held):
        if account.keys[i] == key:
            found = 1
            total = 0
            for j in range(code.shape[0]):
                step = int(account.window[j, i]) - int(code[j])
                total += step * step
                if total > code.shape[0]:
                    break
            if total <= code.shape[0]:
                return _SAME
    return found


@njit(nogil=True, cache=True)
def _neighbours(account: Account, squares: NDArray[np.int32], label: Any, near: NDArray[np.int32]) -> int:
    """Bits of neardup, crowd, flip, far and farflip; and the echo bit: next to one of the last 32 rows."""
    held = squares.shape[0]
    radius = near[held]
    far_radius = near[max(held - _RECENT, 0)]
    reach = max(radius, far_radius)
    newest = account.pushed[0] - 1
    window = near.shape[0] - 1
    count = 0
    bits = 0
    for i in range(held):
        if squares[i] > reach:
            continue
        flipped = label >= 0 and account.labels[i] >= 0 and account.labels[i] != label
        far = (newest - i) % window >= _RECENT
        if squares[i] <= radius:
            count += 1
            bits |= 1 << _NEARDUP
            if flipped:
                bits |= 1 << _FLIP
            if not far and squares[i] <= near[window]:
                bits |= 1 << _ECHO
        if far and squares[i] <= far_radius:
            bits |= 1 << _FAR
            if flipped:
                bits |= 1 << _FARFLIP
    if count >= _CROWD_MIN:
        bits |= 1 << _CROWD
    return bits


@njit(nogil=True, cache=True)
def _nearest_and_alike(
    squares: NDArray[np.int32], labels: NDArray[np.int16], label: Any, start: int, stop: int
) -> tuple[int, int]:
    """The least square among rows ``start:stop`` of a window, and how many of them bear ``label``."""
    nearest = np.int32(2**31 - 1)  # 32 bits, so that the loop vectorises
    alike = np.int32(0)
    for i in range(start, stop):
        nearest = min(nearest, squares[i])
        alike += np.int32(labels[i] == label)
    return int(nearest), int(alike)


@njit(nogil=True, cache=True)
def _come_back(account: Account, squares: NDArray[np.int32], label: Any, plan: Plan) -> float:
    """How much nearer a row lies to one that the account had left behind than independent queries come.

    Their nearest distance falls with how many there are; of its own class a client of few classes has
    more than its window tells, so those are counted at what they would be worth among all.
    """
    held = squares.shape[0]
    window = plan.near.shape[0] - 1
    newest = (account.pushed[0] - 1) % window
    oldest = (account.pushed[0] - _RECENT) % window  # of the last 32, which lie in one piece or around the ring's end
    if oldest <= newest:
        nearest, alike = _nearest_and_alike(squares, account.labels, label, 0, oldest)
        after, more = _nearest_and_alike(squares, account.labels, label, newest + 1, held)
        nearest, alike = min(nearest, after), alike + more
    else:
        nearest, alike = _nearest_and_alike(squares, account.labels, label, newest + 1, oldest)
    among = float(held - _RECENT)
    if 0 <= label < plan.shares.shape[0] - 1:
        among = max(among, alike / plan.shares[label])
    return float(plan.law[0] + plan.law[1] * math.log(among) - math.log(max(math.sqrt(nearest), 0.5)))


@njit(nogil=True, cache=True)
def _graded(score: float, cuts: NDArray[np.float64], bit: int) -> int:
    """Bits ``bit``, ``bit + 1``, ... by whether a score is above each cut."""
    bits = 0
    for i in range(cuts.shape[0]):
        if score > cuts[i]:
            bits |= 1 << (bit + i)
    return bits


@njit(nogil=True, cache=True)
def _hold_against_window(
    account: Account, rows: Rows, plan: Plan, i: int, squares: NDArray[np.int32]
) -> tuple[int, int]:
    """Bits that fired and bits that were tried for row i, with those of its window.

    A row within the smallest near radius of one of the last 32 is an echo: twenty frames of one odd
    scene are one odd scene, so the row channels count the first alone; what echoes tell, the window
    channels tell.
    """
    fired, tried = int(rows.fired[i]), int(rows.tried[i])
    held = squares.shape[0]
    if held == 0:
        return fired, tried
    squared_distances(account.window, rows.codes[i], squares)
    near = _neighbours(account, squares, rows.labels[i], plan.near)
    if near >> _ECHO & 1:
        fired &= ~_ROW_CHANNELS
        tried &= ~_ROW_CHANNELS
    if held < _NEIGHBOURS:
        return fired, tried
    distance = max(nearest_mean(squares, _NEIGHBOURS), 0.5)  # half a step: below it there is only rounding
    rows.crowding[i] = plan.typical[held] - math.log(distance)
    near |= _graded(rows.crowding[i], plan.cuts, _KNN)
    tried |= 1 << _KNN | 1 << _KNN_TAIL | 1 << _NEARDUP | 1 << _CROWD
    if rows.labels[i] >= 0:
        tried |= 1 << _FLIP
    if held >= _RECENT + _NEIGHBOURS:
        tried |= 1 << _FAR
        if rows.labels[i] >= 0:
            tried |= 1 << _FARFLIP
        if not near >> _ECHO & 1:  # what goes on from the last rows does not come back
            tried |= 1 << _BACK | 1 << _BACK_RARE
            rows.back[i] = _come_back(account, squares, rows.labels[i], plan)
            near |= _graded(rows.back[i], plan.back_cuts, _BACK)
    return fired | (near & tried), tried


@njit(nogil=True, cache=True)
def _push(account: Account, rows: Rows, i: int, window: int) -> None:
    at = account.pushed[0] % window
    for j in range(rows.codes.shape[1]):
        account.window[j, at] = rows.codes[i, j]
    account.labels[at] = rows.labels[i]
    account.keys[at] = rows.keys[i]
    account.pushed[0] += 1


@njit(nogil=True, cache=True)
def _count(account: Account, null: NDArray[np.float64], fired: int, tried: int, judged: int) -> float:
    """Add one row to the counts; the highest scaled tail among the ``judged`` channels.

    A tail can only grow when its channel fires, so the others need not be computed.
    """
    score = 0.0
    for c in range(null.shape[1]):
        if not tried >> c & 1:
            continue
        account.tally[1, c] += 1
        account.tally[0, c] += fired >> c & 1
        if account.tally[1, c] >= _MEMORY:
            account.tally[0, c] //= 2
            account.tally[1, c] //= 2
    for c in range(null.shape[1]):
        if judged >> c & 1:
            tail = null[2, c] * _tail(account.tally[0, c], account.tally[1, c], null[0, c], null[1, c])
            account.best[c] = max(account.best[c], tail)
            score = max(score, tail)
    return score


@njit(nogil=True, cache=True)
def tails(tally: NDArray[np.int32], null: NDArray[np.float64]) -> Any:
    """Scaled tails of all channels."""
    out = np.empty(null.shape[1])
    for c in range(null.shape[1]):
        out[c] = null[2, c] * _tail(tally[0, c], tally[1, c], null[0, c], null[1, c])
    return out


@njit(nogil=True, cache=True)
def scan(  # noqa: PLR0913, PLR0917 - a tuple of arrays and two numbers cost less than slices of all arrays
    account: Account, rows: Rows, plan: Plan, gate: NDArray[np.float64], start: int, stop: int
) -> tuple[int, float]:
    """Fold rows ``start:stop`` of one account, up to and including the first that should be told.

    Parameters
    ----------
    account
        Its arrays are written. Where it has a window, the capacity must hold all rows or be W.
    rows
        In order; ``rows.crowding``, ``rows.back`` and ``rows.repeats`` are written.
    gate
        float64[4]: lowest score to tell, lowest score to tell of again, time from which to tell of it
        again anyhow (seconds), fewest distinct rows to judge.

    Returns
    -------
    end, score
        Rows before ``end`` are folded. ``score`` is that of row ``end - 1`` if it should be told, -1
        if the rows came to their end first.
    """
    window = plan.near.shape[0] - 1
    scratch = np.empty(account.window.shape[1], np.int32)
    everything = (1 << plan.null.shape[1]) - 1
    for i in range(start, stop):
        held = min(int(account.pushed[0]), window)
        account.seen[0] += 1
        found = _repeats(account, held, rows.keys[i], rows.codes[i])
        rows.repeats[i] = found > 0
        if found == _SAME:
            continue
        account.seen[1] += 1
        fired, tried = _hold_against_window(account, rows, plan, i, scratch[:held])
        if scratch.shape[0]:
            _push(account, rows, i, window)
        judged = 0
        if account.seen[1] == gate[3]:
            judged = everything
        elif account.seen[1] > gate[3]:
            judged = fired
        score = _count(account, plan.null, fired, tried, judged)
        if score >= gate[0] and (score >= gate[1] or rows.ts[i] >= gate[2]):
            return i + 1, score
    return stop, -1.0
