"""Whether accounts that differ in a common direction work together against the model, or merely moved together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._campaign_null import FEWEST, ODD, Null, members, spectra, spectrum
from mlsecd.detectors._campaign_sketches import Sketch, counts_and_sums
from mlsecd.detectors._campaign_telling import (
    ADVERSARIAL,
    CHANNELS,
    DISTANCE,
    MOST,
    SMALLEST,
    Channel,
    Seen,
    Teller,
    channels_of,
    odd_in,
)
from mlsecd.detectors._campaign_view import View
from mlsecd.kernels import Kernels

__all__ = ["LOOKALIKES", "ODDNESS", "RETURNING", "Campaign", "Crowd", "Shift", "judge", "networks_of"]

F8 = NDArray[np.float64]
Mask = NDArray[np.bool_]

LOOKALIKE: Final = "near_others"
# Customers of one tool look alike too, and who sends a neighbour of a stranger's query before the stranger does
# makes it look as if that one had flipped an answer: alone these are a ticket, not a page.
LOOKALIKES: Final = frozenset({LOOKALIKE, "near_others_flipped"})
ODDNESS: Final = ADVERSARIAL[:4]  # a season that goes far enough makes everybody odd
RETURNING: Final = ("comes_back", "comes_back_flipped")
_ODD_SHARE: Final = 0.05
_ODD_SHARE_CHOSEN: Final = 0.25
_DIRECTIONS: Final = 3  # that are followed, where the first is not sure
_SURE: Final = 1e-9  # chances below differ by rounding, and by the number of accounts
_ASKED: Final = 0.05  # of looks at ordinary accounts have a direction that is followed at all


@dataclass(frozen=True, slots=True)
class Campaign:
    """Accounts that work together."""

    members: tuple[str, ...]
    channels: tuple[Channel, ...]
    value: float
    threshold: float
    group: str = ""  # that brought them together, where it was not what they sent: its kind and name


@dataclass(frozen=True, slots=True)
class Shift:
    """Accounts that moved together, and do nothing that an attacker does, or nothing else that is not explained."""

    accounts: int
    value: float
    threshold: float
    why: str = ""  # it is explained,
    names: tuple[str, ...] = ()  # and whose oddness


@dataclass(frozen=True, slots=True)
class Crowd:
    """The accounts of one view that have sent enough, in order of their names."""

    view: View
    null: Null
    names: Sequence[str]
    sketches: Sequence[Sketch]

    def only(self, kept: Mask) -> Crowd:
        """Some of them."""
        at = np.flatnonzero(kept).tolist()
        return replace(self, names=[self.names[i] for i in at], sketches=[self.sketches[i] for i in at])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one look tells.

    Attributes
    ----------
    shift
        Only where there is no campaign, or it is explained.
    moving
        Whether those move together whom no campaign names.
    odd, returning
        bool[A], accounts whose inputs are odd, which a season or a launch makes; and those that come back to vary
        queries, which neither does.
    """

    campaigns: list[Campaign]
    shift: Shift | None
    moving: bool
    odd: Mask
    returning: Mask


def judge(crowd: Crowd, level: float, kernels: Kernels) -> Verdict:
    """Campaigns among the accounts, or how many moved together without a sign of one.

    Three tests, at a third of the level each: of all accounts, which a large campaign shows in, and of those that are
    odd in some adversarial channel and in any, where a small one is no small share.
    """
    counts, sums = counts_and_sums(crowd.sketches, kernels)
    names = crowd.view.names
    seen = Seen.of(counts, sums, names, crowd.null.rates, kernels)
    teller = Teller(channels_of(names), names, seen, crowd.null, level / 3, kernels)
    campaigns, likely, shift = _among_all(crowd, teller)
    for channels, ratios in ((ADVERSARIAL, crowd.null.odd_ratios), (CHANNELS, crowd.null.far_ratios)):
        if not campaigns and len(ratios):
            campaigns = _among_odd(crowd, teller, channels, ratios)
    campaigns = campaigns or likely
    campaigns += _by_group(crowd, replace(teller, level=level), campaigns)
    moving = shift is not None and (not campaigns or _rest_moves(crowd, teller, campaigns))
    odd = odd_in(seen.tails, teller.names, (*ODDNESS, *DISTANCE))
    returning = odd_in(seen.tails, teller.names, RETURNING)
    return Verdict(campaigns, None if campaigns else shift, moving, odd, returning)


def _rest_moves(crowd: Crowd, teller: Teller, campaigns: list[Campaign]) -> bool:
    """Whether the other accounts have a common direction of their own: a season moves customers, not thieves alone."""
    named = {name for campaign in campaigns for name in campaign.members}
    rest = np.array([name not in named for name in crowd.names])
    if rest.sum() < FEWEST:
        return False
    y = crowd.null.whiten(teller.seen.counts[rest], teller.seen.sums[rest])
    return spectrum(y, crowd.null.cap).value > crowd.null.threshold(teller.level, len(y))


@dataclass(frozen=True, slots=True)
class _Told:
    """A side of a direction that does what attackers do."""

    named: Mask
    channels: tuple[Channel, ...]
    value: float
    threshold: float


