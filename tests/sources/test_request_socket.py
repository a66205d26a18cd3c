"""The request socket, over real sockets: hostile, stalled and flooding clients, and what stands in its place."""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import itertools
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import free_row

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.sources.base import Poll
from mlsecd.sources.fair_queue import FairQueue
from mlsecd.sources.request_socket import RequestSocket, RequestSocketParams
from mlsecd.sources.socket_reader import MESSAGE_BYTES, Limits, SocketReader
from mlsecd.sources.unix_sockets import inherited, listen

UID = os.geteuid()


def line(number: int, **more: object) -> bytes:
    return json.dumps({"ts": float(number), "model": "m", **more}).encode() + b"\n"


class House:
    """A source under test, and what it brought."""

    def __init__(self, directory: Path, **params: Any) -> None:
        self.path = directory / "in.seqpacket"
        self.stream_path = directory / "in.stream"
        self.meters = Meters()
        given_paths = {"path": str(self.path), "stream_path": str(self.stream_path)}
        self.source = RequestSocket(RequestSocketParams(**(given_paths | params)), self.meters)
        self.poll = Poll()
        self.batches: list[RequestBatch] = []

    def look(self) -> Poll:
        self.poll = self.source.poll(time.monotonic() + 30)
        self.batches += [one for one in self.poll.records if isinstance(one, RequestBatch)]
        return self.poll

    @property
    def numbers(self) -> list[int]:
        return [int(ts) for batch in self.batches for ts in batch.ts.tolist()]

    def until(self, what: Callable[[], bool], *, looking: bool = True) -> None:
        end = time.monotonic() + 10
        while not what():
            assert time.monotonic() < end, "it did not happen"
            if looking:
                self.look()
            time.sleep(0.002)

    def gets(self, *numbers: int) -> None:
        self.until(lambda: len(self.numbers) >= len(numbers))
        assert sorted(self.numbers) == sorted(numbers)

    def dropped(self, reason: str) -> float:
        return self.meters.value("mlsecd_dropped_total", where="request_socket", reason=reason)

    def packets(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(10)
        client.connect(str(self.path))
        return client

    def stream(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(10)
        client.connect(str(self.stream_path))
        return client


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., House]]:
    with contextlib.ExitStack() as stack:

        def made(**params: Any) -> House:
            house = House(tmp_path, **params)
            stack.callback(house.source.close)
            house.look()
            return house

        yield made


@pytest.fixture
def house(make: Callable[..., House]) -> House:
    return make()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Delivery


def test_messages_of_one_line_and_of_several(make: Callable[..., House]) -> None:
    house = make()
    with house.packets() as client:
        client.send(line(1)[:-1])  # a newline is not needed behind the last
        client.send(line(2) + line(3))
        client.send(line(4) + line(5)[:-1])
        house.gets(1, 2, 3, 4, 5)


def test_who_sent_it_is_noted_where_nobody_says(make: Callable[..., House]) -> None:
    house = make()
    with house.packets() as client:
        client.send(line(1) + line(2, source="gateway"))
        house.gets(1, 2)
    (batch,) = house.batches
    assert [batch.text("source").at(row) for row in range(2)] == [f"uid:{UID}", "gateway"]


def test_a_message_of_64_kib_and_one_byte_more(make: Callable[..., House]) -> None:
    house = make()
    most = line(1, other="x" * (MESSAGE_BYTES + 1 - len(line(1, other=""))))
    assert len(most) == MESSAGE_BYTES + 1
    with house.packets() as client:
        client.send(most)
        client.send(most[:-1])
        client.send(line(2))
        house.gets(1, 2)
    assert house.dropped("too_long") == 1


def test_the_stream_takes_lines(make: Callable[..., House]) -> None:
    house = make()
    with house.stream() as client:
        client.sendall(line(1) + line(2)[:5])
        house.gets(1)
        client.sendall(line(2)[5:])
        house.gets(1, 2)
        client.sendall(line(3)[:-1])
    house.gets(1, 2, 3)  # its last line lacks the newline


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_a_stream_may_be_cut_anywhere(house: House, cuts: list[int]) -> None:
    house.batches.clear()
    data = b"".join(line(number) for number in range(1, 11))
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    with house.stream() as client:
        for start, end in itertools.pairwise(edges):
            client.sendall(data[start:end])
            time.sleep(0.0005)
    house.gets(*range(1, 11))
    assert house.dropped("json") == 0


