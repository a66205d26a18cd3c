"""The fold: records in, findings out. The same drive for the daemon, replay and any fleet engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter

from mlsecd.detectors.base import Detector, Interval
from mlsecd.engines.gate import Gate
from mlsecd.engines.hold import Hold, Ordered
from mlsecd.engines.join import Joiner
from mlsecd.errors import StateError
from mlsecd.findings.ledger import Ledger
from mlsecd.jsonlines import RECORDED_LINE_BYTES, Decoder, encode
from mlsecd.meters import Meters
from mlsecd.records import Finding, Records
from mlsecd.windows.packing import pack, unpack

__all__ = ["Fold"]

_VERSION = 1
_REACH_SECONDS = 3_600.0  # times further apart than this are not believed at once


class Fold:
    """Orders records by event time, hands them to the detectors, and keeps the findings' ledger.

    Records are held until nothing earlier can come (``lateness_seconds``), stamped with ``seq``,
    and handed to every detector that consumes their kind, in the order of (time, kind, arrival).
    When a record of a later interval is about to be handed out, the interval before it is closed:
    so what happens depends on the records and their order, never on how they came in batches.

    Parameters
    ----------
    detectors
        In any order; findings of one interval do not depend on it.
    ledger
        Gives findings their identity and their life.

    Attributes
    ----------
    on_released
        Called with each ordered stretch before it is judged, for recorders and counters.
    on_failed
        Called when a detector raised; it may raise too, where going on makes no sense.
    """

    def __init__(  # noqa: PLR0913 - the whole engine is set here
        self,
        detectors: Sequence[Detector],
        ledger: Ledger,
        meters: Meters,
        *,
        lateness_seconds: float = 2.0,
        interval_seconds: float = 10.0,
        max_held_rows: int = 500_000,
        join_seconds: float = 0.0,
    ) -> None:
        self.detectors = list(detectors)
        self.ledger = ledger
        self.meters = meters
        self.interval_seconds = interval_seconds
        self.last_run: dict[str, float] = {}  # event time of each detector's last record
        self.on_released: Callable[[Ordered], None] = lambda _ordered: None
        self.on_failed: Callable[[Detector, Exception], None] = lambda _detector, _error: None
        self._gate = Gate(lateness_seconds, _REACH_SECONDS, meters)
        self._hold = Hold(max_held_rows, meters, Joiner(join_seconds, meters) if join_seconds else None)
        self._seq = 0
        self._interval: int | None = None
        self.failures: dict[str, int] = {}  # of each detector, since a step of it last succeeded

    @property
    def now(self) -> float:
        """The latest event time that was believed."""
        return self._gate.now

    def push(self, records: Iterable[Records]) -> list[Finding]:
        """Take records in order of arrival; return the findings' lines that they complete."""
        lines: list[Finding] = []
        for arrived in records:
            for part in self._hold.portions(arrived):
                lines += self._enter_hold(self._gate.admit(part))
                if self._hold.crowded:
                    lines += self._fold(self._hold.release(self._gate.watermark))
        return lines + self._fold(self._hold.release(self._gate.watermark))

    def finish(self) -> list[Finding]:
        """End of input: fold what is still held. Nothing is closed or resolved by an end of file."""
        return self._enter_hold(self._gate.settle()) + self._fold(self._hold.release(math.inf))

    def _enter_hold(self, admitted: Iterable[Records | None]) -> list[Finding]:
        lines: list[Finding] = []
        for records in admitted:
            if records is None:  # time was set back: what is held belongs before it
                lines += self._fold(self._hold.release(math.inf))
            else:
                self._hold.add(records)
        return lines

    def _fold(self, ordered: Ordered) -> list[Finding]:
        if not ordered:
            return []
        self._seq = ordered.stamp(self._seq)
        self.on_released(ordered)
        lines: list[Finding] = []
        for tick, part in ordered.by_interval(self.interval_seconds):
            lines += self._enter(tick)
            lines += self._observe(part)
        return lines

    def _enter(self, tick: int) -> list[Finding]:
        """Close what lies before interval ``tick``; a stretch without records is one interval."""
        previous, self._interval = self._interval, tick
        if previous is None or tick <= previous:
            return []
        lines = self._close((previous, previous + 1))
        if tick > previous + 1:
            lines += self._close((previous + 1, tick))
        return lines

    def _close(self, ticks: tuple[int, int]) -> list[Finding]:
        interval = Interval(ticks[0] * self.interval_seconds, ticks[1] * self.interval_seconds)
        found: list[Finding] = []
        for detector in self.detectors:
            found += self._run(detector, partial(_judge, detector, interval))
        return self.ledger.take(found) + self.ledger.close(interval.end)

    def _observe(self, part: Ordered) -> list[Finding]:
        found: list[Finding] = []
        for detector in self.detectors:
            for records in part.pieces(detector.consumes):
                found += self._run(detector, partial(detector.observe, records))
            self.last_run[detector.name] = part.last
        return self.ledger.take(found)

    def _run(self, detector: Detector, step: Callable[[], list[Finding]]) -> list[Finding]:
        """One step of one detector. Its failure is counted and told; it stays on, and so do the others.

        Switching it off would hand that switch to whoever finds the record that makes it fail.
        """
        started = time.perf_counter()
        try:
            found = step()
        except Exception as error:  # noqa: BLE001 - one detector must never stop the rest
            self.failures[detector.name] = self.failures.get(detector.name, 0) + 1
            self.meters.count("mlsecd_detector_errors_total", detector=detector.name)
            self.on_failed(detector, error)
            return []
        finally:
            self.meters.count("mlsecd_detector_seconds_total", time.perf_counter() - started, detector=detector.name)
        self.failures.pop(detector.name, None)
        return found

    def snapshot(self) -> dict[str, bytes]:
        """Everything that a restart needs, by section."""
        held = b"".join(encode(records) for records in self._hold.waiting())
        state = {
            "now": self._gate.now,
            "has_clock": self._gate.has_clock,
            "seq": self._seq,
            "interval": self._interval,
            "interval_seconds": self.interval_seconds,
            "held": held,
        }
        return {"fold": pack(_VERSION, state), "ledger": self.ledger.snapshot(), **self._snapshots()}

    def _snapshots(self) -> dict[str, bytes]:
        """Each detector's state; one that cannot give it begins afresh at the next start, and is counted now."""
        parts = {}
        for detector in self.detectors:
            try:
                parts[f"detector:{detector.name}"] = detector.snapshot()
            except Exception as error:  # noqa: BLE001 - one detector must never cost the others their state
                self.meters.count("mlsecd_detector_errors_total", detector=detector.name)
                self.on_failed(detector, error)
        return parts

    def restore(self, sections: dict[str, bytes]) -> list[str]:
        """Take a snapshot's state; what does not fit any more starts afresh, and is named in the answer."""
        lost = []
        for detector in self.detectors:
            blob = sections.get(f"detector:{detector.name}")
            try:
                if blob is not None:
                    detector.restore(blob)
            except StateError as error:
                lost.append(f"{detector.name}: {error}")
        try:
            if "ledger" in sections:
                self.ledger.restore(sections["ledger"])
            if "fold" in sections:
                self._restore_order(unpack(_VERSION, sections["fold"]))
        except StateError as error:
            lost.append(str(error))
        return lost

    def _restore_order(self, state: dict[str, object]) -> None:
        now, seq, interval, held = state["now"], state["seq"], state["interval"], state["held"]
        if not (isinstance(now, float) and isinstance(seq, int) and isinstance(held, bytes)):
            raise StateError("the fold's own state is damaged")
        self._gate.now = now
        self._seq = seq
        self._gate.has_clock = state.get("has_clock") is True
        same_unit = state.get("interval_seconds") == self.interval_seconds
        self._interval = interval if isinstance(interval, int) and same_unit else None
        for records in Decoder(self.meters, "snapshot", max_line_bytes=RECORDED_LINE_BYTES).decode(held):
            self._hold.add(records)


def _judge(detector: Detector, interval: Interval) -> list[Finding]:
    return detector.close(interval, sorted(detector.states(), key=itemgetter(0)))
