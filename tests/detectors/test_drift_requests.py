from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from support import Case, requests, text

from mlsecd.detectors._drift_calibration import Wander, calibrate, make_bets
from mlsecd.detectors._drift_fit import load_references
from mlsecd.detectors.base import DetectorState, Section
from mlsecd.detectors.drift_requests import DETECTOR, DriftRequests, Params
from mlsecd.errors import BaselineError, StateError
from mlsecd.kernels import select
from mlsecd.records import Finding, Ragged, RequestBatch, Severity

KERNELS = select("cpu")
QUICK = {"reference_rows": 500, "reference_seconds": 0.0, "learn_seconds": 0.0}
CLASSES = 4


def make(section: Section | None = None, **params: Any) -> DriftRequests:
    return DETECTOR(Params(**{**QUICK, **params}), KERNELS, section)


def traffic(rows: int, seed: int = 1, start: float = 0.0, every: float = 1.0, **fields: Any) -> RequestBatch:
    """Ordinary requests of 50 clients: tokens, latency, errors, classes, 8-d vectors. Fields replace columns."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((8, 8)) / 3.0
    columns: dict[str, Any] = {
        "client": [f"client{i}" for i in rng.integers(0, 50, rows)],
        "input_tokens": np.floor(np.exp(rng.normal(5.0, 1.0, rows))),
        "output_tokens": np.floor(np.exp(rng.normal(4.0, 1.0, rows))),
        "status": np.where(rng.random(rows) < 0.02, 500.0, 200.0),
        "predicted": [f"c{i}" for i in rng.integers(0, CLASSES, rows)],
        "scores": rng.beta(4, 2, (rows, 1)),
        "features": rng.standard_normal((rows, 8)) @ (np.eye(8) + mixing),
        "body_hash": [f"b{i}" for i in rng.integers(0, 1 << 62, rows)],
    }
    return requests(start + np.arange(rows) * every, **{**columns, **fields})


def shifted(rows: int, start: float, by: float = 0.8, seed: int = 2, **fields: Any) -> RequestBatch:
    """Ordinary but for the output, which is longer by so many standard deviations of its logarithm."""
    longer = np.floor(np.exp(np.random.default_rng(seed + 99).normal(4.0 + by, 1.0, rows)))
    return traffic(rows, seed, start, output_tokens=longer, **fields)


def told(found: list[Finding]) -> list[tuple[Any, ...]]:
    return [dataclasses.astuple(one) for one in found]


def moved(finding: Finding) -> dict[str, dict[str, Any]]:
    return {one["stream"]: one for one in finding.evidence["streams"]}


# what it finds


def test_it_says_where_a_seeded_stream_leaves_its_reference() -> None:
    detector = make()
    assert detector.observe(traffic(2000)) == []
    found = detector.observe(shifted(600, 2000.0))
    first = found[0]
    assert first.ts == 2176.0
    assert (first.subject_kind, first.subject, first.severity) == ("model", "m", Severity.LOW)
    assert first.score >= first.threshold
    assert list(moved(first)) == ["output_tokens"]
    assert 1970.0 <= first.evidence["onset"] <= 2030.0
    assert first.reason.startswith(
        "1 of 31 streams left the reference: output_tokens 99.8 -> 198 (effect +0.70) ▁▁▂▂▂▃▃▆"
    )
    assert [one.ts for one in found[:3]] == [2176.0, 2236.0, 2296.0], "and again at a bounded pace"


def test_an_unchanged_stream_is_quiet() -> None:
    detector = make()
    for part in range(6):
        assert detector.observe(traffic(5000, seed=part + 10, start=5000.0 * part)) == []
    assert detector.standing().state is DetectorState.ARMED


@pytest.mark.parametrize(
    ("field", "make_column", "stream", "within"),
    [
        ("status", lambda rng, n: np.where(rng.random(n) < 0.2, 500.0, 200.0), "error", 200),
        ("scores", lambda rng, n: rng.beta(2, 2, (n, 1)), "confidence", 250),
        ("predicted", lambda rng, n: [f"c{i}" for i in rng.choice(4, n, p=[0.1, 0.1, 0.2, 0.6])], "class:c3", 250),
        ("predicted", lambda rng, n: [f"c{i}" for i in rng.integers(0, 6, n)], "other classes", 100),
        ("features", lambda rng, n: 1.6 * rng.standard_normal((n, 8)), "mahalanobis", 300),
        ("features", lambda rng, n: rng.standard_normal((n, 8)) + 0.8, "axis:1", 300),
    ],
)
def test_each_kind_of_stream_is_found(field: str, make_column: Any, stream: str, within: int) -> None:
    detector = make()
    assert detector.observe(traffic(2500)) == []
    changed = {field: make_column(np.random.default_rng(5), 1500)}
    found = detector.observe(traffic(1500, 3, 2500.0, **changed))
    assert found[0].ts <= 2500.0 + within
    assert stream in {name for one in found for name in moved(one)}


def test_lost_correlation_is_found_though_no_coordinate_changes() -> None:
    rng = np.random.default_rng(8)

    def vectors(rows: int, rho: float) -> np.ndarray:
        common = rng.standard_normal((rows, 1))
        return np.sqrt(rho) * common + np.sqrt(1.0 - rho) * rng.standard_normal((rows, 8))

    detector = make()
    assert detector.observe(traffic(2500, features=vectors(2500, 0.6))) == []
    found = detector.observe(traffic(800, 3, 2500.0, features=vectors(800, 0.1)))
    assert found[0].ts <= 2700.0
    assert {"residual", "mahalanobis"} & set(moved(found[-1]))


def test_the_size_of_the_effect_is_right() -> None:
    detector = make(reference_rows=2000)
    detector.observe(traffic(3000))
    later = shifted(4000, 3000.0, by=0.6, status=np.where(np.arange(4000) % 10 == 0, 500.0, 200.0))
    last = moved(detector.observe(later)[-1])
    assert last["output_tokens"]["effect"] == pytest.approx(0.6, abs=0.08)
    assert last["output_tokens"]["from"] == pytest.approx(np.exp(4.5), rel=0.1)
    assert last["output_tokens"]["to"] == pytest.approx(np.exp(5.1), rel=0.1)
    assert last["error"]["to"] == pytest.approx(0.1, abs=0.005)
    cohen = 2 * (np.arcsin(np.sqrt(last["error"]["to"])) - np.arcsin(np.sqrt(last["error"]["from"])))
    assert last["error"]["effect"] == pytest.approx(cohen, abs=2e-3)


def test_what_is_larger_is_louder_and_only_a_certified_drift_warns() -> None:
    day = 310.0  # seconds between rows, so that 2,000 of them span a week
    for by, certified, expected in ((0.15, 1, "info"), (0.35, 1, "low"), (0.9, 1, "medium"), (0.9, 0, "low")):
        every = day if certified else 1.0
        detector = make(reference_rows=2000)
        whole = traffic(3000, seed=6, every=every, features=[()] * 3000)
        assert detector.observe(whole) == []
        start = 3000 * every
        late = shifted(9000, start, by=by, features=[()] * 9000)
        late = RequestBatch({**late.columns, "ts": start + np.arange(9000) * every})
        finding = detector.observe(late)[-1]
        assert (str(finding.severity), finding.certified) == (expected, bool(certified)), (by, finding.evidence)


def test_the_reasons_against_a_certificate_are_told() -> None:
    detector = make()
    detector.observe(traffic(1000))
    found = detector.observe(shifted(400, 1000.0))
    assert [doubt[:32] for doubt in found[0].evidence["uncertified"]] == [
        "the reference has fewer than 1,0",
        "the reference is shorter than tw",
    ]
    detector = make()
    detector.observe(traffic(600, every=30.0))
    fast = detector.observe(shifted(20_000, 18_000.0, client=None))
    assert "more rows are scored than when the reference was learned" in fast[-1].evidence["uncertified"]


def test_it_comes_back_and_leaves_again() -> None:
    detector = make()
    detector.observe(traffic(2500))
    first = detector.observe(shifted(600, 2500.0))
    assert detector.standing().state is DetectorState.SHIFTED
    back = detector.observe(traffic(8000, 5, 3100.0))
    assert detector.standing().state is DetectorState.ARMED
    again = detector.observe(shifted(600, 11_100.0, seed=7))
    assert first
    assert again
    assert not [one for one in back if one.ts > 4000.0]
    assert again[0].evidence["onset"] > 11_000.0


# what it does not


def test_a_client_with_huge_vectors_costs_nobody_what_was_learned() -> None:
    """Squares of 1e38 are no numbers of float32: the reference was refused by every restart."""
    detector = make()
    batch = traffic(12_000, features=np.random.default_rng(5).normal(size=(12_000, 8)))
    batch.columns["features"].values.reshape(-1, 8)[::100] = 1e38  # type: ignore[union-attr]
    detector.observe(batch)
    assert detector.standing().state is DetectorState.ARMED
    make().restore(detector.snapshot())


def test_retries_do_not_drift() -> None:
    """A client's failing request, sent 2,000 times over: it would be drift in every stream."""
    detector = make()
    detector.observe(traffic(2500))
    stuck = traffic(1, 3, output_tokens=5000.0, status=500.0).take(np.zeros(2000, np.int64))
    stuck = RequestBatch({**stuck.columns, "ts": 2500.0 + np.arange(2000) * 0.5})
    assert detector.observe(_merged(stuck, traffic(1000, 4, 2500.0))) == []


