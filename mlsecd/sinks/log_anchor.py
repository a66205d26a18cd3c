"""Hands the head of the forensic log's chain to syslog: a witness whom the writer of the log cannot make unsay it.

A chain shows that what is there was not edited. That its end was cut off, or all of it written anew, only a head shows
that is kept elsewhere. Syslog is where hosts already keep what must not be lost, and forward it off the host.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Final

from mlsecd.meters import Meters

__all__ = ["TAG", "Anchor"]

TAG: Final = "mlsecd-anchor"
_PRIORITY: Final = 10 * 8 + 5  # authpriv, notice: RFC 5424, 6.2.1
_AT: Final = "mlsecd_forensic_log_anchor_timestamp_seconds"
_EVERY: Final = "mlsecd_forensic_log_anchor_interval_seconds"
_FAILED: Final = "mlsecd_forensic_log_anchor_failures_total"


class Anchor:
    """Tells syslog the head: when it is due, and that it has not changed too, so that silence means something.

    It never blocks and never raises: what syslog does not take is counted and tried again at the next turn.

    Parameters
    ----------
    path
        Unix datagram socket of syslog or the journal; empty: nothing is told, and no series says that it were.
    seconds
        Between two tellings.
    clock
        Wall clock, seconds since the epoch, for the metric.
    """

    def __init__(
        self, path: str, seconds: float, host: str, meters: Meters, clock: Callable[[], float] = time.time
    ) -> None:
        self.why = ""  # why the last try failed; empty where it did not
        self._path = path
        self._seconds = seconds
        self._host = host
        self._meters = meters
        self._clock = clock
        self._due = 0.0  # monotonic
        if not path:
            meters.forget(_AT)
            meters.forget(_EVERY)
            return
        meters.gauge(_EVERY, seconds)
        meters.gauge(_AT, meters.value(_AT))  # 0: never; a reload keeps what was
        meters.count(_FAILED, 0)

    def look(self, log: str, head: tuple[int, str], *, last: bool = False) -> None:
        """Tell the head where it is due, or where this is the ``last`` chance. A log without a line has none."""
        now = time.monotonic()
        if not self._path or head[0] < 0 or (now < self._due and not last):
            return
        seq, sha256 = head
        line = f"<{_PRIORITY}>{TAG}[{os.getpid()}]: host={self._host} log={log} anchor={seq}:{sha256}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(0)
                sock.sendto(line.encode("utf-8", "replace"), self._path)
        except OSError as error:
            self.why = f"{self._path}: {error.strerror}"
            self._meters.count(_FAILED)
            return
        self.why = ""
        self._due = now + self._seconds
        self._meters.gauge(_AT, self._clock())
