"""Whether accounts that differ in a common direction work together against the model, or merely moved together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._campaign_null import FEWEST, Null, members, spectrum
from mlsecd.detectors._campaign_sketches import Sketch
from mlsecd.detectors._campaign_view import View
from mlsecd.detectors._extraction_level import binomial
from mlsecd.kernels import Kernels

__all__ = ["ADVERSARIAL", "LOOKALIKE", "Campaign", "Channel", "Crowd", "Shift", "judge"]

F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

# What those who copy a model or probe its boundary do and those who moved house do not.
ADVERSARIAL: Final = (
    "very_odd_f",
    "very_odd_e",
    "odd_u",
    "very_odd_u",
    "comes_back",
    "comes_back_flipped",
    "near_others",
    "near_others_flipped",
)
LOOKALIKE: Final = "near_others"  # customers of one tool look alike too: alone it is a ticket, not a page
ODD: Final = 1.301  # -log10 of 0.05: what one ordinary client in twenty shows in a channel
ODDNESS: Final = ADVERSARIAL[:4]  # a season that goes far enough makes everybody odd
_ODD_SHARE: Final = 0.05
_ODD_SHARE_CHOSEN: Final = 0.25
_SHOWS: Final = 0.5  # -log10 of about a third: the least that a named account shows
_MOST: Final = 0.5  # of the members are odd in a channel
_SMALLEST: Final = 6  # members of a campaign


@dataclass(frozen=True, slots=True)
class Channel:
    """What the members do that ordinary clients seldom do."""

    name: str
    odd_members: int
    rate: float  # of the members' rows together
    ordinary: float


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
    """Accounts that moved together, and do nothing that an attacker does."""

    accounts: int
    value: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Crowd:
    """The accounts of one view that have sent enough, in order of their names."""

    view: View
    null: Null
    names: Sequence[str]
    sketches: Sequence[Sketch]


def judge(crowd: Crowd, level: float, kernels: Kernels) -> tuple[list[Campaign], Shift | None]:
    """Campaigns among the accounts, or how many moved together without a sign of one.

    Two tests, at half the level each: of all accounts, which a large campaign shows in, and of those that are odd in
    some channel, where a small one is no small share.
    """
    counts = np.array([float(sketch.count) for sketch in crowd.sketches])
    sums = np.array([sketch.sums for sketch in crowd.sketches], np.float64) / kernels.FIXED_POINT
    fired, tried = fired_and_tried(counts, sums, columns_of(crowd.view.names, ADVERSARIAL))
    seen = _Seen(counts, sums, tails_of(fired, tried, crowd.null.rates, kernels))
    everybody = np.ones(len(counts), bool)
    campaigns, shift = _by_direction(crowd, everybody, seen, level / 2)
    if not campaigns and len(crowd.null.odd_ratios):
        odd = np.asarray((seen.tails >= ODD).any(axis=1))
        campaigns, _ = _by_direction(crowd, odd, seen, level / 2)
    campaigns += _by_group(crowd, seen, level, campaigns)
    return campaigns, None if campaigns else shift


def _by_direction(
    crowd: Crowd, among: NDArray[np.bool_], seen: _Seen, level: float
) -> tuple[list[Campaign], Shift | None]:
    """A campaign or a shift among some of the accounts: all, or the odd ones."""
    if among.sum() < FEWEST:
        return [], None
    null, all_of_them = crowd.null, bool(among.all())
    y = null.whiten(seen.counts[among], seen.sums[among])
    top = spectrum(y, null.cap)
    threshold = null.threshold(level, len(y), odd=not all_of_them)
    if top.value <= threshold:
        return [], None
    held = null.held if all_of_them else null.held[null.odd]
    base = np.full(seen.tails.shape[1], _ODD_SHARE) if all_of_them else np.maximum(null.odd_shares, _ODD_SHARE_CHOSEN)
    sides = []
    for inside in members(y, held, null.cap, top.direction):
        side = np.zeros(len(among), bool)
        side[np.flatnonzero(among)[inside]] = True
        sides.append(side)
    told = [(side, channels) for side in sides if (channels := _telling(crowd, side, seen, level, base))]
    if not told:
        return [], Shift(int(max(side.sum() for side in sides)), top.value, threshold)
    side, channels = max(told, key=lambda pair: int(pair[0].sum()))
    return [Campaign(_named(crowd, side & _shows(crowd, channels, seen)), channels, top.value, threshold)], None


def _named(crowd: Crowd, chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(crowd.names[i] for i in np.flatnonzero(chosen).tolist())


def columns_of(names: Sequence[str], channels: Sequence[str]) -> list[int]:
    """Where the channels that a view has stand among its columns."""
    return [names.index(name) for name in channels if name in names]


def fired_and_tried(counts: F8, sums: F8, at: list[int]) -> tuple[I4, I4]:
    """How often each account fired each channel, of how many rows: int32[A, C] each."""
    tried = np.repeat(counts.astype(np.int32)[:, None], len(at), axis=1)
    return np.minimum(np.rint(sums[:, at]).astype(np.int32), tried), tried


def tails_of(fired: I4, tried: I4, rates: F8, kernels: Kernels) -> F8:
    """-log10 of the chance that an ordinary client fires a channel as often, float64[A, C]."""
    tails = [kernels.tails(np.stack(pair), rates) for pair in zip(fired, tried, strict=True)]
    return np.array(tails).reshape(fired.shape)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was made of the accounts: rows, float64[A]; sums, float64[A, D]; tails of the channels, float64[A, C]."""

    counts: F8
    sums: F8
    tails: F8


