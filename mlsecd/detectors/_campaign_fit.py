"""Learns what ordinary accounts look like as a crowd: offline, for ``baseline fit``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._campaign_null import FEWEST, Null, edge, spectrum
from mlsecd.detectors._campaign_sketches import Others, Sketch, counts_and_sums
from mlsecd.detectors._campaign_telling import ADVERSARIAL, CHANNELS, Seen, channels_of, columns_of, counted, odd_in
from mlsecd.detectors._campaign_view import RING_ROWS, View, grid_of
from mlsecd.detectors._extraction_calibration import (
    MIN_QUERIES,
    Material,
    curves_of,
    frame_of,
    owners_of,
    sample,
)
from mlsecd.detectors._extraction_channels import Frame, uncertainty
from mlsecd.detectors._extraction_clients import split
from mlsecd.detectors._extraction_fit import gather, materials_of, models_of, span
from mlsecd.detectors._extraction_null import null_of
from mlsecd.detectors.base import Fit, Section, rng
from mlsecd.kernels import Kernels
from mlsecd.records import Records, rows_of

__all__ = ["MIN_CLIENTS", "fit"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

MIN_CLIENTS: Final = 60  # half for the axes, half for the null
_NEAR_SHARE: Final = 10.0  # a tenth of the 5 % that the account detector's near radius stands for: 1 in 200
_INTERVAL: Final = 60.0  # seconds of event time, within which rows of all accounts are held against each other
_LOUDEST: Final = 0.1  # of the clients do not shape the axes
_TRIMS: Final = 3
_RIDGE: Final = 0.02
_FLOOR: Final = 0.002  # variance of a coordinate that hardly ever varies
_DRAWS: Final = 200  # groups of ordinary clients


def fit(records: Iterable[Records], params: Any, kernels: Kernels) -> Fit:
    """Fit every model that has enough clients, largest first."""
    batch, seen = gather(records)
    notes = [f"only the first {len(batch):,} of {seen:,} usable requests were read"] if seen > len(batch) else []
    headers: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for model, rows in models_of(batch)[: params.max_models]:
        materials, most = materials_of(model, batch, rows, MIN_CLIENTS, kernels)
        if not materials:
            notes.append(f'model "{model}": {most} clients, too few')
        for material in materials:
            view, null = _learn(material, kernels)
            prefix = str(len(headers))
            headers.append(view.header() | {"clients": len(null.held), **span(batch, material.clients)})
            arrays |= view.arrays(prefix) | null.arrays(prefix)
            notes.append(f'model "{model}" by {len(view.spaces)} vectors: null of {len(null.held)} ordinary clients')
    if not headers:
        need = f"needs {MIN_CLIENTS} clients of one model with {MIN_QUERIES} distinct queries each"
        return Fit(None, "; ".join([*notes, need]))
    return Fit(Section({"views": headers}, arrays), None, tuple(notes))


def _learn(material: Material, kernels: Kernels) -> tuple[View, Null]:
    shaping, judging = _halves(list(material.clients))
    sampled = [sample(material, material.clients[name], kernels) for name in shaping]
    view = _view_of(frame_of(material, sampled, kernels), material, sampled, kernels)
    sketches = _sketch(view, material, kernels)
    null = _axes(view, sampled, material, [sketches[name] for name in shaping], kernels)
    held = [sketches[name] for name in judging]
    return view, _measure(null, view, held, kernels)


def _halves(clients: list[str]) -> tuple[list[str], list[str]]:
    """By hash, so the same for the same clients."""
    third, rest = split(clients)
    half = len(rest) // 4
    return third + rest[:half], rest[half:]


def _view_of(frame: Frame, material: Material, sampled: list[I8], kernels: Kernels) -> View:
    rows = np.concatenate(sampled)
    labels = frame.labels(material.batch.text("predicted"), rows)
    classes = frame.centroids_of(labels)
    grids = {"u": grid_of(uncertainty(material.batch.ragged("scores"), kernels)[rows])}
    for letter, u in frame.projected(material.batch, rows, kernels).items():
        space = frame.spaces[letter]
        grids[letter] = grid_of(kernels.mahalanobis(u, space.whiten, space.centroids, classes))
    near, _ = curves_of(frame, material, sampled, kernels)
    window = len(near) - 1
    return View(
        frame.model,
        frame.view,
        frame.spaces,
        frame.classes,
        frame.unc,
        grids,
        _drawn_on(near, window * _NEAR_SHARE),
        _drawn_on(near, RING_ROWS * _NEAR_SHARE),
    )


def _drawn_on(near: NDArray[np.int32], size: float) -> int:
    """The near radius, squared, drawn on by its power law to windows of ``size`` rows."""
    window = len(near) - 1
    small = max(window // 32, 1)
    slope = np.log(max(near[window], 1) / max(near[small], 1)) / np.log(window / small)
    return int(near[window] * (size / window) ** min(slope, 0.0))


def _sketch(view: View, material: Material, kernels: Kernels) -> dict[str, Sketch]:
    """Every client's sketch over the whole recording, made as the daemon makes them."""
    made = {name: Sketch.new(view) for name in material.clients}
    others = Others(view)
    names = list(material.clients)
    rows = np.concatenate([material.clients[name] for name in names])
    codes = np.repeat(np.arange(len(names), dtype=np.int32), [len(material.clients[name]) for name in names])
    ts = material.batch.completion[rows]
    order = np.lexsort((codes, np.floor(ts / _INTERVAL)))  # each client's rows stay in order
    rows, codes, tick = rows[order], codes[order], np.floor(ts[order] / _INTERVAL)
    cuts = [0, *(np.flatnonzero(np.diff(tick)) + 1).tolist(), len(rows)]
    for start, stop in pairwise(cuts):
        encoded = view.encode(material.batch, rows[start:stop], kernels)
        for code, places in rows_of(codes[start:stop]):
            made[names[code]].fold(encoded, int(places[0]), int(places[-1]) + 1, view, kernels)
        present = sorted((names[code], made[names[code]]) for code in np.unique(codes[start:stop]).tolist())
        others.mingle([pair for pair in present if pair[1].pending.count], int(tick[start]), kernels)
    return made


