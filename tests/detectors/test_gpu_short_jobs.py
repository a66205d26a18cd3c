from __future__ import annotations

from typing import Any

import pytest
from gpu_drive import drive, gpu, process, seconds, table
from support import Case

from mlsecd import kernels
from mlsecd.detectors._recent_processes import Past
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
    assert found.reason == (
        "1 job on GPU-a, 0.6 s in all, ended within the last hour and no sample ever showed them: "
        "no process table caught them"
    )
    unknown = dict.fromkeys(("exe", "uid", "unit", "seen_ts"))
    assert found.evidence["jobs"] == [{"pid": 666, "start_ts": 3.2, "seconds": 0.6, **unknown}]


def test_a_job_has_the_name_that_a_process_table_of_the_time_gives() -> None:
    miner = process(666, "/tmp/xmrig", uid=33, unit="nginx.service")
    tables = [table(2.0), table(7.0, miner), table(12.0)]
    detector = make()
    (found,) = drive(detector, [sample(0), *tables, sample(15, job(666, 6.5, 4.0), job(667, 6.5))])
    assert found.reason.endswith('no sample ever showed them: "/tmp/xmrig", 1 unknown, which no process table caught')
    known, unknown = found.evidence["jobs"]
    assert (known["exe"], known["uid"], known["unit"], known["seen_ts"]) == ("/tmp/xmrig", 33, "nginx.service", 7.0)
    assert (unknown["pid"], unknown["exe"]) == (667, None)
    gauges = detector.standing().gauges
    assert (gauges["unseen_jobs"], gauges["unnamed_jobs"]) == (2.0, 1.0)


def test_a_process_that_was_there_before_or_has_the_pid_later_is_not_taken_for_the_job() -> None:
    before = process(666, "/usr/bin/before", start_ticks=1)
    after = process(666, "/usr/bin/after", start_ticks=9)
    tables = [*(table(ts, before) for ts in (0.0, 5.0)), *(table(ts) for ts in seconds(10, 60, 5)), table(60.0, after)]
    (found,) = drive(make(), [sample(0), *tables, sample(61, job(666, 40))])
    assert found.evidence["jobs"][0]["exe"] is None


def test_of_two_processes_under_one_pid_the_one_of_the_time_is_told() -> None:
    first, second = (
        process(666, f"/usr/bin/{name}", start_ticks=ticks) for name, ticks in (("first", 1), ("second", 9))
    )
    tables = [table(0.0, first), table(5.0, first), table(25.0, second), table(30.0, second)]
    (found,) = drive(make(), [sample(0), *tables, sample(31, job(666, 4.0), job(666, 26.0))])
    assert [one["exe"] for one in found.evidence["jobs"]] == ["/usr/bin/first", "/usr/bin/second"]


def test_tables_of_another_host_or_synthetic_ones_name_nothing() -> None:
    miner = process(666, "/tmp/xmrig")
    tables = [table(4.0, miner, host="other"), table(4.0, miner, synthetic=True)]
    (found,) = drive(make(), [sample(0), *tables, sample(10, job(666, 3.2))])
    assert found.evidence["jobs"][0]["exe"] is None


def test_the_past_is_bounded() -> None:
    past = Past()
    for ts in range(0, 3000, 5):
        past.take(table(float(ts), *(process(1_000_000 + ts * 100 + one, "/bin/x") for one in range(50))))
    assert len(past.by_pid) <= 8_192
    assert min(seen[-1].last_ts for seen in past.by_pid.values()) >= 2995 - 900


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
    records += [table(22.5 + 20 * i, process(1000 + 2 * i, f"/opt/{i % 2}")) for i in range(6)]
    records += [sample(200.0, accounted=0), sample(210.0, accounted=None, posture=OFF)]

    def flood(n: int) -> list[Records]:
        return [sample(20.0 * i, job(i, 20.0 * i - 5), uuid=f"GPU-{i}") for i in range(n)]

    return Case(DETECTOR, Params(), records, Params(), flood)
