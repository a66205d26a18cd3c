"""Stateful detection: Chen, Carlini, Wagner, "Stateful detection of black-box adversarial attacks", SPAI 2020."""

from __future__ import annotations

import numpy as np

from .base import Account, Peer, Query, Window

__all__ = ["StatefulKnn"]

NEIGHBOURS = 50
KEPT = 1_000


class StatefulKnn(Peer):
    """An account whose new query lies close to its 50 nearest earlier ones; the score is minus their mean distance."""

    name = "Chen kNN"

    def account(self) -> Account:
        return _Account()


class _Account(Account):
    def __init__(self) -> None:
        self._window = Window(KEPT)

    def add(self, query: Query) -> float | None:
        score = None
        if self._window.count >= NEIGHBOURS:
            distances = self._window.distances(query.x)
            score = -float(np.partition(distances, NEIGHBOURS - 1)[:NEIGHBOURS].mean())
        self._window.push(query.x)
        return score

    @property
    def nbytes(self) -> int:
        return self._window.nbytes
