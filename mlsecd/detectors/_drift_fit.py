"""References of all models: learned from recorded rows, written to and read from a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_freeze import freeze
from mlsecd.detectors._drift_plan import Plan
from mlsecd.detectors._drift_reference import Reference
from mlsecd.detectors._drift_streams import Columns
from mlsecd.detectors._drift_watch import Watch
from mlsecd.detectors.base import Fit, Section
from mlsecd.kernels import Kernels
from mlsecd.records import Records, RequestBatch, rows_of

__all__ = ["dump_references", "fit_references", "load_references"]


def fit_references(records: Iterable[Records], plan: Plan, models: int, kernels: Kernels) -> Fit:
    """The references of up to ``models`` models; synthetic rows teach nothing."""
    whole = plan._replace(stages=((plan.settings.rows, math.inf),))  # no row completes it: all are sampled
    watches: dict[str, Watch] = {}
    for batch in records:
        if not isinstance(batch, RequestBatch) or not len(batch):
            continue
        columns = Columns(batch)
        names = batch.text("model")
        codes = np.where(batch.synthetic | ~np.isfinite(columns.times), -1, names.codes)
        for code, rows in rows_of(codes):
            if names.values[code] in watches or len(watches) < models:
                watch = watches.setdefault(names.values[code], Watch.learning(whole))
                list(watch.observe(columns, rows, kernels))
    return _fit_of(watches, plan, kernels)


def _fit_of(watches: dict[str, Watch], plan: Plan, kernels: Kernels) -> Fit:
    references, notes = {}, []
    for model, watch in sorted(watches.items()):
        sample = watch.sample
        need = min(plan.settings.rows, plan.settings.arm)
        if sample is None or sample.count < need:
            have = 0 if sample is None else sample.count
            notes.append(f"{model}: {have:,} of the {need:,} rows that a reference needs")
            continue
        reference = replace(freeze(sample, plan.settings, kernels), crowd=watch.crowd.most)
        if not reference.names:
            notes.append(f"{model}: no field varies, and varies evenly enough, to be watched")
            continue
        references[model] = reference
        hours = (reference.end - reference.start) / 3_600.0
        notes.append(f"{model}: {len(reference.names)} streams from {sample.count:,} rows over {hours:.1f} hours")
    if not references:
        rows = min(plan.settings.rows, plan.settings.arm)
        lacking = f"needs {rows:,} requests of one model that count, with tokens, status, classes or vectors"
        return Fit(None, lacking, tuple(notes))
    return Fit(dump_references(references), None, tuple(notes))


def dump_references(references: dict[str, Reference]) -> Section:
    """References as a part of a baseline."""
    header: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for place, (model, reference) in enumerate(references.items()):
        plain, own = reference.dump()
        header.append({**plain, "model": model})
        arrays |= {f"{place}.{name}": array for name, array in own.items()}
    return Section({"references": header}, arrays)


def load_references(section: Section) -> dict[str, Reference]:
    """References by model.

    Raises
    ------
    ValueError, KeyError, TypeError
        The section is damaged.
    """
    made = {}
    for place, header in enumerate(section.header["references"]):
        own = {
            name.partition(".")[2]: array
            for name, array in section.arrays.items()
            if name.partition(".")[0] == str(place)
        }
        plain = {name: value for name, value in header.items() if name != "model"}
        made[header["model"]] = Reference.load(plain, own)
    return made
