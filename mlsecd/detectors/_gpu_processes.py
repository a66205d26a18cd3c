"""Who is on a GPU: NVML's pids joined with process tables, without the races between the two."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from mlsecd.detectors._allow import Circumstances, is_deleted, is_memfd
from mlsecd.errors import StateError
from mlsecd.records import Depth, GpuProcess, GpuSample, Process, ProcessTable

__all__ = ["ABSENT_TABLES", "GpuProcesses", "Sight", "Table", "View", "as_state", "facts", "gpu_key", "printable"]

ABSENT_TABLES: Final = 2  # successive tables without a pid before it counts as absent from /proc
_FRESH_SECONDS: Final = 30.0  # a table and the samples around it are of one moment within this
_TABLE_AGE_SECONDS: Final = 120.0  # what a table said holds this long
_GAP_SECONDS: Final = 60.0  # a pid unseen for longer is not the same sighting any more
_PID_MAX: Final = 1 << 22  # Linux's largest; more is a driver and library that disagree on a struct
_SIGHTS_MAX: Final = 512  # processes on one GPU that are followed
_NEVER: Final = float("-inf")

T = TypeVar("T")


def gpu_key(host: str, gpu: str, *, synthetic: bool) -> str:
    """A state key: synthetic records and each host stay by themselves."""
    return f"{host}\0{int(synthetic)}\0{gpu}"


def printable(text: str, limit: int = 200) -> str:
    """Text chosen by others, fit for a line that a person reads: no control characters, no end without limit."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def as_state(raw: Any, kind: type[T]) -> T:
    """Unpacked state as its type.

    Raises
    ------
    StateError
        It does not fit.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise StateError(f"a snapshot does not fit: {error}") from error


class View(enum.StrEnum):
    """How much of the host a process table shows."""

    HOST = "host"  # kernel threads are in it: the host's own pid namespace, as NVML's pids are
    NAMESPACE = "namespace"  # whole, but perhaps of a container whose pids are not NVML's
    PART = "part"  # cut short, or processes are hidden from us (hidepid): absence from it says nothing


class Table:
    """A process table, indexed once for all GPUs."""

    def __init__(self, table: ProcessTable) -> None:
        self.ts = table.ts
        self.by_pid = {process.pid: process for process in table.processes}
        kthreadd = self.by_pid.get(2)
        cut = not table.complete or any(entry.startswith("processes:") for entry in table.blind)
        if cut:
            self.view = View.PART
        elif kthreadd is not None and kthreadd.name == "kthreadd" and kthreadd.ppid == 0:
            self.view = View.HOST
        else:
            self.view = View.NAMESPACE if 1 in self.by_pid else View.PART

    def parent(self, process: Process) -> str | None:
        """The parent's executable, or its name where that cannot be read."""
        parent = None if process.ppid is None else self.by_pid.get(process.ppid)
        text = None if parent is None else parent.exe or parent.name
        return None if text is None else printable(text)


@dataclass(slots=True)
class Sight:
    """One pid on one GPU, from when NVML first shows it until NVML stops."""

    pid: int
    first_ts: float
    last_ts: float
    samples: int = 1
    used_memory_bytes: int | None = None
    nvml_name: str | None = None
    process: Process | None = None  # as the latest table shows it
    process_ts: float = _NEVER
    parent: str | None = None
    confirmed: bool = False  # NVML showed it again after a table showed this process with this executable
    intact: bool = False  # this process was seen with its executable still on disk
    absent: int = 0  # successive tables without it, each with a sample that showed it before
    absent_ts: float = _NEVER
    hidden_ts: float = _NEVER  # the latest sample that showed it after enough such tables
    instances: tuple[int, ...] = ()  # GPU instances (MIG) that NVML shows it on

    @property
    def around(self) -> Circumstances:
        """What an allow list may ask beside the process's own row."""
        return Circumstances(self.parent, self.instances)

    def show(self, ts: float, item: GpuProcess) -> None:
        """NVML shows it in one more sample."""
        if ts - self.last_ts > _GAP_SECONDS:
            self.samples = self.absent = 0
        if ts > self.last_ts or not self.samples:
            self.samples += 1
        self.last_ts = ts
        self.used_memory_bytes = item.used_memory_bytes
        self.instances = item.instances
        if self.process is not None and not self.absent and ts >= self.process_ts:
            self.confirmed = True
        if self.absent >= ABSENT_TABLES and ts - self.absent_ts <= _FRESH_SECONDS:
            self.hidden_ts = ts

    def resolve(self, process: Process, parent: str | None, ts: float) -> None:
        """A table shows it. Another start time is another process under the same pid."""
        slim = _slim(process)
        if self.process is None or self.process.start_ticks != slim.start_ticks:
            self.first_ts = self.first_ts if self.process is None else ts
            self.intact = self.confirmed = False
        elif self.process.exe != slim.exe:
            self.confirmed = False
        self.process = slim
        self.process_ts = ts
        self.parent = parent
        self.intact = self.intact or not (process.exe is None or is_deleted(process.exe) or is_memfd(process.exe))
        self.absent = 0

    def miss(self, ts: float) -> None:
        """A whole table lacks it, though NVML had shown it twice and again since the last such table."""
        if self.samples >= 2 and self.last_ts > self.absent_ts:
            self.absent += 1
            self.absent_ts = ts
            self.confirmed = False