def _within(view: View, sampled: list[I8], material: Material, means: F8, kernels: Kernels) -> F8:
    """Covariance of rows about their client's mean, float64[D, D]; of the ring's columns only the diagonal."""
    values = view.encode(material.batch, np.concatenate(sampled), kernels).values.astype(np.float64)
    owners = owners_of(sampled)
    centred = values - np.array([values[owners == i].mean(axis=0) for i in range(len(sampled))])[owners]
    within = centred.T @ centred / max(len(values) - len(sampled), 1)
    for column in range(-4, 0):
        rate = float(means[:, column].mean())
        within[column, :] = within[:, column] = 0.0
        within[column, column] = rate * (1.0 - rate)
    return np.asarray(within + np.diag(np.maximum(_RIDGE * np.diag(within), _FLOOR)))


def _axes(view: View, sampled: list[I8], material: Material, shaping: list[Sketch], kernels: Kernels) -> Null:
    """Axes and spreads of ordinary accounts; the loudest tenth of them shapes nothing."""
    counts, sums = counts_and_sums(shaping, kernels)
    means = sums / counts[:, None]
    within = _within(view, sampled, material, means, kernels)
    root = np.linalg.inv(np.linalg.cholesky(within))
    kept = np.arange(len(counts))
    mean = np.median(means, axis=0)
    for _ in range(_TRIMS):
        between = np.cov(means[kept].T) - within * float(np.mean(1.0 / counts[kept]))
        values, vectors = np.linalg.eigh(between)
        between = (vectors * np.maximum(values, 0.0)) @ vectors.T + np.diag(_RIDGE * np.diag(within))
        spread, turned = np.linalg.eigh(root @ between @ root.T)
        nothing = np.zeros(0)
        axes = root.T @ turned
        null = Null(mean, axes, np.maximum(spread, 0.0), 1.0, means, nothing, nothing, nothing, nothing, nothing)
        lengths = np.linalg.norm(null.whiten(counts, sums), axis=1)
        kept = np.flatnonzero(lengths <= np.quantile(lengths, 1.0 - _LOUDEST))
        mean = means[kept].mean(axis=0)
    return null


def _measure(null: Null, view: View, held: list[Sketch], kernels: Kernels) -> Null:
    """The null's own part, from clients that the axes have not seen."""
    counts, sums = counts_and_sums(held, kernels)
    y = null.whiten(counts, sums)
    cap = float(np.median(np.linalg.norm(y, axis=1)))
    fired, tried = counted(counts, sums, columns_of(view.names, CHANNELS))
    names = channels_of(view.names)
    rates = null_of(np.stack([fired, tried], axis=1), names)
    tails = Seen.of(counts, sums, view.names, rates, kernels).tails
    odd, far = (_ratios(y[odd_in(tails, names, of)], cap, view, "odd") for of in (ADVERSARIAL, CHANNELS))
    ratios = _ratios(y, cap, view, "all")
    return Null(null.mean, null.axes, null.spread, cap, y, ratios, rates, tails, odd, far)


def _ratios(y: F8, cap: float, view: View, which: str) -> F8:
    """Top eigenvalues of groups of ordinary clients, in units of the edge; none where there are too few."""
    if len(y) < FEWEST:
        return np.zeros(0)
    draw = rng("campaign_extraction", f"{view.model}/{view.view}/{which}", 0.0)
    sizes = sorted({max(FEWEST * 2 // 3, len(y) // part) for part in (4, 3, 2)})
    return np.array(
        [
            spectrum(y[draw.choice(len(y), size, replace=False)], cap).value / edge(y.shape[1], size)
            for size in sizes
            for _ in range(_DRAWS // len(sizes))
        ]
    )
