"""Keeps sources running: a thread each, a bounded inbox for all, one ``source`` record a poll."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlsecd import log
from mlsecd.errors import MlsecdError
from mlsecd.meters import Meters
from mlsecd.records import Column, Kind, Records, RequestBatch, SourceStatus, Text
from mlsecd.sources.base import Poll, Source

__all__ = ["Health", "Inbox", "Runner"]

_RETRY_UNSUPPORTED_SECONDS = 60.0  # a driver may be installed while we run
_SKEW_SECONDS = 1.0  # a tap writes after a response: its clock is this host's


@dataclass(frozen=True, slots=True)
class Health:
    """How a source is doing, for metrics, readiness and the landing page."""

    name: str
    up: bool | None = None  # None: not polled yet
    why: str | None = None
    unsupported: bool = False
    last_success: float | None = None  # wall clock, seconds
    records: int = 0  # in all
    seen: int | None = None
    expected: int | None = None


class Inbox:
    """What sources delivered and the main loop has not taken yet; bounded in polls and in rows.

    Of too many polls the oldest goes. Of too many rows, the requests of the poll that holds most go, and
    its other records stay: a flood of requests must not look like a dead source, or cost a GPU's samples.
    """

    def __init__(self, limit: int, meters: Meters, max_rows: int = 500_000) -> None:
        self._limit = limit
        self._max_rows = max_rows
        self._rows = 0
        self._meters = meters
        self._lock = threading.Lock()
        self._polls: deque[Sequence[Records]] = deque()
        meters.gauge("mlsecd_queue_capacity", limit, queue="inbox")

    def put(self, records: Sequence[Records]) -> None:
        """Add one poll's records."""
        with self._lock:
            if len(self._polls) >= self._limit:
                self._lose(self._polls.popleft())
            self._polls.append(records)
            self._rows += _rows(records)
            while self._rows > self._max_rows:
                largest = max(range(len(self._polls)), key=lambda at: _rows(self._polls[at]))
                self._lose([one for one in self._polls[largest] if isinstance(one, RequestBatch)])
                self._polls[largest] = [one for one in self._polls[largest] if not isinstance(one, RequestBatch)]
            self._meters.gauge("mlsecd_queue_depth", len(self._polls), queue="inbox")

    def _lose(self, records: Sequence[Records]) -> None:
        self._rows -= _rows(records)
        self._meters.drop("inbox", "full", sum(_count(one) for one in records))

    def take(self, rows: int = 200_000) -> list[Records]:
        """What waits, in order of arrival: everything, or so many polls that they hold about ``rows``."""
        taken: list[Records] = []
        with self._lock:
            while self._polls and (rows > 0 or not taken):
                poll = self._polls.popleft()
                rows -= _rows(poll)
                self._rows -= _rows(poll)
                taken += poll
            self._meters.gauge("mlsecd_queue_depth", len(self._polls), queue="inbox")
        return taken


def _rows(poll: Sequence[Records]) -> int:
    """Requests in a poll."""
    return sum(len(one) for one in poll if isinstance(one, RequestBatch))


def _at_home(batch: RequestBatch, host: str) -> dict[str, Column]:
    """The columns with this host's own name blanked: its samples carry none, and the two are joined by it."""
    if not batch.has("host"):
        return batch.columns
    names = batch.text("host")
    return {**batch.columns, "host": Text(names.codes, tuple("" if name == host else name for name in names.values))}


def _count(records: Records) -> int:
    return len(records) if isinstance(records, RequestBatch) else 1


