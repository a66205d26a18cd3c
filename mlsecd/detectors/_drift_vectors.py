"""What a reference learns of vectors: axes, summaries, and a pool that later ones are compared with as a whole."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_reference import SUMMARIES, bounded
from mlsecd.detectors._drift_sample import Sample
from mlsecd.detectors.base import rng
from mlsecd.kernels import Kernels
from mlsecd.records import F8, I8

__all__ = ["WINDOW", "Learned", "Projection", "learn_vectors", "nothing"]

WINDOW: Final = 250  # vectors in one test

_FIT_EVERY: Final = 3  # of the vectors one in three finds the axes, the others are scored along them
_ROWS_PER_AXIS: Final = 10
_EIGENVALUE_MIN: Final = 1e-6  # of the largest: below it a direction is rounding

_WIDTH: Final = 32  # leading principal scores, as they are: whitened ones find less
_POOL: Final = 500
_POOL_MIN: Final = 150
_STRETCHES: Final = 4  # of a test's size or less, to see how far the reference itself wanders
_STRETCH_MIN: Final = 20
_BLOCK_MIN: Final = 4  # of a thinned sample, which has many
_ERRORS: Final = 2.0  # of the mean over stretches, on top of it
_FARTHER: Final = 3.0  # that a window may stand than the mean over blocks: wander of two or three directions, 19 in 20


class Projection(NamedTuple):
    """See :func:`mlsecd.kernels.cpu_drift.drift_project`; width 0 is none. For the others see ``Reference``."""

    centre: F8
    medians: F8
    widths: F8
    axes: F8
    scales: F8
    pool: NDArray[np.float32]
    gammas: F8
    concession: F8
    middle: float
    width: int


class Learned(NamedTuple):
    """A projection, what it makes of the sample's rows, and which of them may be ranked among."""

    projection: Projection
    scores: NDArray[np.float32]  # [count, m + 5]
    names: dict[int, str]  # by column of the scores: those that become streams
    scored: NDArray[np.bool_]


