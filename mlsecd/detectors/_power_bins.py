"""What a host served and what its GPUs drew, minute by minute of event time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._serving import FAR_SECONDS
from mlsecd.records import GpuSample, RequestBatch

__all__ = ["BIN_SECONDS", "FEATURES", "Draw", "Work", "features"]

BIN_SECONDS: Final = 60
FEATURES: Final = 4  # of each model: covered share, concurrency, input and output tokens a second
_SPAN_BINS: Final = 60  # the part of one request that is spread: its last hour
_SAMPLES_MIN: Final = 10  # of a GPU in a bin, for its mean to say anything
# Sums are of whole numbers, so that they do not depend on their order: milliseconds, millitokens, mW, ppm.
_MILLI: Final = 1000.0
_PPM: Final = 1e6

F8 = NDArray[np.float64]


@dataclass(slots=True)
class Work:
    """Requests of one host by bin: for each model milliseconds under way, input and output millitokens."""

    bins: dict[int, list[int]] = field(default_factory=dict)

    def take(self, batch: RequestBatch, rows: NDArray[np.int64], models: tuple[str, ...], keep: int) -> None:
        """Spread these rows over the bins that they were under way in. Refused ones made no load."""
        status = batch.number("status")[rows]
        rows = rows[~((status >= 400) & (status < 499) & (status != 408))]
        names = batch.text("model")
        place = np.array(
            [models.index(name) if name in models else len(models) for name in names.values] + [len(models)]
        )
        model = place[names.codes[rows]]
        ends = np.clip(batch.completion[rows], -FAR_SECONDS, FAR_SECONDS)
        starts = np.clip(batch.ts[rows], -FAR_SECONDS, ends)
        tokens = np.nan_to_num(np.stack([batch.number(name)[rows] for name in ("input_tokens", "output_tokens")]))
        tokens = np.clip(tokens, 0, 1e7)
        last = np.floor(ends / BIN_SECONDS)
        inside = starts >= last * BIN_SECONDS
        self._add(last[inside], model[inside], (ends - starts)[inside], tokens[:, inside], len(models) + 1)
        for at in np.flatnonzero(~inside).tolist():
            self._spread(int(model[at]), starts[at], ends[at], tokens[:, at], len(models) + 1)
        if len(self.bins) > 2 * keep:
            latest = max(self.bins)
            for old in [one for one in self.bins if one < latest - keep]:
                del self.bins[old]

    def _add(self, bins: F8, models: NDArray[np.int64], seconds: F8, tokens: F8, width: int) -> None:
        """Requests that began and ended in one bin each: float64[n] all, tokens [2, n]."""
        amounts = np.rint(_MILLI * np.vstack([seconds, tokens])).astype(np.int64)
        for one in np.unique(bins):
            own = bins == one
            held = self.bins.setdefault(int(one), [0] * (3 * width))
            for model in np.unique(models[own]).tolist():
                sums = amounts[:, own & (models == model)].sum(axis=1).tolist()
                held[3 * model : 3 * model + 3] = [a + b for a, b in zip(held[3 * model :], sums, strict=False)]

    def _spread(self, model: int, start: float, end: float, tokens: F8, width: int) -> None:
        last = math.floor(end / BIN_SECONDS)
        first = max(math.floor(start / BIN_SECONDS), last - _SPAN_BINS)
        length = max(end - max(start, first * BIN_SECONDS), 1e-3)
        for one in range(first, last + 1):
            inside = min(end, (one + 1) * BIN_SECONDS) - max(start, one * BIN_SECONDS)
            share = max(inside, 1e-3 if one == last else 0.0) / length
            held = self.bins.setdefault(one, [0] * (3 * width))
            held[3 * model] += round(_MILLI * max(inside, 0.0))
            held[3 * model + 1] += round(_MILLI * tokens[0] * share)
            held[3 * model + 2] += round(_MILLI * tokens[1] * share)

    def tokens(self, one: int) -> float:
        """Output tokens of all models in a bin."""
        return sum(self.bins.get(one, ())[2::3]) / _MILLI


def features(work: Work, one: int, models: int) -> F8:
    """What a bin's requests tell of the load that they made: FEATURES numbers a model, float64."""
    held = np.array(work.bins.get(one, [0] * (3 * (models + 1))), np.float64).reshape(-1, 3) / _MILLI / BIN_SECONDS
    busy = held[:, 0]
    made: F8 = np.column_stack([np.minimum(busy, 1.0), np.log1p(busy), held[:, 1], held[:, 2]]).ravel()
    return made


@dataclass(slots=True)
class Draw:
    """One GPU's samples by bin: count, then sums of mW, and of utilization and memory utilization in ppm."""

    bins: dict[int, list[int]] = field(default_factory=dict)

    def take(self, sample: GpuSample) -> None:
        """Add a sample. A reading that is not there makes the bin's mean of it not there."""
        held = self.bins.setdefault(math.floor(sample.ts / BIN_SECONDS), [0, 0, 0, 0])
        held[0] += 1
        for at, value, unit in (
            (1, sample.power_watts, _MILLI),
            (2, sample.utilization, _PPM),
            (3, sample.memory_utilization, _PPM),
        ):
            held[at] += -(1 << 50) if value is None else round(value * unit)

    def means(self, one: int) -> tuple[float, float, float] | None:
        """Watts, utilization and memory utilization of a bin, NaN where not told; None: too few samples."""
        held = self.bins.get(one)
        if held is None or held[0] < _SAMPLES_MIN:
            return None
        power, busy, memory = (math.nan if total < 0 else total / held[0] for total in held[1:])
        return power / _MILLI, busy / _PPM, memory / _PPM
