from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu_drive import drive, gpu, process, seconds, table
from support import Case

from mlsecd import kernels
from mlsecd.detectors._allow import Allow
from mlsecd.detectors.base import DetectorState
from mlsecd.detectors.gpu_unlisted_process import DETECTOR, GpuUnlistedProcess, Params
from mlsecd.meters import Meters
from mlsecd.records import Depth, Process, ProcessTable, Records, Severity
from mlsecd.sources.processes import Processes, ProcessesParams

CUDA = Depth(devices=("/dev/nvidia0", "/dev/nvidia-uvm", "/dev/nvidiactl"))
WATCHER = Depth(devices=("/dev/nvidia0", "/dev/nvidiactl"))
SERVER = process(100, "/opt/vllm/bin/python", depth=CUDA)
GHOST = process(666, "/tmp/x", uid=1000, depth=CUDA)


def make(**params: Any) -> GpuUnlistedProcess:
    return DETECTOR(Params(**params), kernels)


def stream(
    *processes: Process, listed: tuple[int, ...] | None = (100,), end: float = 130, **fields: Any
) -> list[Records]:
    samples = [gpu(ts, listed) for ts in seconds(0, end)]
    return [*samples, *(table(ts + 0.5, *processes, **fields) for ts in seconds(0, end, 5))]


def test_a_holder_that_nvml_leaves_out_is_told_of_after_a_while() -> None:
    found = drive(make(), stream(SERVER, GHOST))
    assert [one.ts for one in found] == [60.5, 120.5]
    assert found[0].severity is Severity.MEDIUM
    assert found[0].subject == "/tmp/x uid=1000 unlisted"
    assert (
        found[0].reason
        == '"/tmp/x" (pid 666, uid 1000) has a GPU open, and NVML has listed it on none of 1 GPUs for 60 s'
    )
    assert found[0].evidence["devices"] == ["/dev/nvidia0", "/dev/nvidia-uvm", "/dev/nvidiactl"]


@pytest.mark.parametrize(
    ("what", "processes"),
    [
        ("listed", (SERVER,)),
        ("only watches", (SERVER, process(50, "/usr/bin/nvidia-persistenced", depth=WATCHER))),
        ("a forked worker", (SERVER, process(101, SERVER.exe, ppid=100, depth=CUDA))),
        ("a grandchild", (SERVER, process(101, SERVER.exe, ppid=100), process(102, SERVER.exe, ppid=101, depth=CUDA))),
        ("not looked at", (SERVER, process(666, "/tmp/x"))),
        ("not readable", (SERVER, process(666, "/tmp/x", depth=Depth()))),
    ],
)
def test_what_is_no_finding(what: str, processes: tuple[Process, ...]) -> None:
    assert drive(make(), stream(*processes)) == [], what


def test_a_child_that_runs_something_else_is_no_worker() -> None:
    assert drive(make(), stream(SERVER, process(101, "/tmp/x", ppid=100, depth=CUDA)))


def test_an_allowed_one_is_left_alone() -> None:
    assert drive(make(allow=(Allow(exe="/tmp/x", uid=1000),)), stream(SERVER, GHOST)) == []


def test_without_lists_or_the_hosts_own_table_it_is_blind_and_says_so() -> None:
    for records, state in (
        (stream(GHOST, listed=None), DetectorState.STALE),
        (stream(GHOST, kernel=False), DetectorState.MISMATCH),
        (stream(GHOST, complete=False), DetectorState.MISMATCH),
    ):
        detector = make()
        assert drive(detector, records) == []
        assert detector.standing().state is state


def test_one_gpu_that_does_not_answer_makes_all_doubtful() -> None:
    other = [gpu(ts, (666,) if ts < 5 else None, "GPU-b") for ts in seconds(0, 130)]
    assert drive(make(), [*stream(SERVER, GHOST), *other]) != [], "a GPU that stopped listing is left out"
    silent = [gpu(ts, (666,), "GPU-b") for ts in seconds(0, 5)]
    found = drive(make(), [*stream(SERVER, GHOST), *silent])
    assert found == [], "a GPU that fell silent may be where the process is"


def test_a_real_process_with_an_open_device_is_found(tmp_path: Path) -> None:
    """From a real descriptor by the real source to the finding."""
    node = tmp_path / "nvidia-uvm"
    node.write_bytes(b"x" * 4096)
    code = "import sys, time; held = open(sys.argv[1]); print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(node)], stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
        source = Processes(ProcessesParams(depth_seconds=0.01, device_prefix=f"{tmp_path}/nvidia"), Meters())
        try:
            (first,) = source.poll(time.monotonic() + 30).records
        finally:
            one.kill()
    assert isinstance(first, ProcessTable)
    tables = [table(ts, *(p for p in first.processes if p.pid > 2), kernel=True) for ts in (0.5, 5.5)]
    found = drive(make(after_seconds=5), [gpu(0, ()), gpu(5, ()), *tables])
    assert [(f.evidence["pid"], f.evidence["devices"]) for f in found] == [(one.pid, [str(node)])]


def conformance() -> Case:
    records: list[Records] = sorted(stream(SERVER, GHOST), key=lambda one: one.ts)  # type: ignore[union-attr]

    def flood(n: int) -> list[Records]:
        return [
            gpu(0, (100,)),
            *(
                table(5.0 * i, *(process(1000 + n * i + j, f"/tmp/{j}", depth=CUDA) for j in range(n)))
                for i in range(2)
            ),
            *(gpu(20 + i, (1,), f"GPU-{i}", host=f"h{i}") for i in range(n)),
        ]

    return Case(DETECTOR, Params(), records, Params(), flood)
