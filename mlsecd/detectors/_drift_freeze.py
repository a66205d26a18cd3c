"""From a sample of ordinary rows to a frozen reference."""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_calibration import Wander, calibrate, make_bets, threshold
from mlsecd.detectors._drift_effect import effect_of_rank, effect_of_shares
from mlsecd.detectors._drift_reference import PREFIXES, Reference, indicators
from mlsecd.detectors._drift_sample import NO_CLASS, Sample
from mlsecd.detectors._drift_season import HOURS, Season, at_times, fit_season
from mlsecd.detectors._drift_streams import SCALARS, TWO_VALUED
from mlsecd.detectors._drift_vectors import Projection, learn_vectors, nothing
from mlsecd.kernels import Kernels
from mlsecd.kernels.drift_layout import BETS
from mlsecd.records import F8

__all__ = ["Settings", "freeze", "freeze_columns"]

_STRIDE_NEAR: Final = 8  # blocks; where the kept ones lie farther apart, levels of hours fall between them unseen,
_HIDDEN_ERRORS: Final = (1.0, 2.0)  # and more is allowed for
_COVERAGE_MIN: Final = 0.5  # of the rows must have a value, or it is no stream
_TOLERANCE: Final = 0.01  # of plain columns, see drift_requests
_TEXTS_MAX: Final = (256, 8, 6)  # values with a stream of their own at most, by text column


class Settings(NamedTuple):
    """What of the configuration a reference depends on."""

    rows: int  # of a whole reference
    arm: int  # of a provisional one
    classes: int
    axes: int
    tolerance: float
    alarms_per_week: float  # that its streams share


class _Candidate(NamedTuple):
    """A column that may become a stream."""

    name: str
    column: int
    values: NDArray[np.float32]  # [count], NaN where absent
    two_valued: bool = False
    scored: NDArray[np.bool_] | None = None  # rows to rank among; None: all


class _Lasting(NamedTuple):
    """A candidate's ranks less their season, in order of time."""

    candidate: _Candidate
    kept: NDArray[np.float32]  # sorted; none of zeros and ones
    two: tuple[float, float]
    rows: int
    mean: float
    season: Season
    ranks: F8
    variance: float
    squared_error: float

    def wander(self, thinned: tuple[int, float], *, cautious: bool = False) -> Wander:
        return calibrate(self.ranks, self.variance, self.squared_error, *thinned, cautious, self.season.terms)


class _Stream(NamedTuple):
    """A candidate that passed."""

    lasting: _Lasting
    steady: bool
    bets: F8
    least: float


def freeze(sample: Sample, settings: Settings, kernels: Kernels) -> Reference:
    """Make the reference of a complete sample; it may hold no stream at all.

    A stream that hardly has values, never varies, or varies so much that no bet is sound, is left out.
    """
    classes = _frequent(sample, settings.classes)
    learned = learn_vectors(sample, settings.axes, kernels)
    candidates = _row_candidates(sample, classes)
    first = len(SCALARS) + sum(map(len, classes)) + len(classes)
    candidates += [
        _Candidate(name, first + at, learned.scores[:, at], scored=learned.scored) for at, name in learned.names.items()
    ]
    times = sample.times[: sample.count]
    longest = sample.block if sample.stride > 1 else sys.maxsize
    hidden = _HIDDEN_ERRORS[sample.stride > _STRIDE_NEAR]
    c = threshold(len(candidates), _rate(times, sample.seen), settings.alarms_per_week)
    streams = _streams(candidates, times, (longest, hidden), settings, c, kernels)
    return _join(streams, times, sample.seen, classes, learned.projection)


