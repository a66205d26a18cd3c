"""The tabular victim: credit-like applications, numbers with heavy tails beside choices in one-hot columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .network import Network
from .worlds import F4, I8, Answers, Rng, World, draw_classes

__all__ = ["Tabular"]

F8 = NDArray[np.float64]

NUMBERS, CHOICES = 14, (5, 4, 3)  # 26 columns
SORTS = 6  # of applicant


class Tabular(World):
    """26-64-24-4; ``features`` are the standardised inputs and nothing else is recorded, as in many services."""

    model = "credit"
    classes = 4

    def __init__(self, rng: Rng) -> None:
        self._mix = rng.normal(0, 0.8, (5, NUMBERS))
        self._sorts = rng.normal(0, 1.2, (SORTS, 5))
        self._choice = [rng.dirichlet(np.ones(size), SORTS) for size in CHOICES]
        self._heavy = rng.random(NUMBERS) < 0.4
        self._style = rng.normal(0, 0.5, NUMBERS)
        self._shift, self._scale = np.zeros(NUMBERS), np.ones(NUMBERS)
        numbers = self._raw(rng, rng.integers(0, SORTS, 20_000), 0.0)
        self._shift, self._scale = numbers.mean(axis=0), numbers.std(axis=0)
        width = NUMBERS + sum(CHOICES)
        self.low = np.r_[np.quantile(self._standard(numbers), 0.001, axis=0), np.zeros(sum(CHOICES))].astype(np.float32)
        self.high = np.r_[np.quantile(self._standard(numbers), 0.999, axis=0), np.ones(sum(CHOICES))].astype(np.float32)
        x = self._make(rng, rng.integers(0, SORTS, 8_000), 0.0)
        truth = Network.train(x, rng.integers(0, 4, 8_000), (16,), 0, 1)
        truth.weights = [rng.normal(0, 1.6 / np.sqrt(w.shape[0]), w.shape).astype(np.float32) for w in truth.weights]
        y = truth.answer(x)[1] + rng.gumbel(0, 0.05, (len(x), 4))
        y = (y - np.quantile(y, 0.6, axis=0)).argmax(axis=1)  # no class is rare
        self.network = Network.train(x, y, (64, 24), int(rng.integers(2**31)), 25)
        assert x.shape[1] == width

    def answer(self, x: F4) -> Answers:
        answers = super().answer(x)
        return Answers(x, None, answers.predicted, answers.scores)

    def clip(self, x: F4) -> F4:
        """Within the bounds, and each choice made: a service refuses any other row."""
        valid = super().clip(x)
        start = NUMBERS
        for size in CHOICES:
            choice = valid[..., start : start + size]
            choice[...] = np.eye(size, dtype=np.float32)[choice.argmax(axis=-1)]
            start += size
        return valid

    def _raw(self, rng: Rng, sorts: I8, season: float) -> F8:
        latent = self._sorts[sorts] + rng.normal(0, 0.7, (len(sorts), 5))
        numbers = latent @ self._mix + rng.normal(0, 0.5, (len(sorts), NUMBERS)) + season * self._style
        return np.where(self._heavy, np.exp(0.6 * numbers), numbers)

    def _standard(self, numbers: F8) -> F8:
        return (numbers - self._shift) / self._scale

    def _make(self, rng: Rng, sorts: I8, season: float) -> F4:
        columns = [self._standard(self._raw(rng, sorts, season))]
        for table, size in zip(self._choice, CHOICES, strict=True):
            drawn = (rng.random((len(sorts), 1)) > np.cumsum(table[sorts], axis=1)[:, :-1]).sum(axis=1)
            columns.append(np.eye(size)[drawn])
        return self.clip(np.hstack(columns))

    def ordinary(self, rng: Rng, n: int, weights: F4 | None = None, season: float = 0.0) -> F4:
        sorts = draw_classes(rng, n, SORTS, None if weights is None else np.resize(weights, SORTS) + 1e-3)
        return self._make(rng, sorts, season)

    def own(self, rng: Rng, n: int) -> F4:
        return self.ordinary(rng, n)

    def foreign(self, rng: Rng, n: int) -> F4:
        """Every column as it occurs, but independent of the others."""
        x = self.ordinary(rng, n)
        numbers = rng.permuted(x[:, :NUMBERS], axis=0)
        return np.hstack([numbers, self._any_choice(rng, n)]).astype(np.float32)

    def near(self, rng: Rng, n: int) -> F4:
        """Another country's applicants."""
        return self._make(rng, rng.integers(0, SORTS, n), 2.5)

    def noise(self, rng: Rng, n: int) -> F4:
        x = rng.uniform(self.low, self.high, (n, len(self.low)))
        x[:, NUMBERS:] = self._any_choice(rng, n)
        return x.astype(np.float32)

    def blobs(self, rng: Rng, n: int) -> F4:
        middle = rng.uniform(self.low, self.high, (1 + n // 40, len(self.low)))
        x = middle[rng.integers(0, len(middle), n)] + rng.normal(0, 0.5, (n, len(self.low)))
        x[:, NUMBERS:] = self._any_choice(rng, n)
        return self.clip(x)

    def _any_choice(self, rng: Rng, n: int) -> F4:
        return np.hstack([np.eye(size)[rng.integers(0, size, n)] for size in CHOICES])

    def warp(self, rng: Rng, x: F4) -> F4:
        warped = x.copy()
        warped[:, :NUMBERS] += rng.normal(0, 0.15, (len(x), NUMBERS)).astype(np.float32)
        return self.clip(warped)

    def splice(self, rng: Rng, x: F4, other: F4) -> F4:
        """Some columns of the other row."""
        return np.where(rng.random(x.shape) < rng.random((len(x), 1)), other, x)
