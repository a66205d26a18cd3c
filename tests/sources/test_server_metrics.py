"""Scrapes: recorded expositions of real servers, counters that begin anew, servers that are away or hostile."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsecd.detectors._server_load import as_requests
from mlsecd.errors import SourceError
from mlsecd.jsonlines import Decoder, encode
from mlsecd.meters import Meters
from mlsecd.records import ServerSample
from mlsecd.sources.server_metrics import ServerMetrics, ServerMetricsParams, readings

DATA = Path(__file__).parent.parent / "data" / "servers" / "metrics"


def recorded(name: str) -> str:
    return (DATA / f"{name}.prom").read_text()


class Page:
    """A server whose /metrics is what the test says."""

    def __init__(self) -> None:
        self.text = ""
        self.headers: list[str | None] = []
        self.moved = ""
        page = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.headers.append(self.headers.get("Authorization"))
                if page.moved:
                    self.send_response(302)
                    self.send_header("Location", page.moved)
                    self.end_headers()
                    return
                body = page.text.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/metrics"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.close()


def scrape(source: ServerMetrics) -> list[ServerSample]:
    samples = source.poll(time.monotonic() + 10).records
    assert all(isinstance(one, ServerSample) for one in samples)
    return list(samples)  # type: ignore[arg-type]


def test_vllm_before_and_after_three_hundred_requests(page: Page) -> None:
    source = ServerMetrics(ServerMetricsParams(urls=(page.url,)), Meters())
    page.text = recorded("vllm_metrics_before")
    (first,) = scrape(source)
    assert (first.model, first.running, first.waiting, first.requests, first.interval_s) == ("tiny", 0, 0, None, None)
    page.text = recorded("vllm_metrics_after")
    (second,) = scrape(source)
    assert (second.requests, second.kv_cache_usage) == (231, 0)
    assert second.input_tokens is not None
    assert second.input_tokens > 9_000
    assert second.output_tokens is not None
    assert second.output_tokens > 3_000
    page.text = recorded("vllm_metrics_before")  # the server was started again
    (third,) = scrape(source)
    assert third.requests == readings(page.text)["tiny"]["requests"]


def test_triton_and_mlserver() -> None:
    assert readings(recorded("triton_metrics_after")) == {"digits": {"requests": 2005, "failed": 0, "waiting": 0}}
    served = readings(recorded("mlserver_metrics_after"))
    assert served["digits"] == {"requests": 60, "failed": 2}
    assert served["nope"] == {"failed": 1}  # a name that a client made up


def test_sglang() -> None:
    """As its own collectors write it: three requests, one of them streamed; two running, also told by priority."""
    wanted = {
        "requests": 3,
        "input_tokens": 27,
        "output_tokens": 48,
        "running": 2,
        "waiting": 1,
        "kv_cache_usage": 0.28,
    }
    assert readings(recorded("sglang_metrics")) == {"tiny": wanted}


TGI = """\
tgi_request_success_total{method="generate"} 9
tgi_request_failure{err="overloaded"} 1
tgi_batch_current_size 3
tgi_request_generated_tokens_sum 70
tgi_request_generated_tokens_bucket{le="100"} 9
"""
RAY = """\
# TYPE ray_serve_num_http_requests_total counter
ray_serve_num_http_requests_total{route="/",method="POST",application="app",status_code="200"} 7.0
ray_serve_num_http_requests_total{route="/",method="POST",application="app",status_code="500"} 2.0
ray_serve_num_http_requests_total{route="/-/healthz",method="GET",application="",status_code="200"} 90.0
ray_serve_num_http_error_requests_total{route="/",application="app",error_code="500",method="POST"} 2.0
ray_serve_replica_processing_queries{deployment="Digits",replica="a1",application="app"} 1.0
ray_serve_replica_processing_queries{deployment="Embed",replica="b2",application="app"} 2.0
ray_serve_deployment_queued_queries{deployment="Digits",application="app"} 4.0
"""


def test_ray_serve_is_read_by_application() -> None:
    """Health checks are nobody's requests; the deployments of an application are added."""
    assert readings(RAY) == {"app": {"requests": 9, "failed": 2, "running": 3, "waiting": 4}}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            'sglang:num_running_reqs{model_name="m"} 3\nsglang:token_usage{model_name="m"} 0.28',
            {"running": 3, "kv_cache_usage": 0.28},
        ),
        (
            "tgi_queue_size 4\ntgi_request_success 9\ntgi_request_input_length_sum 50",
            {"waiting": 4, "requests": 9, "input_tokens": 50},
        ),
        (
            TGI,
            {"requests": 9, "failed": 1, "running": 3, "output_tokens": 70},
        ),
        ("llamacpp:tokens_predicted_total 7\nllamacpp:requests_processing 1", {"output_tokens": 7, "running": 1}),
        (
            "llamacpp:prompt_tokens_total 5\nllamacpp:requests_deferred 2\nllamacpp:kv_cache_usage_ratio 0.25",
            {"input_tokens": 5, "waiting": 2, "kv_cache_usage": 0.25},
        ),
        (
            'ray_vllm_prompt_tokens_total{model_name="m"} 5\nray_vllm_num_requests_running{model_name="m"} 2',
            {"input_tokens": 5, "running": 2},
        ),
        (
            'ray_serve_num_http_requests_total{route="/a"} 2\nray_serve_num_http_requests_total{route="/b"} 3',
            {"requests": 5},
        ),
        ("vllm:gpu_cache_usage_perc 0.5", {"kv_cache_usage": 0.5}),  # an old version's name
        ("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25", {"kv_cache_usage": 0.25}),
    ],
)
def test_other_servers_and_versions(text: str, wanted: dict[str, float]) -> None:
    (found,) = readings(text).values()
    assert found == wanted


