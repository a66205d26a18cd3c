"""Panels that several dashboards have."""

from __future__ import annotations

from typing import Any, Final

from tools.panels import Panel

__all__ = [
    "BY_DETECTOR",
    "BY_GPU",
    "BY_HOST",
    "BY_SOURCE",
    "CARRIED",
    "SYNTHETIC",
    "found",
    "gauge",
    "one",
    "over_time",
]

SYNTHETIC: Final = 'synthetic=~"$synthetic"'
SEVERITY: Final = "{{severity}}"
BY_DETECTOR: Final = "{{detector}}"
BY_GPU: Final = "{{instance}} {{index}}"
BY_SOURCE: Final = "{{instance}} {{source}}"
BY_HOST: Final = "{{instance}}"

CARRIED: Final = (  # the share of requests with each field
    "sum by (field) (rate(mlsecd_requests_with_field_total{@}[$__rate_interval])) "
    "/ ignoring (field) group_left () sum (rate(mlsecd_requests_total{@}[$__rate_interval]))"
)


STATES: Final = (
    (1, "armed", "green"),
    (2, "shifted", "purple"),
    (3, "learning", "blue"),
    (4, "stale", "orange"),
    (5, "mismatch", "red"),
    (6, "saturated", "dark-orange"),
    (7, "off", "#8e8e8e"),
)


def _state_of(which: str) -> str:
    """One number a detector, as STATES reads it."""
    ones = (f'mlsecd_detector_state{{@, {which}, state="{name}"}} * {value}' for value, name, _ in STATES)
    return f"sum by (instance, detector) ({' or '.join(ones)})"


def found(detectors: str, runbook: str, height: int = 7) -> tuple[Panel, Panel, Panel]:
    """What was found by some detectors: now, over time, and one by one; ``height`` of what they can do."""
    which, width = f'detector=~"{detectors}"', 12
    return (
        Panel(
            "lines",
            "New findings",
            "Findings by severity as they begin. A dot is a finding: its link leads to that finding over time.",
            (
                (
                    f"sum by (severity) (increase(mlsecd_findings_total{{@, {which}, {SYNTHETIC}}}[$__rate_interval]))",
                    SEVERITY,
                ),
            ),
            width=width,
            exemplars=True,
            runbook=runbook,
        ),
        Panel(
            "table",
            "Open findings",
            "The worst that are not resolved. Who and why stands on the host's landing page and in its forensic log, "
            "never in metrics.",
            ((f"mlsecd_finding_active{{@, {which}, {SYNTHETIC}}}", ""),),
            width=24 - width,
            runbook=runbook,
        ),
        Panel(
            "states",
            "What these detectors can do",
            "The state of each detector: learning and off judge nothing; stale, mismatch and saturated judge little.",
            ((_state_of(which), "{{instance}} {{detector}}"),),
            width=24,
            height=height,
            states=STATES,
            runbook="MlsecdDetectorMismatch",
        ),
    )


def gauge(title: str, about: str, name: str, unit: str = "short", legend: str = BY_DETECTOR, width: int = 8) -> Panel:
    top = 0.05 if unit == "percentunit" else 1.0
    return Panel("lines", title, about, ((f"{name}{{@}}", legend),), unit=unit, width=width, top=top)


def one(
    title: str,
    about: str,
    expr: str,
    red_from: float | None = None,
    runbook: str = "",
    unit: str = "short",
    **more: Any,
) -> Panel:
    look = {"width": 4, "height": 4, **more}
    return Panel("stat", title, about, ((expr, ""),), unit=unit, red_from=red_from, runbook=runbook, **look)


def over_time(title: str, about: str, expr: str, unit: str, legend: str = BY_HOST, runbook: str = "") -> Panel:
    top = 0.05 if unit == "percentunit" else 1.0
    return Panel("lines", title, about, ((expr, legend),), unit=unit, top=top, runbook=runbook)
