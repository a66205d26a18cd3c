from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import requests

from mlsecd.detectors._drift_picture import expected_bins, psi
from mlsecd.detectors._drift_tenants import House
from mlsecd.detectors.base import DetectorState
from mlsecd.detectors.drift_requests import DriftRequests, Params
from mlsecd.errors import StateError
from mlsecd.kernels import drift_layout as at
from mlsecd.kernels import select
from mlsecd.records import Finding, RequestBatch

KERNELS = select("cpu")
PARAMS = Params(reference_rows=1_000, reference_seconds=0.0, arm_rows=1_000, learn_seconds=0.0)
BIG = "k-big"


def make(**params: Any) -> DriftRequests:
    return DriftRequests(Params(**{name: getattr(PARAMS, name) for name in PARAMS.__struct_fields__} | params), KERNELS)


def crowd(rows: int, start: float, seed: int, big: float = 0.0, others: float = 0.0) -> RequestBatch:
    """A row a second, half of them from one customer whose answers are twice as long; both may move."""
    rng = np.random.default_rng(seed)
    mine = rng.random(rows) < 0.5
    moved = np.where(mine, 1.0 + big, others)
    return requests(
        start + np.arange(rows) * 1.0,
        client=[BIG if one else f"k-{other}" for one, other in zip(mine, rng.integers(0, 40, rows), strict=True)],
        output_tokens=np.exp(4.0 + moved + rng.standard_normal(rows)),
    )


def house_of(detector: DriftRequests) -> House:
    house = detector._learned[False].peek("m")
    assert house is not None
    return house


def lines(found: list[Finding]) -> list[Any]:
    return [one.line() for one in found]


def test_a_customer_who_dominates_is_held_against_itself() -> None:
    detector = make(learn_seconds=172_800.0, reference_seconds=3_600.0)
    assert detector.observe(crowd(9_000, 0.0, 1)) == []
    house = house_of(detector)
    assert [one.name for one in house.tenants] == [BIG]
    shared, own = house.shared.reference, house.tenants[0].watch.reference
    assert shared is not None
    assert own is not None
    tokens = shared.names.index("output_tokens"), own.names.index("output_tokens")
    assert own.means[tokens[1]] > 1.8 * shared.means[tokens[0]], "its rows are in its own reference only"
    assert detector.standing().gauges["tenants"] == 1.0

    found = detector.observe(crowd(2_000, 9_000.0, 2, big=0.7))
    assert {one.evidence.get("tenant") for one in found} == {BIG}
    assert found[0].reason.startswith("of the tenant k-big, against its own reference: 1 of ")
    assert 9_000.0 < found[0].ts < 9_600.0
    standing = detector.standing()
    assert standing.state is DetectorState.SHIFTED
    assert "1 tenants have left their own reference" in standing.why


def test_the_others_are_found_to_drift_as_if_the_customer_were_not_there() -> None:
    detector = make(learn_seconds=172_800.0, reference_seconds=3_600.0)
    detector.observe(crowd(9_000, 0.0, 1))
    found = detector.observe(crowd(2_000, 9_000.0, 2, others=0.7))
    assert {one.evidence.get("tenant") for one in found} == {None}
    assert 9_000.0 < found[0].ts < 9_700.0


def test_a_customer_who_comes_and_goes_at_will_is_no_drift_of_the_others() -> None:
    """It sends half of the rows, then none, then half again: neither part changes."""
    detector = make(learn_seconds=172_800.0, reference_seconds=3_600.0)
    detector.observe(crowd(9_000, 0.0, 1))
    away = crowd(6_000, 9_000.0, 2)
    away = away.take(np.flatnonzero(away.text("client").codes != away.text("client").values.index(BIG)))
    assert detector.observe(away) == []
    assert detector.observe(crowd(6_000, 15_000.0, 3)) == []


