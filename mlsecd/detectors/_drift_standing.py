"""What drift detection can do just now, over all models."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from mlsecd.detectors._drift_picture import psi
from mlsecd.detectors._drift_season import DAY, WEEK
from mlsecd.detectors._drift_tenants import House
from mlsecd.detectors._drift_watch import Watch
from mlsecd.detectors.base import DetectorState, Standing
from mlsecd.kernels import drift_layout as at

__all__ = ["standing_of"]

_ROWS_MIN: Final = 200  # scored rows before a stream can be said to have fallen silent
_SILENT: Final = 0.25  # share of rows with a value; every stream had twice this in its reference


def standing_of(houses: list[House], refused: int, age_max: float) -> Standing:
    """The standing of a detector that watches these models and had no room for ``refused`` others.

    References older than ``age_max`` seconds of event time are stale.
    """
    watches = [house.shared for house in houses]
    armed = [watch for watch in watches if watch.reference is not None and watch.reference.names]
    tenants = [tenant.watch for house in houses for tenant in house.tenants]
    gauges = _gauges(watches, armed) | {"refused": float(refused), "tenants": float(len(tenants))}
    shifted_tenants = sum(watch.shifted for watch in tenants)
    gauges["psi"] = max((psi(watch.bins, watch.expected) for watch in (*armed, *tenants)), default=0.0)
    learning = [watch.sample for watch in watches if watch.sample is not None]
    unheard = bool(armed) and not any(watch.scored for watch in armed) and any(sample.count for sample in learning)
    stale = gauges.get("reference_age_seconds", 0.0) > age_max
    whys = [
        f"{len(learning)} of {len(watches)} models learning, the furthest with "
        f"{max((sample.count for sample in learning), default=0):,} rows"
        if learning
        else "",
        f"{gauges['provisional_models']:.0f} of them held against a provisional reference meanwhile"
        if gauges.get("provisional_models")
        else "",
        f"{gauges['silent_streams']:.0f} streams hardly have values any more: did a tap or the model change?"
        if gauges["silent_streams"]
        else "",
        "the baseline's models are not called, others are: was it fitted on another model?" if unheard else "",
        f"{gauges['shifted_models']:.0f} models have left their reference" if gauges["shifted_models"] else "",
        f"{shifted_tenants} tenants have left their own reference" if shifted_tenants else "",
        "more models call than are watched" if refused else "",
        f"the oldest reference ended {gauges['reference_age_seconds'] / DAY:.0f} days ago: fit it again"
        if stale
        else "",
        "seasons are learning until a reference spans two weeks: before, a new day of the week may look like drift"
        if any(_short(watch) for watch in armed)
        else "",
    ]
    shifted = bool(gauges["shifted_models"] or shifted_tenants)
    state = _state(gauges, mismatch=unheard, stale=stale, shifted=shifted)
    return Standing(state, "; ".join(why for why in whys if why), gauges)


def _gauges(watches: list[Watch], armed: list[Watch]) -> dict[str, float]:
    references = [watch.reference for watch in armed if watch.reference is not None]
    gauges = {
        "models": float(len(watches)),
        "armed_models": float(len(armed)),
        "shifted_models": float(sum(watch.shifted for watch in armed)),
        "streams": float(sum(len(reference.names) for reference in references)),
        "silent_streams": float(sum(_silent(watch) for watch in armed)),
        "reference_rows": float(min((reference.rows.max() for reference in references), default=0.0)),
    }
    if not references:
        return gauges
    ended = min(reference.end for reference in references)
    latest = max(watch.latest for watch in watches)
    return gauges | {
        "provisional_models": float(sum(watch.provisional for watch in armed)),
        "seasonal_models": float(sum(reference.seasonal for reference in references)),
        "minimum_effect": max(float(np.median(np.abs(reference.least))) for reference in references),
        "reference_timestamp_seconds": ended,
        "reference_age_seconds": max(latest - ended, 0.0) if math.isfinite(latest) else 0.0,
    }


def _short(watch: Watch) -> bool:
    """Whether its reference cannot know a weekly season."""
    return watch.reference is not None and watch.reference.end - watch.reference.start < 1.95 * WEEK


def _state(gauges: dict[str, float], *, mismatch: bool, stale: bool, shifted: bool) -> DetectorState:
    if not gauges["armed_models"]:
        return DetectorState.LEARNING
    if gauges["silent_streams"] or mismatch:
        return DetectorState.MISMATCH
    if stale:
        return DetectorState.STALE
    if shifted:
        return DetectorState.SHIFTED
    return DetectorState.SATURATED if gauges["refused"] else DetectorState.ARMED


def _silent(watch: Watch) -> int:
    if watch.scored < _ROWS_MIN:
        return 0
    return int((watch.state[:, at.COUNT] < _SILENT * watch.scored).sum())
