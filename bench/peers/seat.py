"""SEAT-like: Zhang, Chen, Wagner, "SEAT: similarity encoder by adversarial training", AISec 2021.

Its encoder is trained on images; here the records' own vector stands for it.
"""

from __future__ import annotations

import numpy as np

from .base import F4, I8, Account, Peer, Query, Window

__all__ = ["Seat"]

KEPT = 2_000
PAIRS = 1e-4  # share of an ordinary sample's pairs that are "similar"


class Seat(Peer):
    """How many pairs of an account's queries are alike; the paper cancels an account that has too many."""

    name = "SEAT-like"
    spaces = ("features",)

    def __init__(self, x: F4, labels: I8) -> None:
        super().__init__(x, labels)
        self._scale = 1 / np.maximum(x.std(axis=0), 1e-6)
        rng = np.random.default_rng(0)
        first, second = rng.integers(0, len(x), (2, 200_000))
        apart = np.linalg.norm((x[first] - x[second])[first != second] * self._scale, axis=1)
        self._reach = float(np.quantile(apart, PAIRS))

    def account(self) -> Account:
        return _Account(self._scale, self._reach)


class _Account(Account):
    def __init__(self, scale: F4, reach: float) -> None:
        self._scale, self._reach = scale, reach
        self._window = Window(KEPT)
        self._pairs = 0

    def add(self, query: Query) -> float | None:
        x = (query.x * self._scale).astype(np.float32)
        if self._window.count:
            self._pairs += int((self._window.distances(x) < self._reach).sum())
        self._window.push(x)
        return float(self._pairs)

    @property
    def nbytes(self) -> int:
        return self._window.nbytes
