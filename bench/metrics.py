"""GET /metrics at 1,000 series: latency over kept-alive connections, and what rendering costs.

The peer is prometheus_client's own server on the same series, which renders in every scrape.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from mlsecd.meters import Meters
from mlsecd.records import GpuSample, Severity
from mlsecd.sinks.metrics_view import Build, DetectorHealth, MetricsView
from mlsecd.sinks.prometheus import PrometheusSink
from mlsecd.web.routes import Pages, routes
from mlsecd.web.server import WebServer

ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
Row = dict[str, Any]


def view(tick: int, series: int) -> MetricsView:
    """Eight GPUs and twenty detectors at work, and as many further counters as make up the number."""
    gpus = [
        GpuSample(
            ts=time.time(),
            gpu=f"GPU-5d1e0c2a-77aa-4c1e-9b1e-{i:012d}",
            index=i,
            name="NVIDIA H100 80GB HBM3",
            utilization=(tick % 97) / 97,
            memory_utilization=0.5,
            memory_used_bytes=tick * 1_000_000,
            memory_total_bytes=85_000_000_000,
            power_watts=400.0 + tick % 50,
            temperature_celsius=60.0 + tick % 5,
            sm_clock_hz=1.98e9,
            energy_joules=tick * 400.0,
        )
        for i in range(8)
    ]
    detectors = [
        DetectorHealth(f"extraction_detector_{i}", "armed", "", {"calibration_clients": 2000.0}, float(tick))
        for i in range(20)
    ]
    findings = {(one.name, severity, False): 1.0 for one in detectors for severity in Severity}
    fixed = 20 * (5 + 7 + 1 + 1) + 8 * (1 + 4 + 1 + 8) + 10 + 4 + 6
    rows = {(("reason", f"reason_{i}"), ("where", "bench")): float(tick + i) for i in range(max(0, series - fixed))}
    return MetricsView(
        now=time.time(),
        build=Build("0", "0", "3", "cpu"),
        counters={"mlsecd_dropped_total": rows},
        detectors=detectors,
        findings=findings,
        gpus=gpus,
    )


def visit(port: int, args: argparse.Namespace, path: str = "/metrics") -> list[float]:
    """Run the clients in a process of their own, as scrapers are: they must not wait for the server's GIL."""
    words = [str(word) for word in (port, args.threads, args.seconds, args.pause, path)]
    command = [sys.executable, __file__, "--client", *words]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return sorted(json.loads(ran.stdout))


def load(port: int, threads: int, seconds: float, pause: float, path: str = "/metrics") -> list[float]:
    """Milliseconds of each GET, from clients that keep their connections open."""
    took: list[list[float]] = [[] for _ in range(threads)]
    until = time.monotonic() + seconds

    def client(mine: list[float]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while not mine or time.monotonic() < until:
            started = time.perf_counter()
            connection.request("GET", path, headers={"Accept": ACCEPT})
            answer = connection.getresponse()
            body = answer.read()
            mine.append(1e3 * (time.perf_counter() - started))
            if answer.status != 200 or not body:
                raise SystemExit(f"unexpected answer: {answer.status}, {len(body)} bytes")
            time.sleep(pause)
        connection.close()

    workers = [threading.Thread(target=client, args=(mine,)) for mine in took]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sorted(one for mine in took for one in mine)


def at(values: list[float], quantile: float) -> float:
    return values[min(len(values) - 1, int(quantile * len(values)))]


def ours(series: int, args: argparse.Namespace) -> tuple[float, list[float], list[float], PrometheusSink]:
    meters = Meters()
    sink = PrometheusSink(meters)
    pages = Pages(metrics=sink.body, status=lambda: None, beat_age=lambda: 0.0)
    server = WebServer("127.0.0.1:0", routes(pages), meters)
    stop = threading.Event()

    def tick() -> None:
        count = 0
        while not stop.wait(0.5):
            count += 1
            sink.publish(view(count, series))

    sink.publish(view(0, series))
    sink.start()
    server.start()
    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        [first] = load(server.port, 1, 0.0, 0.0)
        return first, visit(server.port, args), visit(server.port, args, "/-/healthy"), sink
    finally:
        stop.set()
        ticker.join()
        server.stop()
        sink.stop()
        print(f"{meters.value('mlsecd_metrics_series'):.0f} series", file=sys.stderr)


def theirs(series: int, args: argparse.Namespace) -> list[float]:
    registry = CollectorRegistry()
    gauge = Gauge("peer_gauge", "As many series.", ["where", "reason"], registry=registry)
    for i in range(series):
        gauge.labels("bench", f"reason_{i}").set(i)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        return visit(server.server_port, args)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def cpu_ms(sink: PrometheusSink, publish: Callable[[int], None], rounds: int = 20) -> float:
    """CPU milliseconds of one rendering of new numbers, gzip included."""
    started = time.process_time()
    for i in range(rounds):
        publish(i)
        sink._ready.clear()  # noqa: SLF001 - the cache is what this passes by
        sink.body(ACCEPT, "gzip")
    return 1e3 * (time.process_time() - started) / rounds


def rows(args: argparse.Namespace) -> list[Row]:
    series = args.series
    first, mine, control, sink = ours(series, args)
    peer = theirs(series, args)
    made: list[Row] = [{"name": "metrics_get_first", "value": first, "unit": "ms", "peer": None, "ratio": None}]
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):
        ms, other = at(mine, quantile), at(peer, quantile)
        made.append(
            {"name": f"metrics_get_{name}", "value": ms, "unit": "ms", "peer": other, "ratio": other / ms},
        )
    # an answer of eight bytes: what this machine's scheduling costs, whatever is asked
    made.append({"name": "control_get_p99", "value": at(control, 0.99), "unit": "ms", "peer": None, "ratio": None})
    cost = cpu_ms(sink, lambda i: sink.publish(view(1_000 + i, series)))
    made.append({"name": "metrics_render_cpu", "value": cost, "unit": "ms", "peer": None, "ratio": None})
    made.append({"name": "metrics_gets", "value": len(mine), "unit": "requests", "peer": len(peer), "ratio": None})
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=4, help="clients, each on a connection of its own")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between a client's requests")
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.client:
        port, threads, seconds, pause, path = args.client
        print(json.dumps(load(int(port), int(threads), float(seconds), float(pause), path)))
        return 0
    made = rows(args)
    if args.json:
        print(json.dumps(made))
        return 0
    for row in made:
        peer = "" if row["peer"] is None else f"   prometheus_client {row['peer']:.3f}"
        print(f"{row['name']:22} {row['value']:9.3f} {row['unit']}{peer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
