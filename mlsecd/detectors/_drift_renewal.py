"""Whether a newly learned sample still looks like the pinned reference: poison that comes in small doses."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from mlsecd.detectors._drift_effect import effect_of_rank, effect_of_shares
from mlsecd.detectors._drift_reference import Reference, indicators
from mlsecd.detectors._drift_sample import NO_CLASS, OTHER_CLASS, Sample
from mlsecd.detectors._drift_season import at_times
from mlsecd.kernels import Kernels
from mlsecd.records import F8

__all__ = ["STRAY_MIN", "Strayed", "strayed"]

STRAY_MIN: Final = 0.1  # below it nobody is asked anything, however certain it is
_ROWS_MIN: Final = 100
_LEAST: Final = 0.75  # of the least effect that bets win on: one look at a whole sample has less to make up for


class Strayed(NamedTuple):
    """A stream of a new sample that stands apart from the pinned reference."""

    name: str
    before: float
    after: float
    effect: float
    rows: int


def strayed(pinned: Reference, sample: Sample, kernels: Kernels) -> list[Strayed]:
    """The streams whose mean moved by more than the reference can err, the farthest first.

    One look at a whole sample, not a sequential test: what it costs in false alarms is that of four
    standard errors once a renewal.
    """
    values, times = _values(pinned, sample, kernels), sample.times[: sample.count]
    ranks = kernels.drift_ranks(values, pinned.values_sorted, pinned.offsets, pinned.two_valued)
    if pinned.seasonal:
        ranks = (ranks - at_times(pinned.season, times)) * at_times(pinned.weights, times)
    found = []
    for stream, name in enumerate(pinned.names):
        some = np.isfinite(ranks[:, stream])
        if some.sum() < _ROWS_MIN:
            continue
        rank, before = float(ranks[some, stream].mean()), float(pinned.means[stream])
        shares = pinned.offsets[stream] == pinned.offsets[stream + 1]
        effect = effect_of_shares(before, before + 2.0 * rank) if shares else effect_of_rank(rank)
        if abs(effect) > max(STRAY_MIN, _LEAST * float(abs(pinned.least[stream]))):
            found.append(Strayed(name, before, float(values[some, stream].mean()), effect, int(some.sum())))
    return sorted(found, key=lambda one: (-abs(one.effect), one.name))


def _values(pinned: Reference, sample: Sample, kernels: Kernels) -> F8:
    """What the pinned reference's streams read of a sample's rows, float64[n, k]."""
    count = sample.count
    parts = [sample.scalars[:count].astype(np.float64)]
    for at, (table, names) in enumerate(zip(sample.tables, pinned.classes, strict=True)):
        recode = np.full(len(table) + 2, len(names))
        for place, name in enumerate(names):
            if name in table:
                recode[table[name]] = place
        recode[NO_CLASS], recode[OTHER_CLASS] = NO_CLASS, len(names)
        parts.append(indicators(recode[sample.classes[:count, at]], len(names) + 1))
    if pinned.width:
        vectors = sample.vectors[:count]
        if sample.width != pinned.width:
            vectors = np.full((count, len(pinned.centre)), np.nan, np.float32)
        parts.append(
            kernels.drift_project(
                np.ascontiguousarray(vectors),
                pinned.centre,
                pinned.medians,
                pinned.widths,
                pinned.axes,
                pinned.middle,
            )
        )
    return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, pinned.chosen])
