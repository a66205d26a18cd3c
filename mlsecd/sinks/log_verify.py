"""Verifies a forensic log, in bounded memory: every seq, every prev, every seal; and says what that proves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from mlsecd.errors import SinkError
from mlsecd.sinks.chain import GENESIS, MAX_LINE_BYTES, Link, segments
from mlsecd.sinks.log_anchors import Noted, check_anchors
from mlsecd.sinks.log_scan import Problem, Scan, scan

__all__ = ["LIMITS", "Report", "print_report", "read_findings", "verify"]

_MAX_PROBLEMS: Final = 20
_MAX_NOTES: Final = 1_000

LIMITS: Final = (
    "lines cut off at the end: what is left is a whole chain; compare the head with one kept on another host",
    "a log rewritten by someone who may write its files, hashes and all: only what is kept elsewhere shows it",
    "a changed last line: no line follows it yet",
    "findings that never reached the log: detectors that were off, or a daemon that did not run",
)


@dataclass(slots=True)
class Report:
    """What verification found. ``ok``: nothing that is there speaks against the log."""

    segments: int = 0
    sealed: int = 0
    lines: int = 0
    findings: int = 0
    bytes: int = 0
    log: str = ""  # the log's id
    first_seq: int = 0
    last_seq: int = -1
    head: str = ""  # SHA-256 of the last line, hex
    tail: str = "open"  # sealed, open, or torn: bytes after the last newline, from a crash or a write under way
    torn_bytes: int = 0
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)  # the first twenty
    notes: list[str] = field(default_factory=list)  # what the log itself records: repairs, drops, deletions

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problem_count

    def complain(self, path: Path, what: str, expected: object = "", found: object = "", line: int = 0) -> None:
        """Note a problem."""
        self._add(Problem(str(path), line, what, str(expected), str(found)))

    def _add(self, problem: Problem, more: int = 0) -> None:
        self.problem_count += 1 + more
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)

    def take(self, found: Scan) -> None:
        """Add one segment's count and problems."""
        self.segments += 1
        self.sealed += found.sealed
        self.lines += found.lines
        self.findings += found.findings
        self.bytes += found.size
        for problem in found.problems:
            self._add(problem)
        self.problem_count += found.problem_count - len(found.problems)


def verify(
    log: Path | Sequence[Path], *, anchor: tuple[int, str] | None = None, anchors: Iterable[Noted] = ()
) -> Report:
    """Verify a log's directory, or some of its segments in order.

    Parameters
    ----------
    log
        A directory must hold the whole log: a missing beginning must be explained by the log itself.
        Of files that are named, the first may be any.
    anchor
        ``seq`` and SHA-256 (hex) of a line, as noted elsewhere: it must still be there, unchanged.
    anchors
        Any number of these, as syslog has them.

    Raises
    ------
    SinkError
        There is no log, or it cannot be read.
    """
    whole = isinstance(log, Path)
    try:
        paths = segments(log) if isinstance(log, Path) else sorted(log, key=lambda path: path.name)
        if not paths:
            raise SinkError(f"no segments of a forensic log in {log}")
        report = Report()
        retained, start = _walk(paths, report)
        if start.seq == 0 and report.lines and start.prev != GENESIS:
            report.complain(paths[0], "the first line follows another one", GENESIS, start.prev, 1)
        if whole and start.seq > 0:
            _check_beginning(report, paths[0], start, retained)
        check_anchors(report, paths, [*anchors, *([Noted(*anchor)] if anchor else [])])
    except OSError as error:
        raise SinkError(f"the forensic log cannot be read: {error}") from error
    return report


def _walk(paths: list[Path], report: Report) -> tuple[list[dict[str, Any]], Link]:
    """Every segment in turn. Returns the deletions that the log records, and where it begins."""
    link: Link | None = None
    number: int | None = None
    retained: list[dict[str, Any]] = []
    start = Link(0, "")
    for path in paths:
        found = scan(path)
        header = found.header or {}
        if link is None:
            start = found.start
            report.first_seq, report.log = start.seq, str(header.get("log", ""))
        else:
            found.join(link)
            found.link = found.link if found.lines else link  # a file that never got its header
        report.take(found)
        if found.header is not None:
            _check_header(report, path, header, number)
        number = header.get("segment")
        _read_controls(report, found, retained)
        link = found.link
        if path != paths[-1]:
            _check_finished(report, found)
        else:
            _finish(report, found)
    return retained, start