def test_a_server_that_shows_nothing_known(page: Page) -> None:
    page.text = "process_cpu_seconds_total 3\n"
    poll = ServerMetrics(ServerMetricsParams(urls=(page.url,)), Meters()).poll(time.monotonic() + 10)
    assert poll.records == []
    assert "none of the metrics that are known" in (poll.error or "")


def test_one_server_is_away(page: Page) -> None:
    page.text = "llamacpp:requests_processing 1"
    source = ServerMetrics(ServerMetricsParams(urls=("http://127.0.0.1:1/metrics", page.url)), Meters())
    poll = source.poll(time.monotonic() + 10)
    assert len(poll.records) == 1
    assert (poll.seen, poll.expected) == (1, 2)
    assert "127.0.0.1:1: connection refused" in (poll.error or "")
    with pytest.raises(SourceError, match="refused"):
        ServerMetrics(ServerMetricsParams(urls=("http://127.0.0.1:1/metrics",)), Meters()).poll(time.monotonic() + 10)


def test_a_redirect_is_not_followed(page: Page, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length")
    token.chmod(0o600)
    page.moved = page.url + "/elsewhere"
    source = ServerMetrics(ServerMetricsParams(urls=(page.url,), token_file=str(token)), Meters())
    with pytest.raises(SourceError, match="answers 302"):
        source.poll(time.monotonic() + 10)
    assert page.headers == ["Bearer a-token-of-some-length"]


def test_models_that_clients_make_up_are_bounded() -> None:
    text = "\n".join(f'model_infer_request_failure_total{{model="m{at}"}} 1' for at in range(10_000))
    assert len(readings(text)) == 16


@settings(deadline=None)
@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(['vllm:num_requests_running{a="', '"} ', "NaN", "1", "\n", "\\", "-3", "{}", "e9"])).map(
        "".join
    )
)
def test_any_page_is_read_or_not(text: str) -> None:
    for values in readings(text).values():
        assert all(value >= 0 for value in values.values())


def test_samples_are_recorded_and_come_back() -> None:
    sample = ServerSample(ts=5.0, server="127.0.0.1:8000", model="m", interval_s=10.0, running=2.0, kv_cache_usage=0.5)
    assert Decoder(Meters(), "test").decode(encode(sample)) == [sample]


Fields = dict[str, Any]


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"running": 1.0, "interval_s": 10.0}, 1),
        ({"requests": 3.0, "interval_s": 10.0}, 1),
        ({"running": 0.0, "requests": 0.0, "interval_s": 10.0}, 0),
        ({"running": 1.0}, 0),
    ],
)
def test_what_a_busy_server_explains(fields: Fields, rows: int) -> None:
    made = as_requests(ServerSample(ts=100.0, server="s", host="h", **fields))
    assert len(made) == rows
    if rows:
        assert made.completion.tolist() == [100.0]
        assert made.text("host").at(0) == "h"
