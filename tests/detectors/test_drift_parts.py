"""The parts of drift detection that have a law of their own: seasons, samples, whole vectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from support import requests

from mlsecd.detectors import _drift_freeze
from mlsecd.detectors._drift_calibration import Wander, calibrate
from mlsecd.detectors._drift_crowd import Crowd
from mlsecd.detectors._drift_freeze import freeze_columns
from mlsecd.detectors._drift_reference import bounded
from mlsecd.detectors._drift_sample import Sample
from mlsecd.detectors._drift_season import DAY, HOURS, WEEK, at_times, fit_season, weekdays
from mlsecd.detectors._drift_streams import Columns
from mlsecd.detectors._drift_vectors import WINDOW, learn_vectors
from mlsecd.detectors._drift_windows import Windows, permutations
from mlsecd.detectors.base import DetectorState
from mlsecd.detectors.drift_requests import DriftRequests, Params
from mlsecd.kernels import select
from mlsecd.records import Finding, RequestBatch, Severity

KERNELS = select("cpu")
MONDAY = 345_600.0


# seasons


def ranks_of(times: np.ndarray, wave: np.ndarray, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(len(times)) + wave
    return (np.argsort(np.argsort(values)) + 0.5) / len(values) - 0.5


def test_a_daily_season_is_taken_out_and_what_is_left_is_level() -> None:
    times = np.sort(np.random.default_rng(2).uniform(0.0, 3 * DAY, 6_000))
    wave = 0.8 * np.sin(2 * np.pi * times / DAY)
    ranks = ranks_of(times, wave)
    season = fit_season(times, ranks, 1 / 12)
    assert season.table.max() > 0.15
    left = ranks - at_times(season.table[None], times)[:, 0]
    by_hour = [left[(times % DAY) // 3_600.0 == hour].mean() for hour in range(24)]
    assert np.abs(by_hour).max() < 0.05
    assert np.abs(ranks[(times % DAY) // 3_600.0 == 6].mean()) > 0.15


def test_chance_is_no_season_and_less_than_a_day_has_none() -> None:
    for seed in range(20):
        times = np.sort(np.random.default_rng(seed).uniform(0.0, 2 * DAY, 2_000))
        season = fit_season(times, ranks_of(times, np.zeros(2_000), seed), 1 / 12)
        assert not season.table.any()
        assert (season.weights == 1.0).all()
        assert season.leverage == 1 / 2_000
    short = np.sort(np.random.default_rng(1).uniform(0.0, 0.9 * DAY, 2_000))
    assert not fit_season(short, ranks_of(short, np.sin(2 * np.pi * short / DAY)), 1 / 12).table.any()


def test_rows_that_go_together_make_no_season() -> None:
    """Two weeks in 60 stretches of 100 rows, each at a level of its own: harmonics fit what never comes back."""
    weekly = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        begun = np.linspace(MONDAY, MONDAY + 2 * WEEK, 60, endpoint=False)
        times = (begun[:, None] + np.arange(100) * 10.0).ravel()
        ranks = ranks_of(times, np.repeat(0.3 * rng.standard_normal(60), 100), seed)
        weekly += fit_season(times, ranks, 1 / 12).terms > 7
    assert weekly <= 1
    assert fit_season(times, ranks_of(times, 0.9 * ((times - MONDAY) // DAY % 7 >= 5)), 1 / 12).terms == 19


@pytest.mark.parametrize("days", [2, 7, 9])
def test_a_faint_season_of_working_hours_is_believed(days: int) -> None:
    """Of seven days too, the recording that operators are asked for: no fold is one time of the day."""
    seen = 0
    for seed in range(20):
        at = np.random.default_rng(seed).uniform(0.0, days, 4_000)
        times = np.sort(MONDAY + (np.floor(at) + 0.33 + 0.5 * (at % 1.0)) * DAY)
        seen += fit_season(times, ranks_of(times, 0.3 * np.sin(2 * np.pi * times / DAY), seed), 1 / 12).table.any()
    assert seen >= 18


def test_two_weeks_tell_a_weekend_from_the_week() -> None:
    times = np.sort(np.random.default_rng(2).uniform(MONDAY, MONDAY + 2 * WEEK, 6_000))
    weekend = ((times - MONDAY) // DAY % 7 >= 5) * 0.9
    season = fit_season(times, ranks_of(times, weekend), 1 / 12)
    assert season.table[5 * 24 + 12] - season.table[2 * 24 + 12] > 0.15
    ten_days = times < MONDAY + 10 * DAY
    early = fit_season(times[ten_days], ranks_of(times, weekend)[ten_days], 1 / 12)
    assert np.ptp(early.table.reshape(7, 24), axis=0).max() < 1e-9, "no week is believed before it came back"


def test_an_hour_that_is_hardly_known_counts_for_less() -> None:
    rng = np.random.default_rng(3)
    hours = np.where(rng.random(6_000) < 0.97, rng.uniform(8.0, 20.0, 6_000), rng.uniform(0.0, 24.0, 6_000))
    times = np.sort(rng.integers(0, 3, 6_000) * DAY + hours * 3_600.0)
    season = fit_season(times, ranks_of(times, 0.6 * np.sin(2 * np.pi * times / DAY)), 1 / 12)
    noon, night = season.weights[12], season.weights[2]
    assert season.weights.max() == pytest.approx(1.0)
    assert night < 0.5 * noon


def test_days_of_the_week_are_counted_from_monday() -> None:
    assert weekdays(MONDAY, MONDAY + DAY + 1.0) == {0, 1}
    assert weekdays(MONDAY - 1.0, MONDAY) == {6, 0}
    assert weekdays(0.0, 100 * DAY) == set(range(7))
    assert at_times(np.arange(HOURS)[None], np.array([MONDAY + 1_800.0, MONDAY - 1_800.0]))[:, 0].tolist() == [
        0.5,
        83.5,
    ]


# samples


def test_a_sample_keeps_blocks_of_neighbours() -> None:
    sample = Sample.of(200)
    columns = Columns(requests(np.arange(5_000.0), input_tokens=np.arange(5_000.0)))
    assert sample.add(columns, np.arange(5_000), (200, 1e9), KERNELS) is None
    assert sample.limit // 2 <= sample.count <= sample.limit
    assert sample.stride > 1
    blocks = sample.times[: sample.count // sample.block * sample.block].reshape(-1, sample.block)
    assert (np.diff(blocks, axis=1) == 1.0).all()
    assert set(np.diff(blocks[:, 0])) == {float(sample.stride * sample.block)}
    assert sample.scalars[: sample.count, 0].tolist() == sample.times[: sample.count].tolist()


def test_dependence_is_not_looked_for_across_blocks() -> None:
    """Levels that last 50 rows, in blocks of 32 that are far apart: longer stretches would make them look short."""
    rng = np.random.default_rng(5)
    levels = np.repeat(rng.standard_normal(100), 32) * 0.15
    ranks = np.clip(rng.uniform(-0.5, 0.5, 3_200) + levels, -0.5, 0.5)
    near = calibrate(ranks, 1 / 12, 1 / 36_000, 32, 1.0)
    assert not near.steady
    assert near.error > 0.1, "what lasts longer than a block may last for ever"


def test_what_a_season_took_from_stretches_is_given_back() -> None:
    """As many stretches as terms would leave nothing of the levels that they differ by."""
    ratios, plain = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ranks = rng.uniform(-0.5, 0.5, 2_560) + np.repeat(rng.standard_normal(40) * 0.05, 64)
        basis = rng.standard_normal((40, 19)).repeat(64, axis=0)
        left = ranks - basis @ np.linalg.lstsq(basis, ranks, rcond=None)[0]
        ratios.append(calibrate(left, 1 / 12, 1 / 36_000, 64, 0.0, cautious=True, terms=19).inertia)
        plain.append(calibrate(ranks, 1 / 12, 1 / 36_000, 64, 0.0, cautious=True).inertia)
    assert np.median(ratios) > 0.9 * np.median(plain)


def test_where_rows_plainly_go_together_no_stream_is_taken_for_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Wander] = []

    def kept(*args: Any) -> Wander:
        seen.append(calibrate(*args))
        return seen[-1]

    monkeypatch.setattr(_drift_freeze, "calibrate", kept)
    rng = np.random.default_rng(3)
    level, alone = np.repeat(rng.standard_normal(60), 100) + rng.standard_normal(6_000), rng.standard_normal(6_000)
    table = np.column_stack((level, alone)).astype(np.float32)
    freeze_columns(np.arange(6_000.0), table, ("level", "alone"), 1.0, KERNELS)
    assert seen[0].plain
    assert seen[-1].steady, "it may be said to be so, and is allowed for all the same"
    assert seen[-1].inertia > 1.1
    seen.clear()
    freeze_columns(np.arange(6_000.0), table[:, 1:], ("alone",), 1.0, KERNELS)
    assert seen[-1].inertia == 1.0


# whole vectors


def thin(seed: int, wander: float) -> Sample:
    """Two thousand rows of a longer stream, whose blocks of 64 each have a level of their own."""
    sample, rng = Sample.of(1_000), np.random.default_rng(seed)
    rows = 20_000
    level = wander * rng.standard_normal((rows // 64 + 1, 6)).repeat(64, axis=0)[:rows]
    vectors = (rng.standard_normal((rows, 6)) + level) * np.geomspace(2.0, 0.5, 6)
    columns = Columns(requests(np.arange(float(rows)), features=vectors))
    assert sample.add(columns, np.arange(rows), (1_000, 1e9), KERNELS) is None
    assert sample.stride > 1
    return sample


def test_a_thinned_sample_concedes_what_its_blocks_wander() -> None:
    """A stretch of 250 kept rows is many blocks: their levels cancel, where those of a window do not."""
    calm, restless = (learn_vectors(thin(1, wander), 6, KERNELS).projection for wander in (0.0, 0.5))
    assert len(calm.pool) >= 150
    assert restless.concession[0] > 5.0 * calm.concession[0]
    window = (np.random.default_rng(9).standard_normal((WINDOW, 6)) + 0.5) * np.geomspace(2.0, 0.5, 6)
    projected = KERNELS.drift_project(window.astype(np.float32), *restless[:4], restless.middle)
    scaled = (projected[:, : len(restless.scales)] * restless.scales).astype(np.float32)
    draw = np.random.Generator(np.random.Philox(1))
    found = KERNELS.drift_mmd(restless.pool, scaled, restless.gammas, draw, 199, restless.concession)
    assert found.p > 0.2, "the level of one block, half a deviation in each direction, is nothing new there"


def test_a_pool_is_of_the_whole_sample() -> None:
    sample = thin(2, 0.0)
    sample.vectors[sample.count * 9 // 10 : sample.count] += 50.0
    pool = learn_vectors(sample, 6, KERNELS).projection.pool
    assert 0.06 < np.mean(np.abs(pool[:, 0] - np.median(pool[:, 0])) > 20.0) < 0.14


@pytest.mark.parametrize("far", [1e7, 1e15, 1e25])
def test_a_row_far_out_neither_poisons_a_reference_nor_hides_a_change(far: float) -> None:
    sample = thin(3, 0.0)
    sample.vectors[sample.count // 2 // 3 * 3 + 1] = far  # neither an axis nor, as it happens, the pool is made of it
    learned = learn_vectors(sample, 6, KERNELS).projection
    assert np.isfinite(learned.concession).all()
    assert learned.concession == pytest.approx(learn_vectors(thin(3, 0.0), 6, KERNELS).projection.concession, abs=0.2)
    window = np.random.default_rng(9).standard_normal((WINDOW, 6)) * np.geomspace(2.0, 0.5, 6)
    for wider, low, high in ((1.0, 0.01, 1.0), (2.0, 0.0, 0.01)):
        rows = (wider * window).astype(np.float32)
        rows[7] = far
        projected = KERNELS.drift_project(rows, *learned[:4], learned.middle)
        scaled = bounded(projected, learned.scales).astype(np.float32)
        scaled = scaled[np.isfinite(scaled).all(axis=1)]
        draw = np.random.Generator(np.random.Philox(1))
        found = KERNELS.drift_mmd(learned.pool, scaled, learned.gammas, draw, 199, learned.concession)
        assert np.isfinite(found.mmd2)
        assert low <= found.p <= high


def vectors(rows: int, seed: int, start: float, two_rings: bool) -> RequestBatch:
    """Points on a circle; with two rings, half of them come from four spots of it: means, spread and distance stay."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0.0, 2 * np.pi, rows)
    if two_rings:
        angle = rng.integers(0, 4, rows) * np.pi / 2 + rng.normal(0.0, 0.15, rows)
    x = np.column_stack((np.cos(angle), np.sin(angle))) + 0.05 * rng.standard_normal((rows, 2))
    turn = np.pi / 8  # so that the spots fall on no axis
    x = x @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return requests(start + np.arange(rows) * 2.4, client=None, features=np.column_stack((x, x[:, :1] * 0.01)))