class Runner:
    """Polls one source until it is stopped, and turns every failure into a ``source`` record."""

    def __init__(
        self, source: Source, inbox: Inbox, meters: Meters, tell: Callable[[Health], None], host: str = ""
    ) -> None:
        self.source = source
        self.health = Health(source.name)
        self._inbox = inbox
        self._meters = meters
        self._tell_change = tell
        self._host = host
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"source-{source.name}", daemon=True)

    def catch_up(self, deadline: float) -> Iterator[list[Records]]:
        """What waited while nobody polled, a poll at a time, until nothing waits or ``deadline`` (monotonic).

        Before :meth:`start`. It comes without a ``source`` record: that would be the clock's word, and
        make all that waited late. A failure is left for the first ordinary poll to tell.
        """
        while time.monotonic() < deadline and self.source.supported() is None:
            try:
                poll = self.source.poll(deadline)
            except Exception:  # noqa: BLE001 - see above
                return
            if not poll.records:
                return
            yield [self._believable(one, time.time()) for one in poll.records]

    def start(self) -> None:
        """Begin polling."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; :meth:`join` waits."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread; False where it hangs in a poll, and is left behind."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        self.source.close()
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                reason = self.source.supported()
                if reason is None:
                    self._poll(started)
            except Exception as error:  # noqa: BLE001 - the thread must outlive whatever goes wrong in a turn
                reason = None
                self._tell(Health(self.source.name, up=False, why=f"{type(error).__name__}: {error}"))
            if reason is not None:
                self._tell(Health(self.source.name, up=False, why=reason, unsupported=True))
                self._stop.wait(_RETRY_UNSUPPORTED_SECONDS)
                continue
            pause = self.source.interval_seconds - (time.monotonic() - started)
            self._stop.wait(max(pause, 0.0))
        if Kind.REQUEST in self.source.emits and not self.health.unsupported:
            with contextlib.suppress(Exception):
                self._poll(time.monotonic())  # what was sent before we were told to stop

    def _poll(self, started: float) -> None:
        try:
            poll = self.source.poll(started + max(1.0, 5 * self.source.interval_seconds))
        except MlsecdError as error:
            poll = Poll(error=str(error))
        except Exception as error:  # noqa: BLE001 - a source's failure never stops the loop
            poll = Poll(error=f"{type(error).__name__}: {error}")
        now = time.time()
        records = [self._believable(one, now) for one in poll.records]
        status = SourceStatus(
            ts=now,
            source=self.source.name,
            ok=poll.error is None,
            error=poll.error,
            expected=poll.expected,
            seen=poll.seen,
        )
        self._inbox.put([*records, status])
        for reason, line in self.source.samples().items():
            log.get().warning("refused input", source=self.source.name, reason=reason, line=line)
        self._count(poll, now, time.monotonic() - started)

    def _believable(self, records: Records, now: float) -> Records:
        """Requests end before they are written down: a later time is a lie, or a broken clock.

        ``seq`` is the fold's to give: a live record that brings one would pass its judgement of time.
        """
        if not isinstance(records, RequestBatch):
            return records if records.seq < 0 else dataclasses.replace(records, seq=-1)
        records = RequestBatch(_at_home(records, self._host))
        future = records.completion > now + _SKEW_SECONDS
        if not future.any():
            return records
        self._meters.drop(self.source.name, "future", int(future.sum()))
        return records.take(np.flatnonzero(~future))

    def _count(self, poll: Poll, now: float, seconds: float) -> None:
        count = sum(_count(one) for one in poll.records)
        self._meters.count("mlsecd_source_records_total", count, source=self.source.name)
        self._meters.count("mlsecd_source_poll_seconds_total", seconds, source=self.source.name)
        self._meters.count("mlsecd_source_polls_total", source=self.source.name)
        ok = poll.error is None
        self._tell(
            Health(
                self.source.name,
                up=ok,
                why=poll.error,
                last_success=now if ok else self.health.last_success,
                records=self.health.records + count,
                seen=poll.seen,
                expected=poll.expected,
            )
        )

    def _tell(self, health: Health) -> None:
        """Keep the health, and say it once a change."""
        before, self.health = self.health, health
        if (before.up, before.why) != (health.up, health.why):
            self._tell_change(health)
