"""SGLang's request metrics files (``--export-metrics-to-file``): one JSON line a request. docs/integrations/sglang.md.

The request's parameters are a JSON text inside the line, and by default hold the prompt; it is not looked at. There
is no client in it: join it with a gateway's log by request id.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mlsecd.adapters.base import BAD, Adapted, Adapter, Context, clean, count, number, objects, positive, render

__all__ = ["ADAPTER"]


def adapt(data: bytes, context: Context) -> Adapted:
    """Lines to request records."""
    return render(_row(line, context) if line is not None else None for line in objects(data))


def _row(line: dict[str, Any], context: Context) -> dict[str, Any] | None:
    parameters = _parameters(line.get("request_parameters"))
    if parameters is None:
        return None
    sampling = parameters.get("sampling_params")
    if not isinstance(sampling, dict):
        sampling = {}
    took = positive(line.get("e2e_latency"))
    reason = line.get("finish_reason")
    kind = reason.get("type") if isinstance(reason, dict) else reason
    asked = count(parameters.get("top_logprobs_num")) or 0
    bias = sampling.get("logit_bias")
    row = {
        "ts": _start(line, took, context),
        "model": clean(parameters.get("model")) or context.model,
        "source": "sglang",
        "request_id": clean(line.get("id")) or clean(parameters.get("rid")),
        "duration_s": took,
        "ttft_s": positive(line.get("first_token_latency")),
        "aborted": kind == "abort",
        "finish_reason": clean(kind),
        "input_tokens": count(line.get("prompt_tokens")),
        "output_tokens": count(line.get("completion_tokens")),
        "cached_tokens": count(line.get("cached_tokens")),
        "reasoning_tokens": count(line.get("reasoning_tokens")),
        "max_tokens": number(sampling.get("max_new_tokens")),
        "temperature": number(sampling.get("temperature")),
        "n": number(sampling.get("n")),
        "logprobs": max(asked, 1) if parameters.get("return_logprob") is True else None,
        "logit_bias_count": len(bias) if isinstance(bias, dict) and bias else None,
    }
    return {name: value for name, value in row.items() if value is not None}


def _parameters(text: Any) -> dict[str, Any] | None:
    if not isinstance(text, str):
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except BAD:
        return None


def _start(line: dict[str, Any], took: float | None, context: Context) -> float:
    """When it was received; else by its end, else by when the line was read."""
    for name in ("request_received_ts", "received_ts"):
        if (found := positive(line.get(name))) is not None and found > 1e9:
            return found
    for name in ("response_sent_to_client_ts", "request_finished_ts", "finished_ts"):
        if (found := positive(line.get(name))) is not None and found > 1e9:
            return found - (took or 0.0)
    return context.now - (took or 0.0)


ADAPTER = Adapter("sglang", "SGLang request metrics files", adapt)
