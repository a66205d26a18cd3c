"""The processes of a host in the last minutes, by number: who it was that is gone now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mlsecd.detectors._gpu_processes import printable
from mlsecd.records import Process, ProcessTable

__all__ = ["Past", "Seen"]

_PROCESSES_MAX: Final = 8_192
_KEPT_SECONDS: Final = 900.0
_SLACK_SECONDS: Final = 2.0  # a job's times are the driver's, a table's are ours
_BEFORE_SECONDS: Final = 12.0  # two tables: between the last that shows a process and its end, it may have used a GPU


@dataclass(slots=True)
class Seen:
    """One process, as long as tables showed it."""

    start_ticks: int
    first_ts: float
    last_ts: float
    exe: str | None = None
    uid: int | None = None
    unit: str | None = None


@dataclass(slots=True)
class Past:
    """One host's processes by number, the latest two under each; those seen longest ago make room."""

    by_pid: dict[int, list[Seen]] = field(default_factory=dict)
    ts: float = float("-inf")

    def take(self, table: ProcessTable) -> None:
        """Note who is there. Time that goes back starts afresh."""
        if table.ts < self.ts:
            self.by_pid.clear()
        self.ts = table.ts
        for process in table.processes:
            if process.exe is None and not process.cmdline:
                continue  # a kernel thread uses no GPU
            held = self.by_pid.pop(process.pid, [])
            if not held or held[-1].start_ticks != process.start_ticks:
                held = [*held[-1:], Seen(process.start_ticks, table.ts, table.ts)]
            _note(held[-1], process, table.ts)
            self.by_pid[process.pid] = held
        while self.by_pid:
            pid = next(iter(self.by_pid))
            if len(self.by_pid) <= _PROCESSES_MAX and table.ts - self.by_pid[pid][-1].last_ts <= _KEPT_SECONDS:
                break
            del self.by_pid[pid]

    def who(self, pid: int, start: float, end: float) -> Seen | None:
        """The process of this number that tables showed within, or just before, this time; None: none was caught."""
        found = [
            one
            for one in self.by_pid.get(pid, ())
            if one.first_ts <= end + _SLACK_SECONDS and one.last_ts >= start - _BEFORE_SECONDS
        ]
        return found[-1] if found else None


def _note(seen: Seen, process: Process, ts: float) -> None:
    seen.last_ts = ts
    seen.exe = seen.exe if process.exe is None else printable(process.exe)
    seen.uid, seen.unit = process.uid, process.unit
