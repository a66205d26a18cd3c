"""State by key, bounded: the oldest keys go first, by event time and not by the clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

from mlsecd.errors import MALFORMED, StateError

__all__ = ["Keyed"]

_LATEST: Final = 1 << 53  # intervals: more are no number of a clock's

S = TypeVar("S")


class Keyed(Generic[S]):
    """A bounded map from key to state; when full, the key that was quiet longest makes room.

    Recency is counted in intervals of event time, not in calls, and a key that was touched in the
    current interval is never evicted: so which keys live does not depend on how a stream was cut
    into batches, as long as keys are touched in order of first appearance
    (:func:`mlsecd.records.rows_of` yields them so). When every key is of the current interval, a
    new one is refused, and counted: a flood of names cannot push out those who were there.

    A key that would make room, but whose state is worth keeping, is *kept* instead, as long as such keys hold
    no more than half of the map: those who were found worth watching stay, however many strangers pass
    by, and a crowd of them does not close the map to newcomers.

    Parameters
    ----------
    limit
        The most keys that are ever held.
    make
        Makes the state of a new key.
    interval_seconds
        The grain of recency.
    keep
        Whether a state is worth keeping; asked when its key would make room.
    """

    def __init__(
        self,
        limit: int,
        make: Callable[[str], S],
        interval_seconds: float = 10.0,
        keep: Callable[[S], bool] | None = None,
    ) -> None:
        self.limit = limit
        self.interval_seconds = interval_seconds
        self.evicted = 0
        self.refused = 0
        self._make = make
        self._keep = keep
        self._held: OrderedDict[str, tuple[int, S]] = OrderedDict()
        self._kept: OrderedDict[str, tuple[int, S]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held) + len(self._kept)

    def __contains__(self, key: str) -> bool:
        return key in self._held or key in self._kept

    def touch(self, key: str, ts: float) -> S | None:
        """The key's state, made where it is new; ``None`` where there is no room for it."""
        tick = int(ts // self.interval_seconds)
        place = self._kept if key in self._kept else self._held
        held = place.get(key)
        if held is not None:
            if held[0] != tick:
                place[key] = (tick, held[1])
                place.move_to_end(key)
            return held[1]
        if len(self) >= self.limit and not self._make_room(tick):
            self.refused += 1
            return None
        state = self._make(key)
        self._held[key] = (tick, state)
        return state

    def _make_room(self, tick: int) -> bool:
        while self._held and self._held[oldest := next(iter(self._held))][0] != tick:
            held = self._held.pop(oldest)
            if self._keep is None or not self._keep(held[1]):
                self.evicted += 1
                return True
            self._kept[oldest] = held
            if len(self._kept) > self.limit // 2 and self._drop_oldest_kept(tick):
                return True
        return len(self._kept) > self.limit // 2 and self._drop_oldest_kept(tick)

    def _drop_oldest_kept(self, tick: int) -> bool:
        oldest = next(iter(self._kept))
        if self._kept[oldest][0] == tick:
            return False
        del self._kept[oldest]
        self.evicted += 1
        return True

    def peek(self, key: str) -> S | None:
        """The key's state, untouched."""
        held = self._held.get(key) or self._kept.get(key)
        return None if held is None else held[1]

    def drop(self, key: str) -> None:
        """Forget a key."""
        self._held.pop(key, None)
        self._kept.pop(key, None)

    def items(self) -> Iterator[tuple[str, S]]:
        """All pairs, kept ones last, else the one that was quiet longest first."""
        return ((key, state) for place in (self._held, self._kept) for key, (_, state) in place.items())

    def dump(self) -> list[tuple[str, int, S]]:
        """Everything, for a snapshot: key, recency, state, in the order of :meth:`items`."""
        return [(key, tick, state) for place in (self._held, self._kept) for key, (tick, state) in place.items()]

    @property
    def kept(self) -> int:
        """How many keys were kept: the last ones of :meth:`dump`."""
        return len(self._kept)

    def load(self, rows: list[tuple[str, int, S]], kept: int = 0) -> None:
        """Take back what :meth:`dump` gave, the last ``kept`` of them as kept ones.

        Raises
        ------
        StateError
            They are no such rows; nothing has changed then.
        """
        cut = len(rows) - kept
        try:
            sound = 0 <= cut <= len(rows) and len({key for key, _, _ in rows}) == len(rows)
            sound = sound and all(abs(tick) <= _LATEST for _, tick, _ in rows)
        except MALFORMED as error:
            raise StateError(f"keys in a snapshot cannot be used: {error}") from error
        if not sound:
            raise StateError("a snapshot holds some keys twice, or touched at no time that there is")
        self._held = OrderedDict((key, (tick, state)) for key, tick, state in rows[:cut])
        self._kept = OrderedDict((key, (tick, state)) for key, tick, state in rows[cut:])