def small(**params: Any) -> DriftRequests:
    fields = {"reference_seconds": 0.0, "learn_seconds": 0.0, **params}
    return DriftRequests(Params(**fields), KERNELS)


def whole(found: list[Finding]) -> list[dict[str, Any]]:
    return [one for line in found for one in line.evidence["streams"] if one["stream"] == "whole vector"]


def test_vectors_whose_shape_alone_changes_are_found_as_a_whole() -> None:
    detector = small()
    assert detector.observe(vectors(6_000, 1, 0.0, two_rings=False)) == []
    found = detector.observe(vectors(2_000, 2, 14_400.0, two_rings=True))
    assert whole(found)
    assert whole(found)[0]["effect"] > 0.2
    assert whole(found)[0]["onset"] >= 14_400.0 - 250 * 2.4
    assert found[0].ts <= 14_400.0 + 4 * WINDOW * 2.4
    assert detector.standing().state is DetectorState.SHIFTED


def windows(threshold: float = 1_000.0) -> Windows:
    return Windows(math.log(threshold), "key", np.zeros((WINDOW, 4), np.float32))


@pytest.mark.parametrize("stride", [1, 3])
def test_rows_fill_windows_however_they_come(stride: int) -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((3_000, 4))
    scores[::11] = np.nan
    times = np.arange(3_000) * 0.1
    whole_ends = windows().ends(scores, times, stride)
    ends, filled, start = [], windows(), 0
    for stop in [*np.sort(rng.choice(np.arange(1, 3_000), 80, replace=False)).tolist(), 3_000]:
        for end in [*(start + one + 1 for one in filled.ends(scores[start:stop], times[start:stop], stride)), stop]:
            if filled.take(scores[start:end], times[start:end], stride):
                ends.append(end - 1)
                filled.filled = 0
            start = end
    assert ends == whole_ends
    filling = 0.1 * WINDOW * stride * 11 / 10  # seconds that a window takes, then it rests
    assert len(ends) == (300.0 + 30.0) // (filling + 30.0)
    assert np.diff(times[ends]).min() > 0.99 * (filling + 30.0)


