from __future__ import annotations

import os
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
from mlsecd.detectors.process_inference import DETECTOR, Params, ProcessInference
from mlsecd.meters import Meters
from mlsecd.records import Declared, Depth, Finding, Process, ProcessTable, Records, Severity
from mlsecd.sources.processes import Processes, ProcessesParams

SPACES = ("mnt:[1]", "net:[2]", "pid:[3]", "user:[4]")
WELL = Depth(devices=("/dev/nvidia-uvm",), tracer=0, capabilities=0, namespaces=SPACES, preload=(), mappings=())
SERVER = process(100, "/opt/vllm/bin/python", unit="vllm.service", depth=WELL)
WORKER = process(101, "/opt/vllm/bin/python", ppid=100)


def make(**params: Any) -> ProcessInference:
    return DETECTOR(Params(**params), kernels)


def changed(**fields: Any) -> Process:
    known = {name: getattr(WELL, name) for name in Depth.__slots__}
    return process(100, "/opt/vllm/bin/python", unit="vllm.service", depth=Depth(**{**known, **fields}))


def then(*later: Process, at: float = 600, end: float = 620, **params: Any) -> list[Finding]:
    """A server that is well until ``at``, and what the tables show after."""
    shown = lambda ts: (SERVER, WORKER, *later) if ts >= at else (SERVER, WORKER)  # noqa: E731
    if any(one.pid == 100 for one in later):
        shown = lambda ts: (*later, WORKER) if ts >= at else (SERVER, WORKER)  # noqa: E731
    return drive(make(**params), [table(ts, *shown(ts)) for ts in seconds(0, end, 5)])


@pytest.mark.parametrize(
    ("exe", "severity"),
    [
        ("/usr/bin/bash", Severity.HIGH),
        ("/bin/busybox", Severity.HIGH),
        ("/usr/bin/curl", Severity.HIGH),
        ("/usr/bin/x86_64-linux-gnu-gcc-12", Severity.LOW),
        ("/usr/bin/gcc-12", Severity.LOW),
        ("/tmp/xmrig", Severity.HIGH),
        ("/memfd:a (deleted)", Severity.CRITICAL),
        ("/opt/vllm/bin/helper (deleted)", Severity.MEDIUM),
        ("/usr/bin/nvidia-smi", None),
        (None, None),
    ],
)
def test_children_of_a_server(exe: str | None, severity: Severity | None) -> None:
    found = then(process(666, exe, ppid=101, cmdline=("x", "-i")))
    assert [one.severity for one in found] == ([severity] if severity else [])
    if found:
        assert found[0].ts == 600.0
        assert (found[0].evidence["server_pid"], found[0].evidence["pid"]) == (100, 666)


def test_a_shell_says_who_started_it() -> None:
    (found,) = then(process(666, "/usr/bin/bash", ppid=100, uid=997))
    assert found.subject == "/opt/vllm/bin/python uid=997 child /usr/bin/bash"
    assert found.reason == (
        '"/opt/vllm/bin/python" (pid 100, vllm.service) started a shell: "/usr/bin/bash" (pid 666, uid 997)'
    )


def test_shells_of_others_and_of_a_server_that_just_started_are_ordinary() -> None:
    shell = process(666, "/usr/bin/bash", ppid=1)
    assert then(shell) == []
    late = process(200, "/opt/vllm/bin/python", depth=WELL)
    compiler = process(666, "/usr/bin/bash", ppid=200)
    assert then(late, compiler) == [], "its kernels are compiled while it starts"
    assert then(late, process(666, "/tmp/x", ppid=200)) != [], "what is dropped in /tmp is not"
    assert then(compiler, late, end=1000) != [], "five minutes are enough"


def test_what_runs_when_the_daemon_starts_is_not_young() -> None:
    shell = process(666, "/usr/bin/bash", ppid=100)
    assert [one.ts for one in drive(make(), [table(ts, SERVER, shell) for ts in seconds(0, 20, 5)])] == [0.0]


def test_a_child_may_be_allowed() -> None:
    assert then(process(666, "/usr/bin/gcc", ppid=100), children=(Allow(exe="/usr/bin/gcc", unit=""),)) == []


@pytest.mark.parametrize(
    ("fields", "what", "severity"),
    [
        ({"mappings": ("/memfd:payload (deleted)",)}, "mapping memory", Severity.HIGH),
        ({"mappings": ("/tmp/evil.so",)}, "mapping /tmp/evil.so", Severity.HIGH),
        ({"mappings": ("/opt/vllm/lib/x.so (deleted)",)}, "mapping /opt/vllm/lib/x.so (deleted)", Severity.LOW),
        ({"mappings": ("/tmp/torchinductor_vllm/ab/c.so",)}, None, None),
        ({"tracer": 4242}, "tracer", Severity.HIGH),
        ({"preload": ("LD_PRELOAD=/tmp/a.so",)}, "preload LD_PRELOAD=/tmp/a.so", Severity.MEDIUM),
        ({"preload": ("LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",)}, None, None),
        ({"namespaces": ("mnt:[9]", *SPACES[1:])}, "namespaces", Severity.HIGH),
        ({"capabilities": 1 << 21}, "capabilities", Severity.HIGH),
        ({"capabilities": 1 << 10}, None, None),  # NET_BIND_SERVICE
        ({"mappings": None, "tracer": None, "capabilities": None, "namespaces": None}, None, None),
    ],
)
def test_what_is_odd_about_a_server(fields: dict[str, Any], what: str | None, severity: Severity | None) -> None:
    found = then(changed(**fields))
    assert [(one.evidence["what"], one.severity) for one in found] == ([(what, severity)] if what else [])


