"""Processes that the driver's accounting saw end: what came and went between two samples.

It runs in the NVML child, as :mod:`mlsecd.sources.nvml_fields` does: the standard library only.
"""

from __future__ import annotations

from typing import Any, Final

from mlsecd.sources.nvml_fields import Library, Reader

__all__ = ["Jobs"]

MAX_ASKED: Final = 256  # statistics read at a time: the driver keeps some 4,000 processes
_KNOWN_MAX: Final = 16_384


class Jobs:
    """Reads one GPU's accounting, each ended process once. It is switched on, and cleared, by root alone."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._ended: dict[tuple[int, int], None] = {}  # (pid, start) that were told
        self._settled: dict[int, int] = {}  # pids of those: start in microseconds

    def read(self, reader: Reader) -> tuple[int | None, list[dict[str, Any]]]:
        """How many processes accounting remembers (None: it is off), and those that ended since."""
        nvml = self._library.nvml
        pids = reader.guard("accounting", lambda: nvml.nvmlDeviceGetAccountingPids(reader.handle))
        if pids is None:
            return None, []
        jobs: list[dict[str, Any]] = []
        fresh = [pid for pid in pids if pid not in self._settled]
        again = [pid for pid in pids if pid in self._settled]
        self._settled = {pid: self._settled[pid] for pid in again}
        # Pids are used again: of those told before, some are asked each time, in turn.
        turn = again[:16]
        for pid in turn:
            del self._settled[pid]
        for pid in [*fresh[-MAX_ASKED:], *turn]:
            stats = reader.guard("accounting", lambda pid=pid: nvml.nvmlDeviceGetAccountingStats(reader.handle, pid))  # type: ignore[misc]
            if stats is None or stats.isRunning:
                continue
            self._settled[pid] = stats.startTime
            if (pid, stats.startTime) not in self._ended:
                self._tell(pid, stats, jobs)
        return len(pids), jobs

    def _tell(self, pid: int, stats: Any, jobs: list[dict[str, Any]]) -> None:
        self._ended[pid, stats.startTime] = None
        if len(self._ended) > _KNOWN_MAX:
            del self._ended[next(iter(self._ended))]
        memory = stats.maxMemoryUsage
        jobs.append(
            {
                "pid": pid,
                "start_ts": stats.startTime / 1e6,
                "seconds": stats.time / 1e3,
                "max_memory_bytes": memory if memory is not None and memory < 1 << 63 else None,
                "utilization": stats.gpuUtilization / 100 if stats.gpuUtilization <= 100 else None,
            }
        )
