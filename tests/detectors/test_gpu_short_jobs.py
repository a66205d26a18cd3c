from __future__ import annotations

from typing import Any

import pytest
from gpu_drive import drive, gpu, seconds
from support import Case

from mlsecd import kernels
from mlsecd.detectors.base import DetectorState
from mlsecd.detectors.gpu_short_jobs import DETECTOR, GpuShortJobs, Params
from mlsecd.records import GpuJob, GpuSample, Records, Severity

ON = {"accounting_mode": "enabled", "driver_version": "590.48.01"}
OFF = {"accounting_mode": "disabled", "driver_version": "590.48.01"}


def make(**params: Any) -> GpuShortJobs:
    return DETECTOR(Params(**params), kernels)


def sample(ts: float, *jobs: GpuJob, accounted: int | None = 5, **fields: Any) -> GpuSample:
    return gpu(ts, fields.pop("pids", (100,)), accounted=accounted, jobs=jobs, **{"posture": ON, **fields})


def job(pid: int, start: float, length: float = 0.6) -> GpuJob:
    return GpuJob(pid=pid, start_ts=start, seconds=length, max_memory_bytes=1 << 28, utilization=0.9)


def test_a_job_between_two_samples_is_a_ticket() -> None:
    (found,) = drive(make(), [sample(0), sample(10, job(666, 3.2)), sample(20)])
    assert (found.severity, found.subject) == (Severity.LOW, "GPU-a accounting unseen")
    assert found.reason == "1 job on GPU-a, 0.6 s in all, ended within the last hour and no sample ever showed them"
    assert found.evidence["jobs"] == [{"pid": 666, "start_ts": 3.2, "seconds": 0.6}]


def test_one_that_comes_back_is_a_warning() -> None:
    found = drive(make(), [sample(0), *(sample(10.0 * i, job(1000 + i, 10.0 * i - 5)) for i in range(1, 12))])
    assert [one.severity for one in found] == [*[Severity.LOW] * 9, *[Severity.MEDIUM] * 2]


@pytest.mark.parametrize(
    "one",
    [
        job(100, -50, 55),  # it ran before we began
        job(100, 2, 5),  # the samples showed it
        job(666, 3, 0.1),  # a library that looked for GPUs
    ],
)
def test_what_is_no_finding(one: GpuJob) -> None:
    assert drive(make(), [*map(sample, seconds(0, 9)), sample(10, one)]) == []


def test_a_reused_pid_is_another_job() -> None:
    records = [sample(ts, pids=(666,) if ts < 3 else ()) for ts in seconds(0, 60)]
    (found,) = drive(make(), [*records, sample(60, job(666, 50), pids=())])
    assert found.evidence["jobs"][0]["start_ts"] == 50


def test_accounting_that_is_cleared_is_told_of_and_a_new_driver_is_not() -> None:
    (found,) = drive(make(), [sample(0), sample(10), sample(20, accounted=0)])
    assert (found.severity, found.evidence["before"], found.evidence["after"]) == (Severity.MEDIUM, 5, 0)
    fresh = {**ON, "driver_version": "595.0"}
    assert drive(make(), [sample(0), sample(10, accounted=0, posture=fresh)]) == []


def test_accounting_that_is_switched_off_is_a_warning_and_one_never_on_is_information() -> None:
    off = [sample(ts, accounted=None, posture=OFF) for ts in seconds(20, 40)]
    assert [one.severity for one in drive(make(), [sample(0), *off])] == [Severity.MEDIUM]
    detector = make()
    (found,) = drive(detector, off)
    assert found.severity is Severity.INFO
    assert detector.standing().state is DetectorState.OFF
    assert drive(make(report_off=False), off) == []
    mig = [sample(ts, accounted=None, posture={**OFF, "mig_mode": "enabled"}) for ts in seconds(0, 9)]
    assert drive(make(), mig) == []


def test_it_stays_a_warning_for_as_long_as_it_is_off() -> None:
    off = [sample(ts, accounted=None, posture=OFF) for ts in seconds(20, 700)]
    assert [one.severity for one in drive(make(), [sample(0), *off])] == [Severity.MEDIUM] * 3


def conformance() -> Case:
    records: list[Records] = [sample(ts) for ts in seconds(0, 30)]
    records += [sample(30.0 + 10 * i, job(1000 + i, 22.0 + 10 * i)) for i in range(12)]
    records += [sample(200.0, accounted=0), sample(210.0, accounted=None, posture=OFF)]

    def flood(n: int) -> list[Records]:
        return [sample(20.0 * i, job(i, 20.0 * i - 5), uuid=f"GPU-{i}") for i in range(n)]

    return Case(DETECTOR, Params(), records, Params(), flood)
