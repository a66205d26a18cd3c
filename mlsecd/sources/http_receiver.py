"""A small HTTP server for sources that are POSTed to: a Unix socket, a loopback address and a token, or behind web.yml.

Bounded in every direction: connections, header and body sizes, size after decompression, seconds a client may take.
Bodies are read by one thread a connection and handled one at a time, so that memory is one body's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

from msgspec import Meta

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.sources.base import Params
from mlsecd.sources.http_exchange import Answer, House, Request
from mlsecd.sources.unix_sockets import listen, peer_uid

__all__ = ["Gate", "HttpReceiver", "ReceiverParams", "on_loopback", "read_token"]

MIN_TOKEN: Final = 16
_MAX_TOKEN: Final = 4_096
_BACKLOG: Final = 64
_ACCEPT_SECONDS: Final = 0.5


class ReceiverParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a receiver listens, and what it takes."""

    enabled: bool = False
    listen: Annotated[
        str, Meta(description='a Unix socket\'s path, or "address:port", which needs token_file or config_file')
    ] = ""
    token_file: Annotated[
        str, Meta(description="the token that callers on a loopback port must send: Authorization: Bearer TOKEN")
    ] = ""
    config_file: Annotated[
        str,
        Meta(description="web.yml that callers go through; only with it may listen be another address than loopback"),
    ] = ""
    mode: Annotated[int, Meta(ge=0, le=0o777, description="permissions of the Unix socket")] = 0o660
    group: Annotated[str, Meta(description='group that owns the Unix socket; "" for the daemon\'s own')] = ""
    model: Annotated[str, Meta(min_length=1, max_length=256, description="the model of requests that name none")] = (
        "unknown"
    )
    interval_seconds: Annotated[float, Meta(gt=0, le=10, description="seconds between two batches")] = 0.5
    max_connections: Annotated[int, Meta(gt=0, le=64, description="most callers at a time")] = 8
    max_body_bytes: Annotated[
        int, Meta(ge=1 << 16, le=64 << 20, description="largest body, also after decompression, bytes")
    ] = 4 << 20
    max_queue_bytes: Annotated[
        int,
        Meta(ge=1 << 17, le=1 << 30, description="most that may wait for a batch, bytes; then callers are told 429"),
    ] = 16 << 20
    timeout_seconds: Annotated[float, Meta(gt=0, le=300, description="seconds that a caller may be silent")] = 20.0


