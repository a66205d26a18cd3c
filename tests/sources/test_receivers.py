"""The sources that are POSTed to: who may, what they take, what they answer; and the real OpenTelemetry exporter."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.sources.http_receiver import read_token
from mlsecd.sources.litellm import LiteLlm, LiteLlmParams
from mlsecd.sources.otlp import Otlp, OtlpParams
from mlsecd.sources.posted import PostedSource

TOKEN = "a-token-of-some-length"
SPAN = {
    "traceId": "ab" * 16,
    "spanId": "cd" * 8,
    "startTimeUnixNano": "1700000000000000000",
    "endTimeUnixNano": "1700000001000000000",
    "attributes": [{"key": "gen_ai.request.model", "value": {"stringValue": "x"}}],
}
CALL = {"startTime": 1.7e9, "endTime": 1.7e9 + 1, "model": "x", "metadata": {"user_api_key_hash": "ab" * 32}}


def export(*spans: Any) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}).encode()


@pytest.fixture(autouse=True)
def _key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id.key").write_bytes(bytes(range(32)))
    monkeypatch.setenv("MLSECD_KEY_FILE", str(tmp_path / "id.key"))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


Make = Callable[..., PostedSource]


@pytest.fixture
def make(token: Path) -> Iterator[Make]:
    made: list[PostedSource] = []

    def start(cls: Any = Otlp, **params: Any) -> PostedSource:
        kind = OtlpParams if cls is Otlp else LiteLlmParams
        given = {"listen": "127.0.0.1:0", "token_file": str(token)} | params
        source = cls(kind(enabled=True, **given), Meters())
        made.append(source)
        source.poll(time.monotonic() + 5)
        return source

    yield start
    for one in made:
        one.close()


def post(source: PostedSource, body: bytes, path: str = "/v1/traces", **headers: str) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(*source.address[:2], timeout=10)
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, body, {name: value for name, value in sent.items() if value})
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, read, answer.headers


def records(source: PostedSource) -> list[str | None]:
    """The models of the records that one poll brings."""
    poll = source.poll(time.monotonic() + 5)
    return [
        batch.text("model").at(row)
        for batch in poll.records
        if isinstance(batch, RequestBatch)
        for row in range(len(batch))
    ]


def dropped(source: PostedSource, reason: str) -> float:
    return source.meters.value("mlsecd_dropped_total", where=source.name, reason=reason)


def test_json_comes_and_is_answered(make: Make) -> None:
    source = make()
    status, body, headers = post(source, export(SPAN, SPAN))
    assert (status, body, headers["Content-Type"]) == (200, b"{}", "application/json")
    assert records(source) == ["x", "x"]
    assert records(source) == []


def test_gzip(make: Make) -> None:
    source = make()
    members = gzip.compress(export(SPAN)[:50]) + gzip.compress(export(SPAN)[50:])
    assert post(source, members, Content_Encoding="gzip")[0] == 200
    assert records(source) == ["x"]


def test_rejected_spans_are_told(make: Make) -> None:
    source = make()
    status, body, _ = post(source, export(SPAN, SPAN | {"traceId": "x"}, {"a": 1}))
    assert status == 200
    assert json.loads(body)["partialSuccess"]["rejectedSpans"] == "2"
    assert records(source) == ["x"]
    assert dropped(source, "record") == 2


def test_rejected_spans_in_protobuf(make: Make) -> None:
    pb = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    trace = pytest.importorskip("opentelemetry.proto.trace.v1.trace_pb2")
    spans = [trace.Span(trace_id=b"x", span_id=b"y")] * 200
    message = pb.ExportTraceServiceRequest(
        resource_spans=[trace.ResourceSpans(scope_spans=[trace.ScopeSpans(spans=spans)])]
    )
    source = make()
    status, body, headers = post(source, message.SerializeToString(), Content_Type="application/x-protobuf")
    answer = pb.ExportTraceServiceResponse.FromString(body)
    assert (status, headers["Content-Type"]) == (200, "application/x-protobuf")
    assert answer.partial_success.rejected_spans == 200
    assert "trace id" in answer.partial_success.error_message


BOMB = gzip.compress(bytes(64 << 20))


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"Authorization": ""}, 401),
        (b"{}", {"Authorization": "Bearer wrong-token-of-length"}, 401),
        (b"{}", {"Authorization": f"Basic {TOKEN}"}, 401),
        (b"{}", {"path": "/v1/metrics"}, 404),
        (b"{}", {"Content_Type": "text/html"}, 415),
        (b"{}", {"Content_Type": ""}, 415),
        (b"{}", {"Content_Encoding": "br"}, 415),
        (b"{", {}, 400),
        (b"\xff", {"Content_Type": "application/x-protobuf"}, 400),
        (b"no gzip", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"{}")[:-9], {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"") * 100, {"Content_Encoding": "gzip"}, 400),
        (bytes(1 << 17), {}, 413),
        (BOMB, {"Content_Encoding": "gzip"}, 413),
    ],
)
def test_what_is_refused_and_how(make: Make, body: bytes, headers: dict[str, str], status: int) -> None:
    pytest.importorskip("opentelemetry.proto")
    source = make(max_body_bytes=1 << 16)
    try:
        answered = post(source, body, **headers)[0]
    except (BrokenPipeError, ConnectionResetError):  # it was told before it had sent everything
        answered = 413
    assert answered == status
    assert dropped(source, f"http_{status}") == 1
    assert records(source) == []
    assert post(source, export(SPAN))[0] == 200  # and others are served as before


def test_a_bomb_does_not_grow_memory(make: Make) -> None:
    import tracemalloc  # noqa: PLC0415

    source = make(max_body_bytes=1 << 20)
    tracemalloc.start()
    assert post(source, BOMB, Content_Encoding="gzip")[0] == 413
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


def test_other_methods_and_no_length(make: Make) -> None:
    source = make()
    connection = http.client.HTTPConnection(*source.address[:2], timeout=10)
    connection.request("GET", "/v1/traces")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    connection.close()
    connection = http.client.HTTPConnection(*source.address[:2], timeout=10)
    connection.request(
        "POST", "/v1/traces", iter([b"{}"]), {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    )
    assert connection.getresponse().status == 411  # chunked
    connection.close()


def test_one_connection_for_several_exports(make: Make) -> None:
    source = make()
    connection = http.client.HTTPConnection(*source.address[:2], timeout=10)
    for _ in range(3):
        connection.request(
            "POST",
            "/v1/traces",
            export(SPAN),
            {"Content-Type": "application/json; charset=utf-8", "Authorization": f"Bearer {TOKEN}"},
        )
        answer = connection.getresponse()
        assert answer.read() == b"{}"
    connection.close()
    assert records(source) == ["x"] * 3


def test_more_than_may_wait_is_sent_again_later(make: Make) -> None:
    source = make(max_queue_bytes=1 << 17)
    statuses = [post(source, export(*[SPAN] * 200))[0] for _ in range(12)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert records(source)
    assert post(source, export(SPAN))[0] == 200


def test_silent_callers_do_not_keep_others_out(make: Make) -> None:
    source = make(max_connections=2, timeout_seconds=0.5)
    silent = [socket.create_connection(source.address[:2]) for _ in range(2)]
    try:
        assert post(source, export(SPAN))[0] == 200
    finally:
        for one in silent:
            one.close()


def test_callers_that_trickle_make_room(make: Make) -> None:
    source = make(max_connections=1, timeout_seconds=1.0)
    slow = socket.create_connection(source.address[:2])
    stop = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            slow.sendall(b"POST /v1/traces HTTP/1.1\r\n")
            while not stop.wait(0.2):
                slow.sendall(b"X-A: b\r\n"[:1])

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        assert post(source, export(SPAN))[0] == 200
    finally:
        stop.set()
        thread.join()
        slow.close()
    assert dropped(source, "stalled") >= 1


def test_a_unix_socket_needs_no_token(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    source = make(listen=str(path), token_file="", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.settimeout(5)
        body = export(SPAN)
        head = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert records(source) == ["x"]
    source.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"listen": "0.0.0.0:0"}, "not this host's own"),
        ({"listen": "127.0.0.1:0", "token_file": ""}, "set token_file"),
        ({"listen": "nonsense"}, "neither a path nor"),
        ({"listen": "127.0.0.1:99999"}, "127.0.0.1:99999"),
        ({"token_file": "/nonexistent"}, "no such file"),
    ],
)
def test_where_it_does_not_listen(make: Make, params: dict[str, Any], why: str) -> None:
    with pytest.raises(SourceError, match=why):
        make(**params)


def test_a_token_that_everybody_may_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(SourceError, match="everybody may read it"):
        read_token(str(path))
    path.chmod(0o640)
    assert read_token(str(path)) == TOKEN.encode()
    path.write_text("short")
    with pytest.raises(SourceError, match="shorter than 16"):
        read_token(str(path))


def test_litellm_posts_its_calls(make: Make) -> None:
    source = make(LiteLlm)
    status, _, _ = post(source, json.dumps([CALL, CALL]).encode(), "/v1/litellm")
    assert status == 200
    lines = b"\n".join(json.dumps(CALL).encode() for _ in range(3))
    assert post(source, lines, "/v1/litellm", Content_Type="application/x-ndjson")[0] == 200
    assert records(source) == ["x"] * 5
    assert post(source, b"[1]", "/v1/litellm")[0] == 400


def test_the_real_exporter(make: Make) -> None:
    """The OpenTelemetry SDK's own exporter, with gzip, as instrumented servers use it."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    source = make()
    host, port = source.address[:2]
    exporter = OTLPSpanExporter(
        endpoint=f"http://{host}:{port}/v1/traces",
        headers={"authorization": f"Bearer {TOKEN}"},
        compression=Compression.Gzip,
    )
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    for at in range(50):
        with tracer.start_as_current_span("chat") as span:
            span.set_attribute("gen_ai.request.model", "gpt")
            span.set_attribute("gen_ai.usage.input_tokens", at)
    assert provider.force_flush(10_000)
    provider.shutdown()
    assert records(source) == ["gpt"] * 50


def test_closing_ends_its_threads(make: Make) -> None:
    source = make()
    waiting = socket.create_connection(source.address[:2])
    time.sleep(0.1)
    source.close()
    source.close()
    waiting.close()
    end = time.monotonic() + 5
    while time.monotonic() < end and any(one.name in ("otlp-http", "mlsecd-http") for one in threading.enumerate()):
        time.sleep(0.05)
    assert not [one for one in threading.enumerate() if one.name in ("otlp-http", "mlsecd-http")]
