"""The client of the request socket: it never blocks, never raises, and counts what it drops."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.sources.request_socket import RequestSocket, RequestSocketParams
from mlsecd.taps.client import DEFAULT_PATH, SocketClient


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Daemon:
    """A socket that takes messages when it is told to."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(5)
        self.connection: socket.socket | None = None

    def receive(self, seconds: float = 5) -> bytes:
        if self.connection is None:
            self.connection, _ = self.listener.accept()
        self.connection.settimeout(seconds)
        return self.connection.recv(1 << 17)

    def everything(self, seconds: float = 5) -> bytes:
        """What waits in the socket, once anything does."""
        got = self.receive(seconds)
        assert self.connection is not None
        self.connection.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while data := self.connection.recv(1 << 17):
                got += data
        self.connection.settimeout(5)
        return got

    def close(self) -> None:
        self.listener.close()
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in"


@pytest.fixture
def daemon(path: Path) -> Iterator[Daemon]:
    daemon = Daemon(path)
    yield daemon
    daemon.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(path: Path, clock: Clock) -> Iterator[SocketClient]:
    client = SocketClient(str(path), clock=clock)
    yield client
    client.close()


def test_gathers_lines_into_a_message(client: SocketClient, daemon: Daemon) -> None:
    client.send(b'{"a": 1}')
    client.send('{"b": "ü"}\n')
    client.send(b"\n")
    client.send(b'{"c": 3}\n{"d": 4}\n')
    assert client.sent == 0
    assert client.waiting > 0
    client.flush()
    assert daemon.receive().decode() == '{"a": 1}\n{"b": "ü"}\n{"c": 3}\n{"d": 4}\n'
    assert (client.sent, client.waiting, dict(client.dropped)) == (4, 0, {})


def test_a_line_waits_no_longer_than_told(client: SocketClient, daemon: Daemon, clock: Clock) -> None:
    client.send(b"1")
    clock.now += 0.19
    client.send(b"2")
    assert client.sent == 0
    clock.now += 0.02
    client.send(b"3")
    assert daemon.receive() == b"1\n2\n3\n"


def test_a_full_message_goes_at_once(path: Path, daemon: Daemon, clock: Clock) -> None:
    client = SocketClient(str(path), batch_bytes=64, clock=clock)
    for number in range(20):
        client.send(b"%015d" % number)
    client.flush()
    messages = [daemon.receive() for _ in range(5)]
    assert max(map(len, messages)) <= 64
    assert b"".join(messages) == b"".join(b"%015d\n" % number for number in range(20))
    client.close()


def test_no_message_is_longer_than_the_daemon_takes(path: Path, daemon: Daemon, clock: Clock) -> None:
    client = SocketClient(str(path), batch_bytes=1 << 30, clock=clock)
    client.send(b"x" * 65_535)
    client.send(b"y" * 65_536)
    client.send(b"a\n" * 50_000)
    client.flush()
    assert client.dropped == {"too_long": 1}
    assert client.sent == 50_001
    got = b""
    while len(got) < 65_536 + 100_000:
        message = daemon.receive()
        assert len(message) <= 65_536
        got += message
    assert got == b"x" * 65_535 + b"\n" + b"a\n" * 50_000
    client.close()


def test_nobody_listens(client: SocketClient, path: Path, clock: Clock) -> None:
    tries = 0
    for _ in range(1000):
        clock.now += 0.01
        pause = client._retry_at
        client.send(b"x" * 99)
        client.flush()
        tries += client._retry_at != pause
    assert 5 <= tries <= 9  # 0.1 + 0.2 + 0.4 ... 5 s, in 10 s
    assert client.sent == 0
    daemon = Daemon(path)
    clock.now += 5
    client.flush()
    assert client.sent == 1000
    assert client.dropped == {}
    daemon.close()


def test_what_waits_is_bounded_and_the_oldest_goes(path: Path, clock: Clock) -> None:
    client = SocketClient(str(path), batch_bytes=100, pending_bytes=1000, clock=clock)
    for number in range(1000):
        client.send(b"%09d" % number)
        assert client.waiting <= 1100
    client.flush()
    daemon = Daemon(path)
    clock.now += 10
    client.flush()
    assert client.sent + client.dropped["full"] == 1000
    assert daemon.everything().split()[0] == b"%09d" % (1000 - client.sent)
    client.close()
    daemon.close()


def test_a_daemon_that_does_not_read_blocks_nobody(path: Path, daemon: Daemon) -> None:
    client = SocketClient(str(path), pending_bytes=1 << 16)
    longest = 0.0
    for number in range(20_000):
        start = time.monotonic()
        client.send(b"%0300d" % number)
        longest = max(longest, time.monotonic() - start)
    client.flush()
    assert longest < 1.0  # a scheduler's pause at most; a blocking send would wait for ever
    assert client.dropped["full"] > 10_000
    waits = client.waiting // 301
    assert client.sent + client.dropped["full"] + waits == 20_000
    daemon.everything()
    client.flush()
    assert client.waiting == 0
    client.close()


def test_a_daemon_that_starts_again(client: SocketClient, daemon: Daemon, path: Path) -> None:
    client.send(b"1")
    client.flush()
    assert daemon.receive() == b"1\n"
    daemon.close()
    path.unlink()
    again = Daemon(path)
    client.send(b"2")
    client.flush()  # the old connection is broken: one try at once
    assert again.receive() == b"2\n"
    assert (client.sent, dict(client.dropped)) == (2, {})
    again.close()