def test_a_chatty_client_does_not_drift() -> None:
    """One client of fifty sends half of all rows, and nothing but long answers."""
    detector, naive = make(client_rows=3), make(client_rows=200)
    mixed = _merged(
        traffic(1200, 3, 2500.0, every=0.7, client="client7", output_tokens=900.0), traffic(1200, 4, 2500.0, every=0.7)
    )
    for one in (detector, naive):
        one.observe(traffic(2500, every=0.7))
    assert detector.observe(mixed) == []
    assert naive.observe(mixed)


def _merged(*batches: RequestBatch) -> RequestBatch:
    batch = RequestBatch.concat(batches)
    return batch.take(np.argsort(batch.completion, kind="stable"))


def test_little_data_is_learned_from_and_never_judged() -> None:
    detector = make()
    assert detector.standing().state is DetectorState.LEARNING
    detector.observe(traffic(499))
    assert detector.standing().state is DetectorState.LEARNING
    assert detector.standing().why == "1 of 1 models learning, the furthest with 499 rows"
    detector.observe(traffic(1, 2, 499.0))
    assert detector.standing().state is DetectorState.ARMED
    patient = make(reference_seconds=3600.0, arm_seconds=3600.0)
    patient.observe(traffic(3600))
    assert patient.standing().state is DetectorState.LEARNING
    patient.observe(traffic(64, 2, 3600.0))  # by blocks: the next that is kept completes it
    assert patient.standing().state is DetectorState.ARMED


