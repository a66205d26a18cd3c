from __future__ import annotations

import math

import pytest

from mlsecd.detectors._seasons import DAY, Course, Past, Season, Seasons, born_of
from mlsecd.errors import StateError

HOUR = 3_600.0


def crowd(calm: int, turned: int, judged_at: float, born: float = 0.0) -> list[Past]:
    courses = [Course.CALM] * calm + [Course.TURNED] * turned
    return [Past(born=born, judged_at=judged_at, course=course) for course in courses]


def named(pasts: list[Past], prefix: str = "0:0:") -> list[tuple[str, Past]]:
    """By name: number of the reference, whether it is synthetic, and the client."""
    return [(f"{prefix}c{i}", past) for i, past in enumerate(pasts)]


def seen(*looks: tuple[list[Past], float]) -> Season | None:
    """The season after looks, each with its moment."""
    seasons = Seasons(["m"])
    for pasts, now in looks:
        seasons.look(named(pasts), now)
    return seasons.of("0:0:anyone")


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
        (crowd(3, 3, 2 * DAY), (3, 6)),
        (crowd(4, 3, 2 * DAY), None),  # most are as they were
        (crowd(2, 3, 2 * DAY), None),  # too few to speak for all
        (crowd(0, 6, 2 * DAY, born=1.5 * DAY), None),  # of one day: who knows what they were
        (crowd(3, 3, 2 * DAY) + [Past(born=0.0, judged_at=2 * DAY, course=Course.ODD)] * 50, (3, 6)),  # thieves
        (crowd(0, 6, 2 * DAY) + crowd(13, 0, 2 * DAY - 7 * HOUR), None),  # in the night a few are most of them
        (crowd(0, 6, 2 * DAY) + crowd(12, 0, 2 * DAY - 7 * HOUR), (6, 6)),
        (crowd(0, 6, 2 * DAY) + crowd(99, 0, DAY), (6, 6)),  # who comes no more
        (crowd(0, 6, 9 * DAY) + crowd(1, 1, 2 * DAY), None),  # they came before the clock was set back
    ],
)
def test_a_season_is_most_of_those_who_had_been_calm(accounts: list[Past], season: tuple[int, int] | None) -> None:
    assert seen((accounts, 2 * DAY)) == (None if season is None else Season(*season, 2 * DAY))


def test_a_season_stays_until_a_day_shows_another() -> None:
    began = (crowd(0, 6, 2 * DAY), 2 * DAY)
    on = seen(began, (crowd(2, 1, 2 * DAY), 2 * DAY + HOUR))
    assert on == Season(1, 3, 2 * DAY)
    assert "1 of 3 accounts that had been calm for a day have turned: a season" in on.words
    assert seen(began, (crowd(3, 1, 2 * DAY), 2 * DAY + HOUR)) is None
    assert seen((crowd(2, 1, 2 * DAY), 2 * DAY + HOUR)) is None, "it takes more to begin"
    assert seen(began, (crowd(0, 6, 2 * DAY), 3 * DAY)) is None, "nobody came for a day"
    assert seen(began, ([], 3 * DAY)) is None, "nobody is left"


def test_a_model_has_one_season_whatever_vectors_its_clients_send() -> None:
    """Of a view that nobody else uses, a few accounts are most."""
    seasons, now = Seasons(["m", "m", "other"]), 2 * DAY
    few, many = named(crowd(0, 7, now), "1:0:t"), named(crowd(90, 0, now))
    seasons.look(few + many, now)
    assert seasons.of("1:0:x") is None
    seasons.look(few, now)
    assert seasons.of("1:0:x") == seasons.of("0:0:x") == Season(7, 7, now)
    assert seasons.of("2:0:x") is seasons.of("0:1:x") is None
    assert seasons.state() == f'"m": {Season(7, 7, now).words}'


def test_a_client_of_two_views_is_one() -> None:
    now = 2 * DAY
    one = Past(born=0.0, judged_at=now - HOUR, course=Course.CALM)
    other = Past(born=1.9 * DAY, judged_at=now, course=Course.ODD)
    assert one.with_other(other) == Past(born=0.0, judged_at=now, course=Course.ODD)
    seasons = Seasons(["m", "m"])
    five = crowd(0, 5, now)
    seasons.look(named(five) + named(five, "1:0:"), now)
    assert seasons.of("0:0:c0") is None, "five accounts, not ten"


def test_a_client_is_as_old_as_in_any_view_or_model() -> None:
    held = {name: Past(born=born) for name, born in (("0:0:a", 3.0), ("1:0:a", 5.0), ("1:1:a", 1.0))}
    assert born_of("1:0:a", 2, held.get) == 3.0
    assert born_of("1:1:a", 2, held.get) == 1.0, "synthetic ones apart"


def test_synthetic_accounts_have_a_season_of_their_own_that_is_nobodys_state() -> None:
    seasons = Seasons(["m"])
    seasons.look(named(crowd(0, 7, 2 * DAY), "0:1:"), 2 * DAY)
    assert seasons.of("0:1:x") is not None
    assert seasons.of("0:0:x") is None
    assert not seasons.state()


def test_a_season_explains_nobody_who_was_told_of_a_day_before() -> None:
    season = Season(6, 6, 5 * DAY)
    assert season.explains(Past(suspected=4 * DAY))
    assert not season.explains(Past(suspected=4 * DAY - 1.0))
    thief = Past(born=0.0, suspected=DAY)
    thief.judged(2 * DAY, odd=True)
    assert not season.explains(thief)
    thief.judged(3 * DAY, odd=False)
    assert season.explains(thief), "it was calm since"


def test_seasons_go_through_a_snapshot() -> None:
    seasons = Seasons(["m"])
    seasons.look(named(crowd(0, 6, 2 * DAY)), 2 * DAY)
    assert seasons.loaded(seasons.dump()).of("0:0:x") == Season(6, 6, 2 * DAY)
    for dumped in (["9:0", 1, 2, 0.0], ["0:0", 3, 2, 0.0], ["0:0", -1, 2, 0.0], ["0:0", 1, 2, math.nan]):
        with pytest.raises(StateError):
            seasons.loaded([dumped])


def test_a_past_at_no_time_is_none() -> None:
    good = Past(born=0.0, judged_at=1.0, suspected=2.0, course=Course.TURNED)
    again = Past()
    again.load_past(good.dump_past())
    assert again == good
    for born, judged_at, suspected in (
        (math.nan, 0.0, 0.0),
        (math.inf, 0.0, 0.0),
        (0.0, math.nan, 0.0),
        (0.0, math.inf, 0.0),
        (0.0, 0.0, math.nan),
        (0.0, 0.0, -math.inf),
    ):
        with pytest.raises(StateError):
            Past().load_past([born, judged_at, suspected, Course.CALM])
