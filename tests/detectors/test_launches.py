from __future__ import annotations

import datetime
import math

import msgspec
import pytest

from mlsecd.detectors._launches import Launch, Launches, Open, watching_of
from mlsecd.errors import StateError

DAY = 86_400.0


def at(day: str) -> float:
    return datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC).timestamp()


def launch(**columns: str | None) -> Launch:
    given = {"model": "m", "begins": "2027-01-11", "ends": "2027-01-24", "reason": "scanner 2.0", **columns}
    return msgspec.convert(given, Launch)


def test_a_launch_is_on_from_its_first_day_to_its_last() -> None:
    launches = Launches([launch()])
    begins, ends = at("2027-01-11"), at("2027-01-25")
    assert launches.of("m", begins) == launches.of("m", ends - 1.0) == Open(begins, "scanner 2.0")
    assert launches.of("m", begins - 1.0) is None
    assert launches.of("m", ends) is None


def test_a_launch_is_of_the_models_that_it_names() -> None:
    launches = Launches([launch(model="faces-*")])
    assert launches.of("faces-2", at("2027-01-12")) is not None
    assert launches.of("digits", at("2027-01-12")) is None


def test_of_two_launches_the_first_says_who_is_new() -> None:
    launches = Launches([launch(begins="2027-01-12", reason="second"), launch(reason="first")])
    assert launches.of("m", at("2027-01-13")) == Open(at("2027-01-11"), "first")


@pytest.mark.parametrize(
    "columns",
    [
        {"ends": "2027-01-10"},
        {"ends": "2027-02-11"},  # of 32 days
        {"begins": "2027-02-30", "ends": "2027-03-01"},
        {"begins": "soon"},
        {"reason": ""},
        {"model": ""},
        {"model": None},
        {"until": "2027-01-24"},
    ],
)
def test_what_is_no_launch_is_refused(columns: dict[str, str | None]) -> None:
    with pytest.raises(msgspec.ValidationError):
        launch(**columns)


def test_who_is_new_is_new_to_those_who_look() -> None:
    on = Open(10 * DAY, "why")
    assert on.covers(10 * DAY, watching=0.0)
    assert not on.covers(10 * DAY - 1.0, watching=0.0)
    assert not on.covers(12 * DAY - 1.0, watching=11 * DAY), "who comes within a day was there before"
    assert on.covers(12 * DAY, watching=11 * DAY)
    assert not on.covers(11 * DAY, watching=math.inf), "nobody has looked yet"
    assert watching_of(11 * DAY) == 11 * DAY
    with pytest.raises(StateError):
        watching_of(math.nan)


def test_a_launch_may_last_one_day_or_a_month() -> None:
    assert launch(ends="2027-01-11").ends == "2027-01-11"
    assert launch(ends="2027-02-10").ends == "2027-02-10"