def test_no_more_permutations_are_drawn_than_three_windows_need() -> None:
    detector = small()
    detector.observe(vectors(2_000, 1, 0.0, two_rings=False))
    house = detector._learned[False].peek("m")
    assert house is not None
    reference, one = house.shared.reference, house.shared.windows
    assert reference is not None
    assert one is not None
    far = np.tile(reference.pool[:1] + 5.0, (WINDOW, 1)).astype(np.float32)
    for log_threshold, most in ((14.0, 2_999), (15.0, 9_999)):
        assert permutations(log_threshold) == most
        one.log_threshold, one.log_s, one.latched = log_threshold, 0.0, False
        told = []
        for _ in range(3):
            one.rows[:] = far
            told.append(one.test(reference, KERNELS))
            assert one.p == 1.0 / (most + 1)
        assert told == [False, False, True]


def test_a_flood_brings_no_more_tests_than_two_a_minute() -> None:
    """1,000 rows a second for five minutes; then the clock is set back, and windows fill again at once."""
    rows, times = np.zeros((300_000, 4)), np.arange(300_000) * 0.001
    ends = windows().ends(rows, times, 1)
    assert 9 <= len(ends) <= 10
    assert np.diff(times[ends]).min() >= 30.0
    one = windows()
    assert one.take(rows[:WINDOW], times[:WINDOW] + 5_000.0, 1)
    one.filled = 0
    assert one.ends(rows[:WINDOW], times[:WINDOW], 1) == [WINDOW - 1]


