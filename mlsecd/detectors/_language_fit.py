"""Learns what is ordinary for each language model, and how high ordinary clients score: for ``baseline fit``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_budget import WEEK
from mlsecd.detectors._extraction_clients import SAMPLE_ROWS, evenly, split
from mlsecd.detectors._extraction_level import clients_needed
from mlsecd.detectors._extraction_null import cuts_of, null_of, scale_of
from mlsecd.detectors._language_account import MIN_ROWS, Account, walk
from mlsecd.detectors._language_channels import CHANNELS, Reference, amounts, encode, lengths
from mlsecd.detectors._language_crowd import Crowd, crowd_of
from mlsecd.detectors._parameters_books import Names, Who
from mlsecd.detectors.base import Fit, Section
from mlsecd.kernels import Kernels
from mlsecd.records import Records, RequestBatch, rows_of

__all__ = ["MIN_CLIENTS", "fit"]

I8 = NDArray[np.int64]
F8 = NDArray[np.float64]

MIN_CLIENTS: Final = 30  # a third for the reference, two thirds for the threshold
_OUTSIDE: Final = 0.025  # of ordinary lengths, on either side
_ROWS_MAX: Final = 2_000_000
_NEEDED: Final = (
    "ts",
    "duration_s",
    "model",
    "client",
    "user",
    "route",
    "status",
    "input_tokens",
    "output_tokens",
    "max_tokens",
    "finish_reason",
    "template",
    "body_hash",
    "flags",
)


def fit(records: Iterable[Records], params: Any, kernels: Kernels) -> Fit:
    """Fit every model that has enough clients with tokens or templates, largest first."""
    batch = _gather(records)
    names = Names(params.aggregators)
    made, refused = [], []
    models = sorted(rows_of(batch.text("model").codes), key=lambda pair: -len(pair[1]))
    for code, rows in models[: params.max_models]:
        if not _speaks(batch, rows):
            continue
        model = batch.text("model").values[code]
        clients = _clients(batch, rows, names)
        if len(clients) < MIN_CLIENTS:
            refused.append(f'model "{model}": {len(clients)} clients, too few')
            continue
        made.append(_reference(model, batch, clients, params.epoch_seconds, kernels))
    if not made:
        why = "; ".join(refused) or "no request has a client and tokens or a template"
        return Fit(None, f"{why}; needs {MIN_CLIENTS} clients with {MIN_ROWS} requests each")
    arrays: dict[str, NDArray[Any]] = {}
    for i, (reference, crowd) in enumerate(made):
        arrays |= reference.arrays(str(i)) | (crowd.arrays(str(i)) if crowd is not None else {})
    header = {"references": [reference.header() for reference, _ in made]}
    return Fit(Section(header, arrays), None, (*refused, *itertools.starmap(_describe, made)))


def _describe(reference: Reference, crowd: Crowd | None) -> str:
    n = len(reference.scores)
    told = "" if crowd is not None else "; too few clients with 10 requests in a day to tell campaigns"
    return (
        f'model "{reference.model}" by tokens and templates: calibrated on {n} clients, which certifies a level of '
        f"{1.0 - 0.05 ** (1.0 / n):.2%} a client and epoch; 0.1% would need {clients_needed(0.001):,}{told}"
    )


def _gather(records: Iterable[Records]) -> RequestBatch:
    """Rows of real, known clients, in order of completion."""
    kept, held = [], 0
    for batch in records:
        if not isinstance(batch, RequestBatch) or held >= _ROWS_MAX:
            continue
        known = (batch.text("client").codes >= 0) & (batch.text("model").codes >= 0)
        rows = np.flatnonzero(known & ~batch.synthetic)[: _ROWS_MAX - held]
        held += len(rows)
        if len(rows):
            columns = {name: batch.columns[name] for name in _NEEDED if batch.has(name)}
            kept.append(RequestBatch(columns, batch.seq).take(rows))
    joined = RequestBatch.concat(kept)
    return joined.take(np.argsort(joined.completion, kind="stable"))


def _speaks(batch: RequestBatch, rows: I8) -> bool:
    """Whether most requests of a model tell tokens or a template: it is a language model, then."""
    told = (batch.number("input_tokens") >= 0) | (batch.text("template").codes >= 0)
    return bool(told[rows].mean() >= 0.5)


def _clients(batch: RequestBatch, rows: I8, names: Names) -> dict[str, I8]:
    """Rows of each account with enough of them."""
    who = Who(batch)
    places: dict[str, list[int]] = {}
    for row in rows.tolist():
        places.setdefault(names.of(who, row), []).append(row)
    return {name: np.array(held) for name, held in places.items() if len(held) >= MIN_ROWS}


def _reference(
    model: str, batch: RequestBatch, clients: dict[str, I8], epoch_seconds: float, kernels: Kernels
) -> tuple[Reference, Crowd | None]:
    """Cuts, nulls and scales from one third of the clients; scores from the others, which none of these has seen."""
    reference_part, calibration_part = split(list(clients))
    sampled = np.concatenate([evenly(clients[name]) for name in reference_part])
    cuts = np.array([cuts_of(values[values >= 0]) for values in amounts(batch, sampled)])
    made = Reference(model, cuts, _bounds(batch, sampled), np.ones((3, len(CHANNELS))), np.zeros(1))
    first = [_path(made, batch, clients[name], epoch_seconds, kernels) for name in reference_part]
    made.null = null_of(np.array([tally for tally, _ in first]), CHANNELS)
    again = [_path(made, batch, clients[name], epoch_seconds, kernels)[1] for name in reference_part]
    made.null[2] = scale_of(np.array(again))
    paths = [_path(made, batch, clients[name], epoch_seconds, kernels)[1] for name in calibration_part]
    made.scores = np.sort(np.array([best.max() for best in paths]))
    made.facts = {"clients": float(len(calibration_part)), "epoch_seconds": epoch_seconds, **_span(batch, clients)}
    encoded = (encode(batch, clients[name], made.cuts, made.lengths) for name in calibration_part)
    return made, crowd_of(encoded, made.facts["last_ts"], made.null, kernels)


def _bounds(batch: RequestBatch, rows: I8) -> F8:
    """Between which lengths 95 % of the ordinary texts lie, to answer and to embed; infinite where there are few."""
    length, kind = lengths(batch, rows)
    bounds = np.array([[-np.inf, np.inf]] * 2)
    for which in (0, 1):
        own = length[(kind == which) & (length >= 0)]
        if len(own) >= SAMPLE_ROWS:
            bounds[which] = np.quantile(own, [_OUTSIDE, 1.0 - _OUTSIDE])
    return bounds


def _path(
    reference: Reference, batch: RequestBatch, rows: I8, epoch_seconds: float, kernels: Kernels
) -> tuple[NDArray[np.int32], F8]:
    """Counts of all epochs together, and the highest tails of each epoch's path."""
    encoded = encode(batch, rows, reference.cuts, reference.lengths)
    epochs = np.floor((encoded.ts - encoded.ts[0]) / epoch_seconds)
    cuts = [0, *(np.flatnonzero(np.diff(epochs)) + 1).tolist(), len(epochs)]
    tally, best = np.zeros((2, len(CHANNELS)), np.int32), np.zeros(len(CHANNELS))
    for start, stop in itertools.pairwise(cuts):
        account = Account()
        for _ in walk(account, encoded, range(start, stop), reference, kernels):
            pass
        tally += account.tally
        np.maximum(best, account.best, out=best)
    return tally, best


def _span(batch: RequestBatch, clients: dict[str, I8]) -> dict[str, float]:
    """First and last event time, and how many accounts a week is expected to have.

    A recording of less than a week misses some: those that were new in its second half tell how fast
    others will follow.
    """
    ts = batch.completion
    first = np.array([ts[rows[0]] for rows in clients.values()])
    start, end = float(first.min()), float(max(ts[rows[-1]] for rows in clients.values()))
    span = max(end - start, 1.0)
    newcomers = float((first > start + span / 2).sum())
    weekly = len(clients) + newcomers * max(WEEK - span, 0.0) / (span / 2)
    return {"first_ts": start, "last_ts": end, "clients_per_week": weekly}
