from __future__ import annotations

from typing import Any

import pytest
from gpu_drive import drive, gpu, ordered, seconds, status
from support import Case, requests

from mlsecd import kernels
from mlsecd.detectors._gpu_roll import Steady
from mlsecd.detectors.base import DetectorState, Interval
from mlsecd.detectors.gpu_lost import DETECTOR, GpuLost, Params
from mlsecd.records import Finding, GpuSample, Records, Severity, SourceStatus, XidEvent


def make(**params: Any) -> GpuLost:
    return DETECTOR(Params(**params), kernels)


def samples(start: float, end: float, uuid: str = "GPU-a", **fields: Any) -> list[Records]:
    """A sample a second."""
    return [gpu(ts, uuid=uuid, **{"index": 0, "name": "H100", **fields}) for ts in seconds(start, end)]


def polls(start: float, end: float, source: str = "nvml", **fields: Any) -> list[Records]:
    """A poll a second, just behind the samples."""
    return [status(ts + 0.1, source, **fields) for ts in seconds(start, end)]


def told(found: list[Finding]) -> list[tuple[float, str, str]]:
    return [(one.ts, one.subject, str(one.severity)) for one in found]


def test_a_gpu_in_order_is_not_told_of() -> None:
    detector = make()
    assert drive(detector, [*samples(0, 300), *polls(0, 300, seen=1, expected=1)]) == []
    assert detector.standing().state is DetectorState.ARMED
    assert detector.standing().gauges == {"gpus": 1.0, "expected_gpus": 1.0, "unwell_gpus": 0.0, "refused": 0.0}


def test_a_lost_gpu_is_told_of_at_once_and_again() -> None:
    records = [
        *samples(0, 100),
        gpu(100.0, None, state="lost", index=0, name="H100", xid=(XidEvent(xid=79, ts=99.5),)),
        *samples(101, 170, state="lost", blind=("gpu: NVML enumerates it no longer",)),
        *samples(170, 300),
    ]
    found = drive(make(), [*records, *polls(0, 300, seen=1)])
    assert told(found) == [(ts, "GPU-a", "high") for ts in (100.0, 130.0, 160.0)]
    assert found[0].subject_kind == "gpu"
    assert found[0].reason == "GPU 0 GPU-a (H100) is lost: the driver cannot reach it (last Xid 79)"
    assert found[1].reason == "GPU 0 GPU-a (H100) is lost: NVML enumerates it no longer (last Xid 79)"
    assert found[0].action.startswith("Take this GPU's server out of rotation")
    assert found[0].evidence == {
        "kind": "lost",
        "host": "",
        "gpu": "GPU-a",
        "name": "H100",
        "index": 0,
        "state": "lost",
        "last_sample_ts": 100.0,
        "xids": [79],
    }


def test_a_lost_gpu_that_was_taken_out_on_purpose_is_left_alone() -> None:
    records = [*samples(0, 100), *samples(0, 50, "GPU-b"), *samples(50, 100, "GPU-b", state="lost"), *polls(0, 100)]
    assert {one.subject for one in drive(make(expected=("GPU-a", "GPU-b")), records)} == {"GPU-b"}
    assert drive(make(expected=("GPU-a",)), records) == []


def test_a_gpu_hangs_after_a_while() -> None:
    hangs = [*samples(0, 100), *samples(100, 114, state="hung"), *samples(114, 200)]
    assert drive(make(), hangs) == []
    found = drive(make(), [*samples(0, 100), *samples(100, 150, state="hung")])
    assert told(found) == [(115.0, "GPU-a", "high"), (145.0, "GPU-a", "high")]
    assert (found[0].score, found[0].threshold) == (15.0, 15.0)
    assert found[0].reason == "GPU 0 GPU-a (H100) has answered nothing for 15 s"


def test_a_reset_is_a_warning() -> None:
    found = drive(make(), [*samples(0, 10), *samples(10, 20, state="reset_required")])
    assert told(found) == [(10.0, "GPU-a", "medium")]
    assert found[0].severity is Severity.MEDIUM


def test_a_state_of_a_later_version_is_not_guessed_at() -> None:
    assert drive(make(), samples(0, 100, state="napping")) == []


def test_a_known_gpu_that_is_gone_while_nvml_goes_on() -> None:
    found = drive(make(), [*samples(0, 100), *samples(0, 161, "GPU-b"), *polls(0, 161)])
    # its last sample is from 99; told at the end of each interval from 30 s later on
    assert told(found) == [(ts, "GPU-a", "high") for ts in (129.1, 139.1, 149.1, 159.1)]
    assert (
        found[0].reason == "GPU 0 GPU-a (H100) is missing: its last sample is 30 s old, while NVML went on delivering"
    )
    assert found[0].score == pytest.approx(30.1)
    assert found[0].threshold == 30.0
    assert found[0].evidence["last_sample_ts"] == 99.0
    assert "detectors.gpu_lost.expected" in found[0].action


