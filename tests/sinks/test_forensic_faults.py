"""The forensic log when the disk refuses or the daemon is killed: what was acknowledged is there."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forensic import controls, files, finding, numbers, open_log, without_syncs

from mlsecd.meters import Meters
from mlsecd.sinks.log_verify import verify

DROPPED = {"where": "forensic_log", "reason": "queue_full"}


class Fault:
    """Makes the Nth call of some functions of ``os`` fail, and the ``width - 1`` after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], code: int, width: int = 1) -> None:
        self.count = 0
        self.at: float = float("inf")
        self._code = code
        self._width = width
        for name in names:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.at <= self.count < self.at + self._width:
                if name == "write":  # a full disk takes a part first
                    real(args[0], args[1][: len(args[1]) // 2])
                raise OSError(self._code, os.strerror(self._code))
            return real(*args, **kwargs)

        return call


def drive(directory: Path) -> list[int]:
    """Findings through several segments, one and more at a time; what was acknowledged, in order."""
    log = open_log(directory, max_segment_bytes=3_000, max_segments=3)
    acknowledged = sent = 0
    for size in (1, 3, 1, 2, 1, 4, 1, 1):
        acknowledged += log.append([finding(number) for number in range(sent, sent + size)])
        sent += size
        acknowledged += log.retry()
        assert acknowledged + log.queued == sent
        if not log.blocked:
            assert log.queued == 0
            assert log.last_error is None
    for _ in range(5):
        acknowledged += log.retry()
    assert not log.blocked
    assert acknowledged == sent
    assert log.chain_ok
    log.close()
    return list(range(sent))


@pytest.mark.parametrize("names", [("write",), ("fdatasync",), ("fsync",), ("open",), ("write", "ftruncate", "unlink")])
@pytest.mark.parametrize("width", [1, 4])
def test_whichever_call_fails_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], width: int
) -> None:
    without_syncs(monkeypatch)
    fault = Fault(monkeypatch, names, errno.ENOSPC, width)
    drive(tmp_path / "whole")
    calls = fault.count
    assert calls > 3
    for at in range(1, calls + 1, 1 if calls < 30 else 3):
        there = tmp_path / f"{at}"
        fault.count, fault.at = 0, at
        sent = drive(there)
        fault.at = float("inf")
        written = numbers(there)
        assert written == sent[-len(written) :], (names, at)
        report = verify(there)
        assert report.ok, (names, at, report.problems)
        shutil.rmtree(there)


def test_half_a_line_is_cut_off_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path)
    log.append([finding(1)])
    before = files(tmp_path)[0].read_bytes()
    with monkeypatch.context() as patch:
        Fault(patch, ("write",), errno.ENOSPC).at = 1
        assert log.append([finding(2)]) == 0
    assert log.blocked
    assert "No space left" in str(log.last_error)
    assert files(tmp_path)[0].read_bytes() == before
    assert log.retry() == 1
    assert numbers(tmp_path) == [1, 2]
    assert controls(tmp_path, "repair") == []


def test_a_short_write_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:100]))
        assert log.append([finding(1)]) == 0
    assert log.blocked
    assert log.retry() == 1
    assert verify(tmp_path).ok


def test_what_was_written_before_the_disk_was_full_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path)
    with monkeypatch.context() as patch:
        Fault(patch, ("write",), errno.ENOSPC).at = 4
        assert log.append([finding(number) for number in range(5)]) == 3
    assert (log.queued, log.written) == (2, 3)


def test_a_failed_sync_acknowledges_nothing_and_writes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it nobody knows what reached the disk, and a second sync of the same pages would lie."""
    log = open_log(tmp_path)
    writes: list[int] = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (writes.append(fd), real(fd, data))[1])
    with monkeypatch.context() as patch:
        Fault(patch, ("fdatasync",), errno.EIO).at = 1
        assert log.append([finding(1), finding(2)]) == 0
    assert len(writes) == 2
    assert log.retry() == 2
    assert len(writes) == 4
    assert numbers(tmp_path) == [1, 2]


def test_findings_are_acknowledged_after_one_sync_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path)
    calls: list[str] = []
    for name in ("write", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, n=name, f=real: (calls.append(n), f(*args))[1])
    log.append([finding(number) for number in range(3)])
    assert calls == ["write"] * 3 + ["fdatasync"]
    calls.clear()
    log.append([])
    log.retry()
    assert calls == []


def test_while_blocked_findings_wait_in_order_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters = Meters()
    log = open_log(tmp_path, meters=meters, queue_max=5)
    assert log.append([finding(number) for number in range(8)]) == 8  # no queue where there is room
    with monkeypatch.context() as patch:
        Fault(patch, ("write",), errno.ENOSPC, 10_000).at = 1
        for number in range(8, 20):
            log.append([finding(number)])
            log.retry()
        assert (log.blocked, log.queued, log.dropped) == (True, 5, 7)
        assert meters.value("mlsecd_dropped_total", **DROPPED) == 7
    assert log.retry() == 5
    log.append([finding(20)])
    assert numbers(tmp_path) == [*range(13), 20]
    (told,) = controls(tmp_path, "dropped")
    assert told["findings"] == 7
    assert any("dropped" in note for note in verify(tmp_path).notes)


def test_a_log_that_cannot_begin_is_loud_and_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the directory should be")
    log = open_log(tmp_path / "log")
    assert log.blocked
    assert log.last_error
    log.append([finding(1)])
    (tmp_path / "log").unlink()
    assert log.retry() == 1
    assert not log.blocked
    assert verify(tmp_path / "log").ok


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    there = tmp_path / "disk"
    there.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(there)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield there
    subprocess.run(["umount", str(there)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    log = open_log(small_disk / "log")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 40_000)
    acknowledged = 0
    for number in range(60):
        acknowledged += log.append([finding(number)])
    assert log.blocked
    assert 0 < acknowledged < 60
    assert numbers(small_disk / "log") == list(range(acknowledged))
    assert verify(small_disk / "log").tail == "open"
    ballast.unlink()
    acknowledged += log.retry()
    assert log.blocked or acknowledged == 60
    log.close()
    again = open_log(small_disk / "log")
    assert again.chain_ok
    again.close()
    assert numbers(small_disk / "log") == list(range(acknowledged))
    assert verify(small_disk / "log").ok


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from forensic import finding, open_log
log = open_log(Path(sys.argv[2]), max_segment_bytes=20_000, max_segments=1_000)
number = int(sys.argv[3])
while True:
    size = 1 + number % 4
    if log.append([finding(n) for n in range(number, number + size)]) != size:
        raise SystemExit(log.last_error)
    number += size
    os.write(1, b"%d\\n" % number)
"""


def test_killed_at_any_moment_no_acknowledged_finding_is_lost(tmp_path: Path) -> None:
    rng = random.Random(5)
    here = str(Path(__file__).parent.parent)
    begin = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, here, str(tmp_path / "log"), str(begin)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        acknowledged = begin
        for _ in range(rng.randint(1, 120)):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        acknowledged = int(rest[-1]) if rest else acknowledged
        child.stdout.close()
        child.wait()
        assert numbers(tmp_path / "log")[:acknowledged] == list(range(acknowledged))
        begin = len(numbers(tmp_path / "log"))
        assert begin - acknowledged <= 4
    log = open_log(tmp_path / "log")
    assert log.chain_ok
    log.close()
    report = verify(tmp_path / "log")
    assert report.ok, report.problems
    assert report.sealed > 1
