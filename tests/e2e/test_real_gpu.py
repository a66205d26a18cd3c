"""A whole daemon on a real GPU: `make test-gpu`. What no stand-in and no simulator can show."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon, until

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

ON = 'kernels = "cuda"'
MOVED = 'mlsecd_kernel_switches_total{{reason="{reason}",to="{to}"}}'
# another's program that keeps the GPU busy until it is killed
HOG = """
from numba import cuda
@cuda.jit
def work(out, rounds):
    x = out[cuda.threadIdx.x]
    for i in range(rounds):
        x = x * 0.5 + 1.0
    out[cuda.threadIdx.x] = x
out = cuda.to_device([0.0] * 256)
while True:
    work[1024, 256](out, 2_000_000)
    cuda.synchronize()
"""


def keep(name: str, text: str) -> None:
    """What a report wants to show, where the caller asked for it."""
    if directory := os.environ.get("MLSECD_GPU_REPORT"):
        (Path(directory) / name).write_text(text)


@pytest.fixture
def guest(daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that may use the GPU, with a baseline and 100 requests a second."""
    from bench.host import fit_baseline, send_requests  # noqa: PLC0415 - it fits for seconds

    one = daemon(config='\n[[detectors.gpu_foreign_process.allow]]\nexe = "/opt/vllm/**"\n')
    one.file.write_text(one.file.read_text().replace("[daemon]\n", f"[daemon]\n{ON}\n"))
    fit_baseline(tmp_path)
    one.start()
    stop = threading.Event()
    sender = threading.Thread(target=send_requests, args=(tmp_path / "ingest.seqpacket", stop))
    sender.start()
    yield one
    stop.set()
    sender.join()


def test_it_is_a_guest_that_is_no_finding_and_makes_room(guest: Daemon) -> None:
    until(lambda: guest.metric('mlsecd_source_up{source="nvml"}') == 1.0)
    until(lambda: guest.metric("mlsecd_kernels_on_gpu") == 1.0, 120)
    assert guest.process is not None
    pid = guest.process.pid
    until(lambda: str(pid) in shown_by_nvidia_smi(), 30)
    assert guest.metric(MOVED.format(to="cuda", reason="free"))
    busy_from_the_beginning = [one for one in guest.findings() if one["detector"].startswith("gpu_foreign")]
    keep("metrics_on_gpu.txt", guest.get("/metrics")[1] + shown_by_nvidia_smi())
    keep("log.txt", guest.stderr.read_text())
    assert not busy_from_the_beginning, "it judged itself"
    busy = subprocess.Popen([sys.executable, "-c", HOG])
    try:
        until(lambda: guest.metric("mlsecd_kernels_on_gpu") == 0.0, 60)
        assert guest.metric(MOVED.format(to="cpu", reason="busy"))
        found = until(lambda: [one for one in guest.findings() if one["detector"] == "gpu_foreign_process"], 60)
        assert {one["evidence"]["pid"] for one in found} == {busy.pid}
        keep("metrics_busy.txt", guest.get("/metrics")[1])
    finally:
        busy.kill()
        busy.wait()
    until(lambda: guest.metric("mlsecd_kernels_on_gpu") == 1.0, 120)  # a minute's pause, then it comes back
    keep("log.txt", guest.stderr.read_text())
    assert guest.stop() < 10


def shown_by_nvidia_smi() -> str:
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout


def test_what_this_driver_answers(daemon: Callable[..., Daemon]) -> None:
    """Every reading that a data-centre card has, and a doctor that agrees."""
    one = daemon()
    one.file.write_text(one.file.read_text().replace("[sources.nvml]\n", "[sources.nvml]\nactivity = true\n"))
    one.start()
    until(lambda: one.get("/metrics")[1].count("mlsecd_gpu_up{") >= 1)
    until(lambda: "mlsecd_gpu_power_watts{" in one.get("/metrics")[1])
    body = one.get("/metrics")[1]
    keep("metrics_idle.txt", body)
    command = [sys.executable, "-m", "mlsecd", "doctor", "--config", str(one.file)]
    doctor = subprocess.run(command, capture_output=True, text=True, check=False)
    keep("doctor.txt", doctor.stdout + doctor.stderr)
    for name in ("utilization_ratio", "memory_used_bytes", "temperature_celsius", "energy_joules_total"):
        assert f"mlsecd_gpu_{name}{{" in body, name
    assert one.stop() < 10
