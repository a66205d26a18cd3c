"""The server over real sockets, and what ill-mannered clients can do to it: nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
from views import Source, status_view

from mlsecd.errors import ConfigError
from mlsecd.meters import Meters
from mlsecd.sinks.metrics_view import LogHealth
from mlsecd.sinks.prometheus import Body
from mlsecd.web.http import Response, Route, text
from mlsecd.web.routes import Pages, routes
from mlsecd.web.server import Limits, WebServer, host_allowed, split_listen

Make = Callable[..., WebServer]

QUICK = Limits(recv_seconds=0.3, request_seconds=0.6, idle_seconds=0.5, send_seconds=1.0)


def hello(_request: Any) -> Response:
    return text(HTTPStatus.OK, "hello")


def broken(_request: Any) -> Response:
    raise ZeroDivisionError


def large(_request: Any) -> Response:
    return Response(HTTPStatus.OK, "application/octet-stream", bytes(8_000_000))


ROUTES = {"/": Route(hello), "/broken": Route(broken), "/large": Route(large), "/do": Route(hello, "POST")}


@pytest.fixture
def meters() -> Meters:
    return Meters()


@pytest.fixture
def serve(meters: Meters) -> Iterator[Make]:
    started: list[WebServer] = []

    def make(listen: str = "127.0.0.1:0", **kw: Any) -> WebServer:
        server = WebServer(listen, kw.pop("routes", ROUTES), meters, **kw)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.stop()


def dial(server: WebServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def until_closed(sock: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65_536):
            got += data
    sock.close()
    return got


def raw(server: WebServer, request: bytes) -> bytes:
    """Send these bytes and read until the server closes."""
    sock = dial(server)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(request)
    return until_closed(sock)


def ask(server: WebServer, method: str, path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def requests(meters: Meters, path: str, code: int) -> float:
    return meters.value("mlsecd_http_requests_total", path=path, code=str(code))


def eventually(holds: Callable[[], bool], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_get_and_head_say_the_same_but_for_the_body(serve: Make, meters: Meters) -> None:
    server = serve()
    status, body, headers = ask(server, "GET", "/")
    assert (status, body, headers["Content-Length"]) == (200, b"hello\n", "6")
    assert headers["Server"] is None
    head_status, nothing, head_headers = ask(server, "HEAD", "/")
    assert (head_status, nothing, head_headers["Content-Length"]) == (200, b"", "6")
    eventually(lambda: requests(meters, "/", 200) == 2)


def test_wrong_methods_and_paths(serve: Make, meters: Meters) -> None:
    server = serve()
    status, _, headers = ask(server, "POST", "/")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, _, headers = ask(server, "GET", "/do")
    assert (status, headers["Allow"]) == (405, "POST")
    assert ask(server, "POST", "/do")[0] == 200
    assert ask(server, "BREW", "/")[0] == 405
    assert ask(server, "GET", "/../../etc/passwd")[0] == 404
    assert ask(server, "GET", "/<script>")[0] == 404
    # what a client writes never becomes a label
    assert {dict(labels)["path"] for labels in meters.counters()["mlsecd_http_requests_total"]} == {"/", "/do", "other"}


def test_malformed_requests_are_told_so(serve: Make, meters: Meters) -> None:
    server = serve()
    assert raw(server, b"\x16\x03\x01 this is TLS\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(server, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(server, b"GET / HTTP/2.0\r\n\r\n").startswith(b"HTTP/1.1 505 ")
    body = raw(server, b"POST /do HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n123456789")
    assert body.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in body
    assert requests(meters, "other", 400) == 2


def test_a_long_head_is_cut_off(serve: Make) -> None:
    server = serve()
    assert raw(server, b"GET /" + b"a" * 9_000).startswith(b"HTTP/1.1 431 ")
    many = b"".join(b"X-%d: y\r\n" % i for i in range(100))
    assert raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n").startswith(b"HTTP/1.1 431 ")
    one = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: " + b"c" * 7_900 + b"\r\n\r\n"
    assert raw(server, one).startswith(b"HTTP/1.1 200 ")
    flood = raw(server, b"GET / HTTP/1.1\r\nCookie: " + b"c" * 5_000_000)
    assert flood in {b"", flood} and len(flood) < 2_000  # noqa: PT018 - a reset is an answer too


def test_a_slow_request_meets_its_deadline(serve: Make, meters: Meters) -> None:
    """Slowloris: a byte now and then never lasts longer than the whole request may."""
    server = serve(limits=QUICK)
    sock = dial(server)
    started = time.monotonic()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for byte in b"GET / HTTP/1.1\r\nX: " + b"y" * 100:
            sock.sendall(bytes([byte]))
            time.sleep(0.05)
            if time.monotonic() - started > 3:
                break
    got = until_closed(sock)
    assert b"408 " in got or got == b""
    assert time.monotonic() - started < 2.5
    assert requests(meters, "other", 408) == 1
    assert raw(server, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_stalled_request_is_closed_sooner(serve: Make) -> None:
    server = serve(limits=dataclasses.replace(QUICK, request_seconds=30))
    sock = dial(server)
    sock.sendall(b"GET / HT")
    started = time.monotonic()
    assert until_closed(sock).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started < 15  # by recv_seconds, not by request_seconds


@pytest.mark.parametrize("silence", [b"", b"\r\n\r\n"])
def test_who_says_nothing_is_closed_in_silence(serve: Make, silence: bytes) -> None:
    server = serve(limits=QUICK)
    sock = dial(server)
    sock.sendall(silence)
    started = time.monotonic()
    assert until_closed(sock) == b""
    assert 0.2 < time.monotonic() - started < 2


def test_a_client_that_does_not_read_loses_its_thread_to_nobody(serve: Make, meters: Meters) -> None:
    server = serve(limits=QUICK)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.connect(("127.0.0.1", server.port))
    sock.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    eventually(lambda: meters.value("mlsecd_http_connections") == 1)
    eventually(lambda: meters.value("mlsecd_http_connections") == 0)
    sock.close()


def test_keep_alive_and_pipelining(serve: Make) -> None:
    server = serve()
    one = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answers = raw(server, one + b"\r\n" + one + one.replace(b" / ", b" /nowhere ") + last)
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"HTTP/1.1 404 ") == 1
    assert answers.count(b"Connection: keep-alive") == 3
    sock = dial(server)
    for _ in range(3):
        sock.sendall(one)
        assert sock.recv(65_536).endswith(b"hello\n")
    sock.close()


def test_http_1_0_closes_unless_asked(serve: Make) -> None:
    server = serve(limits=QUICK)
    assert b"Connection: close" in raw(server, b"GET / HTTP/1.0\r\n\r\n")
    assert b"Connection: keep-alive" in raw(server, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")


def test_requests_and_idling_on_one_connection_are_limited(serve: Make) -> None:
    server = serve(limits=Limits(requests=3, idle_seconds=0.2))
    one = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = raw(server, one * 10)
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"Connection: close") == 1
    started = time.monotonic()
    assert raw(server, one).endswith(b"hello\n")
    assert 0.15 < time.monotonic() - started < 2


def test_a_hundred_connections_are_too_many(serve: Make, meters: Meters) -> None:
    server = serve()
    socks = [dial(server) for _ in range(100)]
    dropped = ("mlsecd_dropped_total", {"where": "web", "reason": "max_connections"})
    eventually(lambda: meters.value(dropped[0], **dropped[1]) == 68)
    assert meters.value("mlsecd_http_connections") == 32
    answers = [until_closed(sock) for sock in socks[32:]]
    assert all(answer.startswith(b"HTTP/1.1 503 ") or not answer for answer in answers)
    assert sum(bool(answer) for answer in answers) > 60
    for sock in socks[:32]:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert until_closed(sock).startswith(b"HTTP/1.1 200 ")
    eventually(lambda: meters.value("mlsecd_http_connections") == 0)
    assert raw(server, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_one_remote_host_cannot_take_every_connection(serve: Make) -> None:
    server = serve(limits=Limits(connections=32, connections_per_peer=2))
    with server._lock:
        server._open = {object(): ("192.0.2.1", threading.current_thread()) for _ in range(2)}  # type: ignore[misc]
        assert server._full("192.0.2.1") == "max_connections_per_peer"
        assert server._full("192.0.2.2") is None
        server._open = {object(): ("127.0.0.1", threading.current_thread()) for _ in range(31)}  # type: ignore[misc]
        assert server._full("127.0.0.1") is None
        assert server._full("::ffff:127.0.0.1") is None
        server._open = {}


def test_a_system_without_descriptors_or_threads_is_waited_out(
    serve: Make, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    real_start, real_listener = threading.Thread.start, server._listener
    troubles = {"accept_failed": 2, "no_thread": 2}

    class Listener:
        """Refuses twice, as with EMFILE."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real_listener, name)

        def accept(self) -> Any:
            if troubles["accept_failed"]:
                troubles["accept_failed"] -= 1
                raise OSError(24, "Too many open files")
            return real_listener.accept()

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("web-client") and troubles["no_thread"]:
            troubles["no_thread"] -= 1
            raise RuntimeError("can't start new thread")
        real_start(thread)

    server._listener = Listener()  # type: ignore[assignment]
    monkeypatch.setattr(threading.Thread, "start", start)
    assert [raw(server, b"GET / HTTP/1.0\r\n\r\n")[:12] for _ in range(3)] == [b"", b"", b"HTTP/1.1 200"]
    for reason in troubles:
        assert meters.value("mlsecd_dropped_total", where="web", reason=reason) == 2
    eventually(lambda: meters.value("mlsecd_http_connections") == 0)


