"""Writes a forensic log's segments: lock, resume, header, lines, seal, retention. Failures are :class:`OSError`."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from mlsecd.errors import SinkError
from mlsecd.records import Finding
from mlsecd.sinks.chain import FORMAT, GENESIS, MAX_LINE_BYTES, Link, first_seq, segments
from mlsecd.sinks.log_lines import line_logger
from mlsecd.sinks.log_resume import Note, Place, resume
from mlsecd.sinks.log_scan import parse
from mlsecd.sinks.log_segment import Mark, Segment, sync_directory
from mlsecd.version import version

__all__ = ["LogParams", "Writer"]

_LOCK: Final = "mlsecd.lock"  # held while a daemon writes; its content says which log this is, and how far it came
_PLACE = re.compile(rb"([0-9a-f]{32}) ([0-9]{10})\n")


class LogParams(Protocol):
    """What the configuration says of the log; sizes in bytes, times in seconds."""

    @property
    def directory(self) -> str: ...  # noqa: D102
    @property
    def queue_max(self) -> int: ...  # noqa: D102
    @property
    def max_segment_bytes(self) -> int: ...  # noqa: D102
    @property
    def max_segment_seconds(self) -> float: ...  # noqa: D102
    @property
    def max_segments(self) -> int: ...  # noqa: D102


class _Current:
    """The segment that lines go to just now; the logger's target outlives every rotation."""

    def __init__(self) -> None:
        self.segment: Segment | None = None
        self.number = 0  # of the last segment
        self.next = Link(0, GENESIS)  # where the next segment begins, while none is open

    @property
    def link(self) -> Link:
        return self.next if self.segment is None else self.segment.link

    def msg(self, line: bytes) -> None:
        self.open().msg(line)

    def open(self) -> Segment:
        if self.segment is None:
            raise SinkError("the forensic log has no open segment")
        return self.segment

    def leave(self) -> None:
        """Close the segment; the next one follows from here."""
        segment, self.segment = self.segment, None
        if segment is not None:
            self.next, self.number = segment.link, segment.number
            with contextlib.suppress(OSError):
                segment.close()


