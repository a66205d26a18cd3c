from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from daemons import until
from views import active, gpu, status_view

from mlsecd import cli
from mlsecd.commands.top_view import lines
from mlsecd.meters import Meters
from mlsecd.records import Severity
from mlsecd.sinks.metrics_view import DetectorHealth
from mlsecd.web.routes import Pages, routes
from mlsecd.web.server import WebServer
from mlsecd.web.status import present
from mlsecd.web.view import StatusView

NASTY = "\033[2J\r\nk-evil"


def status(**kw: Any) -> dict[str, Any]:
    return json.loads(msgspec.json.encode(present(status_view(**kw))))


@pytest.fixture
def served() -> Iterator[WebServer]:
    view: StatusView = status_view(models=(("digits", 42, 1.0),))
    pages = Pages(metrics=lambda *_: None, status=lambda: view, beat_age=lambda: 0.0)
    server = WebServer("127.0.0.1:0", routes(pages), Meters())
    server.start()
    yield server
    server.stop()


def test_once_prints_the_picture_and_says_by_its_code_that_something_is_open(
    served: WebServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "mlsecd.toml"
    config.write_text("")
    there = ["--config", str(config), "--listen", f"127.0.0.1:{served.port}"]
    assert cli.main(["top", "--once", *there]) == 1  # the view holds a real one of high severity
    told = capsys.readouterr().out
    for words in (
        "gpu-node-07",
        "SUSPICIOUS CLIENTS (1)",
        "GPUS (1)",
        "MODELS (1)",
        "digits",
        "SOURCES (2)",
        "processes",
    ):
        assert words in told
    assert "\033" not in told
    assert cli.main(["top", "--json", *there]) == 1
    assert json.loads(capsys.readouterr().out)["models"] == [{"name": "digits", "requests": 42, "last_ts": 1.0}]


def test_where_nobody_answers_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "mlsecd.toml"
    config.write_text("")
    assert cli.main(["top", "--once", "--config", str(config), "--listen", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("mlsecd: no daemon answers on 127.0.0.1:1")
    assert cli.main(["top", "--once", "--config", str(config), "--listen", "nowhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@contextlib.contextmanager
def viewed(served: WebServer, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``mlsecd top`` on a terminal, started as a script's background is, with SIGINT ignored; and who reads it."""
    config = tmp_path / "mlsecd.toml"
    config.write_text("")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "mlsecd", "top", "--config", str(config), "--seconds", "0.1"]
    process = subprocess.Popen(
        ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command, "--listen", f"127.0.0.1:{served.port}"],
        env={name: value for name, value in os.environ.items() if name not in {"LINES", "COLUMNS"}},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def rest(ours: int) -> bytes:
    """What is left to be read of a process that is gone."""
    seen = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while part := os.read(ours, 65_536):
            seen += part
    return seen


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_on_a_terminal_it_draws_again_and_leaves_the_screen_as_it_was(
    served: WebServer, tmp_path: Path, number: int, code: int
) -> None:
    with viewed(served, tmp_path) as (process, ours):
        seen = b""

        def drawn() -> bool:
            nonlocal seen
            seen += os.read(ours, 65_536)
            return seen.count(b"\033[H") >= 2 and b"extraction_account" in seen and b"lines more" in seen

        until(drawn, 30)
        process.send_signal(number)
        assert process.wait(20) == code
        assert rest(ours).endswith(b"\033[?25h\033[?1049l")


def full(process: subprocess.Popen[bytes]) -> bool:
    """Whether its terminal takes no more."""
    theirs = os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY | os.O_NOCTTY)
    try:
        return not select.select([], [theirs], [], 0)[1]
    finally:
        os.close(theirs)


def test_it_ends_on_a_terminal_that_nobody_reads(served: WebServer, tmp_path: Path) -> None:
    with viewed(served, tmp_path) as (process, ours):
        until(lambda: full(process), 30)
        time.sleep(0.5)  # it is to hang in the next picture
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert rest(ours).endswith(b"\033[?25h\033[?1049l")


def test_the_worst_comes_first_and_nothing_hostile_reaches_the_terminal() -> None:
    drift = active("b" * 16, detector="drift_requests", subject_kind="model", subject=NASTY)
    lost = active("c" * 16, detector="gpu_lost", subject_kind="gpu", subject="GPU-1")
    shown = lines(status(active=[active(), drift, lost], gpus=[gpu(name=NASTY)]), {}, 100, colour=True)
    titles = [line.partition(" (")[0] for line in shown if line.isupper() or " (" in line[:26]]
    order = ["SUSPICIOUS CLIENTS", "DRIFT", "OTHER FINDINGS", "GPUS", "SOURCES", "DETECTORS"]
    assert [title for title in titles if title in order] == order
    for line in shown:
        bare = line.replace("\033[0m", "")
        for code in ("31", "32", "33", "34"):
            bare = bare.replace(f"\033[{code}m", "")
        assert bare.isprintable(), line
        assert len(bare) <= 100


def test_a_synthetic_finding_wears_no_alarm() -> None:
    one = active(severity=Severity.CRITICAL, synthetic=True)
    (row,) = [line for line in lines(status(active=[one]), {}, 200, colour=True) if "synthetic: " in line]
    assert "\033[31m" not in row


def test_reason_and_action_are_told_in_full_on_a_narrow_terminal() -> None:
    shown = lines(status(active=[active()]), {}, 80, colour=False)
    told = " ".join(" ".join(shown).split())
    assert "walks along a boundary" in told
    assert "do: Revoke the key." in told
    assert all(len(line) <= 80 for line in shown)


def test_what_is_for_information_and_what_simply_works_takes_a_line() -> None:
    many = [
        active(f"{i:016x}", detector="gpu_short_jobs", subject_kind="gpu", severity=Severity.INFO) for i in range(8)
    ]
    detectors = [DetectorHealth(f"d{i}", "armed") for i in range(9)] + [DetectorHealth("sick", "stale", "why")]
    shown = lines(status(active=many, detectors=detectors), {}, 120, colour=False)
    assert "OTHER FINDINGS, FOR INFORMATION (8): gpu_short_jobs" in shown
    assert sum("d0" in line for line in shown) == 1
    assert any(line.startswith("  9 armed: d0, d1") for line in shown)
    assert any(line.split() == ["sick", "stale", "why"] for line in shown)


def test_a_models_rate_is_between_two_looks() -> None:
    now = status_view().now
    before = status(models=(("digits", 100, 1.0),), now=now - 4)
    shown = lines(status(models=(("digits", 140, 1.0), ("new", 3, 1.0))), before, 120, colour=False)
    (row,) = [line for line in shown if "digits" in line]
    assert row.split()[-1] == "10.0"


def test_a_daemon_that_is_away_is_one_line() -> None:
    assert lines({"error": "no daemon answers"}, {}, 10, colour=True) == ["no daemon…"]
