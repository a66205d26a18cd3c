"""``mlsecd run --demo``: the daemon on a bundled recording, in a directory of its own."""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from mlsecd import config, daemon

__all__ = ["configuration", "run"]

_TEXT = """\
[daemon]
host = "demo"
state_dir = "{directory}/state"
baseline = "{data}/baseline.npz"

[sources.recording]
enabled = true
socket = "{directory}/ingest.seqpacket"

[sources.request_socket]
path = "{directory}/ingest.seqpacket"
stream_path = "{directory}/ingest.stream"

[sinks.forensic_log]
directory = "{directory}/log"

[detectors.extraction_account]
client_alpha = 0.02  # a lively show: one ordinary client in fifty may alarm

[[detectors.gpu_foreign_process.allow]]
exe = "/opt/vllm/**"
unit = "vllm.service"
"""

_WELCOME = """\
mlsecd demo: a bundled recording plays through the real request socket, over and over.
  in it: ordinary clients, one client that steals the model (from second 12),
         and a GPU used by a program that nobody allowed (from second 20).
  also watched, for real: this host's processes, and its GPUs if it has any.
  look at   http://{listen}/           what is found, what is on, what is blind
            http://{listen}/metrics    what Prometheus would scrape
            {directory}/log/    the forensic log (removed when the demo ends)
  It brings a baseline, an allow list and a lively threshold (1 ordinary client in 50 may alarm).
  Everything found in the recording says synthetic="true". Stop with Ctrl-C.
"""


def configuration(directory: Path, overrides: tuple[str, ...] = ()) -> config.Config:
    """The demo's configuration with its files under ``directory``."""
    data = Path(str(resources.files("mlsecd"))) / "data" / "demo"
    return config.parse(_TEXT.format(directory=directory, data=data), "(built-in demo)", overrides)


def run(overrides: tuple[str, ...]) -> int:
    """Run the demo until it is told to stop; its directory goes with it."""
    directory = Path(tempfile.mkdtemp(prefix="mlsecd-demo-"))
    try:
        for name in ("state", "log"):
            (directory / name).mkdir(mode=0o700)
        loaded = configuration(directory, overrides)
        print(_WELCOME.format(listen=loaded.web.listen, directory=directory), file=sys.stderr)
        return daemon.Daemon(lambda: configuration(directory, overrides)).run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
