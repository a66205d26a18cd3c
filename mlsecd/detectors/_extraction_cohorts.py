"""Who hides among those that came at the same time: what everybody does is the service's doing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from mlsecd.detectors._extraction_hiding import HIDING, Hidden
from mlsecd.detectors._extraction_state import TICK
from mlsecd.errors import StateError
from mlsecd.windows.keyed import Keyed

__all__ = ["Cohorts", "Counted"]

_OTHERS: Final = 8  # accounts to compare with, before it is told whose doing it was
_HEAVY: Final = 0.25  # an account with this share or more is one of those that have it,
_COMMON: Final = 0.25  # and where more than this of the others have it, it is the service's

Counts = dict[str, list[int]]  # fired and tried, by account


class Counted(NamedTuple):
    """An account whose rows of a cohort were counted."""

    name: str
    hidden: Hidden


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
        self._lately: dict[str, list[int]] = {}  # fired and tried of each channel in this interval
        self._waiting: dict[tuple[int, int], Counts] = {}  # by model and channel
        self.refused = 0

    def __len__(self) -> int:
        return len(self._held)

    def see(self, name: str, tick: float, first_ts: float, epoch_seconds: float, counts: tuple[int, ...]) -> None:
        """Note fired and tried of each channel of one account's rows of one tick."""
        hidden = self._held.touch(name, tick)
        lately = self._lately.get(name)
        if hidden is None or (lately is None and len(self._lately) >= self._limit):
            self.refused += 1
            return
        if tick - hidden.started >= epoch_seconds:
            hidden.begin(tick, first_ts)
        if lately is None:
            self._lately[name] = list(counts)
        else:
            for i, count in enumerate(counts):
                lately[i] += count

    def take(self) -> list[tuple[str, list[int]]]:
        """The interval's counts; the next one begins."""
        taken, self._lately = list(self._lately.items()), {}
        return taken

    def settle(self, states: Iterable[tuple[str, list[int]]]) -> Iterator[Counted]:
        """Count an interval's rows, where enough accounts have come; those accounts in order of model and name."""
        for name, counts in states:
            model = int(name.partition(":")[0])
            for channel in range(len(HIDING)):
                fired, tried = counts[2 * channel : 2 * channel + 2]
                waiting = self._waiting.setdefault((model, channel), {})
                if not tried or (name not in waiting and len(waiting) >= self._limit):
                    continue
                held = waiting.setdefault(name, [0, 0])
                held[0] += fired
                held[1] += tried
        changed: dict[str, Hidden] = {}
        for (_, channel), waiting in sorted(self._waiting.items()):
            if len(waiting) > _OTHERS:
                changed |= dict(self._count(channel, waiting))
                waiting.clear()
        return (Counted(name, hidden) for name, hidden in sorted(changed.items()))

    def _count(self, channel: int, cohort: Counts) -> Iterator[Counted]:
        shares = {name: fired / tried for name, (fired, tried) in cohort.items()}
        total, squares = sum(shares.values()), sum(share * share for share in shares.values())
        heavy, others = sum(share >= _HEAVY for share in shares.values()), len(shares) - 1
        for name, share in shares.items():
            hidden = self._held.peek(name)
            if hidden is None or heavy - (share >= _HEAVY) > _COMMON * others:
                continue
            mean = (total - share) / others
            spread = max((squares - share * share) / others - mean * mean, 0.0)
            fired, tried = cohort[name]
            hidden.add(channel, fired, tried, mean + 2.0 * math.sqrt(spread / others))
            if fired:
                yield Counted(name, hidden)

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        held = [
            (name, tick, [one.started, one.first_ts, one.fired, one.tried, one.expected, one.told, one.told_ts])
            for name, tick, one in self._held.dump()
        ]
        counts = [self._held.kept, self._held.evicted, self._held.refused, self.refused]
        waiting = [(model, channel, list(one.items())) for (model, channel), one in self._waiting.items()]
        return {"held": held, "counts": counts, "lately": list(self._lately.items()), "waiting": waiting}

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
        self._lately = {str(name): [int(one) for one in counts] for name, counts in dumped["lately"]}
        self._waiting = {
            (int(model), int(channel)): {str(name): [int(one) for one in counts] for name, counts in waiting}
            for model, channel, waiting in dumped["waiting"]
        }
