"""BentoML's ``bentoml.monitor()`` data log: one JSON line a prediction. docs/integrations/bentoml.md.

Fields have the names that the service gave them; these are read: ``client`` (or ``api_key_hash``), ``label``,
``predicted`` or ``prediction``, ``probs``, ``probabilities`` or ``scores``, and as features ``features``,
``embedding``, or else the one list of numbers that is left. Request ids are decimal there and hex elsewhere.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from mlsecd.adapters.base import Adapted, Adapter, Context, clean, label, number, objects, render, who

__all__ = ["ADAPTER"]

_SCORES: Final = ("scores", "probs", "probabilities")
_CLASS: Final = ("predicted", "prediction", "label", "class")
_FEATURES: Final = ("features", "embedding", "embeddings")
_INPUTS: Final = ("input_features", "inputs", "input")
_MAX_ITEMS: Final = 1024


def adapt(data: bytes, context: Context) -> Adapted:
    """Lines to request records."""
    return render(_row(line, context) if line is not None else None for line in objects(data))


def _row(line: dict[str, Any], context: Context) -> dict[str, Any] | None:
    ts = _time(line.get("timestamp"))
    if ts is None:
        return None
    vectors = {name: value for name, value in line.items() if _is_vector(value)}
    scores = next((vectors.pop(name) for name in _SCORES if name in vectors), None)
    features = next((vectors.pop(name) for name in _FEATURES if name in vectors), None)
    inputs = next((vectors.pop(name) for name in _INPUTS if name in vectors), None)
    if features is None and len(vectors) == 1:
        (features,) = vectors.values()
    client, identity = who(context.hasher, client=line.get("client") or line.get("api_key_hash"))
    predicted = next((line[name] for name in _CLASS if isinstance(line.get(name), int | str)), None)
    row = {
        "ts": ts,
        "model": clean(line.get("model")) or context.model,
        "client": client if line.get("client") != "anon" else None,
        "identity": identity,
        "source": "bentoml",
        "request_id": _hex(line.get("request_id")),
        "status": 200,  # what failed is not logged
        "predicted": label(predicted),
        "scores": scores,
        "features": features,
        "input_features": inputs,
    }
    return {name: value for name, value in row.items() if value is not None}


def _is_vector(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_ITEMS:
        return False
    return all(not isinstance(item, str) and number(item) is not None for item in value)


def _hex(value: Any) -> str | None:
    """As the access log and the header x-bentoml-request-id write it."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 40:
        return f"{int(value):x}"
    return clean(value)


def _time(value: Any) -> float | None:
    """BentoML writes UTC without saying so."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


ADAPTER = Adapter("bentoml", "BentoML monitor data log", adapt)
