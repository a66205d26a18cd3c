"""When a host was serving: how much of each stretch of event time its requests cover."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.records import RequestBatch, rows_of

__all__ = ["BIN_MS", "FAR_SECONDS", "Serving", "by_host", "spread"]

BIN_MS: Final = 10_000  # the grain, milliseconds; whole numbers, so that sums do not depend on their order
FAR_SECONDS: Final = 1e12  # no event is further from the epoch; whatever says so must not overflow
_DAY_SECONDS: Final = 86_400.0
_WAITING_MAX: Final = 4096
_COLUMNS: Final = ("ts", "duration_s", "status")
_SPAN_BINS: Final = 360  # the part of one request that is spread over bins: its last hour

I8 = NDArray[np.int64]


def by_host(batch: RequestBatch) -> Iterator[tuple[str, bool, I8]]:
    """Rows by host and by whether they are synthetic, in order of first appearance."""
    if not (batch.has("host") or batch.has("synthetic")):
        yield "", False, np.arange(len(batch))
        return
    hosts = batch.text("host")
    groups = (hosts.codes + 1) * 2 + batch.synthetic
    for group, rows in rows_of(groups.astype(np.int32)):
        host = group // 2 - 1
        yield "" if host < 0 else hosts.values[host], bool(group % 2), rows


def spread(starts_ms: I8, ends_ms: I8) -> tuple[I8, I8]:
    """Bins that half-open spans touch, and the milliseconds of spans in each (overlaps count twice)."""
    last = (ends_ms - 1) // BIN_MS
    first = np.maximum(starts_ms // BIN_MS, last - _SPAN_BINS + 1)
    counts = np.maximum(last - first + 1, 0)
    row = np.repeat(np.arange(len(counts)), counts)
    bins = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    inside = np.minimum(ends_ms[row], (bins + 1) * BIN_MS) - np.maximum(starts_ms[row], bins * BIN_MS)
    touched, where = np.unique(bins, return_inverse=True)
    sums = np.zeros(len(touched), np.int64)
    np.add.at(sums, where, inside)
    return touched, sums


@dataclass(slots=True)
class Serving:
    """Time covered by requests on one host, and the longest request of late.

    A request covers ``[ts, completion]`` and a little after; it is known once it completes. A refused
    request (4xx) covers nothing: refusing makes no load, and costs a caller nothing.

    Rows wait until somebody asks: :meth:`settle` folds many at once, which costs a tenth, and gives
    the same whenever it is called.
    """

    waiting: list[RequestBatch] = field(default_factory=list)
    rows_waiting: int = 0
    last_ts: float = float("-inf")  # the latest completion
    accepted: int = 0
    covered: dict[int, int] = field(default_factory=dict)  # milliseconds by bin
    completed: dict[int, int] = field(default_factory=dict)  # requests by bin
    day: int = -1
    longest_today: float = 0.0
    longest_before: float = 0.0  # on the day before

    @property
    def longest(self) -> float:
        """The longest request of today and the day before, seconds."""
        return max(self.longest_today, self.longest_before)

    def take(self, batch: RequestBatch, rows: I8, params: Any, keep: int) -> None:
        """Take rows, in order of completion."""
        columns = {name: batch.number(name)[rows] for name in _COLUMNS if batch.has(name)}
        self.waiting.append(RequestBatch(dict(columns)))
        self.rows_waiting += len(rows)
        if self.rows_waiting > _WAITING_MAX or len(self.waiting) > _WAITING_MAX:
            self.settle(params, keep)

    def settle(self, params: Any, keep: int) -> None:
        """Fold the rows that wait, and keep so many bins. Where time steps back, start afresh."""
        if not self.waiting:
            return
        batch = RequestBatch.concat(self.waiting)
        rows = np.arange(len(batch))
        self.waiting, self.rows_waiting = [], 0
        completion = np.clip(batch.completion, -FAR_SECONDS, FAR_SECONDS)
        steps = np.diff(completion, prepend=self.last_ts)
        edges = [0, *np.flatnonzero(steps < 0).tolist(), len(rows)]
        for start, stop in itertools.pairwise(edges):
            if stop > start and completion[start] < self.last_ts:
                self.covered.clear()
                self.completed.clear()
            if stop > start:
                self._take(batch, rows[start:stop], completion[start:stop], params)
                self.last_ts = float(completion[stop - 1])
                self._forget(round(self.last_ts * 1000) // BIN_MS - keep, 2 * keep)

    def _take(self, batch: RequestBatch, rows: I8, completion: NDArray[np.float64], params: Any) -> None:
        status = batch.number("status")[rows]
        refused = (status >= 400) & (status < 499) & (status != 408)  # 408 and 499: work was begun
        starts, ends = batch.ts[rows][~refused], completion[~refused]
        duration = batch.number("duration_s")[rows][~refused]
        unknown = np.isnan(duration)
        starts = np.where(unknown, starts - params.assumed_request_seconds, starts)
        ends = ends + np.where(unknown, params.assumed_request_seconds, params.request_grace_seconds)
        self._add(self.covered, *spread(_ms(starts), _ms(ends)))
        bins, counts = np.unique(_ms(completion[~refused]) // BIN_MS, return_counts=True)
        self._add(self.completed, bins, counts)
        self.accepted += len(starts)
        self._note_longest(completion[~refused][~unknown], duration[~unknown])

    @staticmethod
    def _add(held: dict[int, int], bins: I8, amounts: I8) -> None:
        for one, amount in zip(bins.tolist(), amounts.tolist(), strict=True):
            held[one] = held.get(one, 0) + amount

    def _note_longest(self, completion: NDArray[np.float64], duration: NDArray[np.float64]) -> None:
        days = np.floor_divide(completion, _DAY_SECONDS).astype(np.int64)
        for day in np.unique(days).tolist():
            if day != self.day:
                self.longest_before = self.longest_today if day == self.day + 1 else 0.0
                self.longest_today = 0.0
                self.day = day
            self.longest_today = max(self.longest_today, float(duration[days == day].max()))

    def _forget(self, before: int, most: int) -> None:
        """Drop bins before one, once there are too many: those are older than any judgement looks back."""
        for held in (self.covered, self.completed):
            if len(held) > most:
                for old in [one for one in held if one < before]:
                    del held[old]


def _ms(seconds: NDArray[np.float64]) -> I8:
    return np.rint(np.clip(seconds, -FAR_SECONDS, FAR_SECONDS) * 1000.0).astype(np.int64)
