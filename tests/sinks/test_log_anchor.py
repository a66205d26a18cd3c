"""The head of the log, told to syslog, and the log compared with what syslog was told."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from forensic import Params, finding

from mlsecd.meters import Meters
from mlsecd.sinks.chain import segments
from mlsecd.sinks.forensic_log import ForensicLog
from mlsecd.sinks.log_anchor import TAG, Anchor
from mlsecd.sinks.log_anchors import MAX_ANCHORS, Noted, read_anchors
from mlsecd.sinks.log_verify import verify

AT = "mlsecd_forensic_log_anchor_timestamp_seconds"
FAILED = "mlsecd_forensic_log_anchor_failures_total"
LOG, HASH = "ab" * 16, "cd" * 32


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(10)
        yield sock
    path.unlink()


def test_syslog_is_told_when_it_is_due_and_at_the_end(tmp_path: Path) -> None:
    meters = Meters()
    with listening(tmp_path / "log") as syslog:
        anchor = Anchor(str(tmp_path / "log"), 3_600, "gpu-01", meters, clock=lambda: 1_000.0)
        assert meters.value(AT) == 0.0
        anchor.look(LOG, (-1, "0" * 64))  # a log without a line
        anchor.look(LOG, (7, HASH))
        anchor.look(LOG, (8, HASH))  # not due
        anchor.look(LOG, (9, HASH), last=True)
        first, second = syslog.recv(4096).decode(), syslog.recv(4096).decode()
        syslog.settimeout(0)
        with pytest.raises(BlockingIOError):
            syslog.recv(1)
    assert first.startswith(f"<85>{TAG}[")
    assert first.endswith(f"]: host=gpu-01 log={LOG} anchor=7:{HASH}")
    assert list(read_anchors([first, second])) == [Noted(7, HASH, LOG), Noted(9, HASH, LOG)]
    assert (meters.value(AT), meters.value(FAILED), anchor.why) == (1_000.0, 0.0, "")


def test_what_syslog_does_not_take_is_told_counted_and_tried_again(tmp_path: Path) -> None:
    meters = Meters()
    anchor = Anchor(str(tmp_path / "log"), 3_600, "h", meters)
    anchor.look(LOG, (1, HASH))
    anchor.look(LOG, (1, HASH))
    assert meters.value(FAILED) == 2
    assert anchor.why == f"{tmp_path}/log: No such file or directory"
    with listening(tmp_path / "log") as syslog:
        anchor.look(LOG, (1, HASH))
        assert syslog.recv(4096)
    assert anchor.why == ""
    assert meters.value(AT) > 0


def test_a_syslog_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    meters = Meters()
    with listening(tmp_path / "log"):
        anchor = Anchor(str(tmp_path / "log"), 3_600, "h", meters)
        for _ in range(10_000):  # a socket's queue is shorter
            anchor.look(LOG, (1, HASH), last=True)
            if anchor.why:
                break
    assert "temporarily unavailable" in anchor.why


def test_without_a_socket_there_is_no_series_that_could_alert(tmp_path: Path) -> None:
    meters = Meters()
    Anchor("", 300, "h", meters).look(LOG, (1, HASH), last=True)
    assert not {name for kind in (meters.gauges(), meters.counters()) for name, held in kind.items() if held}
    Anchor(str(tmp_path / "log"), 300, "h", meters)
    assert meters.gauges()[AT] == {(): 0.0}
    Anchor("", 300, "h", meters)  # a reload took the setting out
    assert meters.gauges()[AT] == {}


def test_lines_of_any_kind_are_read_and_only_so_many() -> None:
    odd = [
        "",
        "anchor=",
        f"anchor=12:{HASH[:-1]}",
        f"anchor={'9' * 30}:{HASH}",
        f"anchor={2**63 - 1}:{HASH}",
        "\0" * 99,
    ]
    assert list(read_anchors(odd)) == []
    assert list(read_anchors([f"head: 3 x {3}:{HASH} y"])) == [Noted(3, HASH)]
    assert len(list(read_anchors([f"0:{HASH}"] * (MAX_ANCHORS + 5)))) == MAX_ANCHORS


def write(directory: Path, count: int, *, segment_bytes: int = 1 << 26, **more: int) -> list[Noted]:
    """A log, and what was noted of it after each finding."""
    log = ForensicLog(Params(directory=str(directory), max_segment_bytes=segment_bytes, **more), "h", Meters())
    noted = []
    for number in range(count):
        log.append([finding(number)])
        noted.append(Noted(*log.head, log.log_id))
    log.close()
    return noted


def test_a_whole_log_holds_every_anchor_over_all_segments(tmp_path: Path) -> None:
    noted = write(tmp_path, 40, segment_bytes=8_192)
    assert len(segments(tmp_path)) > 3
    assert verify(tmp_path, anchors=[*noted, *noted]).ok
    assert verify(tmp_path, anchors=[Noted(one.seq, one.sha256) for one in noted]).ok


def test_a_log_that_was_cut_off_is_shown_by_its_anchors_alone(tmp_path: Path) -> None:
    noted = write(tmp_path, 10)
    (path,) = segments(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]))
    assert verify(tmp_path).ok, "a chain that was cut is a chain"
    report = verify(tmp_path, anchors=noted)
    assert [one.what for one in report.problems] == ["the line that was noted elsewhere is gone"]
    assert report.problems[0].expected == f"seq {noted[-1].seq}"


def test_a_log_that_was_written_anew_is_another(tmp_path: Path) -> None:
    noted = write(tmp_path / "old", 5)
    write(tmp_path / "new", 9)
    report = verify(tmp_path / "new", anchors=noted)
    assert "5 anchors are of another log" in report.problems[0].what
    unnamed = verify(tmp_path / "new", anchors=[Noted(one.seq, one.sha256) for one in noted])
    assert unnamed.problem_count == 5, "and no line of it is one of theirs"


def test_anchors_of_what_was_deleted_as_configured_are_no_problem(tmp_path: Path) -> None:
    noted = write(tmp_path, 60, segment_bytes=8_192, max_segments=3)
    report = verify(tmp_path, anchors=noted)
    assert report.ok
    assert any("anchors are older than what is kept" in note for note in report.notes)
