"""Real servers: what the tap, nginx, Envoy and spans tell of real clients; and two thefts, seen in /metrics."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import digits
import pytest
from daemons import Daemon, until
from servers import Server, envoy, nginx, openai_client, uvicorn

from mlsecd.meters import Meters
from mlsecd.records import FIELDS, Field, RequestBatch
from mlsecd.sources.request_log import RequestLog, RequestLogParams
from mlsecd.sources.request_socket import RequestSocket, RequestSocketParams
from mlsecd.sources.syslog import Syslog, SyslogParams
from mlsecd.taps.identity import Hasher

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

KEY = bytes(range(32))
HASHER = Hasher(KEY)
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers of this module keep their key, and look for the daemon's socket."""
    directory = tmp_path_factory.mktemp("servers")
    (directory / "id.key").write_bytes(KEY)
    return directory


@pytest.fixture(autouse=True)
def _key(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSECD_KEY_FILE", str(house / "id.key"))


def _victim(directory: Path, *, tap: bool, **env: str) -> Iterator[Server]:
    directory.mkdir()
    settings = {"MLSECD_KEY_FILE": f"{directory.parent}/id.key", "MLSECD_SOCKET": f"{directory.parent}/socket", **env}
    server = uvicorn("victim_app:app", directory, tap=tap, env=settings)
    try:
        yield server.ready()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def tapped(house: Path) -> Iterator[Server]:
    """The victim with the tap around it; it looks for the daemon at ``house/socket``."""
    yield from _victim(house / "tapped", tap=True, MLSECD_TAP_CPU="0.5")


@pytest.fixture(scope="module")
def plain(house: Path) -> Iterator[Server]:
    """The victim as it is."""
    yield from _victim(house / "plain", tap=False)


def listen_at(house: Path, socket: Path) -> None:
    """Let the tapped server find this socket: a connection follows links."""
    (house / "socket").unlink(missing_ok=True)
    (house / "socket").symlink_to(socket)


@pytest.fixture
def run() -> Iterator[Callable[[Server], Server]]:
    made: list[Server] = []

    def start(server: Server) -> Server:
        made.append(server)
        return server.ready()

    yield start
    for one in reversed(made):
        one.stop()


def rows(source: Any, wanted: int, seconds: float = 60, since: float = 0.0) -> list[dict[str, Any]]:
    """The records of polls, until there are so many of requests that began after ``since``."""
    found: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    while len(found) < wanted and time.monotonic() < end:
        for batch in source.poll(time.monotonic() + 5).records:
            if isinstance(batch, RequestBatch):
                found += [row for at in range(len(batch)) if (row := _row(batch, at))["ts"] >= since]
        time.sleep(0.05)
    return found


def _row(batch: RequestBatch, at: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, kind in FIELDS.items():
        if kind is Field.TEXT:
            made[name] = batch.text(name).at(at)
        elif kind is Field.NUMBER:
            made[name] = float(batch.number(name)[at])
        elif kind is Field.FLAG:
            made[name] = int(batch.flag(name)[at])
    return made


@pytest.fixture
def ingest(tmp_path: Path, house: Path) -> Iterator[RequestSocket]:
    source = RequestSocket(RequestSocketParams(path=str(tmp_path / "ingest.seqpacket"), stream_path=""), Meters())
    source.poll(time.monotonic() + 5)
    listen_at(house, tmp_path / "ingest.seqpacket")
    yield source
    source.close()


def converse(base: str) -> None:
    """What the official client does: chat, a stream to its end, a stream that is left, a wrong key."""
    openai = pytest.importorskip("openai")
    said = [{"role": "user", "content": "Tell me about licences"}]
    alice = openai_client(base, "sk-alice")
    done = alice.chat.completions.create(model="tiny", messages=said, max_tokens=5, logprobs=True, top_logprobs=7)
    assert done.usage.completion_tokens == 5
    stream = alice.chat.completions.create(
        model="tiny", messages=said, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "w0 w1 w2 w3 w4 "
    bob = openai_client(base, "sk-bob")
    with contextlib.closing(
        bob.chat.completions.create(model="tiny", messages=said, max_tokens=500, stream=True)
    ) as left:
        next(iter(left))
    with pytest.raises(openai.AuthenticationError):
        openai_client(base, "sk-guess").chat.completions.create(model="tiny", messages=said)
    for client in (alice, bob):
        client.close()


def _aborted(found: list[dict[str, Any]]) -> list[int]:
    """All but the second: the client leaves a stream at its last event, which may be before its last byte."""
    return [row["aborted"] for at, row in enumerate(found) if at != 1]


def test_the_official_client_through_the_tap(ingest: RequestSocket, tapped: Server) -> None:
    began = time.time()  # the tap is the module's: it may still tell of what another test asked
    converse(tapped.url)
    found = sorted(rows(ingest, 4, since=began), key=lambda row: row["ts"])
    assert len(found) == 4, tapped.log.read_text()
    chat, stream, _, guess = found
    assert [row["client"] for row in found[:3]] == [
        HASHER.client("bearer", f"sk-{name}") for name in ("alice", "alice", "bob")
    ]
    assert guess["client"] == HASHER.client("peer", "127.0.0.1")
    assert [row["status"] for row in found] == [200, 200, 200, 401]
    assert _aborted(found) == [0, 1, 0]
    assert (chat["input_tokens"], chat["output_tokens"], chat["logprobs"], chat["model"]) == (7, 5, 7, "tiny")
    assert (stream["output_tokens"], stream["finish_reason"]) == (5, "length")
    assert 0 < stream["ttft_s"] < stream["duration_s"]
    assert chat["template"] == stream["template"] is not None


def test_the_same_bytes_with_and_without_the_tap(plain: Server, tapped: Server, house: Path) -> None:
    """And nobody listens on the socket: the server does not care."""
    (house / "socket").unlink(missing_ok=True)
    answers = []
    for server in (plain, tapped):
        body = {"model": "tiny", "messages": [], "stream": True, "max_tokens": 20}
        got = [
            post(server.url, "/v1/chat/completions", body, "sk-bob"),
            post(server.url, "/predict", {"pixels": [0.5] * 64}, "sk-bob"),
        ]
        got.append(post(server.url, "/predict", {}, "sk-nobody"))
        answers.append(got)
    assert answers[0] == answers[1]


def post(base: str, path: str, body: Any, key: str) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(base + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_nginx_over_its_syslog_socket_and_a_file(tmp_path: Path, plain: Server, run: Any) -> None:
    source = Syslog(SyslogParams(path=str(tmp_path / "syslog.sock"), mode=0o666, model="tiny"), Meters())
    source.poll(time.monotonic() + 5)
    file = tmp_path / "nginx.jsonl"
    log = f"syslog:server=unix:{tmp_path}/syslog.sock,nohostname,tag=mlsecd mlsecd_key; access_log {file} mlsecd"
    gateway = run(nginx(tmp_path, plain.port, log=log))
    converse(gateway.url)
    post(gateway.url, "/predict?secret=1", {"pixels": [0.5] * 64}, 'sk-"quoted"\\')
    found = sorted(rows(source, 5), key=lambda row: row["ts"])
    source.close()
    assert [row["status"] for row in found] == [200, 200, 200, 401, 401]
    assert _aborted(found) == [0, 1, 0, 0]
    assert [row["client"] for row in found[:3]] == [
        HASHER.client("bearer", f"sk-{name}") for name in ("alice", "alice", "bob")
    ]
    assert found[4]["route"] == "/predict"
    text = file.read_text()
    assert "sk-alice" not in text  # what lies on the disk holds no key
    tail = RequestLog(RequestLogParams(paths=(f"nginx:{file}",), from_start=True), Meters())
    assert len(rows(tail, 5)) == 5
    tail.close()


def test_envoy_writes_what_we_read(tmp_path: Path, plain: Server, run: Any) -> None:
    file = tmp_path / "envoy.jsonl"
    gateway = run(envoy(tmp_path, plain.port, file))
    until(lambda: post(gateway.url, "/predict", {"pixels": [0.5] * 64}, "sk-alice")[0] == 200, 60)
    converse(gateway.url)
    forged = {
        "Authorization": "Bearer sk-bob",
        "x-mlsec-client": "k-forged",
        "x-request-id": "chosen",
        "Content-Type": "application/json",
    }
    body = json.dumps({"pixels": [0.5] * 64}).encode()
    with urllib.request.urlopen(urllib.request.Request(gateway.url + "/predict", body, forged), timeout=30) as answer:
        answer.read()  # to its end: who leaves before that has aborted
    tail = RequestLog(RequestLogParams(paths=(f"envoy:{file}",), from_start=True), Meters())
    found = sorted(rows(tail, 6), key=lambda row: row["ts"])
    tail.close()
    assert [row["status"] for row in found[-5:]] == [200, 200, 200, 401, 200]
    assert _aborted(found[-5:]) == [0, 1, 0, 0]
    assert {row["client"] for row in found} == {HASHER.client("peer", "127.0.0.1")}
    assert found[-1]["request_id"] != "chosen"
    assert all(row["duration_s"] > 0 for row in found)


# Two thefts


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ordinary clients of the victim look like: sixty of them, so one in ten may alarm."""
    directory = tmp_path_factory.mktemp("baseline")
    (directory / "ordinary.jsonl").write_bytes(digits.ordinary(60, 40))
    path = directory / "baseline.npz"
    command = [sys.executable, "-m", "mlsecd", "baseline", "fit", str(directory / "ordinary.jsonl"), "-o", str(path)]
    command += ["--require", "extraction_account", "--set", "detectors.extraction_account.client_alpha=0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return path


CONFIG = """
[sources.syslog]
enabled = {gateway}
path = "{dir}/syslog.sock"
mode = 0o666

[sources.otlp]
enabled = {gateway}
listen = "127.0.0.1:{otlp}"
token_file = "{dir}/token"

[detectors.extraction_account]
client_alpha = 0.1
"""


def configuration(directory: Path, otlp: int, *, gateway: bool) -> str:
    return CONFIG.format(dir=directory, otlp=otlp, gateway=str(gateway).lower())


@pytest.fixture
def daemon(tmp_path: Path, baseline: Path) -> Iterator[Callable[[str], Daemon]]:
    made: list[Daemon] = []

    def start(config: str) -> Daemon:
        one = Daemon(tmp_path, {}, config)
        text = one.file.read_text().replace("[daemon]\n", f'[daemon]\nbaseline = "{baseline}"\n', 1)
        text = text.replace("lateness_seconds = 0.5", "lateness_seconds = 8")  # this machine may be busy
        one.file.write_text(text)
        made.append(one)
        return one.start()

    yield start
    for one in made:
        one.close()


def steal(base: str) -> None:
    """Forty stolen answers, and beside them an honest client."""
    images, _, _ = digits.victim()

    def ask(job: tuple[str, Any]) -> int:
        return post(base, "/predict", {"pixels": job[1].tolist()}, job[0])[0]

    jobs = [("sk-thief", pixels) for pixels in digits.stolen(40)] + [("sk-alice", images[at]) for at in range(20)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, jobs)) == {200}


def thefts(daemon: Daemon) -> list[dict[str, Any]]:
    return [line for line in daemon.findings() if line["detector"] == "extraction_account" and line["status"] == "new"]


SERIES = 'mlsecd_findings_total{detector="extraction_account",severity="high",synthetic="false"}'


@pytest.mark.timeout(400)  # it fits a baseline first
def test_a_theft_under_the_tap_is_in_the_metrics(tmp_path: Path, daemon: Any, house: Path, tapped: Server) -> None:
    one = daemon(configuration(tmp_path, 0, gateway=False))
    listen_at(house, tmp_path / "ingest.seqpacket")
    steal(tapped.url)
    until(lambda: (one.metric(SERIES) or 0) >= 1, 90)
    (finding,) = thefts(one)
    assert finding["subject"] == {"client": HASHER.client("bearer", "sk-thief")}
    assert one.metric('mlsecd_requests_with_field_total{field="client"}') == one.metric(
        'mlsecd_requests_total{synthetic="false"}'
    )


@pytest.mark.timeout(400)
def test_a_theft_through_nginx_from_a_server_without_a_tap(tmp_path: Path, daemon: Any, run: Any) -> None:
    """nginx knows who asked, the server's spans what was answered: neither alone would do."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from daemons import free_port  # noqa: PLC0415

    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    otlp = free_port()
    one = daemon(configuration(tmp_path, otlp, gateway=True))
    until(lambda: os.path.exists(tmp_path / "syslog.sock"))  # noqa: PTH110
    env = {"VICTIM_OTLP": f"http://127.0.0.1:{otlp}/v1/traces", "VICTIM_TOKEN": TOKEN}
    server = run(uvicorn("victim_app:app", tmp_path, tap=False, env=env))
    log = f"syslog:server=unix:{tmp_path}/syslog.sock,nohostname,tag=mlsecd mlsecd_key"
    gateway = run(nginx(tmp_path, server.port, log=log))
    steal(gateway.url)
    until(lambda: (one.metric(SERIES) or 0) >= 1, 90)
    (finding,) = thefts(one)
    assert finding["subject"] == {"client": HASHER.client("bearer", "sk-thief")}
    until(lambda: one.metric("mlsecd_requests_joined_total") == 60, 90)
    assert one.metric('mlsecd_requests_total{synthetic="false"}') == 60
    told = subprocess.run(
        [sys.executable, "-m", "mlsecd", "doctor", "--config", str(one.file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "requests from nginx+otlp" in told.stdout, told.stdout
    assert "60: identity 100%, features 100%, classes 100%" in told.stdout
