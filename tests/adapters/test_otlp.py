"""OTLP exports: recorded from vLLM, made by hand in both encodings, and hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsecd.adapters import otlp
from mlsecd.adapters.base import Context
from mlsecd.errors import RecordError
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.taps.identity import Hasher

DATA = Path(__file__).parent.parent / "data" / "servers" / "otlp"
HASHER = Hasher(bytes(32))
CONTEXT = Context(HASHER, model="m")
PARAMETERS = {"max_tokens": 9, "logprobs": True, "top_logprobs": 5, "logit_bias": {"1": 2}}
START = 1_700_000_000_000_000_000


def value(raw: Any) -> dict[str, Any]:
    match raw:
        case bool():
            return {"boolValue": raw}
        case int():
            return {"intValue": str(raw)}
        case float():
            return {"doubleValue": raw}
        case str():
            return {"stringValue": raw}
        case _:
            return {"arrayValue": {"values": [value(item) for item in raw]}}


def span(attributes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "traceId": "ab" * 16,
        "spanId": "cd" * 8,
        "name": "chat",
        "startTimeUnixNano": str(START),
        "endTimeUnixNano": str(START + 1_500_000_000),
        "attributes": [{"key": key, "value": value(raw)} for key, raw in attributes.items()],
    } | fields


def export(*spans: Any) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}).encode()


def rows(adapted: Any) -> list[dict[str, Any]]:
    decoder = Decoder(Meters(), "test")
    n = sum(len(batch) for batch in decoder.decode(adapted.lines) if isinstance(batch, RequestBatch))
    made = [json.loads(line) for line in adapted.lines.splitlines()]
    assert n == len(made), decoder.samples
    return made


def row(attributes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    (made,) = rows(otlp.adapt(export(span(attributes, **fields)), CONTEXT, json=True))
    return made


def test_what_vllm_exported() -> None:
    pytest.importorskip("opentelemetry.proto")
    made = [otlp.adapt(path.read_bytes(), CONTEXT, json=False) for path in sorted(DATA.glob("*.pb"))]
    assert sum(one.lines.count(b"\n") for one in made) == 231
    assert (sum(one.bad for one in made), sum(one.skipped for one in made)) == (0, 12)  # 12 spans of its start
    first = rows(made[1] if made[1].lines else made[2])[0]
    assert first["request_id"].startswith("chatcmpl-")
    assert first["input_tokens"] > 0
    assert 0 < first["ttft_s"] <= first["duration_s"] + 0.1


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        (
            {"gen_ai.system": "vllm", "gen_ai.usage.prompt_tokens": 5, "gen_ai.usage.completion_tokens": 7},
            {"input_tokens": 5, "output_tokens": 7, "model": "m"},
        ),
        (
            {
                "gen_ai.provider.name": "openai",
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "gpt-4",
                "gen_ai.response.model": "gpt-4-0613",
                "gen_ai.usage.input_tokens": 52,
                "gen_ai.usage.output_tokens": 47,
                "gen_ai.usage.cache_read.input_tokens": 12,
                "gen_ai.usage.reasoning.output_tokens": 9,
                "gen_ai.request.max_tokens": 200,
                "gen_ai.response.finish_reasons": ["stop"],
                "gen_ai.response.id": "chatcmpl-9J3",
            },
            {
                "model": "gpt-4-0613",
                "input_tokens": 52,
                "output_tokens": 47,
                "cached_tokens": 12,
                "reasoning_tokens": 9,
                "max_tokens": 200,
                "finish_reason": "stop",
                "request_id": "chatcmpl-9J3",
            },
        ),
        ({"gen_ai.request.model": "x", "gen_ai.response.finish_reasons": '["length"]'}, {"finish_reason": "length"}),
        (
            {
                "openinference.span.kind": "EMBEDDING",
                "embedding.model_name": "e5",
                "embedding.embeddings.0.embedding.vector": [0.5, 1.0],
                "embedding.embeddings.0.embedding.text": "a secret",
            },
            {"model": "e5", "features": [0.5, 1.0]},
        ),
        (
            {
                "openinference.span.kind": "LLM",
                "llm.model_name": "claude",
                "llm.token_count.prompt": 3,
                "llm.token_count.completion": 4,
                "llm.invocation_parameters": json.dumps(PARAMETERS),
            },
            {
                "model": "claude",
                "input_tokens": 3,
                "output_tokens": 4,
                "max_tokens": 9,
                "logprobs": 5,
                "logit_bias_count": 1,
            },
        ),
        (
            {
                "mlsecd.features": [1.0, 2.0],
                "mlsecd.predicted": 7,
                "mlsecd.scores": [0.9, 0.1],
                "mlsecd.client": "k-ab",
            },
            {"features": [1.0, 2.0], "predicted": 7, "scores": [0.9, 0.1], "client": "k-ab"},
        ),
        (
            {
                "gen_ai.request.model": "x",
                "user.id": "ann",
                "client.address": "10.0.0.1",
                "http.response.status_code": 429,
            },
            {"client": HASHER.client("user", "ann"), "network": "10.0.0.1", "status": 429},
        ),
        (
            {"gen_ai.request.model": "x", "client.address": "10.0.0.1"},
            {"client": HASHER.client("peer", "10.0.0.1"), "identity": "unverified"},
        ),
    ],
)
def test_names_old_and_new(attributes: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = row(attributes)
    assert {name: made.get(name) for name in wanted} == wanted
    assert (made["ts"], made["duration_s"], made["source"]) == (1.7e9, 1.5, "otlp")
    assert "secret" not in json.dumps(made)


def test_protobuf_and_json_say_the_same() -> None:
    pytest.importorskip("opentelemetry.proto")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: PLC0415
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue  # noqa: PLC0415
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status  # noqa: PLC0415

    attributes = [
        KeyValue(key="gen_ai.request.model", value=AnyValue(string_value="x")),
        KeyValue(key="gen_ai.usage.input_tokens", value=AnyValue(int_value=5)),
        KeyValue(key="mlsecd.scores", value=AnyValue(array_value=ArrayValue(values=[AnyValue(double_value=0.5)] * 2))),
    ]
    one = Span(
        trace_id=b"\xab" * 16,
        span_id=b"\xcd" * 8,
        start_time_unix_nano=START,
        end_time_unix_nano=START + 1_500_000_000,
        status=Status(code=Status.STATUS_CODE_ERROR),
        attributes=attributes,
    )
    message = ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[one])])])
    (from_protobuf,) = rows(otlp.adapt(message.SerializeToString(), CONTEXT, json=False))
    from_json = row(
        {"gen_ai.request.model": "x", "gen_ai.usage.input_tokens": 5, "mlsecd.scores": [0.5, 0.5]}, status={"code": 2}
    )
    assert from_protobuf == from_json
    assert from_json["status"] == 500


def test_spans_that_tell_of_no_request_are_left_aside() -> None:
    spans = [
        span({"db.system": "redis"}),
        span({"gen_ai.operation.name": "execute_tool", "gen_ai.request.model": "x"}),
        span({"openinference.span.kind": "TOOL", "llm.model_name": "x"}),
    ]
    assert otlp.adapt(export(*spans), CONTEXT, json=True) == (b"", 0, 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"traceId": "q6urq6urq6urq6urq6urqw=="},  # base64, as protobuf's own JSON writes it
        {"spanId": "cd"},
        {"startTimeUnixNano": "0"},
        {"startTimeUnixNano": None},
        {"startTimeUnixNano": "-5"},
        {"startTimeUnixNano": 10**400},
        {"endTimeUnixNano": 2**64 - 1},
    ],
)
def test_spans_that_are_rejected(fields: dict[str, Any]) -> None:
    adapted = otlp.adapt(export(span({"gen_ai.request.model": "x"}, **fields)), CONTEXT, json=True)
    assert (adapted.lines, adapted.bad) == (b"", 1)


def test_ten_thousand_attributes() -> None:
    attributes = {"gen_ai.request.model": "x"} | {f"k{at}": "v" * 100 for at in range(10_000)}
    assert row(attributes)["model"] == "x"
    late = {f"k{at}": 1 for at in range(otlp.MAX_ATTRIBUTES)} | {"gen_ai.request.model": "x"}
    assert otlp.adapt(export(span(late)), CONTEXT, json=True).skipped == 1  # looked at no further


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b'{"a":' * 10_000])
def test_what_is_no_export(data: bytes) -> None:
    with pytest.raises(RecordError):
        otlp.adapt(data, CONTEXT, json=True)
    pytest.importorskip("opentelemetry.proto")
    with pytest.raises(RecordError):
        otlp.adapt(b"\xff\xff\xff", CONTEXT, json=False)


jsonish = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["stringValue", "intValue", "arrayValue", "values", "doubleValue"]), inner)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=80)
@given(
    st.dictionaries(st.sampled_from(sorted(otlp.WANTED)), jsonish, max_size=8),
    st.dictionaries(st.text(max_size=4), jsonish),
)
def test_whatever_comes_what_leaves_is_taken(attributes: dict[str, Any], more: dict[str, Any]) -> None:
    one = span({}) | more
    one["attributes"] = [{"key": key, "value": raw} for key, raw in attributes.items()]
    rows(otlp.adapt(export(one, more), CONTEXT, json=True))
