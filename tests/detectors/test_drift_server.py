"""Drift read off a server's own metrics: simulated servers, and the recorded scrapes of real ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support import Case

from mlsecd.detectors._drift_server import COLUMNS, Tally
from mlsecd.detectors.base import DetectorState
from mlsecd.detectors.drift_server import DETECTOR, DriftServer, Params
from mlsecd.errors import StateError
from mlsecd.kernels import select
from mlsecd.records import Finding, Records, ServerSample, Severity

KERNELS = select("cpu")
SCRAPE = 10.0


def make(**params: Any) -> DriftServer:
    return DETECTOR(Params(**{"arm_rows": 120, **params}), KERNELS)


def minutes(count: int, start: int = 0, seed: int = 1, **change: Any) -> list[Records]:
    """A server that is scraped every 10 s, with exponential token counts and 2 s a request. ``change`` alters it."""
    rng = np.random.default_rng([seed, start])
    made: list[Records] = []
    for step in range(start * 6, (start + count) * 6):
        rate = change.get("rate", 1.0) * (1.0 + 0.5 * math.sin(step / 40.0))  # requests a second
        asked = int(rng.poisson(rate * SCRAPE))
        failed = int(rng.binomial(asked, change.get("failed", 0.0)))
        done = asked - failed
        made.append(
            ServerSample(
                ts=1e9 + step * SCRAPE,
                server=change.get("server", "127.0.0.1:8000"),
                model=change.get("model", "m"),
                synthetic=change.get("synthetic", False),
                interval_s=SCRAPE,
                running=float(rng.poisson(rate * change.get("latency", 2.0))),
                waiting=float(rng.poisson(change.get("waiting", 0.5))),
                requests=None if change.get("uncounted") else float(done),
                failed=float(failed),
                input_tokens=float(rng.exponential(change.get("input", 300.0), done).sum()),
                output_tokens=float(rng.exponential(change.get("output", 200.0), done).sum()),
            )
        )
    return made


def feed(detector: DriftServer, records: list[Records]) -> list[Finding]:
    return [finding for one in records for finding in detector.observe(one)]


def moved(finding: Finding) -> dict[str, float]:
    return {one["stream"]: one["effect"] for one in finding.evidence["streams"]}


@pytest.mark.parametrize(
    ("change", "stream", "sign"),
    [
        ({"output": 300.0}, "output tokens a request", 1),
        ({"input": 150.0}, "input tokens a request", -1),
        ({"latency": 4.0}, "requests running for their rate", 1),
        ({"waiting": 3.0}, "requests waiting for their rate", 1),
        ({"failed": 0.2}, "a twentieth of requests failed", 1),
    ],
)
def test_it_says_which_number_moved(change: dict[str, float], stream: str, sign: int) -> None:
    detector = make()
    assert feed(detector, minutes(300)) == []
    assert detector.standing().state is DetectorState.ARMED
    found = feed(detector, minutes(120, 300, **change))
    assert found
    assert np.sign(moved(found[-1])[stream]) == sign
    assert (found[0].subject_kind, found[0].subject) == ("model", "m at 127.0.0.1:8000")
    assert found[0].evidence["server"] == "127.0.0.1:8000"
    assert found[0].ts <= 1e9 + (300 + 60) * 60.0
    assert all(one.severity in (Severity.INFO, Severity.LOW) for one in found), "half a day certifies nothing"
    assert detector.standing().state is DetectorState.SHIFTED


def test_more_requests_of_the_same_kind_are_no_drift() -> None:
    """Twice the rate, inside of what the sine showed, and then far more than was ever seen."""
    detector = make()
    assert feed(detector, minutes(300)) == []
    assert feed(detector, minutes(240, 300, rate=1.4)) == []
    assert feed(detector, minutes(120, 540, rate=20.0)) == []


def test_failures_are_told_also_at_a_load_that_was_never_seen() -> None:
    detector = make()
    feed(detector, minutes(300))
    found = feed(detector, minutes(60, 300, rate=20.0, failed=0.3))
    assert list(moved(found[-1])) == ["a twentieth of requests failed"]


def test_a_server_that_counts_tokens_only_is_watched_for_them() -> None:
    """llama.cpp's own counters know no requests."""
    detector = make()
    without = [_without(one, "requests", "failed") for one in minutes(300)]
    assert feed(detector, without) == []
    assert detector.standing().state is DetectorState.ARMED
    found = feed(detector, [_without(one, "requests", "failed") for one in minutes(120, 300, output=400.0)])
    assert "output tokens an input token" in moved(found[-1])


def _without(record: Records, *names: str) -> ServerSample:
    assert isinstance(record, ServerSample)
    fields = {name: getattr(record, name) for name in record.__slots__}
    return ServerSample(**{**fields, **dict.fromkeys(names)})


