"""``mlsecd.taps.asgi.Tap``: a pure ASGI middleware that tells mlsecd who asked an inference server for what.

::

    vllm serve MODEL --middleware mlsecd.taps.asgi.Tap       # vLLM
    app.add_middleware(mlsecd.taps.asgi.Tap)                 # FastAPI, Starlette, Ray Serve, BentoML

What passes is never changed, delayed for more than microseconds, or failed: while a request runs the tap keeps
references to what it sees, and everything else happens afterwards in one thread (:mod:`mlsecd.taps.worker`).
Standard library only. Servers pass no arguments, so the environment configures it; see docs/integrations/tap.md.
"""

from __future__ import annotations

import contextvars
import logging
import os
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from mlsecd.taps.client import SocketClient
from mlsecd.taps.record import Renderer
from mlsecd.taps.worker import Worker

__all__ = ["Exchange", "Tap", "tell"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEAD_BYTES: Final = 64 << 10  # of the first piece of an answer that are kept
TAIL_BYTES: Final = 8 << 10  # of each later piece
TAIL_PIECES: Final = 16  # the last pieces hold the counts of tokens
MAX_FEATURES: Final = 1_024

_OVERHEAD: Final = 4_096  # of an exchange beside its bodies

_log = logging.getLogger("mlsecd.tap")
_current: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("mlsecd_exchange", default=None)


class Exchange:
    """One request and its answer: references to what passed, and what the application told."""

    __slots__ = (
        "aborted",
        "began",
        "body",
        "body_bytes",
        "complete",
        "ended",
        "first",
        "first_at",
        "headers",
        "kept",
        "scope",
        "status",
        "tail",
        "told",
        "ts",
    )

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self.scope = scope
        self.ts = time.time()
        self.began = time.perf_counter()
        self.ended = self.began
        self.body: list[bytes] = []
        self.body_bytes = 0  # all that came, kept or not
        self.kept = 0
        self.status: int | None = None
        self.headers: Any = ()
        self.first: bytes | None = None
        self.first_at = 0.0
        self.tail: deque[bytes] = deque(maxlen=TAIL_PIECES)
        self.complete = False
        self.aborted = False
        self.told: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """Bytes that it holds on to, about."""
        return _OVERHEAD + self.kept + len(self.first or b"") + sum(map(len, self.tail))


class Tap:
    """ASGI middleware, once around an application.

    Parameters
    ----------
    app
        The application.
    renderer, worker
        What makes records and where; by default one for the process, configured by the environment.
    max_body_bytes
        Of a request's body, what is kept to be read; default ``MLSECD_TAP_BODY_BYTES``, else 1 MiB.
    """

    def __init__(
        self,
        app: App,
        *,
        renderer: Renderer | None = None,
        worker: Worker | None = None,
        max_body_bytes: int | None = None,
    ) -> None:
        self.app = app
        renderer = renderer or Renderer.from_environment()
        if worker is None:
            worker = Worker(renderer.line, SocketClient(), _number("MLSECD_TAP_CPU", 0.02))
        self.worker = worker
        self._lane = renderer.lane
        if max_body_bytes is None:
            max_body_bytes = int(_number("MLSECD_TAP_BODY_BYTES", 1 << 20))
        self._max_body = max_body_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a connection on; of HTTP, keep what is needed."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope)
        token = _current.set(exchange)
        try:
            await self.app(scope, _hearing(exchange, receive, self._max_body), _saying(exchange, send))
        finally:
            _current.reset(token)
            exchange.ended = time.perf_counter()
            try:
                self.worker.put(self._lane(exchange), exchange, exchange.size)
            except Exception:  # noqa: BLE001 - whatever it is, it is not the request's failure
                _log.debug("a request could not be handed over", exc_info=True)


def _hearing(exchange: Exchange, receive: Receive, limit: int) -> Receive:
    """``receive`` that keeps the body's pieces, up to ``limit`` bytes, and notices who hangs up."""

    async def hear() -> Message:
        message = await receive()
        if message.get("type") == "http.disconnect":
            exchange.aborted = exchange.aborted or not exchange.complete
        elif piece := message.get("body"):
            exchange.body_bytes += len(piece)
            if exchange.kept + len(piece) <= limit:
                exchange.body.append(piece)
                exchange.kept += len(piece)
        return message

    return hear


def _saying(exchange: Exchange, send: Send) -> Send:
    """``send`` that keeps the first piece and the last ones. No coroutine of its own: that would cost more."""
    keep = exchange.tail.append

    def say(message: Message) -> Awaitable[None]:
        kind = message.get("type")
        if kind == "http.response.body":
            piece = message.get("body")
            if piece:
                if exchange.first is None:
                    _first(exchange, piece)
                else:
                    keep(piece if len(piece) <= TAIL_BYTES else piece[-TAIL_BYTES:])
            if not message.get("more_body"):
                exchange.complete = True
        elif kind == "http.response.start":
            exchange.status = message.get("status")
            exchange.headers = message.get("headers", ())
        return send(message)

    return say


def _first(exchange: Exchange, piece: bytes) -> None:
    """The first piece is kept whole: of most answers there is no other."""
    exchange.first_at = time.perf_counter()
    if len(piece) <= HEAD_BYTES:
        exchange.first = piece
    else:
        exchange.first = piece[:TAIL_BYTES]
        exchange.tail.append(piece[-TAIL_BYTES:])


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        _log.warning("mlsecd tap: %s=%r is no positive number; taking %s", name, text[:40], default)
        return default
    return number


def tell(
    *,
    features: Sequence[float] | None = None,
    input_features: Sequence[float] | None = None,
    predicted: int | str | None = None,
    scores: Sequence[float] | None = None,
    model: str | None = None,
) -> None:
    """Say what only the application knows about the request that it is answering; outside of one, do nothing.

    Parameters
    ----------
    features, input_features
        An embedding from inside the model, and a projection of the input: at most 1,024 numbers.
    predicted, scores
        The class, and the probabilities of the likeliest ones.
    model
        The model's name and version, where the body does not say it.

    Never raises: what cannot be read as numbers is left out.
    """
    exchange = _current.get()
    if exchange is None:
        return
    told = exchange.told = exchange.told or {}
    for name, values in (("features", features), ("input_features", input_features), ("scores", scores)):
        if values is not None:
            try:
                told[name] = array("f", values)[:MAX_FEATURES]  # a copy: the application goes on using its own
            except (TypeError, ValueError, OverflowError):
                _log.debug("mlsecd tap: %s are no numbers", name)
    if predicted is not None:
        told["predicted"] = predicted if isinstance(predicted, str) else int(predicted)
    if model is not None:
        told["model"] = str(model)
