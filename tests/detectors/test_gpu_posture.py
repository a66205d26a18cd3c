from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gpu_drive import drive, gpu, seconds
from hypothesis import given
from hypothesis import strategies as st
from support import Case

from mlsecd import kernels
from mlsecd.detectors._floors import Floor, below
from mlsecd.detectors._posture_rules import Require
from mlsecd.detectors.base import DetectorState, Section
from mlsecd.detectors.gpu_posture import DETECTOR, GpuPosture, Params
from mlsecd.errors import BaselineError
from mlsecd.records import GpuSample, Records, Severity
from mlsecd.sources.packages import version_of

USUAL = {
    "driver_version": "590.48.01",
    "vbios_version": "96.00.A5.00.01",
    "ecc_mode": "enabled",
    "ecc_mode_pending": "enabled",
    "mig_mode": "disabled",
    "compute_mode": "exclusive_process",
    "power_limit_watts": "700",
}


def make(section: Section | None = None, **params: Any) -> GpuPosture:
    return DETECTOR(Params(**params), kernels, section)


def sample(ts: float, uuid: str = "GPU-a", **changes: str) -> GpuSample:
    fields = {"state": changes.pop("state")} if "state" in changes else {}
    return gpu(ts, uuid=uuid, name="H100", posture={**USUAL, **changes}, **fields)


@pytest.mark.parametrize(
    ("change", "severity"),
    [
        ({"ecc_mode": "disabled"}, Severity.HIGH),
        ({"ecc_mode_pending": "disabled"}, Severity.HIGH),  # off after the next reset
        ({"vbios_version": "96.00.A5.00.02"}, Severity.HIGH),
        ({"compute_mode": "default"}, Severity.MEDIUM),
        ({"driver_version": "595.71.05"}, Severity.LOW),
        ({"power_limit_watts": "500"}, Severity.LOW),
        ({"mig_devices": "3g.40gb MIG-1"}, None),  # a field that was never told before is no change
        ({"what_comes_later": "x"}, None),
    ],
)
def test_a_change_is_told_as_loudly_as_it_matters(change: dict[str, str], severity: Severity | None) -> None:
    found = drive(make(), [sample(0.0), *(sample(ts, **change) for ts in seconds(60, 120))])
    assert [one.severity for one in found] == ([severity] if severity else [])
    if found:
        (name,) = change
        assert found[0].subject == f"GPU-a {name}"
        assert found[0].reason == f"GPU-a: {name} is {change[name]}, and was {USUAL[name]}"


def test_a_planned_change_becomes_the_reference_and_a_grave_one_never_does() -> None:
    hourly = [3600.0 * hour for hour in range(1, 60)]
    low = drive(make(), [sample(0.0), *(sample(ts, driver_version="595.71.05") for ts in hourly)])
    assert (low[0].ts, low[-1].ts) == (3600.0, 24 * 3600.0)
    high = drive(make(), [sample(0.0), *(sample(ts, ecc_mode="disabled") for ts in hourly)])
    assert high[-1].ts == hourly[-1]


def test_a_change_that_is_put_back_ends() -> None:
    records = [sample(ts, ecc_mode="disabled" if 100 <= ts < 200 else "enabled") for ts in seconds(0, 900, 10)]
    assert [one.ts for one in drive(make(), records)] == [100.0]


def test_the_baseline_is_the_reference_over_a_restart() -> None:
    fit = DETECTOR.fit([sample(0.0), sample(60.0)], Params(), kernels)
    assert fit is not None
    assert fit.notes == ("settings of 1 GPUs are the reference",)
    found = drive(make(fit.section), [sample(0.0, ecc_mode="disabled")])
    assert [(one.severity, one.evidence["before"]) for one in found] == [(Severity.HIGH, "enabled")]
    assert DETECTOR.fit([gpu(0.0)], Params(), kernels).refused  # type: ignore[union-attr]
    with pytest.raises(BaselineError, match="cannot be used"):
        make(Section({"postures": 7}, {}))


