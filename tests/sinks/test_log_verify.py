"""``log verify``: what it finds, where it says that it is, and what it says that it cannot find."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from forensic import files, finding, lines, open_log

from mlsecd.errors import SinkError
from mlsecd.sinks.log_verify import LIMITS, print_report, read_findings, verify


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three segments: two sealed, the last one open; 4 + 4 + 3 findings."""
    there = tmp_path / "log"
    writer = open_log(there, max_segment_bytes=5_000)
    for number in range(11):
        writer.append([finding(number)])
    writer.close()
    assert [line.get("type", "") for line in lines(there)].count("seal") == 2
    return there


def edit(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().split(b"\n")[:-1])))


def test_a_whole_log(log: Path) -> None:
    report = verify(log)
    assert report.ok
    assert (report.segments, report.sealed, report.findings, report.tail) == (3, 2, 11, "open")
    assert (report.first_seq, report.last_seq, report.lines) == (0, 15, 16)
    assert report.bytes == sum(path.stat().st_size for path in files(log))
    assert report.head == hashlib.sha256(files(log)[-1].read_bytes().split(b"\n")[-2]).hexdigest()


def test_any_flipped_bit_is_found(log: Path) -> None:
    """In all but the content of the very last line, which no line follows: that is one of the limits."""
    for path in files(log):
        whole = path.read_bytes()
        last = whole[:-1].rfind(b"\n") + 1
        covered = len(whole) if path != files(log)[-1] else last + 84
        control = last if path != files(log)[-1] else covered
        sample = {
            *range(0, covered, 97),
            *range(0, 400, 3),
            *range(control, covered, 7),
            last - 1,
            last,
            len(whole) - 1,
        }
        for at in sorted(sample):
            for bit in (1, 128) if at % 2 else (2,):
                broken = bytearray(whole)
                broken[at] ^= bit
                path.write_bytes(broken)
                report = verify(log)
                assert not report.ok or report.tail == "torn", (path.name, at, bit)
        path.write_bytes(whole)
    assert verify(log).ok


def test_the_last_line_is_covered_by_a_head_kept_elsewhere(log: Path) -> None:
    report = verify(log)
    anchor = (report.last_seq, report.head)
    assert verify(log, anchor=anchor).ok
    path = files(log)[-1]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"n":10', b'"n":19'))
    assert verify(log).ok
    assert any("changed last line" in limit for limit in LIMITS)
    assert "not the line that was noted" in verify(log, anchor=anchor).problems[0].what
    path.write_bytes(whole[: whole[:-1].rfind(b"\n") + 1])
    assert verify(log).ok
    assert any("cut off at the end" in limit for limit in LIMITS)
    assert "is gone" in verify(log, anchor=anchor).problems[0].what


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (lambda body: [*body[:2], *body[3:]], 3, "missing, doubled or out of order"),
        (lambda body: [*body[:3], body[2], *body[3:]], 4, "missing, doubled or out of order"),
        (lambda body: [*body[:1], body[2], body[1], *body[3:]], 2, "missing, doubled or out of order"),
        (lambda body: [*body[:2], b"{}", *body[2:]], 3, "missing, doubled or out of order"),
        (lambda body: [*body[:2], b"\0" * 90, *body[2:]], 3, "no JSON object"),
        (lambda body: [*body[:2], b"[1]", *body[2:]], 3, "no JSON object"),
        (lambda body: [body[0], body[1].replace(b'"n":', b'"m":'), *body[2:]], 3, "chain is broken"),
        (lambda body: [body[0], b" " + body[1], *body[2:]], 2, "does not begin with"),
        (lambda body: body[1:], 1, "no segment header"),
        (lambda body: [body[0].replace(b'"format":1', b'"format":2'), *body[1:]], 1, "another format"),
        (lambda body: body[:-1], 5, "no seal"),
        (lambda body: [*body, body[-1]], 7, "after the seal"),
        (lambda body: [*body[:-1], body[-1].replace(b'"count":', b'"count":1')], 6, "counts other lines"),
    ],
)
def test_problems_are_named_and_placed(
    log: Path, change: Callable[[list[bytes]], list[bytes]], line: int, what: str
) -> None:
    path = files(log)[0]
    edit(path, change)
    report = verify(log)
    first = report.problems[0]
    assert (first.file, first.line) == (str(path), line)
    assert what in first.what
    assert str(first).startswith(f"{path}:{line}: ")


