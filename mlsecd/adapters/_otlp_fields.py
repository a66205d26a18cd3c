"""Which attributes of a span say what of a request: several generations of names, in order of preference.

OpenTelemetry's gen_ai names (new and old; the specification is in development and moves), OpenInference's, vLLM's and
SGLang's own, and ``mlsecd.*`` for what no convention has a name for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from mlsecd.adapters.base import BAD, Context, clean, count, label, number, positive

__all__ = ["WANTED", "is_request", "record_of"]

_MAX_ITEMS: Final = 1024
_VECTOR: Final = "embedding.embeddings.0.embedding.vector"

_TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "model": ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "embedding.model_name"),
    "request_id": ("gen_ai.request.id", "gen_ai.response.id", "http.request.header.x-request-id", "mlsecd.request_id"),
    "client": ("mlsecd.client", "user.id", "enduser.id", "user.name", "user.hash"),
    "user_agent": ("user_agent.original", "http.user_agent"),
    "network": ("client.address", "http.client_ip", "net.peer.ip"),
    "route": ("http.route", "url.path", "gen_ai.operation.name"),
}
_COUNTS: Final[dict[str, tuple[str, ...]]] = {
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"),
    "cached_tokens": (
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cached_tokens",
        "llm.token_count.prompt_details.cache_read",
    ),
    "reasoning_tokens": (
        "gen_ai.usage.reasoning.output_tokens",
        "llm.token_count.completion_details.reasoning",
    ),
    "status": ("http.response.status_code", "http.status_code"),
}
_NUMBERS: Final[dict[str, tuple[str, ...]]] = {
    "max_tokens": ("gen_ai.request.max_tokens",),
    "temperature": ("gen_ai.request.temperature",),
    "n": ("gen_ai.request.choice.count", "gen_ai.request.n"),
    "logprobs": ("gen_ai.request.top_logprobs", "gen_ai.request.logprobs"),
}
_SECONDS: Final[dict[str, tuple[str, ...]]] = {
    "ttft_s": (
        "gen_ai.response.time_to_first_chunk",
        "gen_ai.latency.time_to_first_token",
        "gen_ai.server.time_to_first_token",
    ),
}
_VECTORS: Final[dict[str, tuple[str, ...]]] = {
    "features": ("mlsecd.features", _VECTOR),
    "input_features": ("mlsecd.input_features",),
    "scores": ("mlsecd.scores",),
}
_REASONS: Final[dict[str, tuple[str, ...]]] = {
    "finish_reason": ("gen_ai.response.finish_reasons", "gen_ai.response.finish_reason", "llm.finish_reason"),
}
_LABELS: Final[dict[str, tuple[str, ...]]] = {"predicted": ("mlsecd.predicted",)}
_OTHERS: Final = ("openinference.span.kind", "llm.invocation_parameters", "gen_ai.operation.name", "gen_ai.system")

WANTED: Final[frozenset[str]] = frozenset(
    name
    for group in (_TEXTS, _COUNTS, _NUMBERS, _SECONDS, _VECTORS, _REASONS, _LABELS)
    for names in group.values()
    for name in names
).union(_OTHERS)

_TELLING: Final = frozenset(name for name in WANTED if name.startswith(("gen_ai.", "mlsecd.", "llm.", "embedding.")))


def is_request(found: dict[str, Any]) -> bool:
    """Whether a span with these attributes tells of a request to a model; a tool's or a database's does not."""
    kind = found.get("openinference.span.kind")
    if kind is not None:
        return kind in ("LLM", "EMBEDDING")
    if found.get("gen_ai.operation.name") in ("execute_tool", "invoke_agent", "create_agent", "invoke_workflow"):
        return False
    return not _TELLING.isdisjoint(found)


def record_of(start: float, end: float, failed: bool, found: dict[str, Any], context: Context) -> dict[str, Any]:
    """The request record of a span with these (wanted) attributes; times in seconds since the epoch."""
    row: dict[str, Any] = {"ts": start, "model": context.model, "source": "otlp", "duration_s": max(0.0, end - start)}
    ranks: dict[str, int] = {}
    for attribute, raw in found.items():
        step = _STEPS.get(attribute)
        if step is None:
            continue
        name, rank, read = step
        if name in ranks and rank >= ranks[name]:
            continue
        if (value := read(raw)) is not None:
            row[name] = value
            ranks[name] = rank
    if failed:
        row.setdefault("status", 500)
    if "user_agent" in row:
        row["user_agent"] = context.hasher.opaque(row["user_agent"])
    if "llm.invocation_parameters" in found:
        _parameters(row, found["llm.invocation_parameters"])
    _identify(row, context)
    return row


def _identify(row: dict[str, Any], context: Context) -> None:
    user = row.get("client")
    if user is not None:
        row["client"] = user if user.startswith("k-") else context.hasher.client("user", user)
    elif "network" in row:
        row["client"] = context.hasher.client("peer", row["network"])
        row["identity"] = "unverified"


def _vector(value: Any) -> list[float] | None:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_ITEMS:
        return None
    numbers = [found for item in value if (found := number(item)) is not None]
    return numbers if len(numbers) == len(value) else None


def _reason(value: Any) -> str | None:
    """Of several choices the first; vLLM writes the list as a JSON text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = msgspec.json.decode(value, type=list[Any])
        except BAD:
            return None
    if isinstance(value, list):
        value = value[0] if value else None
    return clean(value)


def _parameters(row: dict[str, Any], text: Any) -> None:
    """OpenInference's parameters, a JSON text."""
    if not isinstance(text, str):
        return
    try:
        asked = msgspec.json.decode(text, type=dict[str, Any])
    except BAD:
        return
    for name in ("max_tokens", "temperature", "n"):
        if (value := number(asked.get(name))) is not None:
            row.setdefault(name, value)
    top = positive(asked.get("top_logprobs"))
    if asked.get("logprobs") is True or top:
        row.setdefault("logprobs", max(top or 0, 1))
    if isinstance(asked.get("logit_bias"), dict) and asked["logit_bias"]:
        row.setdefault("logit_bias_count", len(asked["logit_bias"]))


def _steps() -> dict[str, tuple[str, int, Callable[[Any], Any]]]:
    """Attribute -> (field, how much it is preferred, 0 most; how it is read)."""
    groups: tuple[tuple[dict[str, tuple[str, ...]], Callable[[Any], Any]], ...] = (
        (_TEXTS, clean),
        (_COUNTS, count),
        (_NUMBERS, number),
        (_SECONDS, positive),
        (_VECTORS, _vector),
        (_REASONS, _reason),
        (_LABELS, label),
    )
    return {
        source: (name, rank, read)
        for group, read in groups
        for name, sources in group.items()
        for rank, source in enumerate(sources)
    }


_STEPS: Final = _steps()
