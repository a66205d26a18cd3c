"""What explains that accounts are odd without theft: a launch that was announced, and a season that most show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from mlsecd.detectors._campaign_null import ODD
from mlsecd.detectors._extraction_calibration import MIN_QUERIES
from mlsecd.detectors._extraction_groups import crowd_of
from mlsecd.detectors._extraction_state import Account
from mlsecd.detectors._launches import Launch, Launches
from mlsecd.detectors._seasons import Past, Seasons

__all__ = ["Excuses"]

_HOUR: Final = 3_600.0


class Excuses:
    """Answers whether an account's oddness is explained.

    Parameters
    ----------
    launches
        That were announced.
    models
        By number of the reference.
    singles
        How many channels, the first ones, are of single queries: new inputs fire these. What an account does with its
        queries, one after the other, is explained by nothing.

    Attributes
    ----------
    seasons
        Of the crowds; a snapshot holds them.
    """

    def __init__(self, launches: Iterable[Launch], models: Sequence[str], singles: int) -> None:
        self._launches, self._models, self._singles = Launches(launches), models, singles
        self.seasons = Seasons()

    def look(self, start: float, end: float, seen: Iterable[tuple[str, float, Account]]) -> None:
        """Judge accounts' pasts, where an hour of event time has passed; ``seen``: with when each came last."""
        if end // _HOUR <= start // _HOUR:
            return
        crowds: dict[str, list[tuple[float, Past]]] = defaultdict(list)
        for name, last, account in seen:
            if account.seen[1] >= MIN_QUERIES:
                account.judged(end, odd=bool(account.best[: self._singles].max() >= ODD))
            crowds[crowd_of(name)].append((last, account))
        for crowd, accounts in sorted(crowds.items()):
            self.seasons.look(crowd, accounts, end)

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
