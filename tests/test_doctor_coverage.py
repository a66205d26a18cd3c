"""What doctor says of the records: by origin, and what each detector sees of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asgi_drive import Drive, answering
from support import requests

from mlsecd import config
from mlsecd.adapters.base import Context, adapters
from mlsecd.coverage import count_fields
from mlsecd.doctor_coverage import Counts, lines, parse_counts
from mlsecd.engines.hold import Ordered
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.taps.identity import Hasher

CONFIG = config.parse("")
DATA = Path(__file__).parent / "data" / "servers"
CONTEXT = Context(Hasher(bytes(32)), model="m")


def said(counts: dict[str, Counts]) -> dict[str, tuple[str, str]]:
    return {line.name: (line.state, line.detail) for line in lines(CONFIG, counts)}


def test_records_are_counted_by_where_they_come_from() -> None:
    batch = requests(
        [1.0] * 6,
        source=["tap", "nginx+otlp", "otlp+nginx", "uid:1000", "<script>", "tap"],
        client=["k-a", "k-a", None, None, None, "k-a"],
        input_tokens=[1, np.nan, 3, np.nan, np.nan, np.nan],
        synthetic=[0, 0, 0, 0, 0, 1],
    )
    meters = Meters()
    count_fields(Ordered(batch, []), meters)
    counters = meters.counters()
    by_origin = {dict(labels)["origin"]: n for labels, n in counters["mlsecd_origin_requests_total"].items()}
    assert by_origin == {"tap": 1, "nginx+otlp": 2, "socket": 1, "other": 1}
    value = meters.value
    assert value("mlsecd_origin_requests_with_field_total", origin="nginx+otlp", field="client") == 1
    assert value("mlsecd_origin_requests_with_field_total", origin="tap", field="input_tokens") == 1
    assert value("mlsecd_requests_with_field_total", field="client") == 3  # synthetic ones, too


def test_an_exposition_is_read_whatever_the_order_of_its_labels() -> None:
    text = (
        'mlsecd_origin_requests_total{origin="tap"} 10.0\n'
        'mlsecd_origin_requests_with_field_total{field="client",origin="tap"} 9.0\n'
        'mlsecd_origin_requests_with_field_total{origin="tap",field="features"} 4.0\n'
        'mlsecd_origin_requests_total{origin="nginx"} 0.0\n'
    )
    assert parse_counts(text) == {"tap": Counts(10.0, {"client": 9.0, "features": 4.0})}


def test_full_records() -> None:
    full = {"tap": Counts(100, {"client": 100, "features": 99, "predicted": 100})}
    told = said(full)
    assert told["requests from tap"] == ("ok", "100: identity 100%, features 99%, classes 100%")
    assert told["detector extraction_account"][0] == "ok"


def test_spans_alone_name_nobody() -> None:
    told = said({"otlp": Counts(100, {"input_tokens": 100, "output_tokens": 100})})
    assert told["requests from otlp"] == ("blind", "100: input tokens 100%, output tokens 100%")
    state, detail = told["detector extraction_account"]
    assert state == "blind"
    assert "sees at most 0% of 100 requests" in detail
    assert "a gateway's log, names the clients" in detail


def test_two_sources_that_are_not_joined() -> None:
    told = said({"nginx": Counts(100, {"client": 100}), "otlp": Counts(100, {"features": 100})})
    assert told["detector extraction_account"][0] == "blind"
    told = said({"nginx+otlp": Counts(100, {"client": 100, "features": 100})})
    assert told["detector extraction_account"][0] == "ok"


def _told_of(data: bytes) -> str:
    """What doctor says of these record lines."""
    meters = Meters()
    for batch in Decoder(Meters(), "test").decode(data):
        assert isinstance(batch, RequestBatch)
        count_fields(Ordered(batch, []), meters)
    counters = meters.counters()
    (origin,) = [dict(labels)["origin"] for labels in counters["mlsecd_origin_requests_total"]]
    fields = {
        dict(labels)["field"]: n
        for labels, n in counters["mlsecd_origin_requests_with_field_total"].items()
        if dict(labels)["origin"] == origin
    }
    (n,) = counters["mlsecd_origin_requests_total"].values()
    return said({origin: Counts(n, fields)})[f"requests from {origin}"][1]


def test_every_request_through_a_recorded_gateway_names_its_client() -> None:
    for name in ("nginx", "envoy"):
        recorded = (DATA / f"{name}_access.jsonl").read_bytes()
        told = _told_of(adapters()[name].adapt(recorded, CONTEXT).lines)
        assert told.startswith(f"{len(recorded.splitlines())}: identity 100%")


def test_every_call_that_litellm_lets_in_names_its_client() -> None:
    lines = adapters()["litellm"].adapt((DATA / "litellm.json").read_bytes(), CONTEXT).lines.splitlines(keepends=True)
    refused = [line for line in lines if b'"status":401' in line]
    assert len(refused) == 1, "a key that is none names nobody, and LiteLLM says no address beside it"
    told = _told_of(b"".join(line for line in lines if line not in refused))
    assert told.startswith("3: identity 100%, input tokens 67%"), told


def test_every_request_through_the_tap_names_its_client() -> None:
    """Whole answers and streams, a refused key, a caller without one, a body that is no JSON, an empty one."""
    keys = [b"Bearer sk-alice", b"Bearer sk-guess", b"Basic YTpi", None]
    bodies = [b'{"model": "m", "messages": []}', b'{"model": "m", "stream": true}', b"\xff\xfe{", b""]
    made: list[bytes] = []
    for key in keys:
        for body in bodies:
            drive = Drive(answering(b"{}", status=401 if key == keys[1] else 200))
            drive.request(body, headers=[] if key is None else [(b"authorization", key)])
            drive.records()
            made += drive.out.lines
    told = _told_of(b"\n".join(made))
    assert told.startswith("16: identity 100%"), told


def test_nothing_is_said_of_nothing() -> None:
    assert said({}) == {}


@pytest.mark.parametrize("read", [parse_counts])
def test_rubbish_is_no_count(read: Callable[[str], dict[str, Counts]]) -> None:
    assert read("mlsecd_origin_requests_total{} x\n<html>") == {}
