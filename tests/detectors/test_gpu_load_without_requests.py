from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gpu_drive import drive, gpu, ordered, process, seconds, status, table
from support import Case, atoms, regroup, requests

from mlsecd import kernels
from mlsecd.detectors._allow import Allow
from mlsecd.detectors._serving import BIN_MS, Serving, spread
from mlsecd.detectors.base import DetectorState, Section
from mlsecd.detectors.gpu_load_without_requests import DETECTOR, GpuLoadWithoutRequests, Params
from mlsecd.errors import BaselineError
from mlsecd.records import GpuSample, Records, RequestBatch, ServerSample, Severity

SERVER = process(100, "/opt/vllm/bin/python", unit="vllm.service")


def make(*, section: Section | None = None, **params: Any) -> GpuLoadWithoutRequests:
    return DETECTOR(Params(**params), kernels, section)


def load(
    start: float, end: float, utilization: float | None = 0.9, uuid: str = "GPU-a", **fields: Any
) -> list[Records]:
    """A sample a second with one server on the GPU."""
    every: dict[str, Any] = {"pids": (100,), **fields}
    return [gpu(ts, uuid=uuid, utilization=utilization, **every) for ts in seconds(start, end)]


def alive(start: float, end: float, source: str = "request_log", step: float = 5.0, **fields: Any) -> list[Records]:
    return [status(ts + 0.9, source, **fields) for ts in seconds(start, end, step)]


def traffic(start: float, end: float, every: float = 2.0, duration: float = 1.5, **columns: Any) -> list[Records]:
    return [requests([ts + 0.25], duration_s=duration, **columns) for ts in seconds(start, end, every)]


def quiet(end: float = 600, last: float = 100, **fields: Any) -> list[Records]:
    """Traffic until ``last``, load until ``end``."""
    return [*load(0, end, **fields), *alive(0, end), *traffic(0, last)]


def test_load_that_goes_on_after_the_last_request() -> None:
    records = [*quiet(), table(5.5, SERVER), *load(0, 600, 0.02, "GPU-b")]
    found = drive(make(), records)
    # the last request and its grace end at 100.75; five whole minutes of bins later:
    assert [one.ts for one in found] == [410.0 + 30 * i for i in range(7)]
    first = found[0]
    assert (first.severity, first.subject_kind, first.subject) == (Severity.MEDIUM, "gpu", "GPU-a")
    assert (first.score, first.threshold) == (1.0, 0.8)
    assert first.reason == (
        "GPU-a is busy at 90%; in the last 300 s no requests completed; the last one 310 s ago; "
        "100% of that time is load that no request explains"
    )
    assert first.evidence == {
        "gpu": "GPU-a",
        "host": "",
        "utilization": 0.9,
        "power_watts": None,
        "window_seconds": 300.0,
        "unexplained_seconds": 300.0,
        "requests": 0,
        "last_request_ts": 99.75,
        "request_sources": ["request_log"],
        "processes": [
            {
                "pid": 100,
                "exe": "/opt/vllm/bin/python",
                "used_memory_bytes": 1 << 30,
                "uid": 997,
                "unit": "vllm.service",
            }
        ],
    }


def test_load_under_traffic_is_served() -> None:
    assert drive(make(), quiet(last=600)) == []


def test_an_idle_gpu_is_idle() -> None:
    assert drive(make(), quiet(utilization=0.1)) == []


def test_probes_do_not_explain_a_load() -> None:
    """A health check each ten seconds, a millisecond each."""
    records = [*quiet(), *traffic(100, 600, every=10, duration=0.001)]
    found = drive(make(), records)
    assert found[0].ts == 410.0
    assert found[0].evidence["requests"] == 31
    assert found[0].score == pytest.approx(0.9, abs=0.05)


def test_few_but_long_requests_do() -> None:
    assert drive(make(), [*quiet(), *traffic(100, 600, every=60, duration=30)]) == []


def test_refused_requests_do_not_explain_a_load() -> None:
    flood = traffic(100, 600, every=1, duration=2.0, status=429)
    assert [one.ts for one in drive(make(), [*quiet(), *flood])][:1] == [410.0]
    begun = traffic(100, 600, every=1, duration=2.0, status=499)
    assert drive(make(), [*quiet(), *begun]) == []


