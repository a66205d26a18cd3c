"""Answered requests without a vector that could be judged: free queries, unless the service leaves out everybody's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_state import Account
from mlsecd.errors import StateError
from mlsecd.kernels import Kernels
from mlsecd.records import RequestBatch

__all__ = ["MIN_BLANKS", "Blanks", "Lately", "add_blanks", "answered", "raised"]

F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
Mask = NDArray[np.bool_]

_UNSCORED: Final = "unscored"
MIN_BLANKS: Final = 10  # of an account before they are judged, in calibration as in service
_MEMORY: Final = 2_048  # trials after which counts are halved, as the kernel does
_HELD: Final = 512  # rows of accounts' intervals that are remembered, by model
_OTHERS: Final = 8  # accounts that must have come after a blank, before it is told whose doing it was
_DIRTY: Final = 0.25  # of them have blanks too: then it is the service's
_HIGHEST: Final = 0.5  # expected share of blanks
_FAILED: Final = 400  # statuses from here on answer nothing


def answered(batch: RequestBatch) -> Mask:
    """bool[n]: requests that did not fail, as far as one can tell."""
    return ~(batch.number("status") >= _FAILED)


def add_blanks(tally: I4, best: F8, count: int, null: F8, kernels: Kernels) -> float:
    """Count blanks of an account; the channel's scaled tail, 0 where they are fewer than ten."""
    channel = kernels.CHANNELS.index(_UNSCORED)
    tally[:, channel] += count
    while tally[1, channel] >= _MEMORY:
        tally[:, channel] //= 2
    if tally[0, channel] < MIN_BLANKS:
        return 0.0
    score = float(kernels.tails(tally, null)[channel])
    best[channel] = max(best[channel], score)
    return score


def raised(null: F8, share: float, kernels: Kernels) -> F8:
    """A null that expects at least this share of blanks."""
    channel = kernels.CHANNELS.index(_UNSCORED)
    a, b = null[:2, channel].tolist()
    mean = min(max(share, a / (a + b)), _HIGHEST)
    made = null.copy()
    made[:2, channel] = mean * (a + b), (1.0 - mean) * (a + b)
    return made


class Lately(NamedTuple):
    """What an account sent in an interval: rows, and those that were blanks; the completion of the last of them."""

    account: Account | None  # of one that had blanks
    rows: int
    blank: int
    ts: float


@dataclass(slots=True)
class Waiting:
    """Blanks of one account, until it can be told whose doing they are; ``since``: the place in :class:`Past`."""

    account: Account
    since: int
    blank: int = 0
    ts: float = 0.0


@dataclass(slots=True)
class Past:
    """The last accounts of one model, interval by interval, each with its share of blanks.

    When a service stops to send vectors, or some of its replicas send those of another model, everybody has
    blanks: that is nobody's hiding place. So an account's blanks wait until others have come, are dropped where
    those have blanks too, and are held against no less than the others' share.
    """

    entries: list[tuple[str, float]] = field(default_factory=list)
    dropped: int = 0  # entries before the first of these
    waiting: dict[str, Waiting] = field(default_factory=dict)

    def add(self, accounts: Sequence[tuple[str, Lately]]) -> None:
        """One interval's accounts, in order of their names."""
        since = self.dropped + len(self.entries)
        for name, one in accounts:
            self.entries.append((name, one.blank / max(one.rows, 1)))
            if one.account is not None:
                waiting = self.waiting.setdefault(name, Waiting(one.account, since))
                waiting.account, waiting.ts = one.account, one.ts
                waiting.blank += one.blank
        surplus = max(len(self.entries) - max(_HELD, len(accounts)), 0)
        del self.entries[:surplus]
        self.dropped += surplus

    def decide(self) -> Iterator[tuple[str, Waiting, float]]:
        """Accounts whose blanks are their own doing, and the share that others have."""
        if not self.waiting:
            return
        shares = _by_account(self.entries)
        total, squares = sum(shares.values()), sum(share * share for share in shares.values())
        after = {since: self._after(since) for since in {one.since for one in self.waiting.values()}}
        for name, one in list(self.waiting.items()):
            came, dirty = after[one.since]
            others = len(came) - (name in came)
            if others < _OTHERS:
                continue
            del self.waiting[name]
            if dirty - (name in came) <= _DIRTY * others and one.ts >= one.account.started:
                own, count = shares.get(name, 0.0), len(shares) - (name in shares)
                mean = (total - own) / count
                spread = max((squares - own * own) / count - mean * mean, 0.0)
                yield name, one, mean + 2.0 * math.sqrt(spread / count)

    def _after(self, since: int) -> tuple[set[str], int]:
        """Accounts since a place, and how many of them had a blank."""
        shares = _by_account(self.entries[max(since - self.dropped, 0) :])
        return set(shares), sum(share > 0 for share in shares.values())

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        waiting = [(name, one.since, one.blank, one.ts) for name, one in self.waiting.items()]
        return [self.entries, self.dropped, waiting]

    @classmethod
    def load(cls, dumped: Any, find: Callable[[str], Account | None]) -> Past:
        """Take back what :meth:`dump` gave."""
        entries, dropped, waiting = dumped
        made = cls([(str(name), float(share)) for name, share in entries], int(dropped))
        for name, since, blank, ts in waiting:
            account = find(name)
            if account is not None:
                made.waiting[str(name)] = Waiting(account, int(since), int(blank), float(ts))
        return made


