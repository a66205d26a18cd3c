"""How often ordinary accounts are odd in a channel on any day: what many odd ones at a time are held against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._language_account import MIN_ROWS, Account, count
from mlsecd.detectors._language_channels import CHANNELS, Rows
from mlsecd.detectors._language_forms import alike
from mlsecd.detectors._language_recent import CROWD, HALF, half_of
from mlsecd.detectors._sections import numbers
from mlsecd.errors import MALFORMED, BaselineError
from mlsecd.kernels import Kernels

__all__ = ["FEWEST", "ODD", "SIGNS", "Crowd", "Held", "body_of", "calm_shares", "crowd_of", "odd_of", "tails_of"]

F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

ODD: Final = -math.log10(0.05)
_BOTH: Final = -math.log10(0.1)  # in two channels that a season moves one of
# what accounts are odd in: a channel, or very long answers and reasons on demand together
SIGNS: Final = (*CROWD[1:], "both")
FEWEST: Final = 20  # active accounts, and held clients, below which nothing is compared
_STEP: Final = HALF / 4.0  # between two looks at a held client
_BODY: Final = 0.8
_LONGEST: Final = 9  # looks after which nothing recent is left
Held = Literal["odd", "shared", "listed"]  # what is asked of accounts that are odd: nothing more, or forms in common
_ARRAYS: Final = ("odd", "shared", "listed", "looks", "calm")
_AT: Final = [CHANNELS.index(name) for name in CROWD]


def tails_of(windows: Sequence[I4], null: F8, kernels: Kernels) -> F8:
    """-log10 of the chance that an ordinary account fires as often, float64[n, K], by :data:`CROWD`.

    Parameters
    ----------
    windows
        int32[2, K] each: fired and tried.
    null
        float64[3, C]: a reference's; its scales are left out.
    """
    if not windows:
        return np.zeros((0, len(CROWD)))
    own = np.vstack([null[:2, _AT], np.ones(len(CROWD))])
    tally = np.ascontiguousarray(np.concatenate(windows, axis=1))
    tails = kernels.tails(tally, np.ascontiguousarray(np.tile(own, len(windows))))
    return np.asarray(tails).reshape(len(windows), len(CROWD))


def odd_of(tails: F8) -> NDArray[np.bool_]:
    """Whether each account is odd, bool[n, S], by :data:`SIGNS`."""
    both = tails[:, [CROWD.index("long_tail"), CROWD.index("elicits_long")]].min(axis=1) >= _BOTH
    return np.column_stack([tails[:, 1:] >= ODD, both])


@dataclass(frozen=True, slots=True)
class Crowd:
    """Calibration clients as they stood at looks at their recording.

    Attributes
    ----------
    odd
        float64[N, S]: at how many looks each client was odd.
    shared
        float64[N, S]: the same, where it shares a form with other odd ones.
    listed
        float64[N, S]: the same, where they work off a list (:func:`~mlsecd.detectors._language_forms.alike`).
    looks
        float64[N]: at how many it had enough requests.
    calm
        float64[2, K]: mean and standard deviation of the share of requests that fire, of most clients that are not odd.
    """

    odd: F8
    shared: F8
    listed: F8
    looks: F8
    calm: F8

    @property
    def clients(self) -> float:
        """How many clients of equal weight these are worth: who is there at more looks weighs more."""
        return float(self.looks.sum() ** 2 / np.maximum((self.looks**2).sum(), 1.0))

    def share(self, sign: int, held: Held) -> float:
        """The share of ordinary accounts at a look that are odd in a sign, and alike as asked."""
        return float(getattr(self, held)[:, sign].sum() / self.looks.sum())

    def arrays(self, prefix: str) -> dict[str, F8]:
        """What a baseline holds."""
        return {f"{prefix}/crowd_{name}": getattr(self, name) for name in _ARRAYS}

    @classmethod
    def of(cls, arrays: Any, prefix: str) -> Crowd | None:
        """Back from a baseline; ``None``: it is older than campaigns are, or had too few clients.

        Raises
        ------
        BaselineError
            It does not fit this version.
        """
        if f"{prefix}/crowd_odd" not in arrays:
            return None
        try:
            odd, shared, listed, looks, calm = (numbers(arrays, f"{prefix}/crowd_{name}") for name in _ARRAYS)
        except MALFORMED as error:
            raise BaselineError(f"extraction_language: the baseline's part cannot be used: {error}") from error
        if not _fits(odd, (shared, listed), looks, calm):
            raise BaselineError("extraction_language: the baseline's part has another shape: fit it again")
        return cls(odd, shared, listed, looks, calm)


def _fits(odd: F8, alike: tuple[F8, F8], looks: F8, calm: F8) -> bool:
    shape = (len(looks), len(SIGNS)) if looks.ndim == 1 else None
    if {odd.shape, *(one.shape for one in alike)} != {shape} or calm.shape != (2, len(CROWD)) or len(looks) < FEWEST:
        return False
    finite = np.isfinite(looks).all() and np.isfinite(calm).all() and (looks >= 1).all() and (calm >= 0).all()
    within = all(((one >= 0) & (one <= odd)).all() for one in alike)
    return bool(finite and within and (odd <= looks[:, None]).all())


def crowd_of(clients: Iterable[Rows], end: float, null: F8, kernels: Kernels) -> Crowd | None:
    """What ordinary clients look like at a look, or ``None``: they are too few.

    Parameters
    ----------
    clients
        Encoded rows of each, none of whom shaped the reference.
    end
        Event time at which the recording ends: the last look is at the end of the step that this is in.
    """
    odd, looks, shares, forms = [], [], [], []
    for rows in clients:
        windows, own = _windows(rows, end)
        if not windows:
            continue
        tails = tails_of(windows, null, kernels)
        own_odd = odd_of(tails)
        odd.append(own_odd.sum(axis=0))
        looks.append(len(windows))
        shares.append(calm_shares(np.array(windows), own_odd).mean(axis=0).filled(np.nan))
        forms.append(own)
    if len(looks) < FEWEST:
        return None
    calm = np.array([body_of(column.compressed()) for column in np.ma.masked_invalid(shares).T]).T
    counted = np.array(odd, float)
    shared, listed = _sharing(counted, forms)
    return Crowd(counted, shared, listed, np.array(looks, float), calm)


def _sharing(odd: F8, forms: list[frozenset[int]]) -> tuple[F8, F8]:
    """Of looks at which clients were odd, those of clients who share a form with the others, and many forms."""
    shared, listed = np.zeros_like(odd), np.zeros_like(odd)
    for sign in range(len(SIGNS)):
        who = np.flatnonzero(odd[:, sign])
        some, many = alike([forms[i] for i in who.tolist()])
        for one, into in ((some, shared), (many, listed)):
            into[who[one.who], sign] = odd[who[one.who], sign]
    return shared, listed


def body_of(shares: F8) -> tuple[float, float]:
    """Mean and standard deviation without the highest fifth: a campaign's quietest members are no season."""
    body = np.sort(shares)[: math.ceil(_BODY * len(shares))]
    return (float(body.mean()), float(body.std())) if len(body) else (0.0, 0.0)


def calm_shares(windows: I4, odd: Any) -> Any:
    """The share of requests that fire, by account and channel, of those odd in no sign: a masked float64[n, K]."""
    fired, tried = windows[:, 0], windows[:, 1]
    return np.ma.array(fired / np.maximum(tried, 1), mask=odd.any(axis=1)[:, None] | (tried == 0))


def _windows(rows: Rows, end: float) -> tuple[list[I4], frozenset[int]]:
    """One client's recent counts as they stood at looks, while it rests too; and all forms that it was seen with."""
    account, made = Account(), []
    forms: set[int] = set()
    ticks = np.ceil(rows.ts / _STEP)
    cuts = [0, *(np.flatnonzero(np.diff(ticks)) + 1).tolist(), len(ticks)]
    for start, stop in itertools.pairwise(cuts):
        for i in range(start, stop):
            count(account, rows, i)
        until = float(ticks[stop]) if stop < len(ticks) else math.ceil(end / _STEP) + 1.0
        for tick in range(int(ticks[start]), int(min(until, ticks[start] + _LONGEST))):
            window, n = account.recent.counts(half_of(tick * _STEP))
            if n >= MIN_ROWS:
                made.append(window.copy())
                forms.update(account.recent.forms)
    return made, frozenset(forms)
