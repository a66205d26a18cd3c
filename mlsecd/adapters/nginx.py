"""nginx's access log as JSON lines, in the format of docs/integrations/nginx.md. Over syslog, too.

A caller that the decision service or nginx named is verified, unless it was turned away with 401 or let through
unasked (``verdict`` is ``fail_open``). A key that the log carries (``authorization``: only over the Unix socket,
never in a file) is hashed as the tap hashes it.
"""

from __future__ import annotations

import functools
from typing import Final

import msgspec

from mlsecd.adapters.base import (
    BAD,
    END_OF_TIME,
    MAX_SECONDS,
    MAX_TEXT,
    Adapted,
    Adapter,
    Context,
    clean,
    count,
    label,
    lines_of,
    number,
    who,
)

__all__ = ["ADAPTER"]

_CLOSED_BY_CLIENT: Final = 499


class _Line(msgspec.Struct, gc=False):
    """A line's fields that are looked at; nginx writes what it has no value for as "" or "-"."""

    msec: float | str
    uri: str
    status: int | str = ""
    request_time: float | str = 0.0
    request_id: str = ""
    client: str = ""
    verdict: str = ""
    peer: str = ""
    user: str = ""
    authorization: str = ""
    tls_subject: str = ""
    tls_verify: str = ""
    user_agent: str = ""
    complete: str | None = None  # $request_completion: "OK", or "" where the client left
    model: str = ""
    input_tokens: int | str = ""
    output_tokens: int | str = ""
    predicted: int | str = ""


class _Record(msgspec.Struct, gc=False, omit_defaults=True):
    """What leaves, in our names: a Struct is made and written in half of a dictionary's time."""

    ts: float
    model: str
    client: str | None = None
    identity: str | None = None
    duration_s: float | None = None
    status: int | None = None
    aborted: bool | None = None
    route: str | None = None
    request_id: str | None = None
    network: str | None = None
    user_agent: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    predicted: int | str | None = None
    source: str | None = None


_decode: Final = msgspec.json.Decoder(_Line).decode
_decode_all: Final = msgspec.json.Decoder(_Line).decode_lines


def adapt(data: bytes, context: Context) -> Adapted:
    """Access-log lines to request records."""
    lines, bad = _read(data)
    rows = [row for line in lines if (row := _row(line, context)) is not None]
    return Adapted(lines_of(rows), bad + len(lines) - len(rows))


def _read(data: bytes) -> tuple[list[_Line], int]:
    """All lines at once where all are good, which is the rule; else one by one."""
    try:
        return _decode_all(data), 0
    except BAD:
        pass
    found, bad = [], 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            found.append(_decode(line))
        except BAD:
            try:  # nginx copies bytes as they come: a user agent need not be UTF-8
                found.append(_decode(line.decode("utf-8", "replace")))
            except BAD:
                bad += 1
    return found, bad


def _row(line: _Line, context: Context) -> _Record | None:
    end = line.msec if type(line.msec) is float else number(line.msec)
    took = line.request_time if type(line.request_time) is float else number(line.request_time)
    if end is None or took is None or not (0 <= took <= end < END_OF_TIME and took <= MAX_SECONDS):
        return None
    status = count(line.status)
    client, identity = _who(line, status, context)
    row = _Record(
        round(end - took, 6),
        clean(line.model) or context.model if line.model else context.model,
        client,
        identity,
        duration_s=took,
        status=status,
        aborted=status == _CLOSED_BY_CLIENT or line.complete == "",
        route=_route(line.uri),
        request_id=clean(line.request_id),
        network=line.peer[:MAX_TEXT] or None,
        source="nginx",
    )
    if line.user_agent:
        row.user_agent = context.hasher.opaque(line.user_agent[:MAX_TEXT])
    if line.input_tokens != "":
        row.input_tokens = count(line.input_tokens)
    if line.output_tokens != "":
        row.output_tokens = count(line.output_tokens)
    if line.predicted != "":
        row.predicted = label(line.predicted)
    return row


@functools.lru_cache(1024)
def _route(uri: str) -> str | None:
    return clean(uri.partition("?")[0])


def _who(line: _Line, status: int | None, context: Context) -> tuple[str | None, str | None]:
    refused = status == 401
    if line.authorization and not refused:
        kind, _, secret = line.authorization.partition(" ")
        if kind.lower() == "bearer" and secret.strip():
            checked = line.client and line.verdict != "fail_open"
            return context.hasher.client("bearer", secret.strip()), "verified" if checked else None
    if line.client.startswith("k-") and line.verdict != "fail_open":  # the common case, made short
        return line.client[:MAX_TEXT], "unverified" if refused else "verified"
    subject = line.tls_subject if line.tls_verify == "SUCCESS" else ""
    asked = line.client if line.verdict != "fail_open" else ""
    client, identity = who(context.hasher, client=asked, user=line.user, subject=subject, peer=line.peer)
    return client, "unverified" if refused else identity


ADAPTER = Adapter("nginx", "nginx access log, JSON lines or syslog", adapt)
