"""One client's connection: requests in, answers out, each with a limit in bytes and in seconds."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from mlsecd.web.http import HttpError, Request, Response, encode, parse, text

__all__ = ["Connection", "Limits"]

_END: Final = b"\r\n\r\n"
_LINGER_SECONDS: Final = 0.5
_LINGER_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server grants its clients."""

    connections: int = 32
    connections_per_peer: int = 16  # of one address that is not this host
    head_bytes: int = 8_192  # request line and headers together
    recv_seconds: float = 5.0  # without a byte, within a request
    request_seconds: float = 10.0  # from the first byte of a request to its last
    send_seconds: float = 10.0  # for one whole answer
    idle_seconds: float = 75.0  # between two requests: Prometheus' default interval is a minute
    requests: int = 10_000  # on one connection


class Connection:
    """Serves one socket until the client is done, too slow, or refused.

    Parameters
    ----------
    sock
        A connected stream socket; :meth:`serve` closes it.
    limits
        Its limits.
    answer
        Turns a request into a response; must not raise.
    refused
        Told of a request that could not be read, with the status it got.
    secure
        Turns the socket into the one that is read, in the connection's own thread: a handshake may take long.
    """

    def __init__(
        self,
        sock: socket.socket,
        limits: Limits,
        answer: Callable[[Request], Response],
        refused: Callable[[HTTPStatus], None],
        secure: Callable[[socket.socket], socket.socket] = lambda sock: sock,
    ) -> None:
        self._sock = sock
        self._limits = limits
        self._answer = answer
        self._refused = refused
        self._secure = secure
        self._buffer = b""
        self._closing = False

    def serve(self) -> None:
        """Answer requests in order until the end."""
        try:
            self._sock = self._secure(self._sock)
            for served in range(1, self._limits.requests + 1):
                head = self._head(self._limits.idle_seconds if served > 1 else self._limits.request_seconds)
                if head is None or not self._respond(parse(head), last=served == self._limits.requests):
                    return
        except HttpError as error:
            self._refuse(error)
        except OSError:
            return  # the client went away, or would not take its answer in time
        finally:
            self._sock.close()

    def end(self, *, now: bool) -> None:
        """Let the answer under way be the last; ``now``: do not even wait for that. Called by other threads."""
        self._closing = True
        with contextlib.suppress(OSError):
            # the plain socket's: a TLS socket's own would take its state away from the thread that uses it
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR if now else socket.SHUT_RD)

    def _head(self, idle_seconds: float) -> bytes | None:
        """The next request's head; ``None`` where the client has no more to ask."""
        deadline = time.monotonic() + self._limits.request_seconds if self._buffer else None
        while _END not in self._buffer and len(self._buffer) <= self._limits.head_bytes:
            data = self._recv(idle_seconds, deadline)
            if not data:
                return None
            # empty lines before a request are allowed, and count against its time
            self._buffer = self._buffer + data if self._buffer else data.lstrip(b"\r\n")
            deadline = deadline or time.monotonic() + self._limits.request_seconds
        head, end, rest = self._buffer.partition(_END)
        if not end or len(head) > self._limits.head_bytes:
            raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too long")
        self._buffer = rest.lstrip(b"\r\n")
        return head

    def _recv(self, idle_seconds: float, deadline: float | None) -> bytes:
        """Some bytes; none at the end, or where a client that asked nothing stays silent."""
        left = idle_seconds if deadline is None else deadline - time.monotonic()
        if left > 0:
            self._sock.settimeout(left if deadline is None else min(left, self._limits.recv_seconds))
            with contextlib.suppress(TimeoutError):
                return self._sock.recv(self._limits.head_bytes)
        if self._buffer:
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")
        return b""

    def _respond(self, request: Request, *, last: bool) -> bool:
        """Answer one request; False where it was the last."""
        response = self._answer(request)
        keep = request.keep_alive and not last and not self._closing
        self._sock.settimeout(self._limits.send_seconds)
        self._sock.sendall(encode(response, keep_alive=keep, head_only=request.method == "HEAD"))
        return keep

    def _refuse(self, error: HttpError) -> None:
        """Say why, and take what is still coming for a moment: closing on it would reset our words away."""
        self._refused(error.status)
        with contextlib.suppress(OSError):
            self._sock.settimeout(_LINGER_SECONDS)
            self._sock.sendall(encode(text(error.status, str(error), error.headers), keep_alive=False))
            self._sock.shutdown(socket.SHUT_WR)
            deadline, taken = time.monotonic() + _LINGER_SECONDS, 0
            while taken < _LINGER_BYTES and time.monotonic() < deadline:
                data = self._sock.recv(8_192)
                if not data:
                    return
                taken += len(data)
