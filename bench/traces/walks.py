"""Attacks that walk: towards a decision boundary, along it, or up a score."""

from __future__ import annotations

import numpy as np

from .oracle import Oracle
from .worlds import F4, Rng

__all__ = ["boundary", "hopskipjump", "nes", "simba", "tramer"]

HALVINGS = 9


def tramer(oracle: Oracle, rng: Rng) -> None:
    """Random inputs; between two of unlike label, the boundary by halving (Tramer 2016)."""
    x = oracle.world.noise(rng, 8)
    labels = oracle.ask(x)
    first = int(rng.integers(len(x)))
    unlike = np.flatnonzero(labels != labels[first])
    if len(unlike):
        _halve(oracle, x[first], x[unlike[0]], int(labels[first]), times=HALVINGS + 4)


def boundary(oracle: Oracle, rng: Rng) -> None:
    """One image's boundary attack (Brendel 2018): steps around it and towards it, judged by label alone."""
    image, current, label = _start(oracle, rng)
    if label < 0:
        return
    around, towards = 0.12, 0.05
    scale = np.sqrt(current.size)
    for _ in range(150):
        distance = float(np.linalg.norm(image - current))
        step = current + around * distance / scale * rng.normal(size=current.shape).astype(np.float32)
        step += towards * (image - step)
        if oracle.ask(step[None])[0] != label:
            current = oracle.world.clip(step)
            towards = min(0.3, towards * 1.1)
        else:
            towards = max(0.005, towards * 0.9)


def hopskipjump(oracle: Oracle, rng: Rng) -> None:
    """One image's HopSkipJump (Chen 2020): halving, a gradient from signs, a step that shrinks until it holds."""
    image, current, label = _start(oracle, rng)
    if label < 0:
        return
    for turn in range(1, 8):
        current = _halve(oracle, current, image, label, times=HALVINGS, leave=True)
        distance = float(np.linalg.norm(image - current))
        directions = rng.normal(size=(int(16 * np.sqrt(turn)), current.size)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        signs = np.where(oracle.ask(current + 0.15 * distance * directions) != label, 1.0, -1.0)
        gradient = ((signs - signs.mean())[:, None] * directions).sum(axis=0)
        gradient /= np.linalg.norm(gradient) + 1e-9
        step = distance / np.sqrt(turn)
        for _ in range(8):
            step /= 2
            moved = oracle.world.clip(current + step * gradient.astype(np.float32))
            if oracle.ask(moved[None])[0] != label:
                current = moved
                break


def nes(oracle: Oracle, rng: Rng) -> None:
    """One image up its loss by antithetic samples (Ilyas 2018)."""
    image = oracle.world.own(rng, 1)[0]
    label = int(oracle.ask(image[None])[0])
    current = image
    for _ in range(12):
        noise = rng.normal(size=(10, image.size)).astype(np.float32)
        probes = np.concatenate([current + 0.05 * noise, current - 0.05 * noise])
        odds = oracle.odds(probes)[:, np.searchsorted(oracle.world.network.classes, label)]
        gradient = ((odds[:10] - odds[10:])[:, None] * noise).sum(axis=0)
        current = oracle.world.clip(current - 0.03 * np.sign(gradient).astype(np.float32))


def simba(oracle: Oracle, rng: Rng) -> None:
    """One image, one coordinate at a time (Guo 2019)."""
    current = oracle.world.own(rng, 1)[0]
    odds = oracle.odds(current[None])[0]
    label = int(odds.argmax())
    for coordinate in rng.permutation(current.size)[:80]:
        for sign in (0.35, -0.35):
            moved = current.copy()
            moved[coordinate] += sign
            answered = oracle.odds(moved[None])[0]
            if answered[label] < odds[label]:
                current, odds = oracle.world.clip(moved), answered
                break


def _start(oracle: Oracle, rng: Rng) -> tuple[F4, F4, int]:
    """An image, an input of another label, and the image's label; -1 where none was found."""
    image = oracle.world.own(rng, 1)[0]
    label = int(oracle.ask(image[None])[0])
    for _ in range(20):
        other = oracle.world.noise(rng, 1) if rng.random() < 0.5 else oracle.world.own(rng, 1)
        if oracle.ask(other)[0] != label:
            return image, other[0], label
    return image, image, -1


def _halve(oracle: Oracle, first: F4, second: F4, label: int, *, times: int, leave: bool = False) -> F4:
    """The boundary between two inputs, by halving; ``leave``: ``second`` bears the label and the answer must not."""
    for _ in range(times):
        middle = (first + second) / 2
        if (oracle.ask(middle[None])[0] == label) != leave:
            first = middle
        else:
            second = middle
    return first
