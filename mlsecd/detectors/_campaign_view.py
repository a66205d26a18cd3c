"""What accounts are sketched by: each request as coordinates that add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_channels import VIEWS, Frame, Space, request_keys, uncertainty
from mlsecd.detectors._sections import numbers
from mlsecd.detectors.base import Arrays
from mlsecd.errors import MALFORMED, BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import RequestBatch

__all__ = ["CELL_BITS", "RING_ROWS", "TRAIL", "Encoded", "View"]

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

TRAIL: Final = 64  # queries of each account that a new one may come back to
RING_ROWS: Final = 16_384  # queries of all accounts that a new one may be near to
CELL_BITS: Final = 10  # signs of the first coordinates name one of 1,024 cells
_GRID: Final = 31  # p-values 1, 10^-0.1, ... 10^-3
_RING_DIMS: Final = 8  # the least that a ring takes; fewer are filled up with zeros
_GRADES: Final = ("odd", "very_odd", "oddness")  # as the kernel `grade` writes them
_WINDOW: Final = ("comes_back", "comes_back_flipped", "near_others", "near_others_flipped")


class Encoded(NamedTuple):
    """Rows in the form that kernels take."""

    values: F4  # [n, D]; the columns of _WINDOW are 0 until they are known
    codes: NDArray[np.int8]  # [n, d], of the window's space
    labels: NDArray[np.int16]  # [n]
    keys: NDArray[np.uint32]  # [n]
    kinds: NDArray[np.int8]  # [n]: see the kernel `revisit`
    cells: NDArray[np.int64]  # [n]
    ts: F8  # [n]


@dataclass(slots=True)
class View(Frame):
    """One model's requests, seen in one way.

    Attributes
    ----------
    grids
        float64[31], by letter of the view and ``u``: the scores whose p-values are ``10 ** (-i / 10)``.
    near, near_others
        Squared distances in units of codes, within which one query in 200 of an ordinary client lies by chance
        to one of 1,024 others, and to one of a full ring.
    """

    grids: dict[str, F8]
    near: int
    near_others: int

    @property
    def names(self) -> list[str]:
        """The columns of ``values``, D of them."""
        made: list[str] = []
        for letter, space in self.spaces.items():
            made += [f"{letter}{i}" for i in range(space.dims)]
            made += [f"{name}_{letter}" for name in _GRADES]
        return [*made, *(f"{name}_u" for name in _GRADES), *_WINDOW]

    @property
    def ring_dims(self) -> int:
        """Coordinates of a row of the ring."""
        return max(self.window_space.dims, _RING_DIMS)

    def encode(self, batch: RequestBatch, rows: I8, kernels: Kernels) -> Encoded:
        """These rows of a batch, in this order; each has the inputs of the view."""
        labels = self.labels(batch.text("predicted"), rows)
        classes = self.centroids_of(labels)
        values = np.zeros((len(rows), len(self.names)), np.float32)
        codes, cells = np.zeros((len(rows), 0), np.int8), np.zeros(len(rows), np.int64)
        at = 0
        for letter, u in self.projected(batch, rows, kernels).items():
            space = self.spaces[letter]
            scores = kernels.spread(u, space.whiten, space.centroids, classes, values[:, at : at + space.dims])
            if space is self.window_space:
                codes = kernels.quantise(u, space.step)
                signs = values[:, at : at + min(space.dims, CELL_BITS)] > 0
                cells = signs @ (1 << np.arange(signs.shape[1]))
            at += space.dims
            kernels.grade(scores, space.cuts, self.grids[letter], values[:, at : at + kernels.GRADES])
            at += kernels.GRADES
        unsure = uncertainty(batch.ragged("scores").take(rows), kernels)
        kernels.grade(unsure, self.unc, self.grids["u"], values[:, at : at + kernels.GRADES])
        keys = request_keys(batch, rows, self.widths, kernels)
        return Encoded(values, codes, labels, keys, np.zeros(len(rows), np.int8), cells, batch.completion[rows])

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """For a section."""
        made = {f"{prefix}.unc": self.unc}
        for letter, space in self.spaces.items():
            made |= space.arrays(f"{prefix}.{letter}")
        return made | {f"{prefix}.grid.{name}": grid for name, grid in self.grids.items()}

    def header(self) -> dict[str, Any]:
        """For a section."""
        return {
            "model": self.model,
            "view": self.view,
            "classes": list(self.classes),
            "near": self.near,
            "near_others": self.near_others,
        }

    @classmethod
    def of(cls, header: dict[str, Any], arrays: Arrays, prefix: str) -> View:
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
            grids = {name: numbers(arrays, f"{prefix}.grid.{name}", infinite=True) for name in (*view, "u")}
            unc = numbers(arrays, f"{prefix}.unc", infinite=True)
            near, near_others = int(header["near"]), int(header["near_others"])
            made = cls(str(header["model"]), view, spaces, classes, unc, grids, near, near_others)
        except MALFORMED as error:
            raise BaselineError(f"campaign_extraction: the baseline's part cannot be used: {error}") from error
        shapes = {grid.shape for grid in grids.values()} | {(len(unc) + _GRID - 2,)}
        radii = all(0 <= one < 1 << 31 for one in (near, near_others))
        if view not in VIEWS or shapes != {(_GRID,)} or not radii:
            raise BaselineError("campaign_extraction: the baseline's part cannot be used")
        return made


def grid_of(scores: F8) -> F8:
    """The scores whose conformal p-values are 1, 10^-0.1, ... 10^-3: float64[31], infinite beyond what n supports."""
    falling = np.sort(scores[np.isfinite(scores)])[::-1]
    grid = np.full(_GRID, np.inf)
    for i in range(_GRID):
        most = int(np.floor(10.0 ** (-i / 10.0) * (len(falling) + 1) + 1e-9)) - 1
        if most >= 0:
            grid[i] = falling[min(most, len(falling) - 1)] if len(falling) else np.inf
    grid[0] = -np.inf
    return grid
