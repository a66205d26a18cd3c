"""What is held of accounts: counts of many, windows of those lately active. Bounded by event time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._seasons import Past
from mlsecd.errors import StateError
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.recent import Recent

__all__ = ["TICK", "Account", "Accounts"]

# Seconds of event time within which accounts are not put in order of recency, and epochs are not
# told apart: so a stream may be cut into batches anywhere.
TICK: Final = 10.0
_SUSPECT: Final = 1.0


@dataclass(slots=True)
class Account(Past):
    """Counts of one account in its epoch; small, so that there may be many.

    Attributes
    ----------
    seen
        int64[2]: rows, distinct rows.
    tally
        int16[2, C]: fired and tried, by channel.
    best
        float64[C]: highest scaled tails of the path.
    first_ts
        Completion of its first row, seconds; its epoch starts with that row's tick.
    told, told_ts
        The highest score that was told, and when something was told last.
    """

    seen: NDArray[np.int64]
    tally: NDArray[np.int16]
    best: NDArray[np.float64]
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
        if account.seen[0] and tick - account.first_ts // TICK * TICK >= epoch_seconds:
            account.seen[:] = 0
            account.tally[:] = 0
            account.best[:] = 0.0
            account.told, account.told_ts = -np.inf, -np.inf
        account.first_ts, account.born = min(account.first_ts, first_ts), min(account.born, first_ts)  # unless set back
        if account.told_ts >= tick + TICK:
            account.told_ts = -np.inf
        if not account.seen[0]:
            account.first_ts = first_ts
            self._hot.drop(name)  # it may be of an account of this name that made room before
        recent = self._hot.touch(name, tick)
        return account, Recent(self._shape(name)[0], 0) if recent is None else recent

    def seen(self, since: float) -> Iterator[tuple[str, float, Account]]:
        """Accounts that came since then, and the tick in which each came last."""
        for name, tick, account in self._cold.dump():
            if tick * TICK >= since:
                yield name, tick * TICK, account

    def peek(self, name: str) -> Account | None:
        """An account, untouched."""
        return self._cold.peek(name)

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        cold = [
            (name, tick, [one.seen, one.tally, one.best, one.first_ts, one.told, one.told_ts, one.dump_past()])
            for name, tick, one in self._cold.dump()
        ]
        hot = [(name, tick, recent.dump()) for name, tick, recent in self._hot.dump()]
        counts = [(held.evicted, held.refused, held.kept) for held in (self._cold, self._hot)]
        return {"cold": cold, "hot": hot, "counts": counts}

    def loaded(self, dumped: dict[str, Any]) -> Accounts:
        """Others of the same limits and shapes, out of what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape.
        """
        cold = [(str(name), int(tick), self._account(fields)) for name, tick, fields in dumped["cold"]]
        hot = [(str(name), int(tick), Recent.load(*self._shape(name), fields)) for name, tick, fields in dumped["hot"]]
        (evicted, refused, kept), (cooled, turned_away, _) = (tuple(map(int, own)) for own in dumped["counts"])
        if len(cold) > self._cold.limit or len(hot) > self._hot.limit or not 0 <= kept <= len(cold):
            raise StateError("a snapshot has more accounts than it may")
        for name, _, _ in cold:
            self._shape(name)  # it is of a model that there is
        made = Accounts(self._cold.limit, self._hot.limit, self._channels, self._shape)
        made._cold.load(cold, kept)
        made._hot.load(hot)
        made._cold.evicted, made._cold.refused = evicted, refused
        made._hot.evicted, made._hot.refused = cooled, turned_away
        return made

    def _account(self, dumped: list[Any]) -> Account:
        """One account out of a snapshot."""
        seen, tally, best, *times, past = dumped
        made, like = Account(seen, tally, best, *map(float, times)), Account.new(self._channels)
        made.load_past(past)
        pairs = ((seen, like.seen), (tally, like.tally), (best, like.best))
        if any(one.shape != other.shape or one.dtype != other.dtype for one, other in pairs):
            raise StateError("accounts in a snapshot have other channels")
        counts = 0 <= seen[1] <= seen[0] and bool(((tally[0] >= 0) & (tally[0] <= tally[1])).all())
        finite = math.isfinite(made.first_ts) and bool(np.isfinite(best).all())
        if not counts or not finite or not made.told < math.inf or not made.told_ts < math.inf:
            raise StateError("accounts in a snapshot have no counts")
        return made


def _is_suspect(account: Account) -> bool:
    """One decade of evidence: from here on an account is not forgotten for strangers that pass by."""
    return bool(account.best.max(initial=0.0) >= _SUSPECT)
