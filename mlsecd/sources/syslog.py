"""Access logs over a Unix datagram socket, as nginx's ``access_log syslog:server=unix:...`` writes them.

What a file would keep for ever (an Authorization header, say) passes through here and is hashed at once.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from mlsecd.adapters.base import Context, adapters
from mlsecd.errors import SourceError
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, RequestBatch
from mlsecd.sources.base import Params, Poll, Source
from mlsecd.sources.fair_queue import FairQueue
from mlsecd.sources.unix_sockets import bind_datagram
from mlsecd.taps.identity import Hasher, key_path, load_key

__all__ = ["SOURCE", "Syslog", "SyslogParams"]

_TAKE_BYTES: Final = 4 << 20
_DATAGRAM_BYTES: Final = 1 << 16
_WAIT_SECONDS: Final = 0.5
_GATHER: Final = 256  # datagrams that become one piece


class SyslogParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the syslog socket."""

    enabled: bool = False
    path: Annotated[str, Meta(description="the Unix datagram socket")] = "/run/mlsecd/syslog.sock"
    format: Annotated[str, Meta(description="whose log it is: nginx, envoy, ...; mlsecd for our own records")] = "nginx"
    model: Annotated[str, Meta(min_length=1, max_length=256, description="the model of requests that name none")] = (
        "unknown"
    )
    mode: Annotated[int, Meta(ge=0, le=0o777, description="permissions of the socket")] = 0o660
    group: Annotated[str, Meta(description='group that owns the socket; "" for the daemon\'s own')] = ""
    interval_seconds: Annotated[float, Meta(gt=0, le=10, description="seconds between two batches")] = 0.5
    max_queue_bytes: Annotated[
        int, Meta(ge=1 << 17, le=1 << 30, description="most that may wait for a batch, bytes; the excess is dropped")
    ] = 16 << 20


class Syslog(Source):
    """One socket, a thread that always reads (a datagram socket holds ten messages), a bounded queue."""

    name = "syslog"
    emits = frozenset({Kind.REQUEST})
    summary = "access logs of gateways, as syslog datagrams over a Unix socket"
    Params = SyslogParams

    def __init__(self, params: SyslogParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._params = params
        self._decoder = Decoder(meters, self.name, accept=self.emits)
        self._queue = FairQueue(params.max_queue_bytes)
        self._socket: socket.socket | None = None
        self._identity: tuple[int, int] = (0, 0)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        key, self._key_trouble = load_key(key_path())
        self._hasher = Hasher(key)

    def supported(self) -> str | None:
        """``None`` where its format is known."""
        known = [name for name, adapter in adapters().items() if not adapter.whole]
        if self._params.format not in ("mlsecd", *known):
            return f'sources.syslog.format: no adapter "{self._params.format}": known are mlsecd, {", ".join(known)}'
        return None

    def poll(self, deadline: float) -> Poll:
        """Adapt and decode what came since the last poll."""
        if self._thread is None or not self._thread.is_alive() or not self._ours():
            self.close()
            self._open()
        self.meters.gauge("mlsecd_queue_depth", self._queue.depth, queue=self.name)
        self.meters.gauge("mlsecd_queue_capacity", self._queue.capacity, queue=self.name)
        return Poll(list(self._drain(deadline)))

    def _open(self) -> None:
        self._socket, self._identity = bind_datagram(self._params.path, self._params.mode, self._params.group)
        self._socket.settimeout(_WAIT_SECONDS)
        self._stopping = threading.Event()
        arguments = (self._socket, self._stopping)
        self._thread = threading.Thread(target=self._read, args=arguments, name="syslog", daemon=True)
        self._thread.start()

    def _ours(self) -> bool:
        """Whether the socket's file is still there: whoever cleans /run would otherwise make us deaf."""
        try:
            status = os.lstat(self._params.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _read(self, sock: socket.socket, stopping: threading.Event) -> None:
        while not stopping.is_set():
            lines = bytearray()
            try:
                lines += _message(sock.recv(_DATAGRAM_BYTES))
                sock.settimeout(0)
                for _ in range(_GATHER):
                    lines += _message(sock.recv(_DATAGRAM_BYTES))
            except (BlockingIOError, TimeoutError):
                pass
            except OSError:
                if stopping.is_set():
                    return
                raise SourceError("the socket is broken") from None
            finally:
                if lines and (lost := self._queue.put(0, 0, bytes(lines))):
                    self.meters.drop(self.name, "queue_full", lost)
            if not stopping.is_set():
                sock.settimeout(_WAIT_SECONDS)

    def _drain(self, deadline: float) -> Iterator[Records]:
        context = Context(self._hasher, self._params.model, now=time.time())
        adapter = adapters().get(self._params.format)
        while time.monotonic() < deadline and (taken := self._queue.take(_TAKE_BYTES)):
            lines = b"".join(piece for _, piece in taken)
            if adapter is not None:
                adapted = adapter.adapt(lines, context)
                lines = adapted.lines
                if adapted.bad:
                    self.meters.drop(self.name, "record", adapted.bad)
            for records in self._decoder.decode(lines):
                if isinstance(records, RequestBatch):
                    yield RequestBatch(records.columns)

    def samples(self) -> dict[str, str]:
        """One refused line a reason and minute."""
        samples, self._decoder.samples = self._decoder.samples, {}
        if self._key_trouble:
            samples["key"], self._key_trouble = self._key_trouble, None  # once
        return samples

    def close(self) -> None:
        """Stop reading and remove the socket; may be called more than once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(4 * _WAIT_SECONDS)
            self._thread = None
        if self._socket is not None:
            if self._ours():
                Path(self._params.path).unlink(missing_ok=True)
            self._socket.close()
            self._socket = None
            self.meters.forget("mlsecd_queue_depth", queue=self.name)


def _message(datagram: bytes) -> bytes:
    """The line in a syslog message, without "<190>Nov 22 19:21:33 mlsecd: " and with a newline."""
    start = datagram.find(b"{")
    text = datagram[start:] if start >= 0 else datagram
    return text.replace(b"\n", b" ").rstrip(b" \0") + b"\n" if text.strip(b" \0\n") else b""


SOURCE = Syslog
