"""Launches that were announced: for how long new accounts of a model may send what no account sent before."""

from __future__ import annotations

import datetime
import fnmatch
import math
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from mlsecd.errors import StateError

__all__ = ["Launch", "Launches", "Open", "watching_of"]

_DAY: Final = 86_400.0
_DAYS_MAX: Final = 31  # that one may last: it is an amnesty for who is odd and new

_Date = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """New customers who are expected, with inputs that the baseline does not know."""

    model: Annotated[str, Meta(min_length=1, max_length=256, description="the model, or a glob over its name")]
    begins: Annotated[_Date, Meta(description="its first day, YYYY-MM-DD (UTC): accounts first seen from then on")]
    ends: Annotated[_Date, Meta(description="its last day, YYYY-MM-DD (UTC), of 31 at most: fit again by then")]
    reason: Annotated[str, Meta(min_length=3, max_length=200, description="who announced it, and what it is")]

    def __post_init__(self) -> None:
        """Refuse what ends before it begins, or lasts as long as nobody would look."""
        days = (datetime.date.fromisoformat(self.ends) - datetime.date.fromisoformat(self.begins)).days + 1
        if not 1 <= days <= _DAYS_MAX:
            raise ValueError(f"a launch lasts 1 to {_DAYS_MAX} days, and this one {days}")


class Open(NamedTuple):
    """A launch that is on since a moment, seconds."""

    since: float
    reason: str

    def covers(self, born: float, watching: float) -> bool:
        """Whether an account is new since it began.

        Parameters
        ----------
        born
            When the account was first seen.
        watching
            Since when anybody looks. Where that is later than the launch, who comes within a day was there before.
        """
        return born >= (self.since if watching <= self.since else watching + _DAY)

    @property
    def words(self) -> str:
        """For a finding's reason."""
        return f"first seen since an announced launch began ({self.reason})"


class Launches:
    """Answers by event time whether a launch of a model is on."""

    def __init__(self, rows: Iterable[Launch]) -> None:
        self._rows = [(row.model, Open(_start(row.begins), row.reason), _start(row.ends) + _DAY) for row in rows]

    def of(self, model: str, ts: float) -> Open | None:
        """The launch of a model that is on; of several, the one that began first."""
        on = [one for glob, one, until in self._rows if one.since <= ts < until and fnmatch.fnmatchcase(model, glob)]
        return min(on, default=None)


def _start(date: str) -> float:
    return datetime.datetime.combine(
        datetime.date.fromisoformat(date), datetime.time(), tzinfo=datetime.UTC
    ).timestamp()


def watching_of(dumped: float) -> float:
    """Since when anybody looks, out of a snapshot; infinity: nobody has yet.

    Raises
    ------
    StateError
        It is no moment.
    """
    watching = float(dumped)
    if not watching > -math.inf:
        raise StateError("a snapshot does not say since when it was made")
    return watching
