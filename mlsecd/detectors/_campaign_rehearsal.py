"""A look at made-up accounts, so that every kernel is compiled before a real one."""

from __future__ import annotations

import numpy as np

from mlsecd.detectors._campaign_null import Null
from mlsecd.detectors._campaign_sketches import Others, Sketch
from mlsecd.detectors._campaign_telling import Seen
from mlsecd.detectors._campaign_view import View
from mlsecd.detectors._extraction_channels import COLUMNS
from mlsecd.kernels import Kernels
from mlsecd.records import Ragged, RequestBatch

__all__ = ["rehearse"]

_RING_ROWS = 256  # the smallest; what is compiled does not depend on it


def rehearse(view: View, null: Null, kernels: Kernels) -> None:
    """Fold, compare and judge one row and two: to numba an array of a single row is of another kind."""
    for rows in (1, 2):
        sketch = Sketch.new(view)
        sketch.fold(view.encode(_batch(view, rows), np.arange(rows), kernels), 0, rows, view, kernels)
        Others(view, _RING_ROWS).mingle([("0:0:rehearsal", sketch)], 0, kernels)
    nothing = np.zeros((1, len(view.names)))
    Seen.of(np.ones(1), nothing, view.names, null.rates, kernels)


def _batch(view: View, rows: int) -> RequestBatch:
    """Requests with zeros for vectors, and a score."""
    columns = {COLUMNS[letter]: _ragged(rows, width) for letter, width in view.widths.items()}
    return RequestBatch({"ts": np.zeros(rows), "scores": _ragged(rows, 1), **columns})


def _ragged(rows: int, width: int) -> Ragged:
    return Ragged(np.arange(rows + 1, dtype=np.int64) * width, np.zeros(rows * width, np.float32))