def test_a_request_without_a_duration_is_given_some() -> None:
    assert drive(make(), [*quiet(), *(requests([ts]) for ts in seconds(100, 600, 20))]) == []
    assert drive(make(), [*quiet(), *(requests([ts]) for ts in seconds(100, 600, 200))]) != []


def test_a_long_request_explains_its_load_once_it_completes() -> None:
    """It ran from 130 to 390: known at 390, before anything is judged."""
    records = [*quiet(), requests([130.0], duration_s=260.0), *traffic(390, 600)]
    assert drive(make(), records) == []


def test_after_a_long_request_the_next_long_one_is_waited_for() -> None:
    """Requests of ten minutes, back to back: the first teaches, the second is under way when five minutes are over."""
    records = [
        *load(0, 1400),
        *alive(0, 1400),
        *traffic(0, 50),
        *(requests([ts], duration_s=600.0) for ts in (50.0, 650.0)),
    ]
    found = drive(make(), records)
    # the first was reported while it ran, as the blind spots say; the second was not
    assert found[0].ts == 360.0
    assert found[-1].ts == 630.0
    stretched = drive(make(), [*records, *load(1400, 2400), *alive(1400, 2400)])
    assert stretched[len(found)].ts == 2160.0
    assert stretched[len(found)].evidence["window_seconds"] == 900.0


def test_a_dead_tap_is_no_silence() -> None:
    detector = make()
    dead = [one for one in quiet() if getattr(one, "source", "") != "request_log" or one.ts < 110]  # type: ignore[union-attr]
    assert drive(detector, dead) == []
    assert detector.standing().state is DetectorState.STALE
    assert detector.standing().why == "blind: no request source has delivered for 60 s"
    assert detector.standing().gauges["blind_hosts"] == 1.0


def test_one_that_fails_beside_one_that_lives_leaves_it_deaf() -> None:
    detector = make()
    failing = [status(ts + 0.7, "otlp", ok=ts < 100, error=None if ts < 100 else "refused") for ts in seconds(0, 600)]
    assert drive(detector, [*quiet(), *failing]) == []
    assert detector.standing().why == "blind: otlp has delivered before and does not now"


def test_one_that_was_switched_off_is_forgotten_after_an_hour() -> None:
    records = [*load(0, 4400), *alive(0, 4400), *traffic(0, 100), *alive(0, 100, "otlp")]
    found = drive(make(), records)
    assert found[0].ts == 4000.0  # otlp's last word is from 95.9, and five minutes count from an hour later


def test_one_that_never_worked_does_not_matter() -> None:
    never = [status(ts + 0.7, "otlp", ok=False, error="no port") for ts in seconds(0, 600)]
    assert drive(make(), [*quiet(), *never])[0].ts == 410.0


@pytest.mark.parametrize("source", ["request_socket", "otlp", "recording"])
def test_a_listener_that_never_heard_anything_is_no_evidence(source: str) -> None:
    detector = make()
    unheard = [*load(0, 600), *alive(0, 600, source)]
    assert drive(detector, unheard) == []
    assert detector.standing().why == f"blind: nothing has ever come in by {source}: is a tap in place?"
    assert drive(make(), [*unheard, requests([1.0], duration_s=0.5)]) != []


def test_a_log_that_stays_empty_is() -> None:
    found = drive(make(), [*load(0, 400), *alive(0, 400)])
    assert [one.ts for one in found] == [310.0, 340.0, 370.0]
    assert "none was ever seen" in found[0].reason
    assert found[0].evidence["last_request_ts"] is None


def scrapes(start: float, end: float, **fields: Any) -> list[Records]:
    """A server that says every ten seconds how it is doing, and a source that says that it was read."""
    made: list[Records] = [
        ServerSample(ts=ts + 0.8, server="127.0.0.1:8000", model="m", interval_s=10.0, **fields)
        for ts in seconds(start, end, 10.0)
    ]
    return [*made, *alive(start, end, "server_metrics", 10.0)]


def test_a_server_that_is_only_scraped_explains_its_load_while_it_works() -> None:
    """A host without a tap: what its server's counters say is all that is known of requests."""
    busy = scrapes(0, 100, running=2.0, requests=5.0)
    idle = scrapes(100, 600, running=0.0, requests=0.0)
    assert drive(make(), [*load(0, 600), *scrapes(0, 600, running=2.0, requests=5.0)]) == []
    found = drive(make(), [*load(0, 600), *busy, *idle])
    assert found[0].ts == pytest.approx(405.0, abs=15.0)
    assert found[0].evidence["request_sources"] == ["server_metrics"]


