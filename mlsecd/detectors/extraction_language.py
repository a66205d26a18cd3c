"""Accounts, one or many together, that draw answers from a language model as one who trains another on them would."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from operator import itemgetter
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from mlsecd.detectors import _language_fit as fitting
from mlsecd.detectors._account_groups import Prefixes
from mlsecd.detectors._extraction_budget import BudgetParams
from mlsecd.detectors._extraction_level import risen
from mlsecd.detectors._language_account import Account, walk
from mlsecd.detectors._language_channels import Reference, encode
from mlsecd.detectors._language_crowds import Crowds, Told
from mlsecd.detectors._language_resellers import Resellers
from mlsecd.detectors._language_standing import Calibration, evidence_of, reason_of
from mlsecd.detectors._parameters_books import TICK, Names, Rooms, Who, subject_of
from mlsecd.detectors._told import is_lately
from mlsecd.detectors.base import Detector, DetectorState, Fit, Interval, Maturity, Section, Standing
from mlsecd.errors import MALFORMED, BaselineError, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records, RequestBatch, Severity
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "ExtractionLanguage", "Params"]

_SNAPSHOT: Final = 3
_COUNTERS: Final = ("unattributed", "unscored", "refused")
_LEARNING: Final = "no baseline: record a week of ordinary requests, then run `mlsecd baseline fit`"


class Params(BudgetParams, frozen=True):
    """How often it may be wrong, and how much it may hold."""

    aggregators: Annotated[
        tuple[str, ...], Meta(description="clients that are judged by each of their end users (resellers, gateways)")
    ] = ()
    reseller_users: Annotated[
        int, Meta(ge=2, le=64, description="end users of one client, from which it is named as a reseller (info)")
    ] = 50
    max_clients: Annotated[int, Meta(ge=10, le=1_000_000, description="accounts with counts")] = 20_000
    max_suspects: Annotated[
        int,
        Meta(ge=10, le=100_000, description="accounts a quarter of the way to an alarm, held apart from the others"),
    ] = 2_000


class ExtractionLanguage(Detector):
    """Counts, by account, requests of kinds that ordinary clients seldom send, against how ordinary clients differ.

    As `extraction_account` does for vectors, for what any record of a language model carries: tokens,
    template, limits, status, flags. Beta-binomial tails of each channel's count; the threshold on the
    highest of an account's path is a split-conformal quantile of ordinary clients' paths. Once an hour
    the accounts that are a little odd are counted against as many ordinary clients.
    """

    name = "extraction_language"
    consumes = frozenset({Kind.REQUEST})
    key = "client"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0024.002", "AML.T0005.001")  # Extract AI Model; Train Proxy via Replication
    owasp = ("LLM10:2025",)  # Unbounded Consumption, which covers model extraction
    summary = "Accounts, one or many together, that draw answers from a model as one who trains another on them would."
    action = (
        "Look at what this account asks for and who owns it. Forms filled in by a program, long answers and reasoning "
        "on demand are what training data is made of. If it is no job of your own, rate-limit or suspend its key."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Distillation by questions as people ask them, with answers of ordinary length, looks like a customer.",
        "Many accounts, each with a few such requests, are told together, as no page: a new application looks alike.",
        "Fewer than 6 such accounts, or fewer than 20 active ones; a small share of all without a form in common.",
        "Accounts that hide nothing and put one prompt before everything are told as an application's launch (info).",
        "Many more accounts that ask for a little more than before look like a season, and hide those without a form.",
        "Accounts with fewer than 10 requests in the last day, or whose cover makes each look ordinary.",
        "Fewer than 10 requests of one account and model in one epoch are never judged.",
        "Between two looks an account grows by 5 %: an alarm may come that much late.",
        "The chance of a false alarm holds while traffic is as it was at calibration; a new product is not.",
        "Without tokens, template and flags in the records there is nothing to count but their absence.",
        "An undeclared reseller is one account: its users' habits mix.",
        "Requests to a model that the baseline does not hold are not judged.",
    )
    resolve_after_seconds = 7_200.0  # many accounts are looked at together once an hour
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._references = self._load(section)
        self._by_model = {reference.model: i for i, reference in enumerate(self._references)}
        self._calibration = Calibration(self._references, params, kernels)
        self._crowds = Crowds(self._references, section, params, kernels)
        self._names = Names(params.aggregators)
        self._accounts: Rooms[Account] = Rooms(params.max_clients, params.max_suspects, Account)
        self._resellers = Resellers(params.max_suspects, params.reseller_users, frozenset(params.aggregators))
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._prefixes = Prefixes()

    def _load(self, section: Section | None) -> list[Reference]:
        if section is None:
            return []
        headers = section.header.get("references")
        if not isinstance(headers, list) or not headers:
            raise BaselineError(f"{self.name}: the baseline's part cannot be used")
        return [Reference.of(header, section.arrays, str(i)) for i, header in enumerate(headers)]

    def observe(self, records: Records) -> list[Finding]:
        """Fold requests, in order of completion."""
        if not isinstance(records, RequestBatch) or not len(records):
            return []
        found = [(row, self._name_reseller(records, row, users)) for row, users in self._resellers.fold(records)]
        chosen = self._route(records)
        for number in np.unique(chosen[chosen >= 0]).tolist():
            found += self._fold(records, np.flatnonzero(chosen == number), number)
        return [finding for _, finding in sorted(found, key=itemgetter(0))]

    def _route(self, batch: RequestBatch) -> Any:
        """The reference that each row is held against, int64[n], -1 for none."""
        model, known = batch.text("model"), batch.text("client").codes >= 0
        numbers = np.array([self._by_model.get(value, -1) for value in model.values] + [-1], np.int64)
        chosen = np.where(known, numbers[model.codes], -1)
        self._counts["unattributed"] += int((~known).sum())
        self._counts["unscored"] += int((known & (chosen < 0)).sum())
        return chosen

    def _fold(self, batch: RequestBatch, at: Any, number: int) -> list[tuple[int, Finding]]:
        """Fold the rows at ``at``, which belong to one reference; findings with the row that each is due to."""
        reference, level = self._references[number], self._calibration.levels[number]
        rows, who = encode(batch, at, reference.cuts, reference.lengths), Who(batch)
        groups: dict[tuple[float, str], list[int]] = {}  # accounts enter in order of appearance, tick by tick
        for i, row in enumerate(at.tolist()):
            groups.setdefault((rows.ts[i] // TICK, f"{number}:{self._names.of(who, row)}"), []).append(i)
        found = []
        for (_, name), which in groups.items():
            account = self._enter(name, float(rows.ts[which[0]]))
            if account is None:
                self._counts["refused"] += len(which)
                continue
            for i, score in walk(account, rows, which, reference, self.kernels):
                ts = float(rows.ts[i])
                self._accounts.weigh(name, ts, account, score / level.threshold)
                if self._due(account, score, level.threshold, ts):
                    account.told, account.told_ts = max(score, account.told), ts
                    found.append((int(at[i]), self._tell(name, account, score)))
            account.recent.network = self._prefixes.of(batch.text("network").at(int(at[which[-1]])) or "") or ""
        return found

    def _enter(self, name: str, ts: float) -> Account | None:
        """An account for rows of one tick, fresh where an epoch begins; ``None``: there is no room."""
        account, tick = self._accounts.touch(name, ts), ts // TICK * TICK
        if account is not None and account.rows and tick - account.started >= self.params.epoch_seconds:
            recent = account.recent
            self._accounts.drop(name)
            account = self._accounts.touch(name, ts)
            if account is not None:
                account.recent = recent
        if account is not None:
            account.started = min(account.started, tick)  # later only where the clock was set back
        if account is not None and not account.rows:
            account.started, account.first_ts = tick, ts
        return account

    def _due(self, account: Account, score: float, threshold: float, ts: float) -> bool:
        if score <= threshold:
            return False
        return score >= risen(account.told) or not is_lately(account.told_ts, ts, self.params.repeat_seconds)

    def _tell(self, name: str, account: Account, score: float) -> Finding:
        number, _, who = name.partition(":")
        reference, level = self._references[int(number)], self._calibration.levels[int(number)]
        subject, synthetic, user = subject_of(who)
        evidence = evidence_of(reference, level, account, self.kernels)
        return self.finding(
            ts=account.told_ts,
            subject_kind="client",
            subject=subject,
            severity=Severity.HIGH if level.certified else Severity.LOW,
            score=score,
            threshold=level.threshold,
            reason=reason_of(evidence, level),
            evidence=evidence | user,
            certified=level.certified,
            synthetic=synthetic,
        )

    def _name_reseller(self, batch: RequestBatch, row: int, users: int) -> Finding:
        return self.finding(
            ts=float(batch.completion[row]),
            subject_kind="client",
            subject=batch.text("client").at(row) or "",
            severity=Severity.INFO,
            score=users,
            threshold=self.params.reseller_users,
            reason=f"{users} end users call through this client: it is judged as one account, and so are they",
            evidence={"users": users},
            action="If it is a reseller or a gateway, name it in aggregators: its users are then judged one by one.",
            synthetic=bool(batch.synthetic[row]),
        )

    def states(self) -> Iterable[tuple[str, Account]]:
        """Accounts by name."""
        return self._accounts.items()

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Once an hour, tell whether more accounts are odd together than ordinary clients explain."""
        return [self._tell_many(told) for told in self._crowds.look(interval, states)]

    def _tell_many(self, told: Told) -> Finding:
        return self.finding(
            ts=told.ts,
            subject_kind=told.subject_kind,
            subject=told.subject,
            severity=told.severity,
            score=told.score,
            threshold=told.threshold,
            reason=told.reason,
            evidence=told.evidence,
            action=told.action,
            synthetic=told.synthetic,
        )

    def standing(self) -> Standing:
        """Whether it is calibrated, and for how many clients."""
        gauges = {
            "language_accounts": float(len(self._accounts)),
            "suspect_clients": float(self._accounts.suspects),
            "evicted_clients": float(self._accounts.evicted),
            "resellers": float(self._resellers.named),
            **{f"{name}_rows": float(count) for name, count in self._counts.items()},
        }
        if not self._references:
            return Standing(DetectorState.LEARNING, _LEARNING, gauges)
        state, why = self._calibration.state()
        moved, doubts = self._crowds.state()
        why = "; ".join(filter(None, (why, doubts)))
        gauges |= self._calibration.gauges() | self._crowds.gauges()
        return Standing(DetectorState.SHIFTED if moved and state is DetectorState.ARMED else state, why, gauges)

    def snapshot(self) -> bytes:
        """Accounts and counters, bound to the baseline's calibration."""
        state = {
            "baseline": self._fingerprint(),
            "counts": [self._counts[name] for name in _COUNTERS],
            "accounts": self._accounts.dump(Account.dump),
            "resellers": self._resellers.dump(),
            "crowds": [self._crowds.launches.dump(), self._crowds.memory.dump()],
        }
        return pack(_SNAPSHOT, state)

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state, if it was made with the same calibration."""
        state = unpack(_SNAPSHOT, blob)
        accounts: Rooms[Account] = Rooms(self.params.max_clients, self.params.max_suspects, Account)
        try:
            if state["baseline"] != self._fingerprint():
                raise StateError("the snapshot was made with another baseline")
            counts = dict(zip(_COUNTERS, map(int, state["counts"]), strict=True))
            accounts.load(state["accounts"], Account.load)
            watching, remembered = state["crowds"]
            launches, memory = self._crowds.launches.loaded(watching), self._crowds.remembered(remembered)
            self._resellers.load(state["resellers"])
        except MALFORMED as error:
            raise StateError(f"a snapshot of {self.name} is damaged: {error}") from error
        self._counts, self._accounts = counts, accounts
        self._crowds.launches, self._crowds.memory = launches, memory

    def _fingerprint(self) -> str:
        """What the counts were counted against."""
        digest = hashlib.blake2b(digest_size=16)
        for reference in self._references:
            digest.update(f"{reference.model}\0".encode())
            for array in reference.arrays("").values():
                digest.update(array.tobytes())
        self._crowds.fingerprint(digest)
        return digest.hexdigest()

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit:
        """Learn what is ordinary, and the calibration, of each language model that has enough clients."""
        return fitting.fit(records, params, kernels)


DETECTOR = ExtractionLanguage
