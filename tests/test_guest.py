from __future__ import annotations

from typing import Any

import pytest

from mlsecd import guest
from mlsecd.engines.hold import Ordered
from mlsecd.kernels import cpu
from mlsecd.kernels.polite import GpuState, Limits, Polite
from mlsecd.kernels.work import WORK
from mlsecd.meters import Meters
from mlsecd.records import GpuSample

GIB = 1 << 30


def sample(**change: Any) -> GpuSample:
    plain: dict[str, Any] = {
        "ts": 5.0, "gpu": "GPU-a", "host": "here", "utilization": 0.1, "memory_used_bytes": 10 * GIB,
        "memory_total_bytes": 40 * GIB, "memory_reserved_bytes": GIB, "posture": {"mig_mode": "disabled"},
    }  # fmt: skip
    return GpuSample(**plain | change)


class Noted(Polite):
    def __init__(self) -> None:
        super().__init__(cpu, lambda _uuid: None, WORK, limits=Limits(), told=lambda *_: None)
        self.heard: list[GpuState] = []

    def note(self, gpu: GpuState) -> None:
        self.heard.append(gpu)


def test_the_backend_hears_of_this_hosts_own_gpus() -> None:
    backend = Noted()
    others = [sample(), sample(host="elsewhere"), sample(synthetic=True), sample(host="", gpu="GPU-b", state="lost")]
    guest.note(backend, Ordered(None, [*others]), "here")
    assert [(one.uuid, one.state, one.free_bytes, one.mig_mode, one.compute_mode) for one in backend.heard] == [
        ("GPU-a", "ok", 29 * GIB, "disabled", None), ("GPU-b", "lost", 29 * GIB, "disabled", None),
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["memory_used_bytes", "memory_total_bytes"])
def test_memory_that_is_not_known_is_not_free(missing: str) -> None:
    backend = Noted()
    guest.note(backend, Ordered(None, [sample(**{missing: None})]), "here")
    assert backend.heard[0].free_bytes is None


def test_a_backend_without_a_gpu_hears_nothing() -> None:
    guest.note(cpu, Ordered(None, [sample()]), "here")


def test_every_move_is_counted() -> None:
    meters = Meters()
    told = guest.teller(meters)
    assert meters.value("mlsecd_kernels_on_gpu") == 0.0
    told("cuda", "free")
    assert meters.value("mlsecd_kernels_on_gpu") == 1.0
    told("cpu", "failed: CudaAPIError")
    told("cpu", "failed: TimeoutError")
    assert meters.value("mlsecd_kernels_on_gpu") == 0.0
    assert meters.value("mlsecd_kernel_switches_total", to="cuda", reason="free") == 1.0
    assert meters.value("mlsecd_kernel_switches_total", to="cpu", reason="failed") == 2.0
