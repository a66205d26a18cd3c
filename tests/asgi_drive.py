"""Drives an ASGI application under the tap without a server, and reads the record that comes of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.taps.asgi import Tap
from mlsecd.taps.identity import Hasher
from mlsecd.taps.record import Renderer
from mlsecd.taps.worker import Worker

KEY = bytes(range(32))
HASHER = Hasher(KEY)


class Lines:
    """Stands in for the socket's client."""

    path = ""
    trouble = ""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.dropped: Counter[str] = Counter()
        self.closed = False

    def send(self, line: bytes) -> None:
        self.lines.append(line)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Drive:
    """One tapped application, and its records."""

    def __init__(self, app: Any, *, renderer: Renderer | None = None, max_body_bytes: int = 1 << 20) -> None:
        self.out = Lines()
        self.renderer = renderer or Renderer(KEY)
        self.worker = Worker(self.renderer.line, self.out, share=1.0)  # type: ignore[arg-type]
        self.tap = Tap(app, renderer=self.renderer, worker=self.worker, max_body_bytes=max_body_bytes)

    def request(
        self,
        body: bytes | Sequence[dict[str, Any]] = b"",
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        **scope: Any,
    ) -> list[Any]:
        """What the server was told to send."""
        pieces = [{"type": "http.request", "body": body, "more_body": False}] if isinstance(body, bytes) else list(body)
        heard = iter(pieces)
        sent: list[Any] = []

        async def receive() -> Any:
            return next(heard, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        whole = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "client": ("10.1.2.3", 5)}
        asyncio.run(self.tap(whole | {"headers": list(headers)} | scope, receive, send))
        return sent

    def records(self) -> list[dict[str, Any]]:
        """All records so far, as JSON; each must be one that the daemon takes."""
        self.worker.close(10)
        meters = Meters()
        decoder = Decoder(meters, "test")
        taken = sum(len(batch) for batch in decoder.decode(list(self.out.lines)) if isinstance(batch, RequestBatch))
        assert taken == len(self.out.lines), decoder.samples
        return [json.loads(line) for line in self.out.lines]

    def record(self) -> dict[str, Any]:
        (one,) = self.records()
        return one


def answering(*pieces: bytes, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Any:
    """An application that reads the request's body and sends these pieces."""

    async def app(_: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for at, piece in enumerate(pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": at < len(pieces) - 1})

    return app


def chat(**body: Any) -> bytes:
    whole = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me about licences"}]} | body
    return json.dumps(whole).encode()