def _by_account(entries: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Each account's mean share."""
    sums: dict[str, list[float]] = {}
    for name, share in entries:
        sums.setdefault(name, []).append(share)
    return {name: sum(shares) / len(shares) for name, shares in sums.items()}


class Blanks:
    """Accounts of an interval, and what those before did, by model.

    Parameters
    ----------
    firsts
        For each reference, the first (the fullest) of its model.
    """

    def __init__(self, firsts: Sequence[int]) -> None:
        self._firsts = firsts
        self._names: list[str] = []  # of accounts that had rows with vectors in this interval,
        self._accounts: list[Account] = []  # and those accounts
        self._blank: dict[str, tuple[Account, int, float]] = {}
        self._past = [Past() for _ in firsts]

    def see(self, name: str, account: Account, rows: int) -> None:
        """An account had rows with vectors."""
        if not account.lately:
            self._names.append(name)
            self._accounts.append(account)
        account.lately += rows

    def note(self, name: str, account: Account, rows: int, ts: float) -> None:
        """An account had blanks."""
        _, before, latest = self._blank.get(name, (account, 0, ts))
        self._blank[name] = (account, before + rows, max(latest, ts))

    def take(self) -> Iterable[tuple[str, Lately]]:
        """The interval's accounts; the next one begins."""
        rows: dict[str, int] = {}
        for name, account in zip(self._names, self._accounts, strict=True):
            number, rest = name.split(":", 1)
            name = f"{self._firsts[int(number)]}:{rest}"  # noqa: PLW2901 - of all views, it is the same one
            rows[name] = rows.get(name, 0) + account.lately
            account.lately = 0
        blank, self._names, self._accounts, self._blank = self._blank, [], [], {}
        taken = []
        for name in rows | blank:
            account_of_blanks, count, ts = blank.get(name, (None, 0, 0.0))
            taken.append((name, Lately(account_of_blanks, rows.get(name, 0) + count, count, ts)))
        return taken

    def own(self, states: Iterable[tuple[str, Lately]]) -> Iterator[tuple[str, Waiting, float]]:
        """After an interval with these accounts, those whose blanks are their own doing, and others' share of them."""
        models: dict[int, list[tuple[str, Lately]]] = {number: [] for number in set(self._firsts)}
        for name, one in states:
            models[int(name.partition(":")[0])].append((name, one))
        for number, accounts in sorted(models.items()):
            self._past[number].add(accounts)
            yield from self._past[number].decide()

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        rows = [(name, one.lately) for name, one in zip(self._names, self._accounts, strict=True)]
        blank = [(name, count, ts) for name, (_, count, ts) in self._blank.items()]
        return {"rows": rows, "blank": blank, "past": [past.dump() for past in self._past]}

    def load(self, dumped: dict[str, Any], find: Callable[[str], Account | None]) -> None:
        """Take back what :meth:`dump` gave; ``find`` gives accounts by name.

        Raises
        ------
        StateError
            It is of another shape.
        """
        held = {str(name): int(rows) for name, rows in dumped["rows"]}
        blank = {str(name): (int(rows), float(ts)) for name, rows, ts in dumped["blank"]}
        past = [Past.load(one, find) for one in dumped["past"]]
        if len(past) != len(self._firsts):
            raise StateError("blanks in a snapshot are of other models")
        self._names, self._accounts, self._past = [], [], past
        self._blank = {}
        for name, rows in held.items():
            if (account := find(name)) is not None:
                self.see(name, account, rows)
        for name, (rows, ts) in blank.items():
            if (account := find(name)) is not None:
                self.note(name, account, rows, ts)
