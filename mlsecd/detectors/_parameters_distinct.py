"""How many different things an account has sent: a bounded sketch that merges."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.errors import StateError

__all__ = ["Distinct", "hash_ids", "hash_text", "salted"]

U8 = NDArray[np.uint64]

_SPACE: Final = float(2**64)


def hash_ids(ids: NDArray[np.int64]) -> U8:
    """64 well-mixed bits of each id (the finaliser of SplitMix64, Steele et al. 2014): the same on every host."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def salted(hashes: U8, salt: int) -> U8:
    """Hashes in an order that only those know who know the salt."""
    x = (hashes ^ np.uint64(salt)) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(32))


def hash_text(*parts: str | bytes) -> int:
    """64 bits of some text and bytes, as they stand one after the other."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8", "replace") if isinstance(part, str) else part)
        digest.update(b"\0")
    return int.from_bytes(digest.digest(), "little")


class Distinct:
    """The ``k + 1`` smallest hashes of all that was added (Bar-Yossef et al. 2002): 8 bytes each, merged by union.

    Up to ``k`` things the count is exact, so an alarm at ``k`` or fewer cannot be kept down by one
    who picks things for their hashes. Above, it is ``k / (the largest hash that is held)``, with a
    relative error of about ``1 / sqrt(k - 1)``, and never falls.
    """

    __slots__ = ("k", "values")

    def __init__(self, k: int) -> None:
        self.k = k
        self.values = array("Q")  # ascending

    def __len__(self) -> int:
        """About how many different things were added."""
        held = len(self.values)
        return held if held <= self.k else max(held, int(self.k * _SPACE / (self.values[-1] + 1)))

    def add(self, value: int) -> None:
        """Add one hash."""
        values = self.values
        full = len(values) > self.k
        if full and value >= values[-1]:
            return
        at = bisect_left(values, value)
        if at < len(values) and values[at] == value:
            return
        if full:
            values.pop()
        values.insert(at, value)

    def update(self, hashes: U8) -> None:
        """Add many."""
        if len(self.values) > self.k:
            hashes = hashes[hashes < np.uint64(self.values[-1])]
        for value in hashes.tolist():
            self.add(value)

    @classmethod
    def union(cls, k: int, sketches: Iterable[Distinct]) -> Distinct:
        """What one sketch of all that went into these would hold; ``k`` at most that of each."""
        made = cls(k)
        made.values = array("Q", sorted(set().union(*(one.values for one in sketches)))[: k + 1])
        return made

    def dump(self) -> U8:
        """What a snapshot holds."""
        return np.array(self.values, np.uint64)

    @classmethod
    def load(cls, k: int, values: U8) -> Distinct:
        """Take back what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is no ascending array of at most ``k + 1`` hashes.
        """
        if values.dtype != np.uint64 or values.ndim != 1 or len(values) > k + 1 or (values[1:] <= values[:-1]).any():
            raise StateError("a count of different things in a snapshot is damaged")
        made = cls(k)
        made.values = array("Q", values.tobytes())
        return made