def test_evidence_of_windows_adds_up_and_comes_down_again() -> None:
    detector = small()
    detector.observe(vectors(2_000, 1, 0.0, two_rings=False))
    house = detector._learned[False].peek("m")
    assert house is not None
    watch = house.shared
    assert watch.reference is not None
    assert watch.windows is not None
    one, reference = watch.windows, watch.reference
    one.log_threshold = math.log(1_000.0)
    far = np.tile(reference.pool[:1] + 5.0, (WINDOW, 1)).astype(np.float32)
    one.rows[:] = far
    assert [one.test(reference, KERNELS) for _ in range(2)] == [False, True]
    assert one.log_s <= one.log_threshold + 1.0
    draw = np.random.default_rng(1)
    latched = []
    for _ in range(12):
        one.rows[:] = reference.pool[draw.choice(len(reference.pool), WINDOW, replace=False)]
        one.test(reference, KERNELS)
        latched.append(one.latched)
    assert latched[0] or latched[1]
    assert not latched[-1]
    assert one.log_s >= 0.0


def test_windows_restored_go_on_as_they_were() -> None:
    one = windows()
    one.take(np.ones((100, 4)), np.arange(100.0), 1)
    one.log_s, one.latched, one.tests = 3.0, True, 7
    other = windows()
    other.load(one.dump())
    assert other.filled == 100
    assert dataclasses.replace(other, rows=one.rows) == dataclasses.replace(one)
    for damage in (
        {"rows": np.zeros((3, 4), np.float32)},
        {"filled": WINDOW, "rows": np.zeros((WINDOW, 4), np.float32)},
    ):
        with pytest.raises(ValueError, match="window"):
            windows().load({**one.dump(), **damage})


