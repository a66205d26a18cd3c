"""Seasons: how accounts that had been ordinary are told to have turned, most of them at a time.

What a season sends may be as foreign to a model as what a thief sends, so content does not tell them apart. Time does:
a season turns accounts that were calm before, and most of them; a campaign's accounts are odd from their first
queries on, or they are few among those who stay as they were.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mlsecd.errors import StateError

__all__ = ["DAY", "Course", "Past", "Season", "Seasons"]

DAY: Final = 86_400.0
_LATELY: Final = 21_600.0
_FEWEST: Final = 6  # accounts with a past, below which nothing is most of them
_MOST: Final = 0.5
_SOME: Final = 1.0 / 3.0


class Course(enum.IntEnum):
    """What an account was, as far as it has been judged."""

    UNKNOWN = 0
    CALM = 1
    TURNED = 2  # it is odd, and was calm before, a day after it was first seen or later
    ODD = 3  # it was odd within its first day, or the first time that it was judged: for good


@dataclass(slots=True)
class Past:
    """What is remembered of an account beyond its epoch.

    Attributes
    ----------
    born
        When it was first seen, seconds.
    judged_at
        When the last query came that it was judged by, seconds.
    """

    born: float = field(default=math.inf, kw_only=True)
    judged_at: float = field(default=-math.inf, kw_only=True)
    course: Course = field(default=Course.UNKNOWN, kw_only=True)

    def judged(self, last: float, *, odd: bool) -> None:
        """Note a judgement by its queries, of which the last came at ``last``."""
        self.judged_at = last
        if self.course is Course.ODD:
            return
        if not odd:
            self.course = Course.CALM
        elif self.course is not Course.TURNED:
            calm = self.course is Course.CALM and last - self.born >= DAY
            self.course = Course.TURNED if calm else Course.ODD


class Season(NamedTuple):
    """Accounts that turned, of those who had been calm for a day."""

    turned: int
    of: int

    @property
    def words(self) -> str:
        """For a finding's reason."""
        return (
            f"{self.turned} of {self.of} accounts that had been calm for a day have turned, too: a season or a changed "
            "model rather than theft"
        )


class Seasons:
    """What is known of each crowd's season; a crowd is of one model, and known by a name.

    A season begins when most of the accounts that came within six hours have turned, and a third of those of the
    last day: in the quiet of a night a few accounts are most of them. It ends when less than a third of a day's have.
    """

    def __init__(self) -> None:
        self._on: dict[str, Season] = {}

    def look(self, crowd: str, accounts: Sequence[Past], now: float) -> None:
        """Note what a crowd's accounts show."""
        season = _season(accounts, now, crowd in self._on)
        if season is not None:
            self._on[crowd] = season
        else:
            self._on.pop(crowd, None)

    def of(self, crowd: str) -> Season | None:
        """A crowd's season, if there is one."""
        return self._on.get(crowd)

    def items(self) -> Iterable[tuple[str, Season]]:
        """Crowds that have a season."""
        return self._on.items()

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        return [[crowd, *season] for crowd, season in self._on.items()]

    @classmethod
    def load(cls, dumped: list[Any], crowds: Container[str]) -> Seasons:
        """Out of what :meth:`dump` gave.

        Raises
        ------
        StateError
            They are of no crowd that there is.
        """
        made = cls()
        for crowd, turned, of in dumped:
            made._on[str(crowd)] = Season(int(turned), int(of))
        if any(crowd not in crowds or not 0 <= one.turned <= one.of for crowd, one in made.items()):
            raise StateError("seasons in a snapshot are of no model of the baseline")
        return made


def _season(accounts: Sequence[Past], now: float, on: bool) -> Season | None:
    """What accounts show; where a season is ``on``, it takes less to stay so."""
    old = [(now - past.judged_at, past.course) for past in accounts if now - past.born >= DAY]
    today = _counted([course for ago, course in old if ago < DAY])
    lately = _counted([course for ago, course in old if ago < _LATELY])
    if today.of == 0 or today.turned < _SOME * today.of:
        return None
    if on:
        return today
    return lately if lately.of >= _FEWEST and lately.turned >= _MOST * lately.of else None


def _counted(courses: list[Course]) -> Season:
    turned = courses.count(Course.TURNED)
    return Season(turned, turned + courses.count(Course.CALM))
