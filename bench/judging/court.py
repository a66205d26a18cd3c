"""Who is judged by what: thresholds by one rule for all, and one row of counts a scenario."""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from bench.peers import PEERS, Peer, clopper_pearson, threshold
from mlsecd.records import RequestBatch, Severity

from . import ours
from .folder import Folder, Mixture, keep_clients
from .published import Path, Paths, contestants, make_peer, walk

__all__ = ["Calibration", "Court", "Row"]

OURS: Final = "mlsecd"


@dataclass
class Row:
    """What one detector found in one scenario."""

    scenario: str
    family: str
    detector: str
    accounts: int  # attackers
    found: int
    queries: float | None  # the median until the first alarm, of those found
    ordinary: int
    flagged: int  # ordinary accounts
    share: float  # of active accounts that attack
    more: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As benchmarks print: name, value, unit, and what belongs to it."""
        row = {"name": f"{self.scenario}: {self.detector}", "unit": "share of accounts", "peer": None, "ratio": None}
        row["value"] = self.found / self.accounts if self.accounts else self.flagged / max(1, self.ordinary)
        row["interval_95"] = clopper_pearson(self.found, self.accounts) if self.accounts else None
        row["flagged_interval_95"] = clopper_pearson(self.flagged, self.ordinary) if self.ordinary else None
        mine = {name: value for name, value in vars(self).items() if name != "more"}
        return row | mine | self.more


@dataclass
class Calibration:
    """What everyone learned from: our fit, the peers and their thresholds."""

    fitted: ours.Fitted
    thresholds: dict[str, float]


class Court:
    """Judges the scenarios of one folder.

    Parameters
    ----------
    alpha
        Level a client for the peers, and for ours unless ``budget``.
    budget
        Ours at the default weekly budget instead.
    who
        ``all``, ``ours`` or ``peers`` are judged.
    """

    def __init__(self, folder: Folder, alpha: float, *, budget: bool, overrides: Iterable[str], who: str) -> None:
        self.folder = folder
        self.alpha = alpha
        self.config = ours.configure(None if budget else alpha, overrides)
        self.reference = folder.batch(folder.fit[0])
        self.calibrators = [name for name in folder.fit if name != "reference"]
        self._peers: dict[str, Peer] = {}
        self._paths: dict[tuple[str, tuple[str, ...]], Paths] = {}
        self.contestants = {} if who == "ours" else contestants(self.reference)
        self._ours = who != "peers"

    def clients(self) -> list[str]:
        """Those who calibrate."""
        return sorted(self.folder.truth(self.calibrators))

    def calibrate(self, clients: Iterable[str] | None = None, poison: Iterable[str] = ()) -> Calibration:
        """Fit ours and set the peers' thresholds: on all, or on these clients, with ``poison`` among them."""
        chosen = set(self.clients() if clients is None else clients)
        bad = set(poison)
        names = [*self.folder.fit, *(["poison"] if bad else [])]
        batch = self.folder.together(names)
        if clients is not None or bad:
            batch = keep_clients(batch, chosen | bad | set(self.folder.truth({"reference"} & set(names))))
        fitted = ours.fit(batch, self.config) if self._ours else ours.Fitted(self.config, {})
        thresholds = {}
        for name in self.contestants:
            maxima = self._maxima(name, tuple(self.calibrators), chosen)
            maxima += self._maxima(name, ("poison",), bad) if bad else []
            thresholds[name] = threshold(maxima, self.alpha)
        return Calibration(fitted, thresholds)

    def _maxima(self, name: str, files: tuple[str, ...], clients: set[str]) -> list[float]:
        paths = self._walk(name, files).accounts
        return [paths[client].maximum if client in paths else -math.inf for client in sorted(clients)]

    def _walk(self, name: str, files: tuple[str, ...]) -> Paths:
        """A peer's paths over files, each walked once: no account is in two."""
        key = (name, files)
        if key not in self._paths:
            if len(files) > 1:
                parts = [self._walk(name, (one,)) for one in files]
                accounts: dict[str, Path] = {}
                for part in parts:
                    accounts |= part.accounts
                seconds = statistics.fmean(part.seconds_per_query for part in parts)
                self._paths[key] = Paths(accounts, seconds, statistics.fmean(part.bytes_per_account for part in parts))
            else:
                peer, space = self.contestants[name]
                if name not in self._peers or PEERS[peer].shared:
                    self._peers[name] = make_peer(peer, self.reference, space)
                self._paths[key] = walk(self._peers[name], self.folder.together(files), space)
        return self._paths[key]

    def warm_up(self, calibration: Calibration) -> None:
        """Let kernels be compiled before anything is timed."""
        if self._ours:
            ours.judge(self.reference.slice(0, min(2_000, len(self.reference))), calibration.fitted)

    def judge(self, mixture: Mixture, calibration: Calibration, *, peers: bool = True) -> Iterator[Row]:
        """One row a detector; ours last, in three: by account, by campaign, and either."""
        truth = self.folder.truth(mixture.files)
        for name in self.contestants if peers else []:
            paths = self._walk(name, mixture.files)
            crossed = {who: path.crossing(calibration.thresholds[name]) for who, path in paths.accounts.items()}
            hits = {who: queries for who, queries in crossed.items() if queries is not None}
            cost = {"microseconds": 1e6 * paths.seconds_per_query, "bytes_per_account": paths.bytes_per_account}
            yield _row(mixture, name, truth, hits, cost)
        if not self._ours:
            return
        batch: RequestBatch = self.folder.together(mixture.files)
        verdict = ours.judge(batch, calibration.fitted)
        yield from _our_rows(mixture, truth, verdict, len(np.unique(batch.text("client").codes)))


