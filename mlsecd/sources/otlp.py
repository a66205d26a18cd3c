"""Spans of instrumented servers over OTLP/HTTP: who did what, as far as a span says it. Off by default."""

from __future__ import annotations

import json
from typing import Final

from mlsecd.adapters import otlp
from mlsecd.adapters.base import Adapted, Context
from mlsecd.errors import RecordError
from mlsecd.sources.http_exchange import Answer, Refused, Request
from mlsecd.sources.http_receiver import ReceiverParams
from mlsecd.sources.posted import PostedSource

__all__ = ["SOURCE", "Otlp", "OtlpParams"]

_PROTOBUF: Final = "application/x-protobuf"
_JSON: Final = "application/json"


class OtlpParams(ReceiverParams, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the OTLP receiver."""


class Otlp(PostedSource):
    """``POST /v1/traces``, protobuf or JSON, gzip or not; the answer has the request's type."""

    name = "otlp"
    summary = "spans of inference servers and gateways, over OTLP/HTTP"
    Params = OtlpParams
    paths = frozenset({"/v1/traces"})
    types = frozenset({_PROTOBUF, _JSON})

    def supported(self) -> str | None:
        """``None`` where it was told where to listen and can read what comes."""
        return super().supported() or otlp.missing()

    def adapt(self, request: Request, context: Context) -> tuple[Adapted, Answer]:
        """Record lines of an export, and its response: empty, or with the number of rejected spans."""
        is_json = request.content_type == _JSON
        try:
            adapted = otlp.adapt(request.body, context, json=is_json)
        except RecordError as error:
            raise Refused(400, str(error)) from error
        why = "a span without a valid trace id, span id or start time"
        if is_json:
            partial = (
                {"partialSuccess": {"rejectedSpans": str(adapted.bad), "errorMessage": why}} if adapted.bad else {}
            )
            return adapted, Answer(200, json.dumps(partial).encode(), _JSON)
        return adapted, Answer(200, _partial(adapted.bad, why), _PROTOBUF)


def _partial(rejected: int, why: str) -> bytes:
    """ExportTraceServiceResponse: nothing, or field 1, partial_success, of rejected_spans (1) and error_message (2)."""
    if not rejected:
        return b""
    text = why.encode()
    inner = b"\x08" + _varint(rejected) + b"\x12" + _varint(len(text)) + text
    return b"\x0a" + _varint(len(inner)) + inner


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


SOURCE = Otlp