def test_a_number_that_never_varied_has_no_stream() -> None:
    detector = make()
    detector.observe(requests(np.arange(800.0), input_tokens=5.0))
    assert "input_tokens" not in _reference(detector).names
    assert detector.observe(requests(800.0 + np.arange(800.0), input_tokens=500.0)) == []


@pytest.mark.parametrize(
    ("fields", "stream"),
    [
        ({"features": [()] * 400}, "has:vector"),
        ({"output_tokens": np.nan}, "has:output_tokens"),
        ({"output_tokens": np.where(np.arange(400) % 5 == 0, np.nan, 40.0)}, "has:output_tokens"),
        ({"predicted": None}, "has:predicted"),
    ],
)
def test_a_field_that_vanishes_even_in_part_is_drift_by_its_name(fields: Any, stream: str) -> None:
    detector = make()
    assert detector.observe(traffic(2000)) == []
    found = detector.observe(traffic(400, 3, 2000.0, **fields))
    assert stream in moved(found[-1])
    assert moved(found[-1])[stream]["from"] == 1.0


def test_a_field_that_appears_is_drift_by_its_name() -> None:
    detector = make()
    detector.observe(traffic(1000, output_tokens=np.nan))
    found = detector.observe(traffic(300, 3, 1000.0))
    assert list(moved(found[0])) == ["has:output_tokens"]
    assert (moved(found[0])["has:output_tokens"]["from"]) == 0.0


