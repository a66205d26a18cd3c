"""A server as people write them: FastAPI, a scikit-learn model, an OpenAI-like chat that streams. Run by uvicorn.

``VICTIM_OTLP`` makes it export spans with the OpenTelemetry SDK, as an instrumented server without a tap does.
"""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from collections.abc import AsyncIterator
from typing import Any

import digits
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from mlsecd.taps.asgi import tell

app = FastAPI()
KEYS = {"sk-alice", "sk-bob", "sk-thief"}


def tracer() -> Any:
    if "VICTIM_OTLP" not in os.environ:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider()
    exporter = OTLPSpanExporter(
        endpoint=os.environ["VICTIM_OTLP"], headers={"authorization": f"Bearer {os.environ['VICTIM_TOKEN']}"}
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=200))
    return provider.get_tracer("victim")


TRACER = tracer()


def check(request: Request) -> None:
    if request.headers.get("authorization", "").removeprefix("Bearer ") not in KEYS:
        raise HTTPException(401, "who are you?")


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    check(request)
    pixels = (await request.json())["pixels"]
    if TRACER is None:
        features, label, scores = digits.answer(pixels)
        tell(features=features, predicted=label, scores=scores, model="digits")
        return {"label": label}
    with TRACER.start_as_current_span("predict") as span:
        features, label, scores = digits.answer(pixels)
        span.set_attribute("gen_ai.request.model", "digits")
        span.set_attribute("mlsecd.request_id", request.headers.get("x-request-id", ""))
        span.set_attribute("mlsecd.features", features)
        span.set_attribute("mlsecd.predicted", label)
        span.set_attribute("mlsecd.scores", scores)
    return {"label": label}


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Any:
    check(request)
    body = await request.json()
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    if not body.get("stream"):
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a b c d e"}}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "tiny",
            "choices": [message],
            "usage": usage,
        }

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(body.get("max_tokens", 5)):
            delta = {"index": 0, "delta": {"content": f"w{at} "}, "finish_reason": None}
            yield event({"choices": [delta]})
            await asyncio.sleep(0.01)
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


def event(fields: dict[str, Any]) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return f"data: {json.dumps(head | fields)}\n\n".encode()


warnings.simplefilter("ignore")
digits.victim()
