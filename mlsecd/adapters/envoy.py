"""Envoy's and Envoy AI Gateway's access log as JSON lines: docs/integrations/envoy.md.

Both the names of our own sample and those of Envoy AI Gateway's documentation are read. ``DC`` among the response
flags is a client that left. A denial carries its client in a response header (``client_denied``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from mlsecd.adapters.base import Adapted, Adapter, Context, clean, count, number, objects, positive, render, who

__all__ = ["ADAPTER"]

_MS: Final = 1e-3
_LEFT: Final = ("DC", "DR")  # downstream connection termination, downstream remote reset


def adapt(data: bytes, context: Context) -> Adapted:
    """Access-log lines to request records."""
    return render(_row(line, context) if line is not None else None for line in objects(data))


def _row(line: dict[str, Any], context: Context) -> dict[str, Any] | None:
    ts = _time(_first(line, "ts", "start_time"))
    if ts is None:
        return None
    status = count(_first(line, "status", "response_code"))
    client, identity = _who(line, status, context)
    flags = str(_first(line, "flags", "response_flags") or "").split(",")
    path = clean(_first(line, "path", "x-envoy-origin-path", ":path"))
    agent = clean(_first(line, "user_agent", "user-agent"))
    row = {
        "ts": ts,
        "model": clean(_first(line, "gen_ai.response.model", "gen_ai.request.model", "model")) or context.model,
        "client": client,
        "identity": identity,
        "source": "envoy",
        "request_id": clean(_first(line, "request_id", "x-request-id")),
        "network": _address(_first(line, "peer", "downstream_remote_address")),
        "route": path.partition("?")[0] if path else None,
        "user_agent": context.hasher.opaque(agent) if agent else None,
        "status": status or None,  # 0: there was no answer
        "aborted": any(flag in _LEFT for flag in flags),
        "duration_s": _seconds(_first(line, "duration_ms", "duration")),
        "input_tokens": count(line.get("gen_ai.usage.input_tokens")),
        "output_tokens": count(line.get("gen_ai.usage.output_tokens")),
        "cached_tokens": count(line.get("gen_ai.usage.cached_input_tokens")),
    }
    return {name: value for name, value in row.items() if value is not None}


def _who(line: dict[str, Any], status: int | None, context: Context) -> tuple[str | None, str]:
    """Our own metadata first: a header could be the client's, where the sample's mutation is left out."""
    open_ = str(line.get("fail_open")).lower() == "true"
    named = None if open_ else _first(line, "client_md", "client", "client_denied")
    peer = _address(_first(line, "peer", "downstream_remote_address"))
    client, identity = who(
        context.hasher, client=named, user=line.get("jwt_sub"), subject=line.get("tls_subject"), peer=peer
    )
    return client, "unverified" if status == 401 else identity


def _first(line: dict[str, Any], *names: str) -> Any:
    return next((line[name] for name in names if line.get(name) not in (None, "", "-")), None)


def _seconds(milliseconds: Any) -> float | None:
    found = positive(milliseconds)
    return None if found is None else found * _MS


def _address(peer: Any) -> str | None:
    """Without its port: 10.0.0.1:443, [::1]:443."""
    peer = clean(peer)
    if peer is None:
        return None
    if peer.startswith("["):
        return peer[1:].partition("]")[0]
    return peer.partition(":")[0] if peer.count(":") == 1 else peer


def _time(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return moment.timestamp() if moment.tzinfo is not None else None
    return number(value)


ADAPTER = Adapter("envoy", "Envoy and Envoy AI Gateway access log, JSON lines", adapt)
