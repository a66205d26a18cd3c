"""Who meets whom: the scenarios of a part, each a list of accounts and what ordinary traffic it is to be mixed with."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from .attacks import ATTACKS, attack
from .clients import DAY, Sent, customer, network, population, sessions, sizes
from .worlds import F4, Rng, World

__all__ = ["FIT", "Scenario", "scenarios"]

ORIGIN: Final = 1_780_000_000.0
LATER: Final = ORIGIN + 8 * DAY  # nothing of the baseline's epoch is left when the test begins
SPAN: Final = 2 * DAY
FIT: Final = ("reference", "benign_calib", "benign_null")
FEW, SOME, MANY = ("benign_a",), ("benign_a", "benign_b"), ("benign_a", "benign_b", "benign_town")  # 50, 200, 950
LONG: Final = frozenset({"indist", "mixup", "cutmix", "jbda"})  # these are given 1,000 queries, others 600
SPLIT: Final = ("copycat", "dfme", "hopskipjump", "indist", "jbda", "knockoff", "mixup", "neardomain")
SINGLE: Final = 20


@dataclass(frozen=True)
class Scenario:
    """One file. ``among``: the ordinary files that run beside it; ``share`` of active accounts that is the attack."""

    name: str
    family: str
    attack: str
    among: tuple[str, ...]
    make: Callable[[World, Rng], list[Sent]]
    shares: tuple[tuple[str, ...], ...] = ()  # further mixtures, for campaigns


def _single(name: str, world: World, rng: Rng) -> list[Sent]:
    n = 1_000 if name in LONG else 600
    made = []
    for i in range(SINGLE):
        x = attack(name, world, rng, n)
        span = n * rng.uniform(3, 30)
        ts = sessions(rng, n, LATER + rng.uniform(0, SPAN - span), span, 1.0)
        made.append(Sent(f"{name}{i:02d}", name, x, ts, network(rng), attack=True))
    return made


def _cover(world: World, rng: Rng, x: F4, n: int) -> F4:
    """The attack's inputs among ``n - len(x)`` ordinary ones of one client's class mix, in order."""
    mixed = world.ordinary(rng, n, rng.dirichlet(np.ones(world.classes)).astype(np.float32))
    mixed[np.sort(rng.choice(n, len(x), replace=False))] = x
    return mixed


def _slow(name: str, world: World, rng: Rng) -> list[Sent]:
    """A tenth of one account's queries is attack, and it sends one in ten minutes."""
    n = 800
    made = []
    for i in range(SINGLE):
        x = _cover(world, rng, attack(name, world, rng, n // 10), n)
        ts = LATER + rng.uniform(0, 600) + 600.0 * np.arange(n) + rng.uniform(0, 300, n)
        made.append(Sent(f"slow-{name}{i:02d}", f"slow_{name}", x, ts, network(rng), attack=True))
    return made


def _adaptive(name: str, world: World, rng: Rng) -> list[Sent]:
    """Half is cover; session times and class mix are a customer's."""
    made = []
    for i, n in enumerate(np.maximum(200, sizes(rng, SINGLE))):
        x = _cover(world, rng, attack(name, world, rng, n // 2), int(n))
        ts = sessions(rng, int(n), LATER, SPAN)
        made.append(Sent(f"adaptive-{name}{i:02d}", f"adaptive_{name}", x, ts, network(rng), attack=True))
    return made


def _split(name: str, style: str, world: World, rng: Rng) -> list[Sent]:
    """One attack dealt out to many accounts: ``sybil`` ones send nothing else, ``hydra`` ones 80 % cover."""
    accounts = 20 if style.endswith("20") else 50
    each, whole = (12, 60) if style.startswith("hydra") else (30, 30)
    x = attack(name, world, rng, accounts * each).reshape(each, accounts, -1)
    made = []
    for i in range(accounts):
        sent = x[:, i] if each == whole else _cover(world, rng, x[:, i], whole)
        ts = sessions(rng, whole, LATER + rng.uniform(0, SPAN / 2), SPAN / 2)
        where = f"203.0.{113 + i % 3}.{rng.integers(1, 255)}" if style == "sybil24" else network(rng)
        made.append(Sent(f"{style}-{name}-{i:03d}", f"{name}_{style}", sent, ts, where, attack=True, campaign=0))
    return made


def _mixed_day(world: World, rng: Rng) -> list[Sent]:
    """Two campaigns and single thieves of nine kinds on one day."""
    made = _split("knockoff", "sybil50", world, rng)[:30]
    hydra = _split("dfme", "hydra50", world, rng)[:40]
    for one in hydra:
        one.campaign = 1
    for name in ("jbda", "tramer", "knockoff", "activethief", "dfme", "boundary", "indist"):
        ts = sessions(rng, 600, LATER + rng.uniform(0, DAY), DAY, 2.0)
        made.append(Sent(f"mixed-{name}", name, attack(name, world, rng, 600), ts, network(rng), attack=True))
    return made + hydra


def _launch(world: World, rng: Rng) -> list[Sent]:
    """50 new customers of a new product begin together, with the tutorial's inputs; nothing here is an attack."""
    made = population(world, rng, "launch-old", 50, start=LATER, span=SPAN)
    tutorial = world.ordinary(rng, 5)
    weights = np.full(world.classes, 0.05, np.float32)
    weights[rng.choice(world.classes, 3, replace=False)] = 1.0
    for i, n in enumerate(sizes(rng, 50)):
        x = world.ordinary(rng, int(n), weights, season=0.4)
        x[:5] = tutorial
        ts = sessions(rng, int(n), LATER + SPAN / 2 + 600 * rng.exponential(), SPAN / 3)
        made.append(Sent(f"launch-new{i:02d}", "launch", x, ts, network(rng)))
    return made


def _season(world: World, rng: Rng) -> list[Sent]:
    """150 customers over four days while what they send moves; nothing here is an attack."""
    made = population(world, rng, "season", 150, start=LATER, span=2 * SPAN)
    for one in made:
        if one.kind in {"iid", "narrow", "mix", "large"}:
            age = (one.ts - LATER) / (2 * SPAN)
            for part in range(4):
                rows = np.flatnonzero((age * 4).astype(int) == part)
                weights = np.roll(np.linspace(1, 3, world.classes), part).astype(np.float32)
                one.x[rows] = world.ordinary(rng, len(rows), weights, season=part / 4)
    return made


def _reference(world: World, rng: Rng) -> list[Sent]:
    made = customer(world, rng, "reference", 3_000, start=ORIGIN, span=SPAN, kind="iid")
    made.kind = "reference"
    return [made]


def _poison(world: World, rng: Rng) -> list[Sent]:
    """Thieves who were there already when the baseline was recorded."""
    names = [name for name in ATTACKS if name not in {"indist", "mixup", "cutmix"}]
    made = []
    for i in range(30):
        name = names[i % len(names)]
        ts = sessions(rng, 300, ORIGIN, SPAN, 2.0)
        made.append(Sent(f"poison{i:02d}", name, attack(name, world, rng, 300), ts, network(rng), attack=True))
    return made


def scenarios() -> Iterator[Scenario]:
    """All of a part, ordinary ones first."""
    yield Scenario("reference", "fit", "", (), _reference)
    for name, count, start in (
        ("benign_calib", 300, ORIGIN),
        ("benign_null", 200, ORIGIN),
        ("benign_a", 50, LATER),
        ("benign_b", 150, LATER),
        ("benign_town", 750, LATER),
    ):
        family = "fit" if name in FIT else "benign"
        make = partial(population, prefix=f"{name}-", count=count, start=start, span=SPAN)
        yield Scenario(name, family, "", (), make)
    yield Scenario("benign_season", "benign", "", (), _season)
    yield Scenario("benign_launch", "benign", "", (), _launch)
    yield Scenario("poison", "poison", "", (), _poison)
    for name in ATTACKS:
        yield Scenario(f"atk_{name}", "single", name, SOME, partial(_single, name))
    for name in ("knockoff", "jbda"):
        yield Scenario(f"slow_{name}", "slow", name, SOME, partial(_slow, name))
    for name in ("knockoff", "dfme", "jbda"):
        yield Scenario(f"adaptive_{name}", "adaptive", name, SOME, partial(_adaptive, name))
    for style in ("sybil50", "hydra50"):
        for name in SPLIT:
            yield Scenario(
                f"{style}_{name}", style, name, SOME, partial(_split, name, style), (FEW, SOME, MANY)
            )  # 50, 20 and 5 % of the accounts
    for style in ("sybil20", "hydra20"):
        for name in ("dfme", "jbda", "knockoff"):
            yield Scenario(f"{style}_{name}", style, name, MANY, partial(_split, name, style))  # 2 %
    for name in ("knockoff", "tramer", "indist"):
        yield Scenario(f"sybil24_{name}", "sybil24", name, SOME, partial(_split, name, "sybil24"))
    yield Scenario("mixed_day", "mixed", "", SOME, _mixed_day)


def generator(seed: int, name: str) -> Rng:
    """Draws of one scenario, whatever else is made."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