# references that grow


def tokens(rows: int, start: float, every: float, seed: int, by: float = 0.0) -> RequestBatch:
    rng = np.random.default_rng(seed)
    return requests(start + np.arange(rows) * every, client=None, output_tokens=np.exp(rng.normal(4.0 + by, 1.0, rows)))


def test_a_reference_is_provisional_then_whole_then_as_long_as_a_day() -> None:
    detector = DriftRequests(Params(reference_rows=500, arm_rows=200, learn_seconds=86_400.0), KERNELS)
    detector.observe(tokens(250, 0.0, 6.0, 1))
    standing = detector.standing()
    assert (standing.state, standing.gauges["provisional_models"]) == (DetectorState.ARMED, 1.0)
    assert "held against a provisional reference meanwhile" in standing.why
    rows = [standing.gauges["reference_rows"]]
    least = [standing.gauges["minimum_effect"]]
    for start, count in ((1_500.0, 400), (3_900.0, 14_500)):
        detector.observe(tokens(count, start, 6.0, int(start)))
        standing = detector.standing()
        rows.append(standing.gauges["reference_rows"])
        least.append(standing.gauges["minimum_effect"])
    assert standing.gauges["provisional_models"] == 0.0
    assert rows == sorted(set(rows))
    assert least[1] < least[0], "the more rows, the smaller what shows"


