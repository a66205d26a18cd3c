"""NVIDIA Dynamo's request trace (``dynamo.request.trace.v1``), in its envelope or bare: docs/integrations/dynamo.md.

``request_end`` tells of a request; tool events do not, and payloads (the prompts) are not looked at.
"""

from __future__ import annotations

from typing import Any

from mlsecd.adapters.base import Adapted, Adapter, Context, clean, count, objects, positive, render

__all__ = ["ADAPTER"]


def adapt(data: bytes, context: Context) -> Adapted:
    """Lines to request records."""
    rows: list[dict[str, Any] | None] = []
    skipped = 0
    for line in objects(data):
        event = line.get("event", line) if line is not None else None
        if isinstance(event, dict) and "event_type" in event and event["event_type"] != "request_end":
            skipped += 1
        else:
            rows.append(_row(event, context) if isinstance(event, dict) else None)
    return render(rows, skipped)


def _row(event: dict[str, Any], context: Context) -> dict[str, Any] | None:
    request = event.get("request")
    end = positive(event.get("event_time_unix_ms"))
    if not isinstance(request, dict) or end is None:
        return None
    took = positive(request.get("total_time_ms"))
    start = positive(request.get("request_received_ms"))
    if start is None:
        start = end - (took or 0.0)
    reasons = request.get("finish_reason_metadata")
    agent = event.get("agent_context")
    session = clean(agent.get("session_id")) if isinstance(agent, dict) else None
    first = positive(request.get("ttft_ms"))
    row = {
        "ts": start / 1e3,
        "model": clean(request.get("model")) or context.model,
        "source": "dynamo",
        "request_id": clean(request.get("x_request_id")) or clean(request.get("request_id")),
        "user": context.hasher.client("user", session) if session else None,
        "duration_s": (took if took is not None else max(0.0, end - start)) / 1e3,
        "ttft_s": None if first is None else first / 1e3,
        "finish_reason": clean(reasons.get("finish_reason")) if isinstance(reasons, dict) else None,
        "input_tokens": count(request.get("input_tokens")),
        "output_tokens": count(request.get("output_tokens")),
        "cached_tokens": count(request.get("cached_tokens")),
    }
    return {name: value for name, value in row.items() if value is not None}


ADAPTER = Adapter("dynamo", "NVIDIA Dynamo request trace, jsonl", adapt)
