"""The most recent queries of one account: their vectors as bytes, labels and keys. No verdicts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.errors import StateError

__all__ = ["Recent", "are_queries"]

_SMALLEST: Final = 32  # rows: most accounts never send more


def are_queries(codes: Any, labels: Any, keys: Any, shape: tuple[int, ...], rows: int) -> bool:
    """Whether arrays of a snapshot hold so many queries: codes of this shape, and a label and a key of each."""
    shapes = (codes.shape, labels.shape, keys.shape)
    kinds = (codes.dtype, labels.dtype, keys.dtype)
    return rows >= 0 and shapes == (shape, (rows,), (rows,)) and kinds == (np.int8, np.int16, np.uint32)


class Recent:
    """A ring of up to ``limit`` queries that grows with need: ``limit * (dims + 6)`` bytes when full.

    The kernels write into the arrays (row ``i`` of the ring is query ``pushed % limit``); this class
    only makes room, and packs them for a snapshot.

    Parameters
    ----------
    dims
        Coordinates of a query.
    limit
        The most queries that are held.

    Attributes
    ----------
    codes
        int8[dims, capacity]; coordinates are rows, so that distances vectorise over queries.
    labels
        int16[capacity], -1 where a query had none.
    keys
        uint32[capacity], equal for exact repeats.
    pushed
        int64[1], queries ever pushed.
    """

    __slots__ = ("codes", "keys", "labels", "limit", "pushed")

    def __init__(self, dims: int, limit: int) -> None:
        self.limit = limit
        self.codes: NDArray[np.int8] = np.zeros((dims, 0), np.int8)
        self.labels: NDArray[np.int16] = np.zeros(0, np.int16)
        self.keys: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self.pushed: NDArray[np.int64] = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return min(int(self.pushed[0]), self.limit)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.codes.nbytes + self.labels.nbytes + self.keys.nbytes + self.pushed.nbytes)

    def make_room(self, rows: int) -> None:
        """See that ``rows`` more queries can be pushed, the oldest giving way once ``limit`` is reached."""
        need = min(self.limit, int(self.pushed[0]) + rows)
        capacity = len(self.labels)
        if need <= capacity:
            return
        grown = max(capacity, _SMALLEST)
        while grown < need:
            grown *= 2
        self._resize(min(grown, self.limit))

    def _resize(self, capacity: int) -> None:
        held = len(self)
        codes, labels, keys = self.codes, self.labels, self.keys
        self.codes = np.zeros((len(codes), capacity), np.int8)
        self.labels = np.zeros(capacity, np.int16)
        self.keys = np.zeros(capacity, np.uint32)
        self.codes[:, :held] = codes[:, :held]
        self.labels[:held] = labels[:held]
        self.keys[:held] = keys[:held]

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        held = len(self)
        return [int(self.pushed[0]), self.codes[:, :held].copy(), self.labels[:held].copy(), self.keys[:held].copy()]

    @classmethod
    def load(cls, dims: int, limit: int, dumped: list[Any]) -> Recent:
        """Take back what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape.
        """
        pushed, codes, labels, keys = dumped
        made = cls(dims, limit)
        held = min(int(pushed), limit)
        if not are_queries(codes, labels, keys, (dims, held), held):
            raise StateError("a window in a snapshot has another shape than its baseline's")
        made.make_room(held)
        made.codes[:, :held] = codes
        made.labels[:held] = labels
        made.keys[:held] = keys
        made.pushed[0] = pushed
        return made
