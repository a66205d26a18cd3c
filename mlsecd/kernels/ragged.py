"""Ragged windows: the rows of many accounts side by side, and which of them a query is held against; no numba."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.errors import KernelError
from mlsecd.kernels.checks import plain, rows_of, within

__all__ = ["FAR", "NEAREST", "RECENT", "Near", "Windows", "check_windows", "nearest_means"]

NEAREST: Final = 10
RECENT: Final = 32  # rows that are not "far": a session's own flow
FAR: Final = 2**31 - 1  # the square where there is no neighbour
_DIMS: Final = 1024  # 1024 * 255^2 is below 2^31


class Windows(NamedTuple):
    """Rows of many accounts, each account's side by side and in order. d coordinates, N rows, n queries."""

    codes: NDArray[np.int8]  # [d, N]
    labels: NDArray[np.int16]  # [N], -1 where there is none
    queries: NDArray[np.int32]  # [n]: which rows are asked about
    starts: NDArray[np.int32]  # [n]: query i is held against the rows from starts[i] to before queries[i]
    near: NDArray[np.int32]  # [W + 1]: squared near radius, by rows in the window; W is the longest window


class Near(NamedTuple):
    """What a query finds in its window."""

    squares: NDArray[np.int32]  # [n, 10]: the smallest squared distances, ascending; FAR where there are fewer rows
    counts: NDArray[np.int32]  # [n, 4]: rows near; near with another label; far rows near; and with another label


def check_windows(asked: Windows) -> None:
    """Refuse what cannot be answered.

    Raises
    ------
    KernelError
        A dtype, a shape or a layout is wrong, a window is longer than W, or a query lies outside the rows.
    """
    codes = asked.codes
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or not 1 <= codes.shape[0] <= _DIMS:
        raise KernelError(f"codes: int8[1 to {_DIMS}, N] is wanted")
    plain(codes, np.int8, codes.shape, "codes")
    plain(asked.labels, np.int16, (codes.shape[1],), "labels")
    n = rows_of(asked.queries)
    plain(asked.queries, np.int32, (n,), "queries")
    plain(asked.starts, np.int32, (n,), "starts")
    plain(asked.near, np.int32, (rows_of(asked.near),), "near")
    within(asked.queries, codes.shape[1], "queries")
    lengths = asked.queries.astype(np.int64) - asked.starts
    if n and (int(asked.starts.min()) < 0 or int(lengths.min()) < 0):
        raise KernelError("starts: a window begins before the first row or after its query")
    if n and int(lengths.max()) >= len(asked.near):
        raise KernelError(f"a window of {int(lengths.max())} rows is longer than the limit of {len(asked.near) - 1}")


def nearest_means(squares: NDArray[np.int32]) -> NDArray[np.float64]:
    """Mean distance to the ten nearest: float64[n], NaN where there are fewer. One place, so that backends agree."""
    mean: Any = np.sqrt(squares.astype(np.float64)).mean(axis=1)
    return np.where(squares[:, -1] == FAR, np.nan, mean)
