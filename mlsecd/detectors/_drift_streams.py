"""What drift detection reads of request rows: columns, who sent them, and which of them count."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.kernels import Kernels
from mlsecd.records import F8, I8, Ragged, RequestBatch, Text

__all__ = ["CATEGORIES", "SCALARS", "SKETCH_WIDTH", "TWO_VALUED", "WINDOW_ROWS", "Admission", "Columns"]

_MEASURED: Final = ("input_tokens", "output_tokens", "duration_s", "confidence")
# Zeros and ones: errors, and whether a row carries a field at all. A field that appears or vanishes is drift.
TWO_VALUED: Final = (
    "error",
    "server_error",
    "has:input_tokens",
    "has:output_tokens",
    "has:duration_s",
    "has:status",
    "has:scores",
    "has:predicted",
    "has:vector",
)
SCALARS: Final = (*_MEASURED, *TWO_VALUED)
CATEGORIES: Final = ("predicted", "template", "finish_reason")  # text columns whose mix is watched
SKETCH_WIDTH: Final = 64  # longer vectors are folded into this many coordinates
_WIDTH_MAX: Final = 1024
_NUMBER_MAX: Final = 1e30
_VECTOR_MAX: Final = 1e15  # a coordinate; squares of thousands of them are numbers of float32 still

_SLOTS: Final = 1024  # clients that one model tells apart at a time, 32 bytes each
WINDOW_ROWS: Final = 200  # that count; within them a client has a share
_WINDOW_SECONDS: Final = 60.0


def _hashes(text: Text, salt: int) -> NDArray[np.uint64]:
    """uint64[n], 0 where absent. A collision only costs a row, so a checksum will do."""
    codes = text.codes.tolist()
    table = {code: (1 << 32) + zlib.crc32(text.values[code].encode(), salt) for code in set(codes) if code >= 0}
    return np.array([table.get(code, 0) for code in codes], np.uint64)


class Columns:
    """A batch's columns as drift detection reads them; made once for all models of the batch.

    Attributes
    ----------
    times
        float64[n], completion, seconds.
    scalars
        float64[n, 13] in the order of :data:`SCALARS`, NaN where absent.
    categories
        The text columns in the order of :data:`CATEGORIES`.
    clients, bodies
        uint64[n]; 0 where unknown. A row without a client is told by its network address.
    """

    __slots__ = (
        "_features",
        "_inputs",
        "_own",
        "_senders",
        "_widths",
        "bodies",
        "categories",
        "clients",
        "scalars",
        "times",
    )

    def __init__(self, batch: RequestBatch) -> None:
        self.times = batch.completion
        self.categories = tuple(batch.text(name) for name in CATEGORIES)
        self._senders = batch.text("client"), batch.text("network")
        clients = _hashes(self._senders[0], 1)
        known = clients != 0
        self.clients = clients if known.all() else np.where(known, clients, _hashes(self._senders[1], 2))
        self.bodies = _hashes(batch.text("body_hash"), 3)
        self._features = batch.ragged("features")
        self._inputs = batch.ragged("input_features")
        own = self._features.lengths
        self._own = own > 0
        widths = np.where(self._own, own, self._inputs.lengths)
        self._widths = np.where(widths <= _WIDTH_MAX, widths, 0)
        self.scalars = self._read_scalars(batch)

    def _read_scalars(self, batch: RequestBatch) -> F8:
        status, scores = batch.number("status"), _largest(batch.ragged("scores"))
        numbers = [_credible(batch.number(name)) for name in ("input_tokens", "output_tokens", "duration_s")]
        there = [np.isfinite(one) for one in (*numbers, status, scores)]
        there += [self.categories[0].codes >= 0, self._widths > 0]
        return np.column_stack((*numbers, scores, _at_least(status, 400.0), _at_least(status, 500.0), *there))

    def client_name(self, row: int) -> str:
        """Who sent a row, as :attr:`clients` tells them apart; empty where unknown."""
        told = [text.values[text.codes[row]] for text in self._senders if text.codes[row] >= 0]
        return told[0] if told else ""

    def widths(self, rows: I8) -> I8:
        """The length of each row's vector, int64; 0 where it has none of a length that is allowed."""
        return self._widths[rows]

    def vectors(self, rows: I8, width: int, kernels: Kernels) -> NDArray[np.float32]:
        """Vectors of this length, float32[len(rows), min(width, 64)]; NaN for rows that have another.

        ``features`` is read where a row has it, else ``input_features``.
        """
        fits, own = self._widths[rows] == width, self._own[rows]
        if (fits & own).all():
            made = self._features.matrix(rows, width)
        else:
            made = np.full((len(rows), width), np.nan, np.float32)
            for source, these in ((self._features, fits & own), (self._inputs, fits & ~own)):
                if these.any():
                    made[these] = source.matrix(rows[these], width)
        made = np.clip(made, -_VECTOR_MAX, _VECTOR_MAX)  # a new array, in one piece: one compiled kernel
        return kernels.drift_sketch(made, SKETCH_WIDTH) if width > SKETCH_WIDTH else made


def _credible(values: F8) -> F8:
    """Numbers beyond float32 are no measurements."""
    return np.where(np.abs(values) < _NUMBER_MAX, values, np.nan)


def _at_least(status: F8, least: float) -> F8:
    """1.0 for a status of this and above, NaN where absent."""
    return np.where(np.isnan(status), np.nan, (status >= least).astype(np.float64))


def _largest(scores: Ragged) -> F8:
    """The top score of each row, NaN where it has none."""
    top = np.full(len(scores), np.nan)
    some = np.flatnonzero(scores.lengths > 0)
    if len(some):
        # empty rows lie between: each maximum runs to the next row that has any
        top[some] = np.maximum.reduceat(scores.values[: scores.offsets[-1]], scores.offsets[some])
    return top


@dataclass(slots=True)
class Admission:
    """Which rows of one model count: no exact retries, and no client beyond its share.

    Both break exchangeability: one client's burst is one event, not hundreds.
    """

    table: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((_SLOTS, 4), np.uint64))
    window: F8 = field(default_factory=lambda: np.array([0.0, -np.inf, 0.0]))

    def admit(self, columns: Columns, rows: I8, client_rows: int, kernels: Kernels) -> I8:
        """Those of ``rows`` that count."""
        limits = np.array([WINDOW_ROWS, _WINDOW_SECONDS, client_rows], np.float64)
        keep = kernels.drift_admit(
            columns.clients[rows], columns.bodies[rows], columns.times[rows], self.table, self.window, limits
        )
        return rows[keep]
