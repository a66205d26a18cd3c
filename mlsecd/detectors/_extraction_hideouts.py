"""Judges what hides: whose doing it is, an account's, many accounts' together, or the service's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_books import Books
from mlsecd.detectors._extraction_cohorts import Cohort, Cohorts, Crowd, Lately, most_of
from mlsecd.detectors._extraction_hiding import HIDING, HidingPlan
from mlsecd.detectors._extraction_level import risen
from mlsecd.errors import StateError
from mlsecd.kernels import Kernels

__all__ = ["Hideouts", "Hider", "Together"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

_MANY: Final = 5  # accounts told of within an hour are told of together: each alone would be one ticket more
_HOUR: Final = 3_600.0
_LASTING: Final = 5.0  # cohorts with too many within some hour, before that is told: a tap that restarts is no case
_NAMED: Final = 1_000  # accounts, of one crowd and in one finding


class Hider(NamedTuple):
    """An account that hides more than ordinary ones do."""

    name: str
    lead: int  # the channel
    scores: F8  # [2]
    row: Any  # of the books


class Together(NamedTuple):
    """Accounts of one crowd that hide together.

    Attributes
    ----------
    names
        Who they are, those with most first; the first thousand.
    accounts, of
        How many, and of how many that came at a time. Then it is taken for the service's doing, and nobody's counts
        grow. ``of`` is 0 where they did not come at one time.
    score, threshold
        The weight of those with many among all, or the highest account's score.
    """

    crowd: Crowd
    names: list[str]
    accounts: int
    of: int
    score: float
    threshold: float
    first_ts: float


@dataclass(slots=True)
class _Gang:
    """Accounts of one crowd that were told of within an hour.

    Attributes
    ----------
    scores
        When each was last, its score then, and its first row's time; by name.
    waiting
        Whether some of them have been told of neither alone nor together.
    told_ts
        When they were told of together.
    """

    scores: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    waiting: bool = False
    told_ts: float = -math.inf


class Hideouts:
    """Counts by account, and when something is due to be told.

    A service that stops to send vectors, or a gateway that sends one hash for all bodies, accuses nobody: where many
    of a cohort have the same, nobody's counts grow, and where that goes on it is told of the model. In other cohorts
    each account is held against no less than the others' share.

    Parameters
    ----------
    plans, limits
        By number of a model's first reference; ``limits`` are float64[2], :meth:`HidingPlan.thresholds`.
    most
        The most accounts, of an interval and altogether.
    """

    def __init__(
        self, plans: Mapping[int, HidingPlan], limits: Mapping[int, F8], most: int, params: Any, kernels: Kernels
    ) -> None:
        self._plans, self._limits, self._most = plans, limits, most
        self._params, self._kernels = params, kernels
        self._cohorts, self._books = Cohorts(most), Books(most)
        # cohorts with too many lately (each is worth less by 1 / e an hour later), as of when; and when that was told
        self._lasting: dict[Crowd, tuple[float, float, float]] = {}
        self._gangs: dict[Crowd, _Gang] = {}

    def see(self, names: Sequence[str], first_ts: F8, counts: I8) -> None:
        """See :meth:`Cohorts.see`."""
        self._cohorts.see(names, first_ts, counts)

    def take(self) -> list[tuple[str, Lately]]:
        """See :meth:`Cohorts.take`."""
        return self._cohorts.take()

    def gauges(self) -> dict[str, float]:
        """For metrics."""
        refused = self._cohorts.refused + self._books.refused
        return {"hiding_clients": float(len(self._books)), "hiding_refused": float(refused)}

    def judge(self, states: Iterable[tuple[str, Lately]], now: float) -> list[Hider | Together]:
        """Count an interval's rows, where enough accounts have come; what is to be told, by model."""
        found: list[Hider | Together] = []
        counted: dict[tuple[int, bool], dict[str, int]] = {}
        for crowd, cohort in self._cohorts.settle(states):
            common, weight = cohort.common(self._plans[crowd.model].usual[crowd.channel])
            found += self._of_service(crowd, cohort, common, weight, now)
            rows = self._books.rows_of(cohort.names, cohort.first_ts, now, self._params.epoch_seconds)
            own = np.flatnonzero(~common & (rows >= 0))
            self._books.add(rows[own], crowd.channel, cohort.fired[own], cohort.tried[own], cohort.of_others()[own])
            fired = own[cohort.fired[own] > 0].tolist()
            counted.setdefault(crowd[:2], {}).update((cohort.names[i], int(rows[i])) for i in fired)
        for (model, synthetic), own_rows in counted.items():
            found += self._of_accounts(model, synthetic, dict(sorted(own_rows.items())), now)
        return found + [one for crowd, gang in self._gangs.items() if (one := self._of_gang(crowd, gang, now))]

    def _of_service(self, crowd: Crowd, cohort: Cohort, common: Any, weight: float, now: float) -> list[Together]:
        """Many have it at a time, again and again: nobody is accused, but it is told."""
        heavy = np.flatnonzero(cohort.heavy)
        if not len(heavy) or not common[heavy].all():
            return []
        lately, before, told_ts = self._lasting.get(crowd, (0.0, now, -math.inf))
        lately = lately * math.exp(-max(now - before, 0.0) / _HOUR) + 1.0
        due = lately >= _LASTING and now >= min(told_ts, now) + self._params.repeat_seconds
        self._lasting[crowd] = lately, now, now if due else told_ts
        if not due:
            return []
        order = heavy[np.argsort(-cohort.fired[heavy], kind="stable")]
        names = [cohort.names[i] for i in order[:_NAMED].tolist()]
        most = most_of(self._plans[crowd.model].usual[crowd.channel])
        first = float(cohort.first_ts[heavy].min())
        return [Together(crowd, names, len(heavy), len(cohort.names), weight, most, first)]

    def _of_accounts(self, model: int, synthetic: bool, rows: dict[str, int], now: float) -> list[Hider | Together]:
        """Accounts whose counts are beyond what ordinary ones have; those of a gang wait to be told together."""
        alone: list[Hider | Together] = []
        for one in self._due(list(rows), np.array(list(rows.values()), np.int64), model, now):
            gang = self._gangs.setdefault(Crowd(model, synthetic, one.lead), _Gang())
            gang.scores = {name: told for name, told in gang.scores.items() if 0.0 <= now - told[0] < _HOUR}
            if one.name in gang.scores or len(gang.scores) < _NAMED:
                gang.scores[one.name] = now, float(one.scores[one.lead]), float(one.row["first_ts"])
            if len(gang.scores) < _MANY:
                alone.append(one)
            else:
                gang.waiting = True
        return alone

    def _of_gang(self, crowd: Crowd, gang: _Gang, now: float) -> Together | None:
        """All of them, where some have not been told of and the last time is a while ago."""
        if not gang.waiting or now < min(gang.told_ts, now) + self._params.repeat_seconds:
            return None
        gang.waiting, gang.told_ts = False, now
        order = sorted(gang.scores, key=lambda name: (-gang.scores[name][1], name))
        limit = float(self._limits[crowd.model][crowd.channel])
        highest, first_ts = gang.scores[order[0]][1], min(told[2] for told in gang.scores.values())
        return Together(crowd, order, len(order), 0, highest, limit, first_ts)

    def _due(self, names: list[str], rows: I8, model: int, now: float) -> list[Hider]:
        """Those to be told of, who are noted as told."""
        null, limits = self._plans[model].null, self._limits[model]
        channels = range(len(HIDING))
        scores = np.stack([self._books.scores(rows, channel, null, self._kernels) for channel in channels], axis=1)
        made = []
        for i in np.flatnonzero((scores > limits).any(axis=1)).tolist():
            row, own = self._books.of(int(rows[i])), scores[i]
            due = [c for c in channels if own[c] > limits[c] and self._is_due(row, c, own[c], now)]
            for c in due:
                row["told"][c], row["told_ts"][c] = max(row["told"][c], own[c]), now
            if due:
                made.append(Hider(names[i], max(due, key=lambda c: own[c] / limits[c]), own, row))
        return made

    def _is_due(self, row: Any, channel: int, score: float, now: float) -> bool:
        """Whether a score that goes on is told again."""
        last = min(float(row["told_ts"][channel]), now)  # the clock may have been set back
        return score >= risen(float(row["told"][channel])) or now >= last + self._params.repeat_seconds

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        lasting = [(*crowd, *held) for crowd, held in self._lasting.items()]
        gangs = [(*crowd, list(one.scores.items()), one.waiting, one.told_ts) for crowd, one in self._gangs.items()]
        return {"cohorts": self._cohorts.dump(), "books": self._books.dump(), "lasting": lasting, "gangs": gangs}

    def loaded(self, dumped: dict[str, Any]) -> Hideouts:
        """Others of the same plans, out of what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape, or no counts.
        """
        made = Hideouts(self._plans, self._limits, self._most, self._params, self._kernels)
        for *crowd, cohorts, before, told_ts in dumped["lasting"]:
            made._lasting[self._crowd(*crowd)] = _number(cohorts), _number(before), _moment(told_ts)
        for *crowd, scores, waiting, told_ts in dumped["gangs"]:
            own = {str(name): (_number(ts), _number(score), _number(first)) for name, (ts, score, first) in scores}
            for name in own:
                number, probe, _ = name.split(":", 2)
                self._crowd(number, probe, 0)
            if len(own) > _NAMED:
                raise StateError("who hides together in a snapshot are more than there may be")
            made._gangs[self._crowd(*crowd)] = _Gang(own, bool(waiting) and bool(own), _moment(told_ts))
        made._cohorts = Cohorts.load(self._most, self._plans, dumped["cohorts"])
        made._books = Books.load(self._most, dumped["books"])
        return made

    def _crowd(self, model: Any, synthetic: Any, channel: Any) -> Crowd:
        made = Crowd(int(model), bool(int(synthetic)), int(channel))
        if made.model not in self._plans or not 0 <= made.channel < len(HIDING):
            raise StateError("who hides together in a snapshot is of no model")
        return made


def _number(value: Any) -> float:
    """A number of a snapshot; StateError where it is none."""
    made = float(value)
    if not math.isfinite(made):
        raise StateError("who hides together in a snapshot did so at no time that there is")
    return made


def _moment(value: Any) -> float:
    """As :func:`_number`, or minus infinity: never."""
    return -math.inf if value == -math.inf else _number(value)
