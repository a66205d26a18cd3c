"""What drift detection reads of a GPU: minutes of samples, each number held against what explains it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_curves import Stream
from mlsecd.records import GpuSample

__all__ = ["COLUMNS", "MINUTE", "STREAMS", "Minute"]

MINUTE: Final = 60.0
COLUMNS: Final = ("load", "utilization", "power", "clock", "temperature", "memory")  # of a minute, the mean of each

_LOAD, _UTILIZATION, _POWER, _CLOCK, _TEMPERATURE, _MEMORY = range(len(COLUMNS))
STREAMS: Final = (
    Stream("utilization for its requests", _UTILIZATION, _LOAD),
    Stream("power for its utilization, W", _POWER, _UTILIZATION),
    Stream("clock for its utilization, MHz", _CLOCK, _UTILIZATION),
    Stream("temperature for its power, C", _TEMPERATURE, _POWER),
    Stream("memory, GiB", _MEMORY),
)


@dataclass(slots=True)
class Minute:
    """Sums over the samples of one minute."""

    number: int = -1
    sums: list[float] = field(default_factory=lambda: [0.0] * len(COLUMNS))
    counts: list[int] = field(default_factory=lambda: [0] * len(COLUMNS))

    def add(self, sample: GpuSample) -> None:
        """Add a sample of this minute; what NVML does not say is left out."""
        numbers = (
            None,
            sample.utilization,
            sample.power_watts,
            None if sample.sm_clock_hz is None else sample.sm_clock_hz / 1e6,
            sample.temperature_celsius,
            None if sample.memory_used_bytes is None else sample.memory_used_bytes / 2.0**30,
        )
        for at, number in enumerate(numbers):
            if number is not None and math.isfinite(number) and abs(number) < 1e15:
                self.sums[at] += number
                self.counts[at] += 1

    def row(self, requests: int) -> NDArray[np.float32]:
        """Its means, float32[6] in the order of :data:`COLUMNS`, NaN where no sample said; the load is log(1 + n)."""
        means = [total / count if count else math.nan for total, count in zip(self.sums, self.counts, strict=True)]
        return np.array([math.log1p(requests), *means[1:]], np.float32)
