from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from gpu_drive import drive, gpu, seconds
from support import Case

from mlsecd import kernels
from mlsecd.detectors.base import DetectorState
from mlsecd.detectors.gpu_hidden_memory import DETECTOR, GpuHiddenMemory, Params
from mlsecd.meters import Meters
from mlsecd.records import GpuProcess, GpuSample, Records, Severity
from mlsecd.sources.nvml import Nvml, NvmlParams
from tests.fakenvml import PROFILES, FakeNvml, build

GIB = 1 << 30


def make(**params: Any) -> GpuHiddenMemory:
    return DETECTOR(Params(**params), kernels)


def sample(ts: float, used: float, **fields: Any) -> GpuSample:
    known = {"memory_reserved_bytes": 500 << 20, "memory_total_bytes": 80 * GIB, **fields}
    return gpu(ts, known.pop("pids", (100,)), memory_used_bytes=round(used * GIB), **known)


def test_memory_of_nobody_is_told_of_once_it_lasts() -> None:
    found = drive(make(), [sample(ts, 1.02 if ts < 20 else 5.02) for ts in seconds(0, 240)])
    assert [one.ts for one in found] == [140.0, 200.0]
    assert (found[0].severity, found[0].subject) == (Severity.MEDIUM, "GPU-a")
    assert found[0].reason == "4.0 GiB of GPU-a have been in use for 120 s that none of 1 listed process accounts for"


@pytest.mark.parametrize(
    "fields",
    [
        {"used": 1.5},  # contexts
        {"used": 5, "memory_reserved_bytes": None},  # version 1: the reserve is in it
        {"used": 5, "pids": None},
        {"used": 5, "posture": {"mig_mode": "enabled"}},
        {"used": 5, "state": "reset_required"},
    ],
)
def test_what_is_not_judged_or_too_little(fields: dict[str, Any]) -> None:
    assert drive(make(), [sample(ts, **fields) for ts in seconds(0, 240)]) == []


def test_a_process_whose_memory_is_not_told_makes_it_blind() -> None:
    detector = make()
    untold = (GpuProcess(pid=1, used_memory_bytes=None),)
    records = [
        GpuSample(ts=ts, gpu="GPU-a", memory_used_bytes=9 * GIB, memory_reserved_bytes=0, processes=untold)
        for ts in seconds(0, 240)
    ]
    assert drive(detector, records) == []
    assert detector.standing().state is DetectorState.OFF


def test_memory_that_is_freed_for_a_moment_begins_anew() -> None:
    assert drive(make(), [sample(ts, 1.0 if ts % 100 == 99 else 9.0) for ts in seconds(0, 400)]) == []


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fakenvml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_real_gpus_account_for_their_memory_and_a_hidden_miner_does_not(
    profile: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured GPUs idle and at work, through the real binding; then the same with one process left out."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("FAKENVML_STATE", str(tmp_path / "state.txt"))
    fake = FakeNvml(tmp_path / "state.txt", profile)
    source = Nvml(NvmlParams(), Meters())
    try:
        honest = source.poll(time.monotonic() + 20).records
        for at in range(len(fake.gpus)):
            fake.set(at, memory=" ".join(map(str, _more(fake.gpus[at].values["memory"]))))
        time.sleep(0.02)
        hiding = source.poll(time.monotonic() + 20).records
    finally:
        source.close()
    detector = make(sustained_seconds=0)
    assert [found for one in honest for found in detector.observe(one)] == []
    judged = detector.standing().gauges["judged_gpus"]
    assert judged or profile not in {"h100", "a100", "b200"}
    assert len([found for one in hiding for found in detector.observe(one)]) == judged


def _more(memory: str) -> tuple[int, int, int]:
    total, reserved, used = map(int, memory.split())
    return total, reserved, used + 4 * GIB


def conformance() -> Case:
    records: list[Records] = [sample(ts, 1.02 if ts < 20 else 5.02) for ts in seconds(0, 240)]
    return Case(
        DETECTOR, Params(), records, Params(), lambda n: [sample(20.0 * i, 9, uuid=f"GPU-{i}") for i in range(n)]
    )
