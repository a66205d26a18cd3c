"""GPU jobs too short for any sample, by the driver's accounting; and accounting that was cleared or switched off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._gpu_processes import as_state, gpu_key
from mlsecd.detectors.base import Detector, DetectorState, Maturity, Section, Standing
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuJob, GpuSample, Kind, Records, Severity
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "GpuShortJobs", "Params"]

_GPUS_MAX: Final = 256
_PIDS_MAX: Final = 4_096  # pids of one GPU whose last sighting is remembered
_JOBS_MAX: Final = 256  # unseen jobs of one GPU within the hour
_SHOWN_MAX: Final = 16
_SLACK_SECONDS: Final = 2.0  # a job's times are the driver's, a sample's are ours
_GAP_SECONDS: Final = 30.0  # a pid that no sample lists for so long is another process when it comes back
_HOUR: Final = 3_600.0
_NEVER: Final = float("-inf")
_ACTIONS: Final = {
    "unseen": "Look in the audit log or the journal for what ran at these times (evidence.jobs: pid, start, seconds). "
    "Health probes and one-off scripts are ordinary; a job that comes back all the time and that nobody knows is not.",
    "cleared": "Clearing accounting takes root and removes evidence. Find out who did it (sudo and shell history, "
    "journal at this time) unless the driver was reloaded or the GPU reset just now.",
    "off": "Switch it on: nvidia-smi --accounting-mode=1 (as root, at each boot). It costs nothing that NVIDIA knows "
    "of; without it a job that runs between two samples leaves no trace.",
}


class Params(base.Params, frozen=True):
    """When unseen jobs are more than a ticket."""

    jobs_an_hour: Annotated[
        int, Meta(ge=1, le=_JOBS_MAX, description="unseen jobs on one GPU within an hour that are a warning")
    ] = 10
    min_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="a job that was shorter is a probe (a library that looks for GPUs)")
    ] = 0.2
    report_off: Annotated[bool, Meta(description="whether accounting that was never on is told of, as information")] = (
        True
    )
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 300.0


@dataclass(slots=True)
class _Gpu:
    """One GPU's jobs."""

    first_ts: float = _NEVER
    last_ts: float = _NEVER
    shown: dict[int, tuple[float, float]] = field(default_factory=dict)  # pid: samples that listed it, first and last
    unseen: list[tuple[float, int, float, float]] = field(default_factory=list)  # told at, pid, start, seconds
    jobs: int = 0
    missed: int = 0
    accounted: int | None = None
    mode: str | None = None
    driver: str | None = None
    told: dict[str, float] = field(default_factory=dict)