def test_other_gpus_bear_witness_where_there_are_no_source_records() -> None:
    found = drive(make(), [*samples(0, 100), *samples(0, 141, "GPU-b")])
    assert told(found) == [(129.0, "GPU-a", "high"), (139.0, "GPU-a", "high")]


def test_without_a_witness_nothing_is_missing() -> None:
    """The recording may just end here, or NVML be down: that is another finding."""
    assert drive(make(), [*samples(0, 100), *polls(0, 100)]) == []
    assert drive(make(), [*samples(0, 100), *polls(0, 500, "request_log")]) == []
    assert drive(make(), [*samples(0, 100), *polls(0, 100), *polls(100, 150, ok=False, error="busy")]) == []


def test_one_that_comes_back_was_not_missing_and_the_finding_ends() -> None:
    back = [*samples(0, 100), *samples(120, 300), *samples(0, 300, "GPU-b"), *polls(0, 300)]
    assert drive(make(), back) == []
    late = [*samples(0, 100), *samples(145, 300), *samples(0, 300, "GPU-b"), *polls(0, 300)]
    assert [one.ts for one in drive(make(), late)] == [129.1, 139.1]


def test_a_gpu_seen_too_seldom_is_not_expected() -> None:
    records = [*samples(0, 9), *samples(0, 100, "GPU-b"), *polls(0, 100)]
    assert drive(make(), records) == []
    assert drive(make(learn_samples=9), records) != []


def test_mig_instances_come_and_go() -> None:
    records = [*samples(0, 50, "MIG-1"), *samples(0, 150, "GPU-b"), *polls(0, 150)]
    assert drive(make(), records) == []
    assert {one.subject for one in drive(make(expected=("MIG-1", "GPU-b")), records)} == {"MIG-1"}


def test_configured_gpus_count_and_no_others() -> None:
    records = [*samples(0, 50, "GPU-old"), *samples(0, 121, "GPU-b"), *polls(0, 121)]
    found = drive(make(expected=("GPU-b", "GPU-c")), records)
    assert {one.subject for one in found} == {"GPU-c"}
    assert found[0].ts == 39.0  # never seen: NVML has delivered for long enough without it
    assert found[0].reason == "GPU-c is missing: it was never seen, while NVML went on delivering"
    assert found[0].evidence["last_sample_ts"] is None
    # a fleet's recordings: the configuration is of one machine, so each host goes by what was seen
    fleet = [*records, *samples(0, 121, "GPU-z", host="other"), *polls(0, 121, host="other")]
    assert {one.subject for one in drive(make(expected=("GPU-b", "GPU-c")), fleet)} == {"GPU-old"}


def test_a_gpu_that_stays_away_for_long_is_forgotten() -> None:
    records = [*samples(0, 20), *(one for ts in seconds(0, 4000, 20) for one in samples(ts, ts + 1, "GPU-b"))]
    found = drive(make(forget_after_seconds=3600.0), records)
    assert found[-1].ts == 3600.0
    assert {one.subject for one in found} == {"GPU-a"}


def test_nvml_that_fails_is_a_finding_of_its_own() -> None:
    down = polls(100, 191, ok=False, error="Driver/library version mismatch (18)")
    found = drive(make(), [*samples(0, 100), *samples(0, 100, "GPU-b"), *polls(0, 100, seen=2), *down])
    assert told(found) == [(169.1, "nvml", "high"), (179.1, "nvml", "high"), (189.1, "nvml", "high")]
    assert found[0].subject_kind == "source"
    assert found[0].reason == "NVML has failed for 69 s: Driver/library version mismatch (18)"
    assert found[0].evidence == {
        "host": "",
        "error": "Driver/library version mismatch (18)",
        "seen": None,
        "expected": 2,
        "last_poll_ts": 169.1,
    }


def test_a_short_failure_is_not() -> None:
    flaky = polls(100, 150, ok=False, error="busy")
    assert drive(make(), [*samples(0, 100), *polls(0, 100), *flaky, *samples(150, 300), *polls(150, 300)]) == []


def test_a_host_that_never_had_a_gpu_is_silent() -> None:
    detector = make()
    assert drive(detector, polls(0, 300, ok=False, error="library not found")) == []
    assert drive(make(), polls(0, 300, seen=0)) == []
    assert detector.standing().state is DetectorState.LEARNING
    expected = drive(make(expected_count=8), polls(0, 81, ok=False, error="driver not loaded"))
    assert [one.reason for one in expected] == [
        "NVML has failed for 69 s: driver not loaded",
        "NVML has failed for 79 s: driver not loaded",
    ]


