"""Learns from clients what accounts of one model are held against: offline, for ``baseline fit``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_channels import (
    COLUMNS,
    KEPT_DIMS,
    Frame,
    Reference,
    Space,
    centrality,
    ends_of,
    request_keys,
    residual,
    uncertainty,
    window_rows,
)
from mlsecd.detectors._extraction_clients import evenly
from mlsecd.detectors._extraction_null import RARE_TAILS, TAILS, cuts_of, scale_of, sharp_null_of, weights_of
from mlsecd.detectors.base import rng
from mlsecd.kernels import Kernels
from mlsecd.records import RequestBatch
from mlsecd.windows.recent import Recent

__all__ = [
    "MIN_CLIENTS",
    "MIN_QUERIES",
    "Material",
    "balanced",
    "curves_of",
    "frame_of",
    "highest",
    "learn",
    "owners_of",
    "sample",
    "walk",
]

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

MIN_QUERIES: Final = 10  # distinct queries before an account is judged, in calibration as in service
MIN_CLIENTS: Final = 30  # a third for the reference, two thirds for the threshold
_CLASS_ROWS: Final = 5  # fewer rows of a class do not make it known
_CLASSES_MAX: Final = 256
_FOLDS: Final = 4
_POOL_ROWS: Final = 8_192
_PROBES: Final = 512
_LAW_FROM: Final = 10  # rows: with fewer a query is held against none
_NEIGHBOURS: Final = 10
_RESIDUAL_SHARE: Final = 0.1  # of the variance within classes is on the axes that are the residual
_NEAR_SHARE: Final = 0.05  # of ordinary queries lie this near to a window of other clients' queries


@dataclass(frozen=True, slots=True)
class Material:
    """What one reference is learned from.

    Attributes
    ----------
    clients
        Rows of each eligible client, in order of completion; all have the view's inputs.
    widths
        Raw coordinates by letter of the view.
    """

    model: str
    view: str
    batch: RequestBatch
    clients: dict[str, I8]
    widths: dict[str, int]


@dataclass(frozen=True, slots=True)
class Path:
    """What one client's rows did to an account."""

    tally: NDArray[np.int32]  # [2, C]
    best: F8  # [C]
    crowding: F8  # [n], NaN where it was not measured
    back: F8  # [n], likewise


def walk(rows: Any, reference: Reference, kernels: Kernels, epoch_seconds: float) -> Path:
    """Fold one client's rows, in order, into fresh accounts, one an epoch; counts add up, the best stays."""
    channels = len(kernels.CHANNELS)
    total = Path(np.zeros((2, channels), np.int32), np.zeros(channels), rows.crowding, rows.back)
    epochs = np.floor((rows.ts - rows.ts[:1]) / epoch_seconds)
    cuts = [0, *(np.flatnonzero(np.diff(epochs)) + 1).tolist(), len(epochs)]
    gate = np.array([np.inf, 0.0, 0.0, MIN_QUERIES])
    space = reference.window_space
    for start, stop in pairwise(cuts):
        recent = Recent(space.dims, window_rows(space.dims))
        recent.make_room(stop - start)
        seen, tally, best = np.zeros(2, np.int64), np.zeros((2, channels), np.int16), np.zeros(channels)
        account = kernels.Account(recent.codes, recent.labels, recent.keys, recent.pushed, seen, tally, best)
        kernels.scan(account, rows, reference.plan, gate, start, stop)
        total.tally[:] += tally
        np.maximum(total.best, best, out=total.best)
    return total


def sample(material: Material, rows: I8, kernels: Kernels) -> I8:
    """Up to 200 of one client's rows, evenly spread over its distinct ones."""
    _, first = np.unique(request_keys(material.batch, rows, material.widths, kernels), return_index=True)
    distinct = rows[np.sort(first)]
    return np.asarray(evenly(distinct))


def balanced(material: Material, names: Sequence[str], kernels: Kernels) -> list[I8]:
    """Samples of these clients, none longer than the median: who asks more than others owns no class and no cut."""
    sampled = [sample(material, material.clients[name], kernels) for name in names]
    most = max(int(np.median([len(own) for own in sampled])), MIN_QUERIES)
    return [evenly(own, most) for own in sampled]


def _known_classes(labels: list[str | None]) -> tuple[str, ...]:
    named, counts = np.unique([name for name in labels if name is not None], return_counts=True)
    frequent = sorted(zip(-counts, named, strict=True))[:_CLASSES_MAX]
    return tuple(sorted(str(name) for count, name in frequent if -count >= _CLASS_ROWS))


