"""Another image victim, drawn by formula: sixteen "faces", each a few waves, seen in changing light and pose."""

from __future__ import annotations

import numpy as np

from .network import Network
from .worlds import F4, I8, Images, Rng, draw_classes

__all__ = ["Shapes"]

POSES = 10


class Shapes(Images):
    """20 x 20 pixels, sixteen classes; nobody tunes on it."""

    model = "badges"
    classes = 16
    side = 20

    def __init__(self, rng: Rng) -> None:
        self._faces = self._waves(rng, self.classes, 6)
        self._poses = self._waves(rng, POSES, 3) * 0.45
        self._strangers = self._waves(rng, 40, 6)
        self._style = self._waves(rng, 1, 4)[0]
        y = rng.integers(0, self.classes, 6_000)
        self.network = Network.train(self._draw(rng, self._faces[y]), y, (96, 32), int(rng.integers(2**31)), 12)
        self.project(self.ordinary(rng, 4_000))

    def _waves(self, rng: Rng, n: int, parts: int) -> F4:
        """Sums of ``parts`` windowed waves each, (n, 400)."""
        grid = np.linspace(-1, 1, self.side)
        total = np.zeros((n, self.side, self.side))
        for _ in range(parts):
            across, down, angle, pitch, phase = rng.uniform(
                [-0.6, -0.6, 0, 2, 0], [0.6, 0.6, np.pi, 7, 2 * np.pi], (n, 5)
            ).T[:, :, None, None]
            x, y = grid[None, None, :] - across, grid[None, :, None] - down
            wave = np.cos(pitch * (x * np.cos(angle) + y * np.sin(angle)) + phase)
            total += wave * np.exp(-(x**2 + y**2) / 0.3)
        return total.reshape(n, -1).astype(np.float32)

    def _draw(self, rng: Rng, faces: F4, season: float = 0.0) -> F4:
        poses = rng.normal(0, 0.8, (len(faces), POSES)).astype(np.float32) @ self._poses
        light = rng.uniform(0.8, 1.3, (len(faces), 1)).astype(np.float32)
        drawn = 1 / (1 + np.exp(-1.6 * light * (faces + poses + season * self._style)))
        return self.clip(drawn + rng.normal(0, 0.03, drawn.shape).astype(np.float32))

    def ordinary(self, rng: Rng, n: int, weights: F4 | None = None, season: float = 0.0) -> F4:
        wanted: I8 = draw_classes(rng, n, self.classes, weights)
        return self._draw(rng, self._faces[wanted], season)

    def own(self, rng: Rng, n: int) -> F4:
        return self.ordinary(rng, n)

    def near(self, rng: Rng, n: int) -> F4:
        return self._draw(rng, self._strangers[rng.integers(len(self._strangers), size=n)])
