"""Real servers under watch: `make test-servers`.

vLLM under the tap and with spans, llama-cpp-python under the tap, Triton with TENSORS, MLServer behind nginx, BentoML's
monitor, LiteLLM's callback, Dynamo's trace.

``MLSECD_TEST_SERVERS`` names the folder that tests/e2e/real_servers.sh made; what is not in it is skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemons import free_port, until
from servers import Server, nginx, openai_client, uvicorn

from mlsecd.engines.fold import Fold
from mlsecd.findings.ledger import Ledger
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch, ServerSample
from mlsecd.sources.litellm import LiteLlm, LiteLlmParams
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


def tiny(directory: Path) -> Path:
    """A model of half a million parameters, as vLLM's environment makes it."""
    out = directory / "tiny"
    subprocess.run([venv("vllm") / "bin" / "python", HERE / "real" / "tiny_model.py", out], check=True, timeout=600)
    return out


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
    home, model = venv("vllm"), tiny(tmp_path)
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
    command = [f"{home}/bin/vllm", "serve", str(model), "--served-model-name", "tiny", "--host", "127.0.0.1"]
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


def test_llama_cpp_under_the_tap(tmp_path: Path, stop: list[Any]) -> None:
    openai = pytest.importorskip("openai")
    home, model = venv("llama_cpp"), tiny(tmp_path)
    gguf = tmp_path / "tiny.gguf"
    subprocess.run([home / "bin" / "python", HERE / "real" / "tiny_gguf.py", model, gguf], check=True, timeout=120)
    ingest = RequestSocket(RequestSocketParams(path=str(tmp_path / "ingest"), stream_path=""), Meters())
    stop.append(ingest)
    ingest.poll(time.monotonic() + 5)
    port = free_port()
    settings = {"PYTHONPATH": str(ROOT), "MLSECD_KEYS_CHECKED": "1", "MLSECD_TAP_CPU": "0.5"}
    command = [f"{home}/bin/python", f"{HERE}/real/llama_tapped.py", str(gguf), str(port)]
    server = Server(command, port, tmp_path / "llama.log", settings)
    stop.append(server)
    server.ready(120)
    alice = openai_client(server.url, "sk-alice")
    said = [{"role": "user", "content": "Tell me about licences"}]
    done = alice.chat.completions.create(
        model="tiny", messages=said, max_tokens=4, logprobs=True, top_logprobs=5, logit_bias={"17": 5}
    )
    list(alice.chat.completions.create(model="tiny", messages=said, max_tokens=6, stream=True))
    alice.completions.create(model="tiny", prompt="once upon a time", max_tokens=3)
    with pytest.raises(openai.AuthenticationError):
        openai_client(server.url, "sk-guess").chat.completions.create(model="tiny", messages=said)
    taps = gather(ingest, 4)
    rows = sorted(range(len(taps)), key=lambda row: taps.ts[row])
    clients = [column(taps, "client")[row] for row in rows]
    assert clients == [HASHER.client("bearer", "sk-alice")] * 3 + [HASHER.client("peer", "127.0.0.1")]
    numbers = {name: [float(taps.number(name)[row]) for row in rows] for name in ("status", "input_tokens", "logprobs")}
    assert numbers["status"] == [200, 200, 200, 401]
    assert numbers["input_tokens"][0] == done.usage.prompt_tokens
    assert numbers["logprobs"][0] == 5
    assert set(column(taps, "model")) == {"tiny"}


