"""Request records from taps and gateways on this host, over a Unix socket."""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import numpy as np
from msgspec import Meta

from mlsecd.errors import SourceError
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, RequestBatch
from mlsecd.sources.base import Params, Poll, Source
from mlsecd.sources.fair_queue import FairQueue
from mlsecd.sources.socket_reader import MESSAGE_BYTES, Limits, SocketReader
from mlsecd.sources.unix_sockets import Listener, inherited, listen

__all__ = ["SOURCE", "RequestSocket", "RequestSocketParams"]

_TAKE_BYTES: Final = 4 << 20  # decoded at a time, so that a deadline is noticed
_CLAIMS: Final = ("principal", "resources")

_Users = tuple[int | str, ...]


class RequestSocketParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the request socket."""

    path: Annotated[str, Meta(description='the SOCK_SEQPACKET socket; "" for none')] = "/run/mlsecd/ingest.seqpacket"
    stream_path: Annotated[str, Meta(description='the SOCK_STREAM socket; "" for none')] = "/run/mlsecd/ingest.stream"
    mode: Annotated[int, Meta(ge=0, le=0o777, description="permissions of the sockets")] = 0o660
    group: Annotated[str, Meta(description='group that owns the sockets; "" for the daemon\'s own')] = ""
    allow_uids: Annotated[
        _Users,
        Meta(
            max_length=256, description="users, by name or number, who may send; none: root and the daemon's own user"
        ),
    ] = ()
    trusted_uids: Annotated[
        _Users,
        Meta(max_length=256, description="of these, the users whose word counts for `principal` and `resources`"),
    ] = ()
    interval_seconds: Annotated[float, Meta(gt=0, le=10, description="seconds between two batches")] = 0.5
    max_connections: Annotated[int, Meta(gt=0, le=4096, description="most clients at a time")] = 256
    max_queue_bytes: Annotated[
        int, Meta(ge=1 << 17, le=1 << 30, description="most that may wait for a batch, bytes; the excess is dropped")
    ] = 32 << 20
    stall_seconds: Annotated[
        float, Meta(gt=0, description="seconds after which a client that stopped inside a record is dropped")
    ] = 60.0


class RequestSocket(Source):
    """Two sockets, one thread that always reads, and a bounded queue that each poll empties."""

    name = "request_socket"
    emits = frozenset({Kind.REQUEST})
    summary = "request records from taps and gateways on this host, over a Unix socket"
    Params = RequestSocketParams

    def __init__(self, params: RequestSocketParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._params = params
        self._decoder = Decoder(meters, self.name, max_line_bytes=MESSAGE_BYTES, accept=self.emits)
        self._queue = FairQueue(params.max_queue_bytes)
        self._reader: SocketReader | None = None
        self._listeners: list[Listener] = []
        self._trusted: frozenset[int] = frozenset()
        self._unknown: list[str] = []

    def supported(self) -> str | None:
        """``None`` where the kernel tells who is at the other end of a socket."""
        if not hasattr(socket, "SO_PEERCRED"):
            return "no SO_PEERCRED here: request sockets need Linux"
        return None if self._paths() else "neither path nor stream_path is set"

    def poll(self, deadline: float) -> Poll:
        """Decode what came since the last poll."""
        if self._reader is None:
            self._open()
        reader = self._reader
        if reader is None or not reader.alive:
            self.close()
            raise SourceError(f"the reading thread ended: {reader.failure if reader else 'it did not start'}")
        troubles = [*self._unknown, *self._mend(reader)]
        self.meters.gauge("mlsecd_queue_depth", self._queue.depth, queue=self.name)
        self.meters.gauge("mlsecd_queue_capacity", self._queue.capacity, queue=self.name)
        records = list(self._drain(deadline))
        return Poll(records, seen=reader.connections, error="; ".join(troubles) or None)

    def samples(self) -> dict[str, str]:
        """One refused line a reason and minute."""
        samples, self._decoder.samples = self._decoder.samples, {}
        return samples

    def close(self) -> None:
        """Stop reading and remove the sockets; may be called more than once."""
        if self._reader is not None:
            self._reader.stop()
            self.meters.forget("mlsecd_queue_depth", queue=self.name)
        self._reader = None
        self._listeners = []

    def _paths(self) -> dict[int, str]:
        wanted = {socket.SOCK_SEQPACKET: self._params.path, socket.SOCK_STREAM: self._params.stream_path}
        return {int(kind): path for kind, path in wanted.items() if path}

    def _open(self) -> None:
        """Listen, on all sockets or none."""
        params = self._params
        allowed, unknown = _uids(params.allow_uids)
        self._trusted, also_unknown = _uids(params.trusted_uids)
        self._unknown = [f'no user "{name}" on this host' for name in dict.fromkeys((*unknown, *also_unknown))]
        if not params.allow_uids:
            allowed = frozenset({0, os.geteuid()})
        listeners = inherited(self._paths(), os.environ, os.getpid())
        try:
            for kind, path in self._paths().items():
                if not any(listener.kind == kind for listener in listeners):
                    listeners.append(listen(path, kind, params.mode, params.group))
        except SourceError:
            for listener in listeners:
                listener.close()
            raise
        self._listeners = listeners
        limits = Limits(allowed, params.max_connections, params.stall_seconds)
        self._reader = SocketReader(listeners, self._queue, self.meters, limits)
        self._reader.start()

    def _mend(self, reader: SocketReader) -> Iterator[str]:
        """Notice sockets that were taken away: whoever cleans /run would otherwise make us deaf."""
        for listener in self._listeners[:]:
            standing = listener.standing()
            path = self._paths()[listener.kind]
            if standing == "foreign":
                yield f"{path}: another process put a file of its own there"
            elif standing == "missing":
                try:
                    made = listen(path, listener.kind, self._params.mode, self._params.group)
                except SourceError as error:
                    yield str(error)
                    continue
                self._listeners[self._listeners.index(listener)] = made
                reader.add(made)

    def _drain(self, deadline: float) -> Iterator[Records]:
        """Decode by producer; not more than was ever queued at a time, so that a flood cannot hold us here."""
        budget = self._queue.capacity
        while budget > 0 and time.monotonic() < deadline and (taken := self._queue.take(_TAKE_BYTES)):
            by_uid: dict[int, list[bytes]] = {}
            for uid, piece in taken:
                by_uid.setdefault(uid, []).append(piece)
            for uid, pieces in by_uid.items():
                lines = b"".join(pieces)
                budget -= len(lines)
                for records in self._decoder.decode(lines, producer=f"uid:{uid}"):
                    if isinstance(records, RequestBatch):
                        yield self._admitted(records, trusted=uid in self._trusted)

    def _admitted(self, batch: RequestBatch, *, trusted: bool) -> RequestBatch:
        """The batch without what its producer may not say.

        That is, always, a place in the fold's order, and, where the producer is not trusted for it, on
        whose behalf a request was made and about which documents.
        """
        if trusted:
            return RequestBatch(batch.columns)
        claims = 0
        if batch.has("principal"):
            claims += int(np.count_nonzero(batch.text("principal").codes >= 0))
        if batch.has("resources"):
            claims += int(np.count_nonzero(batch.texts("resources").codes.lengths))
        if claims:
            self.meters.drop(self.name, "untrusted_claim", claims)
        return RequestBatch({name: column for name, column in batch.columns.items() if name not in _CLAIMS})


def _uids(users: Iterable[int | str]) -> tuple[frozenset[int], list[str]]:
    """User numbers, and the names that this host does not know."""
    numbers = set()
    unknown = []
    for user in users:
        try:
            numbers.add(user if isinstance(user, int) else pwd.getpwnam(user).pw_uid)
        except KeyError:
            unknown.append(str(user))
    return frozenset(numbers), unknown


SOURCE = RequestSocket
