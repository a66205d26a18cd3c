"""The ring of recent vectors, and what may be asked of it; no numba, so that detectors can make one."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.errors import KernelError
from mlsecd.kernels.checks import plain, rows_of

__all__ = ["MAX_NEIGHBOURS", "RING_TILE", "Ring", "check_queries", "check_vectors", "make_ring"]

RING_TILE: Final = 128  # vectors of a tile: at d = 64 a tile of float32 fills a first-level cache of 32 KiB
MAX_NEIGHBOURS: Final = 10
_DIMS: Final = (8, 64)
_CAPACITY: Final = (2**7, 2**20)
_STORED: Final = ("int8", "float16")


class Ring(NamedTuple):
    """Vectors with their owners, newest over oldest. The row pushed as number p lies in slot ``p % capacity``.

    Slot s is ``codes[s // 128, :, s % 128]``, of ``owners[s // 128, s % 128]``.
    """

    codes: NDArray[Any]  # int8 or float16 [tiles, d, 128]
    owners: NDArray[np.int32]  # [tiles, 128]
    pushed: NDArray[np.int64]  # [1]: rows ever pushed


def make_ring(capacity: int, dims: int, dtype: str = "int8") -> Ring:
    """An empty ring of ``capacity`` rows (128 to 2^20, a multiple of 128) of ``dims`` (8 to 64) coordinates.

    Raises
    ------
    KernelError
        One of them is out of range, or ``dtype`` is neither "int8" nor "float16".
    """
    if not _CAPACITY[0] <= capacity <= _CAPACITY[1] or capacity % RING_TILE:
        raise KernelError(f"a ring holds 128 to 1,048,576 rows, a multiple of 128, not {capacity}")
    if not _DIMS[0] <= dims <= _DIMS[1]:
        raise KernelError(f"a ring's rows have 8 to 64 coordinates, not {dims}")
    if dtype not in _STORED:
        raise KernelError(f'a ring keeps "int8" or "float16", not "{dtype}"')
    tiles = capacity // RING_TILE
    return Ring(
        np.zeros((tiles, dims, RING_TILE), dtype), np.zeros((tiles, RING_TILE), np.int32), np.zeros(1, np.int64)
    )


def check_vectors(ring: Ring, vectors: Any, owners: Any) -> None:
    """Refuse what does not fit the ring, or a ring that is not one.

    Raises
    ------
    KernelError
        A dtype, a shape or a layout is wrong; the text says which.
    """
    codes = ring.codes
    if codes.ndim != 3 or codes.shape[2] != RING_TILE or codes.dtype.name not in _STORED:
        raise KernelError(f"this is no ring: its codes are {codes.dtype}{list(codes.shape)}")
    plain(codes, codes.dtype, codes.shape, "ring.codes")
    plain(ring.owners, np.int32, (codes.shape[0], RING_TILE), "ring.owners")
    plain(ring.pushed, np.int64, (1,), "ring.pushed")
    rows = rows_of(vectors)
    plain(vectors, codes.dtype, (rows, codes.shape[1]), "vectors")
    plain(owners, np.int32, (rows,), "owners")


def check_queries(ring: Ring, queries: Any, owners: Any, k: int) -> None:
    """:func:`check_vectors`, and ``k`` from 1 to 10."""
    check_vectors(ring, queries, owners)
    if not 1 <= k <= MAX_NEIGHBOURS:
        raise KernelError(f"1 to {MAX_NEIGHBOURS} neighbours can be asked for, not {k}")
