"""The forensic log through time: rotation, retention, restarts, repairs, and hands that are not ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from forensic import Clock, controls, files, finding, lines, numbers, numbers_in, open_log, without_syncs

from mlsecd.errors import SinkError
from mlsecd.sinks.log_verify import verify

# ---- rotation and retention


def test_an_old_segment_is_sealed_and_an_idle_one_is_not(tmp_path: Path) -> None:
    clock = Clock()
    log = open_log(tmp_path, clock, max_segment_seconds=3600)
    clock.now += 10_000
    log.retry()
    assert len(files(tmp_path)) == 1  # a header alone is not worth a seal
    log.append([finding(1)])
    log.retry()
    clock.now -= 50_000  # a clock set back ends nothing early
    log.retry()
    assert numbers(tmp_path) == [1]
    clock.now += 100_000
    log.retry()
    assert len(files(tmp_path)) == 2
    assert verify(tmp_path).sealed == 1


def test_deleting_the_oldest_is_told_by_the_log_itself(tmp_path: Path) -> None:
    log = open_log(tmp_path, max_segment_bytes=4_000, max_segments=3)
    for number in range(30):
        log.append([finding(number)])
    log.close()
    assert len(files(tmp_path)) == 3
    report = verify(tmp_path)
    assert report.ok, report.problems
    assert report.first_seq > 0
    told = controls(tmp_path, "retention")[-1]
    assert told["last_seq"] == report.first_seq - 1
    assert any("deleted by the daemon" in note for note in report.notes)
    assert numbers(tmp_path) == list(range(numbers(tmp_path)[0], 30))
    files(tmp_path)[0].unlink()
    assert not verify(tmp_path).ok


# ---- opened again


def test_the_next_start_goes_on_in_the_same_segment(tmp_path: Path) -> None:
    for number in range(3):
        log = open_log(tmp_path)
        log.append([finding(number)])
        log.close()
    assert len(files(tmp_path)) == 1
    assert numbers(tmp_path) == [0, 1, 2]
    assert verify(tmp_path).ok


def test_a_sealed_tail_is_followed_by_a_new_segment(tmp_path: Path) -> None:
    log = open_log(tmp_path, max_segment_bytes=4_000)
    log.append([finding(number) for number in range(8)])
    log.close()
    last = files(tmp_path)[-1]
    last.unlink()
    (tmp_path / "mlsecd.lock").unlink()  # a crash between the seal and the next header
    log = open_log(tmp_path)
    assert log.chain_ok
    assert files(tmp_path)[-1] == last
    assert verify(tmp_path).ok


def test_cut_at_every_byte_the_log_is_repaired_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_syncs(monkeypatch)
    log = open_log(tmp_path, max_segment_bytes=1_000)
    log.append([finding(1), finding(2)])
    log.close()
    lock, (_, tail) = tmp_path / "mlsecd.lock", files(tmp_path)
    whole = tail.read_bytes()
    assert whole.count(b"\n") == 2
    for cut in range(len(whole) + 1):
        lock.unlink()  # it would tell a header that was cut from one that never was; that is another test
        tail.write_bytes(whole[:cut])
        torn = cut - whole[:cut].rfind(b"\n") - 1
        log = open_log(tmp_path)
        assert log.chain_ok
        assert not log.blocked
        assert log.append([finding(99)]) == 1
        log.close()
        written = lines(tmp_path)
        kept = [1, 2, 99] if cut == len(whole) else [1, 99]
        assert numbers_in(written) == kept
        repairs = [one for one in written if one.get("type") == "repair"]
        assert [one["dropped_bytes"] for one in repairs] == ([torn] if torn else [])
        if torn:
            assert repairs[0]["sha256"] == hashlib.sha256(whole[cut - torn : cut]).hexdigest()
        report = verify(tmp_path)
        assert report.ok, (cut, report.problems)


def test_a_chain_broken_in_the_middle_is_kept_and_told(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append([finding(number) for number in range(5)])
    log.close()
    (path,) = files(tmp_path)
    broken = path.read_bytes().replace(b'"uid":"k-2"', b'"uid":"k-7"')
    path.write_bytes(broken)
    for again in range(2):
        log = open_log(tmp_path)
        assert log.chain_ok is False
        assert not log.blocked
        log.append([finding(10 + again)])
        log.close()
    assert path.read_bytes() == broken
    assert len(files(tmp_path)) == 2
    (told,) = controls(tmp_path, "break")
    assert (told["file"], told["line"]) == (path.name, 5)  # the line whose prev does not hold
    assert numbers(tmp_path) == [0, 1, 2, 3, 4, 10, 11]
    report = verify(tmp_path)
    assert not report.ok
    assert (report.problems[0].file, report.problems[0].line) == (str(path), 5)
    assert report.problem_count == 2 + 1  # the break, the missing seal, and the log's own word for it


@pytest.mark.parametrize("junk", [b"\0" * 500 + b"\n", b"{}\n", b'{"seq":99999999999999999999,"prev":""}\n', b"\n"])
def test_a_line_that_is_not_ours_at_the_end_is_evidence(tmp_path: Path, junk: bytes) -> None:
    log = open_log(tmp_path)
    log.append([finding(1)])
    log.close()
    (path,) = files(tmp_path)
    with path.open("ab") as file:
        file.write(junk)
    log = open_log(tmp_path)
    assert log.chain_ok is False
    assert log.append([finding(2)]) == 1
    assert path.read_bytes().endswith(junk)
    assert log.seq < 1_000
    assert not verify(tmp_path).ok


@pytest.mark.parametrize("seal", [True, False])
def test_a_torn_piece_where_none_can_be_is_evidence(tmp_path: Path, seal: bool) -> None:
    """After a seal nothing is written, and a file without a header only where the segment before ends."""
    clock = Clock()
    log = open_log(tmp_path, clock, max_segment_seconds=10)
    log.append([finding(1)])
    clock.now += 20
    log.retry()
    log.close()
    first, second = files(tmp_path)
    second.unlink()
    (tmp_path / "mlsecd.lock").unlink()
    victim = first if seal else tmp_path / "mlsecd-00000000000000000050.jsonl"
    with victim.open("ab") as file:
        file.write(b"half a li")
    log = open_log(tmp_path)
    assert log.chain_ok is False
    assert log.append([finding(2)]) == 1
    assert victim.read_bytes().endswith(b"half a li")
    assert len(controls_of_last(tmp_path, "break")) == 1
    assert not verify(tmp_path).ok


def controls_of_last(directory: Path, type_: str) -> list[dict[str, Any]]:
    rows = [json.loads(row) for row in files(directory)[-1].read_bytes().splitlines()]
    return [row for row in rows if row.get("type") == type_]


@pytest.mark.parametrize("gone", ["all", "last", "emptied", "swapped"])
def test_segments_that_are_gone_are_missed_at_the_next_start(tmp_path: Path, gone: str) -> None:
    log = open_log(tmp_path / "a", max_segment_bytes=4_000)
    log.append([finding(number) for number in range(12)])
    log.close()
    there = files(tmp_path / "a")
    if gone == "emptied":
        there[-1].write_bytes(b"")
    elif gone == "swapped":
        other = open_log(tmp_path / "b")
        other.append([finding()])
        other.close()
        for path in there:
            path.unlink()
        shutil.copy(files(tmp_path / "b")[0], tmp_path / "a")
    else:
        for path in there if gone == "all" else there[-1:]:
            path.unlink()
    log = open_log(tmp_path / "a")
    assert log.chain_ok is False
    assert log.append([finding(77)]) == 1
    assert len(controls(tmp_path / "a", "break")) == 1
    assert not verify(tmp_path / "a").ok


@pytest.mark.parametrize("deed", ["append", "cut", "delete", "rename", "replace"])
def test_a_foreign_hand_on_the_open_segment_is_noticed(tmp_path: Path, deed: str) -> None:
    log = open_log(tmp_path)
    log.append([finding(1), finding(2)])
    (path,) = files(tmp_path)
    match deed:
        case "append":
            with path.open("ab") as file:
                file.write(b"{}\n")
        case "cut":
            os.truncate(path, path.stat().st_size - 10)
        case "delete":
            path.unlink()
        case "rename":
            path.rename(tmp_path / "elsewhere")
        case "replace":
            body = path.read_bytes()
            path.unlink()
            path.write_bytes(body)
    log.retry()
    assert log.chain_ok is False
    assert log.append([finding(3)]) == 1
    header, told, last = [json.loads(line) for line in files(tmp_path)[-1].read_bytes().splitlines()]
    assert (header["type"], told["type"]) == ("header", "break")
    assert numbers_in([last]) == [3]
    assert not verify(tmp_path).ok


def test_links_and_pipes_by_a_segment_s_name_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    there = tmp_path / "log"
    there.mkdir()
    (there / "mlsecd-00000000000000000000.jsonl").symlink_to(victim)
    log = open_log(there)
    assert log.blocked
    assert log.append([finding()]) == 0
    assert victim.read_bytes() == b"precious"
    (there / "mlsecd-00000000000000000000.jsonl").unlink()
    os.mkfifo(there / "mlsecd-00000000000000000005.jsonl")
    assert log.retry() == 1
    assert verify(there).ok


def test_two_writers_are_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append([finding(1)])
    with pytest.raises(SinkError, match="another process writes"):
        open_log(tmp_path)
    log.append([finding(2)])
    log.close()
    second = open_log(tmp_path)
    second.append([finding(3)])
    assert numbers(tmp_path) == [1, 2, 3]
    assert verify(tmp_path).ok
