"""Seasons: how accounts that had been ordinary are told to have turned, most of them at a time.

What a season sends may be as foreign to a model as what a thief sends, so content does not tell them apart. Time does:
a season turns accounts that were calm before, and most of them; a campaign's accounts are odd from their first
queries on, or they are few among those who stay as they were.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mlsecd.detectors._told import is_lately
from mlsecd.errors import StateError

__all__ = ["DAY", "Course", "Past", "Season", "Seasons", "born_of"]

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
    suspected
        Since when it has been told of as a thief's, seconds; infinity: it is not, or it was calm since.
    """

    born: float = field(default=math.inf, kw_only=True)
    judged_at: float = field(default=-math.inf, kw_only=True)
    suspected: float = field(default=math.inf, kw_only=True)
    course: Course = field(default=Course.UNKNOWN, kw_only=True)

    def judged(self, last: float, *, odd: bool) -> None:
        """Note a judgement by its queries, of which the last came at ``last``."""
        self.judged_at = last
        if not odd:
            self.suspected = math.inf
        if self.course is Course.ODD:
            return
        if not odd:
            self.course = Course.CALM
        elif self.course is not Course.TURNED:
            calm = self.course is Course.CALM and last - self.born >= DAY
            self.course = Course.TURNED if calm else Course.ODD

    def with_other(self, other: Past) -> Past:
        """The same client's, who sends now these vectors and now those: it is as old and as odd as in either."""
        judged_at, course = max(self.judged_at, other.judged_at), max(self.course, other.course)
        return Past(born=min(self.born, other.born), judged_at=judged_at, course=course)

    def dump_past(self) -> list[Any]:
        """What a snapshot holds of it."""
        return [self.born, self.judged_at, self.suspected, self.course]

    def load_past(self, dumped: list[Any]) -> None:
        """Take what :meth:`dump_past` gave.

        Raises
        ------
        StateError
            It is at no time.
        """
        *times, course = dumped
        (self.born, self.judged_at, self.suspected), self.course = map(float, times), Course(course)
        if not math.isfinite(self.born) or not self.judged_at < math.inf or not self.suspected > -math.inf:
            raise StateError("accounts in a snapshot have a past at no time")


def born_of(name: str, references: int, find: Callable[[str], Past | None]) -> float:
    """When an account's client was first seen, whatever model and vectors it sent then; ``find`` knows its own name."""
    rest = name.partition(":")[2]
    pasts = (find(f"{number}:{rest}") for number in range(references))
    return min(past.born for past in pasts if past is not None)


class Season(NamedTuple):
    """Accounts that turned, of those who had been calm for a day; and when it began, seconds."""

    turned: int
    of: int
    began: float

    def explains(self, past: Past) -> bool:
        """Whether an account may be odd: not who was told of as a thief's a day before it began, or earlier."""
        return past.suspected >= self.began - DAY

    @property
    def words(self) -> str:
        """For a finding's reason."""
        return (
            f"{self.turned} of {self.of} accounts that had been calm for a day have turned: a season or a changed "
            "model rather than theft"
        )


class Seasons:
    """The seasons of a baseline's models.

    A season begins when most of the accounts that came within six hours have turned, and a third of those of the
    last day: in the quiet of a night a few accounts are most of them. It ends when less than a third of a day's have.

    Parameters
    ----------
    models
        By number of the reference that accounts' names begin with. A model has one season, whatever vectors its clients
        send: of a view that nobody else uses a few accounts would be most.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self._models = models
        self._firsts = [models.index(model) for model in models]
        self._on: dict[str, Season] = {}

    def look(self, accounts: Iterable[tuple[str, Past]], now: float) -> None:
        """Note what accounts show, by name; synthetic ones apart."""
        crowds: dict[str, dict[str, Past]] = {crowd: {} for crowd in self._on}
        for name, past in accounts:
            key, client = self._place(name)
            crowd = crowds.setdefault(key, {})
            crowd[client] = past if client not in crowd else past.with_other(crowd[client])
        looked = {crowd: _season(own.values(), now, self._on.get(crowd)) for crowd, own in sorted(crowds.items())}
        self._on = {crowd: season for crowd, season in looked.items() if season is not None}

    def of(self, name: str) -> Season | None:
        """The season of an account's crowd, if there is one."""
        return self._on.get(self._place(name)[0])

    def _place(self, name: str) -> tuple[str, str]:
        """An account's crowd, and its client."""
        number, synthetic, client = name.split(":", 2)
        return f"{self._firsts[int(number)]}:{synthetic}", client

    def state(self) -> str:
        """Why certificates do not hold just now; empty: they do."""
        real = [(int(crowd[:-2]), season) for crowd, season in self._on.items() if crowd.endswith(":0")]
        return "; ".join(f'"{self._models[number]}": {season.words}' for number, season in real)

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        return [[crowd, *season] for crowd, season in self._on.items()]

    def loaded(self, dumped: list[Any]) -> Seasons:
        """Others of the same models, out of what :meth:`dump` gave.

        Raises
        ------
        StateError
            They are of no model that there is.
        """
        made = Seasons(self._models)
        made._on = {str(crowd): Season(int(turned), int(of), float(began)) for crowd, turned, of, began in dumped}
        known = {f"{number}:{synthetic}" for number in self._firsts for synthetic in (0, 1)}
        sound = all(0 <= one.turned <= one.of and math.isfinite(one.began) for one in made._on.values())
        if not sound or not known.issuperset(made._on):
            raise StateError("seasons in a snapshot are of no model of the baseline")
        return made


def _season(accounts: Collection[Past], now: float, before: Season | None) -> Season | None:
    """What accounts show; where a season is on, it takes less to stay so."""
    old = [past for past in accounts if now - past.born >= DAY]
    turned_today, today = _turned(old, now, DAY)
    turned, lately = _turned(old, now, _LATELY)
    if not today or turned_today < _SOME * today:
        return None
    if before is not None:
        return Season(turned_today, today, min(before.began, now))
    return Season(turned, lately, now) if lately >= _FEWEST and turned >= _MOST * lately else None


def _turned(old: list[Past], now: float, seconds: float) -> tuple[int, int]:
    """Of those that came within so long: who turned, and all who were ever calm."""
    courses = [past.course for past in old if is_lately(past.judged_at, now, seconds)]
    turned = courses.count(Course.TURNED)
    return turned, turned + courses.count(Course.CALM)