def test_a_quiet_server_makes_long_rows() -> None:
    """Sixty requests an hour: a row holds 32 of them, so that its means vary no more than a busy hour's."""
    tally = Tally()
    rows = []
    for one in minutes(600, rate=1 / 60):
        assert isinstance(one, ServerSample)
        tally.add(one)
        if (row := tally.row(32)) is not None:
            rows.append((tally.seconds, row))
            tally.clear()
    assert 10 <= len(rows) <= 22
    assert all(seconds > 900 for seconds, _ in rows)
    assert np.isfinite([row[COLUMNS.index("output")] for _, row in rows]).all()


def test_what_a_row_holds() -> None:
    tally = Tally()
    sample = ServerSample(
        ts=1e9, server="s", interval_s=30.0, running=3.0, requests=30.0, failed=0.0, input_tokens=600.0
    )
    tally.add(sample)
    assert tally.row(32) is None
    tally.add(_at(sample, 1e9 + 30))
    row = tally.row(32)
    assert row is not None
    told = dict(zip(COLUMNS, row.tolist(), strict=True))
    assert told["load"] == pytest.approx(math.log1p(60.0))
    assert (told["input"], told["running"], told["failing"]) == (20.0, 3.0, 0.0)
    assert math.isnan(told["output"])
    assert math.isnan(told["ratio"])
    assert math.isnan(told["cache"])
    tally.add(_at(sample, 1e9 - 500))  # the clock was set back
    assert tally.seconds == 30.0


def _at(sample: ServerSample, ts: float) -> ServerSample:
    return ServerSample(**{**{name: getattr(sample, name) for name in sample.__slots__}, "ts": ts})


def test_one_model_on_two_servers_is_two_subjects() -> None:
    detector = make()
    other = "127.0.0.1:9000"
    for one, two in zip(minutes(300), minutes(300, seed=2, server=other), strict=True):
        assert feed(detector, [one, two]) == []
    assert feed(detector, minutes(60, 300)) == []
    found = feed(detector, minutes(60, 300, server=other, output=400.0))
    assert {one.subject for one in found} == {f"m at {other}"}
    assert {one.subject for one in feed(detector, minutes(60, 360, output=400.0))} == {"m at 127.0.0.1:8000"}


def test_synthetic_scrapes_teach_real_servers_nothing() -> None:
    detector = make()
    feed(detector, minutes(300, synthetic=True))
    found = feed(detector, minutes(60, 300, synthetic=True, output=400.0))
    assert found
    assert all(one.synthetic for one in found)
    assert feed(detector, minutes(100, 300, output=400.0)) == []
    assert detector.standing().state is DetectorState.LEARNING


def test_standing_says_what_is_missing() -> None:
    detector = make()
    assert detector.standing().state is DetectorState.STALE
    assert "sources.server_metrics" in detector.standing().why
    feed(detector, minutes(60))
    assert detector.standing().state is DetectorState.LEARNING
    assert "of 120 rows of the furthest model" in detector.standing().why


@pytest.mark.parametrize("value", [math.nan, math.inf, -5.0, 1e300])
def test_nonsense_does_no_harm(value: float) -> None:
    detector = make()
    feed(detector, minutes(130))
    names = ("interval_s", "running", "waiting", "requests", "failed", "input_tokens", "output_tokens")
    for name in (*names, "kv_cache_usage", "ts"):
        fields: dict[str, Any] = {"ts": 1e9 + 130 * 60.0, "interval_s": 10.0, "requests": 50.0, name: value}
        assert detector.observe(ServerSample(server="127.0.0.1:8000", model="m", **fields)) == []
    detector.restore(detector.snapshot())


def test_a_restart_loses_nothing_and_a_damaged_snapshot_is_refused() -> None:
    records = minutes(260) + minutes(60, 260, output=400.0)
    straight, cut = feed(make(), records), make()
    found = []
    for index, one in enumerate(records):
        if index % 397 == 396:
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


def conformance() -> Case:
    params = Params(arm_rows=60, false_alarms_per_week=1_000.0)
    records: list[Records] = []
    for seed, model, synthetic in ((1, "a", False), (2, "b", False), (3, "c", True)):
        records += minutes(110, 0, seed, model=model, synthetic=synthetic)
        records += minutes(40, 110, seed + 5, model=model, synthetic=synthetic, output=500.0)
    limited = Params(arm_rows=60, models=50)

    def flood(n: int) -> list[Any]:
        return [
            ServerSample(ts=1e9 + 61.0 * i, server="s", model=f"m{i}", interval_s=61.0, requests=40.0) for i in range(n)
        ]

    return Case(DriftServer, params, sorted(records, key=lambda one: one.ts), limited, flood)  # type: ignore[union-attr]