def test_what_was_expected_and_found_is_said(log: Path) -> None:
    path = files(log)[1]
    body = path.read_bytes().split(b"\n")
    edit(path, lambda rows: [*rows[:2], *rows[3:]])
    (first, *_) = verify(log).problems
    seq = json.loads(body[2])["seq"]
    assert (first.expected, first.found) == (str(seq), str(seq + 1))


def test_a_seal_speaks_for_every_line(log: Path) -> None:
    """A chain that was made anew, hashes and all, still fails where the seal was not."""
    path = files(log)[0]

    def forge(body: list[bytes]) -> list[bytes]:
        forged = [body[0], body[1].replace(b'"n":0', b'"n":5')]
        for old, line in itertools.pairwise(body[1:]):
            was, now = (hashlib.sha256(one).hexdigest().encode() for one in (old, forged[-1]))
            forged.append(line.replace(was, now))
        return forged

    edit(path, forge)
    whats = [problem.what for problem in verify(log).problems]
    assert "the seal's root is of other lines" in whats
    assert any("end of the segment before was changed" in what for what in whats)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_missing_segment_is_missed(log: Path, gone: int) -> None:
    files(log)[gone].unlink()
    report = verify(log)
    assert not report.ok
    assert ("does not say" in report.problems[0].what) == (gone == 0)
    if gone == 1:
        assert "missing" in report.problems[0].what


def test_segments_of_another_log_do_not_fit(log: Path, tmp_path: Path) -> None:
    other = open_log(tmp_path / "other", max_segment_bytes=5_000)
    for number in range(11):
        other.append([finding(number)])
    other.close()
    files(log)[1].write_bytes(files(tmp_path / "other")[1].read_bytes())
    whats = [problem.what for problem in verify(log).problems]
    assert any("another log" in what for what in whats)


def test_named_files_may_begin_anywhere(log: Path) -> None:
    assert verify(files(log)[1:]).ok
    assert verify(files(log)[1:2]).tail == "sealed"
    assert not verify([files(log)[0], files(log)[2]]).ok


def test_a_torn_end_is_told_and_is_no_tampering(log: Path) -> None:
    path = files(log)[-1]
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seq":16,"pr')
    report = verify(log)
    assert report.ok
    assert (report.tail, report.torn_bytes) == ("torn", 13)
    first = files(log)[0]
    first.write_bytes(first.read_bytes()[:-1])
    assert any("middle of a line" in problem.what for problem in verify(log).problems)


def test_a_segment_without_its_header_yet_changes_nothing(log: Path) -> None:
    seq, head = verify(log).last_seq, verify(log).head
    writer = open_log(log, max_segment_bytes=10)
    writer.append([finding(1)])
    writer.close()
    new = files(log)[-1]
    before = verify(files(log)[:-1])
    new.write_bytes(b"")
    report = verify(log)
    assert report.ok
    assert (report.last_seq, report.head) == (before.last_seq, before.head) != (seq, head)


@pytest.mark.parametrize("junk", [b"x" * 9_000_000, b"x" * 9_000_000 + b"\n", b"\n" * 5_000, os.urandom(100_000)])
def test_junk_of_any_size_takes_little_memory(log: Path, junk: bytes) -> None:
    path = files(log)[0]
    body = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([body[0], body[1], junk, *body[2:]]))
    del body
    tracemalloc.start()
    report = verify(log)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not report.ok
    assert report.problems[0].line in {2, 3, 4}
    assert len(report.problems) <= 20
    assert peak < 8_000_000


def test_findings_are_read_past_what_is_damaged(log: Path) -> None:
    edit(files(log)[1], lambda body: [*body[:2], b"\xff\x00{", b'{"class_uid":2004}', *body[3:]])
    told = list(read_findings(log))
    assert [one["evidence"]["n"] for one in told] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert told[0] == finding(0).line()


def test_no_log_is_an_error_and_not_a_clean_one(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SinkError):
            verify(where)
    with pytest.raises(SinkError):
        list(read_findings(tmp_path / "nowhere"))


def test_the_report_is_printed_for_people_and_for_programs(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_report(log) == 0
    text = capsys.readouterr().out
    assert text.startswith("ok\n")
    assert "a chain alone cannot show" in text
    path = files(log)[0]
    path.write_bytes(path.read_bytes().replace(b'"seq":2,', b'"seq":"\\u001b[2J",'))
    assert print_report(log) == 1
    text = capsys.readouterr().out
    assert text.startswith("NOT OK")
    assert f"{path}:3: " in text
    assert all(row.isprintable() for row in text.splitlines())
    assert print_report(log, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["problems"][0]["line"] == 3
    assert told["cannot_prove"] == list(LIMITS)
