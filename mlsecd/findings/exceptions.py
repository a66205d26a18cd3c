"""Signed-off exceptions: they mute the page for a subject until a date, never the log."""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Exceptions"]


class Exemption(Protocol):
    """What a configuration says of one exception."""

    @property
    def detector(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def expires(self) -> str: ...


class Exceptions:
    """Answers whether a finding's page is muted, by the finding's own event time."""

    def __init__(self, rows: Sequence[Exemption]) -> None:
        self._rows = [(row, _end_of_day(row.expires)) for row in rows]

    def muted(self, detector: str, subject: str, ts: float) -> str | None:
        """The reason that was signed off, or ``None``: a finding of this event time counts in full."""
        for row, until in self._rows:
            if row.detector == detector and ts < until and fnmatch.fnmatchcase(subject, row.subject):
                return row.reason
        return None

    def expired(self, now: float) -> int:
        """How many exceptions no longer hold: someone should renew or delete them."""
        return sum(until <= now for _, until in self._rows)


def _end_of_day(date: str) -> float:
    day = datetime.date.fromisoformat(date) + datetime.timedelta(days=1)
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()
