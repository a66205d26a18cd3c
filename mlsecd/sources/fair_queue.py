"""A queue bounded in bytes, where a producer that sends too much loses its own, not the others'."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Final

__all__ = ["FairQueue"]

_ITEM_BYTES: Final = 128  # what an item costs beside its bytes


@dataclass(slots=True)
class _Lane:
    producer: int
    items: deque[bytes] = field(default_factory=deque)
    size: int = 0


class FairQueue:
    """Pieces of whole lines, in a lane a connection.

    When it is full, room is made in the longest lane of the producer that holds most: its newest piece
    goes, which is the new piece itself where it comes from there. A producer is a user, so that a
    hundred connections of one user count as one.

    A lane is a producer and a number that the caller gives its connections and uses again, so there are
    never more lanes than connections can be open at a time, however fast they come and go.

    Parameters
    ----------
    capacity
        Bytes that it holds at most, overhead included.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self._held: dict[int, int] = {}  # bytes by producer
        self._depth = 0

    @property
    def depth(self) -> int:
        """Bytes that wait."""
        return self._depth

    def put(self, producer: int, lane: int, piece: bytes) -> int:
        """Add lines of one connection; returns how many lines were lost for it, its own or others'."""
        cost = len(piece) + _ITEM_BYTES
        lost = 0
        with self._lock:
            mine = self._lanes.get((producer, lane)) or _Lane(producer)
            while self._depth + cost > self.capacity:
                longest = self._longest()
                if longest is None or self._greedier(mine, longest, cost):
                    return lost + piece.count(b"\n")
                dropped = longest.items.pop()
                self._account(longest, -len(dropped) - _ITEM_BYTES)
                lost += dropped.count(b"\n")
            self._lanes[producer, lane] = mine
            mine.items.append(piece)
            self._account(mine, cost)
        return lost

    def take(self, limit: int) -> list[tuple[int, bytes]]:
        """Pieces with their producers, a piece of each lane in turn, until ``limit`` bytes are exceeded."""
        taken: list[tuple[int, bytes]] = []
        size = 0
        with self._lock:
            while self._lanes and size < limit:
                for key, lane in list(self._lanes.items()):
                    if lane.items:
                        piece = lane.items.popleft()
                        self._account(lane, -len(piece) - _ITEM_BYTES)
                        taken.append((lane.producer, piece))
                        size += len(piece)
                    if not lane.items:
                        del self._lanes[key]
        return taken

    def _account(self, lane: _Lane, cost: int) -> None:
        lane.size += cost
        self._depth += cost
        held = self._held.get(lane.producer, 0) + cost
        if held:
            self._held[lane.producer] = held
        else:
            del self._held[lane.producer]

    def _longest(self) -> _Lane | None:
        """The longest lane of the producer that holds most; ``None`` where nothing is held."""
        lanes = (lane for lane in self._lanes.values() if lane.items)
        return max(lanes, key=lambda lane: (self._held[lane.producer], lane.size), default=None)

    def _greedier(self, mine: _Lane, longest: _Lane, cost: int) -> bool:
        """Whether the new piece would make its own lane the one to lose."""
        held = self._held.get(mine.producer, 0) + cost
        if mine.producer != longest.producer:
            return held > self._held[longest.producer]
        return mine.size + cost > longest.size
