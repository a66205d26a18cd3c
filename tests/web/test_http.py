"""The request parser and the response writer, as pure functions of bytes."""

from __future__ import annotations

import time
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlsecd.web.http import HEADERS_MAX, HttpError, Response, encode, parse, text

HOST = b"\r\nHost: localhost"


@pytest.mark.parametrize(
    ("head", "path", "query"),
    [
        (b"GET / HTTP/1.1" + HOST, "/", ""),
        (b"GET /metrics?name[]=x HTTP/1.1" + HOST, "/metrics", "name[]=x"),
        (b"GET /a#b?c HTTP/1.1" + HOST, "/a", ""),
        (b"GET http://localhost:9847/metrics?x HTTP/1.1" + HOST, "/metrics", "x"),
        (b"GET http://localhost HTTP/1.1" + HOST, "/", ""),
        (b"OPTIONS * HTTP/1.1" + HOST, "*", ""),
        (b"GET //evil HTTP/1.1" + HOST, "//evil", ""),
        (b"GET /%2e%2e/etc HTTP/1.0", "/%2e%2e/etc", ""),
    ],
)
def test_targets(head: bytes, path: str, query: str) -> None:
    request = parse(head)
    assert (request.path, request.query) == (path, query)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1" + HOST, 400),
        (b" GET / HTTP/1.1" + HOST, 400),
        (b"GET / HTTP/1.1 " + HOST, 400),
        (b"G\x00T / HTTP/1.1" + HOST, 400),
        (b"GET /\x7f HTTP/1.1" + HOST, 400),
        (b"GET relative HTTP/1.1" + HOST, 400),
        (b"GET ftp://x/ HTTP/1.1" + HOST, 400),
        (b"GET http://[ HTTP/1.1" + HOST, 400),
        (b"GET / http/1.1" + HOST, 400),
        (b"GET / HTTP/2.0" + HOST, 505),
        (b"GET / HTTP/0.9" + HOST, 505),
        (b"GET / HTTP/1.1", 400),  # no Host
        (b"GET / HTTP/1.1" + HOST + HOST, 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nX", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nX : y", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\n folded", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nX: a\nY: b", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nX: a\x00", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\n: empty", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: x", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: +1", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: 0\r\nContent-Length: 0", 400),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: 1", 413),
        (b"GET / HTTP/1.1" + HOST + b"\r\nContent-Length: " + b"9" * 6_000, 413),
        (b"POST / HTTP/1.1" + HOST + b"\r\nTransfer-Encoding: chunked", 413),
        (b"GET / HTTP/1.1" + HOST + b"\r\nX: y" * HEADERS_MAX, 431),
    ],
)
def test_refusals(head: bytes, status: int) -> None:
    with pytest.raises(HttpError) as refused:
        parse(head)
    assert refused.value.status == status
    assert str(refused.value)


def test_headers_are_folded_to_lower_case_and_joined() -> None:
    request = parse(b"GET / HTTP/1.1\r\nhOsT:\tlocalhost \r\nAccept: a\r\nACCEPT: b\r\nContent-Length: 0")
    assert request.headers == {"host": "localhost", "accept": "a, b", "content-length": "0"}


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"\r\nConnection: close", False),
        (b"1.1", b"\r\nConnection: Upgrade, Close", False),
        (b"1.0", b"", False),
        (b"1.0", b"\r\nConnection: Keep-Alive", True),
    ],
)
def test_keep_alive(version: bytes, connection: bytes, keep: bool) -> None:
    assert parse(b"GET / HTTP/" + version + HOST + connection).keep_alive is keep


def status_of(head: bytes) -> int:
    """200 for a request that is understood, else what it is refused with."""
    try:
        request = parse(head)
    except HttpError as refused:
        return refused.status
    return 200 if request.path.startswith(("/", "*")) else 0


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_a_refusal(head: bytes) -> None:
    assert status_of(head) in {200, 400, 413, 431, 505}


@given(st.lists(st.sampled_from([b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"Host:", b"x", b":", b"\t", b"\x00"])))
def test_near_requests_are_a_request_or_a_refusal(parts: list[bytes]) -> None:
    assert status_of(b"".join(parts)) in {200, 400, 413, 431, 505}


def test_long_blanks_are_read_in_linear_time() -> None:
    started = time.thread_time()
    with pytest.raises(HttpError):
        parse(b"GET / HTTP/1.1\r\nX:" + b" " * 8_000 + b"\x00")
    assert time.thread_time() - started < 0.05


def test_answers() -> None:
    answer = Response(HTTPStatus.OK, "text/plain", b"hello", {"Content-Security-Policy": "x", "Vary": "Accept"})
    head, _, body = encode(answer, keep_alive=True).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert lines[0] == "HTTP/1.1 200 OK"
    assert (body, headers["Content-Length"], headers["Connection"]) == (b"hello", "5", "keep-alive")
    assert headers["Content-Security-Policy"] == "x"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Server" not in headers
    assert encode(answer, keep_alive=False, head_only=True).endswith(b"\r\n\r\n")
    assert b"default-src 'none'" in encode(text(HTTPStatus.OK, "x"), keep_alive=False)