@pytest.mark.parametrize(("column", "stream"), [("template", "template:t0"), ("finish_reason", "finish:t0")])
def test_the_mix_of_templates_and_of_finish_reasons_is_watched(column: str, stream: str) -> None:
    rng = np.random.default_rng(1)

    def mix(rows: int, share: float) -> dict[str, Any]:
        return {column: [f"t{int(u > share) + int(u > 0.9)}" for u in rng.random(rows)]}

    detector = make()
    assert detector.observe(traffic(2000, **mix(2000, 0.5))) == []
    found = detector.observe(traffic(600, 3, 2000.0, **mix(600, 0.2)))
    assert stream in {name for one in found for name in moved(one)}


def test_synthetic_rows_are_a_world_of_their_own() -> None:
    detector = make()
    detector.observe(traffic(2500))
    assert detector.observe(shifted(400, 2500.0, synthetic=1)) == [], "they are learned from"
    found = detector.observe(traffic(4000, 5, 3000.0, synthetic=1))
    assert found
    assert all(one.synthetic for one in found)
    assert detector.observe(traffic(500, 6, 8000.0)) == []
    assert [one.synthetic for one in detector.observe(shifted(300, 9000.0))[:1]] == [False]


def test_a_rare_class_and_a_rare_error_do_not_alarm_by_themselves() -> None:
    detector = make(reference_rows=2000)
    detector.observe(traffic(2000, status=200.0))
    odd = traffic(
        500,
        3,
        2000.0,
        status=np.where(np.arange(500) == 250, 500.0, 200.0),
        predicted=["new"] + ["c1", "c2", "c3", "c0"] * 124 + ["c1"] * 3,
    )
    assert detector.observe(odd) == []


# the same, however it comes


def everything() -> RequestBatch:
    """Two models and synthetic rows, mixed; vectors of odd lengths, absent fields, NaN, and a drift in each."""
    rng = np.random.default_rng(3)
    parts = []
    for model, seed, synthetic in (("a", 1, 0), ("b", 2, 0), ("a", 3, 1)):
        parts += [
            traffic(900, seed, seed * 0.1, model=model, synthetic=synthetic),
            shifted(400, 900.0 + seed * 0.1, seed=seed + 5, model=model, synthetic=synthetic),
        ]
    batch = _merged(*parts)
    lengths = np.where(rng.random(len(batch)) < 0.03, rng.integers(0, 12, len(batch)), 8)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    values = rng.standard_normal(offsets[-1]).astype(np.float32)
    values[rng.integers(0, len(values), 20)] = np.nan
    tokens = np.where(rng.random(len(batch)) < 0.05, np.nan, batch.number("input_tokens"))
    return RequestBatch({**batch.columns, "features": Ragged(offsets, values), "input_tokens": tokens})


@pytest.fixture(scope="module")
def straight() -> list[tuple[Any, ...]]:
    found = make().observe(everything())
    assert {(one.subject, one.synthetic) for one in found} == {("a", False), ("b", False), ("a", True)}
    assert [one.ts for one in found] == sorted(one.ts for one in found)
    return told(found)


@pytest.mark.parametrize("seed", range(3))
def test_any_split_and_any_restart_finds_the_same(seed: int, straight: list[tuple[Any, ...]]) -> None:
    draw = np.random.default_rng(seed)
    batch = everything()
    cuts = sorted(draw.choice(np.arange(1, len(batch)), 60, replace=False).tolist())
    found, detector = [], make()
    for low, high in zip([0, *cuts], [*cuts, len(batch)], strict=True):
        found += detector.observe(batch.slice(low, high))
        if draw.random() < 0.3:
            blob, detector = detector.snapshot(), make()
            detector.restore(blob)
            assert detector.snapshot() == blob
    assert told(found) == straight


def test_row_by_row_is_the_same_too(straight: list[tuple[Any, ...]]) -> None:
    batch, detector = everything(), make()
    found = detector.observe(batch.slice(0, 2900))
    found += [one for row in range(2900, 3300) for one in detector.observe(batch.slice(row, row + 1))]
    assert told(found) == [one for one in straight if one[0] <= batch.completion[3299]]


