"""Our detectors as a daemon runs them: fitted, folded, and their findings read whatever detector they come from."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlsecd import app, plugins
from mlsecd.config import Config, parse
from mlsecd.detectors.base import Detector, Section
from mlsecd.findings.ledger import Ledger
from mlsecd.meters import Meters
from mlsecd.records import Finding, Kind, RequestBatch, Severity, SourceStatus

__all__ = ["Alarm", "Fitted", "Verdict", "configure", "fit", "judge"]

THREATS = ("extraction_", "campaign_")
WALK = "AML.T0043.001"  # ATLAS: black-box optimisation of adversarial data
PIECE = 16_384  # rows handed over at a time
AFTER = 26 * 3_600  # seconds of silence after the last record, so that its epoch is closed


@dataclass(frozen=True)
class Alarm:
    """One detector's first finding of an account."""

    detector: str
    queries: int  # of the account's, up to then
    severity: Severity
    certified: bool
    channel: str  # the leading one, where the evidence has channels
    rank: int | None  # by exposure, where the evidence has it
    walk: bool  # told as an adversarial-example walk, not as extraction


@dataclass
class Fitted:
    """Sections by detector, and what fitting said."""

    config: Config
    sections: dict[str, Section | None]
    notes: list[str] = field(default_factory=list)


# "detector:subject" -> its loudest finding; every client that it named, with the client's queries up to then
Campaigns = dict[str, tuple[Finding, dict[str, int]]]


@dataclass
class Verdict:
    """What came of one stream."""

    accounts: dict[str, dict[str, Alarm]]  # client -> detector -> first finding about it, info ones too
    campaigns: Campaigns
    users: dict[str, set[str]]  # end users of an aggregator's key that findings of severity low and above are about
    shifts: int  # findings that say: many moved together, and this is no attack
    microseconds: float  # of CPU a record: the detectors and the fold around them
    shares: dict[str, float]  # each detector's part of the detectors' time
    state_bytes: dict[str, int]
    standing: dict[str, str]

    def found(self, least: Severity = Severity.LOW) -> dict[str, int]:
        """Accounts with a finding of their own, and queries until the first."""
        hits: dict[str, int] = {}
        for client, alarms in self.accounts.items():
            loud = [alarm.queries for alarm in alarms.values() if alarm.severity.rank >= least.rank]
            if loud:
                hits[client] = min(loud)
        return hits

    def named(self, least: Severity = Severity.LOW) -> dict[str, int]:
        """Accounts that a campaign names, and queries until it did."""
        hits: dict[str, int] = {}
        for one, who in self.campaigns.values():
            for client, queries in who.items() if one.severity.rank >= least.rank else ():
                hits[client] = min(queries, hits.get(client, queries))
        return hits


