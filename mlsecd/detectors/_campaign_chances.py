"""How likely ordinary accounts are to look like this together: short tests on counts, ranks and distances."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.kernels import Kernels

__all__ = ["excess", "pooled", "rank_sum", "share_beyond"]

F8 = NDArray[np.float64]
_NORMAL: Final = NormalDist()


def pooled(tails: F8) -> float:
    """The chance that ordinary accounts' tails (-log10 p) add up to as much (Fisher 1925); counts make it too high."""
    total, terms = float(tails.sum()) * math.log(10.0), np.arange(len(tails))
    if total <= 0.0:
        return 1.0
    logs = terms * math.log(total) - total - np.array([math.lgamma(i + 1.0) for i in terms])
    return float(min(np.exp(logs).sum(), 1.0))


def rank_sum(here: F8, ordinary: F8) -> float:
    """The chance that values rank as high among ordinary ones (Wilcoxon 1945), ties at their middle, normal tail."""
    both = np.concatenate([here, ordinary])
    values, where, times = np.unique(both, return_inverse=True, return_counts=True)
    if len(values) < 2:
        return 1.0
    ranks = (np.cumsum(times) - (times - 1) / 2.0)[where]
    m, n, total = len(here), len(ordinary), len(both)
    mean = m * (total + 1) / 2.0
    ties = float((times.astype(np.float64) ** 3 - times).sum()) / (total * (total - 1.0))
    spread = math.sqrt(m * n / 12.0 * (total + 1.0 - ties))
    return 0.5 * math.erfc((float(ranks[:m].sum()) - mean - 0.5) / spread / math.sqrt(2.0))


def excess(count: int, accounts: int, held_count: int, held: int, kernels: Kernels) -> float:
    """The chance that ``count`` of ``accounts`` lie where ``held_count`` of ``held`` ordinary clients do.

    Beta-binomial: what the clients leave open about their own share is in it (Jeffreys 1946).
    """
    null = np.array([[held_count + 0.5], [held - held_count + 0.5], [1.0]])
    return float(10.0 ** -kernels.tails(np.array([[count], [accounts]], np.int32), null)[0])


def share_beyond(usual: float, dims: int, moved: float) -> float:
    """The share of queries beyond a distance that ``usual`` of ordinary ones are beyond, once all have moved so far.

    Chi-squared of ``dims``, noncentral by ``moved`` (a squared length in units of the spread), by cube roots (Wilson
    & Hilferty 1931; Abdel-Aty 1954).
    """
    spread = 2.0 / (9.0 * dims)
    root = 1.0 - spread + _NORMAL.inv_cdf(1.0 - usual) * math.sqrt(spread)
    whole = dims + moved
    spread = 2.0 * (dims + 2.0 * moved) / (9.0 * whole**2)
    return 1.0 - _NORMAL.cdf((root * (dims / whole) ** (1.0 / 3.0) - 1.0 + spread) / math.sqrt(spread))