def test_nvml_that_answers_and_lists_no_gpu() -> None:
    """Initialised well and 0 GPUs: device nodes that the unit may not open, for one."""
    empty = polls(100, 171, ok=False, seen=0, error="NVML sees no GPU")
    found = drive(make(), [*samples(0, 100), *polls(0, 100, seen=1, expected=1), *empty])
    assert told(found) == [(169.1, "nvml", "high")]
    assert found[0].reason == "NVML has listed no GPU, of 1, for 69 s: NVML sees no GPU"
    well = [status(one.ts, ok=True, seen=0) for one in empty if isinstance(one, SourceStatus)]
    assert drive(make(), [*samples(0, 100), *polls(0, 100, seen=1), *well])[0].reason == (
        "NVML has listed no GPU, of 1, for 69 s"
    )
    configured = drive(make(expected_count=4), polls(0, 71, ok=True, seen=0))
    assert [one.reason for one in configured] == ["NVML has listed no GPU, of 4, for 69 s"]


def test_gpus_that_hang_are_told_of_once_not_with_the_source() -> None:
    hang = [*samples(100, 300, state="hung"), *polls(100, 300, ok=False, seen=0, error="NVML hangs at GPU 0")]
    found = drive(make(), [*samples(0, 100), *polls(0, 100, seen=1, expected=1), *hang])
    assert {one.subject_kind for one in found} == {"gpu"}


def test_nvml_that_says_nothing_at_all_while_others_do() -> None:
    records = [*samples(0, 100), *polls(0, 100, seen=1), *polls(0, 181, "processes")]
    found = drive(make(), records)
    assert told(found) == [(159.1, "nvml", "high"), (169.1, "nvml", "high"), (179.1, "nvml", "high")]
    assert found[0].reason == "NVML has been silent for 60 s while other sources went on"
    # a host without NVML, and one whose samples go on, have nothing to tell
    assert drive(make(), polls(0, 300, "processes")) == []
    assert drive(make(), [*samples(0, 300), *polls(0, 100), *polls(0, 300, "processes")]) == []


def test_fewer_gpus_than_there_should_be_from_the_start() -> None:
    found = drive(make(expected_count=2), [*samples(0, 51), *polls(0, 51, seen=1)])
    assert told(found) == [(39.1, "nvml", "high"), (49.1, "nvml", "high")]
    assert found[0].reason == "NVML has listed 1 GPUs, of 2, for 39 s"
    refused = polls(0, 51, ok=False, seen=1, expected=2, error="GPU 1: Insufficient Permissions (4)")
    found = drive(make(), [*samples(0, 51), *refused])
    assert found[0].reason == "NVML has listed 1 GPUs, of 2, for 39 s: GPU 1: Insufficient Permissions (4)"


def test_a_missing_gpu_explains_why_there_are_too_few() -> None:
    records = [
        *samples(0, 100),
        *samples(0, 161, "GPU-b"),
        *polls(0, 100, seen=2),
        *polls(100, 161, seen=1, expected=2),
    ]
    assert {one.subject for one in drive(make(), records)} == {"GPU-a"}
    records = [*samples(0, 100), *samples(100, 161, state="lost"), *samples(0, 161, "GPU-b")]
    records += polls(0, 161, seen=1, expected=2)
    assert {one.subject for one in drive(make(), records) if one.ts >= 100} == {"GPU-a"}


def test_a_jump_of_the_clock_is_no_witness() -> None:
    """Each comes back with its own next record; between the first and the last nothing is missing."""
    after = [gpu(5000.0, uuid="GPU-b"), gpu(5010.5, uuid="GPU-a"), status(5011.0, seen=2), gpu(5021.0, uuid="GPU-a")]
    before = [*samples(0, 100), *samples(0, 100, "GPU-b"), *polls(0, 100, seen=2), *polls(0, 100, "processes")]
    early = [status(4990.0 + i, "processes") for i in range(30)]
    assert drive(make(), [*before, *after, *early]) == []


def test_time_set_back_neither_fires_nor_blinds() -> None:
    before = ordered([*samples(1000, 1100), *samples(1000, 1100, "GPU-b"), *polls(1000, 1100, seen=2)])
    back = ordered([*samples(500, 600), *samples(500, 600, "GPU-b"), *polls(500, 600, seen=2)])
    assert drive(make(), [*before, *back], as_given=True) == []
    lost = ordered([*samples(500, 561, "GPU-b"), *polls(500, 561, seen=2)])  # GPU-a went with the step
    found = drive(make(), [*before, *lost], as_given=True)
    assert told(found) == [(539.1, "GPU-a", "high"), (549.1, "GPU-a", "high"), (559.1, "GPU-a", "high")]


