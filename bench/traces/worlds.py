"""What a victim's world is: inputs that occur, inputs that thieves use instead, and the model that answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .network import Network

__all__ = ["F4", "I8", "Answers", "Images", "World", "draw_classes"]

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Answers:
    """What the server records of a query: one row each."""

    features: F4
    input_features: F4 | None
    predicted: I8
    scores: F4  # top three


class World(ABC):
    """Inputs are float32 (n, width) within [low, high]; everything is drawn from the generator given."""

    model: str
    classes: int
    low: F4 | float
    high: F4 | float
    network: Network
    centre: F4 | None = None  # of the inputs, and 32 axes: what a gateway's projection would use
    axes: F4 | None = None

    def answer(self, x: F4) -> Answers:
        """The model's answer to each row."""
        features, odds = self.network.answer(x)
        top = np.sort(odds, axis=1)[:, ::-1][:, :3]
        seen = None if self.axes is None or self.centre is None else (x - self.centre) @ self.axes
        return Answers(features, seen, self.network.classes[odds.argmax(axis=1)], top)

    def label(self, x: F4) -> I8:
        """All that a thief of labels sees."""
        return self.network.label(x)

    def clip(self, x: F4) -> F4:
        """The nearest valid inputs."""
        return np.clip(x, self.low, self.high).astype(np.float32)

    def project(self, x: F4, width: int = 32) -> None:
        """Fix the gateway's projection: principal axes of ordinary inputs."""
        self.centre = x.mean(axis=0)
        _, _, axes = np.linalg.svd(x[:4_000] - self.centre, full_matrices=False)
        self.axes = np.ascontiguousarray(axes[:width].T)

    @abstractmethod
    def ordinary(self, rng: Rng, n: int, weights: F4 | None = None, season: float = 0.0) -> F4:
        """Inputs as customers send them; ``weights`` by class; ``season`` 0..1 moves them all."""

    @abstractmethod
    def own(self, rng: Rng, n: int) -> F4:
        """Inputs of the same distribution that a thief holds: no customer's."""

    @abstractmethod
    def foreign(self, rng: Rng, n: int) -> F4:
        """Natural inputs of another world."""

    @abstractmethod
    def near(self, rng: Rng, n: int) -> F4:
        """Natural inputs of a neighbouring world."""

    @abstractmethod
    def noise(self, rng: Rng, n: int) -> F4:
        """Inputs that mean nothing."""

    @abstractmethod
    def blobs(self, rng: Rng, n: int) -> F4:
        """Smooth inputs that mean nothing."""

    @abstractmethod
    def warp(self, rng: Rng, x: F4) -> F4:
        """The same inputs to an eye, other ones to a comparison: query blinding."""

    @abstractmethod
    def splice(self, rng: Rng, x: F4, other: F4) -> F4:
        """A piece of ``other`` in each row of ``x``."""


class Images(World):
    """Square grey images, 0..1."""

    low, high = 0.0, 1.0
    side: int

    def noise(self, rng: Rng, n: int) -> F4:
        return rng.random((n, self.side**2), dtype=np.float32)

    def foreign(self, rng: Rng, n: int) -> F4:
        """Textures with the 1/f spectrum of photographs."""
        waves = np.fft.fftfreq(self.side)
        slope = 1 / np.maximum(np.hypot(waves[:, None], waves[None, :]), 0.5 / self.side)
        spectrum = np.fft.fft2(rng.normal(size=(n, self.side, self.side))) * slope
        texture = np.fft.ifft2(spectrum).real.reshape(n, -1)
        texture -= texture.min(axis=1, keepdims=True)
        texture /= texture.max(axis=1, keepdims=True)
        return (texture ** rng.uniform(0.7, 2.5, (n, 1))).astype(np.float32)

    def blobs(self, rng: Rng, n: int) -> F4:
        grid = np.arange(self.side)
        total = np.zeros((n, self.side, self.side))
        for _ in range(4):
            across, down = rng.uniform(0, self.side, (2, n, 1, 1))
            spread = rng.uniform(1.0, self.side / 5, (n, 1, 1))
            total += np.exp(
                -((grid[None, None, :] - across) ** 2 + (grid[None, :, None] - down) ** 2) / (2 * spread**2)
            )
        return np.clip(total.reshape(n, -1), 0, 1).astype(np.float32)

    def shift(self, rng: Rng, x: F4, reach: int = 1) -> F4:
        """Each image moved by up to ``reach`` pixels."""
        images = x.reshape(-1, self.side, self.side)
        padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)))
        down, across = rng.integers(0, 2 * reach + 1, (2, len(images)))
        rows = np.arange(self.side)
        moved = padded[
            np.arange(len(images))[:, None, None], (down[:, None] + rows)[:, :, None], (across[:, None] + rows)[:, None]
        ]
        return moved.reshape(x.shape)

    def warp(self, rng: Rng, x: F4) -> F4:
        light = rng.uniform(0.8, 1.0, (len(x), 1)).astype(np.float32)
        return self.clip(self.shift(rng, x, 2) * light + rng.normal(0, 0.06, x.shape).astype(np.float32))

    def splice(self, rng: Rng, x: F4, other: F4) -> F4:
        share = np.sqrt(1 - rng.random(len(x)))
        height = np.maximum(1, (self.side * share).astype(int))
        top, left = (rng.random((2, len(x))) * (self.side - height + 1)).astype(int)
        rows = np.arange(self.side)
        down = (rows >= top[:, None]) & (rows < (top + height)[:, None])
        across = (rows >= left[:, None]) & (rows < (left + height)[:, None])
        inside = (down[:, :, None] & across[:, None, :]).reshape(len(x), -1)
        return np.where(inside, other, x)


def draw_classes(rng: Rng, n: int, classes: int, weights: F4 | None) -> I8:
    """Class numbers, int64[n]."""
    if weights is None:
        return rng.integers(0, classes, n)
    return rng.choice(classes, n, p=np.asarray(weights, float) / np.sum(weights, dtype=float))