def _telling(crowd: Crowd, chosen: NDArray[np.bool_], seen: _Seen, level: float, base: F8) -> tuple[Channel, ...]:
    """Channels in which most members are odd, and more of them than chance would have it: the strongest first."""
    size = int(chosen.sum())
    if size < _SMALLEST:
        return ()
    made = []
    names = crowd.view.names
    for channel, column in enumerate(columns_of(names, ADVERSARIAL)):
        count = int((seen.tails[chosen, channel] >= ODD).sum())
        chance = 1.0 - binomial(size, count - 1, float(base[channel])) if count and base[channel] < 1.0 else 1.0
        if count >= _MOST * size and chance * len(base) <= level:
            a, b = crowd.null.rates[0, channel], crowd.null.rates[1, channel]
            rate = float(seen.sums[chosen, column].sum() / seen.counts[chosen].sum())
            made.append(Channel(names[column], count, rate, float(a / (a + b))))
    return tuple(sorted(made, key=lambda one: (-one.odd_members, -one.rate / one.ordinary)))


def _shows(crowd: Crowd, channels: tuple[Channel, ...], seen: _Seen) -> NDArray[np.bool_]:
    """Accounts that show a little at least of what the campaign does: nobody is named for a direction alone."""
    told = {one.name for one in channels}
    names = crowd.view.names
    at = [i for i, column in enumerate(columns_of(names, ADVERSARIAL)) if names[column] in told]
    return np.asarray(seen.tails[:, at].max(axis=1) >= _SHOWS)


def _by_group(crowd: Crowd, seen: _Seen, level: float, told: list[Campaign]) -> Iterator[Campaign]:
    """Accounts of one network, tenant or link most of which do what an attacker does, if what they sent hid them."""
    known = {name for campaign in told for name in campaign.members}
    sizes = Counter(group for sketch in crowd.sketches for group in sketch.groups.items())
    groups = sorted(group for group, size in sizes.items() if size >= _SMALLEST)
    for kind, value in groups:
        chosen = np.array([sketch.groups.get(kind) == value for sketch in crowd.sketches])
        channels = _telling(crowd, chosen, seen, level / len(groups), np.full(seen.tails.shape[1], _ODD_SHARE))
        if not channels or all(one.name == LOOKALIKE for one in channels):
            continue
        names = _named(crowd, chosen & _shows(crowd, channels, seen))
        if not known.issuperset(names):
            known.update(names)  # one group's accounts are told once, whatever else they share
            yield Campaign(names, channels, channels[0].odd_members / int(chosen.sum()), _MOST, f"{kind} {value}")


def networks_of(sketches: Sequence[Sketch]) -> list[tuple[str, int]]:
    """The networks that members share, the largest first."""
    return Counter(one.groups["network"] for one in sketches if "network" in one.groups).most_common(5)