@pytest.mark.parametrize("hears", [0, 1])
def test_a_daemon_that_turns_us_away_is_not_asked_all_the_time(
    client: SocketClient, daemon: Daemon, clock: Clock, hears: int
) -> None:
    """At once, or after each first message."""
    accepted = 0

    def turn_away() -> None:
        nonlocal accepted
        with contextlib.suppress(OSError):
            while True:
                connection, _ = daemon.listener.accept()
                accepted += 1
                for _ in range(hears):
                    connection.recv(100)
                connection.close()

    thread = threading.Thread(target=turn_away)
    daemon.listener.settimeout(0.5)
    thread.start()
    for _ in range(500):
        clock.now += 0.002
        client.send(b"x")
        client.flush()
    thread.join()
    assert 1 <= accepted < 30


def test_closing_counts_what_is_left(client: SocketClient) -> None:
    client.send(b"1\n2")
    client.close()
    client.close()
    assert client.dropped == {"closed": 2}
    assert client.waiting == 0


def test_threads_may_share_it(path: Path, daemon: Daemon) -> None:
    client = SocketClient(str(path), batch_bytes=200)
    threads = [
        threading.Thread(target=lambda name=name: [client.send(b"%s%04d" % (name, at)) for at in range(300)])
        for name in (b"a", b"b", b"c", b"d")
    ]
    for thread in threads:
        thread.start()
    got: list[bytes] = []
    end = time.monotonic() + 60
    while len(got) < 1200 and time.monotonic() < end:
        client.flush()
        with contextlib.suppress(TimeoutError):  # a thread may have gathered its last lines just after the flush
            got += daemon.everything(0.2).split()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 1200
    assert [line for line in got if line.startswith(b"a")] == [b"a%04d" % at for at in range(300)]
    client.close()


FORKING = """
import os, sys, threading
from mlsecd.taps.client import SocketClient
client = SocketClient(sys.argv[1])
client.send(b"parent")
client._lock.acquire()  # as another thread may hold it
pid = os.fork()
if pid == 0:
    client.send(b"child")
    client.flush()
    os._exit(0)
client._lock.release()
os.waitpid(pid, 0)
client.flush()
"""


def test_a_forked_child_sends_its_own_only(path: Path, daemon: Daemon) -> None:
    child = subprocess.Popen([sys.executable, "-c", FORKING, str(path)])
    assert daemon.receive() == b"child\n"
    daemon.connection.close()  # type: ignore[union-attr]
    daemon.connection = None
    assert daemon.receive() == b"parent\n"
    assert child.wait(10) == 0


def test_where_it_sends_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLSECD_SOCKET", raising=False)
    assert SocketClient().path == DEFAULT_PATH == "/run/mlsecd/ingest.seqpacket"
    monkeypatch.setenv("MLSECD_SOCKET", "/elsewhere")
    assert SocketClient().path == "/elsewhere"
    assert SocketClient("/here").path == "/here"


def test_it_speaks_to_the_source(path: Path) -> None:
    source = RequestSocket(RequestSocketParams(path=str(path), stream_path=""), Meters())
    source.poll(time.monotonic() + 10)
    client = SocketClient(str(path))
    for number in range(1000):
        client.send(b'{"ts": %d, "model": "m"}' % number)
    client.flush()
    got: list[float] = []
    end = time.monotonic() + 10
    while len(got) < 1000 and time.monotonic() < end:
        for batch in source.poll(time.monotonic() + 10).records:
            assert isinstance(batch, RequestBatch)
            got += batch.ts.tolist()
    assert got == list(range(1000))
    client.close()
    source.close()


SENDER = """
import logging, os, sys, time
from mlsecd.taps.client import SocketClient
from mlsecd.taps.worker import Worker
logging.basicConfig(level=logging.WARNING)
os.setuid(int(sys.argv[1]))
client = SocketClient(sys.argv[2], pending_bytes=4096)
worker = Worker(lambda number, *_: b'{"ts": %d, "model": "m"}' % number, client, share=1.0)
number = 0
while client.sent == 0:  # a server goes on serving, and so does the tap
    number += 1
    slowest = time.monotonic()
    worker.put("c", number, 30)
    assert time.monotonic() - slowest < 1.0, "it blocked"
    time.sleep(0.002)
print(client.dropped["full"], flush=True)
"""


def test_a_socket_with_wrong_permissions(path: Path) -> None:
    """It is told why, keeps what it may, drops and counts the rest; mended permissions are all that it takes."""
    uid = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        source = RequestSocket(
            RequestSocketParams(path=f"{name}/in", stream_path="", mode=0o666, allow_uids=(uid,)), Meters()
        )
        source.poll(time.monotonic() + 10)
        (directory / "in").chmod(0)
        command = [sys.executable, "-c", SENDER, str(uid), f"{name}/in"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                assert child.stderr is not None
                assert f"records wait, {name}/in: permission denied" in child.stderr.readline()
                time.sleep(1.0)  # more than it may keep comes meanwhile
                assert source.poll(time.monotonic() + 10).records == []
                (directory / "in").chmod(0o666)
                got = 0
                end = time.monotonic() + 60
                while not got and time.monotonic() < end:
                    got += sum(len(one) for one in source.poll(time.monotonic() + 10).records)  # type: ignore[arg-type]
                    time.sleep(0.05)
                assert got
                out, _ = child.communicate(timeout=60)
                assert int(out) > 0, "what it could not keep was counted"
            finally:
                child.kill()
                source.close()


def test_it_needs_little_of_python() -> None:
    """It lives in other people's servers: what it imports must be small, and the standard library's."""
    script = (
        "import sys; before = set(sys.modules); import mlsecd.taps.client; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()} - {"mlsecd"}
    assert loaded <= set(sys.stdlib_module_names)
