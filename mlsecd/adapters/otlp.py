"""OTLP trace exports, protobuf or JSON, to request records: docs/integrations/otlp.md.

Protobuf needs the package opentelemetry-proto (``pip install mlsecd[otlp]``); JSON needs nothing, and is read by hand:
ids are hex there, which protobuf's own JSON reader takes for base64. Spans that tell of no request to a model are
taken and left aside; a span without an id or a start is rejected.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec

from mlsecd.adapters._otlp_fields import WANTED, is_request, record_of
from mlsecd.adapters.base import BAD, Adapted, Context, lines_of, timely
from mlsecd.errors import RecordError

__all__ = ["MAX_ATTRIBUTES", "adapt", "missing"]

MAX_ATTRIBUTES: Final = 1_024  # of a span that are looked at
_MAX_DEPTH: Final = 4
_ERROR: Final = 2  # STATUS_CODE_ERROR
_SCALARS: Final = frozenset({"string_value", "int_value", "double_value", "bool_value"})
_TRACE_ID: Final = re.compile("[0-9a-fA-F]{32}")
_SPAN_ID: Final = re.compile("[0-9a-fA-F]{16}")


class _Span(NamedTuple):
    valid: bool
    start: int  # ns since the epoch
    end: int
    failed: bool
    attributes: dict[str, Any]  # the wanted ones


def missing() -> str | None:
    """Why protobuf cannot be read here; ``None`` where it can."""
    try:
        _message()
    except ImportError:
        return "opentelemetry-proto is not installed: pip install 'mlsecd[otlp]'"
    return None


@functools.cache
def _message() -> Any:
    module = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    return module.ExportTraceServiceRequest


def adapt(data: bytes, context: Context, *, json: bool) -> Adapted:
    """An ExportTraceServiceRequest to request records; ``bad`` counts rejected spans, ``skipped`` the others.

    Raises
    ------
    RecordError
        It is none.
    """
    rows: list[dict[str, Any]] = []
    bad = skipped = 0
    for span in _from_json(data) if json else _from_protobuf(data):
        start, end = span.start / 1e9, max(span.end, span.start) / 1e9
        if not span.valid or start <= 0 or not timely(start, end - start):
            bad += 1
        elif not is_request(span.attributes):
            skipped += 1
        else:
            rows.append(record_of(start, end, span.failed, span.attributes, context))
    return Adapted(lines_of(rows), bad, skipped)


def _from_protobuf(data: bytes) -> Iterator[_Span]:
    try:
        message = _message().FromString(data)
    except ImportError:
        raise RecordError(str(missing())) from None
    except Exception as error:
        raise RecordError(f"not an ExportTraceServiceRequest: {type(error).__name__}") from error
    for resource in message.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _Span(
                    len(span.trace_id) == 16 and len(span.span_id) == 8,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == _ERROR,
                    _attributes(span.attributes),
                )


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    """The wanted attributes. Of a name given twice the last counts; the specification lets none be."""
    found: dict[str, Any] = {}
    for pair in islice(pairs, MAX_ATTRIBUTES):
        key = pair.key
        if key in WANTED:
            value = pair.value
            kind = value.WhichOneof("value")
            # the kinds that nearly all are of, without a call: a quarter of the time that a span takes
            if kind == "int_value":
                found[key] = value.int_value
            elif kind == "double_value":
                found[key] = value.double_value
            elif kind == "string_value":
                found[key] = value.string_value
            else:
                found[key] = _value(value)
    return found


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind in _SCALARS:
        return getattr(value, kind)
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values[: MAX_ATTRIBUTES + 1]]
    return None


def _from_json(data: bytes) -> Iterator[_Span]:
    try:
        message = msgspec.json.decode(data, type=dict[str, Any])
    except BAD as error:
        raise RecordError("not JSON, or no object") from error
    for resource in _list(message, "resourceSpans"):
        for scope in _list(resource, "scopeSpans"):
            for span in _list(scope, "spans"):
                yield _span(span)


def _span(span: Any) -> _Span:
    if not isinstance(span, dict):
        return _Span(valid=False, start=0, end=0, failed=False, attributes={})
    status = span.get("status")
    attributes: dict[str, Any] = {}
    for pair in _list(span, "attributes")[:MAX_ATTRIBUTES]:
        if isinstance(pair, dict) and (key := pair.get("key")) in WANTED:
            attributes[key] = _json_value(pair.get("value"))
    return _Span(
        bool(_matches(_TRACE_ID, span.get("traceId")) and _matches(_SPAN_ID, span.get("spanId"))),
        _int(span.get("startTimeUnixNano")) or 0,
        _int(span.get("endTimeUnixNano")) or 0,
        isinstance(status, dict) and status.get("code") == _ERROR,
        attributes,
    )


def _json_value(value: Any, depth: int = 0) -> Any:
    if not isinstance(value, dict) or depth > _MAX_DEPTH:
        return None
    if "intValue" in value:
        return _int(value["intValue"])
    if "arrayValue" in value:
        return [_json_value(item, depth + 1) for item in _list(value["arrayValue"], "values")[: MAX_ATTRIBUTES + 1]]
    return next((value[name] for name in ("stringValue", "doubleValue", "boolValue") if name in value), None)


def _int(value: Any) -> int | None:
    """64-bit integers are decimal strings in OTLP's JSON; plain numbers are accepted."""
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) <= 20:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64 else None


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _list(holder: Any, name: str) -> list[Any]:
    found = holder.get(name) if isinstance(holder, dict) else None
    return found if isinstance(found, list) else []
