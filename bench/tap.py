"""What the ASGI tap adds to a request and to a streamed chunk, on the request's path.

Thread time, no middleware against one, in turns. The peer is what frameworks offer for the same: Starlette's
``BaseHTTPMiddleware``.

Usage: python -m bench.tap [--requests 2000] [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

from bench.rows import Row, report
from mlsecd.taps.asgi import Tap
from mlsecd.taps.client import SocketClient
from mlsecd.taps.record import Renderer
from mlsecd.taps.worker import Worker

CHUNKS = 200
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"word " * 100 + b'"}],"max_tokens":64}'
HEADERS = [(b"host", b"localhost"), (b"user-agent", b"bench"), (b"content-type", b"application/json")] + [
    (b"x-header-%d" % at, b"value") for at in range(8)
]
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/chat/completions",
    "headers": HEADERS,
    "client": ("10.0.0.1", 1),
}
SCOPE["headers"] = [*HEADERS, (b"authorization", b"Bearer sk-bench")]
ANSWER = (
    b'{"id":"x","model":"m","choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
)
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


async def plain(_: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(START)
    await send({"type": "http.response.body", "body": ANSWER})


async def stream(_: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(START)
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": b'data: {"choices":[]}\n\n', "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": BODY, "more_body": False}


async def send(_: Any) -> None:
    return None


async def seconds(app: Any, requests: int) -> float:
    """Thread time of so many requests: the tap's own thread is not on their path."""
    started = time.thread_time()
    for _ in range(requests):
        await app(dict(SCOPE), receive, send)
    return time.thread_time() - started


def tapped(app: Any) -> Tap:
    renderer = Renderer(bytes(32))
    worker = Worker(renderer.line, SocketClient("/nonexistent/mlsecd"))
    return Tap(app, renderer=renderer, worker=worker)


def measure(requests: int, rounds: int) -> Iterator[Row]:
    contenders: dict[str, Any] = {"none": lambda app: app, "tap": tapped}
    try:
        base = importlib.import_module("starlette.middleware.base")
        contenders["BaseHTTPMiddleware"] = lambda app: base.BaseHTTPMiddleware(app, dispatch=_dispatch)
    except ImportError:
        pass
    took: dict[str, list[float]] = {}
    for name, app, count in (("request", plain, requests), ("chunk", stream, max(1, requests // 40))):
        wrapped = {who: wrap(app) for who, wrap in contenders.items()}
        for _ in range(rounds):
            for who, one in wrapped.items():
                took.setdefault(f"{name} {who}", []).append(asyncio.run(seconds(one, count)) / count)
    middle = {name: statistics.median(values) for name, values in took.items()}
    per_request = middle["request tap"] - middle["request none"]
    per_chunk = (middle["chunk tap"] - middle["chunk none"] - per_request) / CHUNKS
    peer_request = peer_chunk = None
    if "BaseHTTPMiddleware" in contenders:
        peer_request = middle["request BaseHTTPMiddleware"] - middle["request none"]
        peer_chunk = (middle["chunk BaseHTTPMiddleware"] - middle["chunk none"] - peer_request) / CHUNKS
    for title, value, peer, budget in (
        ("tap, added to a request", per_request, peer_request, 10.0),
        ("tap, added to a streamed chunk", per_chunk, peer_chunk, 0.5),
    ):
        yield Row(title, 1e6 * value, "us", budget=budget)
        if peer is not None:
            yield Row(f"{title}, against the peer", 1e6 * value, "us", "BaseHTTPMiddleware", value / peer)


async def _dispatch(request: Any, call_next: Any) -> Any:
    return await call_next(request)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report(measure(args.requests, args.rounds), as_json=args.json)


if __name__ == "__main__":
    main()
