"""Counters that only grow, by how much they grew within the last hour of event time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["Growth"]

_MINUTES: Final = 60


@dataclass(slots=True)
class Growth:
    """Growth of one counter by minute; a counter that goes back was reset, and begins anew."""

    last: int | None = None
    minutes: dict[int, int] = field(default_factory=dict)

    def take(self, ts: float, value: int | None) -> int:
        """Take a reading; return the growth within the last hour. No reading adds nothing."""
        now = int(ts // 60)
        if value is not None:
            if self.last is not None and value > self.last:
                self.add(ts, value - self.last)
            self.last = value
        for old in [one for one in self.minutes if not 0 <= now - one < _MINUTES]:
            del self.minutes[old]
        return sum(self.minutes.values())

    def add(self, ts: float, count: int = 1) -> int:
        """Count events; return how many came within the last hour."""
        now = int(ts // 60)
        self.minutes[now] = self.minutes.get(now, 0) + count
        for old in [one for one in self.minutes if not 0 <= now - one < _MINUTES]:
            del self.minutes[old]
        return sum(self.minutes.values())