def learn_vectors(sample: Sample, axes: int, kernels: Kernels) -> Learned:
    """Learn from a sample's vectors.

    Rows that the axes were found on look closer to the centre than any later row (by twice the
    number of axes over the rows, in squared distance): they are never ranked among.
    """
    vectors = sample.vectors[: sample.count]
    scored = np.arange(sample.count) % _FIT_EVERY != 0
    projection = _find_axes(vectors[~scored]) if vectors.shape[1] else None
    if projection is None:
        return Learned(nothing(), np.zeros((sample.count, 0), np.float32), {}, scored)
    scores = kernels.drift_project(vectors, *projection[:4], 0.0)
    count = projection.axes.shape[1]
    middle = float(np.nanmedian(scores[scored, count + 1]))
    projection = projection._replace(middle=middle, width=sample.width)
    scores = kernels.drift_project(vectors, *projection[:4], middle)
    blocks = np.arange(sample.count) // (sample.block if sample.stride > 1 else sample.count)
    scaled = bounded(scores, projection.scales)[scored]
    projection = _with_pool(projection, scaled, blocks[scored], kernels)
    leading = min(count, (axes + 1) // 2)
    ends = [*range(leading), *range(max(leading, count - axes // 2), count)]
    names = {**{at: f"axis:{at + 1}" for at in ends}, **{count + at: name for at, name in enumerate(SUMMARIES)}}
    far = np.finfo(np.float32).max
    return Learned(projection, np.clip(scores, -far, far).astype(np.float32), names, scored)


def nothing() -> Projection:
    """Of rows without vectors."""
    none, pool = np.zeros(0), np.zeros((0, 0), np.float32)
    return Projection(none, none, none, np.zeros((0, 0)), none, pool, np.zeros(3), np.zeros(3), 0.0, 0)


def _find_axes(vectors: NDArray[np.float32]) -> Projection | None:
    """Principal axes; ``None`` where there are too few vectors or they hardly vary."""
    fine = vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64)
    most = len(fine) // _ROWS_PER_AXIS
    if most < 2:
        return None
    centre = fine.mean(axis=0)
    powers, axes = np.linalg.eigh(np.cov(fine, rowvar=False).reshape(len(centre), -1))
    powers, axes = powers[::-1][:most], axes[:, ::-1][:, :most]
    held = powers > _EIGENVALUE_MIN * powers[0]
    if held.sum() < 2:
        return None
    deviations = fine.std(axis=0)
    widths = np.where(deviations > 1e-9 * deviations.max(), deviations, np.inf)
    spreads = np.sqrt(powers[held])
    return nothing()._replace(
        centre=centre,
        medians=np.median(fine, axis=0),
        widths=widths,
        axes=np.ascontiguousarray(axes[:, held] / spreads),
        scales=spreads[:_WIDTH].copy(),
        pool=np.zeros((0, min(_WIDTH, len(spreads))), np.float32),
    )


def _with_pool(projection: Projection, scaled: Any, blocks: I8, kernels: Kernels) -> Projection:
    """Add the pool, evenly spaced; the other rows tell how far stretches of the reference wander.

    ``blocks`` says which rows were neighbours.
    """
    some = np.isfinite(scaled).all(axis=1)
    fine, blocks = scaled[some].astype(np.float32), blocks[some]
    size = min(_POOL, (len(fine) + 1) // 2)
    if size < _POOL_MIN:
        return projection
    chosen = np.linspace(0, len(fine) - 1, size).astype(np.int64)
    pool, rest = np.ascontiguousarray(fine[chosen]), np.delete(np.arange(len(fine)), chosen)
    gammas = kernels.drift_mmd_widths(pool)
    if blocks[0] == blocks[-1]:
        conceded = _concession(fine[rest], pool, gammas, kernels)
    else:
        conceded = _concession_of_blocks(fine[rest], blocks[rest], pool, gammas, kernels)
    return projection._replace(pool=pool, gammas=gammas, concession=conceded)


def _concession(rows: NDArray[np.float32], pool: NDArray[np.float32], gammas: F8, kernels: Kernels) -> F8:
    """How far stretches of the reference stand from its pool: float64[3], what a test is to concede of each distance.

    Each is nothing in the mean where rows are independent. Where neighbours go together it is so much that
    later windows may stand as far; a stretch shorter than a window stands farther, which errs on the safe side.
    """
    length = min(WINDOW, len(rows) // _STRETCHES)
    if length < _STRETCH_MIN:
        return np.zeros(3)
    stretches = len(rows) // length
    distances = _apart([rows[at * length : (at + 1) * length] for at in range(stretches)], pool, gammas, kernels)
    upper = distances.mean(axis=0) + _ERRORS * distances.std(axis=0, ddof=1) / stretches**0.5
    return np.maximum(np.maximum(upper, distances.max(axis=0)), 0.0)


def _concession_of_blocks(
    rows: NDArray[np.float32], blocks: I8, pool: NDArray[np.float32], gammas: F8, kernels: Kernels
) -> F8:
    """The same of a thinned sample, whose blocks lie far apart: a stretch over several of them would hide the wander.

    There are many and they are short, so that the farthest of them says nothing by itself. Their mean distance is told
    from none, and a window may stand a few times as far; where it plainly is not none, as far as the farthest
    two neighbours: a night has few rows, and so few blocks.
    """
    cuts = np.flatnonzero(np.diff(blocks)) + 1
    stretches = [one for one in np.split(rows, cuts) if len(one) >= _BLOCK_MIN]
    if len(stretches) < _STRETCHES:
        return _concession(rows, pool, gammas, kernels)
    distances = _apart(stretches, pool, gammas, kernels)
    mean, error = distances.mean(axis=0), distances.std(axis=0, ddof=1) / len(stretches) ** 0.5
    conceded = _FARTHER * np.maximum(mean, 0.0) + _ERRORS * error
    farthest = np.where(mean > _ERRORS * error, (0.5 * (distances[1:] + distances[:-1])).max(axis=0), 0.0)
    return np.maximum(conceded, farthest)


def _apart(
    stretches: list[NDArray[np.float32]], pool: NDArray[np.float32], gammas: F8, kernels: Kernels
) -> NDArray[np.float64]:
    draw = rng("drift_requests", "concession", 0.0)
    return np.array([kernels.drift_mmd(pool, one, gammas, draw, 0).apart for one in stretches])
