"""What may enter the fold: records whose time can be believed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.meters import Meters
from mlsecd.records import Kind, Record, Records, RequestBatch

__all__ = ["Gate"]

_CONFIRM: Final = 8  # strangers in a row that make a new time credible
_CLOCK_SLACK_SECONDS: Final = 5.0  # a host clock that is slewed, and polls that overtake each other


class Gate:
    """Keeps event time from being pushed around; decides record by record, in order of arrival.

    ``now`` is the latest time that was believed. A record earlier than ``now - lateness`` is late:
    dropped and counted. One that is further than ``reach_seconds`` from ``now``, ahead or behind, is a
    stranger: it waits until eight in a row agree with it (a gap in a recording, a clock that was
    stepped), and is dropped when an ordinary record comes first (one bad time in a good stream).
    The daemon's own ``source`` records are the host's clock: they are always believed, and once there is
    one, nothing else sets time back: else eight old lines would make everything now look long past.
    Records that already carry ``seq`` were decided upon when they were recorded.

    Every decision depends on the order of arrival alone, so cutting a stream into other batches
    changes none of them. ``None`` among the admitted says that time was set back there: what was
    admitted before it must be folded before what comes after.
    """

    def __init__(self, lateness_seconds: float, reach_seconds: float, meters: Meters) -> None:
        self.lateness = lateness_seconds
        self.reach = reach_seconds
        self.now = -np.inf
        self.has_clock = False  # a source record was believed
        self._meters = meters
        self._strangers: list[tuple[float, Records]] = []

    @property
    def watermark(self) -> float:
        """Nothing earlier than this can enter any more."""
        return self.now - self.lateness

    def admit(self, records: Records) -> list[Records | None]:
        """The records that may enter now, in order of arrival; those that waited come first."""
        if isinstance(records, RequestBatch):
            return self._admit_batch(records)
        return self._admit_record(records)

    def settle(self) -> list[Records | None]:
        """End of input: nothing spoke against the strangers that still wait, so they enter."""
        return self._believe_strangers() if self._strangers else []

    def _admit_record(self, record: Record) -> list[Records | None]:
        if record.seq >= 0:
            return self._follow(record, record.ts, record.ts)
        if record.kind is Kind.SOURCE:
            return self._admit_clock(record)
        return self._judge(record.ts, record)

    def _admit_clock(self, record: Record) -> list[Records | None]:
        self._refuse_strangers()
        self.has_clock = True
        back = record.ts < self.watermark - _CLOCK_SLACK_SECONDS
        if back or record.ts > self.now + self.reach > -np.inf:
            self._meters.count("mlsecd_clock_steps_total")
        self.now = record.ts if back else max(self.now, record.ts)
        return [None, record] if back else [record]

    def _follow(self, records: Records, first: float, last: float) -> list[Records | None]:
        """Recorded rows: their order was decided, time goes where they go."""
        back = first < self.watermark
        self.now = last if back else max(self.now, last)
        return [None, records] if back else [records]

    def _admit_batch(self, batch: RequestBatch) -> list[Records | None]:
        if not len(batch):
            return []
        times = batch.completion
        recorded = batch.seq >= 0
        if recorded.any():
            return self._follow_batch(batch, times, recorded)
        latest = np.maximum.accumulate(np.concatenate(([self.now], times)))
        before = latest[:-1]
        strange = np.abs(times - before) > self.reach
        strange[0] &= np.isfinite(self.now)
        if self._strangers or strange.any():
            return self._admit_one_by_one(batch, times)
        late = times < before - self.lateness
        self.now = float(latest[-1])
        if not late.any():
            return [batch]
        self._meters.drop("fold", "late", int(late.sum()))
        return [batch.take(np.flatnonzero(~late))]

    def _follow_batch(
        self, batch: RequestBatch, times: NDArray[np.float64], recorded: NDArray[np.bool_]
    ) -> list[Records | None]:
        """Recorded rows, cut where time was set back and where rows without a number begin or end."""
        before = np.maximum.accumulate(np.concatenate(([self.now], times)))[:-1]
        cut = np.flatnonzero((times < before - self.lateness) | np.append(False, recorded[1:] != recorded[:-1]))
        if not len(cut) or (len(cut) == 1 and cut[0] == 0):
            return self._follow(batch, float(times[0]), float(times.max()))
        admitted: list[Records | None] = []
        stop = int(cut[0]) or int(cut[1])  # then look again: the cuts after the first depend on it
        for start, end in ((0, stop), (stop, len(batch))):
            admitted += self._admit_batch(batch.slice(start, end))
        return admitted

    def _admit_one_by_one(self, batch: RequestBatch, times: NDArray[np.float64]) -> list[Records | None]:
        admitted: list[Records | None] = []
        run: list[int] = []

        def end_run() -> None:
            if run:
                admitted.append(batch.take(np.array(run)))
                run.clear()

        for row, ts in enumerate(times.tolist()):
            for what in self._judge(ts, (batch, row)):
                if isinstance(what, tuple) and what[0] is batch:
                    run.append(what[1])
                else:
                    end_run()
                    admitted.append(_single(what))
        end_run()
        # what waits must not hold on to a whole batch
        self._strangers = [(ts, _single(what)) for ts, what in self._strangers]
        return admitted

    def _judge(self, ts: float, what: Any) -> list[Any]:
        """What enters because of this record: itself, those that waited for it, or nothing."""
        if np.isfinite(self.now) and abs(ts - self.now) > self.reach:
            return self._meet_stranger(ts, what)
        self._refuse_strangers()
        if ts < self.watermark:
            self._meters.drop("fold", "late")
            return []
        self.now = max(self.now, ts)
        return [what]

    def _meet_stranger(self, ts: float, what: Any) -> list[Any]:
        if self.has_clock and ts < self.now:
            self._meters.drop("fold", "behind")
            return []
        if self._strangers and abs(ts - self._strangers[0][0]) > self.reach:
            self._refuse_strangers()
        self._strangers.append((ts, what))
        return self._believe_strangers() if len(self._strangers) == _CONFIRM else []

    def _believe_strangers(self) -> list[Any]:
        entering = [what for _, what in self._strangers]
        latest = max(ts for ts, _ in self._strangers)
        back = latest < self.now
        self.now = latest
        self._strangers = []
        self._meters.count("mlsecd_clock_steps_total")
        return [None, *entering] if back else entering

    def _refuse_strangers(self) -> None:
        for ts, _ in self._strangers:
            self._meters.drop("fold", "ahead" if ts > self.now else "behind")
        self._strangers = []


def _single(what: Any) -> Any:
    """A row of a batch as a batch of its own; anything else as it is."""
    return what[0].take(np.array([what[1]])) if isinstance(what, tuple) else what
