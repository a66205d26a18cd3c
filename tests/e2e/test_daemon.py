"""The main job from outside: what an operator sees of a daemon on stand-in GPUs and real sockets."""

from __future__ import annotations

import contextlib
import json
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
from daemons import Daemon, until

import mlsecd
from tests.fakenvml import FakeNvml, build

Make = Callable[..., Daemon]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fakenvml"))


@pytest.fixture
def gpus(tmp_path: Path, library: Path) -> tuple[FakeNvml, dict[str, str]]:
    state = FakeNvml(tmp_path / "nvml.state", profile="b200")
    return state, {"LD_LIBRARY_PATH": str(library.parent), "FAKENVML_STATE": str(state.path)}


def send(path: Path, *rows: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(path))
        sock.send(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def test_it_becomes_ready_shows_its_gpus_and_passes_promtool(daemon: Make, gpus: Any, in_ci: bool) -> None:
    state, env = gpus
    one = daemon(env).start()
    until(lambda: one.get("/-/ready") == (200, "ready\n"))
    assert one.get("/-/healthy")[0] == 200
    until(lambda: one.metric(f'mlsecd_gpu_up{{gpu="{state.uuids[0]}",index="0"}}') == 1.0)
    body = one.get("/metrics")[1]
    assert body.count("mlsecd_gpu_up{") == 8
    assert 'mlsecd_findings_total{detector="gpu_lost",severity="high",synthetic="false"} 0.0' in body
    assert "mlsecd_source_up" in body
    promtool = shutil.which("promtool")
    if promtool is None:
        assert not in_ci
        pytest.skip("promtool is not installed")
    checked = subprocess.run([promtool, "check", "metrics"], input=body.encode(), capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "# EOF" in one.get("/metrics", "application/openmetrics-text; version=1.0.0")[1]
    assert "mlsecd" in one.get("/")[1]


def test_a_lost_gpu_becomes_a_finding_everywhere(daemon: Make, gpus: Any) -> None:
    state, env = gpus
    one = daemon(env).start()
    until(lambda: one.metric('mlsecd_source_up{source="nvml"}') == 1.0)
    until(lambda: one.get("/metrics")[1].count("mlsecd_gpu_up{") == 8)
    time.sleep(2)  # it learns which GPUs belong here
    state.lose(3)
    found = until(lambda: [f for f in one.findings() if f["detector"] == "gpu_lost"])
    assert found[0]["subject"] == {"gpu": state.uuids[3]}
    assert found[0]["severity"] == "high"
    assert not found[0]["synthetic"]
    series = 'mlsecd_findings_total{detector="gpu_lost",severity="high",synthetic="false"}'
    until(lambda: one.metric(series) == 1.0)
    assert state.uuids[3] in one.get("/")[1]
    assert "gpu_lost" in one.get("/api/v1/status")[1]


def test_a_foreign_program_on_a_gpu_is_found(daemon: Make, gpus: Any, tmp_path: Path) -> None:
    state, env = gpus
    miner = tmp_path / "kdevtmpfsi"
    shutil.copy("/bin/sleep", miner)
    process = subprocess.Popen([miner, "300"])
    try:
        one = daemon(env, '\n[[detectors.gpu_foreign_process.allow]]\nexe = "/opt/vllm/**"\n').start()
        state.processes(2, [(process.pid, 1 << 30, "compute", None)])
        (found,) = until(lambda: [f for f in one.findings() if f["detector"] == "gpu_foreign_process"])[:1]
    finally:
        process.kill()
        process.wait()
    assert found["severity"] == "high"
    assert found["evidence"]["gpu"] == state.uuids[2]
    assert found["evidence"]["exe"] == str(miner)


def test_requests_come_in_and_bad_ones_are_explained(daemon: Make, tmp_path: Path) -> None:
    one = daemon().start()
    path = tmp_path / "ingest.seqpacket"
    now = time.time()
    send(path, {"ts": now, "model": "m", "client": "k-1"}, {"ts": now, "model": "m"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(path))
        sock.send(b'{"ts": NaN}\n\xff\xfe\x00\n{"ts": -5, "model": "m"}\n')
        sock.send(json.dumps({"ts": now + 9e8, "model": "m"}).encode() + b"\n")
        sock.send(json.dumps({"kind": "source", "ts": now, "source": "nvml", "ok": True}).encode() + b"\n")
    until(lambda: one.metric('mlsecd_requests_total{synthetic="false"}') == 2.0)
    assert one.metric('mlsecd_requests_with_field_total{field="client"}') == 1.0
    until(lambda: one.get("/metrics")[1].count("mlsecd_dropped_total{reason") >= 4)
    body = one.get("/metrics")[1]
    for reason in ("json", "range", "future", "kind"):
        assert f'reason="{reason}",where="request_socket"' in body, body
    sampled = {line["reason"]: line["line"] for line in one.log() if line["event"] == "refused input"}
    assert "NaN" in sampled["json"]
    assert one.get("/-/healthy")[0] == 200


def test_a_hung_driver_blinds_nothing_else_and_does_not_hold_up_the_end(daemon: Make, gpus: Any) -> None:
    state, env = gpus
    one = daemon(env, "").start()
    until(lambda: one.get("/metrics")[1].count("mlsecd_gpu_up{") == 8)
    state.hang("nvmlDeviceGetPowerUsage", 600, gpu=2)
    until(lambda: one.metric(f'mlsecd_gpu_up{{gpu="{state.uuids[2]}",index="2"}}') == 0.0, 60)
    assert one.get("/-/healthy")[0] == 200
    before = one.metric('mlsecd_source_polls_total{source="processes"}')
    until(lambda: (one.metric('mlsecd_source_polls_total{source="processes"}') or 0) > (before or 0))
    assert one.stop() < 5.0


def test_sigterm_drains_within_five_seconds_and_a_restart_goes_on(daemon: Make, gpus: Any) -> None:
    state, env = gpus
    one = daemon(env).start()
    until(lambda: one.get("/metrics")[1].count("mlsecd_gpu_up{") == 8)
    time.sleep(2)
    state.lose(1)
    first = until(lambda: [f for f in one.findings() if f["detector"] == "gpu_lost"])
    assert one.stop() < 5.0
    one.start()
    until(lambda: one.metric('mlsecd_finding_active{detector="gpu_lost",severity="high"') is None)
    time.sleep(2)
    again = [f for f in one.findings() if f["detector"] == "gpu_lost" and f["status"] == "new"]
    assert [f["id"] for f in again] == [first[0]["id"]], "a restart must not raise the same finding anew"


def test_what_was_logged_while_it_was_down_is_not_lost(daemon: Make, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    log.touch()

    def write(count: int) -> None:
        with log.open("a") as file:
            file.writelines(json.dumps({"ts": time.time(), "model": "m", "client": "k-1"}) + "\n" for _ in range(count))

    one = daemon(config=f'\n[sources.request_log]\nenabled = true\ninterval_seconds = 0.2\npaths = ["{log}"]\n').start()
    until(lambda: one.metric('mlsecd_source_up{source="request_log"}') == 1.0)
    write(3)
    until(lambda: one.metric('mlsecd_requests_total{synthetic="false"}') == 3.0)
    one.stop()
    write(40)
    time.sleep(5)  # far longer than the fold waits for stragglers
    one.start()
    until(lambda: one.metric('mlsecd_requests_total{synthetic="false"}') == 40.0)
    assert one.metric('mlsecd_dropped_total{reason="late",where="fold"}') == 0.0


def test_sighup_reloads_and_keeps_the_old_configuration_on_error(daemon: Make) -> None:
    one = daemon().start()
    one.configure("\n[budget]\nfalse_alarms_per_week = 7\n")
    one.signal(signal.SIGHUP)
    until(lambda: one.metric("mlsecd_false_alarm_budget_per_week") == 7.0)
    assert one.metric("mlsecd_config_last_reload_successful") == 1.0
    one.configure("\n[budget]\nfalse_alarms_per_weak = 9\n")
    one.signal(signal.SIGHUP)
    until(lambda: one.metric("mlsecd_config_last_reload_successful") == 0.0)
    assert one.metric("mlsecd_false_alarm_budget_per_week") == 7.0
    assert any('did you mean "false_alarms_per_week"?' in str(line.get("why")) for line in one.log())
    one.configure("")
    one.signal(signal.SIGHUP)
    until(lambda: one.metric("mlsecd_config_last_reload_successful") == 1.0)


def test_the_watchdog_hears_the_loop_itself(daemon: Make) -> None:
    one = daemon({"WATCHDOG_USEC": "2000000"}).start()
    until(lambda: one.heard("WATCHDOG=1"))
    until(lambda: one.heard("WATCHDOG=1"))


def test_a_full_log_is_told_and_nothing_acknowledged_is_lost(daemon: Make, gpus: Any, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    (tmp_path / "log").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "log")], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this sandbox does not mount file systems")
    try:
        state, env = gpus
        one = daemon(env).start()
        until(lambda: one.get("/metrics")[1].count("mlsecd_gpu_up{") == 8)
        time.sleep(2)
        filler = tmp_path / "log" / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        for index in range(8):  # more than the last page of the open segment still takes
            state.lose(index)
        series = 'mlsecd_findings_total{detector="gpu_lost",severity="high",synthetic="false"}'
        until(lambda: one.metric(series) == 8.0)
        until(lambda: one.metric("mlsecd_forensic_log_blocked") == 1.0)
        code, why = one.get("/-/ready")
        assert code == 503
        assert "forensic log: blocked" in why
        assert sum(f["detector"] == "gpu_lost" for f in one.findings()) < 8
        assert any(line["event"] == "the forensic log is blocked" for line in one.log())
        one.stop()  # what waits must outlive the process
        filler.unlink()
        one.start()
        until(lambda: one.metric("mlsecd_forensic_log_blocked") == 0.0)
        lost = [f for f in one.findings() if f["detector"] == "gpu_lost"]
        told = [f["subject"]["gpu"] for f in lost if f["status"] == "new"]
        assert sorted(told) == sorted(state.uuids)
        one.stop()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "log")], check=False)


