"""One account that queries a model as one who copies it would."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from operator import itemgetter
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mlsecd.detectors import _extraction_fit as fitting
from mlsecd.detectors._extraction_budget import BudgetParams
from mlsecd.detectors._extraction_calibration import MIN_QUERIES
from mlsecd.detectors._extraction_channels import Reference
from mlsecd.detectors._extraction_cohorts import Cohorts, Lately
from mlsecd.detectors._extraction_groups import Group, compile_for, groups_of, route
from mlsecd.detectors._extraction_hiding import HIDING, Hidden, HidingPlan, answered
from mlsecd.detectors._extraction_level import Level
from mlsecd.detectors._extraction_standing import Calibration
from mlsecd.detectors._extraction_state import TICK, Account, Accounts
from mlsecd.detectors._extraction_words import (
    evidence_of,
    evidence_of_hiding,
    is_walk,
    reason_of,
    reason_of_hiding,
)
from mlsecd.detectors.base import Detector, DetectorState, Fit, Interval, Maturity, Section, Standing
from mlsecd.errors import BaselineError, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records, RequestBatch, Severity
from mlsecd.windows.packing import pack, unpack
from mlsecd.windows.recent import Recent

__all__ = ["DETECTOR", "ExtractionAccount", "Params"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

_SNAPSHOT: Final = 2
_RISE: Final = 1.0  # decades by which a score must have grown to be told again,
_GROWTH: Final = 0.25  # or this share of itself, if that is more: some twenty findings on the way to the ceiling
_COUNTERS: Final = ("unattributed", "unscored", "mismatched", "retried", "refused")  # rows of each fate
_WALK: Final = ("AML.T0043.001",)  # Black-Box Optimization of adversarial data
_LEARNING: Final = "no baseline: record a week of ordinary requests, then run `mlsecd baseline fit`"


class Params(BudgetParams, frozen=True):
    """How often it may be wrong, and how much it may hold."""

    max_clients: Annotated[int, Meta(ge=10, le=10_000_000, description="accounts with counts")] = 100_000
    max_hot_clients: Annotated[int, Meta(ge=1, le=100_000, description="accounts with a window of queries")] = 2_000


class ExtractionAccount(Detector):
    """Counts, by account, queries that ordinary clients seldom send, against how ordinary clients differ.

    Channels of each query fire at fixed conformal levels; an account's counts are held against a
    beta-binomial null; the threshold on the highest score of its path is a split-conformal quantile
    of ordinary clients' paths. So an ordinary client, exchangeable with those of the calibration,
    *ever* alarms within an epoch with at most the level's chance, whenever one looks.
    """

    name = "extraction_account"
    consumes = frozenset({Kind.REQUEST})
    key = "client"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0024.002",)  # Extract AI Model
    owasp = ("LLM10:2025",)  # Unbounded Consumption, which covers model extraction
    summary = "An account whose queries, taken together, look like those of someone who copies the model."
    action = (
        "Look at this account's recent requests and who owns it. If it is no test or batch job of your own, "
        "rate-limit or suspend its key and keep the evidence; if it is, add an exception with an end date."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Theft without any data (DFME) estimates gradients, and is told as a search for adversarial inputs.",
        "Theft with ordinary inputs (data of the model's own distribution, or pieces of them) looks like a customer.",
        "Mixtures of ordinary inputs are told late, after hundreds of queries, and not on every model.",
        "Of vectors wider than 64 numbers only the 64 leading axes of ordinary ones are looked at.",
        "Honest clients who change single columns at a time look like inputs that are drawn column by column.",
        "A few attack queries in each of many accounts: each account stays below what one account shows.",
        "Fewer than 10 distinct queries of one account in one epoch are never judged.",
        "Requests without features and input_features show only in their number: the tap must send a vector.",
        "Queries without a vector, where a quarter of the accounts have such rows, or fewer than 8 others come.",
        "Repeats no more often than pollers and health checks, where those were there at calibration.",
        "Exact repeats beyond the window's reach (1,024 queries of 32 coordinates) count as new.",
        "Ordinary clients that change together (a season, a launch) are no longer exchangeable with the calibration.",
        "A launch whose inputs are as foreign to the model as a thief's looks like theft by its customers.",
        "Thieves in the baseline cost the page until they are left out; where one in twenty is one, tickets too.",
        "An epoch longer than the calibration recording lets clients do more than those it was calibrated on.",
        "Accounts above max_hot_clients lose their window: for them only the channels of single queries count.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._references = self._load(section)
        self._hiding = self._load_hiding(section)
        self._calibration = Calibration(self._references, params, kernels, list(self._hiding.values()))
        self._cohorts = Cohorts(params.max_clients)
        models = [reference.model for reference in self._references]
        self._firsts = [models.index(model) for model in models]
        channels = len(kernels.CHANNELS) if self._references else 0
        self._accounts = Accounts(params.max_clients, params.max_hot_clients, channels, self._shape)
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._mismatch_run = 0
        self._gates = np.array([0.0, 0.0, 0.0, MIN_QUERIES])
        for reference in self._references:
            compile_for(reference, kernels)

    def _load(self, section: Section | None) -> list[Reference]:
        if section is None:
            return []
        headers = section.header.get("references")
        if not isinstance(headers, list) or not all(isinstance(header, dict) for header in headers):
            raise BaselineError(f"{self.name}: the baseline's part cannot be used")
        return [Reference.of(header, section.arrays, str(i), self.kernels) for i, header in enumerate(headers)]

    def _load_hiding(self, section: Section | None) -> dict[str, HidingPlan]:
        """By model; empty where the baseline was fitted before these were learned."""
        if section is None or "hiding" not in section.header:
            return {}
        models = section.header["hiding"]
        if not isinstance(models, list) or set(models) != {reference.model for reference in self._references}:
            raise BaselineError(f"{self.name}: the baseline's part cannot be used")
        return {model: HidingPlan.of(model, section.arrays, f"hiding.{i}") for i, model in enumerate(models)}

    def _shape(self, name: str) -> tuple[int, int]:
        """Coordinates and rows of an account's window."""
        number = int(name.partition(":")[0])
        if number >= len(self._references):
            raise StateError("a snapshot has accounts of a model that the baseline does not have")
        reference = self._references[number]
        return reference.window_space.dims, len(reference.plan.near) - 1

    def observe(self, records: Records) -> list[Finding]:
        """Fold requests, in order of completion."""
        if not isinstance(records, RequestBatch) or not len(records):
            return []
        chosen, blank = self._route(records)
        if not ((chosen >= 0) | (blank >= 0)).any():
            return []
        good = answered(records)
        ticks = records.completion // TICK
        groups: list[Group] = []
        for number in np.unique(chosen[chosen >= 0]).tolist():
            at = np.flatnonzero(chosen == number)
            groups += groups_of(records, at, ticks, number, self._references[number], self.kernels)
        for number in np.unique(blank[good & (blank >= 0)]).tolist():
            at = np.flatnonzero(good & (blank == number))
            groups += groups_of(records, at, ticks, number, None, self.kernels)
        found: list[tuple[int, Finding]] = []
        for group in sorted(groups, key=itemgetter(0)):  # accounts enter in order of appearance
            if group.rows is not None:
                found += self._fold(group)
            if self._hiding:
                self._see(group, records, good)
        return [finding for _, finding in sorted(found, key=itemgetter(0))]

    def _route(self, batch: RequestBatch) -> tuple[I8, I8]:
        """The reference of each row, int64[n], -1 for none: of those with vectors, and of blanks; counts the latter."""
        routed = route(batch, self._references)
        self._counts["unattributed"] += int((~routed.known).sum())
        self._counts["unscored"] += int((routed.known & (routed.chosen < 0)).sum())
        self._count_misfits(routed.misfit, routed.chosen >= 0)
        return routed.chosen, routed.blank if self._hiding else np.full(len(batch), -1, np.int64)

    def _count_misfits(self, misfit: NDArray[np.bool_], scored: NDArray[np.bool_]) -> None:
        self._counts["mismatched"] += int(misfit.sum())
        last = np.flatnonzero(scored)
        if len(last):
            self._mismatch_run = 0
        self._mismatch_run += int(misfit[last[-1] + 1 if len(last) else 0 :].sum())

    def _fold(self, group: Group) -> list[tuple[int, Finding]]:
        """Fold one account's rows of one tick; findings with the row that each is due to."""
        name, rows, stop = group.name, group.rows, group.stop
        entered = self._accounts.enter(name, group.tick, rows.ts[group.start], self.params.epoch_seconds)
        if entered is None:
            self._counts["refused"] += stop - group.start
            return []
        account, recent = entered
        recent.make_room(stop - group.start)
        plan, level = self._references[group.number].plan, self._calibration.levels[group.number]
        held = self.kernels.Account(
            recent.codes, recent.labels, recent.keys, recent.pushed, account.seen, account.tally, account.best
        )
        repeats = account.seen[0] - account.seen[1]
        found = []
        end, score = self.kernels.scan(held, rows, plan, self._gate(account, level), group.start, stop)
        while score >= 0.0:
            account.told, account.told_ts = max(score, account.told), float(rows.ts[end - 1])
            found.append((int(group.at[end - 1]), self._tell(name, account, recent, score)))
            end, score = self.kernels.scan(held, rows, plan, self._gate(account, level), end, stop)
        self._counts["retried"] += int(account.seen[0] - account.seen[1] - repeats)
        return found

    def _see(self, group: Group, batch: RequestBatch, good: NDArray[np.bool_]) -> None:
        """Note how many of an account's rows of one tick are repeats, and how many have no usable vector."""
        at = group.at[group.start : group.stop]
        if group.rows is None:
            counts = (0, 0, len(at), len(at))
        else:
            repeats = group.rows.repeats[group.start : group.stop]
            counts = (int(np.count_nonzero(repeats)), len(at), 0, int(np.count_nonzero(good[at])))
        _, rest = group.name.split(":", 1)
        name = f"{self._firsts[group.number]}:{rest}"  # of all views, it is the same account
        self._cohorts.see(name, group.tick, float(batch.completion[at[0]]), counts)

    def states(self) -> Iterable[tuple[str, Lately]]:
        """The interval's accounts; the next one begins."""
        return self._cohorts.take()

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Judge what hides, where enough accounts have come to tell whose doing it is."""
        found = []
        for name, hidden in self._cohorts.settle(states, interval.end, self.params.epoch_seconds):
            plan = self._hiding[self._references[int(name.partition(":")[0])].model]
            limits = self._calibration.hiding[plan.model]
            scores = [hidden.score(channel, plan.null, self.kernels) for channel in range(len(HIDING))]
            due = [
                c
                for c, score in enumerate(scores)
                if score > limits[c] and self._is_due(hidden, c, score, interval.end)
            ]
            if not due:
                continue
            lead = max(due, key=lambda c: scores[c] / limits[c])
            for channel in due:
                hidden.told[channel] = max(hidden.told[channel], scores[channel])
                hidden.told_ts[channel] = interval.end
            found.append(self._tell_hiding(name, hidden, scores, lead, interval.end))
        return found

    def _is_due(self, hidden: Hidden, channel: int, score: float, now: float) -> bool:
        """Whether a score that goes on is told again."""
        return score >= _risen(hidden.told[channel]) or now >= hidden.told_ts[channel] + self.params.repeat_seconds

    def _tell_hiding(self, name: str, hidden: Hidden, scores: list[float], lead: int, ts: float) -> Finding:
        """A ticket, whatever the score: a broken client looks the same, and content's calibration says nothing here."""
        number, synthetic, client = name.split(":", 2)
        plan = self._hiding[self._references[int(number)].model]
        evidence = evidence_of_hiding(plan, hidden, scores, lead)
        return self.finding(
            ts=ts,
            subject_kind="client",
            subject=client,
            severity=Severity.LOW,
            score=scores[lead],
            threshold=float(self._calibration.hiding[plan.model][lead]),
            reason=reason_of_hiding(evidence, self._calibration.asked[int(number)]),
            evidence=evidence,
            certified=False,
            synthetic=synthetic == "1",
        )

    def _gate(self, account: Account, level: Level) -> NDArray[np.float64]:
        """From which score on, and from when on, the next finding is due."""
        again = account.told_ts + self.params.repeat_seconds
        risen = _risen(account.told)
        if level.certified and not level.pages(account.told):
            risen = min(
                risen, math.nextafter(level.threshold, math.inf)
            )  # a ticket that becomes a page is told at once
        gates = self._gates
        gates[0], gates[1], gates[2] = math.nextafter(level.ticket, math.inf), risen, again
        return gates

    def _tell(self, name: str, account: Account, recent: Recent, score: float) -> Finding:
        """The finding of an account just now."""
        number, synthetic, client = name.split(":", 2)
        reference, level = self._references[int(number)], self._calibration.levels[int(number)]
        evidence = evidence_of(reference, level, account, len(recent), self.kernels)
        found = self.finding(
            ts=account.told_ts,
            subject_kind="client",
            subject=client,
            severity=Severity.HIGH if level.pages(score) else Severity.LOW,
            score=score,
            threshold=level.threshold if level.pages(score) else level.ticket,
            reason=reason_of(evidence, level, certified=level.pages(score)),
            evidence=evidence,
            certified=level.pages(score),
            synthetic=synthetic == "1",
        )
        return dataclasses.replace(found, atlas=_WALK, owasp=()) if is_walk(evidence) else found

    def standing(self) -> Standing:
        """Whether it is calibrated, for how many clients, and what it could not score."""
        counts = {f"{name}_rows": float(count) for name, count in self._counts.items()}
        gauges = {
            "hot_clients": float(self._accounts.hot),
            "cold_clients": float(self._accounts.cold),
            "evicted_clients": float(self._accounts.evicted),
            "hiding_clients": float(len(self._cohorts)),
            "hiding_refused": float(self._cohorts.refused),
            **counts,
        }
        if not self._references:
            return Standing(DetectorState.LEARNING, _LEARNING, gauges)
        return Standing(*self._calibration.state(self._mismatch_run), gauges | self._calibration.gauges())

    def snapshot(self) -> bytes:
        """Accounts, windows and counters, bound to the baseline's calibration."""
        state = {
            "baseline": self._fingerprint(),
            "counts": [self._counts[name] for name in _COUNTERS],
            "mismatch_run": self._mismatch_run,
            "accounts": self._accounts.dump(),
            "cohorts": self._cohorts.dump(),
        }
        return pack(_SNAPSHOT, state)

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state, if it was made with the same calibration."""
        state = unpack(_SNAPSHOT, blob)
        try:
            if state["baseline"] != self._fingerprint():
                raise StateError("the snapshot was made with another baseline")
            counts = dict(zip(_COUNTERS, map(int, state["counts"]), strict=True))
            run = int(state["mismatch_run"])
            self._accounts.load(state["accounts"])
            self._cohorts.load(state["cohorts"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise StateError(f"a snapshot of {self.name} is damaged: {error}") from error
        self._counts, self._mismatch_run = counts, run

    def _fingerprint(self) -> str:
        """What the counts were counted against."""
        digest = hashlib.blake2b(digest_size=16)
        for reference in self._references:
            digest.update(f"{reference.model}\0{reference.view}\0".encode())
            for array in reference.arrays("").values():
                digest.update(array.tobytes())
        for plan in self._hiding.values():
            for array in plan.arrays("").values():
                digest.update(array.tobytes())
        return digest.hexdigest()

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit:
        """Learn references and calibration of each model that has enough clients."""
        return fitting.fit(records, params, kernels)


def _risen(told: float) -> float:
    """The score from which on it is told again."""
    return told + max(_RISE, _GROWTH * told)


DETECTOR = ExtractionAccount
