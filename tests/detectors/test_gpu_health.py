from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from gpu_drive import drive, gpu, seconds
from support import Case

from mlsecd import kernels
from mlsecd.detectors._xid_table import APPLICATION, meaning
from mlsecd.detectors.gpu_health import DETECTOR, GpuHealth, Params
from mlsecd.records import GpuSample, Records, Severity, XidEvent

KMSG = Path(__file__).parents[1] / "data" / "xid_kmsg.txt"


def make(**params: Any) -> GpuHealth:
    return DETECTOR(Params(**params), kernels)


def xid(ts: float, *codes: int, **fields: Any) -> GpuSample:
    return gpu(float(ts), (100,), xid=tuple(XidEvent(xid=code, ts=float(ts)) for code in codes), **fields)


def kinds(found: list[Any]) -> list[tuple[float, str, Severity]]:
    return [(one.ts, one.evidence["kind"], one.severity) for one in found]


def test_an_error_of_the_hardware_is_told_at_once_and_once() -> None:
    found = drive(make(), [xid(ts, 79) for ts in range(200)])
    assert kinds(found) == [(0.0, "xid 79", Severity.HIGH)]
    assert found[0].subject == "GPU-a xid 79"
    assert found[0].reason == "GPU-a: Xid 79: the GPU has fallen off the bus"


def test_application_faults_page_nobody_and_many_are_one_warning() -> None:
    """672 pages in three hours, from 45 after ordinary restarts, is a known complaint."""
    churn = [xid(60.0 * i, 43, 45) for i in range(180)]
    assert max(one.severity.rank for one in drive(make(), churn)) == Severity.MEDIUM.rank
    few = [xid(600.0 * i, 45) for i in range(18)]
    assert drive(make(), few) == [], "three hours of restarts, six an hour"
    probing = drive(make(), [xid(10.0 * i, 31) for i in range(60)])
    assert kinds(probing)[0] == (190.0, "xid 31", Severity.MEDIUM)
    assert len(probing) == 2, "repeated each 300 s, not each time"
    assert "probes the server" in probing[0].evidence["note"]


def test_45_after_another_is_its_consequence() -> None:
    found = drive(make(faults_an_hour=1), [xid(0, 79, 45), xid(5, 45), xid(300, 45)])
    assert kinds(found) == [(0.0, "xid 79", Severity.HIGH), (300.0, "xid 45", Severity.MEDIUM)]


def test_every_xid_of_real_kernel_logs_has_a_meaning() -> None:
    codes = {int(found) for found in re.findall(r"Xid \(PCI:[0-9a-f:.]+\): (\d+)", KMSG.read_text())}
    assert {13, 31, 63, 79, 119, 149} <= codes
    loud = {code for code in codes - set(APPLICATION) if meaning(code).severity is Severity.HIGH}
    assert {48, 64, 74, 79, 95, 119} & codes == loud & {48, 64, 74, 79, 95, 119}
    assert all(found.severity.rank <= Severity.MEDIUM.rank for found in drive(make(), [xid(0, *sorted(APPLICATION))]))


def test_corrected_errors_in_a_burst_are_read_as_an_attack_and_a_reset_counter_is_not() -> None:
    samples = [gpu(ts, ecc_corrected=round(ts / 10)) for ts in seconds(0, 1100, 10)]
    found = drive(make(), samples)
    assert kinds(found) == [(1000.0, "ecc_corrected", Severity.MEDIUM)]
    assert "GPUHammer" in found[0].evidence["note"]
    slow = [gpu(ts, ecc_corrected=int(ts // 60)) for ts in seconds(0, 7200, 60)]
    assert drive(make(), slow) == [], "sixty an hour"
    reloaded = [gpu(0.0, ecc_corrected=5000), gpu(10.0, ecc_corrected=0), gpu(20.0, ecc_corrected=40)]
    assert drive(make(), reloaded) == []
    old = [gpu(ts, ecc_corrected=100_000, ecc_uncorrected=7) for ts in seconds(0, 60)]
    assert drive(make(), old) == [], "what was there before we came is no rate"


@pytest.mark.parametrize(
    ("before", "after", "kind", "severity"),
    [
        ({"ecc_uncorrected": 0}, {"ecc_uncorrected": 1}, "ecc_uncorrected", Severity.HIGH),
        ({}, {"remapped_rows_failure": True}, "remap_failure", Severity.HIGH),
        ({}, {"remapped_rows_pending": True}, "remap_pending", Severity.LOW),
        (
            {"remapped_rows_corrected": 1, "remapped_rows_uncorrected": 0},
            {"remapped_rows_corrected": 2, "remapped_rows_uncorrected": 1},
            "remapped_rows",
            Severity.MEDIUM,
        ),
        ({"nvlink_replays": 5}, {"nvlink_replays": 500}, "nvlink_replays", Severity.LOW),
        ({"recovery_action": 0}, {"recovery_action": 1}, "recovery_action", Severity.MEDIUM),
    ],
)
def test_counters_and_levels(before: dict[str, Any], after: dict[str, Any], kind: str, severity: Severity) -> None:
    assert kinds(drive(make(), [gpu(0.0, **before), gpu(1.0, **after)])) == [(1.0, kind, severity)]


def test_values_that_are_not_there_are_never_zero() -> None:
    gone = [gpu(ts, ecc_corrected=1000 if ts % 2 else None) for ts in seconds(0, 60)]
    assert drive(make(), gone) == [], "N/A between two readings of 1000 is no growth"


def test_heat_counts_only_while_it_lasts() -> None:
    hot = [gpu(ts, throttle_reasons=0x40 | 0x4, temperature_celsius=91.0) for ts in seconds(0, 130)]
    found = drive(make(), hot)
    assert kinds(found) == [(120.0, "throttle hw_thermal", Severity.MEDIUM)]
    assert found[0].reason.endswith("it is too hot, and hardware slows it down, for 120 s at 91 °C")
    flicker = [gpu(ts, throttle_reasons=0x40 if ts % 50 else 0) for ts in seconds(0, 600)]
    assert drive(make(), flicker) == []
    assert drive(make(), [gpu(ts, throttle_reasons=0x4) for ts in seconds(0, 600)]) == [], "a power cap is ordinary"


def conformance() -> Case:
    records: list[Records] = [xid(float(ts), *([31] if ts > 20 else ()), ecc_corrected=10 * ts) for ts in range(60)]
    records += [xid(60.0, 79), gpu(61.0, throttle_reasons=0x40), gpu(200.0, throttle_reasons=0x40)]

    def flood(n: int) -> list[Records]:
        return [xid(20.0 * i, 79, uuid=f"GPU-{i}") for i in range(n)]

    return Case(DETECTOR, Params(), records, Params(), flood)
