"""A staged incident from symptom to finding: docs/host.md holds the transcript of this."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from daemons import Daemon, free_port, until

from tests.fakenvml import FakeNvml, build

CONFIG = """
[[detectors.gpu_foreign_process.allow]]
exe = "/opt/vllm/**"

[detectors.exposure_services]
after_tables = 1

[[detectors.integrity_weights.readers]]
exe = "/opt/vllm/**"

[sources.weights]
paths = ["{models}"]
interval_seconds = 0.5
"""


@contextmanager
def running(*command: str | Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*map(str, command)], **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def notebook(directory: Path) -> list[str]:
    command = [sys.executable, "-m", "jupyter_server", "--ip=0.0.0.0", f"--port={free_port()}", "--no-browser"]
    return [*command, "--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={directory}"]


@pytest.fixture
def state(tmp_path: Path) -> FakeNvml:
    build(tmp_path / "lib")
    return FakeNvml(tmp_path / "nvml.state", profile="h100")


def test_a_miner_an_open_notebook_and_a_copied_model(
    daemon: Callable[..., Daemon], state: FakeNvml, tmp_path: Path
) -> None:
    pytest.importorskip("jupyter_server")
    model = tmp_path / "models" / "model.safetensors"
    model.parent.mkdir()
    model.write_bytes(os.urandom(1 << 20))
    miner = tmp_path / "kdevtmpfsi"
    shutil.copy("/bin/sleep", miner)
    environ = {"LD_LIBRARY_PATH": str(tmp_path / "lib"), "FAKENVML_STATE": str(state.path)}
    state.processes(0, [])
    config = CONFIG.format(models=model.parent)
    one = daemon(environ, config)
    text = one.file.read_text().replace("[sources.processes]\n", "[sources.processes]\nlisten_seconds = 1\n")
    one.file.write_text(text)
    one.start()
    jupyter = {"HOME": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "PATH": os.environ["PATH"]}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:
        process = stack.enter_context(running(miner, "600"))
        state.processes(0, [(process.pid, 6 << 30, "compute", None)])
        stack.enter_context(running(*notebook(tmp_path), env=jupyter, cwd=tmp_path, **quiet))
        thief = "import sys, time; held = open(sys.argv[1], 'rb'); held.read(); time.sleep(600)"
        stack.enter_context(running(sys.executable, "-c", thief, model))
        wanted = {"gpu_foreign_process", "exposure_services", "integrity_weights"}
        mine = lambda: [f for f in one.findings() if f["severity"] in {"high", "critical"} and f["detector"] in wanted]  # noqa: E731
        until(lambda: {f["detector"] for f in mine()} == wanted, 90)
        time.sleep(0.5)
        found = {f["detector"]: f for f in mine() if str(tmp_path) in str(f) or f["detector"] != "exposure_services"}
    assert found["gpu_foreign_process"]["evidence"]["exe"] == str(miner)
    assert found["exposure_services"]["evidence"]["product"] == "Jupyter"
    assert found["exposure_services"]["severity"] == "critical"
    assert found["integrity_weights"]["evidence"]["file"] == str(model)
    for name in sorted(found):
        print(found[name]["severity"], name, found[name]["reason"], sep="  ")