def test_litellm_posts_its_calls(tmp_path: Path, stop: list[Any]) -> None:
    """A real proxy before the victim of the other tests; every call that it lets in names its client."""
    openai = pytest.importorskip("openai")
    home = venv("litellm")
    source = LiteLlm(LiteLlmParams(listen="127.0.0.1:0", token_file=str(tmp_path / "token")), Meters())
    stop.append(source)
    source.poll(time.monotonic() + 5)
    upstream = uvicorn("victim_app:app", tmp_path, tap=False, env={})
    stop.append(upstream)
    upstream.ready()
    (tmp_path / "keys.py").write_text(KEYS)
    (tmp_path / "litellm.yaml").write_text(PROXY.replace("UPSTREAM", upstream.url))
    port = free_port()
    settings = {
        "LITELLM_MASTER_KEY": "sk-" + 16 * "0a1b",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "GENERIC_LOGGER_ENDPOINT": f"http://127.0.0.1:{source.address[1]}/v1/litellm",
        "GENERIC_LOGGER_HEADERS": f"Authorization=Bearer {TOKEN}",
        "PYTHONPATH": str(tmp_path),
    }
    command = [
        f"{home}/bin/litellm",
        "--config",
        f"{tmp_path}/litellm.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = Server(command, port, tmp_path / "litellm.log", settings)
    stop.append(server)
    server.ready(240)
    said = [{"role": "user", "content": "Tell me about licences"}]
    for key in ("sk-alice", "sk-bob"):
        openai_client(server.url, key).chat.completions.create(
            model="tiny", messages=said, max_tokens=5, logprobs=True, top_logprobs=7, user="end-user"
        )
    list(openai_client(server.url, "sk-bob").chat.completions.create(model="tiny", messages=said, stream=True))
    with pytest.raises(openai.AuthenticationError):
        openai_client(server.url, "sk-guess").chat.completions.create(model="tiny", messages=said)
    batch = gather(source, 4, 90)
    status = batch.number("status").tolist()
    assert sorted(status) == [200, 200, 200, 401]
    let_in = batch.take(np.flatnonzero(batch.number("status") == 200))
    hashes = {key: hashlib.sha256(key.encode()).hexdigest() for key in ("sk-alice", "sk-bob")}
    named = [HASHER.client("bearer", hashes[key]) for key in ("sk-alice", "sk-bob", "sk-bob")]
    assert sorted(column(let_in, "client")) == sorted(named)
    assert set(column(let_in, "identity")) == {"verified"}
    assert set(column(let_in, "model")) == {"tiny"}


KEYS = """
from fastapi import HTTPException, Request
from litellm.proxy._types import UserAPIKeyAuth, hash_token

async def check(request: Request, api_key: str) -> UserAPIKeyAuth:
    if api_key not in ("sk-alice", "sk-bob"):
        raise HTTPException(401, "who are you?")
    return UserAPIKeyAuth(api_key=hash_token(api_key), user_id=api_key[3:])
"""
PROXY = """
model_list:
  - model_name: tiny
    litellm_params: {model: openai/tiny, api_base: "UPSTREAM/v1", api_key: sk-alice}
litellm_settings:
  callbacks: ["generic_api"]
  turn_off_message_logging: true
general_settings:
  custom_auth: keys.check
"""


def test_dynamo_writes_segments(tmp_path: Path, stop: list[Any]) -> None:
    """Its real frontend before its mock engine, which needs no GPU."""
    home, model = venv("dynamo"), tiny(tmp_path)
    port = free_port()
    settings = {
        "DYN_FILE_KV": f"{tmp_path}/kv",
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",
        "HF_HUB_OFFLINE": "1",
        "DYN_REQUEST_TRACE": "1",
        "DYN_REQUEST_TRACE_RECORDS": "request_end",
        "DYN_REQUEST_TRACE_SINKS": "file",
        "DYN_REQUEST_TRACE_FILE_PATH": f"{tmp_path}/trace",
    }
    python = f"{home}/bin/python"
    engine = [python, "-m", "dynamo.mocker", "--model-path", str(model), "--model-name", "tiny"]
    stop.append(Server(engine, 0, tmp_path / "mocker.log", settings))
    frontend = [python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
    server = Server(frontend, port, tmp_path / "dynamo.log", settings)
    stop.append(server)
    server.ready(120)
    client = openai_client(server.url, "sk-alice")
    until(lambda: [one.id for one in client.models.list().data] == ["tiny"], 120)
    source = RequestLog(
        RequestLogParams(paths=(f"dynamo:{tmp_path}/trace.*.jsonl.gz",), from_start=True, model="unsaid"), Meters()
    )
    stop.append(source)
    said = [{"role": "user", "content": "Tell me about licences"}]
    for at in range(3):
        headers = {"x-request-id": f"r-{at}", "X-Dynamo-Session-ID": "k-alice"}
        client.chat.completions.create(model="tiny", messages=said, max_tokens=5, extra_headers=headers)
    first = gather(source, 3)
    list(client.chat.completions.create(model="tiny", messages=said, max_tokens=9, stream=True))
    second = gather(source, 1)
    assert sorted(column(first, "request_id")) == ["r-0", "r-1", "r-2"]
    assert set(column(first, "model")) == {"tiny"}
    assert set(column(first, "user")) == {HASHER.client("user", "k-alice")}
    assert first.number("output_tokens").tolist() == [5, 5, 5]
    assert (column(second, "model"), second.number("output_tokens").tolist()) == (["unsaid"], [9])


def test_mlserver_behind_nginx(tmp_path: Path, stop: list[Any]) -> None:
    """It writes no log of its own: nginx says who asked, its metrics what was answered."""
    home = venv("mlserver")
    subprocess.run([home / "bin" / "python", "-c", MODEL], check=True, timeout=300, cwd=tmp_path)
    http, grpc, metrics = (free_port() for _ in range(3))
    (tmp_path / "settings.json").write_text(
        json.dumps(
            {
                "host": "127.0.0.1",
                "http_port": http,
                "grpc_port": grpc,
                "metrics_port": metrics,
                "parallel_workers": 0,
                "debug": False,
            }
        )
    )
    server = Server([f"{home}/bin/mlserver", "start", str(tmp_path)], http, tmp_path / "mlserver.log")
    stop.append(server)
    server.ready(180)
    gateway = nginx(tmp_path, http, log=f"{tmp_path}/nginx.jsonl mlsecd_key")
    stop.append(gateway)
    gateway.ready()
    scrape = ServerMetrics(ServerMetricsParams(urls=(f"http://127.0.0.1:{metrics}/metrics",)), Meters())

    def ask(name: str, shape: list[int]) -> int:
        tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": [0.5] * shape[1]}
        request = urllib.request.Request(
            f"{gateway.url}/v2/models/{name}/infer",
            json.dumps({"inputs": [tensor]}).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer sk-alice"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    until(lambda: ask("digits", [1, 64]) == 200, 120)
    scrape.poll(time.monotonic() + 30)
    assert [ask("digits", [1, 64]) for _ in range(5)] == [200] * 5
    assert ask("digits", [1, 3]) == 500
    samples = {one.model: one for one in scrape.poll(time.monotonic() + 30).records if isinstance(one, ServerSample)}
    assert (samples["digits"].requests, samples["digits"].failed) == (5, 1)
    log = RequestLog(RequestLogParams(paths=(f"nginx:{tmp_path}/nginx.jsonl",), from_start=True), Meters())
    batch = gather(log, 7)
    log.close()
    assert set(column(batch, "client")) == {HASHER.client("bearer", "sk-alice")}
    assert batch.number("status").tolist()[-6:] == [200] * 5 + [500]


MODEL = """
import json, joblib
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

pixels, labels = load_digits(return_X_y=True)
joblib.dump(LogisticRegression(max_iter=300).fit(pixels / 16, labels), "model.joblib")
parameters = {"uri": "./model.joblib", "version": "v1"}
settings = {"name": "digits", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": parameters}
with open("model-settings.json", "w") as file:
    json.dump(settings, file)
"""
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
