"""References of all models: learned from recorded rows, written to and read from a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_plan import Plan
from mlsecd.detectors._drift_reference import Reference
from mlsecd.detectors._drift_sample import Sample
from mlsecd.detectors._drift_streams import Columns
from mlsecd.detectors._drift_tenants import House
from mlsecd.detectors._drift_watch import Watch
from mlsecd.detectors.base import Fit, Section
from mlsecd.kernels import Kernels
from mlsecd.records import Records, RequestBatch, rows_of

__all__ = ["dump_references", "fit_references", "load_references"]


def fit_references(records: Iterable[Records], plan: Plan, models: int, kernels: Kernels) -> Fit:
    """The references of up to ``models`` models; synthetic rows teach nothing."""
    whole = plan._replace(stages=((plan.settings.rows, math.inf),))  # no row completes it: all are sampled
    houses: dict[str, House] = {}
    for batch in records:
        if not isinstance(batch, RequestBatch) or not len(batch):
            continue
        columns = Columns(batch)
        names = batch.text("model")
        codes = np.where(batch.synthetic | ~np.isfinite(columns.times), -1, names.codes)
        for code, rows in rows_of(codes):
            if names.values[code] in houses or len(houses) < models:
                house = houses.setdefault(names.values[code], House.learning(whole))
                list(house.observe(columns, rows, kernels))
    return _fit_of(houses, plan, kernels)


def _fit_of(houses: dict[str, House], plan: Plan, kernels: Kernels) -> Fit:
    references: dict[str, tuple[Reference, dict[str, Reference]]] = {}
    notes: list[str] = []
    for model, house in sorted(houses.items()):
        house.lead()
        shared = _reference_of(model, house.shared, plan, kernels, notes)
        if shared is None:
            continue
        own: dict[str, Reference] = {}
        for client, name in house.shared.without.items():
            found = _reference_of(f"{model}, tenant {name}", house.own[client].watch, plan, kernels, notes)
            own |= {} if found is None else {name: found}
        references[model] = shared, own
    if not references:
        rows = min(plan.settings.rows, plan.settings.arm)
        lacking = f"needs {rows:,} requests of one model that count, with tokens, status, classes or vectors"
        return Fit(None, lacking, tuple(notes))
    return Fit(dump_references(references), None, tuple(notes))


def _reference_of(name: str, watch: Watch, plan: Plan, kernels: Kernels, notes: list[str]) -> Reference | None:
    """What a watch's sample is good for; a note says what, or what it lacks."""
    need = min(plan.settings.rows, plan.settings.arm)
    sample = Sample.of(plan.settings.rows) if watch.sample is None else watch.sample.without(watch.without)
    if sample.count < need:
        notes.append(f"{name}: {sample.count:,} of the {need:,} rows that a reference needs")
        return None
    reference = watch.freeze(sample, kernels)
    if not reference.names:
        notes.append(f"{name}: no field varies, and varies evenly enough, to be watched")
        return None
    hours = (reference.end - reference.start) / 3_600.0
    notes.append(f"{name}: {len(reference.names)} streams from {sample.count:,} rows over {hours:.1f} hours")
    return reference


def dump_references(references: dict[str, tuple[Reference, dict[str, Reference]]]) -> Section:
    """References as a part of a baseline; a model's tenants follow it."""
    header: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    every = [
        (model, tenant, reference)
        for model, (shared, own) in references.items()
        for tenant, reference in (("", shared), *own.items())
    ]
    for place, (model, tenant, reference) in enumerate(every):
        plain, held = reference.dump()
        header.append({**plain, "model": model, "tenant": tenant})
        arrays |= {f"{place}.{name}": array for name, array in held.items()}
    return Section({"references": header}, arrays)


def load_references(section: Section) -> dict[str, tuple[Reference, dict[str, Reference]]]:
    """By model, its reference, and those of its tenants by name.

    Raises
    ------
    ValueError, KeyError, TypeError
        The section is damaged.
    """
    made: dict[str, tuple[Reference, dict[str, Reference]]] = {}
    for place, header in enumerate(section.header["references"]):
        own = {
            name.partition(".")[2]: array
            for name, array in section.arrays.items()
            if name.partition(".")[0] == str(place)
        }
        plain = {name: value for name, value in header.items() if name not in {"model", "tenant"}}
        reference, tenant = Reference.load(plain, own), header.get("tenant", "")
        if tenant:
            made[header["model"]][1][str(tenant)] = reference
        else:
            made[header["model"]] = reference, {}
    return made