def test_a_scraped_server_that_was_idle_from_the_start_is_evidence() -> None:
    found = drive(make(), [*load(0, 600), *scrapes(0, 600, running=0.0, requests=0.0)])
    assert found[0].ts == pytest.approx(310.0, abs=15.0)


def test_a_server_that_does_not_answer_is_none() -> None:
    gone = alive(100, 600, "server_metrics", 10.0, ok=False, error="connection refused")
    detector = make()
    assert drive(detector, [*load(0, 600), *scrapes(0, 100, running=0.0, requests=0.0), *gone]) == []
    assert detector.standing().state is DetectorState.STALE


def test_sources_that_bring_no_requests_are_no_evidence() -> None:
    detector = make()
    assert drive(detector, [*load(0, 600), *alive(0, 600, "nvml"), *alive(0, 600, "processes")]) == []
    assert detector.standing().state is DetectorState.STALE
    assert make().standing().why == "blind: no GPU sample yet"


@pytest.mark.parametrize(
    ("fields", "fires"),
    [
        ({"utilization": 1.0, "power_watts": 120.0, "power_limit_watts": 700.0}, False),  # spins while it waits
        ({"utilization": 1.0, "power_watts": 300.0, "power_limit_watts": 700.0}, True),
        ({"utilization": None, "power_watts": 434.0, "power_limit_watts": 700.0}, True),  # MIG tells no utilization
        ({"utilization": None, "power_watts": 71.0, "power_limit_watts": 700.0}, False),
        ({"utilization": None, "power_watts": 71.0}, False),
        ({"utilization": None}, False),
        ({"utilization": 0.2}, True),
        ({"utilization": 0.19}, False),
        ({"utilization": 0.9, "state": "hung"}, False),
    ],
)
def test_what_counts_as_busy(fields: dict[str, Any], fires: bool) -> None:
    assert bool(drive(make(), quiet(**fields))) is fires


def test_a_model_that_loads_is_forgiven_for_a_while() -> None:
    records = [*load(0, 50, 0.0, pids=()), *load(50, 600), *alive(0, 600)]
    # the server came at 50 and has until 170
    assert drive(make(), records)[0].ts == 480.0
    assert drive(make(warmup_seconds=0.0), records)[0].ts == 360.0


