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
from mlsecd.detectors._told import is_lately
from mlsecd.errors import StateError
from mlsecd.kernels import Kernels

__all__ = ["Hideouts", "Hider", "Together"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

_MANY: Final = 5  # accounts told of within an hour are told of together: each alone would be one ticket more
_HOUR: Final = 3_600.0
_LASTING: Final = 5.0  # cohorts with too many lately, before that is told: a tap that restarts is no case,
_FADES: Final = 0.98  # and each is worth so much less with every cohort after it: five of some fifty
_NAMED: Final = 1_000  # accounts, of one crowd


class Hider(NamedTuple):
    """An account that hides more than ordinary ones do."""

    name: str
    lead: int  # the channel
    scores: F8  # [2]
    row: Any  # of the books


class Part(NamedTuple):
    """Accounts of one crowd that hide.

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

    channel: int
    names: list[str]
    accounts: int
    of: int
    score: float
    threshold: float
    first_ts: float


class Together(NamedTuple):
    """Accounts of one model that hide together: one finding, so that none is taken for a repeat of another."""

    model: int
    synthetic: bool
    parts: list[Part]


@dataclass(slots=True)
class _Gang:
    """Accounts of one crowd that something was found of within an hour.

    Attributes
    ----------
    scores
        By name: when it was found last, its score then, and its first row's time.
    untold
        Those of them that nobody has been told of, whenever that was.
    """

    scores: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    untold: set[str] = field(default_factory=set)

    def join(self, name: str, now: float, score: float, first_ts: float) -> None:
        """Take one in."""
        self.scores[name] = now, score, first_ts
        self.untold.add(name)

    def leave(self, now: float) -> None:
        """Forget those who were told of and have done nothing for an hour."""
        self.scores = {
            name: held for name, held in self.scores.items() if name in self.untold or is_lately(held[0], now, _HOUR)
        }

    def trim(self) -> None:
        """Of too many those with the lowest scores go."""
        least = sorted(self.scores, key=lambda one: (self.scores[one][1], one))
        for name in least[: max(len(least) - _NAMED, 0)]:
            del self.scores[name]
            self.untold.discard(name)

    def part(self, channel: int, limit: float) -> Part:
        """All of them."""
        order = sorted(self.scores, key=lambda name: (-self.scores[name][1], name))
        first_ts = min(held[2] for held in self.scores.values())
        return Part(channel, order, len(order), 0, self.scores[order[0]][1], limit, first_ts)


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
        self._lasting: dict[Crowd, float] = {}  # cohorts with too many lately
        self._failing: dict[Crowd, Part] = {}  # what is to be told of that
        self._gangs: dict[Crowd, _Gang] = {}
        self._told_ts: dict[tuple[int, bool], float] = {}  # when a model's accounts were told of together

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
            self._note_service(crowd, cohort, common, weight)
            rows = self._books.rows_of(cohort.names, cohort.first_ts, now, self._params.epoch_seconds)
            own = np.flatnonzero(~common & (rows >= 0))
            self._books.add(rows[own], crowd.channel, cohort.fired[own], cohort.tried[own], cohort.of_others()[own])
            fired = own[cohort.fired[own] > 0].tolist()
            counted.setdefault(crowd[:2], {}).update((cohort.names[i], int(rows[i])) for i in fired)
        for (model, synthetic), own_rows in counted.items():
            found += self._of_accounts(model, synthetic, dict(sorted(own_rows.items())), now)
        return found + self._of_models(now)

    def _note_service(self, crowd: Crowd, cohort: Cohort, common: Any, weight: float) -> None:
        """Many have it at a time, again and again: nobody is accused, but it is told."""
        heavy = np.flatnonzero(cohort.heavy)
        taken = len(heavy) > 0 and bool(common[heavy].all())
        lasting = self._lasting[crowd] = _FADES * self._lasting.get(crowd, 0.0) + taken
        if taken and lasting >= _LASTING * _FADES**_LASTING:
            order = heavy[np.argsort(-cohort.fired[heavy], kind="stable")]
            names = [cohort.names[i] for i in order[:_NAMED].tolist()]
            most = most_of(self._plans[crowd.model].usual[crowd.channel])
            first_ts = float(cohort.first_ts[heavy].min())
            self._failing[crowd] = Part(crowd.channel, names, len(heavy), len(cohort.names), weight, most, first_ts)

    def _of_accounts(self, model: int, synthetic: bool, rows: dict[str, int], now: float) -> list[Hider]:
        """Accounts whose counts are beyond what ordinary ones have; those of a gang wait to be told together."""
        alone = []
        due = self._due(list(rows), np.array(list(rows.values()), np.int64), model, now)
        gangs = {lead: self._gangs.setdefault(Crowd(model, synthetic, lead), _Gang()) for lead in {d.lead for d in due}}
        for gang in gangs.values():
            gang.leave(now)
        for one in due:
            gang = gangs[one.lead]
            gang.join(one.name, now, float(one.scores[one.lead]), float(one.row["first_ts"]))
            if len(gang.scores) < _MANY:
                gang.untold.clear()
                alone.append(one)
        for gang in gangs.values():
            gang.trim()
        return alone

    def _of_models(self, now: float) -> list[Together]:
        """What there is to tell of many accounts of a model, where the last time is a while ago."""
        waiting = {crowd for crowd, gang in self._gangs.items() if gang.untold} | self._failing.keys()
        made = []
        for model, synthetic in sorted({crowd[:2] for crowd in waiting}):
            if is_lately(self._told_ts.get((model, synthetic), -math.inf), now, self._params.repeat_seconds):
                continue
            self._told_ts[model, synthetic] = now
            parts = []
            for crowd in sorted(one for one in waiting if one[:2] == (model, synthetic)):
                if (failing := self._failing.pop(crowd, None)) is not None:
                    parts.append(failing)
                gang = self._gangs.get(crowd)
                if gang is not None and gang.untold:
                    parts.append(gang.part(crowd.channel, float(self._limits[model][crowd.channel])))
                    gang.untold.clear()
            made.append(Together(model, synthetic, parts))
        return made

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
        lately = is_lately(float(row["told_ts"][channel]), now, self._params.repeat_seconds)
        return not lately or score >= risen(float(row["told"][channel]))

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        return {
            "cohorts": self._cohorts.dump(),
            "books": self._books.dump(),
            "lasting": [(*crowd, cohorts) for crowd, cohorts in self._lasting.items()],
            "failing": [(*crowd, *part[1:]) for crowd, part in self._failing.items()],
            "gangs": [(*crowd, list(one.scores.items()), sorted(one.untold)) for crowd, one in self._gangs.items()],
            "told": [(*key, ts) for key, ts in self._told_ts.items()],
        }

    def loaded(self, dumped: dict[str, Any]) -> Hideouts:
        """Others of the same plans, out of what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape, or no counts.
        """
        made = Hideouts(self._plans, self._limits, self._most, self._params, self._kernels)
        for *crowd, cohorts in dumped["lasting"]:
            made._lasting[Crowd.of(self._plans, *crowd)] = _number(cohorts)
        for model, synthetic, channel, names, accounts, of, *numbers in dumped["failing"]:
            at = Crowd.of(self._plans, model, synthetic, channel)
            score, threshold, first_ts = map(_number, numbers)
            known = self._names(names)
            made._failing[at] = Part(at.channel, known, int(accounts), int(of), score, threshold, first_ts)
        for model, synthetic, channel, scores, untold in dumped["gangs"]:
            own = {str(name): (_number(ts), _number(score), _number(first)) for name, (ts, score, first) in scores}
            made._gangs[Crowd.of(self._plans, model, synthetic, channel)] = _Gang(own, set(map(str, untold)))
            if len(self._names(own)) > _NAMED or not own.keys() >= set(untold):
                raise StateError("who hides together in a snapshot are more than there may be")
        for model, synthetic, ts in dumped["told"]:
            made._told_ts[Crowd.of(self._plans, model, synthetic, 0)[:2]] = _number(ts)
        made._cohorts = Cohorts.load(self._most, self._plans, dumped["cohorts"])
        made._books = Books.load(self._most, dumped["books"])
        return made

    def _names(self, names: Iterable[Any]) -> list[str]:
        """Accounts' names, as they are given to :meth:`see`."""
        made = [str(name) for name in names]
        for name in made:
            number, probe, _ = name.split(":", 2)
            Crowd.of(self._plans, number, probe, 0)
        return made


def _number(value: Any) -> float:
    """A number of a snapshot; StateError where it is none."""
    made = float(value)
    if not math.isfinite(made):
        raise StateError("who hides together in a snapshot did so at no time that there is")
    return made
