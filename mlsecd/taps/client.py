"""Sends request records to mlsecd from inside another program: it never blocks it, and never raises into it.

Standard library only: a tap lives in somebody else's process.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

__all__ = ["DEFAULT_PATH", "SocketClient"]

DEFAULT_PATH: Final = "/run/mlsecd/ingest.seqpacket"

_MESSAGE_BYTES: Final = 1 << 16  # what the daemon takes in one message
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0


class SocketClient:
    """Batches JSON lines into messages on a Unix SOCK_SEQPACKET socket.

    It connects when there is something to send, and again after a pause that doubles up to 5 s. While
    nobody listens, or listens too slowly, it keeps ``pending_bytes`` and drops the oldest message
    beyond; ``dropped`` counts lines by reason (``full``, ``too_long``, ``closed``), ``sent`` those that
    the kernel took, and ``trouble`` says why the socket is not reached, "" while it is. Threads may share it.
    After a fork the child begins with an empty one of its own.

    Parameters
    ----------
    path
        The daemon's socket; by default ``MLSECD_SOCKET``, else ``/run/mlsecd/ingest.seqpacket``.
    batch_bytes
        Lines are gathered into a message up to this size, at most 64 KiB.
    flush_seconds
        How long a line may wait for others; looked at by :meth:`send` only, so whoever sends seldom
        calls :meth:`flush` as well.
    pending_bytes
        Bytes that may wait while the socket takes none.
    clock
        Seconds that only grow.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        batch_bytes: int = 1 << 15,
        flush_seconds: float = 0.2,
        pending_bytes: int = 1 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path or os.environ.get("MLSECD_SOCKET") or DEFAULT_PATH
        self._batch_bytes = min(batch_bytes, _MESSAGE_BYTES)
        self._flush_seconds = flush_seconds
        self._pending_bytes = pending_bytes
        self._clock = clock
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        """Start from nothing: also in a forked child, where another thread may have held the lock."""
        self.sent = 0
        self.trouble = ""
        self.dropped: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._pause = self._connected_at = 0.0
        self._retry_at = 0.0
        self._batch = bytearray()
        self._batch_since = 0.0
        self._ready: deque[bytes] = deque()
        self._ready_bytes = 0

    @property
    def waiting(self) -> int:
        """Bytes that wait to be sent."""
        return self._ready_bytes + len(self._batch)

    def send(self, lines: bytes | str) -> None:
        """Take one JSON line or several; a newline behind the last is not needed."""
        data = (lines.encode() if isinstance(lines, str) else lines).strip(b"\n")
        if not data:
            return
        with self._lock:
            if len(data) < self._batch_bytes:
                self._gather(data)
            else:
                for line in data.split(b"\n"):
                    self._gather(line)
            if self._clock() - self._batch_since >= self._flush_seconds:
                self._push()
            else:
                self._transmit()

    def flush(self) -> None:
        """Send what was gathered, as far as the socket takes it."""
        with self._lock:
            self._push()

    def close(self) -> None:
        """Send what the socket still takes, count the rest as dropped; may be called more than once."""
        with self._lock:
            self._seal()
            self._transmit()
            for message in self._ready:
                self.dropped["closed"] += message.count(b"\n")
            self._ready.clear()
            self._ready_bytes = 0
            self._disconnect()

    def _push(self) -> None:
        """Send everything. While messages wait, lines go on gathering: full messages pass sooner."""
        self._transmit()
        if not self._ready:
            self._seal()
            self._transmit()

    def _gather(self, data: bytes) -> None:
        if not data:
            return
        if len(data) >= _MESSAGE_BYTES:
            self.dropped["too_long"] += 1
            return
        if len(self._batch) + len(data) >= self._batch_bytes:
            self._seal()
        if not self._batch:
            self._batch_since = self._clock()
        self._batch += data
        self._batch += b"\n"

    def _seal(self) -> None:
        """The batch is a message now; the oldest messages go where too much waits."""
        if not self._batch:
            return
        self._ready.append(bytes(self._batch))
        self._ready_bytes += len(self._batch)
        self._batch = bytearray()
        while self._ready_bytes > self._pending_bytes:
            oldest = self._ready.popleft()
            self._ready_bytes -= len(oldest)
            self.dropped["full"] += oldest.count(b"\n")

    def _transmit(self) -> None:
        while self._ready:
            if self._socket is None and not self._connect():
                return
            try:
                assert self._socket is not None  # noqa: S101 - _connect made it
                self._socket.send(self._ready[0])
            except BlockingIOError:
                return  # the daemon is behind: later
            except OSError as error:
                self._disconnect()
                if self._clock() - self._connected_at < self._pause:  # it takes us in and turns us away
                    self._fail(error)
                    return
                self._pause = _FIRST_PAUSE_SECONDS  # it went away and may be back already: one try at once
                continue
            self.trouble = ""
            message = self._ready.popleft()
            self._ready_bytes -= len(message)
            self.sent += message.count(b"\n")

    def _connect(self) -> bool:
        if self._clock() < self._retry_at:
            return False
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        except OSError as error:
            return self._fail(error)
        try:
            sock.settimeout(0)
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            return self._fail(error)
        self._socket, self._connected_at = sock, self._clock()
        return True

    def _fail(self, error: OSError) -> bool:
        self.trouble = (error.strerror or type(error).__name__).lower()
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        self._retry_at = self._clock() + self._pause
        return False

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_clients: weakref.WeakSet[SocketClient] = weakref.WeakSet()


def _forked() -> None:
    """A child must not send what its parent gathered, nor wait for a lock that no thread of its own holds."""
    for client in list(_clients):
        client._disconnect()  # noqa: SLF001 - its own module
        client._begin()  # noqa: SLF001


os.register_at_fork(after_in_child=_forked)