def test_lines_that_are_too_long_for_the_stream(make: Callable[..., House]) -> None:
    house = make()
    with house.stream() as client:
        client.sendall(line(1))
        for _ in range(100):
            client.sendall(b"x" * MESSAGE_BYTES)
        client.sendall(b"\n" + line(2))
        house.gets(1, 2)
    assert house.dropped("too_long") == 1


def test_bad_lines_are_counted_and_skipped(make: Callable[..., House]) -> None:
    house = make()
    with house.packets() as client:
        client.send(b"\xff\xfe{]\n" + line(1) + b"[]\n" + b'{"ts": 1}\n')
        client.send(b'{"kind": "gpu", "ts": 1, "gpu": "GPU-1"}\n')
        client.send(line(2))
        house.gets(1, 2)
    assert house.dropped("kind") == 1
    assert sum(house.meters.counters()["mlsecd_dropped_total"].values()) == 4


def test_it_does_not_let_a_producer_choose_its_place(make: Callable[..., House]) -> None:
    house = make(trusted_uids=(UID,))
    with house.packets() as client:
        client.send(line(1, seq=2**62))
        house.gets(1)
    assert house.batches[0].seq.tolist() == [-1]


@pytest.mark.parametrize("trusted", [False, True])
def test_claims_need_trust(make: Callable[..., House], trusted: bool) -> None:
    house = make(trusted_uids=(UID,) if trusted else ())
    with house.packets() as client:
        client.send(line(1, principal="alice", resources=["a", "b"]) + line(2, resources=["c"]) + line(3))
        house.gets(1, 2, 3)
    (batch,) = house.batches
    assert batch.has("principal") is trusted
    assert batch.has("resources") is trusted
    assert house.dropped("untrusted_claim") == (0 if trusted else 3)


# Who may come


def test_a_user_who_may_not_send(make: Callable[..., House]) -> None:
    house = make(allow_uids=(UID + 1,))
    with house.packets() as client:
        with contextlib.suppress(OSError):
            client.send(line(1))
        house.until(lambda: house.dropped("uid") == 1)
        with contextlib.suppress(ConnectionResetError):  # what it sent was not read
            assert client.recv(1) == b""
    assert house.numbers == []


