"""What one model's accounts are held against, and how request rows become channel bits."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._sections import facts_of, numbers
from mlsecd.detectors.base import Arrays
from mlsecd.errors import MALFORMED, BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import Ragged, RequestBatch, Text

__all__ = [
    "COLUMNS",
    "KEPT_DIMS",
    "VIEWS",
    "Frame",
    "Reference",
    "Space",
    "centrality",
    "ends_of",
    "request_keys",
    "residual",
    "uncertainty",
    "usable",
    "window_rows",
]

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

KEPT_DIMS: Final = 64  # wider vectors are projected by the baseline's own PCA
COLUMNS: Final = {"f": "features", "e": "input_features"}
# Which inputs a row has; each has references of its own, so that a row without one input is held
# against ordinary rows seen in the same way. The first that fits a row is used.
VIEWS: Final = ("fe", "f", "e")
_WINDOW_BYTES: Final = 32_768  # of vectors: 1,024 rows of 32 coordinates
_WINDOW_ROWS: Final = 1_024
_FACTS: Final = frozenset({"clients", "clients_per_week", "last_ts", "suspects"})
_LABELS_MAX: Final = 65_536  # texts whose code is remembered
_OOD_BIT: Final = {"f": 0, "e": 2}  # the channel of p <= 0.05; the next is that of p <= 0.005
_UNC_BIT: Final = 4
_RESIDUAL_BIT: Final = {"f": 6, "e": 8}
_CENTRAL_BIT: Final = 10  # p <= 0.005, of features alone: light and contrast move inputs towards their middle


_EDGE: Final = 0.05  # of the rows lie beyond what is taken for the span of a coordinate,
_REACH: Final = 4.0  # and so many spans further it ends: 15 standard deviations of a normal one
_OF_WINDOWS: Final = ("typical", "cuts", "law", "shares", "back_cuts")
_CUTS: Final = ("cuts", "residual_cuts", "central_cuts")


def window_rows(dims: int) -> int:
    """The most rows a window of ``dims`` coordinates holds: a hot account's memory is the same for any width."""
    return min(_WINDOW_ROWS, _WINDOW_BYTES // dims)


def uncertainty(scores: Ragged, kernels: Kernels) -> F8:
    """1 less the highest probability of each row, NaN where a row has none: float64[n]."""
    top: F8 = kernels.top_scores(scores.offsets, scores.values)
    return 1.0 - top


def residual(u: F4, space: Space, classes: NDArray[np.int32], kernels: Kernels) -> Any:
    """Squared Mahalanobis distance within the least varying axes, outside the principal subspace: float64[n].

    What holds between coordinates of ordinary queries is broken by queries that are made column by column
    or from other worlds, and shows where ordinary ones hardly vary (Jackson & Mudholkar 1979).
    """
    trailing = (np.ascontiguousarray(part[:, space.first :]) for part in (space.whiten, space.centroids))
    return kernels.mahalanobis(u, *trailing, classes)


def centrality(u: F4, kernels: Kernels) -> Any:
    """How near the middle of all ordinary queries each row lies: float64[n]. Mixtures of queries lie nearer."""
    return -kernels.squared_lengths(u)


def ends_of(x: F4) -> tuple[F4, F4]:
    """Where each coordinate of float32[n, D] ends, float32[D] each: far beyond what nine rows in ten span.

    One row in twenty on either side moves neither. A coordinate that hardly ever varies has the middle one's reach.
    """
    first, last = np.quantile(x.astype(np.float64), [_EDGE, 1.0 - _EDGE], axis=0)
    span = last - first
    reach = _REACH * np.maximum(span, np.median(span[span > 0]) if (span > 0).any() else 1.0)
    return (first - reach).astype(np.float32), (last + reach).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Space:
    """One vector column of one model: D raw, d kept coordinates, C known classes.

    Attributes
    ----------
    low, high
        float32[D]: what lies further out is taken to lie here, when the space is learned and ever after: a few
        numbers of 1e38 must neither own an axis nor overflow one (winsorised, Tukey 1962).
    offset, matrix
        float32[D], [D, d]: ``u = (x - offset) @ matrix`` has coordinates of spread 1 or less.
    step
        Of the rounding to bytes, in units of u.
    whiten, centroids
        float32[d, d], [C + 1, d]: the squared distance of ``u @ whiten`` to its class's centroid is
        the Mahalanobis score; the last centroid serves unknown and absent classes.
    first
        The first of the whitened coordinates that are the residual: least varying, a tenth of the variance.
    cuts, residual_cuts
        float64[2]: scores above these have conformal p <= 0.05 and p <= 0.005.
    central_cuts
        float64[1]: p <= 0.005.
    """

    low: F4
    high: F4
    offset: F4
    matrix: F4
    step: float
    whiten: F4
    centroids: F4
    first: int
    cuts: F8
    residual_cuts: F8
    central_cuts: F8

    @property
    def width(self) -> int:
        """Raw coordinates."""
        return len(self.offset)

    @property
    def dims(self) -> int:
        """Kept coordinates."""
        return self.matrix.shape[1]

    def project(self, x: F4, kernels: Kernels) -> F4:
        """Coordinates of float32[n, D], of spread 1 or less: float32[n, d]."""
        made: F4 = kernels.project(np.clip(x, self.low, self.high), self.offset, self.matrix)
        return made

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """For a section."""
        return {
            f"{prefix}.low": self.low,
            f"{prefix}.high": self.high,
            f"{prefix}.offset": self.offset,
            f"{prefix}.matrix": self.matrix,
            f"{prefix}.step": np.array([self.step]),
            f"{prefix}.whiten": self.whiten,
            f"{prefix}.centroids": self.centroids,
            f"{prefix}.first": np.array([self.first]),
            f"{prefix}.cuts": self.cuts,
            f"{prefix}.residual_cuts": self.residual_cuts,
            f"{prefix}.central_cuts": self.central_cuts,
        }

    @classmethod
    def of(cls, arrays: Arrays, prefix: str, classes: int) -> Space:
        """Out of a section; the shapes are checked, because kernels do not."""
        made = cls(
            numbers(arrays, f"{prefix}.low", np.float32),
            numbers(arrays, f"{prefix}.high", np.float32),
            numbers(arrays, f"{prefix}.offset", np.float32),
            numbers(arrays, f"{prefix}.matrix", np.float32),
            float(numbers(arrays, f"{prefix}.step")[0]),
            numbers(arrays, f"{prefix}.whiten", np.float32),
            numbers(arrays, f"{prefix}.centroids", np.float32),
            int(numbers(arrays, f"{prefix}.first")[0]),
            *(numbers(arrays, f"{prefix}.{name}", infinite=True) for name in _CUTS),
        )
        d = made.dims
        shapes = (made.matrix.shape[0], d <= KEPT_DIMS, made.whiten.shape, made.centroids.shape)
        ends = {made.low.shape, made.high.shape, made.offset.shape} == {(made.width,)}
        cuts = (made.cuts.shape, made.residual_cuts.shape, made.central_cuts.shape)
        sound = made.step > 0 and 0 <= made.first < d and cuts == ((2,), (2,), (1,)) and ends
        if shapes != (made.width, True, (d, d), (classes + 1, d)) or not sound:
            raise BaselineError("extraction_account: the baseline's arrays do not belong together")
        return made


@dataclass(slots=True)
class Frame:
    """What requests for one model, seen in one way, are measured in.

    Attributes
    ----------
    view
        The inputs that it needs, one of :data:`VIEWS`.
    spaces
        By letter of the view.
    classes
        Known predictions.
    unc
        float64[2], cuts of ``1 - p1``.
    """

    model: str
    view: str
    spaces: dict[str, Space]
    classes: tuple[str, ...]
    unc: F8
    _labels: dict[str, int] = field(default_factory=dict, kw_only=True)

    @property
    def window_space(self) -> Space:
        """The space that an account's window is kept in: of the input where there is one, for a prober moves it."""
        return self.spaces["e" if "e" in self.view else "f"]

    @property
    def widths(self) -> dict[str, int]:
        """Raw coordinates by letter of the view."""
        return {letter: space.width for letter, space in self.spaces.items()}

    @property
    def inputs(self) -> str:
        """What it measures, in words."""
        return " and ".join(COLUMNS[letter] for letter in self.view)

    def label(self, text: str) -> int:
        """A prediction as a number: its class's, or a hash above those."""
        code = self._labels.get(text)
        if code is None:
            if not self._labels or len(self._labels) >= _LABELS_MAX:
                self._labels = {known: i for i, known in enumerate(self.classes)}
            free = 32_767 - len(self.classes)
            code = self._labels.setdefault(text, len(self.classes) + zlib.crc32(text.encode()) % free)
        return code

    def labels(self, predicted: Text, rows: I8) -> NDArray[np.int16]:
        """int16[n]: :meth:`label` of these rows, -1 where absent."""
        codes = predicted.codes[rows]
        table = np.full(len(predicted.values) + 1, -1, np.int16)  # the last entry serves code -1
        for code in np.unique(codes[codes >= 0]):
            table[code] = self.label(str(predicted.values[code]))
        return table[codes]

    def centroids_of(self, labels: NDArray[np.int16]) -> NDArray[np.int32]:
        """int32[n]: the centroid that each row is held against, the last for unknown and absent classes."""
        known = len(self.classes)
        return np.where((labels >= 0) & (labels < known), labels, known).astype(np.int32)

    def projected(self, batch: RequestBatch, rows: I8, kernels: Kernels) -> dict[str, F4]:
        """float32[n, d] by letter: coordinates of spread 1 or less."""
        return {
            letter: space.project(
                np.array(batch.ragged(COLUMNS[letter]).matrix(rows, space.width), np.float32), kernels
            )
            for letter, space in self.spaces.items()
        }


@dataclass(slots=True)
class Reference(Frame):
    """What accounts of one model, seen in one way, are held against.

    Attributes
    ----------
    plan
        The kernels' ``Plan``.
    scores
        float64[N], ascending: each calibration client's highest score on its path.
    crossed
        float64[M], ascending: such scores of all clients, each by references that had not seen it.
    facts
        Numbers of the calibration, for gauges and evidence.
    """

    plan: Any
    scores: F8
    crossed: F8
    facts: dict[str, float]

    def encode(self, batch: RequestBatch, rows: I8, kernels: Kernels) -> Any:
        """The kernels' ``Rows`` of these rows of a batch, in this order; each has the inputs of :attr:`view`."""
        labels = self.labels(batch.text("predicted"), rows)
        classes = self.centroids_of(labels)
        fired = np.zeros(len(rows), np.uint16)
        tried = np.zeros(len(rows), np.uint16)
        codes = np.zeros((len(rows), 0), np.int8)
        for letter, u in self.projected(batch, rows, kernels).items():
            space = self.spaces[letter]
            score = kernels.mahalanobis(u, space.whiten, space.centroids, classes)
            kernels.mark(fired, tried, _OOD_BIT[letter], score, space.cuts)
            kernels.mark(fired, tried, _RESIDUAL_BIT[letter], residual(u, space, classes, kernels), space.residual_cuts)
            if letter == "f":
                kernels.mark(fired, tried, _CENTRAL_BIT, centrality(u, kernels), space.central_cuts)
            if space is self.window_space:
                codes = kernels.quantise(u, space.step)
        if batch.has("scores"):
            kernels.mark(fired, tried, _UNC_BIT, uncertainty(batch.ragged("scores"), kernels)[rows], self.unc)
        keys = request_keys(batch, rows, self.widths, kernels)
        written = np.full(len(rows), np.nan), np.full(len(rows), np.nan), np.zeros(len(rows), np.bool_)
        return kernels.Rows(codes, labels, keys, fired, tried, batch.completion[rows], *written)

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """For a section."""
        made = {
            f"{prefix}.unc": self.unc,
            f"{prefix}.null": self.plan.null,
            f"{prefix}.near": self.plan.near,
            f"{prefix}.typical": self.plan.typical,
            f"{prefix}.cuts": self.plan.cuts,
            f"{prefix}.law": self.plan.law,
            f"{prefix}.shares": self.plan.shares,
            f"{prefix}.back_cuts": self.plan.back_cuts,
            f"{prefix}.scores": self.scores,
            f"{prefix}.crossed": self.crossed,
        }
        for letter, space in self.spaces.items():
            made |= space.arrays(f"{prefix}.{letter}")
        return made

    def header(self) -> dict[str, Any]:
        """For a section."""
        return {"model": self.model, "view": self.view, "classes": list(self.classes), "facts": self.facts}

    @classmethod
    def of(cls, header: dict[str, Any], arrays: Arrays, prefix: str, kernels: Kernels) -> Reference:
        """Out of a section.

        Raises
        ------
        BaselineError
            Something is missing or does not belong together.
        """
        try:
            classes = tuple(str(name) for name in header["classes"])
            view = str(header["view"])
            spaces = {letter: Space.of(arrays, f"{prefix}.{letter}", len(classes)) for letter in view}
            plan = kernels.Plan(
                numbers(arrays, f"{prefix}.null"),
                numbers(arrays, f"{prefix}.near", np.int32),
                *(numbers(arrays, f"{prefix}.{name}", infinite="cuts" in name) for name in _OF_WINDOWS),
            )
            scores, crossed = (np.sort(numbers(arrays, f"{prefix}.{name}")) for name in ("scores", "crossed"))
            facts, unc = facts_of(header), numbers(arrays, f"{prefix}.unc", infinite=True)
            made = cls(str(header["model"]), view, spaces, classes, unc, plan, scores, crossed, facts)
        except MALFORMED as error:
            raise BaselineError(f"extraction_account: the baseline's part cannot be used: {error}") from error
        if not made._is_sound(kernels):
            raise BaselineError("extraction_account: the baseline was fitted by another version: fit it again")
        return made

    def _is_sound(self, kernels: Kernels) -> bool:
        """Whether all parts belong together: kernels do not look."""
        plan = self.plan
        if self.view not in VIEWS or not self.facts.keys() >= _FACTS:
            return False
        window = window_rows(self.window_space.dims)
        shapes = (plan.null.shape, plan.near.shape, plan.typical.shape, plan.shares.shape)
        wanted = ((3, len(kernels.CHANNELS)), (window + 1,), (window + 1,), (len(self.classes) + 1,))
        pairs = {plan.cuts.shape, plan.law.shape, plan.back_cuts.shape, self.unc.shape}
        if shapes != wanted or pairs != {(2,)} or self.scores.ndim != 1 or self.crossed.ndim != 1:
            return False
        positive = (plan.null > 0).all() and (plan.null[1] >= 1).all() and (plan.shares > 0).all()
        return bool(positive and (plan.near >= 0).all()) and len(self.scores) > 0 and len(self.crossed) > 0


def request_keys(batch: RequestBatch, rows: I8, widths: dict[str, int], kernels: Kernels) -> NDArray[np.uint32]:
    """uint32[n], equal for exact repeats: of the body's hash, or of the vectors where there is none."""
    keys = np.zeros(len(rows), np.uint32)
    body_hash = batch.text("body_hash")
    codes = body_hash.codes[rows]
    bare = codes < 0
    if bare.any():
        for letter, width in widths.items():
            x = np.array(batch.ragged(COLUMNS[letter]).matrix(rows[bare], width), np.float32)
            keys[bare] = keys[bare] * np.uint32(31) + kernels.vector_keys(x)
    if bare.all():
        return keys
    used, places = np.unique(codes[~bare], return_inverse=True)
    keys[~bare] = np.array([zlib.crc32(body_hash.values[code].encode()) for code in used], np.uint32)[places]
    return keys


def usable(column: Ragged, width: int) -> NDArray[np.bool_]:
    """bool[n]: rows that hold ``width`` finite numbers."""
    good: NDArray[np.bool_] = column.lengths == width
    rows = np.flatnonzero(good)
    good[rows] = np.isfinite(column.matrix(rows, width)).all(axis=1)
    return good
