"""Logs that are written as gzip members: whole ones are read once, whatever the moment; damage costs little."""

from __future__ import annotations

import gzip
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.sources.gzip_tail import GzipTail
from mlsecd.sources.request_log import RequestLog, RequestLogParams

DATA = Path(__file__).parent.parent / "data" / "servers"


def tail(path: Path) -> GzipTail:
    return GzipTail(str(path), os.open(path, os.O_RDONLY), 1 << 20)


def everything(one: GzipTail) -> bytes:
    """What can be read now."""
    one.check()
    got = b""
    for _ in range(100_000):
        got += one.read()
        if one.at_end:
            return got
    raise AssertionError("it never comes to the end")


@settings(deadline=None, max_examples=60)
@given(
    members=st.lists(
        st.lists(st.binary(min_size=1, max_size=30).map(lambda one: one.replace(b"\n", b"") + b"\n"), max_size=20),
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 1 << 12), max_size=8),
    restart=st.booleans(),
)
def test_members_are_read_once_however_they_arrive(
    members: list[list[bytes]], cuts: list[int], restart: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("gz") / "trace.gz"
    path.touch()
    packed = b"".join(gzip.compress(b"".join(lines)) for lines in members)
    one, got, begun = tail(path), b"", 0
    for stop in [*sorted(min(cut, len(packed)) for cut in cuts), len(packed)]:
        with path.open("ab") as file:
            file.write(packed[begun:stop])
        begun = max(begun, stop)
        got += everything(one)
        if restart:
            place = one.place()
            one.close()
            one = tail(path)
            assert one.resume(place)
    one.close()
    assert got == b"".join(line for lines in members for line in lines)


def test_a_large_member_passes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    text = b'{"a": 1}\n' * 400_000
    path.write_bytes(gzip.compress(text))
    one = tail(path)
    assert everything(one) == text
    one.close()


def test_a_bomb_is_one_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)) + gzip.compress(b"next\n"))
    one = tail(path)
    assert everything(one) == b"a gzip member that cannot be read\nnext\n"
    one.close()


@pytest.mark.parametrize("damage", [b"\0", b"no gzip at all", random.Random(1).randbytes(200_000)])
def test_damage_costs_what_is_damaged(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "trace.gz"
    first, second = gzip.compress(b"first\n"), gzip.compress(b"second\n" * 100)
    for packed in (first + damage + second, first + second[:20] + damage + second):
        path.write_bytes(packed)
        one = tail(path)
        lines = everything(one).splitlines()
        one.close()
        assert lines[0] == b"first"
        assert lines[1] == b"a gzip member that cannot be read"
        assert len(lines) < 6 or lines.count(b"second") == 100


def test_what_stands_there_is_left_and_what_comes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    member = gzip.compress(b"before\n" * 50)
    path.write_bytes(member + member[:20])
    one = tail(path)
    one.start_at_end()
    assert everything(one) == b""
    with path.open("ab") as file:
        file.write(member[20:] + gzip.compress(b"after\n"))
    assert everything(one) == b"after\n"
    one.close()


def test_a_member_that_nobody_finishes(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    text = b"".join(b"line %d %s\n" % (at, os.urandom(8).hex().encode()) for at in range(2_000))
    packed = gzip.compress(text)
    path.write_bytes(packed[: len(packed) // 2])
    one = tail(path)
    assert everything(one) == b""
    rest = one.finish()
    assert text.startswith(rest)
    assert rest.count(b"\n") > 500
    one.close()


@pytest.fixture
def _key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id.key").write_bytes(bytes(range(32)))
    monkeypatch.setenv("MLSECD_KEY_FILE", str(tmp_path / "id.key"))


def rows(source: Any) -> int:
    return sum(len(one) for one in source.poll(time.monotonic() + 30).records if isinstance(one, RequestBatch))


@pytest.mark.usefixtures("_key")
def test_dynamos_segments_in_the_request_log(tmp_path: Path) -> None:
    lines = (DATA / "dynamo_trace.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "logs").mkdir()
    params = RequestLogParams(paths=(f"dynamo:{tmp_path}/logs/trace.*.jsonl.gz",), from_start=True)
    source = RequestLog(params, Meters())
    segment = tmp_path / "logs" / "trace.000000.jsonl.gz"
    segment.write_bytes(gzip.compress(b"".join(lines[:3])))
    assert rows(source) == 3
    with segment.open("ab") as file:
        file.write(gzip.compress(lines[3]))
    assert rows(source) == 1
    again = RequestLog(params, Meters())
    again.resume(source.state())
    source.close()
    with segment.open("ab") as file:
        file.write(gzip.compress(lines[4]))
    (tmp_path / "logs" / "trace.000001.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[5:])))
    assert rows(again) == 1 + len(lines[5:])
    again.close()


@pytest.mark.usefixtures("_key")
def test_packed_remains_of_other_logs_are_left(tmp_path: Path) -> None:
    line = (DATA / "nginx_access.jsonl").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "nginx.jsonl").write_bytes(line)
    (tmp_path / "nginx.jsonl.1.gz").write_bytes(gzip.compress(line))
    source = RequestLog(RequestLogParams(paths=(f"nginx:{tmp_path}/nginx.jsonl*",), from_start=True), Meters())
    assert rows(source) == 1
    source.close()
