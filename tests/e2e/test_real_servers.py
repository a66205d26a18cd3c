"""A real vLLM under the tap and with spans, a real Triton with TENSORS, a real BentoML monitor: `make test-servers`.

``MLSECD_TEST_SERVERS`` names the folder that tests/e2e/real_servers.sh made; what is not in it is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import free_port
from servers import Server, openai_client

from mlsecd.engines.fold import Fold
from mlsecd.findings.ledger import Ledger
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch, ServerSample
from mlsecd.sources.otlp import Otlp, OtlpParams
from mlsecd.sources.request_log import RequestLog, RequestLogParams
from mlsecd.sources.request_socket import RequestSocket, RequestSocketParams
from mlsecd.sources.server_metrics import ServerMetrics, ServerMetricsParams
from mlsecd.sources.trace_files import TraceFiles, TraceFilesParams
from mlsecd.taps.identity import Hasher

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEY = bytes(range(32))
HASHER = Hasher(KEY)
TOKEN = "a-token-of-some-length"


def venv(name: str) -> Path:
    found = Path(os.environ.get("MLSECD_TEST_SERVERS", "/nonexistent")) / name
    if not (found / "bin").is_dir():
        pytest.skip(f"no {name} in MLSECD_TEST_SERVERS: tests/e2e/real_servers.sh DIRECTORY {name}")
    return found


@pytest.fixture(autouse=True)
def _key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id.key").write_bytes(KEY)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("MLSECD_KEY_FILE", str(tmp_path / "id.key"))
    monkeypatch.setenv("MLSECD_SOCKET", str(tmp_path / "ingest"))


@pytest.fixture
def stop() -> Iterator[list[Any]]:
    made: list[Any] = []
    yield made
    for one in reversed(made):
        one.stop() if isinstance(one, Server) else one.close()


def gather(source: Any, wanted: int, seconds: float = 60) -> RequestBatch:
    found: list[RequestBatch] = []
    end = time.monotonic() + seconds
    while sum(map(len, found)) < wanted and time.monotonic() < end:
        found += [one for one in source.poll(time.monotonic() + 5).records if isinstance(one, RequestBatch)]
        time.sleep(0.1)
    return RequestBatch.concat(found)


def column(batch: RequestBatch, name: str) -> list[Any]:
    return [batch.text(name).at(row) for row in range(len(batch))]


def test_vllm_under_the_tap_and_with_spans(tmp_path: Path, stop: list[Any]) -> None:
    openai = pytest.importorskip("openai")
    home = venv("vllm")
    subprocess.run(
        [home / "bin" / "python", HERE / "real" / "tiny_model.py", tmp_path / "tiny"], check=True, timeout=600
    )
    ingest = RequestSocket(RequestSocketParams(path=str(tmp_path / "ingest"), stream_path=""), Meters())
    spans = Otlp(OtlpParams(listen="127.0.0.1:0", token_file=str(tmp_path / "token")), Meters())
    stop += [ingest, spans]
    ingest.poll(time.monotonic() + 5)
    spans.poll(time.monotonic() + 5)
    port = free_port()
    settings = {
        "PYTHONPATH": str(ROOT),  # the tap needs nothing that vLLM's environment has not
        "MLSECD_KEYS_CHECKED": "1",
        "MLSECD_TAP_CPU": "0.5",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {TOKEN}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    command = [f"{home}/bin/vllm", "serve", f"{tmp_path}/tiny", "--served-model-name", "tiny", "--host", "127.0.0.1"]
    command += [
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--max-model-len",
        "512",
        "--max-num-seqs",
        "8",
        "--enforce-eager",
    ]
    command += ["--api-key", "sk-alice", "sk-bob", "--middleware", "mlsecd.taps.asgi.Tap"]
    command += ["--otlp-traces-endpoint", f"http://127.0.0.1:{spans.address[1]}/v1/traces"]
    server = Server(command, port, tmp_path / "vllm.log", settings)
    stop.append(server)
    server.ready(600)
    metrics = ServerMetrics(ServerMetricsParams(urls=(f"{server.url}/metrics",)), Meters())
    metrics.poll(time.monotonic() + 30)

    alice, bob = openai_client(server.url, "sk-alice"), openai_client(server.url, "sk-bob")
    said = [{"role": "user", "content": "Tell me about licences"}]
    for at in range(3):
        done = alice.chat.completions.create(
            model="tiny", messages=said, max_tokens=4, logprobs=True, top_logprobs=5, logit_bias={"17": 50}
        )
        assert done.usage.completion_tokens <= 4, at
    stream = bob.chat.completions.create(
        model="tiny", messages=said, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    assert [chunk for chunk in stream if chunk.usage]
    bob.completions.create(model="tiny", prompt="once upon a time", max_tokens=3)
    with pytest.raises(openai.AuthenticationError):
        openai_client(server.url, "sk-guess").chat.completions.create(model="tiny", messages=said)
    with pytest.raises(openai.NotFoundError):
        alice.chat.completions.create(model="gpt-x", messages=said)

    taps, told = gather(ingest, 7), gather(spans, 5)
    assert (len(taps), len(told)) == (7, 5)
    who = {
        HASHER.client("bearer", "sk-alice"): 4,
        HASHER.client("bearer", "sk-bob"): 2,
        HASHER.client("peer", "127.0.0.1"): 1,
    }
    clients = column(taps, "client")
    assert {client: clients.count(client) for client in clients} == who
    out: list[RequestBatch] = []
    fold = Fold([], Ledger(), Meters(), lateness_seconds=60, join_seconds=1)
    fold.on_released = lambda ordered: out.append(ordered.requests) if ordered.requests is not None else None
    fold.push([taps, told])
    fold.finish()
    joined = RequestBatch.concat(out)
    assert column(joined, "source").count("otlp+tap") == 5  # each span is one of the tap's requests
    assert len(joined) == 7
    (sample,) = [one for one in metrics.poll(time.monotonic() + 30).records if isinstance(one, ServerSample)]
    assert (sample.model, sample.requests) == ("tiny", 5)  # refused keys and unknown models are not in vLLM's counters


def test_triton_traces(tmp_path: Path, stop: list[Any]) -> None:
    home = venv("triton")
    site = next(home.glob("lib/python3*/site-packages"))
    bundled = site / "pytriton" / "tritonserver"
    work = tmp_path / "triton"
    shutil.copytree(bundled / "backends", work / "backends")
    shutil.copytree(bundled / "bin", work / "bin")
    version = site.parent.name.removeprefix("python")
    stub = bundled / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, work / "backends" / "python")
    ports = [free_port() for _ in range(3)]
    command = [
        str(work / "bin" / "tritonserver"),
        f"--model-repository={HERE}/real/triton_models",
        f"--backend-directory={work}/backends",
    ]
    for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True):
        command += [f"--{kind}-address=127.0.0.1", f"--{kind}-port={port}"]
    for setting in (
        "mode=triton",
        f"triton,file={tmp_path}/trace.json",
        "triton,log-frequency=4",
        "rate=1",
        "level=TIMESTAMPS",
        "level=TENSORS",
        "count=-1",
    ):
        command += ["--trace-config", setting]
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{site}/nvidia_pytriton.libs"
    server = Server(command, ports[0], tmp_path / "triton.log", {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(site)})
    stop.append(server)
    server.ready(120)
    source = TraceFiles(TraceFilesParams(paths=(f"triton:{tmp_path}/trace.json*",), from_start=True), Meters())
    before = time.time()
    for at in range(8):
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [at / 8] * 64}
        body = json.dumps({"id": f"r-{at}", "inputs": [tensor]}).encode()
        urllib.request.urlopen(f"{server.url}/v2/models/digits/infer", body, timeout=60).close()
    batch = gather(source, 8)
    assert len(batch) == 8
    assert sorted(column(batch, "request_id")) == [f"r-{at}" for at in range(8)]
    assert set(batch.ragged("scores").lengths.tolist()) == {10}
    assert set(batch.ragged("input_features").lengths.tolist()) == {64}
    assert (batch.ts > before - 1).all()
    assert (batch.ts < time.time() + 1).all()
    metrics = ServerMetrics(ServerMetricsParams(urls=(f"http://127.0.0.1:{ports[2]}/metrics",)), Meters())
    assert [one.model for one in metrics.poll(time.monotonic() + 30).records if isinstance(one, ServerSample)] == [
        "digits"
    ]


SERVICE = """
import bentoml

