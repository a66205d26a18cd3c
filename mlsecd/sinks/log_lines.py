"""The forensic log's lines: a structlog chain from a finding to the bytes of one line."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol

import msgspec
import structlog

from mlsecd.records import Finding
from mlsecd.sinks import ocsf
from mlsecd.sinks.chain import Link

__all__ = ["LineLogger", "LineTarget", "encode", "line_logger", "printable"]

_MAX_BODY_BYTES: Final = 128 * 1024  # a longer body keeps its size and hash; escapes make it 6 times longer at most


class LineTarget(Protocol):
    """Where finished lines go, and what the next one must carry."""

    @property
    def link(self) -> Link:
        """What the next line must carry."""

    def msg(self, line: bytes) -> None:
        """Write one line (without newline) and advance the link; raises :class:`OSError`."""


class LineLogger(structlog.BoundLoggerBase):
    """A structlog logger with the log's two verbs; both raise what the target's write raises."""

    def finding(self, finding: Finding) -> None:
        """Log a finding."""
        self._proxy_to_logger("msg", "finding", finding=finding)

    def control(self, type_: str, **fields: Any) -> None:
        """Log a line about the log itself: header, seal, repair, break, dropped, retention, malformed."""
        self._proxy_to_logger("msg", type_, fields=fields)


def line_logger(
    target: LineTarget,
    *,
    host: str,
    version: str,
    technique_names: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
) -> LineLogger:
    """The logger of one log; ``clock`` is the wall clock, seconds since the epoch."""
    events = ocsf.Events(host, version, technique_names or {})

    def to_body(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        finding = event.get("finding")
        if finding is None:
            return {"type": event["event"], **event["fields"]}
        try:
            return events.event(finding, round(clock() * 1000))
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            # a detector's mistake must not stop the log, nor vanish
            return {"type": "malformed", "id": ascii(finding.id)[:100], "error": ascii(str(error))[:500]}

    def chain(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        link = target.link
        return {"seq": link.seq, "prev": link.prev, **event}

    def render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> bytes:
        return encode(event)

    logger: LineLogger = structlog.wrap_logger(
        target, processors=[to_body, chain, render], wrapper_class=LineLogger
    ).bind()
    return logger


def _plain(value: Any) -> Any:
    """What msgspec does not know: numpy's values become Python's, anything else its ``ascii()``."""
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return ascii(value)[:1_000]


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_plain)


def encode(event: MutableMapping[str, Any]) -> bytes:
    """One line: valid JSON, safe to show on a terminal, of bounded length; it never fails.

    What cannot be encoded, or is too long, is replaced by a note of what was left out.
    """
    try:
        body = _ENCODER.encode(event)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        body = _ENCODER.encode(_without_evidence(event, {"unencodable": ascii(str(error))[:500]}))
    if len(body) > _MAX_BODY_BYTES:
        left_out = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        body = _ENCODER.encode(_without_evidence(event, {"truncated": left_out}))
    return printable(body)


def _without_evidence(event: MutableMapping[str, Any], note: dict[str, Any]) -> dict[str, Any]:
    """The event's own numbers and short texts, with ``note`` where the rest stood."""
    kept = {key: _short(value) for key, value in event.items() if isinstance(value, int | float | str)}
    found = event.get("unmapped", {}).get("mlsecd", {})
    slim = {key: _short(value) for key, value in found.items() if isinstance(value, int | float | str)}
    subject = {_short(kind): _short(name) for kind, name in found.get("subject", {}).items()}
    info = {"uid": slim.get("id", ""), "title": slim.get("detector", "")}
    metadata = {**event.get("metadata", {}), "is_truncated": True}
    slim |= {"subject": subject, "evidence": note}
    return {**kept, "metadata": metadata, "finding_info": info, "unmapped": {"mlsecd": slim}}


def _short(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value[:1_000].encode("utf-8", "backslashreplace").decode()


def printable(body: bytes) -> bytes:
    """JSON with every character that is not printable as an escape.

    JSON lets DEL, C1 controls, line separators and marks that turn text around stand as they are;
    they occur inside strings only, so an escape in their place means the same.
    """
    if body.isascii() and b"\x7f" not in body:
        return body
    text = body.decode()
    return "".join(char if char.isprintable() else _escaped(char) for char in text).encode()


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{int.from_bytes(units[at : at + 2], 'big'):04x}" for at in range(0, len(units), 2))
