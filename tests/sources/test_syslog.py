"""Syslog datagrams: nginx's form, floods, and a socket that is taken away."""

from __future__ import annotations

import json
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.sources.syslog import Syslog, SyslogParams
from mlsecd.taps.identity import Hasher

KEY = bytes(range(32))
LINE = {"msec": 1.7e9, "request_time": 0.5, "uri": "/v1/x", "status": 200, "peer": "10.0.0.1"}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Syslog]]:
    (tmp_path / "id.key").write_bytes(KEY)
    monkeypatch.setenv("MLSECD_KEY_FILE", str(tmp_path / "id.key"))
    made: list[Syslog] = []

    def start(**params: Any) -> Syslog:
        source = Syslog(SyslogParams(path=str(tmp_path / "syslog"), **params), Meters())
        made.append(source)
        source.poll(time.monotonic() + 5)
        return source

    yield start
    for one in made:
        one.close()


def send(path: str, *messages: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        for message in messages:
            sock.sendto(message, path)


def clients(source: Syslog, wanted: int) -> list[str | None]:
    found: list[str | None] = []
    end = time.monotonic() + 10
    while len(found) < wanted and time.monotonic() < end:
        for batch in source.poll(time.monotonic() + 5).records:
            assert isinstance(batch, RequestBatch)
            found += [batch.text("client").at(row) for row in range(len(batch))]
        time.sleep(0.02)
    return found


def test_nginx_datagrams(make: Callable[..., Syslog]) -> None:
    source = make()
    key = json.dumps(LINE | {"authorization": "Bearer sk-1"}).encode()
    send(
        source._params.path,
        b"<190>Nov 22 19:21:33 mlsecd: " + key,
        b"<190>Nov 22 19:21:33 mlsecd: " + json.dumps(LINE).encode(),
        b"rubbish",
        b"",
    )
    hasher = Hasher(KEY)
    assert clients(source, 2) == [hasher.client("bearer", "sk-1"), hasher.client("peer", "10.0.0.1")]
    assert source.meters.value("mlsecd_dropped_total", where="syslog", reason="record") == 1


def test_our_own_records(make: Callable[..., Syslog]) -> None:
    source = make(format="mlsecd")
    send(source._params.path, json.dumps({"ts": 1.0, "model": "m", "client": "k-a"}).encode())
    assert clients(source, 1) == ["k-a"]


def test_nobody_may_write_who_may_not(make: Callable[..., Syslog]) -> None:
    source = make(mode=0o620)
    assert stat.S_IMODE(Path(source._params.path).stat().st_mode) == 0o620


def test_a_flood_is_read_and_bounded(make: Callable[..., Syslog]) -> None:
    source = make(max_queue_bytes=1 << 17)
    message = json.dumps(LINE | {"user_agent": "x" * 400}).encode()
    send(source._params.path, *[message] * 2_000)
    got, lost, end = 0, 0.0, time.monotonic() + 20
    while got + lost < 2_000 and time.monotonic() < end:
        got += len(clients(source, 1))
        lost = source.meters.value("mlsecd_dropped_total", where="syslog", reason="queue_full")
    assert got + lost == 2_000


def test_a_socket_that_is_taken_away_comes_back(make: Callable[..., Syslog]) -> None:
    source = make()
    Path(source._params.path).unlink()
    source.poll(time.monotonic() + 5)
    send(source._params.path, json.dumps(LINE).encode())
    assert len(clients(source, 1)) == 1
    source.close()
    assert not Path(source._params.path).exists()


def test_a_file_in_its_place_is_left_alone(make: Callable[..., Syslog], tmp_path: Path) -> None:
    (tmp_path / "syslog").write_text("mine")
    with pytest.raises(SourceError, match="is no socket"):
        make()
    assert (tmp_path / "syslog").read_text() == "mine"


def test_a_format_that_nobody_knows() -> None:
    reason = Syslog(SyslogParams(format="apache"), Meters()).supported()
    assert reason is not None
    assert "nginx" in reason
    assert Syslog(SyslogParams(), Meters()).supported() is None
