"""A small HTTP server: threads of the standard library, every resource bounded, loopback by default."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Final

from mlsecd.errors import ConfigError
from mlsecd.meters import Meters
from mlsecd.web import tls
from mlsecd.web.access import Access
from mlsecd.web.connection import Connection, Limits
from mlsecd.web.http import HttpError, Request, Response, Route, encode, text

__all__ = ["Limits", "WebServer", "host_allowed", "split_listen"]

_STOP_SECONDS: Final = 1.0
_BACKLOG: Final = 128
_PAUSE_SECONDS: Final = 0.1  # when the system has no descriptor or thread to give

_WHY_NOT: Final = {
    errno.EADDRINUSE: "another program listens there: stop it, or choose another port",
    errno.EACCES: "not permitted: choose a port of 1024 or above",
    errno.EADDRNOTAVAIL: "this host has no such address",
}


class WebServer:
    """Serves routes on one address, a thread a connection.

    Parameters
    ----------
    listen
        ``address:port``, ``[::1]:port``, or ``:port`` for all addresses. Port 0 lets the system choose.
    routes
        What answers each path.
    meters
        Where requests, connections and refusals are counted.
    host_names
        ``Host`` names that are accepted beside addresses and ``localhost``. On loopback others are
        refused: a web page whose name was pointed here (DNS rebinding) must not read this host's findings.
    limits
        Connections, bytes and seconds.
    access
        TLS, passwords and headers; by default none.
    on_error
        Told of a path whose handler raised, and what it raised. The client gets a 500.

    Raises
    ------
    ConfigError
        The address is malformed, taken or not this host's.
    """

    def __init__(  # noqa: PLR0913 - each has a default but the first three
        self,
        listen: str,
        routes: Mapping[str, Route],
        meters: Meters,
        *,
        host_names: Collection[str] = (),
        limits: Limits | None = None,
        access: Access | None = None,
        on_error: Callable[[str, Exception], None] = lambda _path, _error: None,
    ) -> None:
        self._routes = dict(routes)
        self._meters = meters
        self._names = frozenset(name.lower() for name in host_names)
        self._limits = limits or Limits()
        self._access = access or Access()
        self._on_error = on_error
        self._listener = _bind(listen)
        address, self.port = self._listener.getsockname()[:2]
        self.loopback = _is_loopback(address)
        self.url = f"{self._access.scheme}://{f'[{address}]' if ':' in address else address}:{self.port}/"
        self._waker, self._woken = socket.socketpair()
        self._lock = threading.Lock()
        self._open: dict[Connection, tuple[str, threading.Thread]] = {}
        self._acceptor = threading.Thread(target=self._accept, name="web-accept", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._acceptor.start()

    def stop(self) -> None:
        """Accept no more, let answers under way end, and close everything within a second."""
        deadline = time.monotonic() + _STOP_SECONDS
        self._waker.close()
        if self._acceptor.is_alive():
            self._acceptor.join(_STOP_SECONDS / 4)
        self._listener.close()
        for now, until in ((False, deadline - _STOP_SECONDS / 4), (True, deadline)):
            with self._lock:
                left = dict(self._open)
            for connection in left:
                connection.end(now=now)
            for _, thread in left.values():
                if thread.is_alive():
                    thread.join(max(0.0, until - time.monotonic()))
        self._woken.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not any(key.fileobj is self._woken for key, _ in selector.select()):
                try:
                    sock, peer = self._listener.accept()
                except BlockingIOError:
                    continue  # the client left before it was accepted
                except OSError:
                    self._meters.drop("web", "accept_failed")
                    time.sleep(_PAUSE_SECONDS)
                    continue
                self._admit(sock, peer[0])

    def _admit(self, sock: socket.socket, peer: str) -> None:
        """Give a connection its thread, or a 503 where there are enough of them."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock, self._limits, self._answer, self._count_refused, self._secure)
        thread = threading.Thread(target=self._serve, args=(connection,), name="web-client", daemon=True)
        with self._lock:
            reason = self._full(peer)
            if reason is None:
                self._open[connection] = (peer, thread)
                self._meters.gauge("mlsecd_http_connections", len(self._open))
        if reason is not None:
            self._meters.drop("web", reason)
            _turn_away(sock)
            return
        try:
            thread.start()
        except RuntimeError:  # the process may have no more threads
            self._meters.drop("web", "no_thread")
            self._forget(connection)
            sock.close()
            time.sleep(_PAUSE_SECONDS)

    def _full(self, peer: str) -> str | None:
        if len(self._open) >= self._limits.connections:
            return "max_connections"
        # one remote host must not keep Prometheus out; local callers may all come through one proxy
        if not _is_loopback(peer):
            held = Counter(address for address, _ in self._open.values())
            if held[peer] >= self._limits.connections_per_peer:
                return "max_connections_per_peer"
        return None

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        finally:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._open.pop(connection, None)
            self._meters.gauge("mlsecd_http_connections", len(self._open))

    def _secure(self, sock: socket.socket) -> socket.socket:
        """The connection as it is to be read: behind TLS where that is wanted. ``OSError`` where it may not go on."""
        context, sans = self._access.look()
        if context is None:
            return sock
        try:
            wrapped = tls.wrap(sock, context, self._limits.recv_seconds)
        except OSError:
            self._meters.drop("web", "tls_handshake")
            raise
        if not tls.allowed(wrapped, sans):
            self._meters.drop("web", "client_certificate")
            wrapped.close()
            raise PermissionError("the client's certificate carries none of the names that may ask")
        return wrapped

    def _answer(self, request: Request) -> Response:
        route = self._routes.get(request.path)
        try:
            self._access.check(request)
            response = self._route(route, request)
        except HttpError as error:
            response = text(error.status, str(error), error.headers)
        except Exception as error:  # noqa: BLE001 - a broken page must not take /metrics with it
            self._on_error(request.path, error)
            response = text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: the daemon's log has it")
        path = request.path if route else "other"
        self._meters.count("mlsecd_http_requests_total", path=path, code=str(response.status.value))
        extra = self._access.headers
        return dataclasses.replace(response, headers={**response.headers, **extra}) if extra else response

    def _route(self, route: Route | None, request: Request) -> Response:
        host = request.headers.get("host")
        if host is not None and not host_allowed(host, self._names, loopback=self.loopback):
            raise HttpError(HTTPStatus.FORBIDDEN, "this Host is not served here: add it to web.host_names")
        if route is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "no such page")
        method = "GET" if request.method == "HEAD" else request.method
        if method != route.method:
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, f"allowed here: {route.allow}", {"Allow": route.allow})
        return route.handler(request)

    def _count_refused(self, status: HTTPStatus) -> None:
        self._meters.count("mlsecd_http_requests_total", path="other", code=str(status.value))


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _turn_away(sock: socket.socket) -> None:
    busy = encode(text(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"), keep_alive=False)
    with contextlib.suppress(OSError):
        sock.settimeout(0)
        sock.send(busy)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(8_192)  # a request left unread would turn the close into a reset
    sock.close()


def host_allowed(header: str, names: Collection[str], *, loopback: bool) -> bool:
    """Whether a ``Host`` header names this server.

    An address cannot be pointed elsewhere, a name can. So on loopback only loopback addresses,
    ``localhost`` and ``names`` pass; elsewhere every address does, and every name while ``names`` is empty.
    """
    name = header[: header.rfind(":")] if header.rpartition(":")[2].isdigit() and not header.endswith("]") else header
    name = name.lower().removesuffix(".")
    if name == "localhost" or name in names:
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return not loopback and not names
    return address.is_loopback or not loopback


def split_listen(listen: str) -> tuple[str, int]:
    """Address and port of ``address:port``; the address is empty for "all".

    Raises
    ------
    ConfigError
        It is something else.
    """
    address, colon, port = listen.rpartition(":")
    bare = address.startswith("[") == address.endswith("]") and (":" not in address or address.startswith("["))
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535 or not bare:
        raise ConfigError(
            f'web.listen: "{listen}" is no address: write address:port, as in 127.0.0.1:9847 or [::1]:9847'
        )
    return address.strip("[]"), int(port)


def _bind(listen: str) -> socket.socket:
    address, port = split_listen(listen)
    try:
        if not address:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            listener = socket.create_server(("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        else:
            family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            listener = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f'web.listen: "{address}" cannot be resolved: write an address of this host') from error
    except OSError as error:
        why = _WHY_NOT.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(f"web.listen: cannot listen on {listen}: {why}") from error
    listener.settimeout(0)
    return listener
