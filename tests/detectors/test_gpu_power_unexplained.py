from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from gpu_drive import gpu, process, status, table
from support import Case, requests

from bench.gpu_series import BOARDS, WORKLOADS, Foreign, day
from mlsecd import kernels
from mlsecd.detectors._allow import Allow
from mlsecd.detectors.base import DetectorState, Section
from mlsecd.detectors.gpu_power_unexplained import DETECTOR, Params
from mlsecd.errors import BaselineError
from mlsecd.records import Finding, Records, Severity

H100, CHAT = BOARDS[0], WORKLOADS[0]
LATER = 3 * 86_400.0
HOUR = 3_600


@cache
def learned() -> Section:
    """Ten hours of an ordinary day, 0 to 10 h."""
    fit = DETECTOR.fit(day(H100, CHAT, 1, hours=10), Params(), kernels)
    assert fit is not None
    assert fit.section is not None
    return fit.section


def run(*foreign: Foreign, hours: float = 5, seed: int = 2, **params: Any) -> list[Finding]:
    """Another day of the same host, with foreign work in it."""
    detector = DETECTOR(Params(**params), kernels, learned())
    records = day(H100, CHAT, seed, start=LATER, hours=hours, foreign=foreign)
    return [found for one in records for found in detector.observe(one)]


def test_an_ordinary_day_is_quiet() -> None:
    assert run(hours=9) == []


@pytest.mark.parametrize(
    ("foreign", "minutes"),
    [
        (Foreign(2 * HOUR, 4 * HOUR, 0.95), 10),  # a miner at full power
        (Foreign(2 * HOUR, 4 * HOUR, 0.15), 10),  # one that stays below a fifth, in the quiet hours
        (Foreign(2 * HOUR, 4 * HOUR, 0.2, beside_traffic=True), 30),  # one that hides beside requests
    ],
)
def test_foreign_work_is_found_within_minutes(foreign: Foreign, minutes: float) -> None:
    found = run(foreign)
    assert {one.evidence["kind"] for one in found} == {"power"}
    assert {(one.severity, one.subject) for one in found} == {(Severity.MEDIUM, "GPU-1")}
    after = (found[0].ts - LATER - foreign.start) / 60
    assert 5 <= after <= minutes
    assert abs(found[0].evidence["onset_ts"] - LATER - foreign.start) <= 300
    assert found[-1].ts - LATER - foreign.end < 30 * 60, "it ends when the work does"


def test_what_loads_a_model_or_is_too_little_is_no_finding() -> None:
    assert run(Foreign(2 * HOUR, 2 * HOUR + 300, 0.95, pid=200)) == [], "a new process loads its model, or diagnoses"
    assert run(Foreign(2 * HOUR, 4 * HOUR, 0.01)) == [], "one percent is within what minutes differ by"
    assert run(Foreign(2 * HOUR, 2 * HOUR + 120, 0.9)) == [], "two minutes prove nothing"


def test_a_batch_job_that_is_allowed_is_no_finding() -> None:
    job = process(200, "/opt/jobs/eval")
    detector = DETECTOR(Params(batch=(Allow(exe="/opt/jobs/**"),)), kernels, learned())
    found: list[Finding] = []
    foreign = Foreign(2 * HOUR, 4 * HOUR, 0.9, pid=200)
    for one in day(H100, CHAT, 2, start=LATER, hours=4, foreign=(foreign,)):
        found += detector.observe(one)
        if one.kind == "source":
            detector.observe(table(one.ts + 0.1, process(100, "/opt/vllm/bin/python"), job))
    assert found == []


def test_silence_of_a_dead_tap_explains_nothing_away_and_accuses_nobody() -> None:
    detector = DETECTOR(Params(), kernels, learned())
    foreign = Foreign(2 * HOUR, 4 * HOUR, 0.9)
    records = [one for one in day(H100, CHAT, 2, start=LATER, hours=4, foreign=(foreign,)) if one.kind == "gpu"]
    assert [found for one in records for found in detector.observe(one)] == []
    assert detector.standing().state is DetectorState.STALE


def test_energy_per_token_that_rises_for_hours_is_a_ticket() -> None:
    section = learned()
    known = {name: {**one, "joules_per_token": 0.5} for name, one in section.header["gpus"].items()}
    dear = Section({**section.header, "gpus": known}, {})
    detector = DETECTOR(Params(), kernels, dear)
    found = [f for one in day(H100, CHAT, 2, start=LATER + 5 * HOUR, hours=6) for f in detector.observe(one)]
    assert {(f.severity, f.subject, f.evidence["kind"]) for f in found} == {(Severity.LOW, "GPU-1 energy", "energy")}


def test_what_cannot_be_fitted_says_what_it_needs() -> None:
    refused = {
        "no GPU samples": [requests([1.0])],
        "no requests": [gpu(0.0, power_watts=70.0)],
        "no GPU has 240 minutes": list(day(H100, CHAT, 1, hours=1)),
    }
    for words, records in refused.items():
        fit = DETECTOR.fit(records, Params(), kernels)
        assert fit is not None
        assert (fit.refused or "").startswith(words)
    assert DETECTOR(Params(), kernels).standing().state is DetectorState.LEARNING
    with pytest.raises(BaselineError, match="fit it again"):
        DETECTOR(Params(), kernels, Section({**learned().header, "models": ["a", "b"]}, {}))


def test_more_requests_never_lower_what_is_expected_at_rest() -> None:
    """The line is sane: offset near the idle power, the day's peak within the board's limit."""
    one = learned().header["gpus"]["GPU-1"]
    assert H100.idle <= one["offset"] <= 1.3 * H100.idle
    assert np.isfinite(one["weights"]).all()


def _case() -> Section:
    one = {"weights": [100.0, *[0.0] * 7], "offset": 80.0, "worst": 1.0, "bins": 300, "idle_watts": 70.0}
    return Section({"models": ["m"], "gpus": {"GPU-a": one}}, {})


def conformance() -> Case:
    records: list[Records] = []
    for ts in range(0, 2400, 6):
        watts = 75.0 if ts < 600 or ts > 1800 else 200.0
        records.append(gpu(float(ts), (100,), power_watts=watts, utilization=0.5))
        if ts % 30 == 0:
            records += [status(ts + 0.5, "request_log"), requests([ts + 1.0], duration_s=2.0, output_tokens=50)]

    def flood(n: int) -> list[Records]:
        made: list[Records] = []
        for at in range(n):
            made += [requests([20.0 * at], model=f"m{at}", host=f"h{at}"), gpu(20.0 * at + 1, host=f"h{at}")]
        return made

    return Case(DETECTOR, Params(), records, Params(), flood, _case())
