"""Politeness from end to end: a driver's stand-in, the real child process, and a backend that gives way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing

from mlsecd import guest
from mlsecd.engines.hold import Ordered
from mlsecd.errors import SourceError
from mlsecd.kernels import cpu
from mlsecd.kernels.polite import Limits, Polite
from mlsecd.kernels.work import WORK
from mlsecd.meters import Meters
from mlsecd.records import GpuSample
from mlsecd.sources.nvml import Nvml, NvmlParams
from tests.fakenvml import FakeNvml, build
from tests.kernels import batches

PATIENCE = 30.0  # seconds; the machine that tests may be busy
GIB = 1 << 30
IDLE = {"utilization": "3 1", "memory": f"{80 * GIB} {GIB // 2} {4 * GIB}", "mig_mode": "0 0", "compute_mode": "0"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fakenvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """One idle H100, driven by its state file."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("FAKENVML_STATE", str(tmp_path / "state.txt"))
    made = FakeNvml(tmp_path / "state.txt", "h100")
    made.set(0, **IDLE)
    return made


class Host:
    """A GPU as NVML tells of it, and kernels that would run on it: the CPU's own, counted."""

    def __init__(self, source: Nvml) -> None:
        self.source = source
        self.now = 0.0
        self.launched = 0
        self.opened: list[str] = []
        self.meters = Meters()
        self.kernels = Polite(
            cpu, self.open, WORK, limits=Limits(least_work=0.0, seconds_per_second=1.0),
            told=guest.teller(self.meters), clock=lambda: self.now, start=lambda warm: warm(),
        )  # fmt: skip

    def open(self, uuid: str) -> Any:
        self.opened.append(uuid)
        return SimpleNamespace(histograms=self.histograms)

    def histograms(self, values: Any, edges: Any) -> Any:
        self.launched += 1
        return cpu.histograms(values, edges)

    def sees(self, holds: Callable[[GpuSample], bool]) -> None:
        """Poll until the driver's stand-in says what is wanted, and hand that sample on as the daemon does."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            try:
                records = self.source.poll(time.monotonic() + PATIENCE).records
            except SourceError:
                continue
            found = [one for one in records if isinstance(one, GpuSample) and holds(one)]
            if found:
                self.now += 1.0
                guest.note(self.kernels, Ordered(None, [*found]), "")
                return
            time.sleep(0.05)
        raise AssertionError("NVML never said so")

    def scores(self) -> bool:
        """Score a batch, rightly; whether the GPU did it."""
        before = self.launched
        values, _, edges = batches.feature_case(1, 50, 10, 33)
        assert self.kernels.histograms(values, edges).tolist() == batches.histogram_oracle(values, edges).tolist()
        return self.launched > before

    def switches(self, to: str, why: str) -> float:
        return self.meters.value("mlsecd_kernel_switches_total", to=to, reason=why) or 0.0


@pytest.fixture
def host(fake: FakeNvml) -> Iterator[Host]:
    source = Nvml(NvmlParams(deadline_seconds=10.0, restart_seconds=0.05, posture_seconds=1.0), Meters())
    yield Host(source)
    source.close()


def idle(gpu: GpuSample) -> bool:
    free = gpu.utilization == 0.03 and gpu.memory_used_bytes == 4 * GIB and gpu.state == "ok"
    return free and (gpu.posture["mig_mode"], gpu.posture["compute_mode"]) == ("disabled", "default")


@pytest.mark.parametrize(("change", "shown", "why"), [
    ({"utilization": "90 5"}, lambda gpu: gpu.utilization == 0.9, "busy"),
    ({"memory": f"{80 * GIB} {GIB // 2} {78 * GIB}"}, lambda gpu: gpu.memory_used_bytes == 78 * GIB, "memory"),
    ({"mig_mode": "1 1"}, lambda gpu: gpu.posture.get("mig_mode") == "enabled", "mig"),
    ({"compute_mode": "3"}, lambda gpu: gpu.posture.get("compute_mode") == "exclusive_process", "exclusive_mode"),
    ({"utilization": "NOT_SUPPORTED"}, lambda gpu: gpu.utilization is None, "unknown_load"),
    ({"state": "lost"}, lambda gpu: gpu.state == "lost", "gpu_lost"),
    ({"state": "reset_required"}, lambda gpu: gpu.state == "reset_required", "gpu_reset_required"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_it_gives_way_to_the_tenants_and_comes_back(
    fake: FakeNvml, host: Host, change: dict[str, str], shown: Callable[[GpuSample], bool], why: str
) -> None:
    """Each time with a metric and a line of the log, and no batch is lost on the way."""
    assert not host.scores()  # nothing is known yet: the driver is left alone
    assert not host.opened
    host.sees(idle)
    with structlog.testing.capture_logs() as lines:
        host.meters = Meters()
        host.kernels._told = guest.teller(host.meters)
        assert host.scores()
        assert host.opened == fake.uuids
        assert host.meters.value("mlsecd_kernels_on_gpu") == 1.0
        fake.set(0, **change)
        host.sees(shown)
        assert not host.scores()
        assert host.meters.value("mlsecd_kernels_on_gpu") == 0.0
        fake.set(0, **IDLE, state="ok")
        host.sees(idle)
        for _ in range(4):  # a busy GPU is left alone for a minute, and no longer for the batches that come meanwhile
            host.now += 10.0
            host.sees(idle)
            assert host.scores() == (why not in {"busy", "memory"})
        host.now += 15.0
        host.sees(idle)
        assert host.scores()
    assert [(host.switches(*move)) for move in (("cuda", "free"), ("cpu", why))] == [2.0, 1.0]
    told = [(line["to"], line["why"]) for line in lines if line["event"] == "large batches moved"]
    assert told == [("cuda", "free"), ("cpu", why), ("cuda", "free")]


@pytest.mark.parametrize(("change", "why"), [
    ({"utilization": "90 5"}, "busy"), ({"mig_mode": "1 1"}, "mig"), ({"compute_mode": "2"}, "exclusive_mode"),
    ({"memory": f"{4 * GIB} 0 {2 * GIB}"}, "memory"),
])  # fmt: skip
def test_a_gpu_that_is_taken_is_never_opened(fake: FakeNvml, host: Host, change: dict[str, str], why: str) -> None:
    """Free memory must hold a context, our arrays, and 2 GiB that stay the tenants'."""
    fake.set(0, **change)
    host.sees(lambda gpu: not idle(gpu))
    assert not host.scores()
    assert not host.opened
    assert host.kernels._choose(host.now) == why
