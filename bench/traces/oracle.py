"""A thief's view of the victim: it asks, every question is counted, and at the limit the attack is over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .worlds import F4, I8, Rng, World

__all__ = ["Oracle", "Spent", "run"]


class Spent(Exception):  # noqa: N818 - the end of a budget, not an error
    """All queries are used."""


class Oracle:
    """Answers labels, keeps what was sent."""

    def __init__(self, world: World, limit: int, blind: Rng | None = None) -> None:
        self.world = world
        self.limit = limit
        self.sent = 0
        self._blind = blind  # queries go out warped by this generator
        self._queries: list[F4] = []

    def ask(self, x: F4) -> I8:
        """Labels of these rows; Spent where the limit is reached."""
        if self.sent >= self.limit:
            raise Spent
        sent = self.world.clip(x if self._blind is None else self.world.warp(self._blind, x))
        self._queries.append(sent)
        self.sent += len(sent)
        return self.world.label(sent)

    def odds(self, x: F4) -> F4:
        """The same with probabilities."""
        self.ask(x)
        return self.world.network.answer(self._queries[-1])[1]

    @property
    def queries(self) -> F4:
        """What was sent, in order, no more than the limit."""
        return np.concatenate(self._queries)[: self.limit]


def run(attack: Callable[[Oracle, Rng], None], world: World, rng: Rng, limit: int, blind: bool = False) -> F4:
    """The attack's queries, float32[limit, width]."""
    oracle = Oracle(world, limit, rng if blind else None)
    try:
        while True:
            attack(oracle, rng)
    except Spent:
        return oracle.queries
