"""Numbers held against what explains them: power for a utilization, tokens for a load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.records import F8

__all__ = ["Curves", "Stream"]

_KNOTS: Final = 10


class Stream(NamedTuple):
    """A column of a row, less what another column explains of it."""

    name: str
    column: int
    given: int | None = None  # the column that explains it; None: it is taken as it is
    two_valued: bool = False  # zeros and ones


@dataclass(frozen=True, slots=True)
class Curves:
    """What one column is where another is so much, by straight lines between the means of tenths.

    Attributes
    ----------
    streams
        k of them.
    knots, levels
        float64[k, 10]; NaN where a stream is a column as it is, or where nothing explains it.
    """

    streams: tuple[Stream, ...]
    knots: F8
    levels: F8

    @staticmethod
    def of(streams: tuple[Stream, ...], rows: NDArray[np.float32]) -> Curves:
        """Fit them on rows, float32[n, c]."""
        made = np.full((2, len(streams), _KNOTS), np.nan)
        for at, stream in enumerate(streams):
            if stream.given is None:
                continue
            pairs = rows[:, [stream.given, stream.column]].astype(np.float64)
            pairs = pairs[np.isfinite(pairs).all(axis=1)]
            if len(pairs) < _KNOTS or pairs[:, 0].max() == pairs[:, 0].min():
                continue
            parts = np.array_split(pairs[np.argsort(pairs[:, 0], kind="stable")], _KNOTS)
            made[:, at] = np.array([part.mean(axis=0) for part in parts]).T
        return Curves(streams, made[0], made[1])

    def values(self, rows: NDArray[np.float32]) -> F8:
        """float64[n, c] to float64[n, k]; NaN where a row lies outside of what was seen of the other column."""
        made = np.full((len(rows), len(self.streams)), np.nan)
        for at, stream in enumerate(self.streams):
            values = rows[:, stream.column].astype(np.float64)
            if stream.given is None:
                made[:, at] = values
            elif np.isfinite(self.knots[at]).all():
                given = rows[:, stream.given].astype(np.float64)
                low, high = self.knots[at, 0], self.knots[at, -1]
                margin = 0.1 * (high - low)
                inside = (given >= low - margin) & (given <= high + margin)
                made[:, at] = np.where(inside, values - np.interp(given, self.knots[at], self.levels[at]), np.nan)
        return made

    def dump(self) -> list[Any]:
        """For a snapshot."""
        return [self.knots, self.levels]

    @staticmethod
    def load(streams: tuple[Stream, ...], state: Any) -> Curves:
        """What :meth:`dump` gave; ``ValueError`` where it does not fit."""
        knots, levels = state
        if knots.shape != (len(streams), _KNOTS) or levels.shape != knots.shape:
            raise ValueError("a lane's curves are damaged")
        return Curves(streams, knots, levels)
