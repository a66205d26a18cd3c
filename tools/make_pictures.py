"""Pictures for the docs: dashboards with Grafana's own components, and the landing page, in a real browser.

``make pictures``. It needs npm, chromium and prometheus, and plays the bundled recording on stand-in GPUs.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
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
SECONDS = 150  # of recording before the pictures are taken
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


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlsecd-pictures-")))
        bundle(work / "page")
        state = FakeNvml(work / "nvml.state", profile="b200")
        library = build(work / "fakenvml")
        (work / "state").mkdir()
        shutil.copy(ROOT / "mlsecd" / "data" / "demo" / "baseline.npz", work / "state")
        plays = f'[sources.recording]\nenabled = true\nsocket = "{work}/ingest.seqpacket"\n'
        env = {"LD_LIBRARY_PATH": str(library.parent), "FAKENVML_STATE": str(state.path)}
        daemon = Daemon(work, env, plays + "[detectors.extraction_account]\nclient_alpha = 0.02\n")
        stack.callback(daemon.close)
        daemon.start()
        monitoring = Monitoring(work, stack, must=True)
        monitoring.start(daemon.port)
        until(lambda: monitoring.query("mlsecd_finding_active"), 120)
        time.sleep(SECONDS)
        server = stack.enter_context(
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(work / "page", monitoring.prometheus))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        values = {name: "true" if name == "$synthetic" else value for name, value in VALUES.items()}
        asked = {"end": int(time.time()) - 2, "seconds": SECONDS, "values": json.dumps(values)}
        for name, board in boards().items():
            rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
            query = urllib.parse.urlencode({"board": name, **asked})
            shoot(f"http://127.0.0.1:{server.server_address[1]}/?{query}", f"{name}.png", 1400, 60 + rows * CELL)
        shoot(f"http://127.0.0.1:{daemon.port}/?refresh=0", "landing-page.png", 1280, 1500)
        shoot(f"http://127.0.0.1:{daemon.port}/?refresh=0", "landing-page-phone.png", 500, 1400)


if __name__ == "__main__":
    main()