def _row(
    mixture: Mixture, name: str, truth: dict[str, Any], hits: dict[str, int], more: dict[str, Any] | None = None
) -> Row:
    attackers = [who for who, one in truth.items() if one["attack"]]
    ordinary = [who for who, one in truth.items() if not one["attack"]]
    found = [hits[who] for who in attackers if who in hits]
    return Row(
        scenario=mixture.scenario,
        family=mixture.family,
        detector=name,
        accounts=len(attackers),
        found=len(found),
        queries=statistics.median(found) if found else None,
        ordinary=len(ordinary),
        flagged=sum(who in hits for who in ordinary),
        share=len(attackers) / max(1, len(truth)),
        more=more or {},
    )


def _our_rows(mixture: Mixture, truth: dict[str, Any], verdict: ours.Verdict, clients: int) -> Iterator[Row]:
    alone, named = verdict.found(), verdict.named()
    either = {who: min(hits[who] for hits in (alone, named) if who in hits) for who in alone | named}
    yield _row(mixture, f"{OURS} account", truth, alone, _detail(truth, verdict))
    yield _row(mixture, f"{OURS} campaign", truth, named, _campaigns(truth, verdict))
    cost: dict[str, Any] = {"microseconds": verdict.microseconds, "by_detector": verdict.shares}
    cost["bytes_per_account"] = sum(verdict.state_bytes.values()) / max(1, clients)
    yield _row(mixture, OURS, truth, either, cost | {"standing": verdict.standing})


def _detail(truth: dict[str, Any], verdict: ours.Verdict) -> dict[str, Any]:
    """Which detectors and channels found attackers, who was flagged wrongly, how loudly, and the exposure gauge."""
    told = {who: list(alarms.values()) for who, alarms in verdict.accounts.items()}
    loud = {who: [one for one in alarms if one.severity.rank >= Severity.LOW.rank] for who, alarms in told.items()}
    theirs = [who for who in told if truth.get(who, {}).get("attack")]
    wrong = [who for who in told if who not in theirs and loud[who]]
    exposed = {who: one for who, alarms in told.items() for one in alarms if one.detector == "extraction_exposure"}
    return {
        "detectors": Counter(one.detector for who in theirs for one in loud[who]),
        "channels": Counter(one.channel for who in theirs for one in loud[who]),
        "flagged_kinds": Counter(truth.get(who, {"kind": "?"})["kind"] for who in wrong),
        "flagged_by": Counter(one.detector for who in wrong for one in loud[who]),
        "pages_on_ordinary": sum(any(one.severity.rank >= Severity.HIGH.rank for one in loud[who]) for who in wrong),
        "certified": sum(any(one.certified for one in loud[who]) for who in theirs),
        "walks": sum(any(one.walk for one in loud[who]) for who in theirs),
        "users_named": sum(truth[who].get("user") in verdict.users.get(who, ()) for who in theirs),
        "users_flagged_wrongly": sum(
            len(users - {truth.get(who, {}).get("user")}) for who, users in verdict.users.items()
        ),
        "exposed": sum(who in exposed for who in theirs),
        "exposed_ordinary": sum(who not in theirs for who in exposed),
        "exposure_ranks": sorted(exposed[who].rank for who in theirs if who in exposed and exposed[who].rank),
        "exposed_after": sorted(exposed[who].queries for who in theirs if who in exposed),
    }


def _campaigns(truth: dict[str, Any], verdict: ours.Verdict) -> dict[str, Any]:
    """Campaigns told: how many, and how many without an attacker in them."""
    loud = [(one, who) for one, who in verdict.campaigns.values() if one.severity.rank >= Severity.LOW.rank]
    groups = [pair for pair in verdict.campaigns.values() if pair[0].detector == "extraction_exposure"]
    attackers = {who for who, one in truth.items() if one["attack"]}
    return {
        "campaigns": len(loud),
        "campaigns_on_ordinary": sum(not (who.keys() & attackers) for _, who in loud),
        "campaign_pages_on_ordinary": sum(
            not (who.keys() & attackers) and one.severity.rank >= Severity.HIGH.rank for one, who in loud
        ),
        "coordinated_shifts": verdict.shifts,
        "exposed_in_groups": len(attackers & set().union(*(who for one, who in groups))),
    }


def warn(text: str) -> None:
    """To standard error: data alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)
