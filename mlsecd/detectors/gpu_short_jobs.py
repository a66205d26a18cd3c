"""GPU jobs too short for any sample, by the driver's accounting; and accounting that was cleared or switched off."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._gpu_processes import as_state
from mlsecd.detectors._gpu_table import GpuTable
from mlsecd.detectors._recent_processes import Past
from mlsecd.detectors.base import DetectorState, Maturity, Section, Standing
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuJob, GpuSample, Kind, ProcessTable, Records, Severity
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "GpuShortJobs", "Params"]

_HOSTS_MAX: Final = 64
_NAMES_MAX: Final = 4
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
class _Job:
    """One job that no sample showed, and who it was where a process table caught it."""

    told_ts: float
    pid: int
    start_ts: float
    seconds: float
    exe: str | None = None
    uid: int | None = None
    unit: str | None = None
    seen_ts: float | None = None  # the last table that showed it

    def shown(self) -> dict[str, Any]:
        """For evidence; null is "not known"."""
        return {name: getattr(self, name) for name in ("pid", "start_ts", "seconds", "exe", "uid", "unit", "seen_ts")}


@dataclass(slots=True)
class _Gpu:
    """One GPU's jobs."""

    first_ts: float = _NEVER
    last_ts: float = _NEVER
    shown: dict[int, tuple[float, float]] = field(default_factory=dict)  # pid: samples that listed it, first and last
    unseen: list[_Job] = field(default_factory=list)
    jobs: int = 0
    missed: int = 0
    unnamed: int = 0
    accounted: int | None = None
    mode: str | None = None
    driver: str | None = None
    told: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Held:
    """What a snapshot holds."""

    gpus: list[tuple[str, int, _Gpu]]
    hosts: list[tuple[str, int, Past]]


class GpuShortJobs(GpuTable[_Gpu]):
    """Holds what accounting remembers against what samples showed, and asks recent process tables who it was."""

    name = "gpu_short_jobs"
    version = 2
    consumes = frozenset({Kind.GPU, Kind.PROCESS})
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0112", "AML.T0048.000")
    owasp = ("LLM10:2025",)
    summary = (
        "GPU jobs ran and ended unseen between two samples, or the driver's accounting was cleared or switched off."
    )
    action = _ACTIONS["unseen"]
    blind_spots: ClassVar[tuple[str, ...]] = (
        "With accounting off, which is the driver's default, short jobs leave no trace; it is told of as information.",
        "Accounting knows a pid and times. Names come from process tables, five seconds apart by default.",
        "A job whose process lived between two process tables stays unknown; the finding says so.",
        "The driver forgets the oldest of some 4,000 processes, and all of them when it is unloaded.",
        "Accounting is not available in MIG mode.",
        "A job that reuses the pid of one listed in the last seconds of its life is taken for that one.",
    )
    Params = Params
    State = _Gpu

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._hosts: Keyed[Past] = Keyed(_HOSTS_MAX, lambda _: Past())

    def observe(self, records: Records) -> list[Finding]:
        """Fold one GPU sample, or one process table for who was there."""
        if isinstance(records, ProcessTable):
            past = self._hosts.touch(_host_key(records), records.ts)
            if past is not None:
                past.take(records)
            return []
        return super().observe(records)

    def sample(self, gpu: _Gpu, sample: GpuSample) -> list[Finding]:
        """Fold one sample."""
        if sample.state != "ok":
            return []
        if sample.ts < gpu.last_ts:
            gpu.shown.clear()
            gpu.unseen.clear()
            gpu.told.clear()
            gpu.first_ts = sample.ts
        gpu.first_ts = sample.ts if gpu.first_ts == _NEVER else gpu.first_ts
        gpu.last_ts = sample.ts
        for process in sample.processes or ():
            first, last = gpu.shown.pop(process.pid, (sample.ts, sample.ts))
            gpu.shown[process.pid] = (first if sample.ts - last <= _GAP_SECONDS else sample.ts, sample.ts)
        while len(gpu.shown) > _PIDS_MAX:
            del gpu.shown[next(iter(gpu.shown))]
        return [*self._mode(gpu, sample), *self._count(gpu, sample), *self._jobs(gpu, sample)]

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
        gpu.unseen += [self._named(sample, job) for job in fresh]
        gpu.unnamed += sum(one.exe is None for one in gpu.unseen[len(gpu.unseen) - len(fresh) :])
        gpu.unseen = [one for one in gpu.unseen if sample.ts - one.told_ts <= _HOUR][-_JOBS_MAX:]
        if not fresh:
            return []
        count, limit = len(gpu.unseen), self.params.jobs_an_hour
        total = sum(one.seconds for one in gpu.unseen)
        reason = (
            f"{count} {'jobs' if count > 1 else 'job'} on {sample.gpu}, {total:.1f} s in all, ended within the last "
            f"hour and no sample ever showed them: {_names(gpu.unseen)}"
        )
        severity = Severity.MEDIUM if count >= limit else Severity.LOW
        evidence = {"jobs": [one.shown() for one in gpu.unseen[-_SHOWN_MAX:]], "count": count}
        return [self._report(sample, "unseen", severity, reason, (count, limit), evidence)]

    def _named(self, sample: GpuSample, job: GpuJob) -> _Job:
        """With whoever a process table showed under its number at the time."""
        past = self._hosts.peek(_host_key(sample))
        who = None if past is None else past.who(job.pid, job.start_ts, job.start_ts + job.seconds)
        made = _Job(sample.ts, job.pid, job.start_ts, job.seconds)
        if who is not None:
            made.exe, made.uid, made.unit, made.seen_ts = who.exe, who.uid, who.unit, who.last_ts
        return made

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

    def judge(self, gpus: list[_Gpu], gauges: dict[str, float]) -> Standing:
        """Armed where accounting is on for every GPU; off, and why, where it is on for none."""
        on = sum(gpu.accounted is not None for gpu in gpus)
        gauges = {
            **gauges,
            "accounting_gpus": float(on),
            "jobs": float(sum(gpu.jobs for gpu in gpus)),
            "unseen_jobs": float(sum(gpu.missed for gpu in gpus)),
            "unnamed_jobs": float(sum(gpu.unnamed for gpu in gpus)),
        }
        if not on:
            return Standing(DetectorState.OFF, "blind: the driver's accounting is off (nvidia-smi -am 1)", gauges)
        why = "" if on == len(gpus) else f"accounting is off on {len(gpus) - on} of {len(gpus)} GPUs"
        return Standing(DetectorState.ARMED, why, gauges)

    def snapshot(self) -> bytes:
        """Every GPU's state, and every host's recent processes."""
        return pack(self.version, _Held(self._gpus.dump(), self._hosts.dump()))

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        held = as_state(unpack(self.version, blob), _Held)
        self._gpus.load(held.gpus)
        self._hosts.load(held.hosts)


def _host_key(records: GpuSample | ProcessTable) -> str:
    return f"{records.host}\0{int(records.synthetic)}"


def _names(jobs: list[_Job]) -> str:
    """Which programs they were, the commonest first, and how many are not known."""
    known = Counter(one.exe for one in jobs if one.exe is not None)
    ranked = sorted(known.items(), key=lambda pair: (-pair[1], pair[0]))[:_NAMES_MAX]
    texts = [f'"{exe}"' + (f" ({count} times)" if count > 1 else "") for exe, count in ranked]
    unknown = sum(one.exe is None for one in jobs)
    if unknown:
        texts.append(f"{unknown} unknown, which no process table caught" if texts else "no process table caught them")
    return ", ".join(texts)


DETECTOR = GpuShortJobs
