from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_drive import gpu, ordered
from support import Case, requests

from mlsecd.detectors._drift_curves import Curves
from mlsecd.detectors._drift_gpu import STREAMS
from mlsecd.detectors.base import DetectorState
from mlsecd.detectors.drift_gpu import DETECTOR, DriftGpu, Params
from mlsecd.errors import StateError
from mlsecd.kernels import select
from mlsecd.records import Finding, Records, Severity

KERNELS = select("cpu")


def make(**params: Any) -> DriftGpu:
    return DETECTOR(Params(**{"arm_minutes": 120, **params}), KERNELS)


def day(minutes: int, start: int = 0, seed: int = 1, uuid: str = "GPU-a", **change: Any) -> list[Records]:
    """A GPU whose load follows its requests, with a sample every 20 s. ``change`` adds to a number, in its unit."""
    rng = np.random.default_rng([seed, start])
    made: list[Records] = []
    for minute in range(start, start + minutes):
        count = int(rng.integers(change.get("least", 5), 60))
        at = minute * 60.0
        made.append(requests(at + np.sort(rng.uniform(0.5, 59.0, count)), synthetic=change.get("synthetic", 0)))
        busy = 0.1 + 0.012 * count + change.get("utilization", 0.0) + rng.normal(0.0, 0.02)
        power = 80.0 + 300.0 * busy + change.get("power", 0.0) + rng.normal(0.0, 5.0)
        made.extend(
            gpu(
                at + step,
                uuid=uuid,
                utilization=float(busy),
                power_watts=float(power),
                sm_clock_hz=(1_900.0 - 200.0 * busy + change.get("clock", 0.0) + rng.normal(0.0, 10.0)) * 1e6,
                temperature_celsius=float(30.0 + 0.1 * power + rng.normal(0.0, 0.5)),
                memory_used_bytes=int((60.0 + change.get("memory", 0.0) + rng.normal(0.0, 0.05)) * 2**30),
                synthetic=bool(change.get("synthetic", 0)),
            )
            for step in (0.0, 20.0, 40.0)
        )
    return ordered(made)


def feed(detector: DriftGpu, records: list[Records]) -> list[Finding]:
    return [finding for one in records for finding in detector.observe(one)]


def moved(finding: Finding) -> list[str]:
    return [one["stream"] for one in finding.evidence["streams"]]


@pytest.mark.parametrize(
    ("change", "stream", "sign"),
    [
        ({"power": 25.0}, "power for its utilization, W", 1),
        ({"utilization": 0.15}, "utilization for its requests", 1),
        ({"clock": -60.0}, "clock for its utilization, MHz", -1),
        ({"memory": 0.3}, "memory, GiB", 1),
    ],
)
def test_it_says_which_number_left_what_its_load_explains(change: dict[str, float], stream: str, sign: int) -> None:
    detector = make()
    assert feed(detector, day(240)) == []
    found = feed(detector, day(120, 240, **change))
    assert found
    assert stream in moved(found[-1])
    one = next(one for one in found[-1].evidence["streams"] if one["stream"] == stream)
    assert np.sign(one["effect"]) == sign
    assert abs(one["effect"]) > 0.5
    assert (found[0].subject_kind, found[0].subject) == ("gpu", "GPU-a")
    assert found[0].ts <= (240 + 75) * 60.0
    assert found[0].severity is Severity.LOW, "less than two days of reference certify nothing"
    assert detector.standing().state is DetectorState.SHIFTED


def test_more_requests_are_no_drift() -> None:
    """Load that doubles within what was seen moves utilization, power and clocks, each as much as it should."""
    detector = make()
    assert feed(detector, day(240)) == []
    assert feed(detector, day(400, 240, seed=9, least=40)) == []
    assert detector.standing().state is DetectorState.ARMED


def test_load_beyond_what_was_seen_is_not_judged() -> None:
    detector = make()
    feed(detector, day(240))
    rng = np.random.default_rng(1)
    flood: list[Records] = []
    for minute in range(240, 400):
        flood.append(requests(minute * 60.0 + np.sort(rng.uniform(0.5, 59.0, 500))))
        flood += [gpu(minute * 60.0 + step, utilization=1.0, power_watts=700.0) for step in (0.0, 20.0)]
    assert feed(detector, ordered(flood)) == []