def test_what_is_found_provisionally_says_so_and_is_no_ticket_while_small() -> None:
    detector = DriftRequests(Params(arm_rows=500, arm_seconds=0.0), KERNELS)
    detector.observe(tokens(700, 0.0, 3.0, 1))
    found = detector.observe(tokens(900, 2_100.0, 3.0, 2, by=0.45))
    assert found[0].evidence["uncertified"][0].startswith("the reference is provisional")
    assert found[-1].severity is Severity.INFO
    assert found[0].evidence["streams"][0]["least_effect"] > 0.15


def test_a_weekend_that_no_reference_has_seen_is_told_and_not_certified() -> None:
    detector = small(reference_rows=2_000)
    every = 3 * DAY / 2_000
    detector.observe(tokens(2_001, MONDAY, every, 1))
    found = detector.observe(tokens(400, MONDAY + 5 * DAY, every, 2, by=1.5))
    assert found[0].evidence["uncertified"] == ["the reference has no such day of the week"]
    assert found[0].severity is Severity.LOW


def test_an_old_reference_is_stale_and_goes_on() -> None:
    detector = small(reference_rows=500, reference_max_age_seconds=10 * DAY)
    detector.observe(tokens(600, 0.0, 60.0, 1))
    assert detector.standing().state is DetectorState.ARMED
    detector.observe(tokens(5, 11 * DAY, 60.0, 2))
    standing = detector.standing()
    assert standing.state is DetectorState.STALE
    assert standing.gauges["reference_age_seconds"] == pytest.approx(11 * DAY + 240.0 - 499 * 60.0)
    assert "ended 11 days ago: fit it again" in standing.why


def test_a_baseline_of_other_models_is_a_mismatch() -> None:
    fit = DriftRequests.fit([tokens(3_000, 0.0, 60.0, 1)], Params(), KERNELS)
    assert fit is not None
    detector = DriftRequests(Params(), KERNELS, fit.section)
    other = requests(np.arange(50.0), model="n", output_tokens=5.0)
    detector.observe(other)
    standing = detector.standing()
    assert standing.state is DetectorState.MISMATCH
    assert "was it fitted on another model?" in standing.why


def test_a_picture_shows_where_the_latest_rows_fall() -> None:
    detector = small(reference_rows=2_000)
    detector.observe(tokens(2_500, 0.0, 3.0, 1))
    last = detector.observe(tokens(600, 7_500.0, 3.0, 2, by=1.0))[-1]
    drawn = last.evidence["pictures"]["output_tokens"]
    assert len(drawn["edges"]) == 17
    assert drawn["edges"] == sorted(drawn["edges"])
    assert sum(drawn["after"]) == pytest.approx(1.0, abs=2e-3)
    assert 128 <= drawn["rows"] <= 256
    assert drawn["after"][-1] > 3 * drawn["after"][0]
    assert last.reason.endswith(("▅", "▆", "▇", "█"))


# references that are renewed


def renewed(**params: Any) -> DriftRequests:
    return small(reference_rows=1_000, refresh_seconds=40_000.0, **params)


def mean_of_reference(detector: DriftRequests) -> float:
    house = detector._learned[False].peek("m")
    assert house is not None
    watch = house.shared
    assert watch.reference is not None
    return float(watch.reference.means[watch.reference.names.index("output_tokens")])


def test_a_reference_is_renewed_where_nothing_moved() -> None:
    detector = renewed()
    detector.observe(tokens(1_100, 0.0, 20.0, 1))
    before = detector.standing().gauges["reference_timestamp_seconds"]
    assert detector.observe(tokens(4_500, 22_000.0, 20.0, 2)) == []
    assert detector.standing().gauges["reference_timestamp_seconds"] > before + 40_000.0