def test_thinning_does_not_depend_on_batches() -> None:
    """100 rows a second for a minute: more than are kept, so every fourth is, and every fourth is scored."""
    whole = traffic(9000, every=0.01, client=None)
    snapshots = []
    for sizes in ([9000], [7] * 2000, [1, 1499, 1, 3000]):
        detector = make(reference_seconds=60.0)
        for part in _sliced(whole, sizes):
            detector.observe(part)
        snapshots.append(detector.snapshot())
    assert snapshots[0] == snapshots[1] == snapshots[2]
    detector = make(reference_seconds=60.0)
    detector.restore(snapshots[0])
    assert 752 <= detector.standing().gauges["reference_rows"] <= 1504


def _sliced(batch: RequestBatch, sizes: list[int]) -> list[RequestBatch]:
    ends = np.minimum(np.cumsum([*sizes, len(batch)]), len(batch)).tolist()
    return [batch.slice(low, high) for low, high in zip([0, *ends], ends, strict=False) if high > low]


# memory, baselines, snapshots


def test_models_are_bounded_and_the_one_quiet_longest_goes() -> None:
    detector = make(models=2)
    for place, model in enumerate(("a", "b", "a", "c")):
        detector.observe(requests([1000.0 * place], model=model, input_tokens=1.0))
    standing = detector.standing()
    assert (standing.gauges["models"], standing.gauges["refused"]) == (2.0, 1.0)
    crowd = requests([5000.0] * 10, model=[f"m{i}" for i in range(10)], input_tokens=1.0)
    detector.observe(crowd)
    assert detector.standing().gauges["models"] == 2.0


def test_a_model_with_its_reference_takes_half_a_megabyte() -> None:
    detector = make(reference_rows=2000, reference_seconds=0.0)
    rng = np.random.default_rng(1)
    detector.observe(traffic(2500, features=rng.standard_normal((2500, 300))))
    assert detector.standing().gauges["reference_rows"] == 2000.0
    assert len(detector.snapshot()) < 400_000


def test_vectors_of_another_length_are_told_in_the_standing() -> None:
    detector = make()
    detector.observe(traffic(600))
    detector.observe(traffic(3000, 2, 600.0, features=np.zeros((3000, 5))))
    assert detector.standing().state is DetectorState.MISMATCH
    assert "hardly have values any more" in detector.standing().why


def test_a_length_that_few_vectors_have_is_not_the_one_that_is_learned() -> None:
    detector = make()
    detector.observe(traffic(3, features=np.ones((3, 2))))
    detector.observe(traffic(600, 2, 3.0))
    assert any(name.startswith("axis:") for name in _reference(detector).names)


def _reference(detector: DriftRequests, model: str = "m") -> Any:
    house = detector._learned[False].peek(model)
    assert house is not None
    watch = house.shared
    return watch.reference


def test_input_features_stand_in_where_there_are_no_features() -> None:
    rng = np.random.default_rng(4)
    detector = make()
    detector.observe(traffic(1500, features=[()] * 1500, input_features=rng.standard_normal((1500, 6))))
    assert "mahalanobis" in _reference(detector).names
    found = detector.observe(
        traffic(600, 2, 1500.0, features=[()] * 600, input_features=rng.standard_normal((600, 6)) + 1.0)
    )
    assert any(name.startswith("axis:") for one in found for name in moved(one))


def fitted(**params: Any) -> Section:
    fit = DETECTOR.fit([traffic(2500), traffic(300, 2, model="small")], Params(**{**QUICK, **params}), KERNELS)
    assert fit is not None
    assert fit.section is not None
    assert [note.partition(":")[0] for note in fit.notes] == ["m", "small"]
    assert "300 of the 500 rows" in fit.notes[1]
    return fit.section


def test_a_fitted_reference_is_armed_from_the_first_row() -> None:
    detector = make(fitted())
    assert detector.standing().state is DetectorState.ARMED
    assert detector.observe(traffic(2000, 3, 2500.0)) == []
    found = detector.observe(shifted(600, 4500.0))
    assert found[0].ts < 4950.0
    assert found[0].evidence["reference"]["rows"] == 1252, "1,504 at most: thinned to every second block"


def test_a_fit_needs_rows_and_synthetic_ones_teach_nothing() -> None:
    fit = DETECTOR.fit([traffic(100), traffic(2000, synthetic=1)], Params(), KERNELS)
    assert fit is not None
    assert fit.section is None
    assert fit.refused == "needs 500 requests of one model that count, with tokens, status, classes or vectors"


