"""LiteLLM proxy's ``generic_api`` callback: StandardLoggingPayload, a JSON array, one object, or JSON lines.

It knows its callers best: by the hash of their virtual key. Messages and answers, which it sends along unless
``turn_off_message_logging`` is set, are not looked at. docs/integrations/litellm.md.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mlsecd.adapters.base import BAD, Adapted, Adapter, Context, clean, count, number, objects, positive, render

__all__ = ["ADAPTER"]


def adapt(data: bytes, context: Context) -> Adapted:
    """A POST's body, or lines of a file, to request records."""
    return render(_row(call, context) if isinstance(call, dict) else None for call in _calls(data))


def _calls(data: bytes) -> list[Any]:
    if data.lstrip()[:1] != b"[":
        return list(objects(data))
    try:
        return list(msgspec.json.decode(data, type=list[Any]))
    except BAD:
        return [None]


def _row(call: dict[str, Any], context: Context) -> dict[str, Any] | None:
    start, end = number(call.get("startTime")), number(call.get("endTime"))
    if start is None or start <= 0:
        return None
    metadata = _table(call.get("metadata"))
    parameters = _table(call.get("model_parameters"))
    first = number(call.get("completionStartTime"))
    usage = _table(metadata.get("usage_object"))
    asked = parameters.get("top_logprobs") if parameters.get("logprobs") is True else parameters.get("logprobs")
    bias = _table(parameters.get("logit_bias"))
    row = {
        "ts": start,
        "model": clean(call.get("model_group")) or clean(call.get("model")) or context.model,
        "source": "litellm",
        "request_id": clean(call.get("id")),
        "duration_s": max(0.0, end - start) if end is not None else None,
        "ttft_s": max(0.0, first - start) if first is not None and call.get("stream") is True else None,
        "status": _status(call),
        "route": clean(metadata.get("user_api_key_request_route")) or clean(call.get("call_type")),
        "network": clean(call.get("requester_ip_address")) or clean(metadata.get("requester_ip_address")),
        "input_tokens": _tokens(call, "prompt_tokens"),
        "output_tokens": _tokens(call, "completion_tokens"),
        "cached_tokens": count(_table(usage.get("prompt_tokens_details")).get("cached_tokens")),
        "n": number(parameters.get("n")),
        "max_tokens": number(parameters.get("max_completion_tokens", parameters.get("max_tokens"))),
        "temperature": number(parameters.get("temperature")),
        "logprobs": 1 if asked is None and parameters.get("logprobs") is True else positive(asked),
        "logit_bias_count": len(bias) or None,
        **_who(call, metadata, context),
    }
    return {name: value for name, value in row.items() if value is not None}


def _who(call: dict[str, Any], metadata: dict[str, Any], context: Context) -> dict[str, Any]:
    """The virtual key's hash names the client; the end user stands behind it, on the key owner's word.

    The hash of a key that was refused is a guess and names nobody, and LiteLLM says no address beside it.
    """
    hasher = context.hasher
    status = _status(call)
    found: dict[str, Any] = {"identity": "unverified"}
    key = clean(metadata.get("user_api_key_hash")) or clean(metadata.get("user_api_key_user_id"))
    address = clean(call.get("requester_ip_address")) or clean(metadata.get("requester_ip_address"))
    if key and status != 401:
        found |= {"client": hasher.client("bearer", key), "identity": "verified"}
    elif address:
        found["client"] = hasher.client("peer", address)
    end_user = clean(call.get("end_user")) or clean(metadata.get("user_api_key_end_user_id"))
    if end_user:
        found["user"] = hasher.client("user", end_user)
    if agent := clean(call.get("user_agent")) or clean(metadata.get("user_agent")):
        found["user_agent"] = hasher.opaque(agent)
    return found


def _tokens(call: dict[str, Any], name: str) -> int | None:
    """A call that failed says 0 for what it does not know."""
    found = count(call.get(name))
    return found or (None if call.get("status") == "failure" else found)


def _status(call: dict[str, Any]) -> int | None:
    if call.get("status") == "success":
        return 200
    error = _table(call.get("error_information"))
    return count(error.get("error_code")) or (500 if call.get("status") == "failure" else None)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


ADAPTER = Adapter("litellm", "LiteLLM proxy, generic_api callback", adapt)
