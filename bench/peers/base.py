"""What a reference detector is: an object that is told an account's queries and keeps one growing number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["F4", "Account", "Peer", "Query", "Window"]

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]


class Query(NamedTuple):
    """One query as the peers see it."""

    x: F4  # what the detector's encoder would give
    label: int


class Account(ABC):
    """The state of one account."""

    @abstractmethod
    def add(self, query: Query) -> float | None:
        """How suspicious the account is after this query; None where the detector has no opinion yet."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the account's state takes, in arrays."""


class Peer(ABC):
    """A detector. It may learn what is ordinary from a reference sample of ordinary inputs, (n, width) and labels."""

    name: ClassVar[str]
    spaces: ClassVar[tuple[str, ...]] = ("input_features", "features")  # vectors that it is tried on, where recorded
    shared: ClassVar[bool] = False  # the accounts of a file share an index: a fresh one is made for each file

    def __init__(self, x: F4, labels: I8) -> None:  # noqa: B027 - most need none
        """Learn from the reference sample; most have nothing to learn."""

    @abstractmethod
    def account(self) -> Account:
        """A new account."""


class Window:
    """The last ``limit`` rows, in an array that grows by doubling."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self._held: F4 = np.zeros((0, 0), np.float32)

    @property
    def rows(self) -> F4:
        """What is held, a view, in no order."""
        return self._held[: min(self.count, self.limit)]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self._held.nbytes

    def push(self, row: F4) -> None:
        """Keep this row; the oldest goes where the window is full."""
        at = self.count % self.limit
        if at >= len(self._held):
            grown = np.empty((min(self.limit, max(16, 2 * len(self._held))), len(row)), np.float32)
            if len(self._held):
                grown[: len(self._held)] = self._held
            self._held = grown
        self._held[at] = row
        self.count += 1

    def distances(self, row: F4) -> F4:
        """Euclidean distances of what is held to ``row``."""
        difference = self.rows - row
        return np.sqrt(np.einsum("ij,ij->i", difference, difference))