def read_token(path: str) -> bytes:
    """The token in a file that only its owner and group may read.

    Raises
    ------
    SourceError
        It cannot be used, and why.
    """
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(_MAX_TOKEN).strip()
    except OSError as error:
        raise SourceError(f"token_file {path}: {(error.strerror or 'cannot be read').lower()}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise SourceError(f"token_file {path}: everybody may read it: chmod 0640")
    if len(token) < MIN_TOKEN:
        raise SourceError(f"token_file {path}: shorter than {MIN_TOKEN} characters: openssl rand -hex 32")
    return token


class Gate(Protocol):
    """What stands before a receiver that others can reach; :class:`mlsecd.gate.WebGate` is one."""

    def wrap(self, connection: socket.socket, seconds: float) -> socket.socket:
        """The connection behind TLS; ``OSError`` where none comes about."""

    def check(self, authorization: str) -> None:
        """Raise :class:`~mlsecd.sources.http_exchange.Refused` unless the header lets its sender in."""


class HttpReceiver:
    """Listens, and hands whole bodies to ``handle``, one at a time.

    Parameters
    ----------
    where
        The source's name in meters.
    paths, types
        What may be posted to, and the media types that are understood.
    gate
        What every caller goes through; without one, callers are on this host.

    Raises
    ------
    SourceError
        It cannot listen there.
    """

    def __init__(  # noqa: PLR0913 - what it listens for is set here
        self,
        where: str,
        params: ReceiverParams,
        meters: Meters,
        handle: Callable[[Request], Answer],
        *,
        paths: frozenset[str],
        types: frozenset[str],
        gate: Gate | None = None,
    ) -> None:
        self._unix, self._socket, token = _open(params, gate)
        self._house = House(
            where,
            params.max_body_bytes,
            params.timeout_seconds,
            token,
            paths,
            types,
            handle,
            meters,
            threading.Lock(),
            None if gate is None else gate.check,
        )
        self._gate = gate
        self._params = params
        self._free = threading.BoundedSemaphore(params.max_connections)
        self._open: dict[socket.socket, float] = {}  # and until when (monotonic) it must have asked for something
        self._stopping = threading.Event()
        self._socket.settimeout(_ACCEPT_SECONDS)
        self._thread = threading.Thread(target=self._run, name=f"{where}-http", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still accepts."""
        return self._thread.is_alive()

    @property
    def address(self) -> Any:
        """Where it listens: a path, or (address, port)."""
        return self._socket.getsockname()

    def close(self) -> None:
        """Stop; callers in the middle of a body are cut off. May be called more than once."""
        self._stopping.set()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5 * _ACCEPT_SECONDS)
        if self._unix is not None:
            self._unix.close()
        else:
            self._socket.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._free.acquire(timeout=_ACCEPT_SECONDS):
                self._make_room()
                continue
            try:
                connection, _ = self._socket.accept()
            except (TimeoutError, BlockingIOError, ConnectionError):
                self._free.release()
                continue
            except OSError:
                self._free.release()
                if self._stopping.is_set():
                    return
                time.sleep(_ACCEPT_SECONDS)  # no descriptors
                continue
            self._open[connection] = time.monotonic() + self._params.timeout_seconds
            threading.Thread(target=self._serve, args=(connection,), name="mlsecd-http", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        from mlsecd.sources._http_handler import Handler  # noqa: PLC0415 - with http.server, only where somebody calls

        try:
            connection.settimeout(self._params.timeout_seconds)
            if self._gate is not None:
                connection = self._behind_gate(connection, self._gate)
            if self._admitted(connection):
                Handler(connection, self._house, self._stay)
        except OSError:
            pass  # it left, or was silent for too long
        finally:
            self._open.pop(connection, None)
            connection.close()
            self._free.release()

    def _behind_gate(self, connection: socket.socket, gate: Gate) -> socket.socket:
        """TLS takes the descriptor over: the place is the new socket's."""
        try:
            wrapped = gate.wrap(connection, self._params.timeout_seconds)
        except OSError:
            self._house.meters.drop(self._house.where, "tls")
            raise
        if (until := self._open.pop(connection, None)) is not None:
            self._open[wrapped] = until
        return wrapped

    def _stay(self, connection: socket.socket) -> None:
        """It asked for what it may ask for: it may keep its place for a while."""
        self._open[connection] = time.monotonic() + 3 * self._params.timeout_seconds

    def _make_room(self) -> None:
        """Part from callers that hold a place and ask for nothing: they may trickle bytes for ever."""
        now = time.monotonic()
        for connection, until in list(self._open.items()):
            if until < now:
                self._house.meters.drop(self._house.where, "stalled")
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _admitted(self, connection: socket.socket) -> bool:
        """A Unix socket's mode says who may come; root and the daemon's user always may."""
        if self._unix is None or self._params.mode & 0o077:
            return True
        if peer_uid(connection) in (0, os.geteuid()):
            return True
        self._house.meters.drop(self._house.where, "uid")
        return False


def on_loopback(listen: str) -> bool:
    """Whether only this host reaches an address:port; of what is no address, ``False``."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        return False


def _open(params: ReceiverParams, gate: Gate | None) -> tuple[Any, socket.socket, bytes]:
    """(the Unix listener or None, the socket, the token)."""
    if not params.listen:
        raise SourceError("listen is not set")
    if params.listen.startswith("/"):
        listener = listen(params.listen, socket.SOCK_STREAM, params.mode, params.group)
        return listener, listener.socket, read_token(params.token_file) if params.token_file else b""
    host, _, port = params.listen.rpartition(":")
    host = host.strip("[]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        number = int(port)
    except ValueError:
        raise SourceError(f'listen = "{params.listen}" is neither a path nor an address:port') from None
    if not address.is_loopback and gate is None:
        raise SourceError(
            f'listen = "{params.listen}" is not this host\'s own: use loopback, a Unix socket or config_file'
        )
    if not params.token_file and gate is None:
        raise SourceError("a loopback port is open to every user of this host: set token_file, or use a Unix socket")
    token = b"" if gate is not None else read_token(params.token_file)
    sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address), number))
        sock.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        raise SourceError(f"{params.listen}: {getattr(error, 'strerror', None) or error}") from error
    return None, sock, token
