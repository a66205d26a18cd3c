"""The budgets of a whole daemon: 8 stand-in GPUs at 1 Hz, 600 processes, 100 requests/s with 32-d features.

Usage: python -m bench.host [--seconds 30] [--json]
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.rows import Row, report
from mlsecd.taps.client import SocketClient
from tests.fakenvml import build
from tests.fakenvml.state import FakeNvml

TICKS = os.sysconf("SC_CLK_TCK")
# as installed: with byte code on disk, whatever this shell says
ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

CONFIG = """\
[daemon]
state_dir = "{dir}/state"
[sources.request_socket]
path = "{dir}/ingest.seqpacket"
stream_path = "{dir}/ingest.stream"
[sinks.forensic_log]
directory = "{dir}/log"
[web]
listen = "127.0.0.1:{port}"
"""


def cpu_seconds(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def pss_mib(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = [path.name for path in Path(f"/proc/{pid}/task").iterdir()]
    for thread in threads:
        with contextlib.suppress(OSError):
            children += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    return [pid, *sorted({int(child) for child in children})]


def request(draw: np.random.Generator, ts: float, clients: int) -> bytes:
    """An ordinary request of one of ``clients``, with 32-d features around its class."""
    label = int(draw.integers(10))
    features = draw.normal(size=32) + 3.0 * np.eye(10, 32)[label]
    row = {
        "ts": ts,
        "client": f"k-{draw.integers(clients):032x}",
        "model": "digits",
        "status": 200,
        "duration_s": 0.012,
        "predicted": label,
        "scores": [round(float(draw.beta(20, 1)), 4), 0.02],
        "input_tokens": int(draw.lognormal(5, 1)),
        "features": base64.b64encode(features.astype("<f4").tobytes()).decode(),
        "body_hash": f"{draw.integers(1 << 60):016x}",
    }
    return json.dumps(row).encode() + b"\n"


def send_requests(path: Path, stop: threading.Event, per_second: int = 100, clients: int = 64) -> None:
    draw = np.random.default_rng(1)
    client = SocketClient(str(path))
    pause = 0.1
    while not stop.wait(pause):
        client.send(b"".join(request(draw, time.time() - 0.012, clients) for _ in range(int(per_second * pause))))
        client.flush()
    client.close()


def fit_baseline(directory: Path) -> None:
    """Ordinary traffic of 400 clients, so that every request detector is armed."""
    draw = np.random.default_rng(2)
    file = directory / "ordinary.jsonl"
    file.write_bytes(b"".join(request(draw, 1e9 + 0.5 * i, 400) for i in range(40_000)))
    subprocess.run(
        [sys.executable, "-m", "mlsecd", "baseline", "fit", str(file), "-o", str(directory / "state" / "baseline.npz")],
        check=True,
        stdout=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def sleepers(count: int) -> Iterator[None]:
    """Bring the process table to ``count``."""
    have = sum(entry.name.isdigit() for entry in Path("/proc").iterdir())
    running = [subprocess.Popen(["/bin/sleep", "600"]) for _ in range(max(0, count - have))]
    try:
        yield
    finally:
        for one in running:
            one.terminate()
        for one in running:
            one.wait()


@contextlib.contextmanager
def daemon(directory: Path, env: dict[str, str], port: int) -> Iterator[tuple[int, float]]:
    """A daemon's pid, and the seconds from its start to READY=1."""
    import socket  # noqa: PLC0415

    (directory / "state").mkdir(exist_ok=True)
    (directory / "log").mkdir(exist_ok=True)
    file = directory / "mlsecd.toml"
    file.write_text(CONFIG.format(dir=directory, port=port))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = directory / "notify"
        address.unlink(missing_ok=True)
        manager.bind(str(address))
        manager.settimeout(60)
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "mlsecd", "run", "--config", str(file), "--log-level", "error"],
            env={**ENVIRON, **env, "NOTIFY_SOCKET": str(address)},
        )
        try:
            while not manager.recv(4096).startswith(b"READY=1"):
                pass
            yield process.pid, time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(20)


def scrape_ms(port: int, count: int = 200) -> tuple[float, int]:
    """p99 of GET /metrics on a kept connection, milliseconds, and the series it had."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    times, body = [], b""
    for _ in range(count):
        started = time.perf_counter()
        connection.request("GET", "/metrics")
        body = connection.getresponse().read()
        times.append((time.perf_counter() - started) * 1e3)
        time.sleep(0.01)
    return statistics.quantiles(times, n=100)[98], sum(not line.startswith(b"#") for line in body.splitlines())


def command_seconds(*arguments: str) -> float:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mlsecd", *arguments], check=True, stdout=subprocess.DEVNULL, env=ENVIRON)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(seconds: float) -> Iterator[Row]:
    yield Row("--version", command_seconds("--version"), "s", budget=0.2)
    yield Row("check-config", command_seconds("check-config"), "s", budget=0.6)
    directory = Path(tempfile.mkdtemp(prefix="mlsecd-bench-"))
    port = 19_847
    try:
        library = build(directory / "nvml")
        state = FakeNvml(directory / "nvml.state", profile="b200")
        env = {"LD_LIBRARY_PATH": str(library.parent), "FAKENVML_STATE": str(state.path)}
        (directory / "state").mkdir()
        fit_baseline(directory)
        with daemon(directory, env, port):
            time.sleep(3)  # compiles and caches the kernels
        stop = threading.Event()
        with sleepers(600), daemon(directory, env, port) as (pid, ready):
            yield Row("start to READY=1, warm cache", ready, "s", budget=1.5)
            sender = threading.Thread(target=send_requests, args=(directory / "ingest.seqpacket", stop))
            sender.start()
            time.sleep(15)  # every account hot, every window begun
            pids = family(pid)
            before, began = cpu_seconds(pids), time.monotonic()
            time.sleep(seconds)
            used = (cpu_seconds(pids) - before) / (time.monotonic() - began)
            yield Row("CPU, main and child", used * 100, "% of a core", budget=3.0)
            yield Row("memory, main and child (PSS)", pss_mib(pids), "MiB", budget=200.0)
            p99, series = scrape_ms(port)
            yield Row(f"/metrics p99 at {series} series", p99, "ms", budget=10.0)
            stop.set()
            sender.join()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the CPU measurement")
    parser.add_argument("--json", action="store_true")
    arguments: Any = parser.parse_args(argv)
    report(measure(arguments.seconds), as_json=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
