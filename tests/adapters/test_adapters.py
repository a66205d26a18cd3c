"""Adapters on what real servers wrote, and on what a hostile client makes them write."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsecd.adapters import base
from mlsecd.adapters.base import Adapted, Context, adapters
from mlsecd.jsonlines import Decoder, wire
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.taps.identity import Hasher

DATA = Path(__file__).parent.parent / "data" / "servers"
HASHER = Hasher(bytes(32))
CONTEXT = Context(HASHER, model="m", now=1.7e9, monotonic_offset=1.7e9)
NAMES = ("bentoml", "dynamo", "envoy", "litellm", "nginx", "sglang", "triton")


def taken(adapted: Adapted) -> list[dict[str, Any]]:
    """The records, each of which the daemon must take."""
    decoder = Decoder(Meters(), "test")
    n = sum(len(batch) for batch in decoder.decode(adapted.lines) if isinstance(batch, RequestBatch))
    rows = [json.loads(line) for line in adapted.lines.splitlines()]
    assert n == len(rows), decoder.samples
    return rows


def adapt(name: str, *lines: Any) -> list[dict[str, Any]]:
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return taken(adapters()[name].adapt(data, CONTEXT))


def one(name: str, line: Any) -> dict[str, Any]:
    (row,) = adapt(name, line)
    return row


def test_they_find_themselves() -> None:
    assert tuple(adapters()) == NAMES


def test_they_know_the_limits_of_the_wire() -> None:
    assert (base.END_OF_TIME, base.MAX_SECONDS, base.MAX_TEXT) == (wire.END_OF_TIME, wire.MAX_SECONDS, wire.MAX_TEXT)
    for start, took in ((7_289_654_400.0, 1.0), (1.7e9, 4e7)):
        call = CALL | {"startTime": start, "endTime": start + took}
        line = NGINX | {"msec": start + took, "request_time": took}
        for name, one in (("litellm", call), ("nginx", line)):
            assert adapters()[name].adapt(json.dumps(one).encode(), CONTEXT) == (b"", 1, 0)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["-", "k-a", "9"])
)
WORDS = (
    "ts msec uri status request_time request_id client peer start_time response_code duration path startTime endTime id"
    " metadata model_parameters user_api_key_hash logprobs logit_bias request_parameters e2e_latency finish_reason"
    " event event_type event_time_unix_ms request total_time_ms timestamp label probs features timestamps name ns"
    " tensor data shape dtype activity model_name model prompt_tokens output_tokens user_agent complete authorization"
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS.split()), inner, max_size=6),
    max_leaves=10,
)
lines = st.lists(
    st.binary(max_size=40)
    | st.dictionaries(st.sampled_from(WORDS.split()), values, max_size=12).map(lambda one: json.dumps(one).encode()),
    max_size=5,
)


@settings(max_examples=40)
@pytest.mark.parametrize("name", NAMES)
@given(lines=lines)
def test_whatever_comes_what_leaves_is_taken(name: str, lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    if name == "triton":
        data = b"[" + b",".join(lines) + b"]"
    taken(adapters()[name].adapt(data, CONTEXT))


RECORDED = {
    "bentoml": "bentoml_monitor.jsonl",
    "dynamo": "dynamo_trace.jsonl",
    "envoy": "envoy_ai_gateway.jsonl",
    "litellm": "litellm.json",
    "nginx": "nginx_access.jsonl",
    "sglang": "sglang_requests.jsonl",
    "triton": "triton_trace.json",
}
ODD = (
    *(-1, 2**53 + 1, 2**63, 2**64, 10**400, 1e300, 7_289_654_400),
    *("1e19", "1e300", "1e999", "nan", "9" * 5_000, "x" * 300, "\ud800", "", "2201-01-01T00:00:00Z"),
    *([], {}, [1e300], ["x"], None, True),
)
Place = tuple[str | int, ...]


def wrong(old: Any) -> st.SearchStrategy[Any]:
    """Anything, and as often what is odd, but of the kind that is read there."""
    kind = (int, float) if isinstance(old, int | float) else type(old)
    odd = st.sampled_from([value for value in ODD if isinstance(value, kind)])
    return st.booleans().flatmap(lambda any_: scalars if any_ else odd)


@functools.cache
def recorded(name: str) -> tuple[Any, dict[Place, Any]]:
    """The beginning of a recording, with the text in it that is JSON read as such, and its values by their places."""
    text = (DATA / RECORDED[name]).read_text()
    first = json.loads(text if name in ("litellm", "triton") else text.partition("\n")[0])
    if name == "sglang":
        first["request_parameters"] = json.loads(first["request_parameters"])
    return first, dict(values_of(first))


def values_of(value: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*at, key), one
        yield from values_of(one, (*at, key))


def changed(value: Any, at: Place, new: Any) -> Any:
    """A copy with another value there, if that place is there yet."""
    if not at:
        return new
    there = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    if at[0] not in there:
        return value
    copy = value.copy()
    copy[at[0]] = changed(value[at[0]], at[1:], new)
    return copy


@settings(max_examples=150)
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_recording_with_wrong_values_in_it_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    found, there = recorded(name)
    for at in data.draw(st.lists(st.sampled_from(list(there)), min_size=1, max_size=4)):
        found = changed(found, at, data.draw(wrong(there[at])))
    if name == "sglang" and isinstance(found["request_parameters"], dict):
        found = found | {"request_parameters": json.dumps(found["request_parameters"])}
    taken(adapters()[name].adapt(json.dumps(found).encode(), CONTEXT))


@pytest.mark.parametrize("name", NAMES)
def test_nesting_and_rubbish_are_counted(name: str) -> None:
    for data in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{", b"null"):
        adapted = adapters()[name].adapt(data, CONTEXT)
        assert adapted.lines == b""
        assert adapted.bad >= 1
    assert adapters()[name].adapt(b"[]" if name in ("triton", "litellm") else b"\n \n", CONTEXT) == (b"", 0, 0)


# nginx


def test_nginx_cases() -> None:
    rows = adapt("nginx", *(DATA / "nginx_cases.jsonl").read_bytes().splitlines())
    by_status = {row["status"]: row for row in rows}
    assert by_status[403]["client"] == "k-e26184f0"
    assert by_status[403]["identity"] == "verified"
    assert by_status[401]["identity"] == "unverified"
    assert by_status[429]["client"] == "k-a32f88b3"
    assert rows[0]["ts"] == pytest.approx(1795378067.151 - 0.005)
    assert rows[0]["duration_s"] == 0.005
    opened = [row for row in rows if row["client"] == HASHER.client("peer", "127.0.0.1")]
    assert opened
    assert all(row["identity"] == "unverified" for row in opened)


NGINX = {"msec": 1.7e9, "request_time": 0.5, "uri": "/v1/x?key=secret", "status": 200, "peer": "10.0.0.1"}


def test_nginx_identities() -> None:
    cases = {
        "k-abc": {"client": "k-abc"},
        HASHER.client("bearer", "sk-1"): {"authorization": "Bearer sk-1"},
        HASHER.client("user", "ann"): {"user": "ann"},
        HASHER.client("mtls", "CN=a"): {"tls_subject": "CN=a", "tls_verify": "SUCCESS"},
        HASHER.client("peer", "10.0.0.1"): {"tls_subject": "CN=a", "tls_verify": "FAILED"},
    }
    for client, fields in cases.items():
        assert one("nginx", NGINX | fields)["client"] == client
    guess = one("nginx", NGINX | {"authorization": "Bearer sk-guess", "status": 401})
    assert guess["client"] == HASHER.client("peer", "10.0.0.1")
    assert "identity" not in one("nginx", NGINX | {"authorization": "Bearer sk-1"})
    fails_open = NGINX | {"client": "k-forged", "verdict": "fail_open"}
    assert one("nginx", fails_open)["client"] == HASHER.client("peer", "10.0.0.1")


def test_nginx_says_what_ended_early() -> None:
    assert one("nginx", NGINX | {"complete": ""})["aborted"]
    assert not one("nginx", NGINX | {"complete": "OK"})["aborted"]
    assert not one("nginx", NGINX)["aborted"]
    assert one("nginx", NGINX | {"status": "499"})["aborted"]


@pytest.mark.parametrize("status", [-1, 2**53 + 1, 10**400, "-1", "1e300"])
def test_a_status_that_is_none_does_not_cost_the_line(status: int | str) -> None:
    assert "status" not in one("nginx", NGINX | {"status": status})


def test_no_client_keeps_its_line_from_being_read() -> None:
    hostile = json.dumps(NGINX | {"user_agent": "X"}).encode().replace(b'"X"', b'"\xff\xfe\x80"')
    rows = adapt(
        "nginx", hostile, NGINX | {"uri": "/" + "a" * 9_000, "request_id": "r" * 9_000, "user_agent": "u" * 9_000}
    )
    assert len(rows) == 2
    assert rows[0]["route"] == "/v1/x"  # what stands behind "?" may be a secret
    for name in ("envoy", "bentoml", "dynamo", "sglang"):
        assert name in adapters()


# Envoy


def test_envoy_cases() -> None:
    rows = adapt("envoy", *(DATA / "envoy_cases.jsonl").read_bytes().splitlines())
    assert {row["status"] for row in rows} >= {200, 401, 403, 429}
    opened = [line for line in (DATA / "envoy_cases.jsonl").read_text().splitlines() if '"fail_open":"true"' in line]
    peers = [row for row in rows if row["client"] == HASHER.client("peer", "127.0.0.1") and row["status"] == 200]
    assert len(peers) >= len(opened) > 0


def test_envoy_denials_and_aborts() -> None:
    rows = adapt("envoy", *(DATA / "envoy_access.jsonl").read_bytes().splitlines())
    denied = [row for row in rows if row["status"] in (403, 429)]
    assert {row["client"] for row in denied} == {"k-e26184f0", "k-a32f88b3"}
    assert sum(row["aborted"] for row in rows) == 1


def test_envoy_ai_gateway() -> None:
    llm, mcp = adapt("envoy", *(DATA / "envoy_ai_gateway.jsonl").read_bytes().splitlines())
    assert (llm["model"], llm["input_tokens"], llm["output_tokens"]) == ("gpt-4o-mini", 15, 7)
    assert (llm["route"], llm["network"], llm["duration_s"]) == ("/v1/chat/completions", "127.0.0.1", 1.526)
    assert llm["request_id"] == "83b63da3-45a9-4196-98b8-1a7f697d6d8d"
    assert mcp["model"] == "m"
    assert "input_tokens" not in mcp


# LiteLLM

CALL = {
    "id": "chatcmpl-1",
    "call_type": "acompletion",
    "status": "success",
    "stream": True,
    "startTime": 1.7e9,
    "endTime": 1.7e9 + 2,
    "completionStartTime": 1.7e9 + 0.5,
    "model": "gpt-4o",
    "model_group": "gpt",
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "requester_ip_address": "10.0.0.1",
    "end_user": "eve@example.org",
    "metadata": {"user_api_key_hash": "ab" * 32, "user_api_key_alias": "team-a"},
    "model_parameters": {"logprobs": True, "top_logprobs": 20, "logit_bias": {"5": 1}, "max_tokens": 1},
    "messages": [{"role": "user", "content": "a secret prompt"}],
    "response": {"choices": []},
}


@pytest.mark.parametrize("form", ["array", "single", "lines"])
def test_litellm_in_each_of_its_formats(form: str) -> None:
    call = json.dumps(CALL).encode()
    data = {"array": b"[" + call + b"]", "single": call, "lines": call + b"\n"}[form]
    (row,) = taken(adapters()["litellm"].adapt(data, CONTEXT))
    assert row["client"] == HASHER.client("bearer", "ab" * 32)
    assert row["user"] == HASHER.client("user", "eve@example.org")
    wanted = {
        "model": "gpt",
        "status": 200,
        "input_tokens": 10,
        "output_tokens": 20,
        "identity": "verified",
        "logprobs": 20,
    }
    wanted |= {"duration_s": 2.0, "ttft_s": 0.5, "logit_bias_count": 1, "max_tokens": 1, "network": "10.0.0.1"}
    assert {name: row.get(name) for name in wanted} == wanted
    assert "secret" not in json.dumps(row)
    assert "eve@" not in json.dumps(row)


def test_litellm_as_it_was_recorded() -> None:
    """Alice's chat, Bob's stream, a key that is none, a model that is none."""
    chat, stream, guess, unknown = taken(adapters()["litellm"].adapt((DATA / "litellm.json").read_bytes(), CONTEXT))
    alice, bob = (HASHER.client("bearer", hashlib.sha256(key).hexdigest()) for key in (b"sk-alice", b"sk-bob"))
    assert [row.get("client") for row in (chat, stream, guess, unknown)] == [alice, bob, None, alice]
    assert [row["identity"] for row in (chat, stream, guess)] == ["verified", "verified", "unverified"]
    assert [row["status"] for row in (chat, stream, guess, unknown)] == [200, 200, 401, 400]
    wanted = {"input_tokens": 7, "output_tokens": 5, "max_tokens": 5, "route": "/v1/chat/completions", "model": "tiny"}
    for row in (chat, stream):
        assert {name: row[name] for name in wanted} == wanted
    assert (chat["logprobs"], chat["logit_bias_count"], chat["temperature"]) == (7, 1, 0.5)
    assert chat["user"] == HASHER.client("user", "end-user-1")
    assert stream["ttft_s"] == pytest.approx(0.433, abs=1e-3)
    assert "ttft_s" not in chat
    assert "input_tokens" not in guess, "0 is what it says of a call that failed"


def test_litellm_failures() -> None:
    failed = CALL | {"status": "failure", "error_information": {"error_code": "401"}, "metadata": None}
    row = one("litellm", failed)
    assert (row["status"], row["identity"]) == (401, "unverified")
    assert row["client"] == HASHER.client("peer", "10.0.0.1")


# SGLang, Dynamo


def test_sglang() -> None:
    parameters = {
        "rid": "r-1",
        "text": "a secret prompt",
        "return_logprob": True,
        "top_logprobs_num": 5,
        "sampling_params": {"max_new_tokens": 16, "temperature": 0.7, "n": 2},
    }
    line = {
        "request_parameters": json.dumps(parameters),
        "id": "r-1",
        "finish_reason": {"type": "length", "length": 16},
        "prompt_tokens": 9,
        "completion_tokens": 16,
        "cached_tokens": 4,
        "e2e_latency": 0.75,
        "first_token_latency": 0.25,
        "request_received_ts": 1.7e9,
    }
    row = one("sglang", line)
    wanted = {"ts": 1.7e9, "request_id": "r-1", "input_tokens": 9, "output_tokens": 16, "cached_tokens": 4, "n": 2}
    wanted |= {
        "duration_s": 0.75,
        "ttft_s": 0.25,
        "logprobs": 5,
        "max_tokens": 16,
        "finish_reason": "length",
        "aborted": False,
        "model": "m",
    }
    assert {name: row.get(name) for name in wanted} == wanted
    assert "secret" not in json.dumps(row)
    assert one("sglang", line | {"request_received_ts": None})["ts"] == CONTEXT.now - 0.75
    assert one("sglang", line | {"finish_reason": {"type": "abort"}})["aborted"]


def test_sglang_as_its_exporter_writes() -> None:
    """A request to its end, and one that was given up in the queue; text stands in the lines, and goes nowhere."""
    done, given_up = adapt("sglang", *(DATA / "sglang_requests.jsonl").read_bytes().splitlines())
    wanted = {"request_id": "r-1", "ts": 1795685074.25, "duration_s": 0.75, "ttft_s": 0.125, "input_tokens": 9}
    wanted |= {"output_tokens": 16, "cached_tokens": 4, "max_tokens": 16, "temperature": 0.7, "logit_bias_count": 1}
    wanted |= {"logprobs": 5, "finish_reason": "length", "aborted": False}
    assert {name: done.get(name) for name in wanted} == wanted
    assert (given_up["aborted"], given_up["ts"]) == (True, 1795685075.5)
    assert "licences" not in json.dumps([done, given_up])


def test_dynamo() -> None:
    event = {
        "schema": "dynamo.request.trace.v1",
        "event_type": "request_end",
        "event_time_unix_ms": 1_700_000_001_000,
        "agent_context": {"session_id": "s-1"},
        "request": {
            "request_id": "d-1",
            "x_request_id": "r-1",
            "model": "llama",
            "request_received_ms": 1_700_000_000_000,
            "total_time_ms": 900.0,
            "ttft_ms": 50.0,
            "input_tokens": 7,
            "output_tokens": 4,
            "finish_reason_metadata": {"finish_reason": "stop"},
        },
    }
    for line in (event, {"timestamp": 5, "event": event}):
        row = one("dynamo", line)
        assert (row["ts"], row["duration_s"], row["ttft_s"]) == (1.7e9, 0.9, 0.05)
        assert (row["request_id"], row["model"], row["output_tokens"]) == ("r-1", "llama", 4)
        assert row["user"] == HASHER.client("user", "s-1")
    tool = {"timestamp": 5, "event": {"event_type": "tool_end", "tool": {}}}
    assert adapters()["dynamo"].adapt(json.dumps(tool).encode(), CONTEXT) == (b"", 0, 1)


def test_dynamo_as_it_was_recorded() -> None:
    """Three with a session, which alone makes it say model and request id; a stream, one that is left, a completion."""
    rows = adapt("dynamo", *(DATA / "dynamo_trace.jsonl").read_bytes().splitlines())
    assert len(rows) == 7
    told, untold = rows[:3], rows[3:6]
    assert [row["request_id"] for row in told] == ["r-0", "r-1", "r-2"]
    assert {row["user"] for row in told} == {HASHER.client("user", "s-1")}
    assert {(row["model"], row["input_tokens"], row["output_tokens"], row["finish_reason"]) for row in told} == {
        ("tiny", 20, 5, "length")
    }
    assert [(row["model"], row["output_tokens"]) for row in untold] == [("m", 9), ("m", 1), ("m", 3)]
    assert all("user" not in row and "client" not in row for row in untold)
    assert all(0 < row["ttft_s"] < row["duration_s"] < 1 for row in rows)
    assert rows[0]["ts"] == 1795686312.766


# BentoML, Triton


def test_bentoml_monitor() -> None:
    rows = adapt("bentoml", *(DATA / "bentoml_monitor.jsonl").read_bytes().splitlines())
    assert [row["client"] for row in rows[:2]] == ["k-0", "k-1"]
    assert rows[0]["predicted"] == 4
    assert len(rows[0]["scores"]) == 10
    assert len(rows[0]["features"]) == 64
    assert rows[0]["ts"] == pytest.approx(1795378800.981748)  # 2026-11-22T20:20:00 UTC
    assert rows[0]["request_id"] == f"{17353727495268455093:x}"
    assert "client" not in one("bentoml", {"timestamp": "2026-11-22T20:20:00", "client": "anon", "label": 1})


def test_triton_tensors() -> None:
    (row,) = taken(adapters()["triton"].adapt((DATA / "triton_trace.json").read_bytes(), CONTEXT))
    assert (row["model"], row["predicted"], row["request_id"]) == ("digits", 1, "req-1")
    assert len(row["scores"]) == 10
    assert len(row["input_features"]) == 64
    assert row["ts"] == pytest.approx(1.7e9 + 8888.290882, abs=1e-5)
    assert row["duration_s"] == pytest.approx(0.002047895)


def test_triton_batches_are_a_request_a_row() -> None:
    tensor = {"name": "out", "data": "0.25,0.75,0.5,0.5", "shape": "2,2", "dtype": "FP32"}
    events = [
        {"id": 1, "model_name": "m", "model_version": 1, "request_id": "r"},
        {"id": 1, "timestamps": [{"name": "REQUEST_START", "ns": 10**9}, {"name": "REQUEST_END", "ns": 2 * 10**9}]},
        {"id": 1, "activity": "TENSOR_BACKEND_OUTPUT", "tensor": tensor},
    ]
    rows = taken(adapters()["triton"].adapt(json.dumps(events).encode(), CONTEXT))
    assert [row["scores"] for row in rows] == [[0.25, 0.75], [0.5, 0.5]]
    assert [row["predicted"] for row in rows] == [1, 0]
    assert [row["request_id"] for row in rows] == ["r#0", "r#1"]


@pytest.mark.parametrize(
    "tensor",
    [
        {"data": "nan,1", "shape": "1,2", "dtype": "FP32"},
        {"data": "1,2,3", "shape": "1,2", "dtype": "FP32"},
        {"data": "a,b", "shape": "1,2", "dtype": "BYTES"},
        {"data": ",".join(["1"] * 2000), "shape": "1,2000", "dtype": "FP32"},
        {"data": "1", "shape": "-1", "dtype": "FP32"},
        {"data": "", "shape": "", "dtype": ""},
        {"data": "1e300", "shape": "1", "dtype": "FP64"},
        {"data": "1e308,1e308", "shape": "1,2", "dtype": "FP64"},
    ],
)
def test_triton_tensors_that_cannot_be_kept(tensor: dict[str, Any]) -> None:
    events = [
        {"id": 1, "model_name": "m", "timestamps": [{"name": "REQUEST_START", "ns": 10**9}]},
        {"id": 1, "activity": "TENSOR_BACKEND_OUTPUT", "tensor": tensor | {"name": "probs"}},
    ]
    (row,) = taken(adapters()["triton"].adapt(json.dumps(events).encode(), CONTEXT))
    assert row.keys().isdisjoint({"scores", "features", "predicted"})


@pytest.mark.parametrize("label", ["1e19", "1e300", "-1e300"])
def test_a_triton_class_that_is_none(label: str) -> None:
    events = [
        {"id": 1, "model_name": "m", "timestamps": [{"name": "REQUEST_START", "ns": 10**9}]},
        {"id": 1, "activity": "TENSOR_BACKEND_OUTPUT", "tensor": {"data": label, "shape": "1", "dtype": "INT64"}},
    ]
    (row,) = taken(adapters()["triton"].adapt(json.dumps(events).encode(), CONTEXT))
    assert "predicted" not in row


@pytest.mark.parametrize("ns", [-1, 2**63, 10**400])
def test_a_triton_time_that_is_none(ns: int) -> None:
    events = [{"id": 1, "model_name": "m", "timestamps": [{"name": "REQUEST_START", "ns": ns}]}]
    assert adapters()["triton"].adapt(json.dumps(events).encode(), CONTEXT) == (b"", 1, 0)


def test_features_may_be_lists_or_bytes() -> None:
    line = {"timestamp": "2026-11-22T20:20:00", "features": [0.5, 1], "label": "cat"}
    decoder = Decoder(Meters(), "test")
    (batch,) = decoder.decode(adapters()["bentoml"].adapt(json.dumps(line).encode(), CONTEXT).lines)
    assert isinstance(batch, RequestBatch)
    assert batch.ragged("features").at(0).tobytes() == base64.b64decode("AAAAPwAAgD8=")
