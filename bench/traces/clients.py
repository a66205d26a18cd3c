"""Ordinary clients of every kind, the odd ones too, and the record of what a client sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .worlds import F4, Rng, World

__all__ = ["DAY", "KINDS", "Sent", "customer", "population", "sessions", "sizes"]

F8 = NDArray[np.float64]
DAY: Final = 86_400.0

# kind -> share of all ordinary clients
KINDS: Final = {
    "iid": 0.40,
    "narrow": 0.14,
    "mix": 0.13,
    "video": 0.09,
    "retry": 0.08,
    "noisy": 0.06,
    "poller": 0.04,
    "batch": 0.04,
    "whatif": 0.02,
}


@dataclass
class Sent:
    """What one account sends: inputs in order of time."""

    client: str
    kind: str
    x: F4
    ts: F8
    network: str
    attack: bool = False
    campaign: int | None = None


def sessions(rng: Rng, n: int, start: float, span: float, gap: float = 6.0) -> F8:
    """Times of ``n`` requests: sessions spread over ``span`` seconds, lognormal gaps within each."""
    count = max(1, int(np.ceil(n / rng.uniform(15, 60))))
    begin = np.sort(rng.uniform(0, 0.95, count))[np.sort(rng.integers(0, count, n))] * span
    within = np.cumsum(gap * rng.lognormal(0, 1, n))
    first = np.r_[True, np.diff(begin) > 0]
    within -= np.maximum.accumulate(np.where(first, within, 0))
    return start + np.sort(np.minimum(begin + within, span * (1 - 1e-6 * rng.random(n))))


def sizes(rng: Rng, n: int) -> NDArray[np.int64]:
    """Requests a client: lognormal, 25 to 2,000, the median about 60."""
    return np.clip(60 * rng.lognormal(0, 0.9, n), 25, 2_000).astype(np.int64)


def _repeat(x: F4, times: NDArray[np.int64], n: int) -> F4:
    return np.repeat(x, times, axis=0)[:n]


def video(world: World, rng: Rng, n: int) -> F4:
    """Frames: each scene drifts, and has grain."""
    length = rng.integers(8, 40, n // 8 + 1)
    scenes = _repeat(world.ordinary(rng, len(length)), length, n)
    age = np.concatenate([np.arange(one) for one in length])[:n, None]
    drift = _repeat(rng.normal(0, 0.004, (len(length), scenes.shape[1])).astype(np.float32), length, n)
    return world.clip(scenes + drift * age + rng.normal(0, 0.01, scenes.shape).astype(np.float32))


def retry(world: World, rng: Rng, n: int) -> F4:
    """A third of the requests comes twice or more, to the byte."""
    times = np.where(rng.random(n) < 0.3, rng.integers(2, 5, n), 1)
    return _repeat(world.ordinary(rng, n), times, n)


def noisy(world: World, rng: Rng, n: int) -> F4:
    """A bad sensor."""
    x = world.ordinary(rng, n)
    return world.clip(x + rng.normal(0, rng.uniform(0.05, 0.15), x.shape).astype(np.float32))


def poller(world: World, rng: Rng, n: int) -> F4:
    """Health checks: one to three inputs, again and again; a few real requests between."""
    kept = world.ordinary(rng, int(rng.integers(1, 4)))
    x = kept[rng.integers(0, len(kept), n)]
    real = rng.random(n) < 0.05
    x[real] = world.ordinary(rng, int(real.sum()))
    return x


def batch(world: World, rng: Rng, n: int) -> F4:
    """A file of rows, scored again every night with a tenth of it new."""
    held = world.ordinary(rng, max(10, n // 3))
    nights = []
    for _ in range(n // len(held) + 1):
        fresh = rng.random(len(held)) < 0.1
        held = np.where(fresh[:, None], world.ordinary(rng, len(held)), held)
        nights.append(held)
    return np.concatenate(nights)[:n]


def whatif(world: World, rng: Rng, n: int) -> F4:
    """One case varied a little at a time: an analyst, or test-time augmentation."""
    length = rng.integers(5, 20, n // 5 + 1)
    cases, other = (_repeat(world.ordinary(rng, len(length)), length, n) for _ in range(2))
    few = rng.random(cases.shape) < 2 / cases.shape[1]
    return world.clip(np.where(few, other, cases))


def _of_few_classes(world: World, rng: Rng, n: int) -> F4:
    weights = np.full(world.classes, 0.02, np.float32)
    weights[rng.choice(world.classes, int(rng.integers(1, 4)), replace=False)] = 1.0
    return world.ordinary(rng, n, weights)


def mix(world: World, rng: Rng, n: int) -> F4:
    """Another mix of classes in each third."""
    parts = np.diff(np.r_[0, np.sort(rng.integers(0, n + 1, 2)), n])
    return np.concatenate(
        [world.ordinary(rng, int(part), rng.dirichlet(np.ones(world.classes)).astype(np.float32)) for part in parts]
    )


_MAKE: Final[dict[str, Callable[[World, Rng, int], F4]]] = {
    "iid": lambda world, rng, n: world.ordinary(rng, n),
    "narrow": _of_few_classes,
    "mix": mix,
    "video": video,
    "retry": retry,
    "noisy": noisy,
    "poller": poller,
    "batch": batch,
    "whatif": whatif,
}


def _times(kind: str, rng: Rng, n: int, start: float, span: float) -> F8:
    if kind == "poller":
        period = min(60.0, span / n)
        return start + rng.uniform(0, span - period * n + 1e-3) + period * np.arange(n)
    gap = {"video": 0.2, "batch": 0.05, "retry": 2.0}.get(kind, 6.0)
    return sessions(rng, n, start, span, gap)


def customer(world: World, rng: Rng, name: str, n: int, *, start: float, span: float, kind: str | None = None) -> Sent:
    """One ordinary client of a drawn kind, alone in its network or in one of a few offices."""
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    return Sent(name, kind, _MAKE[kind](world, rng, n), _times(kind, rng, n, start, span), network(rng))


def network(rng: Rng, office: float = 0.15) -> str:
    """An address; some clients share the /24 of a large office or carrier."""
    if rng.random() < office:
        return f"192.0.2.{rng.integers(1, 255)}" if rng.random() < 0.5 else f"198.51.100.{rng.integers(1, 255)}"
    return ".".join(str(part) for part in rng.integers(1, 224, 4))


def population(world: World, rng: Rng, prefix: str, count: int, *, start: float, span: float) -> list[Sent]:
    """Ordinary clients; one in 300 is large."""
    made = [
        customer(world, rng, f"{prefix}{i:04d}", int(n), start=start, span=span)
        for i, n in enumerate(sizes(rng, count))
    ]
    for i in range(count // 300):
        made[i] = customer(world, rng, f"{prefix}{i:04d}", 4_000, start=start, span=span, kind="iid")
        made[i].kind = "large"
    return made
