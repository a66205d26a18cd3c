"""Requests whose parameters read a model out: no baseline is needed to see it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._parameters_account import Account
from mlsecd.detectors._parameters_books import TICK, Books, Names, subject_of
from mlsecd.detectors._parameters_fold import Columns, fold
from mlsecd.detectors._parameters_groups import Group, Models, pivots, shared_sweeps, sweeping
from mlsecd.detectors._parameters_rows import ALLOWED, CANARY, HALVING, SIGNS, has_text, signs_of
from mlsecd.detectors._parameters_rules import CONTROLS, Verdict, judge
from mlsecd.detectors._told import is_lately
from mlsecd.detectors.base import Detector, DetectorState, Interval, Maturity, Section, Standing
from mlsecd.errors import MALFORMED, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records, RequestBatch, Severity
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "ExtractionParameters", "Params"]

_SNAPSHOT: Final = 1
_COUNTERS: Final = ("unattributed", "unsketched", "refused")
_LISTED: Final = 100  # names in a finding
_NEED_TEXT: Final = 1 << HALVING | 1 << ALLOWED
_CALLERS: Final = 4  # times max_clients: clients of which only the models are known
_SETTLED_SECONDS: Final = 3_600.0  # after which a client that calls another model is no newcomer


class Params(base.Params, frozen=True):
    """From which counts on it alarms, whom it does not judge, and how much it may hold."""

    vocabulary: (
        Annotated[int, Meta(ge=100, description="tokens of the model's vocabulary, to tell a sweep's share of it")]
        | None
    ) = None
    sweep_tokens: Annotated[
        int, Meta(ge=16, description="different tokens biased in requests for a token's odds, from which it pages")
    ] = 256
    sweep_suspect_tokens: Annotated[
        int, Meta(ge=8, description="the same, from which it warns if the tokens keep changing")
    ] = 64
    oracle_requests: Annotated[
        int, Meta(ge=8, description="one-token requests of a few texts with changing parameters, from which it warns")
    ] = 64
    echo_requests: Annotated[
        int, Meta(ge=8, description="texts whose own tokens' odds were listed (prompt_logprobs of 2 or more)")
    ] = 100
    samples: Annotated[int, Meta(ge=100, description="one-token answers drawn by requests with n of 8 or more")] = 5_000
    samples_per_text: Annotated[int, Meta(ge=10, description="of them for each different text, on average")] = 500
    probe_requests: Annotated[
        int, Meta(ge=16, description="different one-token requests that probe the prefix cache")
    ] = 100
    asking_forms: Annotated[
        int, Meta(ge=2, description="different wordings in which the system prompt was asked for")
    ] = 8
    embedding_inputs: Annotated[
        int, Meta(ge=100, description="different texts embedded in an epoch, from which a ticket is written")
    ] = 50_000
    pivot_clients: Annotated[
        int, Meta(ge=2, description="settled clients that turn to a model that is new to them")
    ] = 20
    pivot_seconds: Annotated[float, Meta(ge=10, le=604_800, description="event time within which they do")] = 86_400.0
    aggregators: Annotated[
        tuple[str, ...], Meta(description="clients that are judged by each of their end users (resellers, gateways)")
    ] = ()
    canary_holders: Annotated[
        tuple[str, ...],
        Meta(description="clients that send the system prompt themselves, so that its canary is theirs"),
    ] = ()
    epoch_seconds: Annotated[
        float, Meta(ge=3_600, le=31_536_000, description="an account's counts begin afresh after this event time")
    ] = 2_592_000.0
    repeat_seconds: Annotated[
        float, Meta(ge=10, le=86_400, description="event time between repeats of a finding that goes on")
    ] = 300.0
    max_clients: Annotated[int, Meta(ge=10, le=1_000_000, description="accounts with counts; at most 20 KiB each")] = (
        5_000
    )
    max_suspects: Annotated[
        int,
        Meta(ge=10, le=100_000, description="accounts a quarter of the way to an alarm, which others cannot push out"),
    ] = 2_000


class ExtractionParameters(Detector):
    """Counts, by account, requests that combine parameters as the known readings of a language model do.

    Every request counts, repeats too: a sweep sends one text again and again. What separates an
    attack from an evaluation job is the combination (a bias, odds, one token) and how many
    *different* ids, bodies and texts there are, counted in bounded sketches over all models that
    the account calls. Hopping between a model's aliases therefore hides nothing.
    """

    name = "extraction_parameters"
    consumes = frozenset({Kind.REQUEST})
    key = "client"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0024.002",)  # Extract AI Model
    owasp = ("LLM10:2025",)  # Unbounded Consumption, which covers model extraction
    summary = "Requests whose parameters read a language model's odds, prompt, cache or embeddings out."
    action = (
        "Look at this account's requests of the kind that evidence.sign names. If nobody of yours does this on "
        "purpose, refuse logit_bias together with logprobs, rate-limit or suspend its key, and keep the evidence."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Fewer than 24 biased tokens in each of hundreds of accounts: no account walks, and no group forms.",
        "Odds read by n below 8, one answer a request, are ordinary sampling here.",
        "Searches by bias or allowed tokens are seen only where records carry body_hash and a sketch of the text.",
        "Texts that differ only in the middle of more than 2,048 characters, and in no token count, look alike.",
        "Bias and logprobs over answers of ordinary length warn late, after four times the tokens.",
        "A cache probe with one guess a minute, or over many accounts, does not show.",
        "Embedding theft is told by volume alone, as a ticket: an index being built looks the same.",
        "A test with choices looks like a sweep where records carry no sketch of the text: it is then a warning.",
        "A chat program passes on its users' tries for the system prompt: name it in aggregators.",
        "A canary that a client sends itself counts as leaked: name such clients in canary_holders.",
        "That many clients turn to a new model is context (info): a release does the same.",
        "A reseller that is not declared in aggregators is one account.",
    )
    resolve_after_seconds = 3_600.0
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._names = Names(params.aggregators)
        self._holders = frozenset(params.canary_holders)
        self._books = Books(params.max_clients, params.max_suspects)
        self._models = self._new_models()
        self._counts = dict.fromkeys(_COUNTERS, 0)

    def observe(self, records: Records) -> list[Finding]:
        """Fold requests, in order of completion."""
        if not isinstance(records, RequestBatch) or not len(records):
            return []
        self._models.fold(records)
        mask = self._mask(records)
        rows = mask.nonzero()[0].tolist()
        if not rows:
            return []
        columns = Columns(records)
        found = []
        for row in rows:
            ts, name = float(columns.ts[row]), self._names.of(columns.who, row)
            account = self._books.enter(name, ts, self.params.epoch_seconds)
            if account is None:
                self._counts["refused"] += 1
                continue
            shown = fold(account, name, columns, row, int(mask[row]))
            finding = self._judge(name, account, shown, ts)
            self._books.weigh(name, ts, account, account.risk)
            found += [] if finding is None else [finding]
        return found

    def _mask(self, batch: RequestBatch) -> Any:
        """Signs of rows that can be judged, int64[n]; counts the others."""
        mask, client = signs_of(batch), batch.text("client")
        self._counts["unattributed"] += int(((mask != 0) & (client.codes < 0)).sum())
        self._counts["unsketched"] += int(((mask & _NEED_TEXT != 0) & ~has_text(batch)).sum())
        mask[client.codes < 0] = 0
        if self._holders:
            held = np.array([name in self._holders for name in client.values] + [False])
            mask[held[client.codes]] &= ~(1 << CANARY)
        return mask

    def _judge(self, name: str, account: Account, shown: list[int], ts: float) -> Finding | None:
        """The worst of the signs that this row showed, if it is due."""
        worst: tuple[int, int, Verdict] | None = None
        for number in shown:
            verdict = judge(number, account, self.params)
            account.risk = max(account.risk, min(verdict.risk, 1.0))
            if verdict.severity is None:
                continue
            told, told_ts = account.told.get(number, (-1, -math.inf))
            rank = verdict.severity.rank
            due = rank > told or not is_lately(told_ts, ts, self.params.repeat_seconds)
            if due and (worst is None or rank > worst[0]):
                worst = (rank, number, verdict)
        if worst is None:
            return None
        rank, number, verdict = worst
        account.told[number] = (rank, ts)
        return self._tell(name, account, number, verdict, ts)

    def _tell(self, name: str, account: Account, number: int, verdict: Verdict, ts: float) -> Finding:
        subject, synthetic, user = subject_of(name)
        finding = self.finding(
            ts=ts,
            subject_kind="client",
            subject=subject,
            severity=verdict.severity,
            score=verdict.score,
            threshold=verdict.threshold,
            reason=verdict.words,
            evidence={
                **verdict.evidence,
                **user,
                "models": list(account.models),
                "first_ts": account.first_ts,
                "also": [SIGNS[other] for other in sorted(account.told) if other != number],
            },
            synthetic=synthetic,
        )
        atlas, owasp = CONTROLS.get(number, (self.atlas, self.owasp))
        return replace(finding, atlas=atlas, owasp=owasp)

    def states(self) -> Iterator[tuple[str, Any]]:
        """Accounts that walk a vocabulary, and clients that turned to another model."""
        walking = ((f"account:{name}", account) for name, account in self._books.items() if sweeping(account))
        return itertools.chain(walking, self._models.states())

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Sweeps that accounts share, and moves of many clients to one model."""
        held = list(states)
        params = self.params
        sweeps = [self._shared(group) for group in shared_sweeps(interval, held, params.sweep_tokens)]
        moves = pivots(interval, held, params.pivot_clients, params.pivot_seconds)
        return sweeps + [self._pivot(group) for group in moves]

    def _shared(self, group: Group) -> Finding:
        reason = (
            f"{len(group.names)} accounts biased {group.size:,} different tokens between them, each its own part, and "
            f"asked for the odds of at most a few tokens: together they read the output layer out"
        )
        action = "Treat evidence.clients as one: refuse logit_bias together with logprobs, or suspend their keys."
        return self._group(group, Severity.HIGH, self.params.sweep_tokens, reason, action)

    def _pivot(self, group: Group) -> Finding:
        reason = (
            f"{group.size:,} clients that were no newcomers called this model for the first time within "
            f"{self.params.pivot_seconds:,.0f} s, half of them within {group.evidence['half_within_seconds']:,.0f} s"
        )
        action = "If no release or change of an alias explains it, compare these clients: thieves do this together."
        return self._group(group, Severity.INFO, self.params.pivot_clients, reason, action)

    def _group(self, group: Group, severity: Severity, threshold: float, reason: str, action: str) -> Finding:
        evidence = {"first_ts": group.first_ts, "clients": group.names[:_LISTED], "accounts": len(group.names)}
        return self.finding(
            ts=group.ts,
            subject_kind="model",
            subject=group.model,
            severity=severity,
            score=group.size,
            threshold=threshold,
            reason=reason,
            action=action,
            evidence=group.evidence | evidence,
            synthetic=group.synthetic,
        )

    def standing(self) -> Standing:
        """Always armed: parameters are evidence of themselves."""
        gauges = {
            "parameter_clients": float(len(self._books)),
            "suspect_clients": float(self._books.suspects),
            "evicted_clients": float(self._books.evicted),
            **{f"{name}_rows": float(count) for name, count in self._counts.items()},
        }
        return Standing(DetectorState.ARMED, "", gauges)

    def snapshot(self) -> bytes:
        """Accounts, who calls which model, and counters."""
        counts = [self._counts[name] for name in _COUNTERS]
        return pack(
            _SNAPSHOT, {"counts": counts, "books": self._books.dump(Account.dump), "models": self._models.dump()}
        )

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        state = unpack(_SNAPSHOT, blob)
        books, models = Books(self.params.max_clients, self.params.max_suspects), self._new_models()
        try:
            counts = dict(zip(_COUNTERS, map(int, state["counts"]), strict=True))
            books.load(state["books"], Account.load)
            models.load(state["models"])
        except MALFORMED as error:
            raise StateError(f"a snapshot of {self.name} is damaged: {error}") from error
        self._counts, self._books, self._models = counts, books, models

    def _new_models(self) -> Models:
        return Models(_CALLERS * self.params.max_clients, _SETTLED_SECONDS, self.params.pivot_seconds, TICK)


DETECTOR = ExtractionParameters
