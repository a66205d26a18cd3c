"""What was told and when: a finding that goes on is repeated now and then, not with every record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["Told", "is_lately"]

_SUBJECTS_MAX: Final = 4_096


def is_lately(then: float, now: float, seconds: float) -> bool:
    """Whether a moment is less than so long ago; one that lies ahead is not, for the clock was set back since."""
    return 0.0 <= now - then < seconds


@dataclass(slots=True)
class Told:
    """Event time of the last finding by subject, bounded; the one told longest ago makes room."""

    at: dict[str, float] = field(default_factory=dict)

    def due(self, subject: str, ts: float, repeat_seconds: float) -> bool:
        """Whether this subject is to be told of now; notes it where it is."""
        last = self.at.get(subject)
        if last is not None and is_lately(last, ts, repeat_seconds):
            return False
        self.at.pop(subject, None)
        if len(self.at) >= _SUBJECTS_MAX:
            del self.at[next(iter(self.at))]
        self.at[subject] = ts
        return True
