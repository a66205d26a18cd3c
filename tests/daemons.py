"""A whole daemon, as a user starts it: its own process, a configuration file, real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """\
[daemon]
state_dir = "{dir}/state"
tick_seconds = 0.1
snapshot_seconds = 5

[fold]
lateness_seconds = 0.5
interval_seconds = 1

[sources.nvml]
interval_seconds = 0.2

[sources.processes]
interval_seconds = 0.5

[sources.request_socket]
path = "{dir}/ingest.seqpacket"
stream_path = "{dir}/ingest.stream"

[sinks.forensic_log]
directory = "{dir}/log"

[web]
listen = "127.0.0.1:{port}"
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until it is true; its value, or a failure that shows the last one."""
    end = time.monotonic() + seconds
    value = None
    while time.monotonic() < end:
        with contextlib.suppress(OSError, urllib.error.URLError):
            value = what()
            if value:
                return value
        time.sleep(0.05)
    pytest.fail(f"never true within {seconds} s; the last value was {value!r}")


class Daemon:
    """One daemon and what can be seen of it from outside."""

    def __init__(self, directory: Path, env: dict[str, str] | None = None, config: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        for name in ("state", "log"):
            (directory / name).mkdir(exist_ok=True)
        self.file = directory / "mlsecd.toml"
        self.configure(config)
        self.env = {**os.environ, **(env or {}), "NOTIFY_SOCKET": str(directory / "notify")}
        self.notified: list[str] = []
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(directory / "notify"))
        self._manager.settimeout(0.1)
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, extra: str) -> None:
        self.file.write_text(CONFIG.format(dir=self.directory, port=self.port) + extra)

    def start(self) -> Daemon:
        self.stderr = self.directory / "stderr"
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlsecd", "run", "--config", str(self.file), "--log-format", "json"],
                env=self.env,
                cwd=self.directory,
                stderr=stderr,
            )
        until(lambda: self.heard("READY=1"), 60)
        return self

    def heard(self, line: str) -> bool:
        """Whether systemd was told this since the last time it was asked for."""
        assert self.process is not None
        assert self.process.poll() is None, self.stderr.read_text()
        with contextlib.suppress(TimeoutError):
            while True:
                self.notified += self._manager.recv(4096).decode().splitlines()
        found = line in self.notified
        if found:
            self.notified.clear()
        return found

    def get(self, path: str, accept: str = "") -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, series: str) -> float | None:
        """The value of one series as it is written in the exposition."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(series + " "):
                return float(line.rpartition(" ")[2])
        return None

    def findings(self) -> list[dict[str, Any]]:
        """The findings in the forensic log, as mlsecd's own lines."""
        lines = [
            json.loads(line)
            for segment in sorted((self.directory / "log").glob("*.jsonl"))
            for line in segment.read_text().splitlines()
        ]
        return [line["unmapped"]["mlsecd"] for line in lines if "unmapped" in line]

    def log(self) -> list[dict[str, Any]]:
        """The daemon's own log."""
        return [json.loads(line) for line in self.stderr.read_text().splitlines() if line.startswith("{")]

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> float:
        """SIGTERM, and the seconds that it took."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        assert code == 0, self.stderr.read_text()
        return time.monotonic() - started

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self._manager.close()
