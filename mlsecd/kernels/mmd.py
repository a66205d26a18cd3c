"""Kernel sums for the maximum mean discrepancy, and what may be asked of them; no numba.

For a symmetric kernel K without its diagonal and a division of the rows into A and B, everything that
the unbiased MMD^2 needs (Gretton et al. 2012, lemma 6) follows from the sum inside A and the row sums.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.errors import KernelError
from mlsecd.kernels.checks import plain, rows_of

__all__ = ["MAX_GAMMAS", "MmdSums", "centred", "check_features", "check_mmd", "mmd_squares"]

MAX_GAMMAS: Final = 4
_ROWS: Final = (2, 16_384)
_DIMS: Final = 4_096


class MmdSums(NamedTuple):
    """Sums of the kernel over pairs of different rows. N rows, P divisions."""

    inside: NDArray[np.float64]  # [P]: over pairs i < j that are both in A
    rows: NDArray[np.float64]  # [N]: of row i with all others


def check_mmd(x: Any, members: Any, gammas: Any) -> None:
    """Refuse what is not float32[N, d] without NaN, uint8[N, P] of 0 and 1, float64[1 to 4] above 0.

    Raises
    ------
    KernelError
        One of them is something else.
    """
    n = rows_of(x)
    dims = x.shape[1] if isinstance(x, np.ndarray) and x.ndim == 2 else 0
    if not _ROWS[0] <= n <= _ROWS[1] or not 1 <= dims <= _DIMS:
        raise KernelError(f"x: float32[{_ROWS[0]} to {_ROWS[1]}, 1 to {_DIMS}] is wanted")
    plain(x, np.float32, (n, dims), "x")
    divisions = members.shape[1] if isinstance(members, np.ndarray) and members.ndim == 2 else 0
    plain(members, np.uint8, (n, divisions), "members")
    plain(gammas, np.float64, (rows_of(gammas),), "gammas")
    if not 1 <= len(gammas) <= MAX_GAMMAS or not (np.isfinite(gammas) & (gammas > 0)).all():
        raise KernelError(f"gammas: 1 to {MAX_GAMMAS} numbers above 0 are wanted")
    if members.size and members.max() > 1:
        raise KernelError("members: a row is in a division or not, 1 or 0")
    if not np.isfinite(x).all():
        raise KernelError("x: a value is not finite")


def check_features(x: Any, directions: Any, phases: Any) -> None:
    """Refuse what is not float32[n, d], float32[d, m] and float32[m].

    Raises
    ------
    KernelError
        One of them is something else.
    """
    shape = directions.shape if isinstance(directions, np.ndarray) and directions.ndim == 2 else (0, 0)
    plain(x, np.float32, (rows_of(x), shape[0]), "x")
    plain(directions, np.float32, shape, "directions")
    plain(phases, np.float32, (shape[1],), "phases")


def centred(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows less their mean: distances keep more of float32's digits."""
    return np.ascontiguousarray(x - x.mean(axis=0, dtype=np.float64), np.float32)


def mmd_squares(sums: MmdSums, members: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The unbiased MMD^2 of each division: float64[P], NaN where a side has fewer than two rows."""
    n = len(members)
    size = members.sum(axis=0, dtype=np.int64).astype(np.float64)
    other = n - size
    touched = sums.rows @ members
    between = touched - 2.0 * sums.inside
    outside = sums.rows.sum() / 2.0 - sums.inside - between
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = 2.0 * sums.inside / (size * (size - 1)) + 2.0 * outside / (other * (other - 1))
        squares -= 2.0 * between / (size * other)
    return np.where((size >= 2) & (other >= 2), squares, np.nan)
