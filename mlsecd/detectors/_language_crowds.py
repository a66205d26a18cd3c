"""The looks at all accounts of the language models: when, at what level, and what was told before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mlsecd.detectors._campaign_memory import Memory
from mlsecd.detectors._extraction_budget import WEEK
from mlsecd.detectors._language_account import Account
from mlsecd.detectors._language_campaign import Kind, Members, View, judge, views
from mlsecd.detectors._language_campaign_words import SEVERITY, action_of, evidence_of, reason_of, score_of
from mlsecd.detectors._language_channels import Reference
from mlsecd.detectors._language_crowd import Crowd
from mlsecd.detectors._language_recent import HALF
from mlsecd.detectors._language_standing import DEFAULT_SHARE
from mlsecd.detectors._launches import Launches
from mlsecd.detectors.base import Interval, Section
from mlsecd.kernels import Kernels
from mlsecd.records import Severity

__all__ = ["Crowds", "Told"]

_HOUR: Final = 3_600.0
_LEVEL_MAX: Final = 0.05
_EXPLAINED: Final = frozenset({Kind.OPEN, Kind.OWN_WORDS})  # by a launch
_MOST: Final = 0.5  # of the members are a launch's own, where it explains them


@dataclass(frozen=True, slots=True)
class Told:
    """A finding about many accounts, before the detector puts its name to it."""

    ts: float
    subject_kind: str
    subject: str
    severity: Severity
    score: float
    threshold: float
    reason: str
    evidence: dict[str, Any]
    action: str
    synthetic: bool


class Crowds:
    """Looks at all accounts once an hour of event time.

    Attributes
    ----------
    launches
        What was announced, and since when it is watched.
    memory
        Campaigns by name, and models whose accounts moved at the last look.
    """

    def __init__(self, references: list[Reference], section: Section | None, params: Any, kernels: Kernels) -> None:
        self._references, self._params, self._kernels = references, params, kernels
        self._crowds = [None if section is None else Crowd.of(section.arrays, str(i)) for i in range(len(references))]
        self.launches = Launches(params.launches)
        self.memory = Memory(params.max_clients, 2.0 * HALF)

    @property
    def level(self) -> float:
        """Of a look at one model: tickets about many have a share of the budget as large as those about one."""
        share = self._params.false_alarms_per_week or DEFAULT_SHARE
        return min(share * _HOUR / (WEEK * max(len(self._crowds), 1)), _LEVEL_MAX)

    def look(self, interval: Interval, states: Iterable[tuple[str, Account]]) -> list[Told]:
        """What there is to tell, where an hour of event time has passed within the interval."""
        self.launches.watch(interval.start)
        if not any(self._crowds) or interval.end // _HOUR <= interval.start // _HOUR:
            return []
        nulls, found = [reference.null for reference in self._references], []
        self.memory.shifted = {}
        for key, view in views(states, interval.end, nulls, self._kernels).items():
            crowd = self._crowds[key[0]]
            if crowd is None:
                continue
            told, among = self._judged(interval.end, view, crowd, key[0])
            told = self._remembered(told, key)
            if told is not None:
                found.append(self._tell(interval.end, told, among, crowd, key))
        return found

    def _judged(self, now: float, view: View, crowd: Crowd, number: int) -> tuple[Members | None, View]:
        """What a look shows, and of which accounts: those that an announced launch explains are set aside for others.

        A launch explains its own accounts, but not who works among them: without its accounts the others are judged
        by themselves. And not who hides a list or a prompt among other requests: its customers have nothing to hide.
        """
        told = judge(view, crowd, self.level, self._kernels)
        launch = self.launches.of(self._references[number].model, now)
        if told is None or launch is None or SEVERITY[told.kind] is Severity.INFO:
            return told, view
        older = np.array([account.recent.born < launch.since for account in view.accounts])
        if older[told.members].all():
            return told, view
        rest = view.only(older)
        again = judge(rest, crowd, self.level, self._kernels)
        if again is not None:
            return again, rest
        explained = told.kind in _EXPLAINED and older[told.members].mean() < _MOST
        return replace(told, kind=Kind.LAUNCH) if explained else told, view

    def _remembered(self, told: Members | None, key: tuple[int, bool]) -> Members | None:
        """What a look shows, in the light of those before: a season near the half of all accounts stays one."""
        name = f"{key[0]}:{int(key[1])}"
        if told is None or told.kind is Kind.SEASON:
            self.memory.looked(name, moving=told is not None)
        elif told.kind is Kind.OWN_WORDS and self.memory.moving(name):
            return replace(told, kind=Kind.SEASON)
        return told

    def _tell(self, now: float, told: Members, view: View, crowd: Crowd, key: tuple[int, bool]) -> Told:
        model, synthetic = self._references[key[0]].model, key[1]
        evidence = evidence_of(told, view, crowd, model)
        reason, severity = reason_of(told, evidence), SEVERITY[told.kind]
        if severity is Severity.INFO:
            kind, subject = "model", model
        else:
            kind, (subject, earlier) = "campaign", self.memory.name([view.names[i] for i in told.members], now)
            evidence["earlier_members"] = earlier
        if told.kind is Kind.SEASON and not synthetic:
            self.memory.shifted[model] = reason
        score, threshold = score_of(told.chance), score_of(told.threshold)
        return Told(now, kind, subject, severity, score, threshold, reason, evidence, action_of(told.kind), synthetic)

    def remembered(self, dumped: dict[str, Any]) -> Memory:
        """The memory that a snapshot holds."""
        return Memory.load(self._params.max_clients, 2.0 * HALF, dumped)

    def state(self) -> tuple[bool, str]:
        """Whether everybody moved at the last look; and why, or what keeps campaigns from being told."""
        missing = [
            f'"{reference.model}": no campaigns are told: the baseline is older than they are or had too few clients'
            for reference, crowd in zip(self._references, self._crowds, strict=True)
            if crowd is None
        ]
        return bool(self.memory.shifted), "; ".join([*self.memory.shifted.values(), *missing])

    def gauges(self) -> dict[str, float]:
        """The weakest of all models, for metrics."""
        return {
            "crowd_clients": min((0.0 if one is None else float(len(one.looks)) for one in self._crowds), default=0.0)
        }

    def fingerprint(self, digest: Any) -> None:
        """Add what accounts are held against."""
        for crowd in self._crowds:
            for array in crowd.arrays("").values() if crowd is not None else ():
                digest.update(array.tobytes())
