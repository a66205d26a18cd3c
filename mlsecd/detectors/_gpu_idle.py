"""Learns what each GPU shows while nobody asks for anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np

from mlsecd.detectors._serving import BIN_MS, Serving, by_host
from mlsecd.detectors.base import Fit, Section
from mlsecd.records import GpuSample, Records, RequestBatch

__all__ = ["Idle", "learn"]

_QUANTILE: Final = 0.95
_BINS_MIN: Final = 60  # ten minutes
_BINS_MAX: Final = 20_000  # a GPU: the newest two days; so a fit over months stays within memory
_GPUS_MAX: Final = 256
_BUSY: Final = 0.5  # a GPU this busy with nobody asking is what the detector looks for, not its baseline

_Peaks = dict[int, tuple[float, float]]  # utilization and power by bin, NaN where not known


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU at rest."""

    utilization: float = 0.0
    power_watts: float | None = None
    bins: int = 0


def learn(records: Iterable[Records], params: Any) -> Fit:
    """Idle levels of every GPU that was at rest for ten minutes; synthetic records teach nothing."""
    hosts: dict[str, Serving] = {}
    gpus: dict[tuple[str, str], _Peaks] = {}
    for one in records:
        if isinstance(one, RequestBatch):
            for host, synthetic, rows in by_host(one):
                if not synthetic:
                    hosts.setdefault(host, Serving()).take(one, rows, params, _BINS_MAX)
        elif isinstance(one, GpuSample) and not one.synthetic:
            key = (one.host, one.gpu)
            if key in gpus or len(gpus) < _GPUS_MAX:
                _note(gpus.setdefault(key, {}), one)
    for serving in hosts.values():
        serving.settle(params, _BINS_MAX)
    return _conclude(gpus, hosts)


def _note(peaks: _Peaks, sample: GpuSample) -> None:
    one = round(sample.ts * 1000) // BIN_MS
    utilization, power = peaks.get(one, (np.nan, np.nan))
    seen = np.nan if sample.utilization is None else sample.utilization
    drawn = np.nan if sample.power_watts is None else sample.power_watts
    peaks[one] = (float(np.fmax(utilization, seen)), float(np.fmax(power, drawn)))
    if len(peaks) > _BINS_MAX:
        del peaks[next(iter(peaks))]


def _level(peaks: _Peaks, serving: Serving) -> Idle:
    """High quantiles over bins that no request touches, nor the bin before."""
    quiet = [peaks[one] for one in peaks if not serving.covered.get(one) and not serving.covered.get(one - 1)]
    values = np.array(quiet).reshape(-1, 2)
    levels = [
        float(np.quantile(column[np.isfinite(column)], _QUANTILE)) if np.isfinite(column).any() else None
        for column in values.T
    ]
    return Idle(utilization=levels[0] or 0.0, power_watts=levels[1], bins=len(quiet))


def _conclude(gpus: dict[tuple[str, str], _Peaks], hosts: dict[str, Serving]) -> Fit:
    if not gpus:
        return Fit(None, "no GPU samples: record with the nvml source beside a request source")
    idle: dict[str, Any] = {}
    notes = []
    for (host, gpu), peaks in sorted(gpus.items()):
        level = _level(peaks, hosts.get(host, Serving()))
        if level.bins < _BINS_MIN:
            notes.append(f"{gpu}: {level.bins * BIN_MS // 1000} s without requests, needs {_BINS_MIN * BIN_MS // 1000}")
        elif level.utilization >= _BUSY:
            notes.append(f"{gpu}: not learned, it was {level.utilization:.0%} busy with no requests: look at it first")
        else:
            idle[gpu] = msgspec.to_builtins(level)
    if not idle:
        return Fit(None, "no GPU was at rest for ten minutes: record a stretch without requests", tuple(notes))
    return Fit(Section({"idle": idle}, {}), notes=tuple(notes))
