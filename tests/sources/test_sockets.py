"""Real connections into a network namespace, counted by the kernel; and whatever else netlink may answer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlsecd import kernels
from mlsecd.detectors.egress_bytes import DETECTOR, Params
from mlsecd.meters import Meters
from mlsecd.records import SocketSample
from mlsecd.sources.sock_diag import connections, parse
from mlsecd.sources.sockets import Sockets, SocketsParams, _interfaces

MIB = 1 << 20
SENDER = (
    "import signal, socket, sys\n"
    "signal.alarm(90)\n"
    "held = open(sys.argv[1])\n"
    "one = socket.create_connection((sys.argv[2], int(sys.argv[3])))\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "one.sendall(bytes(int(sys.argv[4])))\n"
    "print('sent', flush=True)\n"
    "sys.stdin.readline()\n"
)
SINK = (
    "import signal, socket, sys\n"
    "signal.alarm(90)\n"
    "server = socket.create_server((sys.argv[1], 0))\n"
    "print(server.getsockname()[1], flush=True)\n"
    "one, _ = server.accept()\n"
    "while one.recv(1 << 20): pass\n"
)


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, str]]:
    """A network namespace behind a pair of interfaces: its name, and its address."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    tag = f"m{os.getpid() % 100_000}"
    net = f"10.251.{os.getpid() % 250}"
    run = lambda *command: subprocess.run(["ip", *command], check=True, capture_output=True)  # noqa: E731
    try:
        run("netns", "add", tag)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace here: {error.stderr.decode()}")
    try:
        run("link", "add", f"{tag}a", "type", "veth", "peer", "name", f"{tag}b", "netns", tag)
        run("addr", "add", f"{net}.1/24", "dev", f"{tag}a")
        run("link", "set", f"{tag}a", "up")
        run("-n", tag, "addr", "add", f"{net}.2/24", "dev", f"{tag}b")
        run("-n", tag, "link", "set", f"{tag}b", "up")
        yield tag, f"{net}.2"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("netns", "del", tag)


def test_bytes_that_a_holder_of_a_gpu_sends_to_another_host(elsewhere: tuple[str, str], tmp_path: Path) -> None:
    """From a real connection to the finding: a process with the device open sends a file's worth of bytes."""
    namespace, address = elsewhere
    node = tmp_path / "nvidia-uvm"
    node.write_bytes(b"x")
    sink = ["ip", "netns", "exec", namespace, sys.executable, "-c", SINK, address]
    source = Sockets(SocketsParams(device_prefix=f"{tmp_path}/nvidia"), Meters())
    detector = DETECTOR(Params(excess_bytes=4 * MIB, peer_bytes=4 * MIB), kernels)
    with subprocess.Popen(sink, stdout=subprocess.PIPE) as there:
        assert there.stdout is not None
        command = [sys.executable, "-c", SENDER, str(node), address, there.stdout.readline().decode(), str(8 * MIB)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sender:
            assert sender.stdin is not None
            assert sender.stdout is not None
            try:
                assert sender.stdout.readline() == b"ready\n"
                assert source.poll(time.monotonic() + 30).records == [], "the first look takes the counters down"
                sender.stdin.write(b"go\n")
                sender.stdin.flush()
                assert sender.stdout.readline() == b"sent\n"
                sample = _until_sent(source, sender.pid, 8 * MIB)
            finally:
                sender.kill()
                there.kill()
    (mine,) = [one for one in sample.traffic if one.pid == sender.pid]
    assert mine.exe == os.path.realpath(sys.executable)
    assert mine.peers[0].startswith(f"{address}:")
    assert 8 * MIB <= mine.sent_bytes <= 8 * MIB + 2
    (found,) = [one for one in detector.observe(sample) if one.evidence.get("pid") == sender.pid]
    assert found.evidence["peers"][0]["peer"] == address


def _until_sent(source: Sockets, pid: int, count: int) -> SocketSample:
    """One sample that holds all of it: polls are added up, since acknowledgements take their time."""
    end, total = time.monotonic() + 20, 0
    while True:
        (sample,) = source.poll(time.monotonic() + 30).records
        assert isinstance(sample, SocketSample)
        mine = next((one for one in sample.traffic if one.pid == pid), None)
        total += mine.sent_bytes if mine else 0
        if mine and total >= count:
            whole = dataclasses.replace(mine, sent_bytes=total, peer_bytes=(total,))
            return dataclasses.replace(sample, traffic=(whole,))
        assert time.monotonic() < end, f"{total} of {count} bytes were acknowledged"
        time.sleep(0.05)


def test_loopback_does_not_leave_the_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        inode = os.fstat(one.fileno()).st_ino
        assert inode not in {found.inode for found in connections()}


def test_interface_counters(tmp_path: Path) -> None:
    head = "Inter-| Receive | Transmit\n face |bytes ...\n"
    row = "{}: 1 0 0 0 0 0 0 0 {} 0 0 0 0 0 0 0\n"
    path = tmp_path / "dev"
    path.write_text(head + row.format("lo", 7) + row.format("eth0", 100) + row.format("veth1", 1000))
    (tmp_path / "net" / "eth0" / "device").mkdir(parents=True)
    assert _interfaces(str(path), str(tmp_path / "net")) == 100, "bridges and containers' ends would count twice"
    assert _interfaces(str(path), str(tmp_path / "none")) == 1100
    path.write_text(head + row.format("lo", 7))
    assert _interfaces(str(path), str(tmp_path / "net")) is None
    assert _interfaces(str(tmp_path / "absent")) is None


@given(st.binary(max_size=600))
def test_any_answer_of_netlink_is_survived(data: bytes) -> None:
    with contextlib.suppress(OSError):
        parse(data)


def test_a_refusal_is_an_error_and_the_end_is_the_end() -> None:
    header = struct.Struct("=IHHII")
    with pytest.raises(OSError, match="Operation not permitted"):
        parse(header.pack(20, 2, 0, 0, 0) + struct.pack("=i", -1))
    assert parse(header.pack(16, 3, 0, 0, 0)) == ([], True)
