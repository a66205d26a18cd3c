"""Pictures for the docs: dashboards with Grafana's own components, and the landing page, in a real browser.

``make pictures``. It needs npm, chromium and prometheus. A daemon plays the bundled recording on stand-in GPUs, and an
incident is staged: a program that nobody allowed takes one GPU, and another GPU drops off the bus.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from boards import VALUES, boards  # noqa: E402 - tests/boards.py
from daemons import Daemon, until  # noqa: E402
from monitoring import Monitoring  # noqa: E402

from tests.fakenvml import FakeNvml, build  # noqa: E402

SOURCE, PICTURES = ROOT / "grafana" / "picture", ROOT / "docs" / "pictures"
SECONDS = 150  # of recording before the pictures are taken, half of them before the incident
PLAYED = """
[sources.recording]
enabled = true
socket = "{work}/ingest.seqpacket"

[detectors.extraction_account]
client_alpha = 0.02

[[detectors.gpu_foreign_process.allow]]
exe = "/opt/vllm/**"
"""
NAMED = """\
    relabel_configs:
      - {target_label: instance, replacement: "gpu-01:9847"}
"""
CELL = 34  # pixels of a row of Grafana's grid, as main.jsx draws it
LOADERS = [f"--loader:.{kind}=dataurl" for kind in ("svg", "ttf", "woff2")]


def bundle(work: Path) -> None:
    """Grafana's components and main.jsx as one script."""
    shutil.copytree(SOURCE, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    quiet = ["--silent", "--ignore-scripts", "--legacy-peer-deps", "--no-audit"]
    subprocess.run(["npm", "install", *quiet], cwd=work, check=True)
    esbuild = next((work / "node_modules" / "@esbuild").glob("*/bin/esbuild"))
    options = [
        "--bundle",
        "--outfile=bundle.js",
        "--jsx=automatic",
        "--format=esm",
        '--define:process.env.NODE_ENV="production"',
    ]
    subprocess.run([esbuild, "main.jsx", *options, *LOADERS, "--log-level=error"], cwd=work, check=True)


def handler(work: Path, prometheus: int) -> type[http.server.BaseHTTPRequestHandler]:
    """Serves the page and the dashboards, and passes questions on to Prometheus."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.urlsplit(self.path).path
            if path.startswith("/api/"):
                with urllib.request.urlopen(f"http://127.0.0.1:{prometheus}{self.path}", timeout=20) as answer:
                    data = answer.read()
            elif path.startswith("/boards/"):
                data = (ROOT / "grafana" / "dashboards" / Path(path).name).read_bytes()
            else:
                data = (work / (path[1:] if path in {"/bundle.js", "/bundle.css"} else "index.html")).read_bytes()
            self.send_response(200)
            kinds = {"/": "text/html", "/bundle.js": "text/javascript", "/bundle.css": "text/css"}
            self.send_header("Content-Type", kinds.get(path, "application/json"))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def shoot(url: str, name: str, width: int, height: int) -> None:
    """One picture of one page."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]
    where = [f"--window-size={width},{height}", f"--screenshot={PICTURES / name}"]
    subprocess.run(["chromium", *options, *where, url], check=True, capture_output=True, timeout=180)


def start_daemon(work: Path, stack: contextlib.ExitStack, env: dict[str, str]) -> Daemon:
    """One that plays the recording against the bundled baseline."""
    (work / "state").mkdir()
    shutil.copy(ROOT / "mlsecd" / "data" / "demo" / "baseline.npz", work / "state")
    daemon = Daemon(work, env, PLAYED.format(work=work))
    # the shipped lateness: what is played through a socket is late for the tests' half second
    text = daemon.file.read_text().replace("lateness_seconds = 0.5", "lateness_seconds = 2.0")
    syslog = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    syslog.bind(str(work / "syslog"))  # one that listens is enough
    anchored = f'[sinks.forensic_log]\nanchor = "{work}/syslog"\n'
    daemon.file.write_text(text.replace("[sinks.forensic_log]\n", anchored))
    stack.callback(daemon.close)
    return daemon.start()


def stage(work: Path, stack: contextlib.ExitStack, state: FakeNvml) -> None:
    """The incident. The miner is a copy of sleep by a known miner's name."""
    miner = work / "kdevtmpfsi"
    shutil.copy("/bin/sleep", miner)
    process = subprocess.Popen([miner, "600"])
    stack.callback(process.wait)
    stack.callback(process.kill)
    state.processes(2, [(process.pid, 6 << 30, "compute", None)])
    state.lose(3)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlsecd-pictures-")))
        bundle(work / "page")
        state = FakeNvml(work / "nvml.state", profile="b200")
        library = build(work / "fakenvml")
        for gpu in range(len(state.gpus)):
            state.set(gpu, accounting_mode=1)
        daemon = start_daemon(work, stack, {"LD_LIBRARY_PATH": str(library.parent), "FAKENVML_STATE": str(state.path)})
        monitoring = Monitoring(work, stack, must=True)
        monitoring.start(daemon.port, more=NAMED)
        until(lambda: monitoring.query("mlsecd_finding_active"), 120)
        time.sleep(SECONDS / 2)
        stage(work, stack, state)
        until(lambda: monitoring.query('mlsecd_finding_active{detector="gpu_foreign_process", synthetic="false"}'), 60)
        time.sleep(SECONDS / 2)
        server = stack.enter_context(
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(work / "page", monitoring.prometheus))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        worst = monitoring.query('mlsecd_finding_active{detector="gpu_foreign_process", synthetic="false"}')[0]
        values = {**VALUES, "$synthetic": "true|false", "$finding": worst["metric"]["finding"]}
        asked = {"end": int(time.time()) - 2, "seconds": SECONDS, "values": json.dumps(values)}
        for name, board in boards().items():
            rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
            query = urllib.parse.urlencode({"board": name, **asked})
            shoot(f"http://127.0.0.1:{server.server_address[1]}/?{query}", f"{name}.png", 1400, 60 + rows * CELL)
        shoot(f"http://127.0.0.1:{daemon.port}/?refresh=0", "landing-page.png", 1280, 1500)
        shoot(f"http://127.0.0.1:{daemon.port}/?refresh=0", "landing-page-phone.png", 500, 1400)


if __name__ == "__main__":
    main()
