"""A finding as an OCSF Detection Finding (class 2004): a pure mapping, plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from mlsecd.records import Finding, Severity, Status

__all__ = ["OCSF_VERSION", "Events"]

OCSF_VERSION: Final = "1.6.0"
_ATLAS_VERSION: Final = "5.6.0"
_CLASS: Final = 2004

# OCSF's "In Progress" means that a person reviews it, which a daemon cannot know: an update stays "New".
_NEW: Final = {"status_id": 1, "status": "New"}
_LIFE: Final[dict[Status, dict[str, Any]]] = {
    Status.NEW: {"activity_id": 1, "activity_name": "Create", "type_uid": _CLASS * 100 + 1, **_NEW},
    Status.UPDATE: {"activity_id": 2, "activity_name": "Update", "type_uid": _CLASS * 100 + 2, **_NEW},
    Status.RESOLVED: {
        "activity_id": 3,
        "activity_name": "Close",
        "type_uid": _CLASS * 100 + 3,
        "status_id": 4,
        "status": "Resolved",
    },
}
_SEVERITY: Final = {
    Severity.INFO: (1, "Informational"),
    Severity.LOW: (2, "Low"),
    Severity.MEDIUM: (3, "Medium"),
    Severity.HIGH: (4, "High"),
    Severity.CRITICAL: (5, "Critical"),
}
_QUIET: Final = frozenset({Severity.INFO, Severity.LOW})
_STATISTICAL: Final = frozenset({"extraction", "campaign", "drift", "output"})  # threats judged by a statistic


class Events:
    """Maps findings of one host to events.

    Parameters
    ----------
    version
        mlsecd's own.
    technique_names
        Name by ATLAS id; an id without a name is still cited.
    """

    def __init__(self, host: str, version: str, technique_names: Mapping[str, str]) -> None:
        self._device = {"hostname": host, "type_id": 1, "type": "Server"}
        self._product = {"name": "mlsecd", "vendor_name": "mlsecd", "version": version}
        self._names = dict(technique_names)
        self._attacks = lru_cache(256)(self._make_attacks)
        self._analytic = lru_cache(256)(_make_analytic)

    def event(self, finding: Finding, logged_ms: int) -> dict[str, Any]:
        """The event; times in milliseconds since the epoch. The finding itself stands in ``unmapped.mlsecd``."""
        severity_id, severity = _SEVERITY[finding.severity]
        return {
            **_LIFE[finding.status],
            "category_uid": 2,
            "class_uid": _CLASS,
            "time": _ms(finding.ts),
            "severity_id": severity_id,
            "severity": severity,
            "is_alert": _is_alert(finding),
            "message": finding.reason,
            "metadata": {
                "version": OCSF_VERSION,
                "product": self._product,
                "log_name": "mlsecd",
                "logged_time": logged_ms,
                "labels": ["synthetic"] if finding.synthetic else [],
            },
            "finding_info": self._finding_info(finding),
            "device": self._device,
            **_subject(finding),
            "remediation": {"desc": finding.action},
            "unmapped": {"mlsecd": finding.line()},
        }

    def _finding_info(self, finding: Finding) -> dict[str, Any]:
        life = finding.evidence.get("life")
        first, last = (life.get("first_ts"), life.get("last_ts")) if isinstance(life, dict) else (None, None)
        return {
            "uid": finding.id,
            "title": f"{finding.detector}: {finding.subject_kind} {finding.subject}",
            "types": [finding.detector.partition("_")[0]],
            "first_seen_time": _ms(finding.ts if first is None else first),
            "last_seen_time": _ms(finding.ts if last is None else last),
            "analytic": self._analytic(finding.detector, finding.version),
            "attacks": self._attacks(tuple(finding.atlas)),
        }

    def _make_attacks(self, techniques: tuple[str, ...]) -> list[dict[str, Any]]:
        return [self._attack(technique) for technique in techniques]

    def _attack(self, technique: str) -> dict[str, Any]:
        """A MITRE ATLAS technique; ``AML.T0024.002`` is a sub-technique of ``AML.T0024``."""
        parent = ".".join(technique.split(".")[:2])
        attack = {"technique": self._named(parent), "version": _ATLAS_VERSION}
        return attack if parent == technique else {**attack, "sub_technique": self._named(technique)}

    def _named(self, uid: str) -> dict[str, str]:
        return {"uid": uid, "name": self._names[uid]} if uid in self._names else {"uid": uid}


def _make_analytic(detector: str, version: int) -> dict[str, Any]:
    type_id, kind = (3, "Statistical") if detector.partition("_")[0] in _STATISTICAL else (1, "Rule")
    return {"uid": detector, "name": detector, "version": str(version), "type_id": type_id, "type": kind}


def _ms(ts: float) -> int:
    """Milliseconds; 0 for a time that is no time, so that a broken finding is still written."""
    try:
        return round(ts * 1000)
    except (OverflowError, ValueError, TypeError):
        return 0


def _is_alert(finding: Finding) -> bool:
    """Whether someone may be called: never for a test, an end, a signed-off exception, a ticket or mere context."""
    quiet = finding.severity in _QUIET or finding.synthetic or "exception" in finding.evidence
    return not quiet and finding.status is not Status.RESOLVED


def _subject(finding: Finding) -> dict[str, Any]:
    """A client acts; anything else is what the finding affects."""
    if finding.subject_kind == "client":
        return {"evidences": [{"actor": {"user": {"uid": finding.subject, "type_id": 1}}}]}
    resource = {"type": finding.subject_kind, "uid": finding.subject, "role_id": 3, "role": "Affected"}
    return {"resources": [resource]}
