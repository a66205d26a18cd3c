"""What the daemon hands to the web pages each tick: an immutable picture, with nothing shortened yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlsecd.records import Finding, GpuSample
from mlsecd.sinks.metrics_view import ActiveFinding, Build, DetectorHealth, LogHealth, SourceHealth

__all__ = ["ActiveEntry", "StatusView", "not_ready"]


class ActiveEntry(ActiveFinding, Protocol):
    """What the pages read of an unresolved finding; the ledger's entries have it."""

    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def last_ts(self) -> float: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """Everything that the landing page and ``/api/v1/status`` show. Its parts must not be changed afterwards."""

    now: float  # wall clock, seconds
    host: str
    build: Build
    started: float  # wall clock, seconds
    active: Sequence[ActiveEntry] = ()
    recent: Sequence[Finding] = ()  # the latest lines of any status, newest first; a hundred are plenty
    sources: Sequence[SourceHealth] = ()
    detectors: Sequence[DetectorHealth] = ()
    gpus: Sequence[GpuSample] = ()
    dropped: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (where, reason) -> how many
    coverage: Mapping[str, float] = field(default_factory=dict)  # "requests", and how many of them carry each field
    models: Sequence[tuple[str, int, float]] = ()  # (name, requests, event time of the last)
    blind: Sequence[tuple[str, str]] = ()  # (what, why), beside what sources and detectors say themselves
    log: LogHealth | None = None
    budget_per_week: float | None = None
    pages_past_week: int | None = None


def not_ready(view: StatusView | None) -> list[str]:
    """Why the daemon does not do its whole work yet; empty where it does."""
    if view is None:
        return ["starting: the main loop has not turned yet"]
    reasons = [
        f"source {one.name}: no sample yet" + (f": {one.why}" if one.why else "")
        for one in view.sources
        if one.last_success is None and not one.unsupported
    ]
    if view.log is not None and view.log.blocked:
        reasons.append("forensic log: blocked" + (f": {view.log.why}" if view.log.why else ""))
    return reasons