class Writer:
    """One log directory, written by one process. Lines count as written only once they are durable."""

    def __init__(
        self,
        params: LogParams,
        host: str,
        *,
        technique_names: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = Path(params.directory)
        self.chain_ok = True
        self._params = params
        self._host = host
        self._clock = clock
        self._notes: deque[Note] = deque()  # lines about the log itself; they go before findings
        self._current = _Current()
        self._log = line_logger(
            self._current, host=host, version=version(), technique_names=technique_names, clock=clock
        )
        self._lock: int | None = None
        self._known: Place | None = None  # what the lock file says
        self._log_id = ""
        self._unborn: Segment | None = None  # a segment whose header the disk has refused so far

    @property
    def link(self) -> Link:
        """What the next line will carry."""
        return self._current.link

    @property
    def log_id(self) -> str:
        """Made when the log begins, and in the header of every segment; empty before that."""
        return self._log_id

    def note(self, type_: str, **fields: Any) -> None:
        """Have a line about the log itself written before the next finding."""
        self._notes.append((type_, fields))

    def make_ready(self) -> None:
        """Have an open segment that is ours, young and whole.

        Raises
        ------
        SinkError
            Another process writes this log.
        """
        if self._lock is None:
            self._resume()
        segment = self._current.segment
        if segment is not None and (what := segment.foreign_hand()):
            self.chain_ok = False
            self._notes.appendleft(("break", {"file": segment.path.name, "line": 0, "reason": what}))
            self._current.leave()
        elif segment is not None and self._is_old(segment):
            self._seal()
        if self._current.segment is None:
            self._begin_segment()
        self._keep_place()

    def write(self, pending: deque[Finding]) -> None:
        """Write notes and findings, through as many segments as it takes; what is durable leaves ``pending``."""
        self._write_some(pending)
        while pending:
            self._seal()
            self._begin_segment()
            self._write_some(pending)

    def close(self) -> None:
        """Let go. The segment stays open for the next start."""
        self._current.leave()
        unborn, self._unborn = self._unborn, None
        lock, self._lock = self._lock, None
        with contextlib.suppress(OSError):
            if unborn is not None:
                unborn.close()
            if lock is not None:
                os.close(lock)

    def _resume(self) -> None:
        """Take the lock, and go on where an earlier run stopped."""
        self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = _take_lock(self.directory / _LOCK)
        try:
            said = _PLACE.fullmatch(os.pread(lock, 64, 0))
            self._known = Place(said[1].decode(), int(said[2])) if said else None
            found = resume(self.directory, self._known)
            if found.emptied is not None:
                os.truncate(found.emptied, 0)
            current = self._current
            current.next, current.number = found.link, found.number
            if found.path is not None and found.mark is not None:
                current.segment = Segment.reopen(found.path, found.mark, found.number, found.created)
        except OSError:
            os.close(lock)
            raise
        self._lock = lock
        self._log_id = found.log_id or secrets.token_hex(16)
        self._notes.extend(found.notes)
        self.chain_ok = found.chain_ok

    def _keep_place(self) -> None:
        """Note id and segment beside the log, so that segments that are deleted are missed at the next start."""
        place = Place(self._log_id, self._current.open().number)
        if self._known != place and self._lock is not None:
            os.pwrite(self._lock, f"{place.log_id} {place.number:010d}\n".encode(), 0)
            os.fsync(self._lock)
            self._known = place

    def _is_old(self, segment: Segment) -> bool:
        return segment.tree.count > 1 and self._clock() - segment.created >= self._params.max_segment_seconds

    def _begin_segment(self) -> None:
        current = self._current
        segment = self._unborn or Segment.create(self.directory, current.link, current.number + 1, self._clock())
        fields = {"format": FORMAT, "log": self._log_id, "segment": segment.number, "created": segment.created}
        self._unborn, start = segment, segment.mark()
        current.segment = segment
        try:
            self._log.control("header", **fields, host=self._host, mlsecd=version())
            segment.sync()
        except OSError:  # a segment without a header is none; the file is kept for the next try
            segment.roll_back(start)
            current.segment = None
            raise
        self._unborn = None
        self._retain()

    def _seal(self) -> None:
        """Finish the segment: its last line speaks for all others."""
        segment = self._current.open()
        mark = segment.mark()
        try:
            self._log.control("seal", count=segment.tree.count, root=segment.tree.root())
            segment.sync()
        except OSError:
            segment.roll_back(mark)
            raise
        self._current.leave()

    def _retain(self) -> None:
        """Delete the oldest segments beyond the limit. The chain says so before it is done."""
        paths = segments(self.directory)
        excess = max(0, len(paths) - self._params.max_segments)
        for path, after in itertools.pairwise(paths[: excess + 1]):
            with after.open("rb") as file:
                header = parse(file.readline(MAX_LINE_BYTES)) or {}
            last = (first_seq(after) or 0) - 1
            self.note("retention", file=path.name, first_seq=first_seq(path), last_seq=last, sha256=header.get("prev"))
        if excess:
            self._write_some(deque())
            for path in paths[:excess]:
                path.unlink()
            sync_directory(self.directory)

    def _write_some(self, pending: deque[Finding]) -> None:
        """Notes, then findings until the segment is full; one sync for all, and only then are they done."""
        segment, limit = self._current.open(), self._params.max_segment_bytes
        mark = segment.mark()
        notes = findings = 0
        failure: OSError | None = None
        try:
            for type_, fields in self._notes:
                self._log.control(type_, **fields)
                notes += 1
            for finding in pending:
                if segment.size >= limit and segment.tree.count > 1:
                    break
                self._log.finding(finding)
                findings += 1
        except OSError as error:
            segment.undo()
            failure = error
        if notes + findings:
            _commit(segment, mark)
        _pop(self._notes, notes)
        _pop(pending, findings)
        if failure is not None:
            raise failure


def _commit(segment: Segment, mark: Mark) -> None:
    try:
        segment.sync()
    except OSError:
        segment.roll_back(mark)
        raise


def _pop(queue: deque[Any], count: int) -> None:
    for _ in range(count):
        queue.popleft()


def _take_lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise SinkError(f"another process writes the forensic log in {path.parent}") from error
    return fd
