"""A process on a GPU that policy does not allow, or that hides what it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._allow import Allow, allows
from mlsecd.detectors._allow_fit import propose
from mlsecd.detectors._gpu_processes import (
    ABSENT_TABLES,
    GpuProcesses,
    Sight,
    Table,
    as_state,
    facts,
    gpu_key,
)
from mlsecd.detectors._gpu_verdicts import (
    ACTIONS,
    SHOWN_MAX,
    Case,
    blindness,
    by_host,
    judge,
    judge_unseen,
    reason,
    sees_host,
    subject,
    unseen_reason,
)
from mlsecd.detectors.base import Detector, DetectorState, Fit, Interval, Maturity, Section, Standing
from mlsecd.errors import BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuSample, Kind, ProcessTable, Records
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "GpuForeignProcess", "Params"]

_GPUS_MAX: Final = 256
_SUBJECTS_MAX: Final = 32  # executables on one GPU that are told apart within _MEMORY_SECONDS
_MEMORY_SECONDS: Final = 3_600.0


class Params(base.Params, frozen=True):
    """Who may use the GPUs."""

    allow: Annotated[
        tuple[Allow, ...],
        Meta(max_length=1024, description="processes that may use a GPU; empty: the baseline's list, or learning"),
    ] = ()
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 30.0


@dataclass(slots=True)
class _Subject:
    """One executable of one user on one GPU, over restarts of the process."""

    first_ts: float
    last_ts: float
    emitted_ts: float = float("-inf")
    starts: int = 0


@dataclass(slots=True)
class _Gpu:
    """What is held of one GPU."""

    processes: GpuProcesses
    subjects: dict[str, _Subject] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=dict)  # start_ticks by pid: starts that were counted


class GpuForeignProcess(Detector):
    """Joins NVML's pids with process tables and holds the result against an allow list.

    Visible processes are judged with each sample of their GPU. Hidden ones are judged at the end of
    an interval: whether absence from a table means anything, all GPUs of the host tell together.
    """

    name = "gpu_foreign_process"
    consumes = frozenset({Kind.GPU, Kind.PROCESS})
    key = "gpu"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0112", "AML.T0048.000")  # 5.6.0 has no "resource hijacking": the compromise, and its cost
    owasp = ("LLM10:2025",)
    summary = "A GPU process that policy does not allow, runs from a deleted file or memory, or is hidden from /proc."
    action = ACTIONS["foreign"]
    blind_spots: ClassVar[tuple[str, ...]] = (
        "A path is as the program's own mount namespace shows it, and a container can name its program as it likes.",
        "An entry that states exe alone lets such a program pass; one that also states uid, unit or sha256 does not.",
        "A digest is of the executable alone, not of libraries or scripts, and takes CAP_SYS_PTRACE to read.",
        "An interpreter is one executable for all scripts: allow it only together with uid and unit.",
        "Code that an allowed process was made to run (injection, a malicious model file) looks allowed.",
        "A process that comes and goes between two process tables is never judged.",
        "Until an allow list is configured or fitted, only deleted, in-memory and hidden programs are reported.",
        "In another pid namespace than NVML's, or where hidepid hides pid 1, hidden processes cannot be told.",
        "A kernel rootkit that also filters what NVML returns leaves nothing to compare.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._allow = params.allow
        if not self._allow and section is not None:
            try:
                self._allow = msgspec.convert(section.header.get("allow"), tuple[Allow, ...])
            except msgspec.ValidationError as error:
                raise BaselineError(f"{self.name}: the baseline's allow list cannot be used: {error}") from error
        self._gpus: Keyed[_Gpu] = Keyed(_GPUS_MAX, lambda _: _Gpu(GpuProcesses("", "", synthetic=False)))

    def observe(self, records: Records) -> list[Finding]:
        """Fold one GPU sample or one process table."""
        if isinstance(records, ProcessTable):
            table = Table(records)
            for _, _, gpu in self._gpus.dump():
                if (gpu.processes.host, gpu.processes.synthetic) == (records.host, records.synthetic):
                    gpu.processes.table(table)
            return []
        return self._sample(records) if isinstance(records, GpuSample) else []

    def _sample(self, sample: GpuSample) -> list[Finding]:
        gpu = self._gpus.touch(gpu_key(sample.host, sample.gpu, synthetic=sample.synthetic), sample.ts)
        if gpu is None:
            return []
        if not gpu.processes.gpu:
            gpu.processes = GpuProcesses.of(sample)
        if sample.ts < gpu.processes.last_ts:
            gpu.subjects.clear()
        gpu.processes.sample(sample)
        if sample.processes is None:
            return []
        cases: dict[str, list[Case]] = {}
        for sight, process in gpu.processes.known():
            case = judge(self._allow, sight, process, sample.gpu)
            if case is not None:
                cases.setdefault(self._subject(gpu, case, sample), []).append(case)
        gpu.counted = {pid: ticks for pid, ticks in gpu.counted.items() if pid in gpu.processes.sights}
        return [
            self._report(gpu.subjects[name], name, accused, sample)
            for name, accused in cases.items()
            if self._due(gpu.subjects[name], sample.ts)
        ]

    @staticmethod
    def _subject(gpu: _Gpu, case: Case, sample: GpuSample) -> str:
        """The subject's name; its start is counted. Names beyond the limit share one.

        The limit is for a program that copies itself to a new path each time: still told of, in one finding.
        """
        for old in [name for name, one in gpu.subjects.items() if sample.ts - one.last_ts > _MEMORY_SECONDS]:
            del gpu.subjects[old]
        name = subject(case, sample.gpu)
        if name not in gpu.subjects and len(gpu.subjects) >= _SUBJECTS_MAX:
            name = f"further executables gpu={sample.gpu}"
        held = gpu.subjects.setdefault(name, _Subject(sample.ts, sample.ts))
        held.last_ts = sample.ts
        if gpu.counted.get(case.process.pid) != case.process.start_ticks:
            gpu.counted[case.process.pid] = case.process.start_ticks
            held.starts += 1
        return name

    def _due(self, held: _Subject, ts: float) -> bool:
        if ts - held.emitted_ts < self.params.repeat_seconds:
            return False
        held.emitted_ts = ts
        return True

    def _report(self, held: _Subject, name: str, cases: list[Case], sample: GpuSample) -> Finding:
        worst = max(cases, key=lambda case: case.severity.rank)  # the first of the worst
        return self.finding(
            ts=sample.ts,
            subject_kind="process",
            subject=name,
            severity=worst.severity,
            score=1.0,
            threshold=1.0,
            reason=reason(worst, self._allow, sample.gpu, held.starts),
            action=ACTIONS[worst.kind],
            evidence={
                **facts(sample.gpu, worst.sight),
                "kind": worst.kind,
                "host": sample.host,
                "pids": sorted(case.sight.pid for case in cases)[:SHOWN_MAX],
                "starts": held.starts,
                "first_ts": held.first_ts,
            },
            synthetic=sample.synthetic,
        )

    def states(self) -> Iterable[tuple[str, Any]]:
        """Each GPU's state."""
        return self._gpus.items()

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Report pids that NVML shows and the process tables do not, where the tables are of the host."""
        found = []
        for gpus in by_host(state.processes for _, state in states):
            for gpu in gpus if sees_host(gpus) else ():
                accused: dict[str, list[Sight]] = {}
                for pid in sorted(gpu.sights):
                    sight = gpu.sights[pid]
                    if sight.absent >= ABSENT_TABLES and interval.start <= sight.hidden_ts < interval.end:
                        accused.setdefault(judge_unseen(self._allow, sight, gpu.gpu)[0], []).append(sight)
                found += [self._report_unseen(kind, gpu, accused[kind]) for kind in sorted(accused)]
        return found

    def _report_unseen(self, kind: str, gpu: GpuProcesses, sights: list[Sight]) -> Finding:
        severities = [judge_unseen(self._allow, sight, gpu.gpu)[1] for sight in sights]
        tables = max(sight.absent for sight in sights)
        return self.finding(
            ts=max(sight.hidden_ts for sight in sights),
            subject_kind="process",
            subject=f"{kind} gpu={gpu.gpu}",
            severity=max(severities, key=lambda severity: severity.rank),
            score=tables,
            threshold=ABSENT_TABLES,
            reason=unseen_reason(kind, sights, gpu.gpu),
            action=ACTIONS[kind],
            evidence={
                **facts(gpu.gpu, sights[0]),
                "kind": kind,
                "host": gpu.host,
                "pids": [sight.pid for sight in sights][:SHOWN_MAX],
                "tables": tables,
                "first_ts": min(sight.first_ts for sight in sights),
            },
            synthetic=gpu.synthetic,
        )

    def standing(self) -> Standing:
        """Learning without a policy, armed with one; and where and why it is blind."""
        every = [gpu.processes for _, gpu in self._gpus.items()]
        gpus = [gpu for gpu in every if not gpu.synthetic] or every
        known = [(gpu, sight, process) for gpu in gpus for sight, process in gpu.known()]
        unread = sum(
            allows(self._allow, process, gpu.gpu, sight.around) is None if self._allow else process.exe is None
            for gpu, sight, process in known
        )
        gauges = {
            "gpus": float(len(gpus)),
            "gpu_processes": float(sum(len(gpu.sights) for gpu in gpus)),
            "unread_processes": float(unread),
            "allow_entries": float(len(self._allow)),
            "refused": float(self._gpus.refused + sum(gpu.refused for gpu in gpus)),
        }
        state, whys = DetectorState.ARMED, []
        if not self._allow:
            state = DetectorState.LEARNING
            whys.append("no allow list: only deleted, in-memory and hidden programs are reported")
        if unread:
            whys.append(f"{unread} GPU processes are not judged: what would decide could not be read")
        if self._gpus.refused:
            state = DetectorState.SATURATED
            whys.append(f"more than {_GPUS_MAX} GPUs: the rest is not watched")
        blind_state, blind = blindness(gpus)
        return Standing(blind_state or state, "; ".join([*blind, *whys]), gauges)

    def snapshot(self) -> bytes:
        """Every GPU's processes and subjects."""
        return pack(self.version, self._gpus.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._gpus.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Gpu]]))

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit | None:  # noqa: ARG003
        """Propose an allow entry for each kind of process that ordinary records show on a GPU."""
        return propose(records)


DETECTOR = GpuForeignProcess
