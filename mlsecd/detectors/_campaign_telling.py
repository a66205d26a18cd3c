"""What accounts that lie out together do that ordinary ones seldom do, and which of them can be named for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._campaign_chances import excess, pooled, rank_sum, share_beyond
from mlsecd.detectors._campaign_null import FEWEST, ODD, Null, Side
from mlsecd.detectors._extraction_level import binomial
from mlsecd.kernels import Kernels

__all__ = [
    "ADVERSARIAL",
    "CHANNELS",
    "DISTANCE",
    "MOST",
    "SMALLEST",
    "Channel",
    "Seen",
    "Teller",
    "channels_of",
    "columns_of",
    "counted",
]

F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
Mask = NDArray[np.bool_]

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
# New customers and seasons do this too. They move as a whole: what tells thieves under cover from them is more odd
# queries than moving as far as their mean has would give. It is a ticket.
DISTANCE: Final = ("odd_f", "odd_e")
CHANNELS: Final = (*DISTANCE, *ADVERSARIAL)
SMALLEST: Final = 6  # members of a campaign
MOST: Final = 0.5  # of the members are odd in a channel
_TIMES: Final = 2.0  # as often as ordinary clients, and as the day's others, members fire a channel of distance
_MIXED: Final = 6.0  # times as many odd queries, over the ordinary share, as a common move of all queries would give
_FAR: Final = 6.0  # times as often as ordinary clients: further than a launch or a season of ours went, mixed or not
_LEAST_MOVE: Final = 0.005  # that the share of odd queries is taken to grow by: less is noise
_CALM: Final = 1.3  # times as often as ordinary clients those others may: in a season they are odd themselves
_SHOWS: Final = 0.5  # -log10 of about a third: the least that a named account shows
_WRONG: Final = 0.05  # of the named, by the share of ordinary clients who would be


@dataclass(frozen=True, slots=True)
class Channel:
    """What the members do that ordinary clients seldom do."""

    name: str
    odd_members: int
    rate: float  # of the members' rows together
    ordinary: float
    chance: float  # that ordinary accounts in their place would


@dataclass(frozen=True, slots=True)
class Seen:
    """What was made of the accounts.

    Attributes
    ----------
    counts, sums
        Rows, float64[A], and sums over them, float64[A, D].
    fired, tried
        Of each channel, int32[A, C].
    tails
        -log10 of the chance that an ordinary client fires it as often, float64[A, C].
    """

    counts: F8
    sums: F8
    fired: I4
    tried: I4
    tails: F8

    @classmethod
    def of(cls, counts: F8, sums: F8, names: Sequence[str], rates: F8, kernels: Kernels) -> Seen:
        """Count the channels of a view with these columns."""
        fired, tried = counted(counts, sums, columns_of(names, CHANNELS))
        tails = [kernels.tails(np.stack(pair), rates) for pair in zip(fired, tried, strict=True)]
        return cls(counts, sums, fired, tried, np.array(tails).reshape(fired.shape))


def channels_of(columns: Sequence[str]) -> tuple[str, ...]:
    """The channels that a view with these columns has, in their order."""
    return tuple(name for name in CHANNELS if name in columns)


def columns_of(names: Sequence[str], channels: Sequence[str]) -> list[int]:
    """Where the channels that a view has stand among its columns."""
    return [names.index(name) for name in channels if name in names]


def counted(counts: F8, sums: F8, at: list[int]) -> tuple[I4, I4]:
    """How often each account fired each channel, of how many rows: int32[A, C] each."""
    tried = np.repeat(counts.astype(np.int32)[:, None], len(at), axis=1)
    return np.minimum(np.rint(sums[:, at]).astype(np.int32), tried), tried


def odd_in(tails: F8, names: Sequence[str], channels: Sequence[str]) -> Mask:
    """Which accounts are odd in some of the channels, bool[A]: a crowd that a small campaign hides in."""
    at = [i for i, name in enumerate(names) if name in channels]
    return np.asarray((tails[:, at] >= ODD).any(axis=1))


@dataclass(frozen=True, slots=True)
class Teller:
    """Holds groups of one look's accounts against ordinary clients.

    Attributes
    ----------
    names, columns
        The channels, C of them, and the view's columns, D.
    level
        The chance that is allowed to a group of ordinary accounts, over all channels.
    """

    names: Sequence[str]
    columns: Sequence[str]
    seen: Seen
    null: Null
    level: float
    kernels: Kernels

    def adversarial(self, chosen: Mask, base: F8) -> list[Channel]:
        """Adversarial channels in which most are odd, and more of them than chance would have it.

        ``base``, float64[C]: how many of ordinary accounts in their place are odd.
        """
        return [made for at in self._at(ADVERSARIAL) if (made := self._most(chosen, at, base)) is not None]

    def distant(self, chosen: Mask, base: F8 | None, *, sure: bool) -> list[Channel]:
        """Channels of distance that members fire twice as often as ordinary clients and as the day's other accounts.

        And six times as often as all of their queries would that had moved as their mean has, for part of them is odd
        and the rest is cover; or six times as often as ordinary clients. With ``base`` as in :meth:`adversarial`: of
        accounts that were chosen for being odd. Without, by ranks where the direction is ``sure``; where it is not, by
        the sum of tails, which is slower to tell.
        """
        size = int(chosen.sum())
        if size < SMALLEST or len(chosen) - size < FEWEST:
            return []
        made = [self._twice(chosen, at, base, sure=sure) for at in self._at(DISTANCE)]
        return [one for one in made if one is not None]

    def _at(self, channels: Sequence[str]) -> list[int]:
        return [i for i, name in enumerate(self.names) if name in channels]

    def _most(self, chosen: Mask, at: int, base: F8) -> Channel | None:
        size = int(chosen.sum())
        count = int((self.seen.tails[chosen, at] >= ODD).sum())
        if size < SMALLEST or count < MOST * size or base[at] >= 1.0:
            return None
        return self._if_rare(chosen, at, 1.0 - binomial(size, count - 1, float(base[at])))

    def _twice(self, chosen: Mask, at: int, base: F8 | None, *, sure: bool) -> Channel | None:
        shares = self.seen.fired[:, at] / self.seen.tried[:, at]
        together, others = self._rate(chosen, at), self._rate(~chosen, at)
        usual = self._ordinary(at)
        least = _TIMES * max(usual, others)
        # the middle member as well as all together: a few loud ones are not a campaign
        if min(together, float(np.median(shares[chosen]))) < least or others > _CALM * usual:
            return None
        mixed = together - usual >= _MIXED * max(self._moved(chosen, at) - usual, _LEAST_MOVE)
        if not mixed and together < _FAR * usual:
            return None
        if base is not None:
            return self._most(chosen, at, base)
        tails = self.seen.tails[chosen, at]
        return self._if_rare(chosen, at, rank_sum(tails, self.null.tails[:, at]) if sure else pooled(tails))

    def _moved(self, chosen: Mask, at: int) -> float:
        """How often members would fire a channel of distance if all their queries had moved as their mean has."""
        letter = self.names[at][-1]
        own = [i for i, name in enumerate(self.columns) if name[0] == letter and name[1:].isdigit()]
        means = self.seen.sums[:, own] / self.seen.counts[:, None]
        move = means[chosen].mean(axis=0) - np.median(means[~chosen], axis=0)
        noise = len(own) * float((1.0 / self.seen.counts[chosen]).mean()) / int(chosen.sum())
        return share_beyond(self._ordinary(at), len(own), max(float(move @ move) - noise, 0.0))

    def _if_rare(self, chosen: Mask, at: int, chance: float) -> Channel | None:
        if chance * len(self.names) > self.level:
            return None
        count = int((self.seen.tails[chosen, at] >= ODD).sum())
        return Channel(self.names[at], count, self._rate(chosen, at), self._ordinary(at), chance)

    def _rate(self, chosen: Mask, at: int) -> float:
        return float(self.seen.fired[chosen, at].sum() / max(self.seen.tried[chosen, at].sum(), 1))

    def _ordinary(self, at: int) -> float:
        a, b = self.null.rates[0, at], self.null.rates[1, at]
        return float(a / (a + b))

    def showing(self, channels: Sequence[Channel]) -> Mask:
        """Accounts that show a little at least of what the members do: nobody is named for a direction alone."""
        return self._shows(self.seen.tails, channels)

    def _shows(self, tails: F8, channels: Sequence[Channel]) -> Mask:
        return np.asarray(tails[:, self._at([one.name for one in channels])].max(axis=1) >= _SHOWS)

    def recounted(self, channels: Sequence[Channel], named: Mask) -> tuple[Channel, ...]:
        """What those do who are named: the strongest first, and what new customers do too last."""
        made = []
        for one, at in zip(channels, map(self.names.index, (one.name for one in channels)), strict=True):
            count = int((self.seen.tails[named, at] >= ODD).sum())
            made.append(replace(one, odd_members=count, rate=self._rate(named, at)))
        return tuple(sorted(made, key=lambda one: (one.name in DISTANCE, -one.odd_members, -one.rate / one.ordinary)))

    def crowded(self, side: Side, among: Mask, usual_among: Mask, channels: Sequence[Channel]) -> bool:
        """Whether more accounts lie out there, and show it, than the share of ordinary clients who do explains.

        ``side`` is of the accounts ``among``, and of the ordinary clients ``usual_among``.
        """
        along, usual = self._showing(side, among, usual_among, channels)
        here, held = int(np.isfinite(along).sum()), int((usual >= side.along[side.chosen].min()).sum())
        return excess(here, len(along), held, len(usual), self.kernels) <= self.level

    def named(self, side: Side, among: Mask, usual_among: Mask, channels: Sequence[Channel]) -> Mask:
        """Who is named, bool[A]: members who show it, so far out that few of them should be ordinary."""
        along, usual = self._showing(side, among, usual_among, channels)
        far = np.sort(along[np.isfinite(along)])
        for left, cut in zip(range(len(far), SMALLEST - 1, -1), far.tolist(), strict=False):
            expected = float((usual >= cut).mean()) * (len(among) - left)
            if expected <= _WRONG * left:
                return np.asarray(along >= cut)
        return np.asarray(along >= (far[-SMALLEST] if len(far) >= SMALLEST else -1e300))

    def _showing(self, side: Side, among: Mask, usual_among: Mask, channels: Sequence[Channel]) -> tuple[F8, F8]:
        """How far out members and ordinary clients lie who show it, float64[A], [N]; minus infinity for the others."""
        along, usual = np.full(len(among), -np.inf), np.full(len(usual_among), -np.inf)
        along[np.flatnonzero(among)[side.chosen]] = side.along[side.chosen]
        along[~self.showing(channels)] = -np.inf
        usual[usual_among] = side.usual
        usual[~self._shows(self.null.tails, channels)] = -np.inf
        return along, usual
