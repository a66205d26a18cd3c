"""What doctor says of the records: by origin, and what each detector sees of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support import requests

from mlsecd import config
from mlsecd.coverage import count_fields
from mlsecd.doctor_coverage import Counts, lines, parse_counts
from mlsecd.engines.hold import Ordered
from mlsecd.meters import Meters

CONFIG = config.parse("")


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


def test_nothing_is_said_of_nothing() -> None:
    assert said({}) == {}


@pytest.mark.parametrize("read", [parse_counts])
def test_rubbish_is_no_count(read: Callable[[str], dict[str, Counts]]) -> None:
    assert read("mlsecd_origin_requests_total{} x\n<html>") == {}
