"""Sorts recorded requests into models, views and clients, and fits what each can support."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_budget import WEEK
from mlsecd.detectors._extraction_calibration import MIN_CLIENTS, MIN_QUERIES, Material
from mlsecd.detectors._extraction_channels import COLUMNS, VIEWS, Reference, request_keys, usable
from mlsecd.detectors._extraction_cross import Suspect, calibrate
from mlsecd.detectors._extraction_hiding_fit import BlankRows, hiding_of
from mlsecd.detectors._extraction_level import clients_needed
from mlsecd.detectors.base import Fit, Section
from mlsecd.kernels import Kernels
from mlsecd.records import Ragged, Records, RequestBatch, rows_of

__all__ = ["NEEDED", "fit", "gather", "materials_of", "models_of", "span"]

I8 = NDArray[np.int64]

NEEDED: Final = (
    "ts",
    "duration_s",
    "model",
    "client",
    "features",
    "input_features",
    "predicted",
    "scores",
    "body_hash",
)
_SHOWN: Final = 30  # suspects in a note
_ROWS_MAX: Final = 1_000_000  # about 300 MiB of two 32-d vectors each


def fit(records: Iterable[Records], params: Any, kernels: Kernels) -> Fit:
    """Fit every model that has enough clients, largest first."""
    bare = BlankRows()
    batch, seen = gather(bare.watch(records), (*NEEDED, "status", "lost"))
    notes = [f"only the first {len(batch):,} of {seen:,} usable requests were read"] if seen > len(batch) else []
    made: list[Reference] = []
    refused: list[str] = []
    suspected: list[str] = []
    models = models_of(batch)
    for model, rows in models[: params.max_models]:
        fitted, told = _fit_model(model, batch, rows, params.epoch_seconds, kernels)
        made += fitted
        (suspected if fitted else refused).extend(told)
    notes += [f"model limit {params.max_models}: {len(models) - params.max_models} smaller models left out"] * (
        len(models) > params.max_models
    )
    if not made:
        why = "; ".join(refused) or "no request has a client and features or input_features"
        return Fit(None, f"{why}; needs {MIN_CLIENTS} clients with {MIN_QUERIES} distinct queries each", tuple(notes))
    arrays: dict[str, NDArray[Any]] = {}
    for i, reference in enumerate(made):
        arrays |= reference.arrays(str(i))
    blanks = bare.batch()
    if bare.seen > len(blanks):
        notes.append(
            f"only {len(blanks):,} of {bare.seen:,} requests without a vector were read, each client's first ones"
        )
    hiding = [
        hiding_of([one for one in made if one.model == model], batch, blanks, params.epoch_seconds, kernels)
        for model in dict.fromkeys(reference.model for reference in made)
    ]
    for i, plan in enumerate(hiding):
        arrays |= plan.arrays(f"hiding.{i}")
    header = {
        "references": [reference.header() for reference in made],
        "hiding": [plan.model for plan in hiding],
    }
    return Fit(Section(header, arrays), None, (*notes, *refused, *map(_describe, made), *suspected))


def _describe(reference: Reference) -> str:
    n = len(reference.scores)
    return (
        f'model "{reference.model}" by {reference.inputs}: calibrated on {n} clients, which certifies a level of '
        f"{1.0 - 0.05 ** (1.0 / n):.2%} a client and epoch; 0.1% would need {clients_needed(0.001):,}"
    )


def _name(suspects: list[Suspect], reference: Reference, clients: int) -> str:
    """Whom the operator should look at before trusting what was learned."""
    shown = ", ".join(f"{one.name} ({one.score:.1f} by {one.channel})" for one in suspects[:_SHOWN])
    more = f" and {len(suspects) - _SHOWN} more" if len(suspects) > _SHOWN else ""
    return (
        f'model "{reference.model}" by {reference.inputs}: {len(suspects)} of {clients} clients score beyond what '
        f"the others explain: {shown}{more}. Thieves who were there already, or an honest kind of few clients: look at "
        "them. They stay in the calibration; whom you find to be a thief, leave out: baseline fit --leave-out NAME"
    )


def gather(records: Iterable[Records], needed: tuple[str, ...] = NEEDED) -> tuple[RequestBatch, int]:
    """Rows of real, known clients with any vector, in order of completion; and how many there were."""
    kept: list[RequestBatch] = []
    held = seen = 0
    for batch in records:
        if not isinstance(batch, RequestBatch):
            continue
        vectors = (batch.ragged("features").lengths > 0) | (batch.ragged("input_features").lengths > 0)
        rows = np.flatnonzero(vectors & (batch.text("client").codes >= 0) & ~batch.synthetic)
        seen += len(rows)
        rows = rows[: _ROWS_MAX - held]
        held += len(rows)
        if len(rows):
            columns = {name: batch.columns[name] for name in needed if batch.has(name)}
            kept.append(RequestBatch(columns, batch.seq).take(rows))
    joined = RequestBatch.concat(kept)
    return joined.take(np.argsort(joined.completion, kind="stable")), seen


def _width(column: Ragged, rows: I8) -> int:
    """The most common length, 0 where no row has any."""
    lengths = column.lengths[rows]
    return int(np.bincount(lengths[lengths > 0]).argmax()) if (lengths > 0).any() else 0


def models_of(batch: RequestBatch) -> list[tuple[str, I8]]:
    """Models and their rows, the one with most clients first."""
    model, client = batch.text("model"), batch.text("client")
    pairs = sorted(rows_of(model.codes), key=lambda pair: -len(np.unique(client.codes[pair[1]])))
    return [(model.values[code], rows) for code, rows in pairs]


def materials_of(
    model: str, batch: RequestBatch, rows: I8, fewest: int, kernels: Kernels
) -> tuple[list[Material], int]:
    """What every view of a model that enough clients have is learned from; and how many clients the best has."""
    widths = {letter: _width(batch.ragged(name), rows) for letter, name in COLUMNS.items()}
    good = {
        letter: usable(batch.ragged(COLUMNS[letter]), wide) if wide else np.zeros(len(batch), bool)
        for letter, wide in widths.items()
    }
    made, most = [], 0
    for view in VIEWS:
        having = rows[np.logical_and.reduce([good[letter][rows] for letter in view])]
        own_widths = {letter: widths[letter] for letter in view}
        clients = _eligible(batch, having, own_widths, kernels)
        most = max(most, len(clients))
        if len(clients) >= fewest:
            made.append(Material(model, view, batch, clients, own_widths))
    return made, most


def _fit_model(
    model: str, batch: RequestBatch, rows: I8, epoch_seconds: float, kernels: Kernels
) -> tuple[list[Reference], list[str]]:
    """References of every view that enough clients have, and who is suspect; or why there is none."""
    made, told = [], []
    materials, most = materials_of(model, batch, rows, MIN_CLIENTS, kernels)
    for material in materials:
        reference, suspects = calibrate(material, epoch_seconds, kernels)
        reference.facts |= span(batch, material.clients)
        made.append(reference)
        told += [_name(suspects, reference, len(material.clients))] if suspects else []
    return made, told if made else [f'model "{model}": {most} clients, too few']


def _eligible(batch: RequestBatch, rows: I8, widths: dict[str, int], kernels: Kernels) -> dict[str, I8]:
    """Clients with enough distinct queries, and their rows."""
    if not len(rows):
        return {}
    client = batch.text("client")
    keys = request_keys(batch, rows, widths, kernels)
    return {
        client.values[code]: rows[places]
        for code, places in rows_of(client.codes[rows])
        if len(np.unique(keys[places])) >= MIN_QUERIES
    }


def span(batch: RequestBatch, clients: dict[str, I8]) -> dict[str, float]:
    """First and last event time, and how many eligible clients a week is expected to have.

    A recording of less than a week misses clients: those that were new in its second half tell how
    fast others will follow. Of a longer one, whole weeks are averaged.
    """
    ts = batch.completion
    first = np.array([ts[rows[0]] for rows in clients.values()])
    start, end = float(first.min()), float(max(ts[rows[-1]] for rows in clients.values()))
    span = end - start
    if span < WEEK:
        newcomers = float((first > start + span / 2).sum())
        weekly = len(clients) + newcomers * (WEEK - span) / max(span / 2, 1.0)
    else:
        weeks = int(span // WEEK)
        present = [{int((ts[row] - start) // WEEK) for row in rows} for rows in clients.values()]
        weekly = sum(week < weeks for own in present for week in own) / weeks
    return {"first_ts": start, "last_ts": end, "clients_per_week": weekly}