class _Heard(Ledger):
    """A ledger that remembers what detectors said, before repeats are held back."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Finding] = []

    def take(self, findings: Iterable[Finding]) -> list[Finding]:
        kept = list(findings)
        self.heard += kept
        return super().take(kept)


def configure(alpha: float | None, overrides: Iterable[str] = ()) -> Config:
    """The built-in configuration; ``alpha``: level a client, None for the share of the weekly budget."""
    level = () if alpha is None else (f"detectors.extraction_account.client_alpha={alpha}",)
    return parse("", "(bench)", (*level, *overrides))


def _classes(config: Config) -> dict[str, type[Detector]]:
    """Ours of this threat that are on. All others stay in the configuration: the budget is shared as on a host."""
    return {
        name: cls
        for name, cls in plugins.detectors().items()
        if name.startswith(THREATS) and Kind.REQUEST in cls.consumes and name not in config.disabled
    }


def _pieces(batch: RequestBatch) -> Iterator[RequestBatch]:
    for start in range(0, len(batch), PIECE):
        yield batch.slice(start, min(len(batch), start + PIECE))


def fit(batch: RequestBatch, config: Config) -> Fitted:
    """Every detector learns from ordinary records, in order of completion."""
    kernels = app.load_kernels(config)
    stamped = RequestBatch(batch.columns, np.arange(len(batch)))
    fitted = Fitted(config, {})
    for name, cls in _classes(config).items():
        learned = cls.fit(_pieces(stamped), config.detectors[name], kernels)
        fitted.sections[name] = learned.section if learned else None
        if learned and learned.refused:
            fitted.notes.append(f"{name}: refused: {learned.refused}")
        fitted.notes += [f"{name}: {note}" for note in learned.notes] if learned else []
    return fitted


def judge(batch: RequestBatch, fitted: Fitted) -> Verdict:
    """Fold one stream from a fresh start, a day of silence after it."""
    kernels = app.load_kernels(fitted.config)
    detectors = [
        cls(fitted.config.detectors[name], kernels, fitted.sections.get(name))
        for name, cls in _classes(fitted.config).items()
    ]
    meters, ledger = Meters(), _Heard()
    fold = app.make_fold(fitted.config, meters, detectors, ledger)
    fold.on_failed = _raise
    began = time.thread_time()
    for piece in _pieces(batch):
        fold.push([piece])
    spent = 1e6 * (time.thread_time() - began) / max(1, len(batch))
    state = {one.name: len(one.snapshot()) for one in detectors}
    standing = {one.name: f"{one.standing().state} {one.standing().why}".strip() for one in detectors}
    last = float(batch.completion.max())
    for after in range(0, AFTER, 1_800):
        fold.push([SourceStatus(ts=last + after, source="bench", ok=True)])
    fold.finish()
    seconds = {one.name: meters.value("mlsecd_detector_seconds_total", detector=one.name) for one in detectors}
    shares = {name: value / max(1e-9, sum(seconds.values())) for name, value in seconds.items()}
    accounts, campaigns = _read(batch, ledger.heard)
    users, moved = _users(ledger.heard), sum(map(_is_shift, ledger.heard))
    return Verdict(accounts, campaigns, users, moved, spent, shares, state, standing)


def _raise(detector: Detector, error: Exception) -> None:
    print(f"{detector.name} failed", file=sys.stderr)
    raise error


def _read(batch: RequestBatch, heard: list[Finding]) -> tuple[dict[str, dict[str, Alarm]], Campaigns]:
    times = _times(batch)

    def until(client: str, ts: float) -> int:
        return int(np.searchsorted(times.get(client, np.zeros(0)), ts + 1e-6, side="right"))

    accounts: dict[str, dict[str, Alarm]] = {}
    campaigns: Campaigns = {}
    for one in heard:
        clients = _clients(one.evidence)
        if one.subject_kind == "client":
            client = one.subject if one.subject in times else str(one.evidence.get("client", one.subject))
            mine = accounts.setdefault(client, {})
            before = mine.get(one.detector)
            if before is None or (before.severity is Severity.INFO and one.severity is not Severity.INFO):
                mine[one.detector] = _alarm(one, until(client, one.ts))
        elif clients or one.subject_kind == "campaign":
            key = f"{one.detector}:{one.subject}"
            held, named = campaigns.get(key, (one, {}))
            named = {who: until(who, one.ts) for who in clients} | named
            campaigns[key] = (max(held, one, key=lambda finding: finding.severity.rank), named)
    return accounts, campaigns


def _users(heard: list[Finding]) -> dict[str, set[str]]:
    made: dict[str, set[str]] = {}
    for one in heard:
        if one.severity.rank >= Severity.LOW.rank and one.evidence.get("user"):
            made.setdefault(str(one.evidence.get("client", one.subject)), set()).add(str(one.evidence["user"]))
    return made


def _is_shift(one: Finding) -> bool:
    return one.severity is Severity.INFO and one.subject_kind == "model" and one.detector.startswith("campaign_")


def _alarm(one: Finding, queries: int) -> Alarm:
    rank = one.evidence.get("rank")
    return Alarm(
        detector=one.detector,
        queries=queries,
        severity=one.severity,
        certified=one.certified,
        channel=_channel(one.evidence),
        rank=rank if isinstance(rank, int) else None,
        walk=WALK in one.atlas,
    )


def _times(batch: RequestBatch) -> dict[str, Any]:
    """Completion times of each client, sorted."""
    who = batch.text("client")
    order = np.argsort(who.codes, kind="stable")
    codes, starts = np.unique(who.codes[order], return_index=True)
    parts = np.split(np.asarray(batch.completion)[order], starts[1:])
    return {who.values[code]: part for code, part in zip(codes.tolist(), parts, strict=True) if code >= 0}


def _clients(evidence: dict[str, Any]) -> set[str]:
    listed = evidence.get("clients")
    if not isinstance(listed, list | tuple | set):
        return set()
    return {str(one.get("client", one)) if isinstance(one, dict) else str(one) for one in listed}


def _channel(evidence: dict[str, Any]) -> str:
    channels = evidence.get("channels")
    if isinstance(channels, list) and channels:
        first = channels[0]
        return str(first.get("channel", first)) if isinstance(first, dict) else str(first)
    return ""
