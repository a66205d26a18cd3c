"""The tap's one thread: it turns what the request path kept into records, at most 2 % of a core's time.

The request path only appends. When more comes than the share of time allows, sketches and patterns are left out
first (the record says so by not having them), then whole exchanges, of the client that has most waiting. Both are
counted. Standard library only.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Final

from mlsecd.taps.client import SocketClient

__all__ = ["Worker"]

CAPACITY: Final = 2_048  # exchanges that wait
CAPACITY_BYTES: Final = 32 << 20  # of bodies that wait

_IDLE_SECONDS: Final = 0.1
_BURST_SECONDS: Final = 0.25  # of processor time that may be saved up
_FAIR_SECONDS: Final = 10.0
_REPORT_SECONDS: Final = 300.0
_FAREWELL_SECONDS: Final = 1.0
_MAX_LANES: Final = 8_192

_log = logging.getLogger("mlsecd.tap")

# Makes a line of an exchange; told whether there is time for sketches, and how many exchanges of the same client were
# given up since its last line. None: there is nothing to tell.
Render = Callable[[Any, bool, int], bytes | None]


class Worker:
    """A bounded, fair queue and the thread that empties it.

    Parameters
    ----------
    render
        Called in the thread.
    client
        Where lines go.
    share
        Of one core's time.
    """

    def __init__(self, render: Render, client: SocketClient, share: float = 0.02) -> None:
        self._render = render
        self._client = client
        self._share = share
        self.dropped: Counter[str] = Counter()
        self.made = 0
        self.unsketched = 0
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        """Start from nothing: also in a forked child, where no thread of the parent lives."""
        self._lock = threading.Lock()
        self._lanes: OrderedDict[Hashable, deque[tuple[Any, int]]] = OrderedDict()
        self._waiting = 0
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._budget = _BURST_SECONDS
        self._sketched: Counter[Hashable] = Counter()
        self._lost: Counter[Hashable] = Counter()  # given up since a client's last record
        self._fair_since = 0.0
        self._reported: tuple[int, ...] = (0, 0, 0)
        self._trouble = ""

    @property
    def waiting(self) -> int:
        """Exchanges that wait."""
        return self._waiting

    def put(self, lane: Hashable, exchange: Any, size: int) -> None:
        """Hand over an exchange; never blocks longer than another ``put`` takes.

        When the queue is full a client keeps its equal share of it: who has more waiting loses the new one.
        """
        with self._lock:
            held = self._lanes.get(lane)
            full = self._waiting >= CAPACITY or self._bytes + size > CAPACITY_BYTES
            if full and (
                (held is not None and len(held) * len(self._lanes) >= self._waiting)
                or self._waiting >= 2 * CAPACITY
                or self._bytes + size > 2 * CAPACITY_BYTES
            ):
                self.dropped["overload"] += 1
                self._miss(lane, 1)
                return
            if held is None:
                held = self._lanes[lane] = deque()
            held.append((exchange, size))
            self._waiting += 1
            self._bytes += size
        if self._thread is None:
            self._start()

    def _miss(self, lane: Hashable, count: int) -> None:
        """Note what a client lost; of too many clients, the half that lost least is forgotten."""
        self._lost[lane] += count
        if len(self._lost) > _MAX_LANES:
            self._lost = Counter(dict(self._lost.most_common(_MAX_LANES // 2)))

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._stopping.is_set():
                return
            self._thread = threading.Thread(target=self._run, name="mlsecd-tap", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads: what waits stays bounded, and the next request tries again
                self._thread = None

    def close(self, seconds: float = _FAREWELL_SECONDS) -> None:
        """End the thread; what waits is still sent, as far as ``seconds`` allow, and else counted."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(seconds)
        until = time.monotonic() + seconds
        while time.monotonic() < until and (taken := self._take()) is not None:
            self._make(*taken)
        with self._lock:
            self.dropped["closed"] += self._waiting
            self._lanes.clear()
            self._waiting = self._bytes = 0
        self._client.close()

    def _run(self) -> None:
        earned = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            self._budget = min(_BURST_SECONDS, self._budget + (now - earned) * self._share)
            earned = now
            if self._budget <= 0:
                self._stopping.wait(min(1.0, -self._budget / self._share + _IDLE_SECONDS))
                continue
            taken = self._take()
            if taken is not None:
                self._make(*taken)
                continue
            before = time.thread_time()
            self._client.flush()
            self._report(now)
            self._budget -= time.thread_time() - before
            self._stopping.wait(_IDLE_SECONDS)

    def _take(self) -> tuple[Hashable, Any] | None:
        """The next exchange, of each client in turn."""
        with self._lock:
            if not self._waiting:
                return None
            lane, held = next(iter(self._lanes.items()))
            exchange, size = held.popleft()
            self._waiting -= 1
            self._bytes -= size
            if held:
                self._lanes.move_to_end(lane)
            else:
                del self._lanes[lane]
            return lane, exchange

    def _make(self, lane: Hashable, exchange: Any) -> None:
        """One record; what goes wrong is counted and stays here."""
        before = time.thread_time()
        sketch = self._may_sketch(lane)
        with self._lock:
            lost = self._lost.pop(lane, 0)
        told = False
        try:
            line = self._render(exchange, sketch, lost)
            if line is not None:
                self._client.send(line)
                told = True
                self.made += 1
                self.unsketched += not sketch
        except Exception:  # noqa: BLE001 - the server that we live in must not notice
            self.dropped["error"] += 1
            _log.debug("a request could not be read", exc_info=True)
        if lost and not told:
            with self._lock:
                self._miss(lane, lost)
        self._budget -= time.thread_time() - before

    def _may_sketch(self, lane: Hashable) -> bool:
        """Whether there is time for sketches, and this client had no more of them than others lately."""
        now = time.monotonic()
        if now - self._fair_since > _FAIR_SECONDS or len(self._sketched) > _MAX_LANES:
            self._fair_since = now
            self._sketched.clear()
        if self._budget < _BURST_SECONDS / 4 or self._waiting > CAPACITY // 4:
            return False
        tight = self._budget < _BURST_SECONDS / 2
        if tight and self._sketched[lane] * len(self._sketched) > 2 * self._sketched.total():
            return False
        self._sketched[lane] += 1
        return True

    def _report(self, now: float) -> None:
        """Say now and then what was lost, silent where nothing was; and once each, why nobody takes the records."""
        if self._client.trouble not in ("", self._trouble):
            self._trouble = self._client.trouble
            _log.warning("mlsecd tap: records wait, %s: %s", self._client.path, self._trouble)
        if now - self._reported[0] < _REPORT_SECONDS:
            return
        lost = sum(self.dropped.values()) + sum(self._client.dropped.values())
        if lost > self._reported[1] or self.unsketched > self._reported[2]:
            reasons = {**self.dropped, **self._client.dropped}
            _log.warning(
                "mlsecd tap: %d records sent, %d without sketches, lost: %s", self.made, self.unsketched, reasons or 0
            )
        self._reported = (int(now), lost, self.unsketched)


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _forked() -> None:
    for worker in list(_workers):
        worker._begin()  # noqa: SLF001 - its own module


def _leave() -> None:
    for worker in list(_workers):
        worker.close()


os.register_at_fork(after_in_child=_forked)
atexit.register(_leave)
