"""What an OpenAI-style exchange says about itself: model, tokens, parameters, and the text that was asked.

Pure functions of bytes. Bodies are the client's and may be anything: what is not as expected is left out.
"""

from __future__ import annotations

import contextlib
import json
import re
from math import isfinite
from typing import Any, Final, NamedTuple

__all__ = ["Asked", "asked", "written"]

MAX_TEXT: Final = 8_192  # characters of a text that are handed on
MAX_MODEL: Final = 256
MAX_IDS: Final = 1_024
_MAX_PARTS: Final = 64
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_FINISH: Final = re.compile(rb'"(?:finish_reason|stop_reason)"\s*:\s*"([^"\\]{1,64})"')
_MODEL: Final = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.){1,256})"')
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,200})"')
# What servers call the counts of tokens: ours, then theirs, in order of preference.
_COUNTS: Final = (
    ("input_tokens", ("prompt_tokens", "input_tokens")),
    ("output_tokens", ("completion_tokens", "output_tokens")),
)
_DETAILS: Final = (
    ("cached_tokens", ("prompt_tokens_details", "input_tokens_details"), "cached_tokens"),
    ("reasoning_tokens", ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
)


class Asked(NamedTuple):
    """What a request's body says."""

    fields: dict[str, Any]  # of a request record
    text: str  # the last thing that the user wrote, for sketches
    system: str  # instructions and earlier words, for patterns
    user: str  # the end user behind an aggregator's key, as the body names it: to be hashed


def asked(body: bytes) -> Asked | None:
    """Read a request's body; ``None`` where it is no JSON object."""
    try:
        loaded = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    if not isinstance(loaded, dict):
        return None
    fields = _parameters(loaded)
    if isinstance(model := loaded.get("model"), str) and model:
        fields["model"] = model[:MAX_MODEL]
    text, system = _texts(loaded)
    user = next((v for v in map(loaded.get, ("safety_identifier", "user")) if isinstance(v, str) and v), "")
    return Asked(fields, text[:MAX_TEXT], system[:MAX_TEXT], user)


def _parameters(body: dict[str, Any]) -> dict[str, Any]:
    """The parameters that extraction attacks turn: how much of the distribution is asked for."""
    fields: dict[str, Any] = {}
    for ours, theirs in (
        ("n", ("n",)),
        ("temperature", ("temperature",)),
        ("prompt_logprobs", ("prompt_logprobs",)),
        ("max_tokens", ("max_completion_tokens", "max_output_tokens", "max_tokens")),
    ):
        _put(fields, ours, next((value for name in theirs if (value := _number(body.get(name))) is not None), None))
    _put(fields, "logprobs", _logprobs(body))
    bias = body.get("logit_bias")
    if isinstance(bias, dict) and bias:
        fields["logit_bias"] = _ids(bias)
        fields["logit_bias_count"] = len(bias)
    allowed = body.get("allowed_token_ids")
    if isinstance(allowed, list) and allowed:
        fields["allowed_tokens"] = len(allowed)
    return fields


def _logprobs(body: dict[str, Any]) -> float | None:
    """How many alternatives a token were asked for: chat says true and a number beside it, completions a number."""
    said = body.get("logprobs")
    top = _number(body.get("top_logprobs"))
    if said is True:
        return max(top or 0, 1)
    if isinstance(said, bool):
        return 0
    return top if said is None else _number(said)


def _ids(bias: dict[str, Any]) -> list[int]:
    """Token ids that are biased; keys that are no numbers count, but have no id."""
    return [int(key) for key in list(bias)[:MAX_IDS] if key.isascii() and key.isdigit() and len(key) < 16]


def _texts(body: dict[str, Any]) -> tuple[str, str]:
    """(the last thing that the user wrote, what stands before it)."""
    turns = [("system", body.get("instructions")), ("user", body.get("prompt")), ("user", body.get("input"))]
    turns += _turns(body.get("messages")) + _turns(body.get("input"))
    user, before = "", []
    for role, content in turns:
        if not (words := _words(content)):
            continue
        if role in ("user", None):
            if user:
                before.append(user)
            user = words
        else:
            before.append(words)
    return user, "\n".join(before)


def _turns(messages: Any) -> list[tuple[Any, Any]]:
    if not isinstance(messages, list):
        return []
    return [(turn.get("role"), turn.get("content")) for turn in messages[-_MAX_PARTS:] if isinstance(turn, dict)]


def _words(content: Any) -> str:
    """The text of a content: a string, a list of strings, or parts of which some are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("text") if isinstance(part, dict) else part for part in content[:_MAX_PARTS]]
    if any(isinstance(part, dict) and "role" in part for part in content[:_MAX_PARTS]):
        return ""  # turns, see _turns
    return "\n".join(part[:MAX_TEXT] for part in parts if isinstance(part, str))


def written(body: bytes, *, whole: bool) -> tuple[dict[str, Any], Any]:
    """Read an answer: (fields of a request record, the answer itself where it is one whole JSON object).

    Parameters
    ----------
    body
        JSON, server-sent events, or what was kept of either: the first and the last pieces.
    whole
        Whether nothing is missing from it.
    """
    if whole and body[:1] in (b"{", b"["):
        try:
            loaded = json.loads(body)
        except (ValueError, RecursionError):
            loaded = None
        if isinstance(loaded, dict):
            return _answer(loaded), loaded
    return _scraped(body), None


def _answer(loaded: dict[str, Any]) -> dict[str, Any]:
    fields = _usage(loaded.get("usage"))
    for name, theirs in (("model", "model"), ("request_id", "id")):
        if isinstance(value := loaded.get(theirs), str) and value:
            fields[name] = value[:MAX_MODEL]
    choices = loaded.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else loaded
    reason = first.get("finish_reason") or first.get("stop_reason")
    if isinstance(reason, str) and reason:
        fields["finish_reason"] = reason[:64]
    return fields


def _scraped(body: bytes) -> dict[str, Any]:
    """From pieces: the last usage and finish reason that stand in them, the first model and id."""
    fields: dict[str, Any] = {}
    starts = [match.end() - 1 for match in _USAGE.finditer(body)]
    if starts:
        text = body[starts[-1] : starts[-1] + 4_096].decode("utf-8", "replace")
        with contextlib.suppress(ValueError, RecursionError):  # cut off: the server did not get to its end
            fields |= _usage(json.JSONDecoder().raw_decode(text)[0])
    if reasons := _FINISH.findall(body):
        fields["finish_reason"] = reasons[-1].decode("utf-8", "replace")
    for name, pattern in (("model", _MODEL), ("request_id", _ID)):
        if found := pattern.search(body):
            fields[name] = found[1].decode("utf-8", "replace")[:MAX_MODEL]
    return fields


def _usage(usage: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if not isinstance(usage, dict):
        return fields
    for ours, theirs in _COUNTS:
        _put(fields, ours, next((v for name in theirs if (v := _count(usage.get(name))) is not None), None))
    for ours, groups, name in _DETAILS:
        details: dict[str, Any] = next((usage[g] for g in groups if isinstance(usage.get(g), dict)), {})
        _put(fields, ours, _count(details.get(name)))
    return fields


def _put(fields: dict[str, Any], name: str, value: float | None) -> None:
    if value is not None:
        fields[name] = value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if -(2**53) <= value <= 2**53 else None
    return value if isfinite(value) and abs(value) <= 2**53 else None


def _count(value: Any) -> float | None:
    number = _number(value)
    return None if number is None or number < 0 else number
