"""Blacklight-like: Li et al., "Blacklight", USENIX Security 2022.

Its fingerprints are of pixels; these are of the numbers that the records carry.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from .base import F4, I8, Account, Peer, Query

__all__ = ["Blacklight"]

WIDTH = 8  # coordinates a hash
STEPS = 2.0  # quantisation steps a standard deviation
SHARE = 0.5  # of a query's hashes that another must share
KEPT = 20_000  # queries in the index, of all accounts


class Blacklight(Peer):
    """Hashes over runs of quantised coordinates, held against those of all earlier queries of every account.

    The score is how many of an account's queries matched another.
    """

    name = "Blacklight-like"
    spaces = ("input_features",)
    shared = True

    def __init__(self, x: F4, labels: I8) -> None:
        super().__init__(x, labels)
        self._scale = STEPS / np.maximum(x.std(axis=0), 1e-6)
        self._weights = np.random.default_rng(0).integers(1, 2**62, WIDTH)
        self._last: dict[int, int] = {}  # hash -> the last query that had it
        self._order: deque[I8] = deque()
        self._number = 0

    def account(self) -> Account:
        return _Account(self)

    def matches(self, x: F4) -> bool:
        """Whether an earlier query shares half of this one's hashes; keeps it."""
        steps = np.floor(x * self._scale).astype(np.int64)
        runs = np.lib.stride_tricks.sliding_window_view(steps, min(WIDTH, len(steps)))
        with np.errstate(over="ignore"):
            hashes = runs @ self._weights[: runs.shape[1]] + np.arange(len(runs)) * 0x9E3779B9
        last = self._last
        owners = [last.get(one, -1) for one in hashes.tolist()]
        last.update(dict.fromkeys(hashes.tolist(), self._number))
        self._order.append(hashes)
        self._number += 1
        if len(self._order) > KEPT:
            self._forget()
        common = max((owners.count(one) for one in set(owners) if one >= 0), default=0)
        return common >= SHARE * len(hashes)

    def _forget(self) -> None:
        oldest = self._number - len(self._order)
        for one in self._order.popleft().tolist():
            if self._last.get(one) == oldest:
                del self._last[one]


class _Account(Account):
    def __init__(self, peer: Blacklight) -> None:
        self._peer = peer
        self._matched = 0
        self._hashes = 0

    def add(self, query: Query) -> float | None:
        self._matched += self._peer.matches(query.x)
        self._hashes += len(query.x) - WIDTH + 1
        return float(self._matched)

    @property
    def nbytes(self) -> int:
        return 8 * self._hashes  # its part of the index
