"""Who came at the same time: what many have is the service's doing, and nobody's who came then."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_hiding import HIDING
from mlsecd.errors import StateError

__all__ = ["HEAVY", "Cohort", "Cohorts", "Crowd", "Lately", "most_of"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_FEWEST: Final = 64  # rows that tables begin with
_OTHERS: Final = 8  # accounts to compare with, before it is told whose doing it was
HEAVY: Final = 0.25  # an account with this share or more is one of those that have it,
_COMMON: Final = 0.25  # and where so much more than the usual share of the others have it, it is the service's
_MOST: Final = 1 << 30  # rows of one account that an interval counts
_WEIGHS: Final = 10  # rows, at most, by which an account weighs: strangers with one row each outvote no customers


class Crowd(NamedTuple):
    """Accounts that are compared with each other, and by what."""

    model: int  # its first reference
    synthetic: bool
    channel: int

    @classmethod
    def of(cls, models: Container[int], model: Any, synthetic: Any, channel: Any) -> Crowd:
        """Out of a snapshot; :class:`~mlsecd.errors.StateError` where it is of none of these models."""
        made = cls(int(model), bool(int(synthetic)), int(channel))
        if made.model not in models or not 0 <= made.channel < len(HIDING):
            raise StateError("who hides in a snapshot is of no model")
        return made


class Lately(NamedTuple):
    """What an account sent lately: completion of its first row; fired and tried of each channel."""

    first_ts: float
    counts: tuple[int, ...]


class Cohort(NamedTuple):
    """Accounts of a crowd that came at the same time."""

    names: list[str]
    first_ts: F8
    fired: I8
    tried: I8

    @property
    def heavy(self) -> Mask:
        """Those with many, bool[n]."""
        return np.asarray(self.fired >= HEAVY * self.tried)

    @property
    def weights(self) -> F8:
        """By what each asks, float64[n]."""
        return np.minimum(self.tried, _WEIGHS).astype(np.float64)

    def common(self, usual: float) -> tuple[Mask, float]:
        """For whom it is the service's doing, bool[n], and the weight of those with many among all, 0 to 1.

        Parameters
        ----------
        usual
            Their weight where all is well.
        """
        weights, heavy = self.weights, self.heavy
        having = np.where(heavy, weights, 0.0)
        others = having.sum() - having > most_of(usual) * (weights.sum() - weights)
        return others, float(having.sum() / weights.sum())

    def of_others(self) -> F8:
        """The share that each account's others have, float64[n]: mean and two standard errors.

        By account or by weight, whichever is less: many strangers who ask little raise the one, a few who ask much
        the other.
        """
        return np.minimum(self._bound(np.ones(len(self.names))), self._bound(self.weights))

    def _bound(self, weights: F8) -> F8:
        share = self.fired / self.tried
        whole = weights.sum() - weights
        mean = ((weights * share).sum() - weights * share) / whole
        spread = np.maximum(((weights * share**2).sum() - weights * share**2) / whole - mean * mean, 0.0)
        others = whole**2 / ((weights**2).sum() - weights**2)  # of equal weight, as many
        return np.minimum(mean + 2.0 * np.sqrt(spread / others), 1.0)


def most_of(usual: float) -> float:
    """The weight above which those with many are too many to be accused."""
    return min(usual + _COMMON, 1.0)


class Cohorts:
    """Counts of this interval, and of accounts that wait until nine of their crowd can be compared.

    Parameters
    ----------
    limit
        The most accounts of an interval.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lately: dict[str, int] = {}  # rows of the two tables, by name
        self._first_ts, self._counts = _tables()
        self._waiting: dict[Crowd, dict[str, Lately]] = {}  # of each the channel's own two counts; eight at most
        self.refused = 0

    def see(self, names: Sequence[str], first_ts: F8, counts: I8) -> None:
        """Note some rows of accounts, in order of appearance; ``counts``: int64[n, 4], as in a :class:`Lately`."""
        places = np.array([self._place(name) for name in names], np.int64)
        known = np.flatnonzero(places >= 0)
        places = places[known]
        np.minimum.at(self._first_ts, places, first_ts[known])
        np.add.at(self._counts, places, counts[known])
        self._counts[places] = np.minimum(self._counts[places], _MOST)

    def _place(self, name: str) -> int:
        """An account's row of this interval; -1: there is no room."""
        place = self._lately.get(name)
        if place is not None:
            return place
        if len(self._lately) >= self._limit:
            self.refused += 1
            return -1
        place = self._lately[name] = len(self._lately)
        if place >= len(self._first_ts):
            self._first_ts = np.concatenate([self._first_ts, np.full_like(self._first_ts, np.inf)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        return place

    def take(self) -> list[tuple[str, Lately]]:
        """The interval's counts; the next one begins."""
        taken, self._lately = self._listed(), {}
        self._first_ts, self._counts = _tables()
        return taken

    def _listed(self) -> list[tuple[str, Lately]]:
        columns = zip(self._lately, self._first_ts.tolist(), self._counts.tolist(), strict=False)
        return [(name, Lately(first_ts, tuple(counts))) for name, first_ts, counts in columns]

    def settle(self, states: Iterable[tuple[str, Lately]]) -> list[tuple[Crowd, Cohort]]:
        """Crowds of an interval that are large enough; the others wait."""
        crowds: dict[tuple[int, bool], list[tuple[str, Lately]]] = {}
        for name, one in states:
            number, probe, _ = name.split(":", 2)
            crowds.setdefault((int(number), probe == "1"), []).append((name, one))
        made = []
        for (model, synthetic), members in sorted(crowds.items()):
            for channel in range(len(HIDING)):
                crowd = Crowd(model, synthetic, channel)
                came = self._joined(crowd, members)
                if len(came) > _OTHERS:
                    self._waiting.pop(crowd, None)
                    made.append((crowd, _cohort(came)))
                elif came:
                    self._waiting[crowd] = came
        return made

    def _joined(self, crowd: Crowd, members: list[tuple[str, Lately]]) -> dict[str, Lately]:
        """Members with rows that count, and who waited."""
        at = 2 * crowd.channel
        came = {name: Lately(one.first_ts, one.counts[at : at + 2]) for name, one in members if one.counts[at + 1]}
        for name, one in self._waiting.get(crowd, {}).items():
            came[name] = _sum(one, came[name]) if name in came else one
        return came

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        waiting = [(*crowd, _dumped(held)) for crowd, held in self._waiting.items()]
        return {"lately": _dumped(dict(self._listed())), "waiting": waiting, "refused": self.refused}

    @classmethod
    def load(cls, limit: int, models: Container[int], dumped: dict[str, Any]) -> Cohorts:
        """Out of what :meth:`dump` gave, of accounts of these models.

        Raises
        ------
        StateError
            It is of another shape, or no counts.
        """
        made = cls(limit)
        made.refused = int(dumped["refused"])
        lately = _loaded(dumped["lately"], models, 2 * len(HIDING))
        for *crowd, held in dumped["waiting"]:
            made._waiting[Crowd.of(models, *crowd)] = _loaded(held, models, 2)
        if len(lately) > limit or any(len(held) > _OTHERS for held in made._waiting.values()):
            raise StateError("a snapshot has more accounts than it may")
        counts = np.array([one.counts for one in lately.values()], np.int64).reshape(-1, 2 * len(HIDING))
        made.see(list(lately), np.array([one.first_ts for one in lately.values()]), counts)
        return made


def _tables() -> tuple[F8, I8]:
    """When accounts' first rows came, float64[rows], and their counts, int64[rows, 4]."""
    return np.full(_FEWEST, np.inf), np.zeros((_FEWEST, 2 * len(HIDING)), np.int64)


def _sum(one: Lately, other: Lately) -> Lately:
    counts = tuple(min(sum(pair), _MOST) for pair in zip(one.counts, other.counts, strict=True))
    return Lately(min(one.first_ts, other.first_ts), counts)


def _cohort(came: dict[str, Lately]) -> Cohort:
    names = sorted(came)
    first_ts = np.array([came[name].first_ts for name in names])
    fired, tried = np.array([came[name].counts for name in names], np.int64).T
    return Cohort(names, first_ts, fired, tried)


def _dumped(lately: dict[str, Lately]) -> list[Any]:
    return [(name, one.first_ts, one.counts) for name, one in lately.items()]


def _loaded(dumped: Any, models: Container[int], counts: int) -> dict[str, Lately]:
    made = {}
    for name, first_ts, held in dumped:
        one = Lately(float(first_ts), tuple(int(count) for count in held))
        number, synthetic, _ = str(name).split(":", 2)
        sound = int(number) in models and synthetic in {"0", "1"} and len(one.counts) == counts
        pairs = zip(one.counts[::2], one.counts[1::2], strict=True)
        if not sound or not math.isfinite(one.first_ts) or not all(0 <= f <= t < 2**31 for f, t in pairs):
            raise StateError("who came lately, in a snapshot, has no counts")
        made[str(name)] = one
    return made
