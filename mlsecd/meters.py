"""Counters and gauges of the daemon's own work, written by every room and read by the metrics sink.

Standard library only, so that sources, engines and sinks can count without knowing Prometheus.
"""

from __future__ import annotations

import threading
from collections import defaultdict

__all__ = ["Labels", "Meters"]

Labels = tuple[tuple[str, str], ...]


class Meters:
    """A thread-safe bag of counters and gauges, keyed by metric name and label values.

    Label values come from the program (a source's name, a reason out of a fixed set), never from
    input: the bag is bounded because the program's vocabulary is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, float]] = defaultdict(dict)
        self._gauges: dict[str, dict[Labels, float]] = defaultdict(dict)

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add ``amount`` to a counter; an amount of 0 makes the series exist."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            series = self._counters[name]
            series[key] = series.get(key, 0.0) + amount

    def drop(self, where: str, reason: str, amount: int = 1) -> None:
        """Count records, bytes or lines that were given up: ``mlsecd_dropped_total{where,reason}``."""
        self.count("mlsecd_dropped_total", amount, where=where, reason=reason)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[name][tuple(sorted(labels.items()))] = value

    def forget(self, name: str, **labels: str) -> None:
        """Drop a gauge's series: a stale value must vanish, not freeze."""
        with self._lock:
            self._gauges[name].pop(tuple(sorted(labels.items())), None)

    def value(self, name: str, **labels: str) -> float:
        """One counter's or gauge's value now, 0.0 where it does not exist."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            return self._counters.get(name, {}).get(key, self._gauges.get(name, {}).get(key, 0.0))

    def counters(self) -> dict[str, dict[Labels, float]]:
        """A copy of all counters, for rendering."""
        with self._lock:
            return {name: dict(series) for name, series in self._counters.items()}

    def gauges(self) -> dict[str, dict[Labels, float]]:
        """A copy of all gauges, for rendering."""
        with self._lock:
            return {name: dict(series) for name, series in self._gauges.items()}
