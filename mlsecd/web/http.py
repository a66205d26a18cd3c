"""HTTP/1.x as pure functions of bytes: a request's head in, a response's bytes out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

__all__ = ["HEADERS_MAX", "HttpError", "Request", "Response", "Route", "encode", "parse", "text"]

HEADERS_MAX: Final = 64

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE: Final = re.compile(rb"(%s) ([\x21-\x7e]+) HTTP/(\d)\.(\d)" % _TOKEN)
_HEADER: Final = re.compile(rb"(%s):([\t\x20-\x7e\x80-\xff]*)" % _TOKEN)

# On every answer. Nothing may be loaded, framed, sniffed, stored or told to third parties.
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class HttpError(Exception):
    """A request that is refused, with the status and the words to do it with."""

    def __init__(self, status: HTTPStatus, why: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Request:
    """A request without a body. Header names are in lower case; of a repeated header, the values are joined."""

    method: str
    path: str  # as sent, without query
    query: str
    version: tuple[int, int]
    headers: Mapping[str, str]

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants to ask again on this connection."""
        options = {option.strip() for option in self.headers.get("connection", "").lower().split(",")}
        return "close" not in options and (self.version >= (1, 1) or "keep-alive" in options)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; ``headers`` are added to, or replace, those that every answer has."""

    status: HTTPStatus
    content_type: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path. ``GET`` serves ``HEAD`` too."""

    handler: Callable[[Request], Response]
    method: str = "GET"

    @property
    def allow(self) -> str:
        """The methods, as the ``Allow`` header says them."""
        return "GET, HEAD" if self.method == "GET" else self.method


def text(status: HTTPStatus, words: str, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """A plain-text answer of one or more lines."""
    return Response(status, "text/plain; charset=utf-8", f"{words}\n".encode(), headers)


def parse(head: bytes) -> Request:
    """Read a request's head, without the empty line that ends it.

    Strict where leniency has been exploited elsewhere: no folded headers, no space before a colon, no
    bare line feeds, no control characters, one ``Host``.

    Raises
    ------
    HttpError
        The head is malformed, too long, or announces a body.
    """
    first, *lines = head.split(b"\r\n")
    if len(lines) > HEADERS_MAX:
        raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise HttpError(HTTPStatus.BAD_REQUEST, "malformed request line")
    version = (int(line[3]), int(line[4]))
    if version[0] != 1:
        raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 and HTTP/1.1 are spoken here")
    headers = _headers(lines)
    if version >= (1, 1) and "host" not in headers:
        raise HttpError(HTTPStatus.BAD_REQUEST, "no Host header")
    _refuse_body(headers)
    path, query = _target(line[2].decode())
    return Request(line[1].decode(), path, query, version, headers)


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw in lines:
        header = _HEADER.fullmatch(raw)
        if header is None:
            raise HttpError(HTTPStatus.BAD_REQUEST, "malformed header")
        name, value = header[1].decode().lower(), header[2].strip(b" \t").decode("latin-1")
        if name in headers and name in {"host", "content-length", "transfer-encoding"}:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"more than one {name} header")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _refuse_body(headers: Mapping[str, str]) -> None:
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise HttpError(HTTPStatus.BAD_REQUEST, "malformed content-length header")
    if int(length[:20]) or "transfer-encoding" in headers:
        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "no request here has a body")


def _target(target: str) -> tuple[str, str]:
    """Path and query of ``/path?query`` or ``http://host/path?query``; ``*`` is itself, and no route's."""
    if target.startswith("/"):
        path, _, query = target.partition("#")[0].partition("?")
        return path, query
    if target == "*":
        return target, ""
    try:
        absolute = urlsplit(target)
    except ValueError:
        absolute = urlsplit("")
    if absolute.scheme != "http" or not absolute.netloc:
        raise HttpError(HTTPStatus.BAD_REQUEST, "malformed request target")
    return absolute.path or "/", absolute.query


def encode(response: Response, *, keep_alive: bool, head_only: bool = False) -> bytes:
    """The answer as it goes over the wire."""
    headers = _HEADERS | {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.data)),
        "Date": formatdate(usegmt=True),
        "Connection": "keep-alive" if keep_alive else "close",
        **response.headers,
    }
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only else head + response.data
