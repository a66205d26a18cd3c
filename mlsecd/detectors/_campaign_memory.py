"""What is remembered from look to look: campaigns by name, and for how long everybody has been moving."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

__all__ = ["LOOKS", "Memory"]

LOOKS: Final = 24  # in an epoch
_CAMPAIGNS_MAX: Final = 16
_SAME: Final = 0.5  # of its accounts were in a campaign in its first epoch: then it is the same one


class _Known(NamedTuple):
    """A campaign that was told: since when, who was in it in its first epoch, and who was ever."""

    name: str
    since: float
    first: frozenset[str]
    ever: frozenset[str]


class Memory:
    """Campaigns that were told, and each view's population at the last looks.

    Parameters
    ----------
    members_max
        The most accounts that are remembered of one campaign.
    epoch_seconds
        For so long it is still being discovered who belongs to a campaign.

    Attributes
    ----------
    shifted
        Why a model's accounts are said to have moved at the last look, by model.
    """

    def __init__(self, members_max: int, epoch_seconds: float) -> None:
        self.shifted: dict[str, str] = {}
        self._members_max, self._epoch_seconds = members_max, epoch_seconds
        self._told: list[_Known] = []  # the latest first
        self._moved: dict[str, int] = {}  # up with each look at which everybody moved, by view

    def name(self, members: Sequence[str], now: float) -> tuple[str, int]:
        """A campaign's name, the old one if it goes on; and how many of its accounts were seen before, but not now.

        It goes on while half of its accounts are those of its first epoch. By all that ever were in it, thieves who
        for a day do what a customer's tool does would go on under its name, and under the exception that it has.
        """
        own = frozenset(members)
        same = [one for one in self._told if len(own & one.first) >= _SAME * len(own)]
        if same:
            known = same[0]
            self._told.remove(known)
        else:
            name = hashlib.blake2b(f"{now!r}\0{min(own)}".encode(), digest_size=8).hexdigest()
            known = _Known(name, now, own, own)
        everybody = own | known.ever if len(own | known.ever) <= self._members_max else own
        first = everybody if now < known.since + self._epoch_seconds else known.first
        self._told = [known._replace(first=first, ever=everybody), *self._told][:_CAMPAIGNS_MAX]
        return known.name, len(known.ever - own)

    def looked(self, view: str, *, moving: bool) -> None:
        """Note a look: whether those moved together whom no campaign names."""
        looks = self._moved.get(view, 0)
        self._moved[view] = min(looks + 1, LOOKS) if moving else max(looks - 1, 0)

    def moving(self, view: str) -> bool:
        """Whether everybody has been moving for half an epoch: then oddness alone is a doubtful sign."""
        return self._moved.get(view, 0) >= LOOKS // 2

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        told = [(one.name, one.since, sorted(one.first), sorted(one.ever)) for one in self._told]
        return {"told": told, "moved": self._moved, "shifted": self.shifted}

    @classmethod
    def load(cls, members_max: int, epoch_seconds: float, state: dict[str, Any]) -> Memory:
        """Out of what :meth:`dump` gave; one of :data:`~mlsecd.errors.MALFORMED` where it is damaged."""
        made = cls(members_max, epoch_seconds)
        made._told = [
            _Known(str(name), float(since), frozenset(map(str, first)), frozenset(map(str, ever)))
            for name, since, first, ever in state["told"]
        ]
        made._moved = {str(view): int(looks) for view, looks in state["moved"].items()}
        made.shifted = {str(model): str(why) for model, why in state["shifted"].items()}
        return made
