"""PRADA: Juuti, Szyller, Marchal, Asokan, "PRADA: protecting against DNN model stealing attacks", EuroS&P 2019."""

from __future__ import annotations

import numpy as np
from scipy.stats import shapiro

from .base import Account, Peer, Query, Window

__all__ = ["Prada"]

EVERY = 10  # queries between tests
ENOUGH = 100  # distances before the first test
KEPT = 2_000


class Prada(Peer):
    """Distances to an account's own earlier queries of a class are normal where a person asks, not where a thief does.

    The score is 1 - W of Shapiro and Wilk's test: the paper alarms where W falls below a constant.
    """

    name = "PRADA"

    def account(self) -> Account:
        return _Account()


class _Account(Account):
    def __init__(self) -> None:
        self._grown: dict[int, Window] = {}
        self._threshold: dict[int, float] = {}
        self._growths: dict[int, list[float]] = {}
        self._distances: list[float] = []
        self._queries = 0

    def add(self, query: Query) -> float | None:
        self._queries += 1
        grown = self._grown.setdefault(query.label, Window(KEPT))
        if grown.count:
            nearest = float(grown.distances(query.x).min())
            self._distances.append(nearest)
            if nearest <= self._threshold.get(query.label, 0.0):
                return self._test()
            growths = self._growths.setdefault(query.label, [])
            growths.append(nearest)
            if self._queries % EVERY == 0:
                bound = float(np.mean(growths) - np.std(growths))
                self._threshold[query.label] = max(self._threshold.get(query.label, 0.0), bound)
        grown.push(query.x)
        return self._test()

    def _test(self) -> float | None:
        if len(self._distances) <= ENOUGH or self._queries % EVERY:
            return None
        distances = np.asarray(self._distances[-KEPT:])
        distances = distances[np.abs(distances - distances.mean()) <= 3 * distances.std() + 1e-12]
        if np.ptp(distances) < 1e-9:
            return 1.0
        return 1.0 - float(shapiro(distances).statistic)

    @property
    def nbytes(self) -> int:
        return sum(window.nbytes for window in self._grown.values()) + 8 * min(KEPT, len(self._distances))
