"""Errors that a GPU reports, read for what an attacker may have to do with them, and told once each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._gpu_processes import printable
from mlsecd.detectors._gpu_table import GpuTable
from mlsecd.detectors._rates import Growth
from mlsecd.detectors._told import Told
from mlsecd.detectors._xid_table import APPLICATION, CONSEQUENCE, meaning
from mlsecd.detectors.base import Maturity
from mlsecd.records import Finding, GpuSample, Severity

__all__ = ["DETECTOR", "GpuHealth", "Params"]

_XIDS_MAX: Final = 64  # kinds of Xid of one GPU that are counted
_SHOWN_MAX: Final = 8
_SOLO_SECONDS: Final = 60.0
_NEVER: Final = float("-inf")
# NVML's clocks event reasons. Power capping (0x4) and idle (0x1) are ordinary.
_THROTTLES: Final = {
    0x08: ("hw_slowdown", Severity.MEDIUM, "hardware slows it down"),
    0x40: ("hw_thermal", Severity.MEDIUM, "it is too hot, and hardware slows it down"),
    0x80: ("power_brake", Severity.MEDIUM, "the power supply asked for less"),
    0x20: ("sw_thermal", Severity.LOW, "it is hot, and the driver slows it down"),
}
_RECOVERY: Final = {1: "a reset", 2: "a reboot", 3: "to be drained", 4: "to be drained and reset", 6: "a bus reset"}

_Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Params(base.Params, frozen=True):
    """From which rate on an error is more than one of many."""

    faults_an_hour: Annotated[
        _Count, Meta(description="Xids of one kind that are an application's fault (13, 31, 43, 45, ...)")
    ] = 20
    corrected_an_hour: Annotated[_Count, Meta(description="corrected memory errors")] = 100
    remapped_an_hour: Annotated[_Count, Meta(description="memory rows that are replaced")] = 2
    link_errors_an_hour: Annotated[_Count, Meta(description="NVLink CRC errors, replays and recoveries")] = 100
    throttled_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="for how long a GPU must be slowed down by heat or a failing supply")
    ] = 120.0
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 300.0


@dataclass(slots=True)
class _Gpu:
    """One GPU's counters."""

    last_ts: float = _NEVER
    xids: dict[int, Growth] = field(default_factory=dict)
    xid_ts: float = _NEVER  # the latest that was none of CONSEQUENCE
    growth: dict[str, Growth] = field(default_factory=dict)
    throttled: dict[str, float] = field(default_factory=dict)  # since when
    told: Told = field(default_factory=Told)


@dataclass(frozen=True, slots=True)
class _Case:
    """One thing to tell."""

    kind: str
    severity: Severity
    reason: str
    score: float
    threshold: float
    note: str = ""


