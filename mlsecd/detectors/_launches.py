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

__all__ = ["Announced", "Launch", "Launches", "Open"]

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


Announced = Annotated[
    tuple[Launch, ...], Meta(max_length=100, description="announced launches, beside those of [[launches]]")
]


class Open(NamedTuple):
    """A launch that is on: accounts that were first seen at ``since`` or later are its own."""

    since: float
    reason: str

    @property
    def words(self) -> str:
        """For a finding's reason."""
        return f"first seen since an announced launch began ({self.reason})"


class Launches:
    """Answers by event time whether a launch of a model is on, to one who looks since some moment."""

    def __init__(self, rows: Iterable[Launch]) -> None:
        self._rows = [(row.model, Open(_start(row.begins), row.reason), _start(row.ends) + _DAY) for row in rows]
        self._watching = math.inf

    def watch(self, ts: float) -> None:
        """Note a moment at which accounts are looked at."""
        self._watching = min(self._watching, ts)

    def of(self, model: str, ts: float) -> Open | None:
        """The launch of a model that is on; of several, the one that began first.

        Who began to look only after it did takes nobody for new who comes within a day: they were there before.
        """
        on = [one for glob, one, until in self._rows if one.since <= ts < until and fnmatch.fnmatchcase(model, glob)]
        if not on:
            return None
        first = min(on)
        return first if self._watching <= first.since else first._replace(since=self._watching + _DAY)

    def dump(self) -> float:
        """What a snapshot holds: since when anybody looks."""
        return self._watching

    def loaded(self, dumped: float) -> Launches:
        """The same launches to one who looks since what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is no moment.
        """
        made = Launches(())
        made._rows, made._watching = self._rows, float(dumped)
        if not made._watching > -math.inf:
            raise StateError("a snapshot does not say since when it was made")
        return made


def _start(date: str) -> float:
    return datetime.datetime.combine(
        datetime.date.fromisoformat(date), datetime.time(), tzinfo=datetime.UTC
    ).timestamp()