def _check_header(report: Report, path: Path, header: dict[str, Any], number: Any) -> None:
    if str(header.get("log", "")) != report.log:
        report.complain(path, "the segment belongs to another log", report.log, header.get("log"), 1)
    if isinstance(number, int) and header.get("segment") != number + 1:
        report.complain(path, "segments are missing or out of order", number + 1, header.get("segment"), 1)


def _check_finished(report: Report, found: Scan) -> None:
    """Only the last segment may end without a seal, or in the middle of a line."""
    if found.torn_bytes:
        report.complain(found.path, "the segment ends in the middle of a line", line=found.lines + 1)
    elif not found.sealed:
        report.complain(found.path, "the segment has no seal: its end was cut off, or it was left", line=found.lines)


def _finish(report: Report, found: Scan) -> None:
    report.last_seq, report.head = found.link.seq - 1, found.link.prev
    report.torn_bytes = found.torn_bytes
    report.tail = "torn" if found.torn_bytes else "sealed" if found.sealed else "open"
    if found.sealed and found.torn_bytes:
        report.complain(found.path, "bytes after the seal", line=found.lines + 1)


def _read_controls(report: Report, found: Scan, retained: list[dict[str, Any]]) -> None:
    for control in found.controls:
        type_ = control["type"]
        told = {key: value for key, value in control.items() if key not in {"seq", "prev", "type", "line"}}
        if type_ == "break":
            what = f"the daemon found the log broken here: {told.get('file') or 'log'}: {told.get('reason')}"
            report.complain(found.path, what, line=control["line"])
        if type_ == "retention":
            retained.append(control)
        elif len(report.notes) < _MAX_NOTES:
            report.notes.append(f"{found.path.name}:{control['line']}: {type_} {json.dumps(told)}")


def _check_beginning(report: Report, first: Path, start: Link, retained: list[dict[str, Any]]) -> None:
    """Segments before the first one must have been deleted by the daemon, which says so further on."""
    for deleted in retained:
        if deleted.get("last_seq") == start.seq - 1 and deleted.get("sha256") == start.prev:
            report.notes.append(f"segments before {first.name} were deleted by the daemon, as configured")
            return
    what = f"lines 0 to {start.seq - 1} are gone, and the log does not say that the daemon deleted them"
    report.complain(first, what, line=1)


def _bounded_lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


class _Unmapped(msgspec.Struct):
    mlsecd: dict[str, Any] = {}


class _Event(msgspec.Struct):
    class_uid: int = 0
    unmapped: _Unmapped = msgspec.field(default_factory=_Unmapped)


def read_findings(directory: Path) -> Iterator[dict[str, Any]]:
    """Every finding line of a log, the oldest first, as the detectors gave it; what is damaged is passed over.

    Raises
    ------
    SinkError
        The log cannot be read.
    """
    decoder = msgspec.json.Decoder(_Event)
    try:
        for path in segments(directory):
            with path.open("rb") as file:
                for line in _bounded_lines(file):
                    try:
                        event = decoder.decode(line)
                    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                        continue
                    if event.unmapped.mlsecd:
                        yield event.unmapped.mlsecd
    except OSError as error:
        raise SinkError(f"the forensic log cannot be read: {error}") from error


def print_report(log: Path, *, as_json: bool = False, anchors: Sequence[Noted] = ()) -> int:
    """Verify and print; returns the exit status, 0 where nothing speaks against the log."""
    report = verify(log, anchors=anchors)
    if as_json:
        print_to = {"ok": report.ok, **asdict(report), "cannot_prove": LIMITS}
        sys.stdout.write(json.dumps(print_to) + "\n")
    else:
        sys.stdout.write("\n".join(_as_text(report)) + "\n")
    return 0 if report.ok else 1


def _as_text(report: Report) -> list[str]:
    verdict = "ok" if report.ok else f"NOT OK: {_counted(report.problem_count, 'problem')}, the first ones:"
    rows = [verdict, *(f"  {_safe(str(problem))}" for problem in report.problems)]
    rows.append(
        f"{_counted(report.lines, 'line')} ({_counted(report.findings, 'finding')}) in "
        f"{_counted(report.segments, 'segment')}, {report.sealed} sealed; "
        f"seq {report.first_seq} to {report.last_seq}"
    )
    torn = f", {report.torn_bytes} bytes of an unfinished line" if report.torn_bytes else ""
    rows.append(f"end: {report.tail}{torn}")
    rows.append(f"head: {report.last_seq} {report.head}")
    rows += [f"recorded: {_safe(note)}" for note in report.notes]
    return [*rows, "a chain alone cannot show:", *(f"  - {limit}" for limit in LIMITS)]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _safe(text: str) -> str:
    """What a damaged log says must not drive the terminal that shows it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