MONITORING = {"enabled": True, "type": "default", "options": {"log_path": "LOG"}}

@bentoml.service(name="sums", workers=1, monitoring=MONITORING)
class Sums:
    @bentoml.api
    def classify(self, x: list[float]) -> dict:
        label = int(sum(x) > 1)
        with bentoml.monitor("sums") as monitor:
            monitor.log("k-abc", name="client", role="feature", data_type="categorical")
            monitor.log(x, name="features", role="feature", data_type="numerical_sequence")
            monitor.log(label, name="label", role="prediction", data_type="categorical")
        return {"label": label}
"""


def test_bentoml_monitor(tmp_path: Path, stop: list[Any]) -> None:
    home = venv("bentoml")
    (tmp_path / "service.py").write_text(SERVICE.replace("LOG", f"{tmp_path}/log"))
    port = free_port()
    command = [
        f"{home}/bin/bentoml",
        "serve",
        "service:Sums",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--working-dir",
        str(tmp_path),
    ]
    server = Server(
        command,
        port,
        tmp_path / "bentoml.log",
        {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(tmp_path / "home")},
    )
    stop.append(server)
    server.ready(180)
    for _ in range(5):
        request = urllib.request.Request(
            f"{server.url}/classify", b'{"x": [0.5, 1.0]}', {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).close()
    source = RequestLog(
        RequestLogParams(paths=(f"bentoml:{tmp_path}/log/*/data/*.log",), from_start=True, model="sums"), Meters()
    )
    batch = gather(source, 5)
    source.close()
    assert column(batch, "client") == ["k-abc"] * 5
    assert column(batch, "predicted") == ["1"] * 5
    assert batch.ragged("features").at(0).tolist() == [0.5, 1.0]