def test_a_server_that_restarts_with_other_privileges_is_another_server() -> None:
    fresh = process(100, "/opt/vllm/bin/python", start_ticks=9999, depth=Depth(capabilities=1 << 21))
    assert then(fresh) == []


def test_who_is_on_a_gpu_by_nvml_is_a_server_too() -> None:
    plain, shell = process(100, "/opt/srv"), process(666, "/bin/sh", ppid=100)
    tables = [table(ts, plain, *((shell,) if ts > 500 else ())) for ts in seconds(0, 520, 5)]
    assert drive(make(), tables) == []
    assert drive(make(), [*tables, *(gpu(ts, (100,)) for ts in seconds(0, 520, 10))])
    assert drive(make(servers=(Allow(exe="/opt/srv"),)), tables)


def test_standing() -> None:
    detector = make()
    assert detector.standing().state is DetectorState.STALE
    drive(detector, [table(0.0, process(100, "/opt/srv", depth=Depth(devices=("/dev/nvidia-uvm",))))])
    assert detector.standing().why == "1 servers cannot be looked into, only their children"


def test_a_real_shell_under_a_real_server(tmp_path: Path) -> None:
    """Real processes: a server that holds the device, and the shell that it is made to start."""
    node = tmp_path / "nvidia-uvm"
    node.write_bytes(b"x" * 4096)
    code = (
        "import subprocess, sys\n"
        "held = open(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "subprocess.run(['/bin/sh', '-c', 'echo started; read line; exit 0'])\n"
    )
    command = [sys.executable, "-c", code, str(node)]
    source = Processes(ProcessesParams(depth_seconds=0.01, device_prefix=f"{tmp_path}/nvidia"), Meters())
    detector = make()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"ready\n"
            before = [found for _ in range(2) for found in detector.observe(_sweep(source))]
            server.stdin.write(b"go\n")
            server.stdin.flush()
            assert server.stdout.readline() == b"started\n"
            after = detector.observe(_sweep(source))
        finally:
            server.kill()
    assert [one for one in before if one.evidence["server_pid"] == server.pid] == []
    (found,) = [one for one in after if one.evidence["server_pid"] == server.pid]
    assert found.severity is Severity.HIGH
    assert found.evidence["exe"] == os.path.realpath("/bin/sh")


def _sweep(source: Processes) -> ProcessTable:
    (found,) = source.poll(time.monotonic() + 30).records
    assert isinstance(found, ProcessTable)
    return found


ALL = ("mnt", "net", "pid", "user")
FILE = "/etc/systemd/system/vllm.service"


@pytest.mark.parametrize(
    ("declares", "shared", "capabilities", "told"),
    [
        ({}, ALL, 0, []),
        ({}, ALL, 1 << 21, [("undeclared capabilities", Severity.MEDIUM)]),
        ({"capabilities": 1 << 21}, ALL, 1 << 21, []),
        ({"capabilities": 1 << 21}, ALL, 1 << 21 | 1 << 19, [("undeclared capabilities", Severity.MEDIUM)]),
        ({"odd": True}, ALL, 1 << 21, []),  # ExecStart=+...: the files do not tell what it may have
        ({}, ("mnt", "net", "pid"), 1 << 21, [("undeclared namespace", Severity.LOW)]),  # over its own namespace only
        ({"private": ("mnt", "net")}, ("pid", "user"), 0, []),
        ({"private": ("mnt", "net")}, ALL, 0, [("undeclared host namespace", Severity.MEDIUM)]),
        ({}, ("net", "pid", "user"), 0, []),  # many settings make a mount namespace
        ({}, ("mnt", "pid", "user"), 0, [("undeclared namespace", Severity.LOW)]),
        ({}, None, 1 << 21, []),  # pid 1 cannot be looked into: what it shares is not known
    ],
)
def test_privileges_are_held_against_the_units_files(
    declares: dict[str, Any], shared: tuple[str, ...] | None, capabilities: int, told: list[tuple[str, Severity]]
) -> None:
    unit = Declared(file=FILE, **declares)
    server = changed(declared=unit, host_namespaces=shared, capabilities=capabilities)
    found = drive(make(), [table(ts, server) for ts in seconds(0, 20, 5)])
    assert [(one.evidence["what"], one.severity) for one in found] == told
    assert all(FILE in one.reason for one in found)


def test_a_unit_whose_files_cannot_be_read_is_told_in_the_standing() -> None:
    detector = make()
    drive(detector, [table(0.0, SERVER)])
    assert detector.standing().gauges["undeclared_servers"] == 1.0
    assert detector.standing().why == "privileges of 1 servers are held against the first look, not their unit's files"
    read = make()
    drive(read, [table(0.0, changed(declared=Declared(file=FILE), host_namespaces=ALL))])
    assert (read.standing().gauges["undeclared_servers"], read.standing().why) == (0.0, "")


def conformance() -> Case:
    shell = process(666, "/usr/bin/bash", ppid=101)
    records: list[Records] = [table(5.0 * i, SERVER, WORKER, *((shell,) if i > 20 else ())) for i in range(60)]
    records += [table(300.0 + 5 * i, changed(tracer=1, mappings=("/memfd:x",))) for i in range(5)]

    def flood(n: int) -> list[Records]:
        return [table(20.0 * i, SERVER, process(666, f"/tmp/{i}", ppid=100), host=f"h{i}") for i in range(n)]

    return Case(DETECTOR, Params(), records, Params(), flood)