def test_it_learns_first_and_grows() -> None:
    detector = make()
    feed(detector, day(60))
    standing = detector.standing()
    assert (standing.state, standing.why) == (DetectorState.LEARNING, "59 of 120 minutes of the furthest GPU")
    feed(detector, day(62, 60))
    assert detector.standing().state is DetectorState.ARMED
    watch = detector._gpus[False].peek("GPU-a").lane.watch  # type: ignore[union-attr]
    short = watch.reference.rows.max()
    feed(detector, day(601, 122))
    assert detector._gpus[False].peek("GPU-a").lane.watch.reference.rows.max() > short  # type: ignore[union-attr]


def test_a_gpu_that_says_little_is_watched_for_what_it_says() -> None:
    detector = make()
    records = [
        gpu(60.0 * minute, memory_used_bytes=int((50 + 0.1 * (minute % 7)) * 2**30), utilization=None)
        for minute in range(140)
    ]
    assert feed(detector, list(records)) == []
    assert detector.standing().gauges["streams"] == 1.0
    lost = [gpu(60.0 * minute, state="lost") for minute in range(140, 200)]
    assert feed(detector, list(lost)) == []


def test_clock_jumps_and_nonsense_do_no_harm() -> None:
    detector = make()
    feed(detector, day(130))
    odd: list[Records] = [
        gpu(1e300, power_watts=1.0),
        gpu(float("nan"), power_watts=1.0),
        gpu(60.0, power_watts=float("inf")),
        gpu(0.0, utilization=float("nan")),
        requests([1e300, float("nan")]),
    ]
    assert feed(detector, odd) == []
    detector.restore(detector.snapshot())


def test_a_restart_loses_nothing_and_a_damaged_snapshot_is_refused() -> None:
    records = day(200) + day(60, 200, power=40.0)
    straight, cut = feed(make(), records), make()
    found = []
    for index, one in enumerate(records):
        if index % 97 == 96:
            blob = cut.snapshot()
            cut = make()
            cut.restore(blob)
            assert cut.snapshot() == blob
        found += cut.observe(one)
    assert [one.line() for one in found] == [one.line() for one in straight]
    assert straight
    blob = cut.snapshot()
    for bad in (b"", blob[:-3], blob[: len(blob) // 2]):
        with pytest.raises(StateError):
            make().restore(bad)


def test_curves_are_means_by_tenths() -> None:
    rng = np.random.default_rng(1)
    rows = np.full((1_000, 6), np.nan, np.float32)
    rows[:, 1] = rng.uniform(0.0, 1.0, 1_000)
    rows[:, 2] = 100.0 + 200.0 * rows[:, 1]
    curves = Curves.of(STREAMS, rows)
    names = [stream.name for stream in STREAMS]
    made = curves.values(rows)[:, names.index("power for its utilization, W")]
    inner = (rows[:, 1] > 0.06) & (rows[:, 1] < 0.94)
    assert np.abs(made[inner]).max() < 1.0
    assert np.isnan(curves.values(rows)[:, names.index("utilization for its requests")]).all()


def conformance() -> Case:
    params = Params(arm_minutes=60, false_alarms_per_week=1_000.0)
    records: list[Records] = []
    for uuid, seed, synthetic in (("GPU-a", 1, 0), ("GPU-b", 2, 0), ("GPU-c", 3, 0)):
        for part in (
            day(100, 0, seed, uuid, synthetic=synthetic),
            day(50, 100, seed + 5, uuid, synthetic=synthetic, power=120.0, memory=5.0),
        ):
            records += [one for one in part if uuid == "GPU-a" or one.kind == "gpu"]
    limited = Params(arm_minutes=60, gpus=50)

    def flood(n: int) -> list[Any]:
        return [gpu(7.0 * i, uuid=f"GPU-{i}", power_watts=1.0) for i in range(n)]

    return Case(DriftGpu, params, ordered(records), limited, flood)
