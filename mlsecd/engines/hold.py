"""Where records wait for earlier ones, and how they leave: in order, cut by interval, by kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mlsecd.engines.join import Joiner
from mlsecd.meters import Meters
from mlsecd.records import MERGE_ORDER, Kind, Record, Records, RequestBatch

__all__ = ["Hold", "Ordered"]


class Ordered:
    """A stretch of records in the fold's order: (time, kind, arrival).

    Requests stand in one batch sorted by completion, everything else in one sorted list; ``places``
    says before which request each of those belongs.
    """

    def __init__(self, requests: RequestBatch | None, others: list[Record]) -> None:
        self.requests = requests
        self.others = others
        self.times = requests.completion if requests is not None else np.zeros(0)
        self.places = self._place()

    def __bool__(self) -> bool:
        return bool(len(self.times) or self.others)

    def __len__(self) -> int:
        return len(self.times) + len(self.others)

    @property
    def last(self) -> float:
        """The latest time in it."""
        latest = [float(self.times[-1])] if len(self.times) else []
        return max(latest + [other.ts for other in self.others[-1:]])

    def _place(self) -> NDArray[np.int64]:
        stamps = np.array([other.ts for other in self.others])
        after = np.array([MERGE_ORDER[other.kind] > MERGE_ORDER[Kind.REQUEST] for other in self.others], bool)
        left = np.searchsorted(self.times, stamps, "left")
        right = np.searchsorted(self.times, stamps, "right")
        return np.where(after, right, left)

    def stamp(self, seq: int) -> int:
        """Number the records that carry no ``seq`` yet; the next free number comes back."""
        count = len(self.times)
        if self.requests is not None:
            before = np.searchsorted(self.places, np.arange(count), "right")  # others ahead of each request
            fresh = self.requests.seq < 0
            numbers = seq + np.arange(count) + before
            self.requests.seq = np.where(fresh, numbers, self.requests.seq)
        for index, (other, place) in enumerate(zip(self.others, self.places, strict=True)):
            if other.seq < 0:
                self.others[index] = dataclasses.replace(other, seq=int(seq + place + index))
        highest = [int(self.requests.seq.max())] if self.requests is not None and count else []
        highest += [other.seq for other in self.others]
        return max([seq + len(self), *(number + 1 for number in highest)])

    def by_interval(self, interval_seconds: float) -> Iterator[tuple[int, Ordered]]:
        """Cut at interval borders: ``(tick, records of that interval)``, in order of time."""
        ticks = np.floor_divide(self.times, interval_seconds).astype(np.int64)
        other_ticks = np.array([int(other.ts // interval_seconds) for other in self.others], np.int64)
        for tick in np.union1d(ticks, other_ticks).tolist():
            low, high = np.searchsorted(ticks, [tick, tick + 1])
            first, end = np.searchsorted(other_ticks, [tick, tick + 1])
            requests = self.requests.slice(low, high) if self.requests is not None and high > low else None
            yield tick, Ordered(requests, self.others[first:end])

    def pieces(self, kinds: frozenset[Kind]) -> Iterator[Records]:
        """Records of these kinds in order; requests are cut only where another wanted record stands."""
        wanted = [(place, one) for place, one in zip(self.places, self.others, strict=True) if one.kind in kinds]
        if Kind.REQUEST not in kinds or self.requests is None:
            yield from (one for _, one in wanted)
            return
        start = 0
        for place, one in wanted:
            if place > start:
                yield self.requests.slice(start, place)
                start = place
            yield one
        if start == 0:
            yield self.requests
        elif start < len(self.times):
            yield self.requests.slice(start, len(self.times))


class Hold:
    """Records that were admitted and may still be overtaken; bounded."""

    def __init__(self, max_rows: int, meters: Meters, joiner: Joiner | None = None) -> None:
        self._joiner = joiner
        self._max_rows = max_rows
        self._meters = meters
        self._requests: list[RequestBatch] = []
        self._others: list[Record] = []
        self._rows = 0

    def portions(self, records: Records) -> Iterator[Records]:
        """``records`` in pieces that leave room to let go between them."""
        if not isinstance(records, RequestBatch) or len(records) <= self._max_rows // 4:
            yield records
            return
        step = max(1, self._max_rows // 4)
        yield from (records.slice(at, min(at + step, len(records))) for at in range(0, len(records), step))

    def add(self, records: Records) -> None:
        """Keep records, in order of arrival; the excess over the bound is dropped and counted."""
        if not isinstance(records, RequestBatch):
            if len(self._others) < self._max_rows:
                self._others.append(records)
            else:
                self._meters.drop("fold", "held_full")
            return
        room = self._max_rows - self._rows
        if len(records) > room:
            self._meters.drop("fold", "held_full", len(records) - room)
            records = records.slice(0, room)
        if len(records):
            self._requests.append(records)
            self._rows += len(records)

    @property
    def crowded(self) -> bool:
        """Half full: time to let go what may go."""
        return max(self._rows, len(self._others)) > self._max_rows // 2

    def waiting(self) -> list[Records]:
        """All that waits, in order of arrival, for a snapshot."""
        return [*self._requests, *self._others]

    def release(self, until: float) -> Ordered:
        """Everything before this time, in order: a record of just this time may still come.

        With a joiner, everything before it less the joiner's window: a record's partner completes later.
        """
        complete = until
        if self._joiner is not None:
            until -= self._joiner.window
        ready = [one for one in self._others if one.ts < until]
        if ready:
            self._others = [one for one in self._others if one.ts >= until]
            ready.sort(key=lambda one: (one.ts, MERGE_ORDER[one.kind]))
        return Ordered(self._release_requests(until, complete), ready)

    def _release_requests(self, until: float, complete: float) -> RequestBatch | None:
        if not self._requests:
            return None
        batch = RequestBatch.concat(self._requests)
        if self._joiner is not None:
            batch = self._joiner.join(_sorted(batch), complete)
        times = batch.completion
        ready = np.flatnonzero(times < until)
        stay = np.flatnonzero(times >= until)
        self._requests = [batch.take(stay)] if len(stay) else []
        self._rows = len(stay)
        if not len(ready):
            return None
        return _sorted(batch if len(ready) == len(batch) else batch.take(ready))


def _sorted(batch: RequestBatch) -> RequestBatch:
    """In order of completion; rows of one time stay in order of arrival."""
    times = batch.completion
    if (times[1:] >= times[:-1]).all():
        return batch
    return batch.take(np.argsort(times, kind="stable"))