def test_a_process_that_restarts_all_the_time_is_judged_in_the_end() -> None:
    """A new pid each 100 s would be loading for ever; six minutes an hour must do."""
    records = [gpu(ts, (1000 + int(ts // 100),), utilization=0.9) for ts in seconds(0, 1000)]
    assert drive(make(), [*records, *alive(0, 1000)])[0].ts == 730.0


def test_a_batch_process_may_load_its_gpu() -> None:
    job = process(300, "/opt/batch/train", uid=50)
    tables = [table(ts + 0.5, SERVER, job) for ts in seconds(0, 600, 5)]
    records = [
        *load(0, 600),
        *load(0, 600, 0.9, "GPU-b", pids=(300,)),
        *alive(0, 600),
        *traffic(0, 600, status=200, host="elsewhere"),
        *tables,
    ]
    assert {one.subject for one in drive(make(), records)} == {"GPU-a", "GPU-b"}
    batch = (Allow(exe="/opt/batch/*", uid=50),)
    assert {one.subject for one in drive(make(batch=batch), records)} == {"GPU-a"}


def test_process_lists_now_and_then_are_enough_for_a_batch_process() -> None:
    job = process(300, "/opt/batch/train", uid=50)
    samples = [gpu(ts, (300,) if ts % 10 == 0 else None, utilization=0.9) for ts in seconds(0, 600)]
    records = [*samples, *alive(0, 600), *(table(ts + 0.5, job) for ts in seconds(0, 600, 5))]
    assert drive(make(batch=(Allow(uid=50),)), records) == []


def test_it_stops_with_the_load_and_with_new_requests() -> None:
    ends = [*load(0, 500), *load(500, 900, 0.01), *alive(0, 900), *traffic(0, 100)]
    assert [one.ts for one in drive(make(), ends)] == [410.0, 440.0, 470.0]
    served = [*quiet(900), *traffic(500, 900)]
    assert drive(make(), served)[-1].ts < 570.0


def test_synthetic_records_and_hosts_do_not_mix() -> None:
    real = [*load(0, 600), *alive(0, 600)]
    played = traffic(0, 600, synthetic=1)
    assert {one.synthetic for one in drive(make(), [*real, *played])} == {False}
    every = [
        *load(0, 600, synthetic=True),
        *alive(0, 600, synthetic=True),
        *traffic(0, 600),
        *traffic(0, 50, synthetic=1),
    ]
    assert [(one.ts, one.synthetic) for one in drive(make(), every)][:1] == [(360.0, True)]
    elsewhere = [*load(0, 600, host="one"), *alive(0, 600, host="one"), *traffic(0, 600, host="two")]
    assert drive(make(), elsewhere)[0].evidence["host"] == "one"
    assert drive(make(), [*elsewhere, *traffic(0, 600, host="one")]) == []


def test_a_hole_in_the_records_is_no_load() -> None:
    records = [*load(0, 200), *load(3000, 3200), *alive(0, 200), *alive(3000, 3200), *traffic(0, 50)]
    assert drive(make(), records) == []


def test_time_set_back_starts_afresh() -> None:
    before = ordered([*load(1000, 1250), *alive(1000, 1250), *traffic(1000, 1010)])
    back = ordered([*load(900, 1190), *alive(900, 1190), *traffic(900, 910)])
    assert drive(make(), [*before, *back], as_given=True) == []
    longer = ordered([*load(900, 1300), *alive(900, 1300), *traffic(900, 910)])
    assert drive(make(), [*before, *longer], as_given=True)[0].ts == 1220.0


def test_times_beyond_reason_do_no_harm() -> None:
    odd = requests([1e300, 5.0, -1e300], duration_s=[1.0, 1e300, -5.0])
    detector = make()
    detector.observe(odd)
    make().restore(detector.snapshot())
    assert detector.observe(requests([])) == []


def test_memory_stays_within_bounds() -> None:
    detector = make(sustained_seconds=60.0, max_sustained_seconds=60.0)
    sizes = []
    for start in range(0, 4000, 1000):
        records = [gpu(ts, (100,), utilization=0.9) for ts in seconds(start, start + 1000, 10)]
        drive(detector, [*records, *alive(start, start + 1000, step=20.0), *traffic(start, start + 1000, 10)])
        sizes.append(len(detector.snapshot()))
    assert max(sizes) < 1000


def test_more_gpus_than_the_limit_are_counted() -> None:
    detector = make()
    drive(detector, [gpu(1.0, (), f"GPU-{i}") for i in range(260)])
    assert detector.standing().gauges["refused"] == 4.0


# time covered by requests


def test_spread_against_a_loop() -> None:
    rng = np.random.default_rng(7)
    starts = rng.integers(-50_000, 200_000, 500)
    ends = starts + rng.integers(0, 90_000, 500)
    loop: dict[int, int] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for ms_bin in range(start // BIN_MS, (end - 1) // BIN_MS + 1):
            inside = min(end, (ms_bin + 1) * BIN_MS) - max(start, ms_bin * BIN_MS)
            loop[ms_bin] = loop.get(ms_bin, 0) + inside
    bins, sums = spread(starts, ends)
    assert dict(zip(bins.tolist(), sums.tolist(), strict=True)) == {key: ms for key, ms in loop.items() if ms > 0}


def test_serving_does_not_depend_on_how_rows_are_cut() -> None:
    rng = np.random.default_rng(8)
    completion = np.sort(rng.uniform(0, 90_000, 400))
    completion[200:] -= 30_000.0  # time set back in the middle
    duration = np.where(rng.random(400) < 0.2, np.nan, rng.exponential(5.0, 400))
    whole = requests(completion - np.nan_to_num(duration), duration_s=duration, status=rng.choice([200, 429], 400))
    params, states = Params(), []
    for sizes in ([400], [1] * 400, [7] * 60):
        serving = Serving()
        for push in regroup(atoms([whole]), sizes):
            for batch in push:
                assert isinstance(batch, RequestBatch)
                serving.take(batch, np.arange(len(batch)), params, 10_000)
                if len(sizes) == 60:
                    serving.settle(params, 10_000)
        serving.settle(params, 10_000)
        states.append(serving)
    assert states[0] == states[1] == states[2]
    assert 0 < states[0].accepted < 400


def test_the_longest_request_is_of_today_and_yesterday() -> None:
    serving, params = Serving(), Params()
    for day, duration, longest in ((0, 100.0, 100.0), (1, 10.0, 100.0), (2, 5.0, 10.0), (9, 1.0, 1.0)):
        serving.take(requests([day * 86_400.0 + 500.0], duration_s=duration), np.arange(1), params, 100)
        serving.settle(params, 100)
        assert serving.longest == longest


# fit


def idle(end: float = 700, **fields: Any) -> list[Records]:
    """Spinning at 30 %, 90 W, at rest."""
    return [*load(0, end, 0.3, power_watts=90.0, power_limit_watts=300.0, **fields), *traffic(0, 20)]


def test_fit_learns_what_a_gpu_shows_at_rest() -> None:
    learned = GpuLoadWithoutRequests.fit(ordered(idle()), Params(), kernels)
    assert learned is not None
    assert learned.section is not None
    assert learned.section.header == {"idle": {"GPU-a": {"utilization": 0.3, "power_watts": 90.0, "bins": 66}}}
    section = Section(json.loads(json.dumps(learned.section.header)), {})
    resting = [*idle(), *alive(0, 700)]
    assert drive(make(), resting) != []
    assert drive(make(section=section), resting) == []
    assert make(section=section).standing().gauges["idle_levels"] == 1.0
    mining = [*load(0, 700, 1.0, power_watts=280.0, power_limit_watts=300.0), *alive(0, 700), *traffic(0, 20)]
    assert drive(make(section=section), mining) != []


@pytest.mark.parametrize(
    ("records", "need"),
    [
        ([], "no GPU samples"),
        (idle(synthetic=True), "no GPU samples"),
        (idle(300), "no GPU was at rest for ten minutes"),
        (load(0, 700, 0.95), "no GPU was at rest for ten minutes"),
        ([*load(0, 700, 0.1), *traffic(0, 700)], "no GPU was at rest for ten minutes"),
    ],
)
def test_fit_says_what_it_needs(records: list[Records], need: str) -> None:
    learned = GpuLoadWithoutRequests.fit(ordered(records), Params(), kernels)
    assert learned is not None
    assert learned.section is None
    assert learned.refused is not None
    assert learned.refused.startswith(need)


def test_a_gpu_that_is_busy_at_rest_is_pointed_out_and_not_learned() -> None:
    records = [*idle(), *load(0, 700, 0.95, "GPU-b")]
    learned = GpuLoadWithoutRequests.fit(ordered(records), Params(), kernels)
    assert learned is not None
    assert learned.section is not None
    assert list(learned.section.header["idle"]) == ["GPU-a"]
    assert learned.notes == ("GPU-b: not learned, it was 95% busy with no requests: look at it first",)


@pytest.mark.parametrize("header", [{}, {"idle": {"GPU-a": 3}}])
def test_a_baseline_that_does_not_fit_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(BaselineError, match="gpu_load_without_requests"):
        make(section=Section(header, {}))


def conformance() -> Case:
    records = [*quiet(500), *load(0, 500, 0.9, "GPU-b", pids=None), *traffic(0, 60, synthetic=1)]
    records += [*load(0, 500, synthetic=True), *alive(0, 500, synthetic=True), table(5.5, SERVER)]

    def flood(n: int) -> list[Records]:
        return [
            one for i in range(n) for one in (gpu(i * 0.5, (), host=f"host-{i}"), status(i * 0.5, "otlp", host=f"{i}"))
        ]

    return Case(GpuLoadWithoutRequests, Params(), ordered(records), Params(), flood)


def test_the_case_holds_real_and_synthetic_findings() -> None:
    found = drive(make(), conformance().records)
    assert {(one.subject, one.synthetic) for one in found} == {("GPU-a", False), ("GPU-b", False), ("GPU-a", True)}
    assert isinstance(conformance().records[0], GpuSample)


def test_restarts_at_any_point_change_nothing() -> None:
    records = conformance().records
    found = drive(make(), records)
    assert found
    assert drive(make(), records, restart=make) == found


def test_rows_that_nobody_asks_for_do_not_pile_up() -> None:
    serving, params = Serving(), Params()
    for ts in range(6000):
        serving.take(requests([float(ts)], duration_s=1.0), np.arange(1), params, 10)
    assert serving.rows_waiting < 5000
    assert len(serving.covered) <= 20
