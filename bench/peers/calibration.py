"""The rule that every detector is held to, and the intervals of what comes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import beta

__all__ = ["clopper_pearson", "threshold"]


def threshold(maxima: Sequence[float], alpha: float) -> float:
    """Split-conformal threshold on the highest score that a client's path reaches.

    The ceil((1 - alpha)(N + 1))-th smallest of N ordinary clients' maxima: another ordinary client, exchangeable with
    them, *ever* goes above it with a chance of at most ``alpha``. Infinity where N is too small to say so.
    """
    rank = math.ceil((1 - alpha) * (len(maxima) + 1))
    return float(np.sort(np.asarray(maxima, float))[rank - 1]) if rank <= len(maxima) else math.inf


def clopper_pearson(hits: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a rate."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, of - hits + 1))
    high = 1.0 if hits == of else float(beta.ppf(1 - tail, hits + 1, of - hits))
    return low, high