def _gaussian(u: F4, classes: I8, count: int) -> tuple[F4, F4, int]:
    """Whitening, whitened centroids, and the first axis of the residual.

    One covariance within classes, shrunk (Ledoit & Wolf 2004); its axes from the most to the least varying.
    """
    from sklearn.covariance import LedoitWolf  # noqa: PLC0415 - the daemon never imports it

    mean = u.mean(axis=0)
    centroids = np.tile(mean.astype(np.float64), (count + 1, 1))
    for c in range(count):
        own = u[classes == c]
        centroids[c] = (own.sum(axis=0) + _CLASS_ROWS * mean) / (len(own) + _CLASS_ROWS)
    covariance = LedoitWolf(assume_centered=True).fit(u - centroids[classes]).covariance_
    covariance += np.eye(len(mean)) * max(1e-6 * np.trace(covariance) / len(mean), 1e-9)
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    first = int(np.searchsorted(np.cumsum(variances) / variances.sum(), 1.0 - _RESIDUAL_SHARE)) + 1
    whiten = axes / np.sqrt(variances)
    return whiten.astype(np.float32), (centroids @ whiten).astype(np.float32), min(first, len(variances) - 1)


def _space(x: F4, owners: I8, classes: I8, count: int, kernels: Kernels) -> Space:
    """Learn one space from sampled rows.

    Coordinates are divided by the greater of their own spread and the median spread: units do not
    matter, and what hardly varies is not blown up to count as much as what does.
    """
    low, high = ends_of(x)
    x = np.clip(x, low, high)
    offset = x.mean(axis=0, dtype=np.float64)
    spread = x.std(axis=0, dtype=np.float64)
    varying = spread[spread > 0]
    divisor = np.maximum(spread, np.median(varying) if len(varying) else 1.0)
    matrix = np.diag(1.0 / divisor)
    if len(offset) > KEPT_DIMS:
        _, _, axes = np.linalg.svd((x - offset) / divisor, full_matrices=False)
        matrix = matrix @ axes[:KEPT_DIMS].T
    offset, matrix = offset.astype(np.float32), np.ascontiguousarray(matrix, np.float32)
    u = kernels.project(x, offset, matrix)
    step = max(float(np.quantile(np.abs(u), 0.999)) * 1.5 / 127.0, 1e-6)
    nothing = np.full(2, np.inf)
    distances, residuals = np.empty(len(u)), np.empty(len(u))
    folds = owners % _FOLDS
    for fold in np.unique(folds):  # rows are scored by a reference that has not seen their client
        others, out = folds != fold, folds == fold
        whiten, centroids, first = _gaussian(u[others], classes[others], count)
        held = Space(low, high, offset, matrix, step, whiten, centroids, first, nothing, nothing, nothing[:1])
        near = classes[out].astype(np.int32)
        distances[out] = kernels.mahalanobis(u[out], whiten, centroids, near)
        residuals[out] = residual(u[out], held, near, kernels)
    whiten, centroids, first = _gaussian(u, classes, count)
    central = cuts_of(centrality(u, kernels), TAILS[1:])
    cuts = cuts_of(distances), cuts_of(residuals), central
    return Space(low, high, offset, matrix, step, whiten, centroids, first, *cuts)


def _curves(codes: NDArray[np.int8], owners: I8, seed: str, kernels: Kernels) -> tuple[NDArray[np.int32], F8]:
    """Near radius and typical 10-neighbour distance, by rows in the window.

    Measured between queries of *different* clients, for windows of some sizes, and drawn on by a
    power law: so a large account is held against what independent queries of its number would do,
    and "near" means nearer than other people's queries come.
    """
    window = window_rows(codes.shape[1])
    draw = rng("extraction_account", seed, 0.0)
    probes = evenly(np.arange(len(codes)), _PROBES)
    sizes, near, typical = [], [], []
    for size in (10, 32, 128, 512, window):
        nearest, crowding = [], []
        for probe in probes:
            others = np.flatnonzero(owners != owners[probe])
            if len(others) < size:
                continue
            against = np.ascontiguousarray(codes[draw.choice(others, size, replace=False)].T)
            squares = np.empty(size, np.int32)
            kernels.squared_distances(against, codes[probe], squares)
            nearest.append(max(math.sqrt(squares.min()), 0.5))
            crowding.append(max(kernels.nearest_mean(squares, _NEIGHBOURS), 0.5))
        if nearest:
            sizes.append(math.log(size))
            near.append(math.log(np.quantile(nearest, _NEAR_SHARE)))
            typical.append(math.log(np.median(crowding)))
    fills = np.log(np.maximum(np.arange(window + 1), 1))
    radius = np.exp(_power_law(sizes, near, fills))
    return np.floor(np.minimum(radius**2, 2**31 - 1)).astype(np.int32), _power_law(sizes, typical, fills)


def _power_law(sizes: list[float], values: list[float], at: F8) -> F8:
    slope = np.polyfit(sizes, values, 1)[0] if len(sizes) > 1 else 0.0
    return np.mean(values) + min(slope, 0.0) * (at - np.mean(sizes))  # more queries cannot lie further apart


