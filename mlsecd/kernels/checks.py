"""What stands at the edge of this room: an argument of the wrong kind is an error, never a wrong number."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlsecd.errors import KernelError

__all__ = ["plain", "rows_of", "within"]


def plain(array: Any, dtype: Any, shape: tuple[int, ...], what: str) -> None:
    """Refuse what is not a contiguous array of exactly this dtype and shape.

    Raises
    ------
    KernelError
        It is not; the text says what was found.
    """
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise KernelError(f"{what}: {np.dtype(dtype)}{list(shape)} is wanted, not {found}")
    if not array.flags.c_contiguous:
        raise KernelError(f"{what}: the array is not contiguous")


def rows_of(array: Any) -> int:
    """The first dimension, 0 where there is none."""
    return len(array) if isinstance(array, np.ndarray) and array.ndim else 0


def within(indices: Any, limit: int, what: str) -> None:
    """Refuse an index below 0 or not below ``limit``.

    Raises
    ------
    KernelError
        There is one.
    """
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < limit:
        raise KernelError(f"{what}: an index is not within 0 to {limit - 1}")