def _slim(process: Process) -> Process:
    """What a verdict and its evidence need; texts that survive any encoding."""
    return Process(
        pid=process.pid,
        start_ticks=process.start_ticks,
        ppid=process.ppid,
        uid=process.uid,
        exe=None if process.exe is None else process.exe.encode("utf-8", "backslashreplace").decode(),
        name=None if process.name is None else printable(process.name, 64),
        cmdline=(printable(" ".join(process.cmdline), 400),) if process.cmdline else (),
        cgroup=None if process.cgroup is None else printable(process.cgroup, 1024),
        unit=process.unit,
        container=process.container,
        depth=None if process.depth is None else Depth(sha256=process.depth.sha256),
    )


@dataclass(slots=True)
class GpuProcesses:
    """The processes of one GPU.

    A pid is judged by a table that was taken after NVML showed it (an earlier one may show what it
    was before ``exec``, or who had the pid before), and only once a later sample still shows it: so
    neither a start nor an exit between table and sample is mistaken for something else.
    """

    host: str
    gpu: str
    synthetic: bool
    last_ts: float = _NEVER
    listed_ts: float = _NEVER  # the latest sample that lists processes: not each need do so
    table_ts: float = _NEVER
    view: View = View.PART
    refused: int = 0  # processes beyond the limit, and impossible pids
    sights: dict[int, Sight] = field(default_factory=dict)

    @staticmethod
    def of(sample: GpuSample) -> GpuProcesses:
        """Empty, for this sample's GPU."""
        return GpuProcesses(sample.host, sample.gpu, sample.synthetic)

    def sample(self, sample: GpuSample) -> list[Sight]:
        """Take a sample; return what NVML had not shown before. Time that goes back starts afresh."""
        ts = sample.ts
        if ts < self.last_ts:
            self.sights = {}
            self.table_ts = _NEVER
        self.last_ts = ts
        tenants = sample.tenants
        if tenants is None:
            return []
        self.listed_ts = ts
        shown: dict[int, GpuProcess] = {}
        for item in tenants:
            if 0 < item.pid <= _PID_MAX and (item.pid in shown or len(shown) < _SIGHTS_MAX):
                shown.setdefault(item.pid, item)
            else:
                self.refused += 1
        before, self.sights = self.sights, {}
        new = []
        for pid, item in shown.items():
            sight = before.get(pid)
            if sight is None:
                name = None if item.exe is None else printable(item.exe)
                sight = Sight(
                    pid, ts, ts, used_memory_bytes=item.used_memory_bytes, nvml_name=name, instances=item.instances
                )
                new.append(sight)
            else:
                sight.show(ts, item)
            self.sights[pid] = sight
        return new

    def table(self, table: Table) -> None:
        """Take a process table."""
        if table.ts < self.last_ts:
            return
        self.table_ts = table.ts
        self.view = table.view
        for sight in self.sights.values():
            if table.ts - sight.last_ts > _FRESH_SECONDS:
                continue
            process = table.by_pid.get(sight.pid)
            if process is not None:
                sight.resolve(process, table.parent(process), table.ts)
            elif table.view is not View.PART:
                sight.miss(table.ts)

    def known(self) -> list[tuple[Sight, Process]]:
        """Processes on the GPU now that a table has shown since they appeared, and lately."""
        return [
            (sight, sight.process)
            for sight in self.sights.values()
            if sight.process is not None
            and sight.confirmed
            and self.last_ts - self.listed_ts <= _FRESH_SECONDS
            and self.last_ts - sight.process_ts <= _TABLE_AGE_SECONDS
        ]

    @property
    def blind(self) -> bool:
        """NVML shows processes, and no process table of late tells what they are."""
        return bool(self.sights) and self.last_ts - self.table_ts > _TABLE_AGE_SECONDS


def facts(gpu: str, sight: Sight) -> dict[str, Any]:
    """Evidence of one process on a GPU."""
    process = sight.process
    if process is None:
        return {"gpu": gpu, "pid": sight.pid, "exe": sight.nvml_name, "used_memory_bytes": sight.used_memory_bytes}
    return {
        "gpu": gpu,
        "pid": sight.pid,
        "start_ticks": process.start_ticks,
        "exe": None if process.exe is None else printable(process.exe, 1024),
        "uid": process.uid,
        "unit": process.unit,
        "container": process.container,
        "cmdline": process.cmdline[0] if process.cmdline else "",
        "ppid": process.ppid,
        "parent_exe": sight.parent,
        "sha256": None if process.depth is None else process.depth.sha256,
        "used_memory_bytes": sight.used_memory_bytes,
    }