def test_a_section_goes_through_its_arrays_and_header() -> None:
    section = fitted()
    reference, own = load_references(section)["m"]
    assert own == {}
    assert reference.names[:2] == ("input_tokens", "output_tokens")
    for damage in (
        Section({}, section.arrays),
        Section({"references": [{"model": "m"}]}, section.arrays),
        Section({"references": [{**section.header["references"][0], "tenant": "t"}]}, section.arrays),
        Section({"references": [{**section.header["references"][0], "tenants": [1]}]}, section.arrays),
        Section(section.header, {}),
        Section(section.header, {name: one for name, one in section.arrays.items() if name != "0.concession"}),
        Section(section.header, {**section.arrays, "0.concession": np.zeros(2)}),
        Section(section.header, {**section.arrays, "0.offsets": section.arrays["0.offsets"][:-1]}),
        Section(section.header, {**section.arrays, "0.offsets": section.arrays["0.offsets"] + 10_000}),
        Section(section.header, {**section.arrays, "0.chosen": section.arrays["0.chosen"] + 1000}),
    ):
        with pytest.raises(BaselineError):
            make(damage)


def test_a_baseline_from_before_second_moments_is_read_and_tests_gaussian_kernels_alone() -> None:
    section = fitted()
    header, arrays = section.header["references"][0], dict(section.arrays)
    granted = float(arrays.pop("0.concession")[0])
    old = Section({"references": [{**header, "concession": granted}]}, arrays)
    reference, _ = load_references(old)["m"]
    assert reference.concession.tolist() == [granted]
    detector = make(old)
    assert detector.observe(traffic(2000, 3, 2500.0)) == []
    turned = np.random.default_rng(5).standard_normal((2000, 8)) + 1.0
    assert detector.observe(traffic(2000, 3, 4500.0, features=turned))
    windows = detector._fitted["m", False].shared.windows
    assert windows is not None
    assert windows.latched
    again = make(old)
    again.restore(detector.snapshot())
    assert again.snapshot() == detector.snapshot()


def test_a_snapshot_of_another_baseline_starts_afresh() -> None:
    section, other = fitted(), fitted(tolerance=0.1)
    detector = make(section)
    detector.observe(shifted(100, 4500.0))
    same = make(section)
    same.restore(detector.snapshot())
    assert same.snapshot() == detector.snapshot()
    new = make(other)
    new.restore(detector.snapshot())
    assert new.snapshot() == make(other).snapshot()
    learned = make()
    learned.restore(detector.snapshot())
    assert learned.standing().gauges["models"] == 0.0