def test_required_settings_and_floors_have_three_states() -> None:
    params = {
        "require": (Require(field="ecc_mode", value="enabled"), Require(field="persistence_mode", value="enabled")),
        "floors": (
            Floor(field="driver_version", branch="590.", at_least="590.50", why="CVE-0000-0000"),
            Floor(field="driver_version", branch="570.", at_least="570.900"),
            Floor(field="container_toolkit_version", at_least="1.17.8"),
        ),
    }
    detector = make(**params)
    found = drive(detector, [sample(0.0)])
    assert [one.reason for one in found] == ["GPU-a: driver_version 590.48.01 is older than 590.50: CVE-0000-0000"]
    gauges = detector.standing().gauges
    assert (gauges["checks_passed"], gauges["checks_failed"], gauges["checks_unknown"]) == (1.0, 1.0, 2.0)
    assert detector.standing().why == "2 of 4 checks cannot be told here"


def test_developer_tools_in_confidential_computing_are_refused_by_default() -> None:
    found = drive(make(), [sample(0.0, confidential_compute_devtools="enabled")])
    assert [(one.severity, one.subject) for one in found] == [
        (Severity.HIGH, "GPU-a confidential_compute_devtools policy")
    ]


def test_twins_with_different_firmware_are_told_of() -> None:
    records = [
        sample(ts, uuid, vbios_version=f"96.00.{uuid[-1]}")
        for ts in seconds(0, 40, 5)
        for uuid in ("GPU-a", "GPU-b", "GPU-c")
    ]
    found = drive(make(), records)
    assert {(one.subject_kind, one.evidence["what"], one.score) for one in found} == {("host", "vbios_version", 3)}
    assert drive(make(), [sample(ts, uuid) for ts in seconds(0, 40, 5) for uuid in ("GPU-a", "GPU-b")]) == []


def test_a_gpu_that_does_not_answer_proves_nothing() -> None:
    detector = make()
    assert drive(detector, [gpu(0.0, state="lost", posture=USUAL), gpu(1.0, posture={})]) == []
    assert detector.standing().state is DetectorState.STALE


@pytest.mark.parametrize(
    ("version", "floor", "old"),
    [
        ("1.17.7-1", "1.17.8", True),
        ("1.17.8-1", "1.17.8", False),
        ("1.18.0~rc.1-1", "1.17.8", False),
        ("590.48.01", "590.48.1", False),
        ("590", "590.0.1", True),
        ("unknown", "1.0", None),
    ],
)
def test_versions(version: str, floor: str, old: bool | None) -> None:
    assert below(version, floor) is old


@given(st.text(max_size=50), st.text(max_size=50))
def test_any_text_may_be_a_version(version: str, floor: str) -> None:
    assert below(version, floor) in {True, False, None}
    assert not below(version, version)


def test_the_toolkits_version_is_dpkgs(tmp_path: Path) -> None:
    status = tmp_path / "status"
    one = "Package: {}\nStatus: install ok {}\nArchitecture: amd64\nVersion: {}\nDescription: x\n\n"
    status.write_text(
        one.format("nvidia-container-toolkit-base", "installed", "1.0")
        + one.format("nvidia-container-toolkit", "installed", "1.17.7-1")
        + one.format("gone", "config-files", "2.0")
    )
    assert version_of("nvidia-container-toolkit", str(status)) == "1.17.7-1"
    assert version_of("gone", str(status)) is None
    assert version_of("never", str(status)) is None
    assert version_of("x", str(tmp_path / "absent")) is None
    status.write_text(one.format("first", "installed", "3.1"))
    assert version_of("first", str(status)) == "3.1"


def conformance() -> Case:
    records: list[Records] = [sample(float(ts), "GPU-a") for ts in range(0, 50, 5)]
    records += [sample(float(ts), "GPU-b", vbios_version="96.9") for ts in range(50, 100, 5)]
    records += [sample(float(ts), "GPU-b", ecc_mode="disabled") for ts in range(100, 200, 5)]

    def flood(n: int) -> list[Records]:
        return [sample(20.0 * i, f"GPU-{i}") for i in range(n)]

    return Case(DETECTOR, Params(), records, Params(), flood)
