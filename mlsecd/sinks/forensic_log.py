"""The forensic log: every finding as one hash-chained OCSF line, durable before it is acknowledged."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from mlsecd.errors import SinkError
from mlsecd.meters import Meters
from mlsecd.records import Finding
from mlsecd.sinks.log_writer import LogParams, Writer

__all__ = ["ForensicLog"]


class ForensicLog:
    """Appends findings to the log of one directory; loud when it cannot, never fatal.

    :meth:`append` and :meth:`retry` never raise. While the disk refuses, ``blocked`` is true and
    findings wait in order up to ``queue_max``; what comes after is dropped, counted, and told by a
    ``dropped`` line once there is room. Call it from one thread; the attributes may be read from any.

    Parameters
    ----------
    technique_names
        Name by ATLAS id, for readers of the log.
    clock
        Wall clock, seconds since the epoch: for ``created`` and ``logged_time``, never for a finding.

    Raises
    ------
    SinkError
        Another process writes this log.
    """

    def __init__(
        self,
        params: LogParams,
        host: str,
        meters: Meters,
        *,
        technique_names: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.blocked = False
        self.last_error: str | None = None
        self.written = 0  # findings made durable since the start
        self.dropped = 0  # findings given up since the start
        self._queue_max = params.queue_max
        self._meters = meters
        self._pending: deque[Finding] = deque()
        self._untold = 0  # dropped findings that no line tells of yet
        self._writer = Writer(params, host, technique_names=technique_names, clock=clock)
        meters.drop("forensic_log", "queue_full", 0)
        self._flush(refusal_is_final=True)

    @property
    def queued(self) -> int:
        """Findings that wait for the disk."""
        return len(self._pending)

    @property
    def chain_ok(self) -> bool:
        """Whether the chain was whole where this process saw it; ``mlsecd log verify`` looks at all of it."""
        return self._writer.chain_ok

    @property
    def seq(self) -> int:
        """Lines under the chain, those of deleted segments included. It never shrinks."""
        return self._writer.link.seq

    @property
    def log_id(self) -> str:
        """Which log this is; empty while it could not be opened."""
        return self._writer.log_id

    @property
    def head(self) -> tuple[int, str]:
        """``seq`` and SHA-256 (hex) of the last line: kept off the host, it shows a log that was cut."""
        link = self._writer.link
        return link.seq - 1, link.prev

    def append(self, findings: Sequence[Finding]) -> int:
        """Write findings in order; return how many were made durable, earlier ones that waited included."""
        before = self.written
        self._pending.extend(findings)
        if not self.blocked:
            self._flush()
        self._trim()
        return self.written - before

    def retry(self) -> int:
        """Each tick: write what waits where there is room again, seal an old segment, look for a foreign hand."""
        before = self.written
        self._flush()
        return self.written - before

    def state(self) -> bytes:
        """What waits for the disk, for a successor: nothing else knows these findings any more."""
        return msgspec.json.encode((self._untold, list(self._pending)))

    def resume(self, blob: bytes) -> None:
        """Take over what a predecessor could not write; it goes before everything that comes."""
        try:
            untold, pending = msgspec.json.decode(blob, type=tuple[int, list[Finding]])
        except msgspec.MsgspecError:
            self._meters.drop("forensic_log", "state_damaged")
            return
        self._untold += untold
        self._pending.extendleft(reversed(pending))
        self._flush()
        self._trim()

    def close(self) -> None:
        """Write what waits, once more, and let go; the next start goes on in the same segment."""
        self._flush()
        self._writer.close()

    def _flush(self, *, refusal_is_final: bool = False) -> None:
        waiting = len(self._pending)
        try:
            self._writer.make_ready()
            self._writer.write(self._pending)
            if self._untold:
                self._writer.note("dropped", findings=self._untold, reason="queue_full")
                self._untold = 0
                self._writer.write(self._pending)
        except OSError as error:
            self._block(f"{error.strerror or error}: {error.filename or self._writer.directory}")
        except SinkError as error:
            if refusal_is_final:
                raise
            self._block(str(error))
        else:
            self.blocked, self.last_error = False, None
        finally:
            self.written += waiting - len(self._pending)

    def _block(self, why: str) -> None:
        self.blocked, self.last_error = True, why

    def _trim(self) -> None:
        """The oldest stay: they tell how it began."""
        excess = len(self._pending) - self._queue_max
        for _ in range(excess):
            self._pending.pop()
        if excess > 0:
            self.dropped += excess
            self._untold += excess
            self._meters.drop("forensic_log", "queue_full", excess)
