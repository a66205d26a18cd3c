"""The thieves by name. Each gives what one of them sends, in order: float32[n, width]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from . import walks
from .network import Network
from .oracle import Oracle, run
from .worlds import F4, I8, Rng, World

__all__ = ["ATTACKS", "attack"]


def jbda(oracle: Oracle, rng: Rng) -> None:
    """Own samples grown along a substitute's gradient (Papernot 2017)."""
    world = oracle.world
    x = world.own(rng, 60)
    labels = oracle.ask(x)
    while True:
        slopes = _substitute(x, labels, rng).slope(x)
        children = world.clip(x + rng.choice([-1, 1]) * 0.12 * np.sign(slopes))[rng.permutation(len(x))[:120]]
        labels = np.concatenate([labels, oracle.ask(children)])
        x = np.concatenate([x, children])


def activethief(oracle: Oracle, rng: Rng) -> None:
    """Foreign samples, those next of which a substitute is least sure (Pal 2020)."""
    world = oracle.world
    pool = np.concatenate([world.foreign(rng, 800), world.near(rng, 400)])
    x = pool[rng.permutation(len(pool))[:60]]
    labels = oracle.ask(x)
    while True:
        odds = _substitute(x, labels, rng).answer(pool)[1]
        unsure = np.argsort((odds * np.log(odds + 1e-9)).sum(axis=1))[:80]
        labels = np.concatenate([labels, oracle.ask(pool[unsure])])
        x = np.concatenate([x, pool[unsure]])
        pool = np.concatenate([np.delete(pool, unsure, axis=0), world.foreign(rng, 60), world.near(rng, 20)])


def dfme(oracle: Oracle, rng: Rng) -> None:
    """A generator's samples, each with a neighbour for forward differences (Truong 2021)."""
    world = oracle.world
    width = len(world.own(rng, 1)[0])
    inner, outer = rng.normal(0, 1, (16, 48)), rng.normal(0, 0.5, (48, width))
    middle, half = (np.asarray(world.high) + world.low) / 2, (np.asarray(world.high) - world.low) / 2
    while True:
        x = middle + half * np.tanh(np.tanh(rng.normal(0, 1, (10, 16)) @ inner) @ outer)
        step = rng.normal(0, 1, x.shape)
        step *= 0.02 * np.sqrt(width) / np.linalg.norm(step, axis=1, keepdims=True)
        oracle.ask(np.stack([x, x + step], axis=1).reshape(-1, width).astype(np.float32))
        outer += rng.normal(0, 0.05, outer.shape)


def copycat(world: World, rng: Rng, n: int) -> F4:
    """Natural inputs of several worlds (Correia-Silva 2018)."""
    x = np.concatenate([world.foreign(rng, n // 2), world.near(rng, n // 4), world.own(rng, n - n // 2 - n // 4)])
    return x[rng.permutation(n)]


def mixup(world: World, rng: Rng, n: int) -> F4:
    """Weighted means of two own samples."""
    share = rng.beta(1.0, 1.0, (n, 1)).astype(np.float32)
    return world.clip(share * world.own(rng, n) + (1 - share) * world.own(rng, n))


def cutmix(world: World, rng: Rng, n: int) -> F4:
    """A piece of one own sample in another."""
    return world.splice(rng, world.own(rng, n), world.own(rng, n))


def noisy(world: World, rng: Rng, n: int) -> F4:
    """Own samples under heavy noise."""
    x = world.own(rng, n)
    return world.clip(x + rng.normal(0, 0.25, x.shape).astype(np.float32))


def _substitute(x: F4, labels: I8, rng: Rng) -> Network:
    """The thief's copy so far. Answers of one class alone teach nothing: one label is then made up."""
    if len(np.unique(labels)) == 1:
        labels = labels.copy()
        labels[0] += 1
    return Network.train(x, labels, (32,), int(rng.integers(2**31)), 12)


def _asked(ask: Callable[[Oracle, Rng], None], blind: bool = False) -> Callable[[World, Rng, int], F4]:
    return partial(_run, ask, blind)


def _run(ask: Callable[[Oracle, Rng], None], blind: bool, world: World, rng: Rng, n: int) -> F4:
    return run(ask, world, rng, n, blind)


# name -> what it sends; the last five are not in the research file's first table
ATTACKS: Final[dict[str, Callable[[World, Rng, int], F4]]] = {
    "activethief": _asked(activethief),
    "boundary": _asked(walks.boundary),
    "copycat": copycat,
    "dfme": _asked(dfme),
    "hopskipjump": _asked(walks.hopskipjump),
    "hsj_blind": _asked(walks.hopskipjump, blind=True),
    "indist": lambda world, rng, n: world.own(rng, n),
    "jbda": _asked(jbda),
    "knockoff": lambda world, rng, n: world.foreign(rng, n),
    "neardomain": lambda world, rng, n: world.near(rng, n),
    "nes": _asked(walks.nes),
    "tramer": _asked(walks.tramer),
    "simba": _asked(walks.simba),
    "mixup": mixup,
    "cutmix": cutmix,
    "noisy": noisy,
    "blobs": lambda world, rng, n: world.blobs(rng, n),
}


def attack(name: str, world: World, rng: Rng, n: int) -> F4:
    """What one thief sends."""
    return ATTACKS[name](world, rng, n)
