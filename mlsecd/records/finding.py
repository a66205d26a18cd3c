"""What a detector says."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Finding", "Severity", "Status"]


class Severity(enum.StrEnum):
    """How loud a finding is: critical and high page, medium warns, low is a ticket, info is context."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info to 4 for critical."""
        return list(Severity).index(self)


class Status(enum.StrEnum):
    """Where a finding stands in its life."""

    NEW = "new"
    UPDATE = "update"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a detector says about one subject. The ledger (:mod:`mlsecd.findings`) adds id and status.

    ``ts`` is the event time of the record that triggered it; an estimated onset goes into evidence.
    """

    ts: float
    detector: str
    version: int
    subject_kind: str  # client, model, gpu, process, campaign, host, file, source
    subject: str
    severity: Severity
    score: float
    threshold: float
    reason: str
    action: str
    evidence: dict[str, Any] = field(default_factory=dict)
    certified: bool = False
    synthetic: bool = False
    atlas: tuple[str, ...] = ()
    owasp: tuple[str, ...] = ()
    id: str = ""
    status: Status = Status.NEW

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What de-duplication goes by."""
        return (self.detector, self.subject_kind, self.subject, self.synthetic)

    def line(self) -> dict[str, Any]:
        """The finding as ``replay``, ``hunt`` and ``log query`` print it."""
        return {
            "ts": self.ts,
            "id": self.id,
            "detector": self.detector,
            "version": self.version,
            "severity": str(self.severity),
            "status": str(self.status),
            "subject": {self.subject_kind: self.subject},
            "score": self.score,
            "threshold": self.threshold,
            "certified": self.certified,
            "reason": self.reason,
            "action": self.action,
            "evidence": self.evidence,
            "atlas": list(self.atlas),
            "owasp": list(self.owasp),
            "synthetic": self.synthetic,
        }
