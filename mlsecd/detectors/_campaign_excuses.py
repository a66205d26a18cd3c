"""Campaigns whose oddness is explained: by a launch that was announced, or by a season that most accounts show."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._campaign_null import ODD
from mlsecd.detectors._campaign_telling import DISTANCE, SMALLEST
from mlsecd.detectors._campaign_verdict import (
    LOOKALIKES,
    ODDNESS,
    RETURNING,
    Campaign,
    Crowd,
    Shift,
    Verdict,
    judge,
)
from mlsecd.detectors._extraction_level import binomial
from mlsecd.kernels import Kernels

__all__ = ["Excuse", "excused"]

# What new customers and everybody in a season do, too. To come back to vary a query is explained by nothing.
_EXPLAINED: Final = frozenset({*ODDNESS, *DISTANCE, *LOOKALIKES})
_RETURNING: Final = len(RETURNING) * 10.0**-ODD  # of ordinary accounts, at the most
_MOST: Final = 0.5


class Excuse(NamedTuple):
    """Which accounts of a crowd may be odd, bool[A], and why; in a season everybody moves."""

    covered: NDArray[np.bool_]
    why: str
    season: bool


def excused(verdict: Verdict, crowd: Crowd, excuse: Excuse, level: float, kernels: Kernels) -> Verdict:
    """What is left to tell once those are set aside whose oddness is explained: the others are judged by themselves."""
    theirs = {name for name, one in zip(crowd.names, excuse.covered.tolist(), strict=True) if one}
    explained = [one for one in verdict.campaigns if _is_odd_alone(one) and not theirs.isdisjoint(one.members)]
    if not explained:
        return verdict
    aside = _aside(verdict, crowd, excuse, {name for one in explained for name in one.members}, level)
    again = None if aside.all() else judge(crowd.only(~aside), level, kernels)
    others = [] if again is None else [one for one in again.campaigns if not _is_of(theirs, one)]
    # too few without those, and yet most of it
    others = others or [one for one in explained if not _is_of(theirs, one)]
    told = [one for one in verdict.campaigns if one not in explained]
    known = {name for one in told for name in one.members}
    told += [one for one in others if not known.issuperset(one.members)]
    names = tuple(crowd.names[i] for i in np.flatnonzero(aside).tolist())
    shift = Shift(len(names), explained[0].value, explained[0].threshold, excuse.why, names)
    moving = excuse.season or (again is not None and again.moving)
    return replace(verdict, campaigns=told, shift=shift, moving=moving)


def _aside(verdict: Verdict, crowd: Crowd, excuse: Excuse, named: set[str], level: float) -> NDArray[np.bool_]:
    """Who is set aside, bool[A]; not those who come back to vary queries, where they are more than chance makes."""
    aside = excuse.covered & (verdict.odd | np.array([name in named for name in crowd.names]))
    returning = aside & verdict.returning
    size, count = int(aside.sum()), int(returning.sum())
    if count >= SMALLEST and 1.0 - binomial(size, count - 1, _RETURNING) <= level:
        return aside & ~returning
    return aside


def _is_of(theirs: set[str], one: Campaign) -> bool:
    """Whether a campaign is odd alone, and most of its accounts are explained."""
    return _is_odd_alone(one) and len(theirs.intersection(one.members)) >= _MOST * len(one.members)


def _is_odd_alone(one: Campaign) -> bool:
    return _EXPLAINED.issuperset(channel.name for channel in one.channels)