def test_nobody_becomes_a_tenant_once_the_reference_stays() -> None:
    """A flood could take its rows out of sight."""
    detector = make()
    tokens = np.exp(np.random.default_rng(1).normal(4.0, 1.0, 3_000))
    detector.observe(requests(np.arange(3_000.0), client=[f"k-{i % 40}" for i in range(3_000)], output_tokens=tokens))
    assert house_of(detector).shared.reference is not None
    detector.observe(crowd(6_000, 3_000.0, 2))
    assert house_of(detector).tenants == []


@pytest.mark.parametrize("seed", range(3))
def test_any_split_and_any_restart_finds_the_same(seed: int) -> None:
    batch = RequestBatch.concat([crowd(6_500, 0.0, 1), crowd(1_500, 6_500.0, 2, big=0.8, others=0.8)])
    params = {"learn_seconds": 172_800.0, "reference_seconds": 3_600.0}
    straight = lines(make(**params).observe(batch))
    assert {one["evidence"].get("tenant") for one in straight} == {None, BIG}
    draw = np.random.default_rng(seed)
    cuts = sorted(draw.choice(np.arange(1, len(batch)), 40, replace=False).tolist())
    found, detector = [], make(**params)
    for low, high in zip([0, *cuts], [*cuts, len(batch)], strict=True):
        found += detector.observe(batch.slice(low, high))
        if draw.random() < 0.3:
            blob, detector = detector.snapshot(), make(**params)
            detector.restore(blob)
            assert detector.snapshot() == blob
    assert lines(found) == straight


def test_a_baseline_holds_the_tenants_references_and_a_snapshot_names_them() -> None:
    fit = DriftRequests.fit([crowd(9_000, 0.0, 1)], PARAMS, KERNELS)
    assert fit is not None
    assert fit.section is not None
    assert any(note.startswith("m, tenant k-big: ") for note in fit.notes)
    detector = DriftRequests(PARAMS, KERNELS, fit.section)
    assert detector.standing().gauges["tenants"] == 1.0
    assert detector.observe(crowd(3_000, 9_000.0, 2)) == []
    blob = detector.snapshot()
    assert len(blob) < 400_000, "by digest, not in full"
    other = DriftRequests(PARAMS, KERNELS, fit.section)
    other.restore(blob)
    assert other.snapshot() == blob
    moved = crowd(1_500, 12_000.0, 3, big=0.8)
    found = detector.observe(moved)
    assert {one.evidence.get("tenant") for one in found} == {BIG}
    assert lines(other.observe(moved)) == lines(found)


def test_a_damaged_house_is_refused() -> None:
    detector = make()
    detector.observe(crowd(500, 0.0, 1))
    state = house_of(detector).dump()
    with pytest.raises(ValueError, match="tenants"):
        House.load(detector._plan, {**state, "rows": 1_000})
    with pytest.raises(StateError):
        make().restore(b"nothing")


def test_psi_is_small_where_nothing_moved_whatever_the_ties_and_large_where_it_did() -> None:
    rng = np.random.default_rng(4)

    def tied(rows: int, start: float, p: float) -> RequestBatch:
        tokens = np.where(rng.random(rows) < 0.6, 1.0, rng.integers(2, 50, rows))
        status = np.where(rng.random(rows) < p, 500.0, 200.0)
        return requests(start + np.arange(rows) * 1.0, client=None, output_tokens=tokens, status=status)

    detector = make()
    detector.observe(tied(2_000, 0.0, 0.1))
    assert detector.standing().gauges["psi"] < 0.3
    detector.observe(tied(300, 2_000.0, 0.6))
    assert detector.standing().gauges["psi"] > 0.8


def test_the_reference_s_own_bins_are_what_its_rows_fall_into() -> None:
    detector = make()
    detector.observe(crowd(3_000, 0.0, 1))
    reference = house_of(detector).shared.reference
    assert reference is not None
    expected = expected_bins(reference)
    assert expected.sum(axis=1) == pytest.approx(np.ones(len(reference.names)))
    assert psi(np.stack((expected * 256.0, expected * 0.0), axis=1), expected) == pytest.approx(0.0, abs=1e-12)
    assert psi(np.zeros((len(expected), 2, at.BINS)), expected) == 0.0
