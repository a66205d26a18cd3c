"""Who meets whom on a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from .clients import DAY, network, sessions
from .scenarios import FIT, LATER, ORIGIN, SPAN
from .text_clients import aggregator, chat, population
from .text_corpus import Corpus, Rng
from .text_crowds import HYDRAS, LAUNCHES, SEASONS, hydra, launch, season
from .text_records import Account
from .text_thieves import THIEVES, distil, question
from .text_words import Words

__all__ = ["scenarios"]

Make = Callable[[Corpus, Rng], list[Account]]
FEW, SOME, MANY = ("benign_a",), ("benign_a", "benign_b"), ("benign_a", "benign_b", "benign_town")  # 60, 300, 1,140
SHARES: Final = (FEW, SOME, MANY)  # a campaign of 60 is 50, 17 and 5 % of the active accounts
ACCOUNTS: Final = 60


def _single(name: str, corpus: Corpus, rng: Rng) -> list[Account]:
    send, n, gap = THIEVES[name]
    made = []
    for i in range(20):
        span = max(3_600.0, 3 * n * gap)
        ts = sessions(rng, n, LATER + rng.uniform(0, SPAN - span), span, gap)
        one = Account(f"{name}{i:02d}", name, network(rng), attack=True)
        send(corpus, rng, one, ts.tolist())
        made.append(one)
    return made


def _split(name: str, corpus: Corpus, rng: Rng) -> list[Account]:
    """60 accounts with the work of one, 30 requests each."""
    send, _, gap = THIEVES[name]
    whole = Account("", name, "")
    send(corpus, rng, whole, sessions(rng, 30 * ACCOUNTS, LATER + SPAN / 4, SPAN / 4, gap).tolist())
    made = [
        Account(f"split-{name}{i:02d}", f"{name}_split", network(rng), attack=True, campaign=0) for i in range(ACCOUNTS)
    ]
    for i, record in enumerate(whole.records):
        one = made[i % ACCOUNTS]
        one.records.append(record | {"client": one.client, "network": one.network})
    return made


def _hydra(corpus: Corpus, rng: Rng, pivot: bool = False) -> list[Account]:
    """60 accounts that distil with 80 % of chat as cover; ``pivot``: at noon all turn to a model that is new."""
    made = []
    for i in range(ACCOUNTS):
        one = Account(f"hydra-{i:02d}", "distil_hydra", network(rng), attack=True, campaign=0)
        ts = sessions(rng, 75, LATER + rng.uniform(0, SPAN / 2), SPAN / 2, 30.0)
        theirs = np.zeros(75, bool)
        theirs[rng.choice(75, 15, replace=False)] = True
        chat(corpus, rng, one, ts[~theirs].tolist())
        for at in ts[theirs].tolist():
            one.send(rng, at, question(corpus, rng), 700, max_tokens=2_048, temperature=1.0)
        for record in one.records:
            if pivot and record["ts"] > LATER + SPAN / 2:
                record["model"] = "chat-v2"
        made.append(one)
    return made


def _resellers(corpus: Corpus, rng: Rng) -> list[Account]:
    """Keys with many end users: ten honest ones, and two with one user who distils among the others."""
    made = [
        aggregator(corpus, rng, f"reseller{i}", int(rng.integers(100, 400)), start=LATER, span=SPAN) for i in range(9)
    ]
    made.append(aggregator(corpus, rng, "reseller9", 2_000, start=LATER, span=SPAN))
    for i in range(2):
        one = aggregator(corpus, rng, f"reseller-thief{i}", 400, start=LATER, span=SPAN)
        one.attack, one.kind, one.user = True, "reseller_thief", f"reseller-thief{i}-thief"
        before = len(one.records)
        distil(corpus, rng, one, sessions(rng, 500, LATER, DAY, 10.0).tolist())
        for record in one.records[before:]:
            record["user"] = one.user
        made.append(one)
    return made


def _poison(corpus: Corpus, rng: Rng) -> list[Account]:
    made = []
    for i in range(30):
        name = list(THIEVES)[i % len(THIEVES)]
        send, n, gap = THIEVES[name]
        one = Account(f"poison{i:02d}", name, network(rng), attack=True)
        send(corpus, rng, one, sessions(rng, n // 2, ORIGIN, SPAN, gap).tolist())
        made.append(one)
    return made


def scenarios(words: Words) -> Iterator[tuple[str, dict[str, Any], Make]]:
    """Name, plan and maker of each; crowds ask in ``words``."""

    def plan(
        family: str, attack: str = "", among: tuple[str, ...] = (), shares: tuple[tuple[str, ...], ...] = ()
    ) -> dict[str, Any]:
        return {"family": family, "attack": attack, "with": list(among), "mixtures": [list(one) for one in shares]}

    for name, count, start in (
        ("reference", 20, ORIGIN),
        ("benign_calib", 300, ORIGIN),
        ("benign_null", 200, ORIGIN),
        ("benign_a", 60, LATER),
        ("benign_b", 240, LATER),
        ("benign_town", 840, LATER),
    ):
        yield (
            name,
            plan("fit" if name in FIT else "benign"),
            partial(population, prefix=f"{name}-", count=count, start=start, span=SPAN),
        )
    yield "poison", plan("poison"), _poison
    for name in THIEVES:
        yield f"txt_{name}", plan("single", name, SOME), partial(_single, name)
    for name in ("distil", "bias_sweep", "embed_theft"):
        yield f"split60_{name}", plan("split60", name, SOME), partial(_split, name)
    yield "hydra60_distil", plan("hydra60", "distil", SOME, SHARES), _hydra
    yield "hydra60_pivot", plan("hydra60", "distil", SOME), partial(_hydra, pivot=True)
    yield "resellers", plan("resellers", "distil", SOME), _resellers
    for name in HYDRAS:
        yield f"hydra60_{name}", plan("hydra60", "distil", SOME, SHARES), partial(hydra, name, words=words)
    for name in LAUNCHES:
        yield f"benign_launch_{name}", plan("benign", "", SOME), partial(launch, name, words=words)
    for name in SEASONS:
        yield f"benign_season_{name}", plan("benign"), partial(season, name)
