"""How long a GPU worked, in bins of event time, and which work is forgiven."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from mlsecd.detectors._gpu_idle import Idle
from mlsecd.detectors._gpu_processes import GpuProcesses, printable
from mlsecd.detectors._serving import BIN_MS, Serving
from mlsecd.records import GpuSample

__all__ = ["Load", "busy", "holders"]

_GAP_SECONDS: Final = 60.0  # a sample speaks for the time since the one before it, up to this
_WARMUPS_AN_HOUR: Final = 3  # as much grace as this: a process that restarts all the time is judged in the end
_SHOWN_MAX: Final = 8
_NEVER: Final = float("-inf")


@dataclass(slots=True)
class Load:
    """One GPU's time at work."""

    processes: GpuProcesses
    last_ts: float = _NEVER
    busy: dict[int, int] = field(default_factory=dict)  # milliseconds by bin
    warm_until: float = _NEVER
    warm_hour: int = -1
    warm_used: float = 0.0
    judged_bin: int | None = None
    emitted_ts: float = _NEVER

    def step(self, sample: GpuSample, warmup_seconds: float) -> float | None:
        """Take a sample; return since when it speaks, ``None`` where it does not or a process loads its model."""
        since, self.last_ts = self.last_ts, sample.ts
        appeared = self.processes.sample(sample)
        if appeared and since > _NEVER:  # what runs at the first sample has not just started
            self._warm_up(sample.ts, warmup_seconds)
        speaks = sample.ts - since <= _GAP_SECONDS and sample.ts > self.warm_until
        return since if speaks else None

    def _warm_up(self, ts: float, seconds: float) -> None:
        hour = int(ts // 3600)
        if hour != self.warm_hour:
            self.warm_hour, self.warm_used = hour, 0.0
        more = ts + seconds - max(self.warm_until, ts)
        if self.warm_used + more <= _WARMUPS_AN_HOUR * seconds:
            self.warm_used += more
            self.warm_until = ts + seconds

    def add(self, since: float, until: float) -> None:
        """Count the time of one step as work."""
        start, end = round(since * 1000), round(until * 1000)
        while start < end:
            one = start // BIN_MS
            stop = min(end, (one + 1) * BIN_MS)
            self.busy[one] = self.busy.get(one, 0) + stop - start
            start = stop

    def enters_bin(self) -> bool:
        """Whether this is the first time at work in a bin: more was not known of whole bins until now."""
        now = round(self.last_ts * 1000) // BIN_MS
        entered, self.judged_bin = now != self.judged_bin, now
        return entered

    def unexplained(self, serving: Serving, seconds: float, keep: int) -> tuple[float, range]:
        """The part of the last ``seconds`` that was work without requests, and the bins that were looked at.

        Only whole bins count, and the oldest must hold such work: it has then gone on for the whole
        time, however high its share became earlier. Bins older than ``keep`` are dropped.
        """
        now = round(self.last_ts * 1000) // BIN_MS
        for old in [one for one in self.busy if one < now - keep]:
            del self.busy[old]
        bins = range(now - math.ceil(seconds * 1000 / BIN_MS) - 1, now)
        spans = [max(0, self.busy.get(one, 0) - serving.covered.get(one, 0)) for one in bins]
        return (min(1.0, sum(spans) / (seconds * 1000)) if spans[0] else 0.0), bins


def busy(sample: GpuSample, idle: Idle, utilization_threshold: float, power_ratio_threshold: float) -> bool:
    """Utilization and power, as far as known, must both say so.

    A server that spins while it waits shows 100 % at low power; a card at rest with memory in use may draw much.
    """
    if sample.state != "ok":
        return False
    answers = []
    if sample.utilization is not None:
        answers.append(sample.utilization >= max(utilization_threshold, idle.utilization + 0.1))
    if sample.power_watts is not None and idle.power_watts is not None:
        answers.append(sample.power_watts >= 1.25 * idle.power_watts)
    elif sample.power_watts is not None and sample.power_limit_watts:
        answers.append(sample.power_watts >= power_ratio_threshold * sample.power_limit_watts)
    return bool(answers) and all(answers)


def holders(gpu: GpuProcesses) -> list[dict[str, Any]]:
    """Who holds a GPU, the largest first."""
    held = sorted(gpu.sights.values(), key=lambda sight: (-(sight.used_memory_bytes or 0), sight.pid))
    shown = []
    for sight in held[:_SHOWN_MAX]:
        process = sight.process
        exe = sight.nvml_name if process is None or process.exe is None else printable(process.exe)
        row = {"pid": sight.pid, "exe": exe, "used_memory_bytes": sight.used_memory_bytes}
        shown.append(row if process is None else {**row, "uid": process.uid, "unit": process.unit})
    return shown
