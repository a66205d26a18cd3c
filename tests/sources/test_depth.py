"""What is read of real processes: deleted and in-memory programs, tracers, preloads, namespaces, devices."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlsecd.meters import Meters
from mlsecd.records import Declared, Depth, Process, ProcessTable
from mlsecd.sources.depth import closer, holding, look
from mlsecd.sources.processes import Processes, ProcessesParams
from mlsecd.sources.procfs import parse_stat, read_stat

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run() -> Iterator[Run]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()
        if one.stdin:
            one.stdin.close()
        if one.stdout:
            one.stdout.close()


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + 20
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def depth_of(pid: int, prefix: str = "/dev/nvidia") -> Depth:
    base = f"/proc/{pid}"
    return look(base, holding(base, prefix), digest=True)


def settled(pid: int, name: str) -> None:
    """The program was put in the fork's place."""
    until(lambda: Path(f"/proc/{pid}/comm").read_text().strip() == name[:15])


def test_an_ordinary_process_shows_nothing_odd(run: Run) -> None:
    one = run("/bin/sleep", "60")
    settled(one.pid, "sleep")
    depth = depth_of(one.pid)
    assert depth.devices == depth.preload == depth.mappings == ()
    assert depth.tracer == 0
    assert depth.sha256 == hashlib.sha256(Path("/bin/sleep").read_bytes()).hexdigest()
    assert depth.namespaces == tuple(
        str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("mnt", "net", "pid", "user")
    )
    assert depth.capabilities is not None


def test_a_deleted_program_is_hashed_as_it_runs(run: Run, tmp_path: Path) -> None:
    shutil.copy("/bin/sleep", tmp_path / "sleeper")
    one = run(tmp_path / "sleeper", "60")
    settled(one.pid, "sleeper")
    (tmp_path / "sleeper").unlink()
    (tmp_path / "sleeper").write_bytes(b"something else")
    depth = depth_of(one.pid)
    assert depth.sha256 == hashlib.sha256(Path("/bin/sleep").read_bytes()).hexdigest()
    assert depth.mappings == (f"{tmp_path}/sleeper (deleted)",)


