"""One HTTP connection of a receiver: what may be asked, and what is answered."""

from __future__ import annotations

import contextlib
import hmac
import socket
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from mlsecd.sources.http_exchange import Answer, House, Refused, Request

__all__ = ["Handler"]

_CHUNK: Final = 1 << 16
_LINGER_SECONDS: Final = 1.0
_LINGER_BYTES: Final = 4 << 20
_MAX_MEMBERS: Final = 64  # of one gzip body: each costs a copy of what is left


class Handler(BaseHTTPRequestHandler):
    """One connection; the base class reads the request line and at most 100 headers of 64 KiB."""

    protocol_version = "HTTP/1.1"
    server_version = "mlsecd"
    sys_version = ""

    def __init__(self, connection: socket.socket, house: House, stay: Callable[[socket.socket], None]) -> None:
        self.house = house
        self.stay = stay
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type]

    def do_POST(self) -> None:
        """A body."""
        house = self.house
        try:
            request = self._request()
            with house.turn:
                answer = house.handle(request)
        except Refused as refused:
            house.meters.drop(house.where, f"http_{refused.status}")
            self._answer(Answer(refused.status, str(refused).encode(), "text/plain; charset=utf-8"), close=True)
            self._linger()
            return
        self._answer(answer)

    def _other(self) -> None:
        self.house.meters.drop(self.house.where, "http_405")
        self._answer(Answer(405), close=True)
        self._linger()

    do_GET = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _other  # noqa: N815 - the base class's names

    def _request(self) -> Request:
        """Check before reading: who asks, for what, in which form, how much."""
        house = self.house
        self._let_in(house)
        path = self.path.partition("?")[0]
        if path not in house.paths:
            raise Refused(404, f"POST to {', '.join(sorted(house.paths))}")
        content_type = self.headers.get_content_type().lower()
        if content_type not in house.types:
            raise Refused(415, f"Content-Type: {' or '.join(sorted(house.types))}")
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip"):
            raise Refused(415, "Content-Encoding: gzip or none")
        length = self.headers.get("content-length", "")
        if self.headers.get("transfer-encoding") or not (length.isascii() and length.isdigit() and len(length) < 20):
            raise Refused(411, "Content-Length is wanted")
        if int(length) > house.max_body_bytes:
            raise Refused(413, f"at most {house.max_body_bytes} bytes")
        self.stay(self.connection)
        if self.headers.get("expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self._read(int(length))
        if coding == "gzip":
            with house.turn:
                body = _inflate(body, house.max_body_bytes)
        return Request(path, content_type, body)

    def _let_in(self, house: House) -> None:
        """Raise :class:`Refused` where the sender is nobody that we know."""
        if house.check is not None:
            house.check(self.headers.get("authorization", ""))
        if house.token:
            sent = self.headers.get("authorization", "").strip()
            kind, _, token = sent.partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(
                token.strip().encode("utf-8", "replace"), house.token
            ):
                raise Refused(401, "Authorization: Bearer TOKEN is wanted")

    def handle_expect_100(self) -> bool:
        """Only once the headers were looked at: see above."""
        return True

    def _read(self, length: int) -> bytes:
        """The whole body; a caller that trickles it is cut off."""
        until = time.monotonic() + 3 * self.house.timeout_seconds
        parts = bytearray()
        while len(parts) < length:
            part = self.rfile.read1(min(_CHUNK, length - len(parts)))
            if not part or time.monotonic() > until:
                raise ConnectionError
            parts += part
        return bytes(parts)

    def _answer(self, answer: Answer, *, close: bool = False) -> None:
        self.send_response(answer.status)
        if answer.content_type:
            self.send_header("Content-Type", answer.content_type)
        if answer.status in (429, 503):
            self.send_header("Retry-After", "5")
        if answer.status == 401:
            scheme = "Bearer" if self.house.check is None else 'Basic realm="mlsecd", charset="UTF-8"'
            self.send_header("WWW-Authenticate", scheme)
        if answer.status == 405:
            self.send_header("Allow", "POST")
        self.send_header("Content-Length", str(len(answer.body)))
        if close:  # what is left of the body is not read
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _linger(self) -> None:
        """Let the caller read why before the rest of its body makes the kernel reset the connection (RFC 9112, 9.6)."""
        until = time.monotonic() + _LINGER_SECONDS
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            for _ in range(_LINGER_BYTES // _CHUNK):
                if time.monotonic() > until or not self.connection.recv(_CHUNK):
                    return

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: what strangers send is counted, not logged."""


def _inflate(body: bytes, limit: int) -> bytes:
    """Decompress, never further than the limit; several members may follow each other."""
    parts = bytearray()
    for _ in range(_MAX_MEMBERS):
        if not body:
            return bytes(parts)
        inflater = zlib.decompressobj(wbits=31)
        try:
            parts += inflater.decompress(body, limit + 1 - len(parts))
        except zlib.error as error:
            raise Refused(400, f"not gzip: {error}") from error
        if len(parts) > limit:
            raise Refused(413, f"at most {limit} bytes after decompression")
        if not inflater.eof:
            raise Refused(400, "gzip: cut off")
        body = inflater.unused_data
    raise Refused(400, f"gzip: more than {_MAX_MEMBERS} members")
