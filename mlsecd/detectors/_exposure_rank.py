"""Who has seen most of a model, and who saw it fastest: looks across keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlsecd.detectors._exposure_chart import Chart, Price
from mlsecd.detectors._exposure_sight import Sight

__all__ = ["Key", "Ranked", "ranking"]


class Key(NamedTuple):
    """What a sight is of."""

    kind: str  # client, network, principal, link
    number: int  # of the chart
    synthetic: bool
    value: str

    def text(self) -> str:
        """As a string, for keyed state."""
        return f"{self.kind}:{self.number}:{self.synthetic:d}:{self.value}"

    @classmethod
    def of(cls, text: str) -> Key:
        """Back from :meth:`text`."""
        kind, number, synthetic, value = text.split(":", 3)
        return cls(kind, int(number), synthetic == "1", value)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One account or group among its like: of one model, with enough queries."""

    key: str
    kind: str
    value: str
    number: int
    synthetic: bool
    sight: Sight
    price: Price
    coverage_rank: int
    pace_rank: int
    of: int

    @property
    def rank(self) -> int:
        """The better of both."""
        return min(self.coverage_rank, self.pace_rank)

    @property
    def by(self) -> str:
        """What it leads by."""
        return "pace" if self.pace_rank <= self.coverage_rank else "coverage"


def _merged(states: Iterable[tuple[str, Any]]) -> dict[str, Sight]:
    """One sight a key: a group's accounts may live in several shards."""
    found: dict[str, Sight] = {}
    for key, sight in states:
        found[key] = found[key].merged(sight) if key in found else sight
    return found


def ranking(
    states: Iterable[tuple[str, Any]], charts: Sequence[Chart], epoch: float, client_queries: int, group_queries: int
) -> list[Ranked]:
    """Everyone with enough queries in an epoch and the one before, ranked among its like; one account is no group."""
    likes: dict[tuple[str, int, bool], list[tuple[str, Key, Sight, Price]]] = defaultdict(list)
    for text, held in _merged(states).items():
        key = Key.of(text)
        wanted = client_queries if key.kind == "client" else group_queries
        sight = held.at(epoch) if held.asked >= wanted else None
        if sight is None or sight.queries < wanted or (key.kind != "client" and len(sight.clients) < 2):
            continue
        price = charts[key.number].price(sight)
        if price is not None:
            likes[key.kind, key.number, key.synthetic].append((text, key, sight, price))
    made: list[Ranked] = []
    for like in likes.values():
        coverage = _ranks([(-price.coverage, text) for text, _, _, price in like])
        pace = _ranks([(-price.pace, text) for text, _, _, price in like])
        made += [
            Ranked(
                text,
                key.kind,
                key.value,
                key.number,
                key.synthetic,
                sight,
                price,
                coverage[text],
                pace[text],
                len(like),
            )
            for text, key, sight, price in like
        ]
    return sorted(made, key=lambda one: one.key)


def _ranks(values: list[tuple[float, str]]) -> dict[str, int]:
    return {key: i + 1 for i, (_, key) in enumerate(sorted(values))}