def test_a_restart_after_a_while_does_not_fire() -> None:
    first = make()
    drive(first, [*samples(0, 100), *polls(0, 100, seen=1)])
    second = make()
    second.restore(first.snapshot())
    assert (
        drive(second, [*polls(9000, 9050, ok=False, error="starting"), *samples(9050, 9200), *polls(9050, 9200)]) == []
    )


def test_synthetic_records_and_hosts_do_not_mix() -> None:
    # a recording that ends, on a host that goes on
    assert drive(make(), [*samples(0, 100, synthetic=True), *samples(0, 300, "GPU-b"), *polls(0, 300)]) == []
    assert drive(make(), [*samples(0, 100, host="one"), *samples(0, 300, "GPU-b"), *polls(0, 300)]) == []
    played = [*samples(0, 50, synthetic=True), *samples(50, 60, synthetic=True, state="lost")]
    found = drive(make(expected=("GPU-z",)), played)
    assert [(one.ts, one.synthetic) for one in found] == [(50.0, True)]
    both = [*samples(0, 100, host="one"), *polls(0, 100, host="one"), *polls(100, 171, host="one", ok=False)]
    assert [one.subject for one in drive(make(), both)] == ["one/nvml"]


def test_the_same_gpu_on_two_shards_of_hosts_is_judged_once() -> None:
    """Each shard holds the host's sources; the roll is called once."""
    shards = [make(), make()]
    records = ordered([*samples(0, 100), *samples(0, 141, "GPU-b"), *polls(0, 141)])
    for one in records:
        for index, shard in enumerate(shards):
            if not isinstance(one, GpuSample) or (one.gpu == "GPU-a") == (index == 0):
                assert shard.observe(one) == []
    pairs = sorted((pair for shard in shards for pair in shard.states()), key=lambda pair: pair[0])
    assert [one.subject for one in shards[1].close(Interval(130.0, 140.0), pairs)] == ["GPU-a"]


def test_standing_says_when_it_cannot_see() -> None:
    detector = make()
    drive(detector, [*samples(0, 20), *polls(0, 20, seen=1), *polls(20, 22, ok=False, error="no\nanswer")])
    assert detector.standing().state is DetectorState.STALE
    assert detector.standing().why == "blind: NVML fails: no\\u000aanswer"
    unwell = make()
    drive(unwell, [*samples(0, 20), *samples(20, 25, state="lost")])
    assert unwell.standing().gauges["unwell_gpus"] == 1.0
    full = make()
    drive(full, [gpu(1.0, uuid=f"GPU-{i}") for i in range(300)])
    assert full.standing().state is DetectorState.SATURATED


def test_other_kinds_of_records_do_not_disturb() -> None:
    assert make().observe(requests([1.0])) == []
    assert make().close(Interval(0.0, 10.0), []) == []


def test_a_run_without_a_break() -> None:
    run = Steady()
    assert run.beyond(0.0) == float("-inf")
    assert [run.tick(ts, 10.0) for ts in (0.0, 5.0, 15.0, 26.0, 20.0)] == [False, True, True, False, False]
    assert run.beyond(-100.0) == 0.0


def conformance() -> Case:
    records = [
        *samples(0, 100),
        *samples(0, 250, "GPU-b"),
        *samples(0, 120, "GPU-c"),
        *samples(120, 180, "GPU-c", state="lost"),
        *samples(0, 60, "GPU-d", synthetic=True),
        *samples(60, 90, "GPU-d", synthetic=True, state="hung"),
        *polls(0, 250, seen=2, expected=3),
        *polls(250, 330, ok=False, error="gone"),
        *polls(0, 330, "processes"),
    ]

    def flood(n: int) -> list[Records]:
        return [
            one for i in range(n) for one in (gpu(i * 0.5, uuid=f"GPU-{i}"), status(i * 0.5, f"s{i}", host=f"h{i}"))
        ]

    return Case(GpuLost, Params(), ordered(records), Params(), flood)


def test_the_case_holds_every_kind_of_finding() -> None:
    found = drive(make(), conformance().records)
    assert {one.evidence.get("kind", "source") for one in found} == {"missing", "lost", "hung", "source"}


def test_restarts_at_any_point_change_nothing() -> None:
    records = conformance().records
    found = drive(make(), records)
    assert found
    assert drive(make(), records, restart=make) == found
