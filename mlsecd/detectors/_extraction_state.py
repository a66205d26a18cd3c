"""What is held of accounts: counts of many, windows of those lately active. Bounded by event time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.errors import StateError
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.recent import Recent

__all__ = ["TICK", "Account", "Accounts"]

# Seconds of event time within which accounts are not put in order of recency, and epochs are not
# told apart: so a stream may be cut into batches anywhere.
TICK: Final = 10.0
_SUSPECT: Final = 1.0


@dataclass(slots=True)
class Account:
    """Counts of one account in its epoch; small, so that there may be many.

    Attributes
    ----------
    seen
        int64[2]: rows, distinct rows.
    tally
        int16[2, C]: fired and tried, by channel.
    best
        float64[C]: highest scaled tails of the path.
    started
        The tick of its first row, seconds.
    first_ts
        Completion of its first row, seconds.
    told, told_ts
        The highest score that was told, and when something was told last.
    """

    seen: NDArray[np.int64]
    tally: NDArray[np.int16]
    best: NDArray[np.float64]
    started: float = 0.0
    first_ts: float = 0.0
    told: float = -np.inf
    told_ts: float = -np.inf

    @classmethod
    def new(cls, channels: int) -> Account:
        """An account without rows."""
        return cls(np.zeros(2, np.int64), np.zeros((2, channels), np.int16), np.zeros(channels))


class Accounts:
    """Accounts by name, and the windows of the latest.

    Parameters
    ----------
    limit, hot_limit
        The most accounts, and the most windows.
    channels
        Of each account's counts.
    shape
        Coordinates and the most rows of a window, by account name.
    """

    def __init__(self, limit: int, hot_limit: int, channels: int, shape: Callable[[str], tuple[int, int]]) -> None:
        self._channels = channels
        self._shape = shape
        self._cold: Keyed[Account] = Keyed(limit, lambda _: Account.new(channels), TICK, _is_suspect)
        self._hot: Keyed[Recent] = Keyed(hot_limit, lambda name: Recent(*shape(name)), TICK)

    @property
    def cold(self) -> int:
        """Accounts without a window."""
        return max(len(self._cold) - len(self._hot), 0)

    @property
    def hot(self) -> int:
        """Accounts with a window."""
        return len(self._hot)

    @property
    def evicted(self) -> int:
        """Accounts that made room for others."""
        return self._cold.evicted

    def enter(self, name: str, tick: float, first_ts: float, epoch_seconds: float) -> tuple[Account, Recent] | None:
        """One account and its window for rows of one tick, fresh where an epoch begins; ``None``: there is no room.

        A window of no rows stands in where there is none left.
        """
        account = self._cold.touch(name, tick)
        if account is None:
            return None
        if account.seen[0] and tick - account.started >= epoch_seconds:
            account.seen[:] = 0
            account.tally[:] = 0
            account.best[:] = 0.0
            account.told, account.told_ts = -np.inf, -np.inf
        if not account.seen[0]:
            account.started, account.first_ts = tick, first_ts
            self._hot.drop(name)  # it may be of an account of this name that made room before
        recent = self._hot.touch(name, tick)
        return account, Recent(self._shape(name)[0], 0) if recent is None else recent

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        cold = [
            (name, tick, [one.seen, one.tally, one.best, one.started, one.first_ts, one.told, one.told_ts])
            for name, tick, one in self._cold.dump()
        ]
        hot = [(name, tick, recent.dump()) for name, tick, recent in self._hot.dump()]
        counts = [(held.evicted, held.refused, held.kept) for held in (self._cold, self._hot)]
        return {"cold": cold, "hot": hot, "counts": counts}

    def load(self, dumped: dict[str, Any]) -> None:
        """Take back what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape.
        """
        cold = [(name, tick, Account(*fields)) for name, tick, fields in dumped["cold"]]
        for _, _, account in cold:
            like = Account.new(self._channels)
            pairs = ((account.seen, like.seen), (account.tally, like.tally), (account.best, like.best))
            if any(one.shape != other.shape or one.dtype != other.dtype for one, other in pairs):
                raise StateError("accounts in a snapshot have other channels")
        hot = [(name, tick, Recent.load(*self._shape(name), fields)) for name, tick, fields in dumped["hot"]]
        (evicted, refused, kept), (cooled, turned_away, _) = (tuple(map(int, own)) for own in dumped["counts"])
        self._cold.load(cold, kept)
        self._hot.load(hot)
        self._cold.evicted, self._cold.refused = evicted, refused
        self._hot.evicted, self._hot.refused = cooled, turned_away


def _is_suspect(account: Account) -> bool:
    """One decade of evidence: from here on an account is not forgotten for strangers that pass by."""
    return bool(account.best.max(initial=0.0) >= _SUSPECT)