def frame_of(material: Material, sampled: list[I8], kernels: Kernels) -> Frame:
    """Spaces, classes and cuts for single rows, learned from some rows of each client."""
    batch = material.batch
    rows = np.concatenate(sampled)
    owners = owners_of(sampled)
    labels = [None if name is None else str(name) for name in map(batch.text("predicted").at, rows)]
    known = _known_classes(labels)
    places = {name: i for i, name in enumerate(known)}
    classes = np.array([len(known) if name is None else places.get(name, len(known)) for name in labels], np.int64)
    spaces = {}
    for letter, width in material.widths.items():
        x = np.array(batch.ragged(COLUMNS[letter]).matrix(rows, width), np.float32)
        spaces[letter] = _space(x, owners, classes, len(known), kernels)
    unc = uncertainty(batch.ragged("scores"), kernels)[rows]
    return Frame(material.model, material.view, spaces, known, cuts_of(unc[np.isfinite(unc)]))


def owners_of(sampled: list[I8]) -> I8:
    """Which client each of these rows is of, int64[n]."""
    return np.repeat(np.arange(len(sampled)), [len(own) for own in sampled])


def curves_of(frame: Frame, material: Material, sampled: list[I8], kernels: Kernels) -> tuple[NDArray[np.int32], F8]:
    """Near radius and typical 10-neighbour distance of queries of different clients, by rows in the window."""
    rows, owners = np.concatenate(sampled), owners_of(sampled)
    space = frame.window_space
    x = np.array(
        material.batch.ragged(COLUMNS["e" if "e" in frame.view else "f"]).matrix(rows, space.width), np.float32
    )
    codes = kernels.quantise(space.project(x, kernels), space.step)
    pool = evenly(np.arange(len(codes)), _POOL_ROWS)
    _, first = np.unique(codes[pool], axis=0, return_index=True)  # requests that many clients share count once
    pool = pool[np.sort(first)]
    return _curves(codes[pool], owners[pool], f"{material.model}/{material.view}", kernels)


def _blank(material: Material, sampled: list[I8], kernels: Kernels) -> Reference:
    """A reference with its spaces and its cuts for single rows; nothing yet of windows and counts."""
    frame = frame_of(material, sampled, kernels)
    near, typical = curves_of(frame, material, sampled, kernels)
    null, never, none = np.ones((3, len(kernels.CHANNELS))), np.full(2, np.inf), np.zeros(0)
    plan = kernels.Plan(null, near, typical, never, _law(near), _shares(frame, material, sampled), never)
    return Reference(frame.model, frame.view, frame.spaces, frame.classes, frame.unc, plan, none, none, {})


def _law(near: NDArray[np.int32]) -> F8:
    """The near radius as a power law of the rows that a query is held against: log radius = a + b log(rows)."""
    rows = np.arange(_LAW_FROM, len(near))
    slope, at_one = np.polyfit(np.log(rows), 0.5 * np.log(np.maximum(near[rows], 1)), 1)
    return np.array([at_one, slope])


def _shares(frame: Frame, material: Material, sampled: list[I8]) -> F8:
    """Of ordinary rows, by class; 1 for all that is none."""
    labels = frame.labels(material.batch.text("predicted"), np.concatenate(sampled))
    counts = np.bincount(frame.centroids_of(labels), minlength=len(frame.classes) + 1)[: len(frame.classes)]
    return np.append((counts + 1.0) / (len(labels) + len(frame.classes)), 1.0)


def learn(material: Material, names: Sequence[str], epoch_seconds: float, kernels: Kernels) -> Reference:
    """Spaces, cuts, nulls and scales of these clients; whoever calibrates must be none of them."""
    made = _blank(material, balanced(material, names, kernels), kernels)
    encoded = [made.encode(material.batch, material.clients[name], kernels) for name in names]

    def paths() -> Iterator[Path]:
        for rows in encoded:
            yield walk(rows, made, kernels, epoch_seconds)

    measured = list(paths())
    crowding = np.concatenate([evenly(path.crowding[np.isfinite(path.crowding)]) for path in measured])
    back = np.concatenate([evenly(path.back[np.isfinite(path.back)]) for path in measured])
    made.plan = made.plan._replace(cuts=cuts_of(crowding), back_cuts=cuts_of(back, RARE_TAILS))
    tallies = np.array([path.tally for path in paths()])
    made.plan = made.plan._replace(null=sharp_null_of(tallies, kernels.CHANNELS, kernels))
    made.plan.null[2] = scale_of(np.array([path.best for path in paths()])) * weights_of(kernels.CHANNELS)
    return made


def highest(
    reference: Reference, material: Material, names: Sequence[str], epoch_seconds: float, kernels: Kernels
) -> F8:
    """What these clients reach at most on their paths, by channel: float64[clients, C]."""
    best = np.zeros((len(names), len(kernels.CHANNELS)))
    for own, name in zip(best, names, strict=True):
        rows = reference.encode(material.batch, material.clients[name], kernels)
        own[:] = walk(rows, reference, kernels, epoch_seconds).best
    return best
