"""How large a shift is, in units that do not grow with the number of rows."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

__all__ = ["effect_of_rank", "effect_of_shares"]

_RANK_MAX: Final = 0.5 - 1e-3  # farther is the same to anybody
_NORMAL: Final = NormalDist()


def effect_of_rank(rank: float) -> float:
    """Cohen's d of two normal distributions whose mean rank differs by ``rank`` from one half.

    That is sqrt(2) times the normal quantile of P(new > old) (McGraw & Wong 1992).
    """
    return math.sqrt(2.0) * _NORMAL.inv_cdf(0.5 + min(max(rank, -_RANK_MAX), _RANK_MAX))


def effect_of_shares(before: float, after: float) -> float:
    """Cohen's h."""
    return 2.0 * (math.asin(math.sqrt(_share(after))) - math.asin(math.sqrt(_share(before))))


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