class GpuShortJobs(Detector):
    """Holds what accounting remembers against what samples showed."""

    name = "gpu_short_jobs"
    consumes = frozenset({Kind.GPU})
    key = "gpu"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0112", "AML.T0048.000")
    owasp = ("LLM10:2025",)
    summary = (
        "GPU jobs ran and ended unseen between two samples, or the driver's accounting was cleared or switched off."
    )
    action = _ACTIONS["unseen"]
    blind_spots: ClassVar[tuple[str, ...]] = (
        "With accounting off, which is the driver's default, short jobs leave no trace; it is told of as information.",
        "Accounting knows a pid, times, memory and load, no program, user or command line.",
        "The driver forgets the oldest of some 4,000 processes, and all of them when it is unloaded.",
        "Accounting is not available in MIG mode.",
        "A job that reuses the pid of one listed in the last seconds of its life is taken for that one.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._gpus: Keyed[_Gpu] = Keyed(_GPUS_MAX, lambda _: _Gpu())

    def observe(self, records: Records) -> list[Finding]:
        """Fold one GPU sample."""
        if not isinstance(records, GpuSample):
            return []
        gpu = self._gpus.touch(gpu_key(records.host, records.gpu, synthetic=records.synthetic), records.ts)
        if gpu is None or records.state != "ok":
            return []
        if records.ts < gpu.last_ts:
            gpu.shown.clear()
            gpu.unseen.clear()
            gpu.told.clear()
            gpu.first_ts = records.ts
        gpu.first_ts = records.ts if gpu.first_ts == _NEVER else gpu.first_ts
        gpu.last_ts = records.ts
        for process in records.processes or ():
            first, last = gpu.shown.pop(process.pid, (records.ts, records.ts))
            gpu.shown[process.pid] = (first if records.ts - last <= _GAP_SECONDS else records.ts, records.ts)
        while len(gpu.shown) > _PIDS_MAX:
            del gpu.shown[next(iter(gpu.shown))]
        return [*self._mode(gpu, records), *self._count(gpu, records), *self._jobs(gpu, records)]

    def _mode(self, gpu: _Gpu, sample: GpuSample) -> list[Finding]:
        mode, before = sample.posture.get("accounting_mode"), gpu.mode
        gpu.mode = mode or before
        if mode != "disabled" or sample.posture.get("mig_mode") == "enabled":
            gpu.told.pop("off", None)
            return []
        was_on = before == "enabled" or gpu.told.get("off", 0.0) < 0  # a negative time marks one that was on
        if not (was_on or self.params.report_off):
            return []
        last = gpu.told.get("off")
        if last is not None and before == "disabled" and sample.ts - abs(last) < self.params.repeat_seconds:
            return []
        gpu.told["off"] = -sample.ts if was_on else sample.ts
        gpu.accounted = None
        said = "was switched off" if was_on else "is off"
        return [
            self._report(
                sample,
                "off",
                Severity.MEDIUM if was_on else Severity.INFO,
                f"accounting of {sample.gpu} {said}: jobs that run between two samples leave no trace",
                (1.0, 1.0),
                {},
            )
        ]

    def _count(self, gpu: _Gpu, sample: GpuSample) -> list[Finding]:
        if sample.accounted is None:
            return []
        before, gpu.accounted = gpu.accounted, sample.accounted
        driver, gpu.driver = gpu.driver, sample.posture.get("driver_version")
        if before is None or sample.accounted >= before or driver != gpu.driver:
            return []
        reason = f"accounting of {sample.gpu} was cleared: it remembers {sample.accounted} processes, after {before}"
        evidence = {"before": before, "after": sample.accounted}
        return [self._report(sample, "cleared", Severity.MEDIUM, reason, (before - sample.accounted, 0.0), evidence)]

    def _jobs(self, gpu: _Gpu, sample: GpuSample) -> list[Finding]:
        fresh = [job for job in sample.jobs if self._unseen(gpu, job)]
        gpu.jobs += len(sample.jobs)
        gpu.missed += len(fresh)
        gpu.unseen += [(sample.ts, job.pid, job.start_ts, job.seconds) for job in fresh]
        gpu.unseen = [one for one in gpu.unseen if sample.ts - one[0] <= _HOUR][-_JOBS_MAX:]
        if not fresh:
            return []
        count, limit = len(gpu.unseen), self.params.jobs_an_hour
        total = sum(seconds for *_, seconds in gpu.unseen)
        jobs = [{"pid": pid, "start_ts": start, "seconds": length} for _, pid, start, length in gpu.unseen]
        reason = (
            f"{count} {'jobs' if count > 1 else 'job'} on {sample.gpu}, {total:.1f} s in all, ended within the last "
            "hour and no sample ever showed them"
        )
        severity = Severity.MEDIUM if count >= limit else Severity.LOW
        evidence = {"jobs": jobs[-_SHOWN_MAX:], "count": count}
        return [self._report(sample, "unseen", severity, reason, (count, limit), evidence)]

    def _unseen(self, gpu: _Gpu, job: GpuJob) -> bool:
        end = job.start_ts + job.seconds
        if job.seconds < self.params.min_seconds or job.start_ts < gpu.first_ts - _SLACK_SECONDS:
            return False  # it may have been seen before we began
        shown = gpu.shown.get(job.pid)
        return shown is None or shown[0] > end + _SLACK_SECONDS or shown[1] < job.start_ts - _SLACK_SECONDS

    def _report(  # noqa: PLR0913, PLR0917 - what was measured
        self,
        sample: GpuSample,
        kind: str,
        severity: Severity,
        reason: str,
        measured: tuple[float, float],
        evidence: dict[str, Any],
    ) -> Finding:
        return self.finding(
            ts=sample.ts,
            subject_kind="gpu",
            subject=f"{sample.gpu} accounting {kind}",
            severity=severity,
            score=measured[0],
            threshold=measured[1],
            reason=reason,
            action=_ACTIONS[kind],
            evidence={"kind": kind, "host": sample.host, "gpu": sample.gpu, **evidence},
            synthetic=sample.synthetic,
        )

    def standing(self) -> Standing:
        """Armed where accounting is on for every GPU; off, and why, where it is on for none."""
        gpus = [gpu for _, gpu in self._gpus.items()]
        on = sum(gpu.accounted is not None for gpu in gpus)
        gauges = {
            "gpus": float(len(gpus)),
            "accounting_gpus": float(on),
            "jobs": float(sum(gpu.jobs for gpu in gpus)),
            "unseen_jobs": float(sum(gpu.missed for gpu in gpus)),
            "refused": float(self._gpus.refused),
        }
        if not gpus:
            return Standing(DetectorState.STALE, "blind: no GPU sample yet", gauges)
        if not on:
            return Standing(DetectorState.OFF, "blind: the driver's accounting is off (nvidia-smi -am 1)", gauges)
        why = "" if on == len(gpus) else f"accounting is off on {len(gpus) - on} of {len(gpus)} GPUs"
        return Standing(DetectorState.ARMED, why, gauges)

    def snapshot(self) -> bytes:
        """Every GPU's state."""
        return pack(self.version, self._gpus.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._gpus.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Gpu]]))


DETECTOR = GpuShortJobs
