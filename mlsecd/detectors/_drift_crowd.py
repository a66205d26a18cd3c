"""How much of a model's traffic is one client's: a big customer who comes is no drift of the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Crowd", "dominated"]

_BLOCK: Final = 256  # rows
_ROWS_MIN: Final = 64  # before an unfinished block says anything
_SHARE_MIN: Final = 0.2
_MORE: Final = 1.5  # times the usual share, and a little


@dataclass(slots=True)
class Crowd:
    """Rows by client in blocks of 256 that count; at most 256 clients are held.

    ``last`` is the largest share of the latest whole block, ``most`` the largest of all since the start.
    """

    counts: dict[int, int] = field(default_factory=dict)
    rows: int = 0
    last: float = 0.0
    most: float = 0.0

    def add(self, clients: NDArray[np.uint64]) -> None:
        """Count rows; 0 is an unknown client, and nobody's share."""
        while len(clients):
            part, clients = np.split(clients, [_BLOCK - self.rows])
            for client, count in zip(*(one.tolist() for one in np.unique(part, return_counts=True)), strict=True):
                if client:
                    self.counts[client] = self.counts.get(client, 0) + count
            self.rows += len(part)
            if self.rows == _BLOCK:
                self.last = max(self.counts.values(), default=0) / _BLOCK
                self.most = max(self.most, self.last)
                self.counts, self.rows = {}, 0

    @property
    def share(self) -> float:
        """The largest share of one client of late."""
        now = max(self.counts.values(), default=0) / self.rows if self.rows >= _ROWS_MIN else 0.0
        return max(now, self.last)

    def dump(self) -> list[Any]:
        """For a snapshot."""
        return [list(self.counts.items()), self.rows, self.last, self.most]

    @staticmethod
    def load(state: Any) -> Crowd:
        """What :meth:`dump` gave; ``ValueError`` or ``TypeError`` where it does not fit."""
        counts, rows, last, most = state
        made = Crowd({int(client): int(count) for client, count in counts}, int(rows), float(last), float(most))
        if not 0 <= made.rows < _BLOCK:
            raise ValueError("a watch's crowd is damaged")
        return made


def dominated(share: float, usual: float) -> bool:
    """Whether one client has so much more of the rows than any had in the reference that it may be the drift."""
    return share > _SHARE_MIN and share > _MORE * usual + 0.05
