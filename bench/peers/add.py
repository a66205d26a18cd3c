"""ADD-like: account-aware distribution discrepancy ("D-ADD", AAAI 2025), training-free.

An account's queries, class by class, as a normal distribution against that of ordinary inputs; covariances are taken
as diagonal here.
"""

from __future__ import annotations

import numpy as np

from .base import F4, I8, Account, Peer, Query, Window

__all__ = ["Add"]

KEPT = 100
ENOUGH = 30
EVERY = 10


class Add(Peer):
    """The mean over classes of the squared Frechet distance, of the account's last 100 queries."""

    name = "ADD-like"
    spaces = ("features",)

    def __init__(self, x: F4, labels: I8) -> None:
        super().__init__(x, labels)
        self.scale = 1 / np.maximum(x.std(axis=0), 1e-6)
        y = x * self.scale
        self.classes = {
            int(label): (y[labels == label].mean(axis=0), y[labels == label].std(axis=0))
            for label in np.unique(labels)
            if (labels == label).sum() >= 10
        }
        self.other = (y.mean(axis=0), y.std(axis=0))

    def account(self) -> Account:
        return _Account(self)


class _Account(Account):
    def __init__(self, peer: Add) -> None:
        self._peer = peer
        self._window = Window(KEPT)
        self._labels = np.zeros(KEPT, np.int64)

    def add(self, query: Query) -> float | None:
        self._labels[self._window.count % KEPT] = query.label
        self._window.push((query.x * self._peer.scale).astype(np.float32))
        if self._window.count < ENOUGH or self._window.count % EVERY:
            return None
        rows = self._window.rows
        labels = self._labels[: len(rows)]
        total = 0.0
        for label in np.unique(labels).tolist():
            held = rows[labels == label]
            mean, spread = self._peer.classes.get(label, self._peer.other)
            total += len(held) * float(((held.mean(axis=0) - mean) ** 2 + (held.std(axis=0) - spread) ** 2).sum())
        return total / len(rows)

    @property
    def nbytes(self) -> int:
        return self._window.nbytes + self._labels.nbytes
