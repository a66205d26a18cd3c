from __future__ import annotations

import math

import pytest

from mlsecd.detectors._seasons import DAY, Course, Past, Season, Seasons
from mlsecd.errors import StateError

HOUR = 3_600.0


def crowd(calm: int, turned: int, judged_at: float, born: float = 0.0) -> list[Past]:
    courses = [Course.CALM] * calm + [Course.TURNED] * turned
    return [Past(born=born, judged_at=judged_at, course=course) for course in courses]


@pytest.mark.parametrize(
    ("judgements", "course"),
    [
        ([], Course.UNKNOWN),
        ([(0.5, False)], Course.CALM),
        ([(0.5, False), (1.0, True)], Course.TURNED),
        ([(0.5, False), (0.9, True)], Course.ODD),  # within its first day
        ([(0.5, True), (3.0, False), (4.0, True)], Course.ODD),  # a thief who rests is no customer
        ([(5.0, True)], Course.ODD),  # nobody has ever seen it calm
        ([(0.5, False), (2.0, True), (3.0, False)], Course.CALM),
        ([(0.5, False), (2.0, True), (3.0, True)], Course.TURNED),
    ],
)
def test_what_an_account_was(judgements: list[tuple[float, bool]], course: Course) -> None:
    one = Past(born=0.0)
    for days, odd in judgements:
        one.judged(days * DAY, odd=odd)
    assert one.course is course
    assert one.judged_at == max([days * DAY for days, _ in judgements], default=-math.inf)


@pytest.mark.parametrize(
    ("accounts", "season"),
    [
        (crowd(3, 3, 2 * DAY), Season(3, 6)),
        (crowd(4, 3, 2 * DAY), None),  # most are as they were
        (crowd(2, 3, 2 * DAY), None),  # too few to speak for all
        (crowd(0, 6, 2 * DAY, born=1.5 * DAY), None),  # of one day: who knows what they were
        (
            crowd(3, 3, 2 * DAY) + [Past(born=0.0, judged_at=2 * DAY, course=Course.ODD)] * 50,
            Season(3, 6),
        ),  # thieves speak for nobody
        (crowd(0, 6, 2 * DAY) + crowd(13, 0, 2 * DAY - 7 * HOUR), None),  # in the night a few are most of them
        (crowd(0, 6, 2 * DAY) + crowd(12, 0, 2 * DAY - 7 * HOUR), Season(6, 6)),
        (crowd(0, 6, 2 * DAY) + crowd(99, 0, DAY), Season(6, 6)),  # who comes no more
    ],
)
def test_a_season_is_most_of_those_who_had_been_calm(accounts: list[Past], season: Season | None) -> None:
    seasons = Seasons()
    seasons.look("0:0", accounts, 2 * DAY)
    assert seasons.of("0:0") == season
    assert seasons.of("1:0") is None


def test_a_season_stays_until_a_day_shows_another() -> None:
    seasons = Seasons()
    seasons.look("0:0", crowd(0, 6, 2 * DAY), 2 * DAY)
    seasons.look("0:0", crowd(2, 1, 2 * DAY), 2 * DAY + HOUR)
    assert seasons.of("0:0") == Season(1, 3)
    assert "1 of 3 accounts that had been calm for a day have turned, too" in Season(1, 3).words
    seasons.look("0:0", crowd(3, 1, 2 * DAY), 2 * DAY + HOUR)
    assert seasons.of("0:0") is None
    seasons.look("0:0", crowd(2, 1, 2 * DAY), 2 * DAY + HOUR)
    assert seasons.of("0:0") is None, "it takes more to begin"
    seasons.look("0:0", crowd(0, 6, 2 * DAY), 2 * DAY)
    seasons.look("0:0", crowd(0, 6, 2 * DAY), 3 * DAY)
    assert seasons.of("0:0") is None, "nobody came for a day"


def test_seasons_go_through_a_snapshot() -> None:
    seasons = Seasons()
    seasons.look("0:0", crowd(0, 6, 2 * DAY), 2 * DAY)
    assert Seasons.load(seasons.dump(), {"0:0"}).of("0:0") == Season(6, 6)
    for dumped in ([["9:0", 1, 2]], [["0:0", 3, 2]], [["0:0", -1, 2]]):
        with pytest.raises(StateError):
            Seasons.load(dumped, {"0:0"})
