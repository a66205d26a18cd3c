"""What several commands say in the same words."""

from __future__ import annotations

import sys

from mlsecd.meters import Meters

__all__ = ["counted", "drops", "print_drops"]


def counted(count: float, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{count:,.0f} {noun}" if count == 1 else f"{count:,.0f} {noun}s"


def drops(meters: Meters) -> dict[tuple[str, str], float]:
    """What was given up, by where and why."""
    series = meters.counters().get("mlsecd_dropped_total", {})
    return {(named["where"], named["reason"]): n for labels, n in series.items() if n for named in [dict(labels)]}


def print_drops(meters: Meters) -> None:
    """A line each, on standard error."""
    for (where, reason), amount in drops(meters).items():
        print(f"dropped: {amount:,.0f} ({where}: {reason})", file=sys.stderr)
