"""What is remembered from look to look: campaigns by name, and for how long everybody has been moving."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["LOOKS", "Memory"]

LOOKS: Final = 24  # in an epoch
_CAMPAIGNS_MAX: Final = 16
_SAME: Final = 0.5  # of the members, for a campaign to be the one that was told before


class Memory:
    """Campaigns that were told, and each view's population at the last looks.

    Parameters
    ----------
    members_max
        The most accounts that are remembered of one campaign.

    Attributes
    ----------
    shifted
        Why a model's accounts are said to have moved at the last look, by model.
    """

    def __init__(self, members_max: int) -> None:
        self.shifted: dict[str, str] = {}
        self._members_max = members_max
        self._told: list[tuple[str, frozenset[str]]] = []  # the latest first: name, and who was ever seen in it
        self._moved: dict[str, int] = {}  # up with each look at which everybody moved, by view

    def name(self, members: Sequence[str], now: float) -> tuple[str, int]:
        """A campaign's name, the old one if it goes on; and how many of its accounts were seen before, but not now."""
        own = frozenset(members)
        same = [one for one in self._told if len(own & one[1]) >= _SAME * min(len(own), len(one[1]))]
        if same:
            name, before = same[0]
            self._told.remove(same[0])
        else:
            name, before = hashlib.blake2b(f"{now!r}\0{min(own)}".encode(), digest_size=8).hexdigest(), own
        everybody = own | before if len(own | before) <= self._members_max else own
        self._told = [(name, everybody), *self._told][:_CAMPAIGNS_MAX]
        return name, len(before - own)

    def looked(self, view: str, *, shifted: bool) -> None:
        """Note a look at which no campaign was told: one that is leaves open whether everybody moves."""
        looks = self._moved.get(view, 0)
        self._moved[view] = min(looks + 1, LOOKS) if shifted else max(looks - 1, 0)

    def moving(self, view: str) -> bool:
        """Whether everybody has been moving for half an epoch: then oddness alone is a doubtful sign."""
        return self._moved.get(view, 0) >= LOOKS // 2

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        told = [(name, sorted(members)) for name, members in self._told]
        return {"told": told, "moved": self._moved, "shifted": self.shifted}

    @classmethod
    def load(cls, members_max: int, state: dict[str, Any]) -> Memory:
        """Out of what :meth:`dump` gave; one of :data:`~mlsecd.errors.MALFORMED` where it is damaged."""
        made = cls(members_max)
        made._told = [(str(name), frozenset(map(str, members))) for name, members in state["told"]]
        made._moved = {str(view): int(looks) for view, looks in state["moved"].items()}
        made.shifted = {str(model): str(why) for model, why in state["shifted"].items()}
        return made
