"""mlsecd as a guest on the tenants' GPU: what the numeric backend hears of it, and what is told when it moves."""

from __future__ import annotations

from mlsecd import log
from mlsecd.engines.hold import Ordered
from mlsecd.kernels import Kernels
from mlsecd.kernels.polite import GpuState, Polite, Told
from mlsecd.meters import Meters
from mlsecd.records import GpuSample

__all__ = ["note", "teller"]


def teller(meters: Meters) -> Told:
    """What counts and logs each move of batches between CPU and GPU."""
    meters.gauge("mlsecd_kernels_on_gpu", 0.0)
    say = log.get()

    def told(backend: str, why: str) -> None:
        meters.gauge("mlsecd_kernels_on_gpu", float(backend == "cuda"))
        meters.count("mlsecd_kernel_switches_total", to=backend, reason=why.partition(":")[0])
        level = say.warning if why.startswith("failed") else say.debug if why == "time_budget" else say.info
        level("large batches moved", to=backend, why=why)

    return told


def note(kernels: Kernels, ordered: Ordered, host: str) -> None:
    """Hand this host's own GPU samples to a backend that asks for them; recorded and synthetic ones are no evidence."""
    if not isinstance(kernels, Polite):
        return
    for record in ordered.others:
        if isinstance(record, GpuSample) and not record.synthetic and record.host in {"", host}:
            kernels.note(_state(record))


def _state(sample: GpuSample) -> GpuState:
    known = sample.memory_total_bytes is not None and sample.memory_used_bytes is not None
    free = (sample.memory_total_bytes or 0) - (sample.memory_used_bytes or 0) - (sample.memory_reserved_bytes or 0)
    posture = sample.posture
    return GpuState(
        sample.gpu,
        sample.state,
        sample.utilization,
        free if known else None,
        posture.get("mig_mode"),
        posture.get("compute_mode"),
    )
