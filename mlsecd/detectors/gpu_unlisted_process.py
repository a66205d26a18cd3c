"""A process that holds GPU memory's device node while NVML lists it on no GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._allow import Allow, allows
from mlsecd.detectors._gpu_processes import Table, View, as_state, printable
from mlsecd.detectors._told import Told
from mlsecd.detectors.base import Detector, DetectorState, Maturity, Section, Standing
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuSample, Kind, Process, ProcessTable, Records, Severity
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "GpuUnlistedProcess", "Params"]

_HOSTS_MAX: Final = 256
_GPUS_MAX: Final = 256
_SUSPECTS_MAX: Final = 1_024
_ANCESTORS: Final = 8
_FRESH_SECONDS: Final = 60.0  # what NVML listed holds this long
_FORGET_SECONDS: Final = 3_600.0  # a GPU that is silent for longer was taken out
_NEVER: Final = float("-inf")


class Params(base.Params, frozen=True):
    """When a descriptor without an entry counts."""

    allow: Annotated[
        tuple[Allow, ...], Meta(max_length=1024, description="processes that may hold the device unlisted")
    ] = ()
    device_suffix: Annotated[
        str, Meta(min_length=1, max_length=64, description="the node that computing takes and monitoring does not")
    ] = "nvidia-uvm"
    after_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="for how long NVML must leave the process out")
    ] = 60.0
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 60.0


@dataclass(slots=True)
class _Host:
    """One host: whom NVML lists, and who holds the device without."""

    listed: dict[str, tuple[float, list[int]]] = field(default_factory=dict)  # by GPU: when, pids
    since: dict[int, tuple[int, float]] = field(default_factory=dict)  # by pid: start_ticks, first table
    told: Told = field(default_factory=Told)
    table_ts: float = _NEVER
    view: View = View.PART
    holders: int = 0
    unread: int = 0


class GpuUnlistedProcess(Detector):
    """Holds descriptors against NVML's lists.

    Every CUDA program opens ``/dev/nvidia-uvm``; tools that only watch do not. NVML can be made to leave
    a process out (a patched library, a preload in this daemon's own environment, a driver that hides it);
    the descriptor is the kernel's word.
    """

    name = "gpu_unlisted_process"
    consumes = frozenset({Kind.GPU, Kind.PROCESS})
    key = "host"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0112", "AML.T0048.000")
    owasp = ("LLM10:2025",)
    summary = "A process has the GPU's memory device open, and NVML lists it on no GPU."
    action = (
        "Look at the process (evidence.exe, uid, parent) and at nvidia-smi. A helper that belongs here goes into this "
        "detector's allow list. If nobody knows it, do not trust what NVML says on this host: isolate it."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "A process that hides from /proc as well is not seen here; gpu_foreign_process compares the other way round.",
        "Descriptors of other users take CAP_DAC_READ_SEARCH; without it mappings must do, which CAP_SYS_PTRACE shows.",
        "A child of a listed process that runs the same program is taken for a worker that inherited the device.",
        "A program that reaches the GPU without /dev/nvidia-uvm (graphics alone, a passed-through device).",
        "In a container's pid namespace NVML's pids are not ours: nothing is judged.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._hosts: Keyed[_Host] = Keyed(_HOSTS_MAX, lambda _: _Host())

    def observe(self, records: Records) -> list[Finding]:
        """Fold one GPU sample or one process table."""
        if not isinstance(records, GpuSample | ProcessTable):
            return []
        host = self._hosts.touch(f"{records.host}\0{int(records.synthetic)}", records.ts)
        if host is None:
            return []
        if isinstance(records, ProcessTable):
            return self._table(host, records)
        if records.processes is not None and (records.gpu in host.listed or len(host.listed) < _GPUS_MAX):
            host.listed[records.gpu] = (records.ts, [one.pid for one in records.processes])
        elif records.gpu in host.listed and records.processes is None:
            del host.listed[records.gpu]
        return []

    def _table(self, host: _Host, records: ProcessTable) -> list[Finding]:
        table = Table(records)
        if records.ts < host.table_ts:
            host.since.clear()
        host.table_ts, host.view = records.ts, table.view
        holders = [one for one in records.processes if one.depth is not None and self._holds(one)]
        host.holders = len(holders)
        host.unread = sum(one.depth is not None and one.depth.devices is None for one in records.processes)
        for gpu in [name for name, (ts, _) in host.listed.items() if records.ts - ts > _FORGET_SECONDS]:
            del host.listed[gpu]
        lists = [pids for ts, pids in host.listed.values() if abs(records.ts - ts) <= _FRESH_SECONDS]
        if table.view is not View.HOST or len(lists) < len(host.listed) or not lists:
            host.since.clear()
            return []
        listed = frozenset(pid for pids in lists for pid in pids)
        suspects = [one for one in holders if one.pid not in listed and not _inherits(one, table, listed)]
        before, host.since = host.since, {}
        found = []
        for one in suspects[:_SUSPECTS_MAX]:
            ticks, since = before.get(one.pid, (one.start_ticks, records.ts))
            host.since[one.pid] = (one.start_ticks, since if ticks == one.start_ticks else records.ts)
            lasted = records.ts - host.since[one.pid][1]
            if lasted >= self.params.after_seconds and allows(self.params.allow, one, "") is False:
                found += self._report(host, records, table, one, lasted)
        return found

    def _holds(self, process: Process) -> bool:
        devices = process.depth.devices if process.depth is not None else None
        return any(device.endswith(self.params.device_suffix) for device in devices or ())

    def _report(
        self, host: _Host, records: ProcessTable, table: Table, process: Process, lasted: float
    ) -> list[Finding]:
        exe = "unreadable" if process.exe is None else printable(process.exe)
        subject = f"{exe} uid={process.uid} unlisted"
        if not host.told.due(subject, records.ts, self.params.repeat_seconds):
            return []
        devices = process.depth.devices if process.depth is not None else None
        return [
            self.finding(
                ts=records.ts,
                subject_kind="process",
                subject=subject,
                severity=Severity.MEDIUM,
                score=lasted,
                threshold=self.params.after_seconds,
                reason=f'"{exe}" (pid {process.pid}, uid {process.uid}) has a GPU open, '
                f"and NVML has listed it on none of {len(host.listed)} GPUs for {lasted:.0f} s",
                evidence={
                    "host": records.host,
                    "pid": process.pid,
                    "start_ticks": process.start_ticks,
                    "exe": exe,
                    "uid": process.uid,
                    "unit": process.unit,
                    "container": process.container,
                    "cmdline": process.cmdline[0] if process.cmdline else "",
                    "parent_exe": table.parent(process),
                    "devices": [printable(one) for one in devices or ()],
                    "sha256": None if process.depth is None else process.depth.sha256,
                },
                synthetic=records.synthetic,
            )
        ]

    def standing(self) -> Standing:
        """Armed where tables and lists are of one host and descriptors can be read."""
        hosts = [host for _, host in self._hosts.items()]
        gauges = {
            "hosts": float(len(hosts)),
            "gpu_holders": float(sum(host.holders for host in hosts)),
            "unread_processes": float(sum(host.unread for host in hosts)),
            "refused": float(self._hosts.refused),
        }
        if not any(host.listed for host in hosts):
            return Standing(DetectorState.STALE, "blind: NVML has listed no processes yet", gauges)
        if not any(host.view is View.HOST for host in hosts):
            return Standing(DetectorState.MISMATCH, "blind: no whole process table of the host", gauges)
        why = "descriptors of some processes cannot be read" if gauges["unread_processes"] else ""
        return Standing(DetectorState.ARMED, why, gauges)

    def snapshot(self) -> bytes:
        """Every host's state."""
        return pack(self.version, self._hosts.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._hosts.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Host]]))


def _inherits(process: Process, table: Table, listed: frozenset[int]) -> bool:
    """Whether an ancestor is listed and runs the same program: a worker that was forked with the device open."""
    one: Process | None = process
    for _ in range(_ANCESTORS):
        one = None if one is None or one.ppid is None else table.by_pid.get(one.ppid)
        if one is None or one.exe is None or one.exe != process.exe:
            return False
        if one.pid in listed:
            return True
    return False


DETECTOR = GpuUnlistedProcess
