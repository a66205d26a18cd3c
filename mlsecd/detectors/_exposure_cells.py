"""A model's input space, cut into cells, and which cell a vector lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_channels import KEPT_DIMS
from mlsecd.detectors._sections import numbers
from mlsecd.detectors.base import Arrays
from mlsecd.errors import BaselineError
from mlsecd.kernels import Kernels

__all__ = ["Codebook", "coordinates"]

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]

CELLS_MAX: Final = 1_024
_CHUNK: Final = 8_192  # rows at once: 32 MiB of distances to 1,024 cells


@dataclass(frozen=True, slots=True)
class Codebook:
    """Cells of one vector column of one model: D raw and d kept coordinates, K cells.

    Attributes
    ----------
    offset, matrix
        float32[D], [D, d]: ``u = (x - offset) @ matrix``.
    step
        Of the rounding of u to bytes.
    centres
        int8[K, d]; a vector lies in the cell of the nearest, the first of equals.
    """

    offset: F4
    matrix: F4
    step: float
    centres: NDArray[np.int8]

    @property
    def width(self) -> int:
        """Raw coordinates."""
        return len(self.offset)

    @property
    def cells(self) -> int:
        """K."""
        return len(self.centres)

    def codes(self, x: F4, kernels: Kernels) -> NDArray[np.int8]:
        """int8[n, d] of float32[n, D]."""
        quantised: NDArray[np.int8] = kernels.quantise(kernels.project(x, self.offset, self.matrix), self.step)
        return quantised

    def places(self, x: F4, kernels: Kernels) -> I8:
        """The cell of each row of float32[n, D]: int64[n].

        Bytes and at most 64 coordinates: all sums are whole numbers below 2**24, which float32 holds
        exactly. So the fast matrix product gives the same cells however rows are cut into batches.
        """
        centres = self.centres.astype(np.float32)
        squares = (centres * centres).sum(axis=1)
        found = np.zeros(len(x), np.int64)
        for start in range(0, len(x), _CHUNK):
            part = slice(start, start + _CHUNK)
            found[part] = (squares - 2.0 * (self.codes(x[part], kernels).astype(np.float32) @ centres.T)).argmin(axis=1)
        return found

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """For a section."""
        return {
            f"{prefix}.offset": self.offset,
            f"{prefix}.matrix": self.matrix,
            f"{prefix}.step": np.array([self.step]),
            f"{prefix}.centres": self.centres,
        }

    @classmethod
    def of(cls, arrays: Arrays, prefix: str) -> Codebook:
        """Out of a section; the shapes are checked, because kernels do not."""
        made = cls(
            numbers(arrays, f"{prefix}.offset", np.float32),
            numbers(arrays, f"{prefix}.matrix", np.float32),
            float(numbers(arrays, f"{prefix}.step")[0]),
            numbers(arrays, f"{prefix}.centres", np.int8),
        )
        d = made.matrix.shape[-1]
        shapes = (made.offset.ndim, made.matrix.shape, made.centres.shape)
        sound = shapes == (1, (made.width, d), (made.cells, d)) and 0 < d <= KEPT_DIMS and 0 < made.cells <= CELLS_MAX
        if not sound or not made.step > 0:
            raise BaselineError("extraction_exposure: the baseline's arrays do not belong together")
        return made


def coordinates(x: F4) -> tuple[F4, F4]:
    """Offset and matrix that bring float32[n, D] to at most 64 coordinates of spread 1 or less.

    Coordinates are divided by the greater of their own spread and the median spread: units do not
    matter, and what hardly varies is not blown up to count as much as what does.
    """
    offset = x.mean(axis=0, dtype=np.float64)
    spread = x.std(axis=0, dtype=np.float64)
    varying = spread[spread > 0]
    divisor = np.maximum(spread, np.median(varying) if len(varying) else 1.0)
    matrix = np.diag(1.0 / divisor)
    if len(offset) > KEPT_DIMS:
        _, _, axes = np.linalg.svd((x - offset) / divisor, full_matrices=False)
        matrix = matrix @ axes[:KEPT_DIMS].T
    return offset.astype(np.float32), np.ascontiguousarray(matrix, np.float32)