def test_a_broken_page_is_a_500_and_the_next_one_works(serve: Make, meters: Meters) -> None:
    seen: list[tuple[str, Exception]] = []
    server = serve(on_error=lambda path, error: seen.append((path, error)))
    sock = dial(server)
    sock.sendall(b"GET /broken HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert sock.recv(65_536).startswith(b"HTTP/1.1 500 ")
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")  # on the same connection
    assert until_closed(sock).startswith(b"HTTP/1.1 200 ")
    assert [(path, type(error)) for path, error in seen] == [("/broken", ZeroDivisionError)]
    assert requests(meters, "/broken", 500) == 1


@pytest.mark.parametrize(
    ("host", "ok"),
    [
        ("localhost", True),
        ("LOCALHOST:9847", True),
        ("localhost.", True),
        ("127.0.0.1", True),
        ("127.0.0.1:1", True),
        ("[::1]:9847", True),
        ("[::1]", True),
        ("mlsecd.lan:9847", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:9847", False),
        ("192.0.2.1", False),
        ("", False),
        ("[::1", False),
        (":9847", False),
    ],
)
def test_hosts_on_loopback(host: str, ok: bool) -> None:
    assert host_allowed(host, {"mlsecd.lan"}, loopback=True) is ok


def test_hosts_elsewhere() -> None:
    assert host_allowed("gpu-node-07:9847", set(), loopback=False)
    assert host_allowed("192.0.2.1:9847", {"gpu-node-07"}, loopback=False)
    assert host_allowed("gpu-node-07", {"gpu-node-07"}, loopback=False)
    assert not host_allowed("evil.example", {"gpu-node-07"}, loopback=False)


def test_a_rebound_name_reads_nothing(serve: Make) -> None:
    server = serve(host_names=["Mlsecd.Lan"])
    status, body, _ = ask(server, "GET", "/", Host="attacker.example")
    assert status == 403
    assert b"hello" not in body
    assert b"attacker" not in body
    assert ask(server, "GET", "/", Host="mlsecd.lan:9847")[0] == 200


def test_ipv6(serve: Make) -> None:
    try:
        server = serve("[::1]:0")
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    assert server.loopback
    assert server.url == f"http://[::1]:{server.port}/"
    with socket.create_connection(("::1", server.port), timeout=5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: [::1]:%d\r\nConnection: close\r\n\r\n" % server.port)
        assert until_closed(sock).startswith(b"HTTP/1.1 200 ")


def test_all_addresses(serve: Make) -> None:
    server = serve(":0")
    assert not server.loopback
    assert raw(server, b"GET / HTTP/1.1\r\nHost: any.name\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_port_in_use_is_said_in_one_line(serve: Make, meters: Meters) -> None:
    server = serve()
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:\d+: another program listens there") as told:
        WebServer(f"127.0.0.1:{server.port}", ROUTES, meters)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("9847", "write address:port"),
        ("::1:9847", "write address:port"),
        ("[::1:9847", "write address:port"),
        ("127.0.0.1:http", "write address:port"),
        ("127.0.0.1:99999", "write address:port"),
        ("no.such.host.invalid:1", "cannot be resolved"),
        ("192.0.2.1:0", "has no such address"),
    ],
)
def test_wrong_addresses(listen: str, why: str, meters: Meters) -> None:
    with pytest.raises(ConfigError, match=why):
        WebServer(listen, ROUTES, meters)


def test_listen() -> None:
    assert split_listen("127.0.0.1:9847") == ("127.0.0.1", 9847)
    assert split_listen("[::1]:0") == ("::1", 0)
    assert split_listen(":9847") == ("", 9847)


def test_stop_is_quick_with_clients_in_every_state(serve: Make) -> None:
    server = serve()
    idle, half, deaf = dial(server), dial(server), dial(server)
    half.sendall(b"GET / HT")
    deaf.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    time.sleep(0.1)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started <= 1.0
    for sock in (idle, half):
        assert until_closed(sock) == b""
    until_closed(deaf)
    with pytest.raises(ConnectionRefusedError):
        dial(server)
    eventually(lambda: not [one for one in threading.enumerate() if one.name.startswith("web-")])


def test_an_answer_under_way_is_finished_before_stopping(serve: Make) -> None:
    begun = threading.Event()

    def slow(_request: Any) -> Response:
        begun.set()
        time.sleep(0.2)
        return text(HTTPStatus.OK, "done")

    server = serve(routes={"/": Route(slow)})
    sock = dial(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert begun.wait(2)
    server.stop()
    answer = until_closed(sock)
    assert answer.endswith(b"done\n")
    assert b"Connection: close" in answer


def test_stop_before_start(meters: Meters) -> None:
    WebServer("127.0.0.1:0", ROUTES, meters).stop()


def test_a_hundred_rude_clients_leave_nothing_behind(serve: Make, meters: Meters) -> None:
    server = serve(limits=QUICK)
    for i in range(100):
        sock = dial(server)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[: i % 40])
        sock.close()
    eventually(lambda: meters.value("mlsecd_http_connections") == 0)
    assert ask(server, "GET", "/")[0] == 200


# The daemon's own pages.


def pages(**kw: Any) -> Pages:
    made: dict[str, Any] = {
        "metrics": lambda _accept, _encoding: Body("text/plain", b"x 1\n"),
        "status": status_view,
        "beat_age": lambda: 0.5,
    }
    return Pages(**{**made, **kw})


def test_metrics_hands_the_headers_through(serve: Make) -> None:
    def metrics(accept: str, encoding: str) -> Body:
        return Body(f"text/{accept}", encoding.encode(), "gzip")

    server = serve(routes=routes(pages(metrics=metrics)))
    status, body, headers = ask(server, "GET", "/metrics", Accept="a", **{"Accept-Encoding": "b"})
    assert (status, body, headers["Content-Type"], headers["Content-Encoding"]) == (200, b"b", "text/a", "gzip")


def test_healthy_is_the_main_loop_alone(serve: Make) -> None:
    blind = status_view(sources=[Source("nvml", up=False)], gpus=[], log=LogHealth(blocked=True))
    assert ask(serve(routes=routes(pages(status=lambda: blind))), "GET", "/-/healthy")[:2] == (200, b"healthy\n")
    status, body, _ = ask(serve(routes=routes(pages(beat_age=lambda: 42.0))), "GET", "/-/healthy")
    assert (status, body) == (503, b"the main loop has been silent for 42 s; 30 s are allowed\n")


def test_ready_names_what_is_missing(serve: Make) -> None:
    waiting = [
        Source("nvml", up=None, last_success=None),
        Source("request_log", up=False, why="no such file", last_success=None),
        Source("otlp", up=False, unsupported=True, why="not here", last_success=None),
        Source("processes", up=False, why="once it worked"),
    ]
    view = status_view(sources=waiting, log=LogHealth(blocked=True, why="No space left on device"))
    status, body, _ = ask(serve(routes=routes(pages(status=lambda: view))), "GET", "/-/ready")
    assert status == 503
    assert body.decode().splitlines() == [
        "source nvml: no sample yet",
        "source request_log: no sample yet: no such file",
        "forensic log: blocked: No space left on device",
    ]
    assert ask(serve(routes=routes(pages())), "GET", "/-/ready")[:2] == (200, b"ready\n")
    assert ask(serve(routes=routes(pages(status=lambda: None))), "GET", "/-/ready")[0] == 503


def test_reload_only_where_it_is_allowed(serve: Make) -> None:
    calls: list[int] = []

    def reload() -> str | None:
        calls.append(1)
        return None if len(calls) == 1 else "mlsecd.toml:3: unknown key"

    assert ask(serve(routes=routes(pages())), "POST", "/-/reload")[0] == 403
    server = serve(routes=routes(pages(reload=reload)))
    assert ask(server, "GET", "/-/reload")[0] == 405
    assert ask(server, "POST", "/-/reload", Origin="https://evil.example")[0] == 403
    assert ask(server, "POST", "/-/reload", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert calls == []
    assert ask(server, "POST", "/-/reload")[:2] == (200, b"reloaded\n")
    assert ask(server, "POST", "/-/reload")[:2] == (500, b"mlsecd.toml:3: unknown key\n")


def test_landing_status_and_icon(serve: Make) -> None:
    server = serve(routes=routes(pages()))
    status, body, headers = ask(server, "GET", "/")
    assert status == 200
    assert b'http-equiv="refresh" content="5"' in body
    assert b"http-equiv" not in ask(server, "GET", "/?refresh=0")[1]
    assert "style-src 'sha256-" in headers["Content-Security-Policy"]
    status, body, headers = ask(server, "GET", "/api/v1/status")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body)["verdict"]["level"] == "high"
    status, body, headers = ask(server, "GET", "/favicon.ico")
    assert (status, headers["Content-Type"]) == (200, "image/svg+xml")
    assert b"#d92d20" in body


def test_before_the_first_tick_pages_say_starting(serve: Make) -> None:
    server = serve(routes=routes(pages(status=lambda: None)))
    status, body, headers = ask(server, "GET", "/")
    assert (status, headers["Retry-After"]) == (503, "1")
    assert body.startswith(b"starting")
    assert ask(server, "GET", "/favicon.ico")[0] == 200
