"""One account that queries a model as one who copies it would."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from itertools import chain
from operator import itemgetter
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mlsecd.detectors import _extraction_fit as fitting
from mlsecd.detectors._extraction_budget import BudgetParams
from mlsecd.detectors._extraction_calibration import MIN_QUERIES
from mlsecd.detectors._extraction_channels import Reference
from mlsecd.detectors._extraction_cohorts import Lately
from mlsecd.detectors._extraction_excuses import Excuses
from mlsecd.detectors._extraction_groups import Group, compile_for, groups_of, route
from mlsecd.detectors._extraction_hideouts import Hideouts, Hider, Together
from mlsecd.detectors._extraction_hiding import HidingPlan, answered, lost
from mlsecd.detectors._extraction_level import Level, risen
from mlsecd.detectors._extraction_standing import Calibration
from mlsecd.detectors._extraction_state import TICK, Account, Accounts
from mlsecd.detectors._extraction_words import (
    evidence_of,
    evidence_of_hiding,
    evidence_of_together,
    is_walk,
    reason_of,
    reason_of_hiding,
    reason_of_together,
)
from mlsecd.detectors._sections import left_out_of
from mlsecd.detectors.base import Detector, DetectorState, Fit, Interval, Maturity, Section, Standing
from mlsecd.errors import MALFORMED, BaselineError, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records, RequestBatch, Severity
from mlsecd.windows.packing import pack, unpack
from mlsecd.windows.recent import Recent

__all__ = ["DETECTOR", "ExtractionAccount", "Params"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

_SNAPSHOT: Final = 5
_COUNTERS: Final = ("unattributed", "unscored", "mismatched", "retried", "refused")  # rows of each fate
_WALK: Final = ("AML.T0043.001",)  # Black-Box Optimization of adversarial data
_ACTION_TOGETHER: Final = (
    "Look at the tap and the gateway in front of this model first: do they send a vector, and a hash of its own for "
    "each body? If they do, look at what the named accounts have in common, and limit them together."
)
_ACTION_EXCUSED: Final = (
    "Nothing to stop. If the change is here to stay, record a week and fit the baseline again: until then a thief who "
    "sends such inputs looks the same."
)
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
        "Queries without vectors, where a quarter of all are so (told by model), or fewer than 8 others come.",
        "Repeats no more often than pollers and health checks, where those were there at calibration.",
        "Exact repeats beyond the window's reach (1,024 queries of 32 coordinates) count as new.",
        "Ordinary clients that change together (a season, a launch) are no longer exchangeable with the calibration.",
        "A launch whose inputs are as foreign as a thief's looks like theft by its customers, unless it is announced.",
        "A season as foreign does, too, until most of the accounts that had been calm for a day have turned.",
        "Thieves who are most of the accounts that had been calm, or new in an announced launch, and merely odd: info.",
        "Thieves in the baseline cost the page until they are left out; where one in twenty is one, tickets too.",
        "An epoch longer than the calibration recording lets clients do more than those it was calibrated on.",
        "Accounts above max_hot_clients lose their window: for them only the channels of single queries count.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._references = self._load(section)
        models = [reference.model for reference in self._references]
        self._firsts = [models.index(model) for model in models]
        self._hiding = self._load_hiding(section, models)
        left_out = 0 if section is None else left_out_of(section.header)
        self._calibration = Calibration(self._references, params, kernels, self._hiding, left_out)
        limits = {number: limit.scores for number, limit in self._calibration.hiding.items()}
        self._hideouts = Hideouts(self._hiding, limits, params.max_clients, params, kernels)
        self._shapes = [(one.window_space.dims, len(one.plan.near) - 1) for one in self._references]
        channels = len(kernels.CHANNELS) if self._references else 0
        self._accounts = Accounts(params.max_clients, params.max_hot_clients, channels, self._shape)
        self._excuses = Excuses(params.launches, self._references, kernels)
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

    def _load_hiding(self, section: Section | None, models: list[str]) -> dict[int, HidingPlan]:
        """By number of the model's first reference; empty where the baseline was fitted before these were learned."""
        if section is None or "hiding" not in section.header:
            return {}
        held = section.header["hiding"]
        if not isinstance(held, list) or sorted(map(str, held)) != sorted(set(models)):
            raise BaselineError(f"{self.name}: the baseline's part cannot be used")
        return {
            models.index(model): HidingPlan.of(model, section.arrays, f"hiding.{i}") for i, model in enumerate(held)
        }

    def _shape(self, name: str) -> tuple[int, int]:
        """Coordinates and rows of an account's window."""
        number = int(name.partition(":")[0])
        if not 0 <= number < len(self._shapes):
            raise StateError("a snapshot has accounts of a model that the baseline does not have")
        return self._shapes[number]

    def observe(self, records: Records) -> list[Finding]:
        """Fold requests, in order of completion."""
        if not isinstance(records, RequestBatch) or not len(records):
            return []
        chosen, blank = self._route(records)
        if not ((chosen >= 0) | (blank >= 0)).any():
            return []
        good = answered(records)
        ticks = records.completion // TICK
        encoded: list[list[Group]] = []
        for number in np.unique(chosen[chosen >= 0]).tolist():
            at = np.flatnonzero(chosen == number)
            encoded.append(list(groups_of(records, at, ticks, number, self._references[number], self.kernels)))
        for number in np.unique(blank[good & (blank >= 0)]).tolist():
            at = np.flatnonzero(good & (blank == number))
            encoded.append(list(groups_of(records, at, ticks, number, None, self.kernels)))
        found: list[tuple[int, Finding]] = []
        for group in sorted(chain.from_iterable(encoded), key=itemgetter(0)):  # accounts enter in order of appearance
            if group.rows is not None:
                found += self._fold(group)
        if self._hiding:
            self._see(encoded, records, good)
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

    def _see(self, encoded: list[list[Group]], batch: RequestBatch, good: NDArray[np.bool_]) -> None:
        """Note how many rows of each group, once folded, are repeats, lack a usable vector, or were lost."""
        missing, completion = lost(batch), batch.completion
        names: list[str] = []
        counted, firsts = [], []
        for groups in encoded:
            at, rows = groups[0].at, groups[0].rows
            starts = np.array([group.start for group in groups])
            sizes = np.diff(starts, append=len(at))
            none, gone = np.zeros_like(sizes), np.add.reduceat(missing[at], starts)
            counts = [none, none, sizes + gone, sizes + gone]
            if rows is not None:
                repeats, fine = (np.add.reduceat(one.astype(np.int64), starts) for one in (rows.repeats, good[at]))
                lesser = self._firsts[groups[0].number] != groups[0].number  # of two vectors, one is missing
                counts = [repeats, sizes, gone + fine if lesser else gone, gone + fine]
            names += [self._name_of(group) for group in groups]
            counted.append(np.stack(counts, axis=1))
            firsts.append(at[starts])
        appeared = np.concatenate(firsts)
        order = np.argsort(appeared, kind="stable")  # accounts enter in order of appearance
        when, tally = completion[appeared], np.concatenate(counted)
        self._hideouts.see([names[i] for i in order.tolist()], when[order], tally[order])

    def _name_of(self, group: Group) -> str:
        """Of all views of a model, it is the same account."""
        first = self._firsts[group.number]
        return group.name if first == group.number else f"{first}:{group.name.partition(':')[2]}"

    def states(self) -> Iterable[tuple[str, Lately]]:
        """The interval's accounts; the next one begins."""
        return self._hideouts.take()

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Judge what hides, where enough accounts have come to tell whose doing it is, and whether most have turned."""
        self._excuses.look(interval, self._accounts)
        return [
            self._tell_together(one, interval.end) if isinstance(one, Together) else self._tell_hider(one, interval.end)
            for one in self._hideouts.judge(states, interval.end)
        ]

    def _tell_hider(self, hider: Hider, ts: float) -> Finding:
        """A ticket, whatever the score: a broken client looks the same, and content's calibration says nothing here."""
        number, synthetic, client = hider.name.split(":", 2)
        plan, limit = self._hiding[int(number)], self._calibration.hiding[int(number)]
        evidence = evidence_of_hiding(plan, hider)
        return self.finding(
            ts=ts,
            subject_kind="client",
            subject=client,
            severity=Severity.LOW,
            score=float(hider.scores[hider.lead]),
            threshold=float(limit.scores[hider.lead]),
            reason=reason_of_hiding(evidence, limit.asked),
            evidence=evidence,
            synthetic=synthetic == "1",
        )

    def _tell_together(self, group: Together, ts: float) -> Finding:
        """One ticket for all of them."""
        plan, leading = self._hiding[group.model], group.parts[0]
        return self.finding(
            ts=ts,
            subject_kind="model",
            subject=plan.model,
            severity=Severity.LOW,
            score=leading.score,
            threshold=leading.threshold,
            reason=reason_of_together(plan, group),
            evidence=evidence_of_together(plan, group),
            synthetic=group.synthetic,
            action=_ACTION_TOGETHER,
        )

    def _gate(self, account: Account, level: Level) -> NDArray[np.float64]:
        """From which score on, and from when on, the next finding is due."""
        again = account.told_ts + self.params.repeat_seconds
        higher = risen(account.told)
        if level.certified and not level.pages(account.told):
            higher = min(higher, math.nextafter(level.threshold, math.inf))  # a ticket that becomes a page: at once
        gates = self._gates
        gates[0], gates[1], gates[2] = math.nextafter(level.ticket, math.inf), higher, again
        return gates

    def _tell(self, name: str, account: Account, recent: Recent, score: float) -> Finding:
        """The finding of an account just now."""
        number, synthetic, client = name.split(":", 2)
        reference, level = self._references[int(number)], self._calibration.levels[int(number)]
        evidence = evidence_of(reference, level, account, len(recent), self.kernels)
        excuse = self._excuses.of(name, account, level.ticket, account.told_ts, self._accounts)
        if excuse is None:
            account.suspected = min(account.suspected, account.told_ts)
        pages = level.pages(score) and excuse is None
        found = self.finding(
            ts=account.told_ts,
            subject_kind="client",
            subject=client,
            severity=Severity.HIGH if pages else Severity.LOW if excuse is None else Severity.INFO,
            score=score,
            threshold=level.threshold if pages else level.ticket,
            reason=reason_of(evidence, level, certified=pages, excuse=excuse),
            evidence=evidence,
            action=None if excuse is None else _ACTION_EXCUSED,
            certified=pages,
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
            **self._hideouts.gauges(),
            **counts,
        }
        if not self._references:
            return Standing(DetectorState.LEARNING, _LEARNING, gauges)
        state, why = self._calibration.state(self._mismatch_run)
        season, launches = self._excuses.state()
        why = "; ".join(filter(None, (season, launches, why)))
        if season and state is DetectorState.ARMED:
            state = DetectorState.SHIFTED
        return Standing(state, why, gauges | self._calibration.gauges())

    def snapshot(self) -> bytes:
        """Accounts, windows and counters, bound to the baseline's calibration."""
        state = {
            "baseline": self._fingerprint(),
            "counts": [self._counts[name] for name in _COUNTERS],
            "mismatch_run": self._mismatch_run,
            "accounts": self._accounts.dump(),
            "hideouts": self._hideouts.dump(),
            "excuses": [self._excuses.launches.dump(), self._excuses.seasons.dump()],
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
            accounts, hideouts = self._accounts.loaded(state["accounts"]), self._hideouts.loaded(state["hideouts"])
            watching, seasons = state["excuses"]
            launches, seasons = self._excuses.launches.loaded(watching), self._excuses.seasons.loaded(seasons)
        except MALFORMED as error:
            raise StateError(f"a snapshot of {self.name} is damaged: {error}") from error
        self._counts, self._mismatch_run = counts, run
        self._accounts, self._hideouts = accounts, hideouts
        self._excuses.launches, self._excuses.seasons = launches, seasons

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


DETECTOR = ExtractionAccount
