"""Many accounts that are a little odd together: more of them than ordinary clients explain, and what that may be."""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._campaign_chances import excess
from mlsecd.detectors._language_account import MIN_ROWS, Account
from mlsecd.detectors._language_crowd import FEWEST, SIGNS, Crowd, Held, body_of, calm_shares, odd_of, tails_of
from mlsecd.detectors._language_forms import alike
from mlsecd.detectors._language_recent import CROWD, half_of
from mlsecd.kernels import Kernels

__all__ = ["SMALLEST", "Kind", "Members", "View", "judge", "views"]

F8 = NDArray[np.float64]

SMALLEST: Final = 6  # accounts that are told as a campaign
_TESTS: Final = 3 * len(SIGNS)  # of a look: how many are odd, how many share a form, and how many work off a list
_EVERYBODY: Final = 1.0 / 3.0  # of all accounts: more are all who chat, among programs, indexes and health checks
_MOST: Final = 0.5  # of those who are odd
_COVER: Final = 0.5  # of its requests are odd: such an account hides nothing
_MOVED: Final = 1.5  # times the ordinary share, of the accounts that are not odd,
_SURE: Final = 3.0  # and at least so many standard errors above it,
_SPREAD: Final = 0.01  # of shares that differ by as much at least
# by sign, the channels in which the others show a season
_SEASONS: Final = {
    "long_tail": ("long",),
    "asks_long": ("asks_long",),
    "elicits": ("elicits",),
    "elicits_long": ("elicits", "long"),
    "both": ("elicits", "long"),
}


class Kind(enum.Enum):
    """What accounts that are odd together may be."""

    COVERED = "many forms shared, under cover"
    OPEN = "many forms shared, without cover"
    OWN_WORDS = "no form in common"
    PROMPT = "a few forms shared, under cover"
    APPLICATION = "a few forms shared, without cover"
    SEASON = "everybody moved"
    LAUNCH = "new since an announced launch began"


@dataclass(frozen=True, slots=True)
class View:
    """The accounts of one model with enough recent requests, in order of their names.

    Attributes
    ----------
    names
        As the detector's accounts.
    odd
        bool[n, S].
    calm
        Masked float64[n, K]: shares of requests that fire, of those who are not odd.
    shares
        float64[n]: the share of requests that fire the channel which most fire.
    """

    names: list[str]
    accounts: list[Account]
    odd: NDArray[np.bool_]
    calm: Any
    shares: F8

    def only(self, kept: NDArray[np.bool_]) -> View:
        """Some of them."""
        at = np.flatnonzero(kept).tolist()
        names, accounts = [self.names[i] for i in at], [self.accounts[i] for i in at]
        return View(names, accounts, self.odd[kept], self.calm[kept], self.shares[kept])

    def forms(self, which: list[int]) -> list[Any]:
        """The forms of some accounts."""
        return [self.accounts[i].recent.forms for i in which]


@dataclass(frozen=True, slots=True)
class Members:
    """Accounts that are odd together in one sign, the one with the lowest chance.

    Attributes
    ----------
    members
        Indices into the view.
    forms
        How many forms they have in common.
    usual
        The share of ordinary accounts of which the same holds.
    chance
        That ordinary clients are as many.
    expected
        How many of the members are ordinary, if the others of the view are as ordinary clients are.
    """

    kind: Kind
    sign: int
    members: list[int]
    forms: int
    usual: float
    chance: float
    threshold: float
    expected: float


def views(
    states: Iterable[tuple[str, Account]], now: float, nulls: list[F8], kernels: Kernels
) -> dict[tuple[int, bool], View]:
    """Active accounts at a look, by number of the reference and whether they are synthetic."""
    half = half_of(now)
    held: dict[tuple[int, bool], list[tuple[str, Account, Any]]] = defaultdict(list)
    for name, account in states:
        window, rows = account.recent.counts(half)
        if rows >= MIN_ROWS:
            number, kind, _ = name.split(":", 2)
            held[int(number), bool(int(kind) & 1)].append((name, account, window))
    return {key: _view(some, nulls[key[0]], kernels) for key, some in sorted(held.items())}


def _view(some: list[tuple[str, Account, Any]], null: F8, kernels: Kernels) -> View:
    names, accounts, windows = map(list, zip(*some, strict=True))
    counted = np.array(windows)
    odd = odd_of(tails_of(windows, null, kernels))
    shares = (counted[:, 0] / np.maximum(counted[:, 1], 1)).max(axis=1)
    return View(names, accounts, odd, calm_shares(counted, odd), shares)