@pytest.mark.skipif(UID != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("allowed", [False, True])
def test_another_user(make: Callable[..., House], allowed: bool) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    house = make(mode=0o666, allow_uids=("nobody",) if allowed else (), path=str(directory / "in"), stream_path="")
    house.path = directory / "in"
    sender = (
        "import os, socket, sys\nos.setuid(int(sys.argv[1]))\n"
        "client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\nclient.connect(sys.argv[2])\n"
        "try: client.send(sys.argv[3].encode()); client.recv(1)\nexcept OSError: pass\n"
    )
    child = subprocess.Popen([sys.executable, "-c", sender, str(nobody), str(house.path), line(1).decode()])
    if allowed:
        house.gets(1)
        assert house.batches[0].text("source").at(0) == f"uid:{nobody}"
    else:
        house.until(lambda: house.dropped("uid") == 1)
    house.source.close()
    assert child.wait(10) == 0
    directory.rmdir()


def test_users_by_name_and_names_that_nobody_has(make: Callable[..., House]) -> None:
    house = make(allow_uids=(pwd.getpwuid(UID).pw_name, "no-such-user"), trusted_uids=("no-such-user",))
    with house.packets() as client:
        client.send(line(1))
        house.gets(1)
    assert house.poll.error == 'no user "no-such-user" on this host'


# Too much


def test_a_full_queue_never_blocks_a_client(make: Callable[..., House]) -> None:
    house = make(max_queue_bytes=1 << 17)
    message = line(1, request_id="x" * 200) * 200
    with house.packets() as packets, house.stream() as stream:
        packets.settimeout(5)
        stream.settimeout(5)
        for _ in range(200):  # 19 MB, with nobody polling
            packets.send(message)
            stream.sendall(message)
        packets.send(line(2))
        stream.sendall(line(2))
    sent = 2 * (200 * 200 + 1)
    house.until(lambda: house.source._reader is not None and house.source._reader.connections == 0, looking=False)
    assert house.source._queue.depth <= 1 << 17
    house.look()
    assert len(house.numbers) > 0
    assert len(house.numbers) + house.dropped("queue_full") == sent
    assert house.meters.value("mlsecd_queue_capacity", queue="request_socket") == 1 << 17
    assert house.meters.value("mlsecd_queue_depth", queue="request_socket") > 1 << 16


def test_a_flood_does_not_push_out_a_quiet_client(make: Callable[..., House]) -> None:
    house = make(max_queue_bytes=1 << 17)
    with house.packets() as flood, house.packets() as quiet:
        for number in range(200):
            flood.send(line(1, request_id="x" * 200) * 200)
            if number % 10 == 0:
                quiet.send(line(2))
    house.until(lambda: house.source._reader is not None and house.source._reader.connections == 0, looking=False)
    house.look()
    assert house.numbers.count(2) == 20
    assert house.dropped("queue_full") > 0


def test_a_client_that_stalls_inside_a_record(make: Callable[..., House]) -> None:
    house = make(stall_seconds=0.2)
    with house.stream() as stalled, house.stream() as idle, house.packets() as client:
        stalled.sendall(line(1) + line(2)[:9])
        idle.sendall(line(3))
        house.gets(1, 3)
        house.until(lambda: house.dropped("stalled") == 1)
        assert stalled.recv(1) == b""
        idle.sendall(line(4))
        client.send(line(5))
        house.until(lambda: 5 in house.numbers and 4 in house.numbers)
    assert house.dropped("stalled") == 1


def test_no_more_connections_than_told(make: Callable[..., House]) -> None:
    house = make(max_connections=2)
    with house.packets() as first, house.stream() as second:
        first.send(line(1))
        second.sendall(line(2))
        house.gets(1, 2)
        with house.packets() as third:
            house.until(lambda: house.dropped("connections") == 1)
            assert third.recv(1) == b""
        first.send(line(3))
        house.gets(1, 2, 3)
    house.until(lambda: house.poll.seen == 0)
    with house.packets() as again:
        again.send(line(4))
        house.gets(1, 2, 3, 4)


def test_who_holds_most_connections_makes_room(make: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> None:
    uids = iter([7, 7, 7, 8])
    monkeypatch.setattr("mlsecd.sources.socket_reader.peer_uid", lambda _: next(uids))
    house = make(max_connections=3, allow_uids=(7, 8))
    greedy = []
    for number in (1, 2, 3):
        client = house.packets()
        client.send(line(number))
        house.until(lambda number=number: number in house.numbers)  # type: ignore[misc]
        greedy.append(client)
    with house.packets() as newcomer:
        newcomer.send(line(4))
        house.until(lambda: 4 in house.numbers)
    assert greedy[0].recv(1) == b""  # the one that was quiet longest
    greedy[1].send(line(5))
    house.until(lambda: 5 in house.numbers)
    for client in greedy:
        client.close()


def test_running_out_of_descriptors(make: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> None:
    house = make()
    reader = house.source._reader
    assert reader is not None

    class Exhausted:
        def __init__(self, real: socket.socket) -> None:
            self.real, self.calls, self.until = real, 0, time.monotonic() + 0.5

        def accept(self) -> Any:
            self.calls += 1
            if time.monotonic() < self.until:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.real.accept()

        def fileno(self) -> int:
            return self.real.fileno()

        def close(self) -> None:
            self.real.close()

    listener = next(one for one in house.source._listeners if one.kind == socket.SOCK_SEQPACKET)
    exhausted = Exhausted(listener.socket)
    listener.socket = exhausted  # type: ignore[assignment]
    with house.packets() as client:
        client.send(line(1))
        house.gets(1)  # after a second's pause, not after spinning
    assert 1 <= house.dropped("descriptors") <= 3
    assert 2 <= exhausted.calls < 10


# What stands in its place


def test_a_socket_of_a_dead_daemon_is_replaced(make: Callable[..., House], tmp_path: Path) -> None:
    for name, kind in (("in.seqpacket", socket.SOCK_SEQPACKET), ("in.stream", socket.SOCK_STREAM)):
        with socket.socket(socket.AF_UNIX, kind) as dead:
            dead.bind(str(tmp_path / name))
            dead.listen()
    house = make()
    with house.packets() as client:
        client.send(line(1))
        house.gets(1)


def test_a_daemon_that_lives_is_left_alone(make: Callable[..., House], tmp_path: Path) -> None:
    first = make()
    with pytest.raises(SourceError, match=r"in\.seqpacket: another process listens there"):
        make()
    with pytest.raises(SourceError, match=r"in\.seqpacket: another process listens there"):
        make(path="", stream_path=str(first.path))  # another kind of socket
    # Of two sockets one was taken: the other must not be left behind.
    with pytest.raises(SourceError):
        make(path=str(tmp_path / "third"))
    assert not (tmp_path / "third").exists()
    with first.packets() as client:
        client.send(line(1))
        first.gets(1)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(make: Callable[..., House], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in.seqpacket"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "precious")
    with pytest.raises(SourceError, match="exists and is no socket"):
        make()
    assert path.is_symlink() or path.exists()


def test_paths_that_cannot_be_used(make: Callable[..., House], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="longer than the 107 bytes"):
        make(path=str(tmp_path / ("x" * 120)))
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="file/in: file exists"):
        make(path=str(tmp_path / "file" / "in"))
    with pytest.raises(SourceError, match='no group "no-such-group"'):
        make(group="no-such-group")
    assert not (tmp_path / "in.seqpacket").exists()


def test_the_directory_is_made_and_the_files_are_ours_to_remove(make: Callable[..., House], tmp_path: Path) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    before = open_descriptors()
    house = make(path=str(tmp_path / "run" / "mlsecd" / "in"), mode=0o620, group=group)
    made = tmp_path / "run" / "mlsecd" / "in"
    assert stat.S_IMODE(made.stat().st_mode) == 0o620
    assert stat.S_IMODE(house.stream_path.stat().st_mode) == 0o620
    assert made.stat().st_gid == os.getegid()
    house.source.close()
    house.source.close()
    assert not made.exists()
    assert not house.stream_path.exists()
    assert open_descriptors() == before
    assert not any(thread.name == "request-socket" for thread in threading.enumerate())


def test_a_socket_that_was_swept_away_comes_back(house: House) -> None:
    with house.packets() as old:
        old.send(line(1))
        house.gets(1)
        house.path.unlink()
        house.look()
        assert house.path.exists()
        old.send(line(2))
        with house.packets() as new:
            new.send(line(3))
            house.gets(1, 2, 3)
    assert house.poll.error is None
    house.source.close()
    assert not house.path.exists()


def test_who_waits_at_a_socket_that_is_replaced_is_let_in(tmp_path: Path) -> None:
    kind = int(socket.SOCK_STREAM)
    reader = SocketReader([], FairQueue(1 << 17), Meters(), Limits(frozenset({UID}), 10, 60.0))
    reader.add(listen(str(tmp_path / "a"), kind, 0o600, ""))
    reader._take_added()
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(str(tmp_path / "a"))
        reader.add(listen(str(tmp_path / "b"), kind, 0o600, ""))
        reader._take_added()
        assert reader.connections == 1
        assert not (tmp_path / "a").exists()
        reader._stopping = True
        reader._run()  # closes all
    reader.stop()
    assert not (tmp_path / "b").exists()


def test_what_came_while_we_were_busy_does_not_overflow_the_queue(
    make: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = SocketReader._accept
    sent = threading.Event()

    def slow(self: SocketReader, *rest: Any) -> None:
        sent.wait(5)
        accept(self, *rest)

    monkeypatch.setattr(SocketReader, "_accept", slow)
    house = make(max_queue_bytes=1 << 17)
    with house.packets() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for _ in range(4):
            client.send(line(1, request_id="x" * 200) * 200)
        sent.set()
        house.until(lambda: len(house.numbers) + house.dropped("queue_full") == 800)
    assert len(house.numbers) >= 400


def test_a_file_that_took_its_place_is_told_and_kept(make: Callable[..., House]) -> None:
    house = make()
    house.path.unlink()
    house.path.write_text("precious")
    assert house.look().error == f"{house.path}: another process put a file of its own there"
    house.source.close()
    assert house.path.read_text() == "precious"


def test_sockets_from_systemd(make: Callable[..., House], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    handed = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handed.bind(str(tmp_path / "in.seqpacket"))
    handed.listen()
    with handed:
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", "mlsecd.socket")
        here = functools.partial(inherited, first=handed.fileno())
        monkeypatch.setattr("mlsecd.sources.request_socket.inherited", here)
        for life in (1, 2):  # a reload finds it again
            house = make()
            with house.packets() as client, house.stream() as stream:
                client.send(line(life))
                stream.sendall(line(life + 10))
                house.gets(life, life + 10)
            house.source.close()
            assert house.path.exists()  # systemd's
            assert not house.stream_path.exists()  # ours


def test_only_what_is_meant_for_us_is_taken_from_systemd(tmp_path: Path) -> None:
    paths = {int(socket.SOCK_SEQPACKET): str(tmp_path / "a"), int(socket.SOCK_STREAM): str(tmp_path / "b")}
    with contextlib.ExitStack() as stack:
        web = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        ours.bind(str(tmp_path / "elsewhere"))
        ours.listen()
        low = free_row(4)
        for at, one in enumerate((web, ours, ours)):
            os.dup2(one.fileno(), low + at)
            stack.callback(os.close, low + at)
        environ = {"LISTEN_PID": "42", "LISTEN_FDS": "4", "LISTEN_FDNAMES": "web:ingest.seqpacket:ingest.again"}
        (found,) = inherited(paths, environ, 42, low)
        assert found.kind == socket.SOCK_SEQPACKET
        assert found.socket.getsockname() == str(tmp_path / "elsewhere")
        found.close()
        assert inherited(paths, environ, 43, low) == []
        assert inherited(paths, environ | {"LISTEN_FDNAMES": "a:b:c"}, 42, low) == []
        assert inherited(paths, environ | {"LISTEN_FDS": "x"}, 42, low) == []
        assert inherited(paths, {}, 42, low) == []
    assert (tmp_path / "elsewhere").exists()


# When things break


def test_a_thread_that_dies_is_told_and_begins_anew(
    make: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("mlsecd.sources.socket_reader.SocketReader._read", fail)
    house = make()
    with house.packets() as client:
        client.send(line(1))
        reader = house.source._reader
        assert reader is not None
        house.until(lambda: not reader.alive, looking=False)
    with pytest.raises(SourceError, match="the reading thread ended: broken"):
        house.look()
    monkeypatch.undo()
    house.look()
    with house.packets() as client:
        client.send(line(2))
        house.gets(2)


def test_a_client_that_is_killed(make: Callable[..., House]) -> None:
    house = make()
    script = "import socket, sys\nc = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\nc.connect(sys.argv[1])\n"
    script += "c.sendall(sys.argv[2].encode()); print('sent', flush=True); c.recv(1)\n"
    sent = line(1) + line(2)[:9]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(house.stream_path), sent.decode()], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    house.gets(1)
    house.until(lambda: house.dropped("json") == 1)
    house.until(lambda: house.poll.seen == 0)


def test_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert House(tmp_path).source.supported() is None
    assert House(tmp_path, path="", stream_path="").source.supported() == "neither path nor stream_path is set"
    monkeypatch.delattr(socket, "SO_PEERCRED")
    assert "need Linux" in str(House(tmp_path).source.supported())


def test_a_listener_that_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    listener = listen(str(path), int(socket.SOCK_STREAM), 0o600, "")
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: errno.EACCES)
    with pytest.raises(SourceError, match="cannot tell whether anybody listens there: permission denied"):
        listen(str(path), int(socket.SOCK_STREAM), 0o600, "")
    listener.close()
    assert not path.exists()
    shutil.rmtree(tmp_path)
