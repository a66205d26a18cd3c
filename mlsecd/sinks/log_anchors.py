"""Compares a forensic log with heads of it that were kept elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

from mlsecd.sinks.chain import MAX_LINE_BYTES, MAX_SEQ, Link, first_seq

__all__ = ["MAX_ANCHORS", "Noted", "check_anchors", "read_anchors"]

MAX_ANCHORS: Final = 200_000  # two years of one every five minutes
_LINE_MAX: Final = 65_536

_ANCHOR: Final = re.compile(r"\b([0-9]{1,19}):([0-9a-f]{64})\b")
_LOG: Final = re.compile(r"\blog=([0-9a-f]{32})\b")


@dataclass(frozen=True, slots=True)
class Noted:
    """A line of the log as it was noted elsewhere."""

    seq: int
    sha256: str  # hex
    log: str = ""  # the log's id; empty: not noted


class _Report(Protocol):
    log: str
    first_seq: int
    last_seq: int
    notes: list[str]

    def complain(self, path: Path, what: str, expected: object = "", found: object = "", line: int = 0) -> None: ...


def read_anchors(lines: Iterable[str]) -> Iterator[Noted]:
    """The anchors in lines that hold ``log=ID anchor=SEQ:SHA256``, at most ``MAX_ANCHORS``; others are passed over."""
    left = MAX_ANCHORS
    for line in lines:
        found = _ANCHOR.search(line[:_LINE_MAX])
        if found and int(found[1]) < MAX_SEQ and left:
            left -= 1
            log = _LOG.search(line[:_LINE_MAX])
            yield Noted(int(found[1]), found[2], log[1] if log else "")


def check_anchors(report: _Report, paths: Sequence[Path], noted: Iterable[Noted]) -> None:
    """Every noted line must still be there, unchanged; what is wrong goes into the report.

    Lines before the first that is kept cannot be checked, which is noted; whether the log explains their absence is
    checked elsewhere.

    Raises
    ------
    OSError
        A segment cannot be read.
    """
    wanted = sorted(set(noted), key=lambda one: one.seq)
    here = [one for one in wanted if one.log in ("", report.log)]
    if len(here) < len(wanted):
        other = next(one for one in wanted if one not in here)
        what = f"{len(wanted) - len(here)} anchors are of another log: this one took its place"
        report.complain(paths[-1], what, other.log, report.log)
    old = [one for one in here if one.seq < report.first_seq]
    if old:
        report.notes.append(f"{len(old)} anchors are older than what is kept, and were not compared")
    cut = [one for one in here if one.seq > report.last_seq]
    if cut:
        what = "the line that was noted elsewhere is gone"
        report.complain(paths[-1], what, f"seq {cut[-1].seq}", f"{report.last_seq}")
    kept = [one for one in here if report.first_seq <= one.seq <= report.last_seq]
    starts = [(first_seq(path) or 0, path) for path in paths]

    def place(one: Noted) -> tuple[int, Path]:
        return max(start for start in starts if start[0] <= one.seq)

    for (start, path), group in groupby(kept, key=place):
        _check_segment(report, path, start, list(group))


def _check_segment(report: _Report, path: Path, start: int, noted: list[Noted]) -> None:
    """One pass over a segment, however many of its lines were noted."""
    waiting = noted[::-1]
    with path.open("rb") as file:
        for seq, line in enumerate(_bounded_lines(file), start):
            found = ""
            while waiting and waiting[-1].seq == seq:
                one = waiting.pop()
                found = found or Link(seq, "").after(line.rstrip(b"\n")).prev
                if found != one.sha256:
                    what = f"seq {seq} is not the line that was noted elsewhere"
                    report.complain(path, what, one.sha256, found, seq - start + 1)
            if not waiting:
                return
    report.complain(path, "the line that was noted elsewhere is gone", f"seq {waiting[-1].seq}")


def _bounded_lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