def test_a_taken_port_and_a_wrong_file_are_one_line(daemon: Make, tmp_path: Path) -> None:
    one = daemon().start()
    other = subprocess.run(
        [sys.executable, "-m", "mlsecd", "run", "--config", str(one.file)], capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert "another program listens there" in other.stderr
    assert "Traceback" not in other.stderr
    one.configure("\n[sources.nvml]\n")
    wrong = subprocess.run(
        [sys.executable, "-m", "mlsecd", "run", "--config", str(one.file)], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "not valid TOML" in wrong.stderr


@pytest.fixture
def read_only_package(tmp_path: Path) -> Iterator[Path]:
    """A folder with the package in it that not even root can write to."""
    if os.geteuid() != 0:
        pytest.skip("a file system can be mounted by root only")
    site = tmp_path / "site"
    site.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(site)], capture_output=True, check=False).returncode != 0:
        pytest.skip("this sandbox does not mount file systems")
    try:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(mlsecd.__path__[0]), site / "mlsecd", ignore=skip)
        subprocess.run(["mount", "-o", "remount,ro", str(site)], check=True)
        yield site
    finally:
        subprocess.run(["umount", "-l", str(site)], check=False)


def test_a_read_only_package_and_no_home_is_no_obstacle(daemon: Make, read_only_package: Path, tmp_path: Path) -> None:
    env = {"HOME": "/nonexistent", "PYTHONPATH": str(read_only_package), "CACHE_DIRECTORY": str(tmp_path / "cache")}
    one = daemon(env)
    one.env.pop("NUMBA_CACHE_DIR", None)
    one.start()
    assert one.get("/-/healthy")[0] == 200
    cache = tmp_path / "cache" / "mlsecd-numba"
    assert cache.stat().st_mode & 0o777 == 0o700, (
        "kernels are cached where systemd said, and nobody else may write there"
    )
