"""A model's frozen reference: what its ordinary rows look like, stream by stream."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_sample import NO_CLASS, class_name
from mlsecd.detectors._drift_season import HOURS
from mlsecd.detectors._drift_streams import CATEGORIES, SCALARS, SKETCH_WIDTH, Columns
from mlsecd.kernels import Kernels
from mlsecd.kernels.drift_layout import BETS
from mlsecd.records import F8, I8, Text

__all__ = ["PREFIXES", "SUMMARIES", "Reference", "bounded", "indicators"]

# A text column's values are streams of these names, and the rest of them one more.
PREFIXES = (("class:", "other classes"), ("template:", "other templates"), ("finish:", "other finish reasons"))

SUMMARIES = ("spread", "mahalanobis", "leading", "residual", "coupling")  # of a vector, after its axis scores
_FAR: Final = 10.0  # standard deviations


def indicators(codes: NDArray[Any], count: int) -> F8:
    """One column of zeros and ones a class, NaN where the row has none."""
    made = (codes[:, None] == np.arange(count)).astype(np.float64)
    made[codes == NO_CLASS] = np.nan
    return made


def _shares(texts: Text, names: tuple[str, ...]) -> F8:
    """One column of zeros and ones for each of these values, and one for any other."""
    own = np.full(len(texts.values) + 1, NO_CLASS)
    table = {name: code for code, name in enumerate(names)}
    for code in set(texts.codes.tolist()) - {-1}:
        own[code] = table.get(class_name(texts.values[code]), len(table))
    return indicators(own[texts.codes], len(table) + 1)


@dataclass(frozen=True, slots=True)
class Reference:
    """Frozen at calibration, and never changed by what comes after it: k streams.

    Attributes
    ----------
    names
        Of streams; a predicted class is ``class:NAME``, see :data:`PREFIXES`.
    chosen
        int64[k]; which of all columns each stream reads (:meth:`values`).
    classes
        By text column, the values with a stream of their own, the most frequent first.
    values_sorted, offsets
        float32 and int64[k + 1]; the reference values, stream by stream; none for zeros and ones.
    two_valued
        float64[k, 2]; the ranks of 0 and 1 in a stream of zeros and ones.
    rows, means, steady
        float64[k]; reference rows, mean, and 1 where rows can be taken for exchangeable.
    bets, least
        float64[k, 2, 6], and float64[k]: the smallest effect that they win on.
    season, weights
        float32[k, 168]; the mean rank by hour of the week, zeros where none showed, and how well it is known.
    centre, medians, widths, axes, middle, width
        The projection of vectors of length ``width``, 0 where there is none.
    scales, pool, gammas, concession
        For the test of whole vectors (:mod:`mlsecd.detectors._drift_windows`): float64[q], what an axis score
        is multiplied with; float32[p, q], reference vectors so scaled, none where there are too few;
        float64[3], bandwidths; and float64[3], the squared distances that its own stretches wander, or float64[1]
        where it was made before second moments were compared, and they are not.
    crowd
        The largest share that one client had of 256 rows; 0 where none was seen.
    tenants, tenant_names
        Clients, as :class:`Columns` tells them apart, whose rows are no part of it and are not scored against it.
    start, end
        Event time of the first and last row, seconds.
    rate
        Rows a second that counted.
    """

    names: tuple[str, ...]
    chosen: NDArray[np.int64]
    classes: tuple[tuple[str, ...], ...]
    values_sorted: NDArray[np.float32]
    offsets: NDArray[np.int64]
    two_valued: NDArray[np.float64]
    rows: NDArray[np.float64]
    means: NDArray[np.float64]
    steady: NDArray[np.float64]
    bets: NDArray[np.float64]
    least: NDArray[np.float64]
    season: NDArray[np.float32]
    weights: NDArray[np.float32]
    centre: NDArray[np.float64]
    medians: NDArray[np.float64]
    widths: NDArray[np.float64]
    axes: NDArray[np.float64]
    scales: NDArray[np.float64]
    pool: NDArray[np.float32]
    gammas: NDArray[np.float64]
    concession: NDArray[np.float64]
    middle: float
    width: int
    crowd: float
    start: float
    end: float
    rate: float
    tenants: tuple[int, ...] = ()
    tenant_names: tuple[str, ...] = ()

    @property
    def seasonal(self) -> bool:
        """Whether any stream's season is known."""
        return bool(self.season.any())

    def values(self, columns: Columns, rows: I8, kernels: Kernels) -> tuple[F8, F8]:
        """What the streams read of these rows, and axis scores: float64[n, k] and float64[n, q], NaN where absent."""
        parts = [columns.scalars[rows]]
        parts += [
            _shares(category.take(rows), names)
            for category, names in zip(columns.categories, self.classes, strict=True)
        ]
        scores = np.zeros((len(rows), 0))
        if self.width:
            vectors = columns.vectors(rows, self.width, kernels)
            parts.append(kernels.drift_project(vectors, self.centre, self.medians, self.widths, self.axes, self.middle))
            scores = bounded(parts[-1], self.scales)
        return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, self.chosen]), scores

    def dump(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Plain values and arrays."""
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        arrays = {name: value for name, value in every.items() if isinstance(value, np.ndarray)}
        return {name: value for name, value in every.items() if name not in arrays}, arrays

    @staticmethod
    def load(plain: Any, arrays: dict[str, NDArray[Any]]) -> Reference:
        """What :meth:`dump` gave, checked: kernels trust every index in it.

        Raises
        ------
        ValueError
            It is damaged.
        """
        try:
            every: dict[str, Any] = msgspec.structs.asdict(msgspec.convert(plain, _Plain))
            alone = every.pop("concession")
            every |= arrays if alone is None else {**arrays, "concession": np.array([alone])}
            made = Reference(**every)
        except (msgspec.ValidationError, TypeError) as error:
            raise ValueError(f"a drift reference is damaged: {error}") from error
        made._check()
        return made

    def _check(self) -> None:
        k, d, m = len(self.names), len(self.centre), self.axes.shape[-1]
        q = len(self.scales)
        columns = len(SCALARS) + sum(map(len, self.classes)) + len(self.classes)
        columns += m + len(SUMMARIES) if self.width else 0
        shapes = {
            "chosen": (k,), "values_sorted": (len(self.values_sorted),), "offsets": (k + 1,), "two_valued": (k, 2),
            "rows": (k,), "means": (k,), "steady": (k,), "bets": (k, 2, BETS),
            "least": (k,), "season": (k, HOURS), "weights": (k, HOURS),
            "scales": (q,), "pool": (len(self.pool), q), "gammas": (3,),
            "centre": (d,), "medians": (d,), "widths": (d,), "axes": (d, m),
        }  # fmt: skip
        fine = all(getattr(self, name).shape == shape for name, shape in shapes.items())
        fine = fine and d == min(self.width, SKETCH_WIDTH) and q <= m
        fine = fine and len(self.classes) == len(CATEGORIES) and self.pool.dtype == np.float32
        fine = fine and self.values_sorted.dtype == np.float32
        fine = fine and self.concession.dtype == np.float64 and self.concession.shape in {(1,), (3,)}
        fine = fine and self.offsets.dtype == np.int64 and self.chosen.dtype == np.int64
        fine = fine and self.offsets[0] == 0 and self.offsets[-1] == len(self.values_sorted)
        fine = fine and bool((np.diff(self.offsets) >= 0).all())
        fine = fine and bool(((self.chosen >= 0) & (self.chosen < columns)).all())
        finite = (
            "bets", "least", "season", "weights", "scales", "pool", "gammas", "concession", "two_valued", "rows",
            "means", "values_sorted", "centre", "medians", "widths", "axes",
        )  # fmt: skip
        fine = fine and len(self.tenants) == len(self.tenant_names)
        if not fine or not all(np.isfinite(getattr(self, name)).all() for name in finite):
            raise ValueError("a drift reference is damaged: its arrays do not fit each other")


def bounded(scores: F8, scales: F8) -> F8:
    """Axis scores in units of the vectors, float64[n, q], each within ten standard deviations.

    One row far out would outweigh all others of a window, and hide what they do; of all rows alike, so that rows
    that were exchangeable still are.
    """
    return np.clip(scores[:, : len(scales)], -_FAR, _FAR) * scales


class _Plain(msgspec.Struct):
    """The part of a reference that is not arrays."""

    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    middle: float
    width: int
    crowd: float
    start: float
    end: float
    rate: float
    concession: float | None = None  # of a reference that was made before it became an array
    tenants: tuple[int, ...] = ()
    tenant_names: tuple[str, ...] = ()
