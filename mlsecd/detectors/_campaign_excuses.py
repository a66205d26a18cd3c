"""Campaigns whose oddness is explained: by a launch that was announced, or by a season that most accounts show."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from mlsecd.detectors._campaign_telling import DISTANCE
from mlsecd.detectors._campaign_verdict import LOOKALIKES, ODDNESS, Campaign, Crowd, Shift, Verdict, judge
from mlsecd.detectors._launches import Open
from mlsecd.detectors._seasons import Season
from mlsecd.kernels import Kernels

__all__ = ["Excuse", "excuse_of", "excused"]

# What new customers and everybody in a season do, too. To come back to vary a query is explained by nothing.
_EXPLAINED: Final = frozenset({*ODDNESS, *DISTANCE, *LOOKALIKES})
_MOST: Final = 0.5


class Excuse(NamedTuple):
    """Accounts that were first seen at ``since`` or later may be odd."""

    since: float
    why: str


def excuse_of(season: Season | None, launch: Open | None) -> Excuse | None:
    """What explains oddness just now, if anything does."""
    if season is not None:
        return Excuse(-np.inf, season.words)
    return None if launch is None else Excuse(launch.since, f"new since an announced launch began ({launch.reason})")


def excused(verdict: Verdict, crowd: Crowd, excuse: Excuse, level: float, kernels: Kernels) -> Verdict:
    """What is left to tell once those are set aside whose oddness is explained: the others are judged by themselves."""
    covered = np.array([sketch.born >= excuse.since for sketch in crowd.sketches])
    new = {name for name, one in zip(crowd.names, covered.tolist(), strict=True) if one}
    explained = [one for one in verdict.campaigns if _is_odd_alone(one) and not new.isdisjoint(one.members)]
    if not explained:
        return verdict
    named = {name for one in explained for name in one.members}
    aside = covered & (verdict.odd | np.array([name in named for name in crowd.names]))
    others = [one for one in judge(crowd.only(~aside), level, kernels).campaigns if not _is_of(new, one)]
    # too few without those, and yet most of it
    others = others or [one for one in explained if not _is_of(new, one)]
    told = [one for one in verdict.campaigns if one not in explained]
    known = {name for one in told for name in one.members}
    told += [one for one in others if not known.issuperset(one.members)]
    shift = Shift(int(aside.sum()), explained[0].value, explained[0].threshold, excuse.why)
    return replace(verdict, campaigns=told, shift=shift, moving=True)


def _is_of(new: set[str], one: Campaign) -> bool:
    """Whether a campaign is odd alone, and most of its accounts are explained."""
    return _is_odd_alone(one) and len(new.intersection(one.members)) >= _MOST * len(one.members)


def _is_odd_alone(one: Campaign) -> bool:
    return _EXPLAINED.issuperset(channel.name for channel in one.channels)
