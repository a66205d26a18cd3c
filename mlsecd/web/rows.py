"""The status as anyone may see it. The landing page and ``/api/v1/status`` are made of these."""

from __future__ import annotations

from dataclasses import dataclass

from mlsecd.sinks.metrics_view import LogHealth
from mlsecd.web.verdict import Verdict

__all__ = [
    "ActiveRow",
    "BlindRow",
    "Coverage",
    "DetectorRow",
    "DropRow",
    "FindingRow",
    "GpuRow",
    "ModelRow",
    "SourceRow",
    "Status",
]


@dataclass(frozen=True, slots=True)
class ActiveRow:
    """An unresolved finding; ``action`` is empty where its last line is too old to be at hand."""

    id: str
    detector: str
    severity: str
    subject_kind: str
    subject: str
    first_ts: float
    last_ts: float
    count: int
    synthetic: bool
    certified: bool
    reason: str
    action: str


@dataclass(frozen=True, slots=True)
class FindingRow:
    """One line of the forensic log, in part."""

    ts: float
    id: str
    status: str
    severity: str
    detector: str
    subject_kind: str
    subject: str
    synthetic: bool
    certified: bool
    reason: str
    action: str


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source: ``up``, ``down``, ``unsupported`` or ``starting``."""

    name: str
    state: str
    up: bool | None
    unsupported: bool
    why: str
    last_success: float | None
    seen: int | None
    expected: int | None


@dataclass(frozen=True, slots=True)
class DetectorRow:
    """A detector and what it can do just now."""

    name: str
    state: str
    why: str
    maturity: str
    summary: str
    last_run: float | None


@dataclass(frozen=True, slots=True)
class GpuRow:
    """A GPU's last sample."""

    gpu: str
    index: int | None
    name: str
    state: str
    ts: float
    utilization: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_watts: float | None
    temperature_celsius: float | None
    processes: int | None
    synthetic: bool


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that was asked, as request records name it."""

    name: str
    requests: int
    last_ts: float


@dataclass(frozen=True, slots=True)
class BlindRow:
    """Something that is not watched, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class DropRow:
    """What was given up at a limit since the start."""

    where: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many request records came, and how many of them carried each field that detectors want."""

    requests: int
    fields: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What ``/api/v1/status`` answers."""

    now: float
    started: float
    host: str
    version: str
    revision: str
    backend: str
    verdict: Verdict
    detail: bool  # whether reasons and actions are shown here
    active: tuple[ActiveRow, ...]
    active_total: int
    recent: tuple[FindingRow, ...]
    sources: tuple[SourceRow, ...]
    detectors: tuple[DetectorRow, ...]
    blind: tuple[BlindRow, ...]
    gpus: tuple[GpuRow, ...]
    dropped: tuple[DropRow, ...]
    coverage: Coverage
    models: tuple[ModelRow, ...]
    log: LogHealth | None
    budget_per_week: float | None
    pages_past_week: int | None
