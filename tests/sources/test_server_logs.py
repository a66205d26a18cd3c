"""Servers' own files: a format before the path, and files that are read when they are finished."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.sources.request_log import RequestLog, RequestLogParams
from mlsecd.sources.trace_files import TraceFiles, TraceFilesParams

DATA = Path(__file__).parent.parent / "data" / "servers"


@pytest.fixture(autouse=True)
def _key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id.key").write_bytes(bytes(range(32)))
    monkeypatch.setenv("MLSECD_KEY_FILE", str(tmp_path / "id.key"))


def rows(source: Any) -> list[RequestBatch]:
    return [one for one in source.poll(time.monotonic() + 30).records if isinstance(one, RequestBatch)]


def test_two_formats_in_one_source(tmp_path: Path) -> None:
    shutil.copy(DATA / "nginx_access.jsonl", tmp_path / "nginx.jsonl")
    shutil.copy(DATA / "envoy_access.jsonl", tmp_path / "envoy.jsonl")
    (tmp_path / "own.jsonl").write_text('{"ts": 1, "model": "m", "source": "own"}\n')
    paths = (f"nginx:{tmp_path}/ngin*.jsonl", f"envoy:{tmp_path}/envoy.jsonl", f"{tmp_path}/own.jsonl")
    source = RequestLog(RequestLogParams(paths=paths, from_start=True, model="tiny"), Meters())
    assert source.supported() is None
    found = RequestBatch.concat(rows(source))
    sources = [found.text("source").at(row) for row in range(len(found))]
    assert {name: sources.count(name) for name in set(sources)} == {"nginx": 150, "envoy": 153, "own": 1}
    models = {found.text("model").at(row) for row in range(len(found))}
    assert models == {"tiny", "m"}
    with (tmp_path / "nginx.jsonl").open("ab") as file:
        file.write(b"rubbish\n" + (DATA / "nginx_access.jsonl").read_bytes().splitlines(keepends=True)[0])
    assert sum(map(len, rows(source))) == 1
    assert source.meters.value("mlsecd_dropped_total", where="request_log", reason="record") == 1
    source.close()


@pytest.mark.parametrize("path", ["apache:/var/log/x", "triton:/var/log/x"])
def test_a_format_that_does_not_follow_lines(path: str) -> None:
    reason = RequestLog(RequestLogParams(paths=(path,)), Meters()).supported()
    assert reason is not None
    assert "known are bentoml, dynamo, envoy, litellm, nginx, sglang" in reason


def test_no_key_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLSECD_KEY_FILE")
    source = RequestLog(RequestLogParams(paths=(f"nginx:{tmp_path}/x*.jsonl",)), Meters())
    assert source.poll(time.monotonic() + 5).error is None  # it reads all the same
    assert "no key" in source.samples()["key"]
    assert source.samples() == {}  # once
    own = RequestLog(RequestLogParams(paths=(f"{tmp_path}/x*.jsonl",)), Meters())
    assert own.samples() == {}


def test_traces_are_read_once_and_when_they_are_finished(tmp_path: Path) -> None:
    trace = (DATA / "triton_trace.json").read_bytes()
    source = TraceFiles(TraceFilesParams(paths=(f"triton:{tmp_path}/trace.json.*",), from_start=True), Meters())
    (tmp_path / "trace.json.0").write_bytes(trace)
    (tmp_path / "trace.json.1").write_bytes(trace[:300])  # Triton is still writing
    (batch,) = rows(source)
    assert batch.text("predicted").at(0) == "1"
    assert abs(batch.ts[0] - (time.time() - time.monotonic() + 8888.29)) < 5
    assert rows(source) == []
    (tmp_path / "trace.json.1").write_bytes(trace)
    assert len(rows(source)) == 1
    again = TraceFiles(TraceFilesParams(paths=(f"triton:{tmp_path}/trace.json.*",)), Meters())
    again.resume(source.state())
    (tmp_path / "trace.json.2").write_bytes(trace)
    assert len(rows(again)) == 1


def test_what_was_there_before_is_not_read(tmp_path: Path) -> None:
    trace = (DATA / "triton_trace.json").read_bytes()
    (tmp_path / "trace.json.0").write_bytes(trace)
    source = TraceFiles(TraceFilesParams(paths=(f"triton:{tmp_path}/trace.json.*",)), Meters())
    assert rows(source) == []
    (tmp_path / "trace.json.1").write_bytes(trace)
    assert len(rows(source)) == 1


def test_traces_that_cannot_be_read(tmp_path: Path) -> None:
    meters = Meters()
    pattern = f"triton:{tmp_path}/trace.json.*"
    source = TraceFiles(TraceFilesParams(paths=(pattern,), from_start=True, max_file_bytes=1 << 16), meters)
    (tmp_path / "trace.json.0").write_bytes(b"[" * 100 + b"]")
    (tmp_path / "trace.json.1").write_bytes(b" " * (1 << 17) + b"]")
    (tmp_path / "trace.json.2").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "trace.json.3")
    poll = source.poll(time.monotonic() + 5)
    assert poll.records == []
    assert meters.value("mlsecd_dropped_total", where="trace_files", reason="record") == 1
    assert meters.value("mlsecd_dropped_total", where="trace_files", reason="too_long") == 1
    assert "symbolic link" in (poll.error or "")