def test_a_damaged_snapshot_is_refused() -> None:
    detector = make()
    detector.observe(traffic(600))
    blob = detector.snapshot()
    for bad in (b"", blob[:-5], blob[: len(blob) // 2]):
        with pytest.raises(StateError):
            make().restore(bad)


# calibration


def test_independent_ranks_are_taken_for_what_they_are() -> None:
    rng = np.random.default_rng(1)
    steady = [calibrate(rng.random(3000) - 0.5, 1 / 12, 1 / 36_000) for _ in range(100)]
    assert sum(one.steady for one in steady) >= 75
    plain = next(one for one in steady if one.steady)
    assert (plain.inertia, plain.error) == (1.0, pytest.approx(np.sqrt(1 / 12 / 3000)))


@pytest.mark.parametrize(("rho", "least"), [(0.3, 1.6), (0.6, 3.5), (0.9, 12.0)])
def test_neighbours_that_go_together_are_allowed_for(rho: float, least: float) -> None:
    """An autoregression: the variance of its long means is (1 + rho) / (1 - rho) times that of independent rows."""
    rng = np.random.default_rng(2)
    noise, x = rng.standard_normal(6000), np.zeros(6000)
    for i in range(1, 6000):
        x[i] = rho * x[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    ranks = np.argsort(np.argsort(x)) / 6000 - 0.5
    wander = calibrate(ranks, 1 / 12, 1 / 72_000)
    assert not wander.steady
    assert wander.inertia > least
    assert wander.error > np.sqrt(least / 12 / 6000)


def test_bets_are_fair_where_they_say() -> None:
    """Over ranks of mean +-delta: no bet gains. Over plain ranks, each loses by its concession."""
    grid = (np.arange(1000) + 0.5) / 1000 - 0.5
    wander = calibrate(np.random.default_rng(1).random(3000) - 0.5, 1 / 12, 1 / 36_000)
    assert wander.steady
    bets = make_bets(wander, -0.5, 0.5, 0.0, 1e6)
    assert bets is not None
    pays = bets.pays
    delta = 1.5 * wander.error
    for mean in (-delta, 0.0, delta):
        assert (pays[0] + pays[1] * (grid + mean).mean() <= 1.0 + 1e-12).all()
    assert (pays[0][:, None] + pays[1][:, None] * np.array([-0.5, 0.5]) > 0.0).all()
    growth = np.log(pays[0][:, None] + pays[1][:, None] * (grid + 5.4 * wander.error)).mean(axis=1)
    assert bets.least == pytest.approx(5.5 * wander.error)
    assert (growth < 0.0).all(), "up to four standard errors more than is conceded every bet loses on average"


def test_a_rarer_alarm_concedes_more_of_the_references_own_error() -> None:
    """Beyond what is conceded, an unlucky reference alarms c^(z / 4) times too often for each standard error z."""
    wander = Wander(1 / 12, 1.0, 1 / 108_000**0.5, steady=True, plain=False)  # 9,000 rows
    conceded = []
    for log_c in (8.0, 17.0, 21.0, 29.0):
        made = make_bets(wander, -0.5, 0.5, 0.0, np.exp(log_c))
        assert made is not None
        at_rest = 1.0 / made.pays[0]  # 1 + b delta
        slope = np.abs(made.pays[1] / made.pays[0])
        conceded.append(float(((at_rest - 1.0) / slope)[0] / wander.error))
    assert conceded == pytest.approx([1.5, 1.5, 2.0, 3.0])


def test_what_varies_too_much_to_tell_anything_has_no_bets() -> None:
    wander = dataclasses.replace(calibrate(np.random.default_rng(1).random(3000) - 0.5, 1 / 12, 1 / 36_000), error=0.2)
    assert make_bets(wander, -0.5, 0.5, 0.0, 1e6) is None


def test_the_threshold_is_the_budget_s() -> None:
    detector = make(false_alarms_per_week=1.0, expected_models=2)
    detector.observe(traffic(2000))
    house = detector._learned[False].peek("m")
    assert house is not None
    watch = house.shared
    streams = len(watch.reference.names)
    expected = streams * 2.0 * 604_800.0 / 0.375  # twice one row a second, for a week; whole vectors have a quarter
    assert watch.thresholds == pytest.approx(np.full(streams, expected))


def conformance() -> Case:
    params = Params(reference_rows=200, reference_seconds=0.0, learn_seconds=0.0, false_alarms_per_week=100.0)
    parts = [
        part
        for model, seed in (("a", 1), ("b", 2), ("c", 3))
        for part in (
            traffic(450, seed, seed * 0.1, model=model, every=2.0),
            shifted(250, 900.0 + seed * 0.1, by=1.6, seed=seed + 5, model=model),
        )
    ]
    limited = Params(reference_rows=200, reference_seconds=0.0, learn_seconds=0.0, models=50)

    def flood(n: int) -> list[Any]:
        return [requests(np.arange(n) * 7.0, model=[f"m{i}" for i in range(n)], input_tokens=np.arange(n))]

    return Case(DriftRequests, params, [_merged(*parts)], limited, flood)


def test_text_of_an_attacker_s_choice_is_escaped_in_the_reason() -> None:
    detector = make()
    evil = text(["evil\n\x1b[31m"] + ["c1", "c2"] * 1000)
    detector.observe(RequestBatch({**traffic(2001).columns, "predicted": evil}))
    flood = RequestBatch({**traffic(300, 2, 2001.0).columns, "predicted": text(["evil\n\x1b[31m"] * 300)})
    found = detector.observe(flood)
    assert "class:evil\\n\\x1b[31m" in found[-1].reason
    assert found[-1].reason.isprintable()
