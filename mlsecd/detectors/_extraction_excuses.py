"""What explains that accounts are odd without theft: a launch that was announced, and a season that most show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from mlsecd.detectors._campaign_null import ODD
from mlsecd.detectors._extraction_calibration import MIN_QUERIES
from mlsecd.detectors._extraction_channels import Reference
from mlsecd.detectors._extraction_groups import crowd_of
from mlsecd.detectors._extraction_state import Account, Accounts
from mlsecd.detectors._launches import Launch, Launches
from mlsecd.detectors._seasons import DAY, Seasons
from mlsecd.detectors.base import Interval
from mlsecd.kernels import Kernels

__all__ = ["Excuses"]

_HOUR: Final = 3_600.0
_CHUNK: Final = 4_096  # accounts that are judged at a time


class Excuses:
    """Answers whether an account's oddness is explained.

    Parameters
    ----------
    launches
        That were announced.
    references
        That accounts are held against. Of their channels the first are of single queries, and new inputs fire these.
        What an account does with its queries, one after the other, is explained by nothing.

    Attributes
    ----------
    seasons
        Of the crowds; a snapshot holds them.
    """

    def __init__(self, launches: Iterable[Launch], references: Sequence[Reference], kernels: Kernels) -> None:
        self._launches, self._kernels = Launches(launches), kernels
        self._models = [reference.model for reference in references]
        self._singles = kernels.CHANNELS.index("knn") if references else 0
        self._nulls = [reference.plan.null[:, : self._singles] for reference in references]
        self.seasons = Seasons()

    def look(self, interval: Interval, accounts: Accounts) -> None:
        """Judge the accounts that came since the last look, where an hour of event time has passed."""
        now, since = interval.end, interval.start // _HOUR * _HOUR
        if now // _HOUR * _HOUR <= since:
            return
        crowds: dict[str, list[Account]] = defaultdict(list)
        came: dict[str, list[tuple[float, Account]]] = defaultdict(list)
        for name, last, account in accounts.seen(now - DAY):
            crowds[crowd_of(name)].append(account)
            if last >= since and account.seen[1] >= MIN_QUERIES:
                came[crowd_of(name)].append((last, account))
        for crowd, members in sorted(crowds.items()):
            for at in range(0, len(came[crowd]), _CHUNK):
                self._judge(int(crowd.partition(":")[0]), came[crowd][at : at + _CHUNK])
            self.seasons.look(crowd, members, now)

    def _judge(self, number: int, accounts: list[tuple[float, Account]]) -> None:
        """Note which are odd as their counts stand: to the highest scores of a path chance alone brings many."""
        tallies = np.array([account.tally for _, account in accounts], np.int32)[:, :, : self._singles]
        flat = np.ascontiguousarray(tallies.transpose(1, 0, 2).reshape(2, -1))
        tails = self._kernels.tails(flat, np.tile(self._nulls[number], len(accounts)))
        odd = (tails.reshape(len(accounts), self._singles) >= ODD).any(axis=1)
        for (last, account), one in zip(accounts, odd.tolist(), strict=True):
            account.judged(last, odd=one)

    def of(self, name: str, account: Account, ticket: float, ts: float) -> str | None:
        """Why an account is odd that does nothing else that is told from ``ticket`` on; ``None``: it is not known."""
        if account.best[self._singles :].max() > ticket:
            return None
        season = self.seasons.of(crowd_of(name))
        if season is not None:
            return season.words
        launch = self._launches.of(self._models[int(name.partition(":")[0])], ts)
        if launch is not None and account.born >= launch.since:
            return f"first seen since an announced launch began ({launch.reason})"
        return None

    def state(self) -> str:
        """Why certificates do not hold just now; empty: they do."""
        real = [(crowd.partition(":"), season) for crowd, season in self.seasons.items()]
        told = [
            f'"{self._models[int(number)]}": {one.words}' for (number, _, synthetic), one in real if synthetic == "0"
        ]
        return "; ".join(dict.fromkeys(told))
