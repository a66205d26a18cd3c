"""Who hides among those that came at the same time: what everybody does is the service's doing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from mlsecd.detectors._extraction_hiding import HIDING, Hidden
from mlsecd.detectors._extraction_state import TICK
from mlsecd.errors import StateError
from mlsecd.windows.keyed import Keyed

__all__ = ["Cohorts", "Lately"]

_OTHERS: Final = 8  # accounts to compare with, before it is told whose doing it was
_HEAVY: Final = 0.25  # an account with this share or more is one of those that have it,
_COMMON: Final = 0.25  # and where more than this of the others have it, it is the service's


class Lately(NamedTuple):
    """What an account sent lately: tick and completion of the first row; fired and tried of each channel."""

    tick: float
    first_ts: float
    counts: list[int]


class Cohorts:
    """Accounts' hiding counts; each interval's rows wait until nine accounts of their model can be compared.

    A service that stops to send vectors, or a gateway that sends one hash for all bodies, accuses nobody: a cohort of
    which many have the same is dropped, and in others each account is held against no less than the others' share.

    Parameters
    ----------
    limit
        The most accounts, of an interval, of a cohort and altogether.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Keyed[Hidden] = Keyed(limit, lambda _: Hidden(), TICK, lambda one: max(one.told) > 0.0)
        self._lately: dict[str, Lately] = {}  # in this interval
        self._waiting: dict[tuple[int, int], dict[str, Lately]] = {}  # by model and channel
        self.refused = 0

    def __len__(self) -> int:
        return len(self._held)

    def see(self, name: str, tick: float, first_ts: float, counts: tuple[int, ...]) -> None:
        """Note fired and tried of each channel of one account's rows of one tick."""
        lately = self._lately.get(name)
        if lately is not None:
            for i, count in enumerate(counts):
                lately.counts[i] += count
        elif len(self._lately) >= self._limit:
            self.refused += 1
        else:
            self._lately[name] = Lately(tick, first_ts, list(counts))

    def take(self) -> list[tuple[str, Lately]]:
        """The interval's counts; the next one begins."""
        taken, self._lately = list(self._lately.items()), {}
        return taken

    def settle(
        self, states: Iterable[tuple[str, Lately]], now: float, epoch_seconds: float
    ) -> Iterator[tuple[str, Hidden]]:
        """Count an interval's rows, where enough accounts have come; accounts with more that fired, by name."""
        for name, one in states:
            self._wait(name, one)
        changed: dict[str, Hidden] = {}
        for (_, channel), waiting in sorted(self._waiting.items()):
            if len(waiting) > _OTHERS:
                for name, share in _shares_of_others(waiting):
                    hidden = self._enter(name, waiting[name], now, epoch_seconds)
                    if hidden is not None:
                        fired, tried = waiting[name].counts
                        hidden.add(channel, fired, tried, share)
                        changed |= {name: hidden} if fired else {}
                waiting.clear()
        return iter(sorted(changed.items()))

    def _wait(self, name: str, one: Lately) -> None:
        model = int(name.partition(":")[0])
        for channel in range(len(HIDING)):
            fired, tried = one.counts[2 * channel : 2 * channel + 2]
            waiting = self._waiting.setdefault((model, channel), {})
            if tried and (name in waiting or len(waiting) < self._limit):
                held = waiting.setdefault(name, Lately(one.tick, one.first_ts, [0, 0]))
                held.counts[0] += fired
                held.counts[1] += tried

    def _enter(self, name: str, one: Lately, now: float, epoch_seconds: float) -> Hidden | None:
        hidden = self._held.touch(name, now)
        if hidden is not None and one.tick - hidden.started >= epoch_seconds:
            hidden.begin(one.tick, one.first_ts)
        return hidden

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        held = [
            (name, tick, [one.started, one.first_ts, one.fired, one.tried, one.expected, one.told, one.told_ts])
            for name, tick, one in self._held.dump()
        ]
        counts = [self._held.kept, self._held.evicted, self._held.refused, self.refused]
        waiting = [(model, channel, _dumped(one)) for (model, channel), one in self._waiting.items()]
        return {"held": held, "counts": counts, "lately": _dumped(self._lately), "waiting": waiting}

    def load(self, dumped: dict[str, Any]) -> None:
        """Take back what :meth:`dump` gave; :class:`~mlsecd.errors.StateError` where it is of another shape."""
        rows = []
        for name, tick, (started, first_ts, *lists) in dumped["held"]:
            if any(len(one) != len(HIDING) for one in lists):
                raise StateError("what hides in a snapshot has other channels")
            rows.append((str(name), int(tick), Hidden(float(started), float(first_ts), *map(list, lists))))
        kept, evicted, refused, own = map(int, dumped["counts"])
        self._held.load(rows, kept)
        self._held.evicted, self._held.refused, self.refused = evicted, refused, own
        self._lately = _loaded(dumped["lately"])
        self._waiting = {(int(model), int(channel)): _loaded(waiting) for model, channel, waiting in dumped["waiting"]}


def _shares_of_others(cohort: dict[str, Lately]) -> Iterator[tuple[str, float]]:
    """Accounts whose rows count, and no less than what the others of the cohort have: mean and two standard errors."""
    shares = {name: one.counts[0] / one.counts[1] for name, one in cohort.items()}
    total, squares = sum(shares.values()), sum(share * share for share in shares.values())
    heavy, others = sum(share >= _HEAVY for share in shares.values()), len(shares) - 1
    for name, share in shares.items():
        if heavy - (share >= _HEAVY) <= _COMMON * others:
            mean = (total - share) / others
            spread = max((squares - share * share) / others - mean * mean, 0.0)
            yield name, mean + 2.0 * math.sqrt(spread / others)


def _dumped(lately: dict[str, Lately]) -> list[Any]:
    return [(name, one.tick, one.first_ts, one.counts) for name, one in lately.items()]


def _loaded(dumped: Any) -> dict[str, Lately]:
    return {
        str(name): Lately(float(tick), float(first_ts), [int(one) for one in counts])
        for name, tick, first_ts, counts in dumped
    }
