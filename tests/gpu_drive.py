"""Builders and a bare drive for the GPU detectors' tests: no ledger, so that every raw finding is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mlsecd.detectors.base import Detector, Interval
from mlsecd.records import (
    MERGE_ORDER,
    Finding,
    GpuProcess,
    GpuSample,
    Process,
    ProcessTable,
    Records,
    RequestBatch,
    SourceStatus,
)

INIT = Process(pid=1, start_ticks=1, ppid=0, uid=0, exe="/usr/lib/systemd/systemd", name="systemd")
KTHREADD = Process(pid=2, start_ticks=1, ppid=0, uid=0, name="kthreadd")
HOST = (INIT, KTHREADD)


def gpu(ts: float, pids: Iterable[int] | None = (), uuid: str = "GPU-a", **fields: Any) -> GpuSample:
    """A sample with processes of 1 GiB each; ``pids=None``: NVML would not say."""
    processes = None if pids is None else tuple(GpuProcess(pid=pid, used_memory_bytes=1 << 30) for pid in pids)
    return GpuSample(ts=ts, gpu=uuid, processes=processes, **fields)


def process(pid: int, exe: str | None, **fields: Any) -> Process:
    known = {"start_ticks": 10 * pid, "ppid": 1, "uid": 997, "cgroup": "/system.slice/x", **fields}
    return Process(pid=pid, exe=exe, **known)


def table(ts: float, *processes: Process, kernel: bool = True, **fields: Any) -> ProcessTable:
    """A whole table of the host; without ``kernel`` only what is given."""
    return ProcessTable(ts=ts, processes=(*(HOST if kernel else ()), *processes), **fields)


def status(ts: float, source: str = "nvml", **fields: Any) -> SourceStatus:
    return SourceStatus(ts=ts, source=source, **{"ok": True, **fields})


def when(one: Records) -> float:
    return float(one.completion[0]) if isinstance(one, RequestBatch) else one.ts


def ordered(records: Iterable[Records]) -> list[Records]:
    return sorted(records, key=lambda one: (when(one), MERGE_ORDER[one.kind]))


def drive(
    detector: Detector,
    records: Iterable[Records],
    *,
    as_given: bool = False,
    restart: Callable[[], Detector] | None = None,
) -> list[Finding]:
    """Observe records in order and close every interval of 10 s that ends before one of them.

    With ``restart``, every seventh record is followed by a snapshot that another instance goes on from.
    """
    found: list[Finding] = []
    tick: int | None = None
    for index, one in enumerate(records if as_given else ordered(records)):
        if restart is not None and index % 7 == 6:
            blob = detector.snapshot()
            detector = restart()
            detector.restore(blob)
        new = int(when(one) // 10)
        if tick is not None and new > tick:
            ends = [(tick, tick + 1)] + ([(tick + 1, new)] if new > tick + 1 else [])
            for start, end in ends:
                states = sorted(detector.states(), key=lambda pair: pair[0])
                found += detector.close(Interval(start * 10.0, end * 10.0), states)
        tick = new
        found += detector.observe(one)
    return found


def seconds(start: float, end: float, step: float = 1.0) -> list[float]:
    return [start + step * i for i in range(round((end - start) / step))]
