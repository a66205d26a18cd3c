"""GPU memory in use that no listed process accounts for: a process may hide from NVML's list, its memory cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._gpu_table import GpuTable
from mlsecd.detectors.base import DetectorState, Maturity, Standing
from mlsecd.records import Finding, GpuSample, Severity

__all__ = ["DETECTOR", "GpuHiddenMemory", "Params"]

_GAP_SECONDS: Final = 60.0
_NEVER: Final = float("-inf")


class Params(base.Params, frozen=True):
    """How much may be unaccounted for."""

    min_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 45, description="unaccounted memory that is of interest, bytes")
    ] = 768 << 20
    sustained_seconds: Annotated[float, Meta(ge=0, le=86_400, description="for how long, without a break")] = 120.0
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 60.0


@dataclass(slots=True)
class _Gpu:
    """One GPU's unaccounted memory."""

    last_ts: float = _NEVER
    since: float = _NEVER  # -inf: it is within the limit
    least: int = 0  # the least since then
    emitted_ts: float = _NEVER
    judged: bool = False  # the latest sample could be judged


class GpuHiddenMemory(GpuTable[_Gpu]):
    """Memory in use, less what the driver reserves, less what NVML says of each process."""

    name = "gpu_hidden_memory"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0112", "AML.T0048.000")
    owasp = ("LLM10:2025",)
    summary = "GPU memory is in use that belongs to no process NVML lists."
    action = (
        "Compare nvidia-smi's processes with its memory, then fuser -v /dev/nvidia*. Memory that a dead process left "
        "behind goes with its children or a GPU reset; if nothing explains it, a process hides from the driver's list."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Less than min_bytes is never told of: what contexts and the driver keep differs by model and driver.",
        "Where NVML does not tell a process's memory (other containers, graphics, some drivers) nothing is judged.",
        "In MIG mode, and with drivers that do not tell their reserve apart, nothing is judged.",
        "A process that hides inside an allowed one shares its entry.",
    )
    Params = Params
    State = _Gpu

    def sample(self, gpu: _Gpu, sample: GpuSample) -> list[Finding]:
        """Fold one sample."""
        if not 0 <= sample.ts - gpu.last_ts <= _GAP_SECONDS:
            gpu.since = _NEVER
        if sample.ts < gpu.last_ts:
            gpu.emitted_ts = _NEVER
        gpu.last_ts = sample.ts
        hidden = _unaccounted(sample)
        gpu.judged = hidden is not None
        if hidden is None or hidden < self.params.min_bytes:
            gpu.since = _NEVER
            return []
        if gpu.since == _NEVER:
            gpu.since, gpu.least = sample.ts, hidden
        gpu.least = min(gpu.least, hidden)
        lasted = sample.ts - gpu.since
        due = sample.ts - gpu.emitted_ts >= self.params.repeat_seconds
        if lasted < self.params.sustained_seconds or not due:
            return []
        gpu.emitted_ts = sample.ts
        return [self._report(gpu, sample, lasted)]

    def _report(self, gpu: _Gpu, sample: GpuSample, lasted: float) -> Finding:
        count = len(sample.processes or ())
        return self.finding(
            ts=sample.ts,
            subject_kind="gpu",
            subject=sample.gpu,
            severity=Severity.MEDIUM,
            score=gpu.least,
            threshold=self.params.min_bytes,
            reason=f"{gpu.least / 2**30:.1f} GiB of {sample.gpu} have been in use for {lasted:.0f} s that none of "
            f"{count} listed {'process' if count == 1 else 'processes'} accounts for",
            evidence={
                "gpu": sample.gpu,
                "host": sample.host,
                "unaccounted_bytes": gpu.least,
                "memory_used_bytes": sample.memory_used_bytes,
                "processes": count,
                "since_ts": gpu.since,
                "utilization": sample.utilization,
                "power_watts": sample.power_watts,
            },
            synthetic=sample.synthetic,
        )

    def judge(self, gpus: list[_Gpu], gauges: dict[str, float]) -> Standing:
        """Armed where NVML tells enough of any GPU."""
        judged = sum(gpu.judged for gpu in gpus)
        gauges = {**gauges, "judged_gpus": float(judged)}
        if not judged:
            return Standing(DetectorState.OFF, "blind: NVML does not tell the memory of processes here", gauges)
        why = "" if judged == len(gpus) else f"{len(gpus) - judged} of {len(gpus)} GPUs do not tell enough"
        return Standing(DetectorState.ARMED, why, gauges)


def _unaccounted(sample: GpuSample) -> int | None:
    """Bytes in use that no process accounts for; None where that cannot be said."""
    if sample.state != "ok" or sample.posture.get("mig_mode") == "enabled":
        return None
    if sample.memory_used_bytes is None or sample.memory_reserved_bytes is None or sample.processes is None:
        return None
    used = [process.used_memory_bytes for process in sample.processes]
    if None in used:
        return None
    return max(0, sample.memory_used_bytes - sum(one for one in used if one is not None))


DETECTOR = GpuHiddenMemory