class GpuHealth(GpuTable[_Gpu]):
    """Counts by the hour, so that a storm of one error is one finding; a level that stays is repeated, not counted."""

    name = "gpu_health"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0029", "AML.T0010.000", "AML.T0031")
    owasp = ()
    summary = "A GPU reports errors: an Xid, memory errors, remapped rows, NVLink errors, heat, or it asks for a reset."
    action = (
        "See evidence.kind. Application faults that repeat: find the workload that crashes, and whether somebody feeds "
        "it malformed input. Corrected errors in a burst: look who shares the GPU (GPUHammer) and keep ECC on. "
        "Hardware: drain, save nvidia-bug-report.sh, reset, and return the board if it comes back."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Xids come by NVML's events: those before the daemon's start, and those it dropped, are not seen.",
        "NVML does not say which process an Xid was of; evidence lists who was on the GPU.",
        "With ECC off there is nothing to count, and bit flips are silent.",
        "Counters are since the driver's load: what happened before, and while it was reloaded, is not a rate.",
        "A slow attack below the rates looks like age.",
    )
    Params = Params
    State = _Gpu

    def sample(self, gpu: _Gpu, sample: GpuSample) -> list[Finding]:
        """Fold one sample."""
        if sample.ts < gpu.last_ts:
            gpu.throttled.clear()
            gpu.xid_ts = _NEVER
        gpu.last_ts = sample.ts
        cases = [*self._xids(gpu, sample)]
        if sample.state == "ok":
            cases += [*self._memory(gpu, sample), *self._links(gpu, sample), *self._heat(gpu, sample)]
        return [self._report(sample, one) for one in cases if self._due(gpu, sample, one)]

    def _due(self, gpu: _Gpu, sample: GpuSample, case: _Case) -> bool:
        return gpu.told.due(f"{case.kind} {case.severity}", sample.ts, self.params.repeat_seconds)

    def _xids(self, gpu: _Gpu, sample: GpuSample) -> Iterator[_Case]:
        for event in sample.xid:
            code = event.xid
            if code == CONSEQUENCE and event.ts - gpu.xid_ts <= _SOLO_SECONDS:
                continue
            if code != CONSEQUENCE:
                gpu.xid_ts = event.ts
            if code not in gpu.xids and len(gpu.xids) >= _XIDS_MAX:
                continue
            count = gpu.xids.setdefault(code, Growth()).add(sample.ts)
            if code in APPLICATION:
                yield from self._fault(sample, code, count)
                continue
            one = meaning(code)
            times = f", {count} times within the hour" if count > 1 else ""
            yield _Case(f"xid {code}", one.severity, f"Xid {code}: {one.text}{times}", count, 1, one.note)

    def _fault(self, sample: GpuSample, code: int, count: int) -> Iterator[_Case]:
        """An application's fault: one says nothing, many say that somebody's input or kernel crashes it."""
        limit = self.params.faults_an_hour
        if count < limit:
            return
        who = len(sample.processes or ())
        reason = f"Xid {code} came {count} times within the hour: {APPLICATION[code]}; {who} processes are on the GPU"
        note = "repeated faults of one workload are a broken kernel, or somebody who probes the server until it breaks"
        yield _Case(f"xid {code}", Severity.MEDIUM, reason, count, limit, note)

    def _memory(self, gpu: _Gpu, sample: GpuSample) -> Iterator[_Case]:
        note = "GPUHammer flips bits this way: the model's answers go wrong, and nothing crashes"
        corrected = self._grew(gpu, sample, "ecc_corrected", sample.ecc_corrected)
        limit = self.params.corrected_an_hour
        if corrected >= limit:
            reason = f"{corrected} memory errors were corrected within the hour"
            yield _Case("ecc_corrected", Severity.MEDIUM, reason, corrected, limit, note)
        uncorrected = self._grew(gpu, sample, "ecc_uncorrected", sample.ecc_uncorrected)
        if uncorrected:
            reason = f"{uncorrected} memory errors within the hour could not be corrected"
            yield _Case("ecc_uncorrected", Severity.HIGH, reason, uncorrected, 1, note)
        rows = [sample.remapped_rows_corrected, sample.remapped_rows_uncorrected]
        total = None if None in rows else sum(row for row in rows if row is not None)
        remapped = self._grew(gpu, sample, "remapped", total)
        if remapped >= self.params.remapped_an_hour:
            reason = f"{remapped} memory rows were replaced within the hour"
            yield _Case("remapped_rows", Severity.MEDIUM, reason, remapped, self.params.remapped_an_hour, note)
        if sample.remapped_rows_failure:
            yield _Case(
                "remap_failure", Severity.HIGH, "a memory row could not be replaced: the spares are used up", 1, 1
            )
        if sample.remapped_rows_pending:
            yield _Case("remap_pending", Severity.LOW, "a replaced memory row waits for a reset", 1, 1)

    def _links(self, gpu: _Gpu, sample: GpuSample) -> Iterator[_Case]:
        limit = self.params.link_errors_an_hour
        for name in ("nvlink_crc_errors", "nvlink_replays", "nvlink_recoveries"):
            grown = self._grew(gpu, sample, name, getattr(sample, name))
            if grown >= limit:
                yield _Case(name, Severity.LOW, f"{grown} {name.replace('_', ' ')} within the hour", grown, limit)
        if sample.recovery_action in _RECOVERY:
            what = _RECOVERY[sample.recovery_action]
            yield _Case(
                "recovery_action", Severity.MEDIUM, f"NVML says that it needs {what}", sample.recovery_action, 1
            )

    def _heat(self, gpu: _Gpu, sample: GpuSample) -> Iterator[_Case]:
        if sample.throttle_reasons is None:
            return
        for bit, (name, severity, text) in _THROTTLES.items():
            if not sample.throttle_reasons & bit:
                gpu.throttled.pop(name, None)
                continue
            lasted = sample.ts - gpu.throttled.setdefault(name, sample.ts)
            if lasted >= self.params.throttled_seconds:
                hot = "" if sample.temperature_celsius is None else f" at {sample.temperature_celsius:.0f} °C"
                reason = f"{text}, for {lasted:.0f} s{hot}"
                yield _Case(f"throttle {name}", severity, reason, lasted, self.params.throttled_seconds)

    @staticmethod
    def _grew(gpu: _Gpu, sample: GpuSample, name: str, value: int | None) -> int:
        return gpu.growth.setdefault(name, Growth()).take(sample.ts, value)

    def _report(self, sample: GpuSample, case: _Case) -> Finding:
        index = "" if sample.index is None else f"GPU {sample.index} "
        called = f"{index}{sample.gpu}" + (f" ({printable(sample.name, 64)})" if sample.name else "")
        holders = [
            {"pid": one.pid, "exe": None if one.exe is None else printable(one.exe)} for one in sample.processes or ()
        ]
        return self.finding(
            ts=sample.ts,
            subject_kind="gpu",
            subject=f"{sample.gpu} {case.kind}",
            severity=case.severity,
            score=case.score,
            threshold=case.threshold,
            reason=f"{called}: {case.reason}",
            evidence={
                "kind": case.kind,
                "gpu": sample.gpu,
                "host": sample.host,
                "note": case.note,
                "temperature_celsius": sample.temperature_celsius,
                "ecc_mode": sample.posture.get("ecc_mode"),
                "processes": holders[:_SHOWN_MAX],
            },
            synthetic=sample.synthetic,
        )


DETECTOR = GpuHealth