def freeze_columns(  # noqa: PLR0913, PLR0917 - a table, and what its streams are
    times: F8,
    values: NDArray[np.float32],
    names: tuple[str, ...],
    alarms_per_week: float,
    kernels: Kernels,
    two_valued: frozenset[str] = frozenset(),
) -> Reference:
    """The reference of plain columns, float32[n, c], one stream each at most; it has no texts and no vectors.

    Those named as ``two_valued`` hold zeros and ones.
    """
    settings = Settings(len(times), len(times) // 2, 0, 0, _TOLERANCE, alarms_per_week)
    c = threshold(len(names), _rate(times, len(times)), alarms_per_week)
    candidates = [_Candidate(name, at, values[:, at], name in two_valued) for at, name in enumerate(names)]
    streams = _streams(candidates, times, (sys.maxsize, 0.0), settings, c, kernels)
    return _join(streams, times, len(times), tuple(() for _ in PREFIXES), nothing())


def _rate(times: F8, seen: int) -> float:
    """Rows a second."""
    seconds = float(times[-1] - times[0]) if len(times) else 0.0
    return (seen - 1) / seconds if seconds > 0.0 else 0.0


def _join(
    streams: list[_Stream],
    times: F8,
    seen: int,
    classes: tuple[tuple[str, ...], ...],
    projection: Projection,
) -> Reference:
    lasting = [stream.lasting for stream in streams]
    return Reference(
        names=tuple(one.candidate.name for one in lasting),
        chosen=np.array([one.candidate.column for one in lasting], np.int64),
        classes=classes,
        values_sorted=np.concatenate([np.zeros(0, np.float32), *(one.kept for one in lasting)]),
        offsets=np.cumsum([0, *(len(one.kept) for one in lasting)], dtype=np.int64),
        two_valued=np.array([one.two for one in lasting], np.float64).reshape(-1, 2),
        rows=np.array([one.rows for one in lasting], np.float64),
        means=np.array([one.mean for one in lasting], np.float64),
        steady=np.array([stream.steady for stream in streams], np.float64),
        bets=np.array([stream.bets for stream in streams], np.float64).reshape(-1, 2, BETS),
        least=np.array([stream.least for stream in streams], np.float64),
        season=np.array([one.season.table for one in lasting], np.float32).reshape(-1, HOURS),
        weights=np.array([one.season.weights for one in lasting], np.float32).reshape(-1, HOURS),
        **projection._asdict(),
        crowd=0.0,
        start=float(times[0]) if len(times) else 0.0,
        end=float(times[-1]) if len(times) else 0.0,
        rate=_rate(times, seen),
    )


def _frequent(sample: Sample, limit: int) -> tuple[tuple[str, ...], ...]:
    """By text column, the values that have a stream each, the most frequent first."""
    found = []
    for at, table in enumerate(sample.tables):
        codes = sample.classes[: sample.count, at]
        counts = np.bincount(codes[codes >= 0], minlength=len(table))
        order = np.argsort(-counts, kind="stable")[: min(limit, _TEXTS_MAX[at])]
        names = list(table)
        found.append(tuple(names[code] for code in order.tolist() if counts[code]))
    return tuple(found)


def _row_candidates(sample: Sample, classes: tuple[tuple[str, ...], ...]) -> list[_Candidate]:
    scalars = sample.scalars[: sample.count]
    found = [_Candidate(name, at, scalars[:, at], two_valued=name in TWO_VALUED) for at, name in enumerate(SCALARS)]
    column = len(SCALARS)
    for at, (table, names) in enumerate(zip(sample.tables, classes, strict=True)):
        recode = np.full(len(table) + 2, len(names))  # its last two entries: another value, and none
        recode[[table[name] for name in names]] = np.arange(len(names))
        recode[-1] = NO_CLASS
        shares = indicators(recode[sample.classes[: sample.count, at]], len(names) + 1).astype(np.float32)
        prefix, other = PREFIXES[at]
        titles = [*(f"{prefix}{name}" for name in names), other]
        first = 1 if len(names) <= 2 else 0  # of two values each tells the other's share
        found += [
            _Candidate(titles[one], column + one, shares[:, one], two_valued=True) for one in range(first, len(titles))
        ]
        column += len(titles)
    return found


def _streams(  # noqa: PLR0913, PLR0917
    candidates: list[_Candidate], times: F8, thinned: tuple[int, float], settings: Settings, c: float, kernels: Kernels
) -> list[_Stream]:
    """The streams of those columns that can be one; see ``calibrate`` for ``thinned``, ``c`` is their threshold.

    Where rows plainly go together in one column, they are not taken for independent in any: two standard errors are
    little to see it by in a share, and a stream that passes by luck would alarm for as long as its reference stays.
    """
    lasting = [one for one in (_last(one, times, settings, kernels) for one in candidates) if one is not None]
    wanders = [one.wander(thinned) for one in lasting]
    if any(wander.plain for wander in wanders):
        wanders = [one.wander(thinned, cautious=True) for one in lasting]
    made = (_stream(one, wander, settings, c) for one, wander in zip(lasting, wanders, strict=True))
    return [stream for stream in made if stream is not None]


def _last(one: _Candidate, times: F8, settings: Settings, kernels: Kernels) -> _Lasting | None:
    """What is left of a column beside its season; ``None`` where it cannot be a stream."""
    some = np.isfinite(one.values)
    among = some if one.scored is None else some & one.scored
    rows = int(among.sum())
    if rows < settings.arm // 2 or some.mean() < _COVERAGE_MIN:
        return None
    kept = np.sort(one.values[among])
    mean = float(one.values[among].mean(dtype=np.float64))
    if not one.two_valued and kept[0] == kept[-1]:
        return None
    two, variance = _law_of_shares(kept) if one.two_valued else ((0.0, 0.0), 0.0)
    kept = kept[:0] if one.two_valued else kept
    values, offsets = one.values[some][:, None].astype(np.float64), np.array([0, len(kept)])
    ranks = kernels.drift_ranks(values, kept, offsets, np.array([two]))[:, 0]
    plain = variance or float(np.mean(ranks**2)) + 1.0 / (4.0 * (rows + 2))
    season = fit_season(times[some], ranks, plain)
    mean_ranks, weights = at_times(np.stack((season.table, season.weights)), times[some]).T
    ranks = (ranks - mean_ranks) * weights
    squared_error = plain * season.leverage * (len(ranks) / rows)
    variance = variance or float(np.mean(ranks**2)) + 1.0 / (4.0 * (rows + 2))
    return _Lasting(one, kept, two, rows, mean, season, ranks, variance, squared_error)


def _stream(lasting: _Lasting, wander: Wander, settings: Settings, c: float) -> _Stream | None:
    """The stream of a column; ``None`` where no bet on it is sound."""
    one, season, mean = lasting.candidate, lasting.season, lasting.mean
    low, high = lasting.two if one.two_valued else (-0.5, 0.5)
    ends = low - float(season.table.max()), high - float(season.table.min())
    bets = make_bets(wander, *ends, settings.tolerance, c)
    if bets is None:
        return None
    least = effect_of_rank(bets.least)
    if one.two_valued:
        least = max(abs(effect_of_shares(mean, mean + shift)) for shift in (2.0 * bets.least, -2.0 * bets.least))
    return _Stream(lasting, wander.steady, bets.pays, least)


def _law_of_shares(kept: NDArray[np.float32]) -> tuple[tuple[float, float], float]:
    """Ranks of 0 and 1 among zeros and ones, and the variance of such a rank."""
    rows, ones = len(kept), float(kept.sum())
    two = ((rows - ones + 1) / (2 * (rows + 1)) - 0.5, (2 * (rows - ones) + ones + 1) / (2 * (rows + 1)) - 0.5)
    share = (ones + 1) / (rows + 2)  # Laplace's: what never happened may happen
    return two, share * (1.0 - share) / 4.0