def test_poison_in_small_doses_is_seen_from_the_pinned_reference() -> None:
    """Each dose is too small to be drift from the sample before it; together they are a quarter of a deviation."""
    detector = renewed(tolerance=0.25)
    detector.observe(tokens(1_100, 0.0, 20.0, 1))
    pinned = mean_of_reference(detector)
    told: list[Finding] = []
    for dose in range(1, 9):
        told += detector.observe(tokens(2_200, 22_000.0 + (dose - 1) * 44_000.0, 20.0, dose + 1, by=0.06 * dose))
    strays = [one for one in told if "strayed" in one.evidence]
    assert strays
    assert strays[0].evidence["strayed"][0]["stream"] == "output_tokens"
    assert strays[0].evidence["strayed"][0]["effect"] > 0.1
    assert "has strayed little by little from the pinned one: output_tokens" in strays[0].reason
    assert strays[0].severity is Severity.LOW
    assert mean_of_reference(detector) < 1.35 * pinned, "what strayed was not taken"


def test_what_is_renewed_survives_a_restart_and_a_change_of_mind() -> None:
    fit = DriftRequests.fit([tokens(3_000, 0.0, 20.0, 1)], Params(), KERNELS)
    assert fit is not None
    for section in (None, fit.section):
        params = Params(reference_rows=1_000, reference_seconds=0.0, learn_seconds=0.0, refresh_seconds=40_000.0)
        detector = DriftRequests(params, KERNELS, section)
        detector.observe(tokens(5_000, 60_000.0, 20.0, 1))
        other = DriftRequests(params, KERNELS, section)
        other.restore(detector.snapshot())
        assert other.snapshot() == detector.snapshot()
        rest = tokens(5_000, 160_000.0, 20.0, 3, by=0.3)
        assert [one.line() for one in other.observe(rest)] == [one.line() for one in detector.observe(rest)]
        pinned = DriftRequests(Params(reference_rows=1_000, reference_seconds=0.0, learn_seconds=0.0), KERNELS, section)
        pinned.restore(detector.snapshot())
        pinned.observe(tokens(3_000, 260_000.0, 20.0, 4))
        assert pinned.standing().gauges["models"] == 1.0


# one big customer


def test_a_customer_who_comes_with_half_of_the_rows_is_context_and_says_so() -> None:
    """Twenty rows a minute of forty clients; then one more client sends as many rows, a little longer ones."""
    rng = np.random.default_rng(3)

    def many(rows: int, start: float, by: float, client: str | None = None) -> RequestBatch:
        clients = [client or f"c{one}" for one in rng.integers(0, 40, rows)]
        return requests(
            start + np.arange(rows) * 3.0, client=clients, output_tokens=np.exp(rng.normal(4 + by, 1, rows))
        )

    detector = small()
    detector.observe(many(2_200, 0.0, 0.0))
    both = RequestBatch.concat([many(3_000, 6_600.0, 0.0), many(3_000, 6_601.0, 0.8, "big")])
    found = detector.observe(both.take(np.argsort(both.completion, kind="stable")))
    assert found
    assert any(doubt.startswith("one client sends ") for doubt in found[-1].evidence["uncertified"])
    assert found[-1].severity is Severity.INFO
    reference = detector._learned[False].peek("m").shared.reference  # type: ignore[union-attr]
    assert 0.02 < reference.crowd < 0.1


def test_shares_are_counted_by_blocks_however_rows_come() -> None:
    rng = np.random.default_rng(1)
    clients = rng.choice(np.array([0, 5, 6, 7], np.uint64), 1_000, p=[0.4, 0.3, 0.2, 0.1])
    whole, parts = Crowd(), Crowd()
    whole.add(clients)
    for part in np.split(clients, [3, 200, 256, 257, 700]):
        parts.add(part)
    assert whole == parts
    assert whole == Crowd.load(whole.dump())
    blocks = [np.mean(clients[at : at + 256] == 5) for at in range(0, 768, 256)]
    assert whole.last == blocks[-1]
    assert whole.most == max(blocks)
    with pytest.raises(ValueError, match="crowd"):
        Crowd.load([[], 300, 0.0, 0.0])
