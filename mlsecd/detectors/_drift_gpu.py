"""What drift detection reads of a GPU: minutes of samples, each number held against what explains it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.records import F8, GpuSample

__all__ = ["COLUMNS", "MINUTE", "NAMES", "Curves", "Minute"]

MINUTE: Final = 60.0
COLUMNS: Final = ("load", "utilization", "power", "clock", "temperature", "memory")  # of a minute, the mean of each

# Each stream is a column less what another column explains of it; None: as it is.
_EXPLAINED: Final = (
    ("utilization for its requests", "utilization", "load"),
    ("power for its utilization, W", "power", "utilization"),
    ("clock for its utilization, MHz", "clock", "utilization"),
    ("temperature for its power, C", "temperature", "power"),
    ("memory, GiB", "memory", None),
)
NAMES: Final = tuple(name for name, _, _ in _EXPLAINED)
_KNOTS: Final = 10


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


@dataclass(frozen=True, slots=True)
class Curves:
    """What one column is where another is so much, by straight lines between the means of tenths.

    Attributes
    ----------
    knots, levels
        float64[5, 10]; NaN where a stream is a column as it is, or where nothing explains it.
    """

    knots: F8
    levels: F8

    @staticmethod
    def of(rows: NDArray[np.float32]) -> Curves:
        """Fit them on minutes, float32[n, 6]."""
        made = np.full((2, len(_EXPLAINED), _KNOTS), np.nan)
        for at, (_, y, x) in enumerate(_EXPLAINED):
            if x is None:
                continue
            pairs = rows[:, [COLUMNS.index(x), COLUMNS.index(y)]].astype(np.float64)
            pairs = pairs[np.isfinite(pairs).all(axis=1)]
            if len(pairs) < _KNOTS or pairs[:, 0].max() == pairs[:, 0].min():
                continue
            parts = np.array_split(pairs[np.argsort(pairs[:, 0], kind="stable")], _KNOTS)
            made[:, at] = np.array([part.mean(axis=0) for part in parts]).T
        return Curves(made[0], made[1])

    def streams(self, rows: NDArray[np.float32]) -> F8:
        """float64[n, 6] to float64[n, 5]; NaN where a minute lies outside of what was seen of the other column."""
        made = np.full((len(rows), len(_EXPLAINED)), np.nan)
        for at, (_, y, x) in enumerate(_EXPLAINED):
            values = rows[:, COLUMNS.index(y)].astype(np.float64)
            if x is None:
                made[:, at] = values
            elif np.isfinite(self.knots[at]).all():
                given = rows[:, COLUMNS.index(x)].astype(np.float64)
                low, high = self.knots[at, 0], self.knots[at, -1]
                margin = 0.1 * (high - low)
                inside = (given >= low - margin) & (given <= high + margin)
                made[:, at] = np.where(inside, values - np.interp(given, self.knots[at], self.levels[at]), np.nan)
        return made

    def dump(self) -> list[Any]:
        """For a snapshot."""
        return [self.knots, self.levels]

    @staticmethod
    def load(state: Any) -> Curves:
        """What :meth:`dump` gave; ``ValueError`` where it does not fit."""
        knots, levels = state
        if knots.shape != (len(_EXPLAINED), _KNOTS) or levels.shape != knots.shape:
            raise ValueError("a GPU's curves are damaged")
        return Curves(knots, levels)
