"""A real Prometheus and a real Alertmanager on the shipped configuration; receivers note what they are sent."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from daemons import free_port, until

CONFIG = Path(__file__).resolve().parents[1] / "config"


class Post(NamedTuple):
    """What a receiver was sent, and when."""

    at: float  # wall clock
    path: str
    body: dict[str, Any]

    @property
    def names(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.body["alerts"]}


class Receivers(http.server.ThreadingHTTPServer):
    """The pager, the ticket system and the dead man's switch."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.posts: list[Post] = []

    def sent(self, path: str) -> list[Post]:
        return [post for post in self.posts if post.path == path]


class _Receive(http.server.BaseHTTPRequestHandler):
    server: Receivers

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posts.append(Post(time.time(), self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def get(url: str, data: Any = None) -> Any:
    """The answer to a GET, or to a POST of JSON."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read()
    return json.loads(text) if text[:1] in {b"{", b"["} else text.decode()


class Monitoring:
    """Prometheus and Alertmanager on free ports; what is started here ends with ``stack``."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack, *, must: bool) -> None:
        self._directory = directory
        self._stack = stack
        self._must = must
        self.prometheus, self.alertmanager = free_port(), free_port()
        self.receivers = stack.enter_context(_served(Receivers()))

    def start(self, *daemons: int, more: str = "") -> None:
        """Start both, and wait until Prometheus has scraped each daemon; ``more`` ends the scrape configuration."""
        self.start_alertmanager()
        (self._directory / "prometheus.yml").write_text(_prometheus_yml(daemons, self.alertmanager) + more)
        rules = (CONFIG / "prometheus" / "mlsecd.rules.yml").read_text()
        (self._directory / "mlsecd.rules.yml").write_text(rules.replace("interval: 30s", "interval: 1s"))
        self._run(
            "prometheus",
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=tsdb",
            f"--web.listen-address=127.0.0.1:{self.prometheus}",
            "--enable-feature=exemplar-storage",
            "--rules.alert.resend-delay=2s",  # what fires before Alertmanager is discovered is else sent after a minute
            "--log.level=warn",
        )
        until(lambda: self.query(f'count(up{{job="mlsecd"}} == 1) == {len(daemons)}'))

    def start_alertmanager(self) -> None:
        routes = (CONFIG / "alertmanager" / "alertmanager.yml").read_text()
        (self._directory / "alertmanager.yml").write_text(
            routes.replace("https://alerts.mlsecd.example", f"http://127.0.0.1:{self.receivers.server_address[1]}")
        )
        self._run(
            "prometheus-alertmanager" if shutil.which("prometheus-alertmanager") else "alertmanager",
            "--config.file=alertmanager.yml",
            "--storage.path=alertmanager",
            f"--web.listen-address=127.0.0.1:{self.alertmanager}",
            "--cluster.listen-address=",
            "--log.level=warn",
        )
        until(lambda: get(f"http://127.0.0.1:{self.alertmanager}/-/ready"))

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples that an expression gives now."""
        url = f"http://127.0.0.1:{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        return list(get(url)["data"]["result"])

    def rule_errors(self) -> list[str]:
        groups = get(f"http://127.0.0.1:{self.prometheus}/api/v1/rules")["data"]["groups"]
        return [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")]

    def _run(self, name: str, *args: str) -> None:
        program = shutil.which(name)
        if program is None:
            assert not self._must, f"{name} is not installed"
            pytest.skip(f"{name} is not installed")
        output = self._stack.enter_context((self._directory / f"{name}.log").open("wb"))
        process = subprocess.Popen([program, *args], stdout=output, stderr=output, cwd=self._directory)
        self._stack.callback(_end, process)


@contextlib.contextmanager
def _served(server: Receivers) -> Iterator[Receivers]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _prometheus_yml(daemons: tuple[int, ...], alertmanager: int) -> str:
    """The shipped example with other ports, and scraping once a second."""
    text = (CONFIG / "prometheus" / "prometheus.yml").read_text()
    for old, new in {
        "_interval: 15s": "_interval: 1s",
        "scrape_timeout: 10s": "scrape_timeout: 1s",
        '"127.0.0.1:9847"': ", ".join(f'"127.0.0.1:{port}"' for port in daemons),
        '"127.0.0.1:9093"': f'"127.0.0.1:{alertmanager}"',
    }.items():
        assert old in text
        text = text.replace(old, new)
    return text
