"""What explains that accounts are odd without theft: a launch that was announced, and a season that most show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from mlsecd.detectors._campaign_null import ODD
from mlsecd.detectors._extraction_calibration import MIN_QUERIES
from mlsecd.detectors._extraction_channels import Reference
from mlsecd.detectors._extraction_state import Account, Accounts
from mlsecd.detectors._launches import Launch, Launches
from mlsecd.detectors._seasons import DAY, Past, Seasons, born_of
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
    launches, seasons
        What was announced, and what accounts show; a snapshot holds of both what was seen.
    """

    def __init__(self, launches: Iterable[Launch], references: Sequence[Reference], kernels: Kernels) -> None:
        self.launches, self._kernels = Launches(launches), kernels
        self._models = [reference.model for reference in references]
        self._singles = kernels.CHANNELS.index("knn") if references else 0
        self._nulls = [reference.plan.null[:, : self._singles] for reference in references]
        self._now = -math.inf
        self.seasons = Seasons(self._models)

    def look(self, interval: Interval, accounts: Accounts) -> None:
        """Judge the accounts that came since the last look, where an hour of event time has passed."""
        self.launches.watch(interval.start)
        self._now = interval.end
        since = interval.start // _HOUR * _HOUR
        if self._now // _HOUR * _HOUR <= since:
            return
        came: dict[int, list[tuple[float, Account]]] = defaultdict(list)
        pasts: list[tuple[str, Past]] = []
        for name, last, account in accounts.seen(min(since, self._now - DAY)):
            pasts.append((name, account))
            if last >= since and account.seen[1] >= MIN_QUERIES:
                came[int(name.partition(":")[0])].append((last, account))
        for number, members in sorted(came.items()):
            for at in range(0, len(members), _CHUNK):
                self._judge(number, members[at : at + _CHUNK])
        self.seasons.look(pasts, self._now)

    def _judge(self, number: int, accounts: list[tuple[float, Account]]) -> None:
        """Note which are odd as their counts stand: to the highest scores of a path chance alone brings many."""
        tallies = np.array([account.tally for _, account in accounts], np.int32)[:, :, : self._singles]
        flat = np.ascontiguousarray(tallies.transpose(1, 0, 2).reshape(2, -1))
        tails = self._kernels.tails(flat, np.tile(self._nulls[number], len(accounts)))
        odd = (tails.reshape(len(accounts), self._singles) >= ODD).any(axis=1)
        for (last, account), one in zip(accounts, odd.tolist(), strict=True):
            account.judged(last, odd=one)

    def of(self, name: str, account: Account, ticket: float, ts: float, accounts: Accounts) -> str | None:
        """Why an account is odd that does nothing else that is told from ``ticket`` on; ``None``: it is not known."""
        if account.best[self._singles :].max() > ticket:
            return None
        season = self.seasons.of(name)
        if season is not None and season.explains(account):
            return season.words
        launch = self.launches.of(self._models[int(name.partition(":")[0])], ts)
        if launch is not None and born_of(name, len(self._models), accounts.peek) >= launch.since:
            return launch.words
        return None

    def state(self) -> tuple[str, str]:
        """Why certificates do not hold just now, and which launches are on; empty: there is no such thing."""
        on = {model: self.launches.of(model, self._now) for model in self._models}
        told = [f'"{model}": new accounts are context ({one.reason})' for model, one in on.items() if one is not None]
        return self.seasons.state(), "; ".join(told)
