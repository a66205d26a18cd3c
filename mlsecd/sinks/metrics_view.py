"""What the daemon hands to the metrics sink each tick: an immutable picture, taken between two turns of its loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlsecd.meters import Labels
from mlsecd.records import GpuSample, Severity

__all__ = ["ActiveFinding", "Build", "DetectorHealth", "FindingKey", "LogHealth", "MetricsView", "SourceHealth"]

FindingKey = tuple[str, Severity, bool]  # detector, severity, synthetic


class ActiveFinding(Protocol):
    """What the sink reads of an unresolved finding; the ledger's entries have it."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def detector(self) -> str: ...  # noqa: D102
    @property
    def severity(self) -> Severity: ...  # noqa: D102
    @property
    def subject_kind(self) -> str: ...  # noqa: D102
    @property
    def subject(self) -> str: ...  # noqa: D102
    @property
    def first_ts(self) -> float: ...  # noqa: D102
    @property
    def synthetic(self) -> bool: ...  # noqa: D102
    @property
    def certified(self) -> bool: ...  # noqa: D102


class SourceHealth(Protocol):
    """How a source is doing; the runner's ``Health`` has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def up(self) -> bool | None: ...  # noqa: D102 - None: not polled yet
    @property
    def why(self) -> str | None: ...  # noqa: D102
    @property
    def unsupported(self) -> bool: ...  # noqa: D102
    @property
    def last_success(self) -> float | None: ...  # noqa: D102
    @property
    def seen(self) -> int | None: ...  # noqa: D102
    @property
    def expected(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class DetectorHealth:
    """A detector's standing, and when it last judged a record (event time)."""

    name: str
    state: str
    why: str = ""
    gauges: Mapping[str, float] = field(default_factory=dict)
    last_run: float | None = None
    maturity: str = ""
    summary: str = ""


@dataclass(frozen=True, slots=True)
class LogHealth:
    """How the forensic log is doing."""

    blocked: bool = False
    why: str = ""  # what the disk said
    queued: int = 0
    chain_ok: bool | None = None  # None: not checked yet
    tree_size: int = 0


@dataclass(frozen=True, slots=True)
class Build:
    """What runs."""

    version: str
    revision: str = ""
    python: str = ""
    backend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsView:
    """Everything that ``/metrics`` shows. Its parts must not be changed once it is published."""

    now: float  # wall clock, seconds
    build: Build
    counters: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    gauges: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    detectors: Sequence[DetectorHealth] = ()
    sources: Sequence[SourceHealth] = ()
    findings: Mapping[FindingKey, float] = field(default_factory=dict)
    latest: Mapping[FindingKey, tuple[str, float]] = field(default_factory=dict)  # id and ts, for exemplars
    active: Sequence[ActiveFinding] = ()
    # real findings about accounts: (detector, severity, whether an open campaign names the account) -> unresolved ones
    accounts: Mapping[tuple[str, Severity, bool], int] = field(default_factory=dict)
    gpus: Sequence[GpuSample] = ()  # the latest sample of each GPU
    log: LogHealth | None = None
    budget_per_week: float | None = None
    pages_past_week: int | None = None
    reload_successful: bool = True
    reloaded: float | None = None  # when the configuration in force was loaded