def test_code_in_memory_that_never_was_a_file_is_seen(run: Run) -> None:
    code = (
        "import ctypes, mmap, os, sys, time\n"
        "fd = os.memfd_create('payload')\n"
        "os.ftruncate(fd, 4096)\n"
        "held = mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    one = run(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert one.stdout is not None
    assert one.stdout.readline() == b"ready\n"
    mappings = depth_of(one.pid).mappings
    assert mappings is not None
    # an environment under /tmp is odd too: a process that is measured for coverage maps the tracer from there
    assert [path for path in mappings if "/coverage/" not in path] == ["/memfd:payload (deleted)"]


def test_the_environment_gives_two_variables_and_no_secret(run: Run, tmp_path: Path) -> None:
    environ = {"LD_PRELOAD": "", "LD_AUDIT": str(tmp_path / "not-there.so"), "API_KEY": "s3cr3t"}
    one = run("/bin/sleep", "60", env=environ, stderr=subprocess.DEVNULL)
    settled(one.pid, "sleep")
    depth = depth_of(one.pid)
    assert depth.preload == (f"LD_AUDIT={tmp_path}/not-there.so",)
    assert "s3cr3t" not in repr(depth)


def test_a_tracer_is_named(run: Run) -> None:
    one = run("/bin/sleep", "60")
    settled(one.pid, "sleep")
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if ptrace(0x4206, one.pid, None, None):  # PTRACE_SEIZE
        pytest.skip(f"ptrace is not permitted here: {os.strerror(ctypes.get_errno())}")
    try:
        assert depth_of(one.pid).tracer == os.getpid()
    finally:
        one.send_signal(signal.SIGKILL)


@root
def test_another_network_namespace_shows(run: Run) -> None:
    one = run("unshare", "--net", "/bin/sleep", "60")
    until(lambda: "sleep" in Path(f"/proc/{one.pid}/comm").read_text())
    ours, theirs = depth_of(os.getpid()).namespaces, depth_of(one.pid).namespaces
    assert ours is not None
    assert theirs is not None
    assert [a == b for a, b in zip(ours, theirs, strict=True)] == [True, False, True, True]


def test_a_device_that_is_open_and_one_that_is_mapped(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").write_bytes(b"x" * 4096)
    (tmp_path / "nvidia-uvm").write_bytes(b"x" * 4096)
    code = (
        "import mmap, sys, time\n"
        "held = open(sys.argv[1])\n"
        "with open(sys.argv[2], 'rb') as f: m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    one = run(sys.executable, "-c", code, tmp_path / "nvidia0", tmp_path / "nvidia-uvm", stdout=subprocess.PIPE)
    assert one.stdout is not None
    assert one.stdout.readline() == b"ready\n"
    assert depth_of(one.pid, f"{tmp_path}/nvidia").devices == (f"{tmp_path}/nvidia-uvm", f"{tmp_path}/nvidia0")
    assert holding(f"/proc/{one.pid}", "/dev/nvidia").devices == ()


def test_a_process_that_is_gone_gives_nothing() -> None:
    base = "/proc/4194305"
    held = holding(base, "/dev/nvidia")
    assert not held.seen
    assert look(base, held, digest=True) == Depth()


def _sweep(source: Processes) -> dict[int, Process]:
    (record,) = source.poll(time.monotonic() + 30).records
    assert isinstance(record, ProcessTable)
    return {one.pid: one for one in record.processes}


def test_the_source_looks_closer_at_holders_and_listeners_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").write_bytes(b"x" * 4096)
    source = Processes(
        ProcessesParams(listen_seconds=0.01, depth_seconds=0.01, device_prefix=f"{tmp_path}/nvidia"), Meters()
    )
    code = "import sys, time; held = open(sys.argv[1]); print('ready', flush=True); time.sleep(60)"
    holder = run(sys.executable, "-c", code, tmp_path / "nvidia0", stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    idle = run("/bin/sleep", "60")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as ours:
        shown = until(lambda: found if (found := _sweep(source))[holder.pid].depth is not None else None)
        assert shown[holder.pid].depth.devices == (f"{tmp_path}/nvidia0",)
        assert len(shown[holder.pid].depth.sha256) == 64
        assert shown[idle.pid].depth is None
        listening = until(lambda: _sweep(source)[os.getpid()].depth)
        assert listening.sha256 is None, "only executables of GPU processes are hashed"
        assert ours.fileno() >= 0


@root
def test_without_privileges_it_says_what_is_missing(tmp_path: Path) -> None:
    """As an unprivileged user: another user's process shows nothing, and None is not the empty tuple."""
    code = (
        "import os, sys\n"
        f"sys.path[:] = {sys.path!r}\n"
        "from mlsecd.sources.depth import holding, look\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "base = '/proc/1'\n"
        "print(look(base, holding(base, '/dev/nvidia'), digest=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "devices=None, sha256=None, tracer=0" in done.stdout
    assert "namespaces=None, preload=None, own_network=None, unauthenticated=None, mappings=None" in done.stdout


def test_a_listener_of_a_unit_is_shown_with_what_its_files_declare(tmp_path: Path) -> None:
    (tmp_path / "vllm.service").write_text("[Service]\nUser=vllm\nPrivateNetwork=yes\n")
    base = f"/proc/{os.getpid()}"
    ticks = parse_stat(read_stat(f"{base}/stat")).start_ticks
    params = ProcessesParams(unit_directories=(str(tmp_path),))
    depth = closer(base, ticks, ("tcp:0.0.0.0:8000",), params, "vllm.service")
    assert depth is not None
    assert depth.declared == Declared(file=str(tmp_path / "vllm.service"), capabilities=0, private=("net",))
    for unit, where in (
        (None, params),
        ("other.service", params),
        ("vllm.service", ProcessesParams(unit_directories=())),
    ):
        shown = closer(base, ticks, ("tcp:0.0.0.0:8000",), where, unit)
        assert shown is not None
        assert shown.declared is None
