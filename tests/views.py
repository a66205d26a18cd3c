"""Views as the daemon would publish them, for tests of metrics and pages."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from mlsecd.findings.ledger import ActiveFinding
from mlsecd.records import Finding, GpuProcess, GpuSample, Severity, Status
from mlsecd.sinks.metrics_view import Build, DetectorHealth, LogHealth, MetricsView
from mlsecd.web.view import StatusView

CLIENT = "k-3f9a1c77e2b04d5a9c1e4f6a7b8c9d0e"
BUILD = Build("1.2.3", "abc123", "3.11.7", "cpu")


@dataclass(frozen=True)
class Source:
    name: str
    up: bool | None = True
    why: str | None = None
    unsupported: bool = False
    last_success: float | None = 1_700_000_000.0
    seen: int | None = None
    expected: int | None = None


def active(name: str = "a" * 16, **kw: Any) -> ActiveFinding:
    made = {
        "detector": "extraction_account",
        "severity": Severity.HIGH,
        "subject_kind": "client",
        "subject": CLIENT,
        "reason": f"{CLIENT} walks along a boundary",
        "first_ts": 1_700_000_000.0,
        "last_ts": 1_700_000_100.0,
        "synthetic": False,
        "certified": True,
        "count": 3,
    }
    return ActiveFinding(id=name, **{**made, **kw})


def finding(name: str = "a" * 16, **kw: Any) -> Finding:
    made = {
        "ts": 1_700_000_100.0,
        "detector": "extraction_account",
        "version": 1,
        "subject_kind": "client",
        "subject": CLIENT,
        "severity": Severity.HIGH,
        "score": 77.125,
        "threshold": 12.5,
        "reason": f"{CLIENT} walks along a boundary",
        "action": "Revoke the key.",
        "status": Status.NEW,
    }
    return Finding(id=name, **{**made, **kw})


def gpu(index: int = 0, **kw: Any) -> GpuSample:
    made = {
        "ts": time.time(),
        "gpu": f"GPU-00000000-0000-0000-0000-{index:012d}",
        "index": index,
        "name": "NVIDIA H100",
        "utilization": 0.5,
        "memory_utilization": 0.25,
        "memory_used_bytes": 40 * 2**30,
        "memory_total_bytes": 80 * 2**30,
        "power_watts": 411.5,
        "energy_joules": 12_345.0,
        "temperature_celsius": 61.0,
        "sm_clock_hz": 1.98e9,
        "ecc_corrected": 0,
        "remapped_rows_pending": False,
        "processes": (GpuProcess(pid=1),),
        "posture": {"driver_version": "560.35.03", "mig_mode": "disabled"},
    }
    return GpuSample(**{**made, **kw})


def metrics_view(**kw: Any) -> MetricsView:
    made: dict[str, Any] = {
        "now": time.time(),
        "build": BUILD,
        "counters": {
            "mlsecd_dropped_total": {(("reason", "full"), ("where", "inbox")): 3.0},
            "mlsecd_source_records_total": {(("source", "nvml"),): 12.0},
        },
        "gauges": {"mlsecd_queue_depth": {(("queue", "inbox"),): 2.0}},
        "detectors": [
            DetectorHealth("extraction_account", "armed", "", {"calibration_clients": 2000.0}, 1_700_000_000.0),
            DetectorHealth("drift_input", "learning", "612 of 2,000 rows"),
        ],
        "sources": [
            Source("nvml", seen=1, expected=1),
            Source("otlp", up=False, why="not configured", unsupported=True, last_success=None),
            Source("request_log", up=None, last_success=None),
        ],
        "findings": {("extraction_account", Severity.HIGH, False): 2.0, ("drift_input", Severity.LOW, True): 1.0},
        "latest": {("extraction_account", Severity.HIGH, False): ("a" * 16, 1_700_000_100.0)},
        "active": [active()],
        "gpus": [gpu()],
        "log": LogHealth(blocked=False, queued=1, chain_ok=True, tree_size=42),
        "budget_per_week": 1.0,
        "pages_past_week": 2,
        "reloaded": 1_700_000_000.0,
    }
    return MetricsView(**{**made, **kw})


def status_view(**kw: Any) -> StatusView:
    now = 1_700_000_200.0
    made: dict[str, Any] = {
        "now": now,
        "host": "gpu-node-07",
        "build": BUILD,
        "started": now - 90_000,
        "active": [active()],
        "recent": [finding()],
        "sources": [Source("nvml", last_success=now - 1), Source("processes", last_success=now - 2, seen=612)],
        "detectors": [DetectorHealth("extraction_account", "armed", "", {}, now - 1, "stable", "who maps out a model")],
        "gpus": [gpu(ts=now - 1)],
        "dropped": {("inbox", "full"): 12.0, ("fold", "late"): 0.0},
        "coverage": {"requests": 200.0, "client": 150.0},
        "log": LogHealth(blocked=False, queued=0, chain_ok=True, tree_size=42),
        "budget_per_week": 1.0,
        "pages_past_week": 0,
    }
    return StatusView(**{**made, **kw})
