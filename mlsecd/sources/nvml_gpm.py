"""How busy a GPU's parts are, by GPM: from Hopper on, and without the lock that older profiling takes.

It runs in the NVML child, as :mod:`mlsecd.sources.nvml_fields` does: the standard library only.
"""

from __future__ import annotations

from typing import Any, Final

from mlsecd.sources.nvml_fields import Library, Reader

__all__ = ["Activity"]

_METRICS: Final = {1: "graphics_active", 2: "sm_active", 5: "tensor_active", 10: "dram_active"}  # NVML_GPM_METRIC_*
_VERSION: Final = 1  # of the struct that asks for metrics


class Activity:
    """Reads one GPU: each reading is of the time since the one before."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._samples: list[Any] = []  # two buffers of NVML's, used in turn
        self._turn = 0
        self._supported: bool | None = None

    def read(self, reader: Reader) -> dict[str, float]:
        """Shares of time and bandwidth, 0..1, by field of ``GpuSample``; empty at first, and where there is no GPM."""
        if self._supported is None:
            told = reader.guard("activity", lambda: self._library.nvml.nvmlGpmQueryDeviceSupport(reader.handle))
            if told is None:
                return {}
            self._supported = bool(told.isSupportedDevice)
        if not self._supported:
            return {}
        answer = reader.guard("activity", lambda: self._ask(reader.handle))
        return {} if answer is None else dict(_ratios(answer))

    def _ask(self, handle: Any) -> Any | None:
        nvml = self._library.nvml
        if len(self._samples) < 2:
            self._samples.append(nvml.nvmlGpmSampleAlloc())
        after = self._samples[self._turn % 2 if len(self._samples) == 2 else 0]
        nvml.nvmlGpmSampleGet(handle, after)
        self._turn += 1
        if self._turn < 2:
            return None
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = _VERSION, len(_METRICS)
        asked.sample1, asked.sample2 = self._samples[self._turn % 2], after
        for at, number in enumerate(_METRICS):
            asked.metrics[at].metricId = number
        return nvml.nvmlGpmMetricsGet(asked)

    def close(self) -> None:
        """Give the buffers back, while NVML is initialised."""
        while self._samples:
            try:
                self._library.nvml.nvmlGpmSampleFree(self._samples.pop())
            except self._library.error:
                continue


def _ratios(answer: Any) -> list[tuple[str, float]]:
    found = []
    for at in range(len(_METRICS)):
        metric = answer.metrics[at]
        if metric.nvmlReturn == 0 and 0 <= metric.value <= 100:  # NaN, where nothing was counted, is neither
            found.append((_METRICS[metric.metricId], metric.value / 100))
    return found