@dataclass(frozen=True, slots=True)
class _Group:
    """Accounts that are odd in one sign, and alike as ``held`` says."""

    sign: int
    held: Held
    members: list[int]
    forms: int


def judge(view: View, crowd: Crowd, level: float, kernels: Kernels) -> Members | None:
    """Accounts that are odd together, if they are more than ordinary clients explain.

    Those who work off a list come first, then those who share a form: of ordinary accounts that are odd few do, so
    that a smaller part of all shows.

    Parameters
    ----------
    level
        Of the look at this model; its tests share it.
    """
    if len(view.names) < FEWEST:
        return None
    by_list, by_form, by_all = (
        _test(view, crowd, groups, level / _TESTS, kernels)
        for groups in zip(*(_groups(view, sign) for sign in range(len(SIGNS))), strict=True)
    )
    if by_list is not None:
        return by_list
    if by_form is None or by_all is None or by_all.kind is not Kind.SEASON:
        return by_form or by_all
    # in a season those of one program share its form too: they are all of it, or no more than a part
    return by_form if len(by_form.members) >= _MOST * len(by_all.members) else by_all


def _groups(view: View, sign: int) -> tuple[_Group, _Group, _Group]:
    """Of the accounts that are odd in a sign those of a list, those who share a form, and all."""
    odd = np.flatnonzero(view.odd[:, sign]).tolist()
    some, many = alike(view.forms(odd))
    return (
        _Group(sign, "listed", [odd[i] for i in many.who], many.forms),
        _Group(sign, "shared", [odd[i] for i in some.who], some.forms),
        _Group(sign, "odd", odd, 0),
    )


def _test(view: View, crowd: Crowd, groups: tuple[_Group, ...], threshold: float, kernels: Kernels) -> Members | None:
    """The sign that ordinary clients explain least, if they do not explain it."""
    chances = [_chance(view, crowd, one, kernels) for one in groups]
    exceeding = [one for one, chance in zip(groups, chances, strict=True) if chance <= threshold]
    if not exceeding:
        return None
    leading = groups[int(np.argmin(chances))]
    usual, size = crowd.share(leading.sign, leading.held), len(leading.members)
    expected = usual * max(len(view.names) - size, 0) / max(1.0 - usual, 0.1)
    kind = _kind_by_others(view, crowd, leading, exceeding) if leading.held == "odd" else _kind_by_forms(view, leading)
    ordinary = min(expected, float(size))
    return Members(kind, leading.sign, leading.members, leading.forms, usual, min(chances), threshold, ordinary)


def _chance(view: View, crowd: Crowd, group: _Group, kernels: Kernels) -> float:
    """That of ordinary accounts as many are odd, and alike; 1 where they are too few to be told."""
    if len(group.members) < SMALLEST:
        return 1.0
    held = round(crowd.clients)
    ordinary = math.ceil(crowd.share(group.sign, group.held) * held)
    return excess(len(group.members), len(view.names), ordinary, held, kernels)


def _kind_by_forms(view: View, group: _Group) -> Kind:
    """What accounts that have forms in common are: one who hides has other requests beside these."""
    covered = float(np.median(view.shares[group.members])) < _COVER
    if group.held == "listed":
        return Kind.COVERED if covered else Kind.OPEN
    return Kind.PROMPT if covered else Kind.APPLICATION


def _kind_by_others(view: View, crowd: Crowd, group: _Group, exceeding: list[_Group]) -> Kind:
    """What accounts that share no form are: everybody, or who cannot be told from either."""
    over = len(group.members) - crowd.share(group.sign, "odd") * len(view.names)
    shown = {CROWD.index(name) for one in exceeding for name in _SEASONS[SIGNS[one.sign]]}
    moved = over > _EVERYBODY * len(view.names) or any(_moved(view, crowd, channel) for channel in shown)
    return Kind.SEASON if moved else Kind.OWN_WORDS


def _moved(view: View, crowd: Crowd, channel: int) -> bool:
    """Whether most accounts that are not odd fire more often than ordinary ones too: a season reaches everybody."""
    shares = view.calm[:, channel].compressed()
    if len(shares) < FEWEST // 2:
        return False
    mean, spread = crowd.calm[:, channel]
    error = max(float(spread), _SPREAD) / math.sqrt(len(shares))
    return bool(body_of(shares)[0] > max(_MOVED * mean, mean + _SURE * error))
