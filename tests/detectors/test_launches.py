from __future__ import annotations

import datetime
import math

import msgspec
import pytest

from mlsecd.detectors._launches import Launch, Launches, Open
from mlsecd.errors import StateError

DAY = 86_400.0


def watched(*rows: Launch) -> Launches:
    launches = Launches(rows)
    launches.watch(0.0)
    return launches


def at(day: str) -> float:
    return datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC).timestamp()


def launch(**columns: str | None) -> Launch:
    given = {"model": "m", "begins": "2027-01-11", "ends": "2027-01-24", "reason": "scanner 2.0", **columns}
    return msgspec.convert(given, Launch)


def test_a_launch_is_on_from_its_first_day_to_its_last() -> None:
    launches = watched(launch())
    begins, ends = at("2027-01-11"), at("2027-01-25")
    assert launches.of("m", begins) == launches.of("m", ends - 1.0) == Open(begins, "scanner 2.0")
    assert launches.of("m", begins - 1.0) is None
    assert launches.of("m", ends) is None


def test_a_launch_is_of_the_models_that_it_names() -> None:
    launches = watched(launch(model="faces-*"))
    assert launches.of("faces-2", at("2027-01-12")) is not None
    assert launches.of("digits", at("2027-01-12")) is None


def test_of_two_launches_the_first_says_who_is_new() -> None:
    launches = watched(launch(begins="2027-01-12", reason="second"), launch(reason="first"))
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
    begins = at("2027-01-11")

    def since(watching: float | None) -> float:
        launches = Launches([launch()])
        if watching is not None:
            launches.watch(watching)
        on = launches.of("m", begins + 2 * DAY)
        assert on is not None
        return on.since

    assert since(begins - DAY) == since(begins) == begins
    assert since(begins + DAY) == begins + 2 * DAY, "who comes within a day was there before"
    assert since(None) == math.inf, "nobody has looked yet"


def test_since_when_somebody_looks_goes_through_a_snapshot() -> None:
    launches = Launches([launch()])
    launches.watch(at("2027-01-13"))
    launches.watch(at("2027-01-12"))
    launches.watch(at("2027-01-14"))
    again = launches.loaded(launches.dump())
    on = at("2027-01-20")
    assert again.of("m", on) == launches.of("m", on) == Open(at("2027-01-13"), "scanner 2.0")
    assert Launches([launch()]).loaded(math.inf).of("m", on) == Open(math.inf, "scanner 2.0")
    with pytest.raises(StateError):
        launches.loaded(math.nan)


def test_a_launch_may_last_one_day_or_a_month() -> None:
    assert launch(ends="2027-01-11").ends == "2027-01-11"
    assert launch(ends="2027-02-10").ends == "2027-02-10"
