"""Requests that wait for the end of an interval: folded together they cost a fraction of what a few at a time do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mlsecd.records import RequestBatch

__all__ = ["WAITING_MAX", "Waiting"]

WAITING_MAX: Final = 4_096  # rows: 2 MiB with vectors of 64 coordinates


class Waiting:
    """Batches in order of arrival, of some columns only. Its owner folds them at :data:`WAITING_MAX` rows.

    Parameters
    ----------
    needed
        The columns that are kept.
    """

    def __init__(self, needed: Sequence[str]) -> None:
        self._needed = tuple(needed)
        self._batches: list[RequestBatch] = []
        self.rows = 0

    def add(self, batch: RequestBatch) -> None:
        """Keep a batch's rows."""
        self._batches.append(
            RequestBatch({name: batch.columns[name] for name in self._needed if batch.has(name)}, batch.seq)
        )
        self.rows += len(batch)

    def take(self) -> RequestBatch | None:
        """All that waited, as one batch, and nothing waits; ``None``: nothing did."""
        if not self._batches:
            return None
        batches, self._batches, self.rows = self._batches, [], 0
        return RequestBatch.concat(batches)