def _among_all(crowd: Crowd, teller: Teller) -> tuple[list[Campaign], list[Campaign], Shift | None]:
    """A campaign, a likely one, or a shift among all accounts.

    A direction past the level is a shift at least. One that is only past what one look in twenty shows is followed
    too: what its accounts do must then convict them by stricter tests.
    """
    null, seen = crowd.null, teller.seen
    if len(seen.counts) < FEWEST:
        return [], [], None
    y = null.whiten(seen.counts, seen.sums)
    strict, asked = null.threshold(teller.level, len(y)), null.threshold(max(teller.level, _ASKED), len(y))
    base, everybody, held = np.full(len(teller.names), _ODD_SHARE), np.ones(len(y), bool), np.ones(len(null.held), bool)
    told: tuple[list[_Told], list[_Told]] = [], []
    shift = None
    for top in spectra(y, null.cap, _DIRECTIONS):
        if top.value <= asked:
            break
        sure, moved = top.value > strict, 0
        for side in members(y, null.held, null.cap, top.direction):
            moved = max(moved, int(side.chosen.sum()))
            channels = teller.adversarial(side.chosen, base)
            convicted = any(one.name != LOOKALIKE for one in channels)
            channels += teller.distant(side.chosen, None, sure=sure)
            if channels and (convicted or teller.crowded(side, everybody, held, channels)):
                named = teller.named(side, everybody, held, channels)
                made = _Told(named, teller.recounted(channels, named), top.value, strict if sure else asked)
                told[not sure].append(made)
        if sure and shift is None:
            shift = Shift(moved, top.value, strict)
    return _campaigns(crowd, told[0]), _campaigns(crowd, told[1]), shift


def _among_odd(crowd: Crowd, teller: Teller, channels: Sequence[str], ratios: F8) -> list[Campaign]:
    """A campaign among the accounts that are odd in some of the channels."""
    null, seen = crowd.null, teller.seen
    odd = odd_in(seen.tails, teller.names, channels)
    if odd.sum() < FEWEST:
        return []
    y = null.whiten(seen.counts[odd], seen.sums[odd])
    top, threshold = spectrum(y, null.cap), null.threshold(teller.level, len(y), ratios)
    if top.value <= threshold:
        return []
    usual = odd_in(null.tails, teller.names, channels)
    base = np.maximum((null.tails[usual] >= ODD).mean(axis=0), _ODD_SHARE_CHOSEN)
    told = []
    for side in members(y, null.held[usual], null.cap, top.direction):
        chosen = np.zeros(len(odd), bool)
        chosen[np.flatnonzero(odd)[side.chosen]] = True
        shown = teller.adversarial(chosen, base)
        convicted = any(one.name != LOOKALIKE for one in shown)
        distant = teller.distant(chosen, base, sure=True)
        shown += distant
        if shown and (convicted or distant or teller.crowded(side, odd, usual, shown)):
            named = teller.named(side, odd, usual, shown)
            told.append(_Told(named, teller.recounted(shown, named), top.value, threshold))
    return _campaigns(crowd, told)


def _campaigns(crowd: Crowd, told: list[_Told]) -> list[Campaign]:
    """The likeliest of what a look shows: its other directions and sides show the same accounts, or their rest."""
    if not told:
        return []
    one = min(told, key=_doubt)
    return [Campaign(_named(crowd, one.named), one.channels, one.value, one.threshold)] if one.named.any() else []


def _doubt(one: _Told) -> tuple[bool, float, int]:
    """In order of trust: what attackers alone do, by chance as far as that can be told apart, then by number."""
    distant = all(channel.name in DISTANCE for channel in one.channels)
    return distant, max(min(channel.chance for channel in one.channels), _SURE), -int(one.named.sum())


def _named(crowd: Crowd, chosen: Mask) -> tuple[str, ...]:
    return tuple(crowd.names[i] for i in np.flatnonzero(chosen).tolist())


def _by_group(crowd: Crowd, teller: Teller, told: list[Campaign]) -> Iterator[Campaign]:
    """Accounts of one network, tenant or link most of which do what an attacker does, if what they sent hid them."""
    known = {name for campaign in told for name in campaign.members}
    belonging: dict[tuple[str, str], list[int]] = {}
    for i, sketch in enumerate(crowd.sketches):
        for group in sketch.groups.items():
            belonging.setdefault(group, []).append(i)
    groups = sorted((group, own) for group, own in belonging.items() if len(own) >= SMALLEST)
    base = np.full(len(teller.names), _ODD_SHARE)
    for (kind, value), own in groups:
        chosen = np.zeros(len(crowd.sketches), bool)
        chosen[own] = True
        channels = replace(teller, level=teller.level / len(groups)).adversarial(chosen, base)
        if not channels or all(one.name == LOOKALIKE for one in channels):
            continue
        # one ordinary account in twenty is as odd, and no direction tells it from the others
        showing = chosen & odd_in(teller.seen.tails, teller.names, [one.name for one in channels])
        names, told_of = _named(crowd, showing), teller.recounted(channels, showing)
        if not known.issuperset(names):
            known.update(names)  # one group's accounts are told once, whatever else they share
            yield Campaign(names, told_of, told_of[0].odd_members / int(chosen.sum()), MOST, f"{kind} {value}")


def networks_of(sketches: Sequence[Sketch]) -> list[tuple[str, int]]:
    """The networks that members share, the largest first."""
    return Counter(one.groups["network"] for one in sketches if "network" in one.groups).most_common(5)
