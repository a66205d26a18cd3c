"""The thread that empties the request sockets: always reading, so that no client ever waits for us."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from mlsecd.meters import Meters
from mlsecd.sources.fair_queue import FairQueue
from mlsecd.sources.lines import LineCutter
from mlsecd.sources.unix_sockets import Listener, peer_uid

__all__ = ["MESSAGE_BYTES", "Limits", "SocketReader"]

MESSAGE_BYTES: Final = 1 << 16  # longest message, and longest line on the stream

_WHERE: Final = "request_socket"
_BURST: Final = 64  # reads of one connection before the others get their turn
_PIECE_BYTES: Final = 1 << 15
_HOUSEKEEPING_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Who may connect, and how much a connection may hold."""

    uids: frozenset[int]
    connections: int
    stall_seconds: float


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    uid: int
    lane: int
    cutter: LineCutter | None  # None: messages keep their own boundaries
    heard: float  # time.monotonic() of the last data


class SocketReader:
    """Accepts, reads, cuts into lines and queues, until it is stopped.

    When the queue is full it reads on and drops: a client that writes to a socket nobody empties would
    block, and the client is an inference server.
    """

    def __init__(self, listeners: list[Listener], queue: FairQueue, meters: Meters, limits: Limits) -> None:
        self.failure: BaseException | None = None
        self._queue = queue
        self._meters = meters
        self._limits = limits
        self._selector = selectors.DefaultSelector()
        self._listeners: list[Listener] = []
        self._paused: list[Listener] = []  # accept() failed for lack of descriptors
        self._added = deque(listeners)
        self._connections: set[_Connection] = set()
        self._lanes = list(range(limits.connections))  # free ones
        self._scratch = bytearray(MESSAGE_BYTES + 1)  # one more byte tells a message that is too long
        self._view = memoryview(self._scratch)
        self._wake, self._woken = socket.socketpair()
        self._woken.settimeout(0)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="request-socket", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._connections)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def add(self, listener: Listener) -> None:
        """Listen on one more socket, in place of one of its kind."""
        self._added.append(listener)
        self._wake.send(b"\0")

    def stop(self) -> None:
        """End the thread, close everything; what is queued stays queued."""
        self._stopping = True
        self._wake.send(b"\0")
        if self._thread.is_alive():
            self._thread.join()
        self._wake.close()
        self._woken.close()

    def _run(self) -> None:
        try:
            self._selector.register(self._woken, selectors.EVENT_READ)
            self._take_added()
            self._loop()
        except Exception as error:  # noqa: BLE001 - the next poll tells it, and begins anew
            self.failure = error
        finally:
            for connection in list(self._connections):
                self._drop(connection)
            for listener in [*self._listeners, *self._added]:
                listener.close()
            self._selector.close()

    def _loop(self) -> None:
        due = time.monotonic() + _HOUSEKEEPING_SECONDS
        while not self._stopping:
            ready = self._selector.select(_HOUSEKEEPING_SECONDS)
            now = time.monotonic()
            for key, _ in ready:
                if isinstance(key.data, _Connection):
                    self._read(key.data, now)
                elif isinstance(key.data, Listener):
                    self._accept(key.data, now)
                else:
                    self._woken.recv(64)
                    self._take_added()
            if now >= due:
                due = now + _HOUSEKEEPING_SECONDS
                self._keep_house(now)

    def _take_added(self) -> None:
        while self._added:
            listener = self._added.popleft()
            for old in [one for one in self._listeners if one.kind == listener.kind]:
                self._accept(old, time.monotonic())  # who connected already must not be turned away
                self._listeners.remove(old)
                if old in self._paused:
                    self._paused.remove(old)
                else:
                    self._selector.unregister(old.socket)
                old.close()
            self._listeners.append(listener)
            self._selector.register(listener.socket, selectors.EVENT_READ, listener)

    def _keep_house(self, now: float) -> None:
        """Drop who stalls inside a record; listen again where descriptors ran out."""
        for listener in self._paused:
            self._selector.register(listener.socket, selectors.EVENT_READ, listener)
        self._paused.clear()
        for one in list(self._connections):
            unfinished = one.cutter is not None and (one.cutter.pending or one.cutter.skipping)
            if unfinished and now - one.heard > self._limits.stall_seconds:
                self._meters.drop(_WHERE, "stalled")
                self._drop(one)

    def _accept(self, listener: Listener, now: float) -> None:
        for _ in range(_BURST):
            try:
                client, _ = listener.socket.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it left before we came
            except OSError:
                # No descriptors: the listener stays readable, and would keep us spinning.
                self._meters.drop(_WHERE, "descriptors")
                self._selector.unregister(listener.socket)
                self._paused.append(listener)
                return
            self._admit(client, listener.kind, now)

    def _admit(self, client: socket.socket, kind: int, now: float) -> None:
        """Let a client in, if it may come and there is room."""
        client.settimeout(0)
        try:
            uid = peer_uid(client)
        except OSError:
            client.close()
            return
        if uid not in self._limits.uids:
            self._meters.drop(_WHERE, "uid")
            client.close()
            return
        if len(self._connections) >= self._limits.connections and not self._make_room(uid):
            self._meters.drop(_WHERE, "connections")
            client.close()
            return
        cutter = LineCutter(MESSAGE_BYTES) if kind == socket.SOCK_STREAM else None
        connection = _Connection(client, uid, self._lanes.pop(), cutter, now)
        self._connections.add(connection)
        self._selector.register(client, selectors.EVENT_READ, connection)

    def _make_room(self, uid: int) -> bool:
        """Part from the quietest connection of the user who has most, unless that is the newcomer's."""
        counts = Counter(one.uid for one in self._connections)
        greediest = max(counts, key=lambda one: counts[one])
        if counts[uid] >= counts[greediest]:
            return False
        quietest = min((one for one in self._connections if one.uid == greediest), key=lambda one: one.heard)
        self._meters.drop(_WHERE, "connections")
        self._drop(quietest)
        return True

    def _read(self, connection: _Connection, now: float) -> None:
        """Read what is there, a burst at most, and queue its whole lines in pieces of some size."""
        connection.heard = now
        lines = bytearray()
        for _ in range(_BURST):
            try:
                size = connection.socket.recv_into(self._scratch)
            except BlockingIOError:
                break
            except OSError:
                size = 0
            if not size:
                self._queue_up(connection, bytes(lines))
                self._drop(connection)
                return
            lines += self._lines(connection, size)
            if len(lines) >= _PIECE_BYTES:
                self._queue_up(connection, bytes(lines))
                lines.clear()
        self._queue_up(connection, bytes(lines))

    def _lines(self, connection: _Connection, size: int) -> bytes:
        """The whole lines of what was read."""
        data = bytes(self._view[:size])
        if connection.cutter is not None:
            return connection.cutter.feed(data)
        if size > MESSAGE_BYTES:
            self._meters.drop(_WHERE, "too_long")
            return b""
        return data if data.endswith(b"\n") else data + b"\n"

    def _queue_up(self, connection: _Connection, lines: bytes) -> None:
        if lines and (lost := self._queue.put(connection.uid, connection.lane, lines)):
            self._meters.drop(_WHERE, "queue_full", lost)

    def _drop(self, connection: _Connection) -> None:
        """Part from a client; a last line without its newline counts as a line."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()
            if connection.cutter is not None:
                self._queue_up(connection, connection.cutter.finish())
            self._lanes.append(connection.lane)
