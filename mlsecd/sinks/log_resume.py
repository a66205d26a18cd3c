"""Where a forensic log goes on after a restart: reads its last segment and decides, changing nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mlsecd.sinks.chain import GENESIS, MAX_LINE_BYTES, Link, first_seq, segments
from mlsecd.sinks.log_scan import Scan, parse, scan
from mlsecd.sinks.log_segment import Mark

__all__ = ["Note", "Place", "Resume", "last_link", "resume"]

_PLAUSIBLE: Final = 10**9  # a seq further ahead than this was not written by us

Note = tuple[str, dict[str, Any]]  # a control line to write: its type and fields


@dataclass(frozen=True, slots=True)
class Place:
    """How far a log had come when a segment was last begun; kept beside it."""

    log_id: str
    number: int  # of the segment


@dataclass(slots=True)
class Resume:
    """How to go on."""

    link: Link = field(default_factory=lambda: Link(0, GENESIS))  # what the next line carries
    log_id: str | None = None
    number: int = 0  # of the last segment
    created: float = 0.0  # of the last segment, wall clock, seconds
    path: Path | None = None  # the segment to append to; None: a new one begins
    mark: Mark | None = None  # the end of its good lines
    emptied: Path | None = None  # a file that never got its header: cut to nothing before it is used again
    notes: list[Note] = field(default_factory=list)
    chain_ok: bool = True

    def break_off(self, file: Path | None, reason: str, line: int = 0) -> None:
        """The chain is broken: nothing is touched, a new segment tells it."""
        self.chain_ok = False
        name = file.name if file else ""
        self.notes.append(("break", {"file": name, "line": line, "reason": reason}))


def resume(directory: Path, known: Place | None) -> Resume:
    """Look at the last segment of a log. ``known``: how far this directory is known to have come.

    Raises
    ------
    OSError
        The log cannot be read.
    """
    state = Resume(log_id=known.log_id if known else None)
    paths = segments(directory)
    if not paths:
        if known:
            state.break_off(None, "every segment of this log is gone")
        return state
    before = paths[-2] if len(paths) > 1 else None
    link = (last_link(before) if before else None) or state.link
    found = scan(paths[-1])
    _identify(state, found.header or (_header(before) if before else {}))
    _look_for_breaks(state, found, before, link)
    if known:
        _compare(state, found, known)
    state.link = found.link if found.lines else link
    if state.notes:
        _go_on_behind(state, found)
    elif not found.lines:  # a crash came between the file and its header: it is used again
        state.emptied = found.path
        _note_torn(state, found)
    elif not found.sealed:
        state.path, state.mark = found.path, Mark(found.size, found.link, found.tree)
        _note_torn(state, found)
    state.chain_ok &= not any(control["type"] == "break" for control in found.controls)
    return state


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return parse(file.readline(MAX_LINE_BYTES)) or {}


def _identify(state: Resume, header: dict[str, Any]) -> None:
    log_id, number, created = header.get("log"), header.get("segment"), header.get("created")
    state.log_id = log_id if isinstance(log_id, str) else state.log_id
    state.number = number if isinstance(number, int) else 0
    state.created = float(created) if isinstance(created, int | float) else 0.0


def _look_for_breaks(state: Resume, found: Scan, before: Path | None, link: Link) -> None:
    """Whatever speaks against the last segment, or against its following the one before."""
    if before:
        found.join(link)
    if found.problems:
        state.break_off(found.path, str(found.problems[0]), found.problems[0].line)
    elif found.sealed and found.torn_bytes:
        state.break_off(found.path, f"{found.torn_bytes} bytes after the seal", found.lines + 1)
    elif not found.lines and first_seq(found.path) != link.seq:
        state.break_off(found.path, "it has no header, and does not follow the segment before")


def _compare(state: Resume, found: Scan, known: Place) -> None:
    """What was deleted or swapped leaves no trace in the chain itself."""
    if state.log_id != known.log_id:
        state.log_id = known.log_id
        state.break_off(found.path, "it belongs to another log")
    elif state.number < known.number:
        state.number = known.number
        state.break_off(found.path, f"segments up to number {known.number} were there, and are gone")


def _go_on_behind(state: Resume, found: Scan) -> None:
    """Go on behind what the broken segment says, or could have said; its bytes stay as they are."""
    counted = (first_seq(found.path) or 0) + max(found.lines, 1)
    if not counted < state.link.seq < counted + _PLAUSIBLE:
        state.link = Link(counted, state.link.prev)


def _note_torn(state: Resume, found: Scan) -> None:
    if found.torn_bytes:
        fields = {"file": found.path.name, "dropped_bytes": found.torn_bytes, "sha256": found.torn_sha256}
        state.notes.append(("repair", fields))


def last_link(path: Path) -> Link | None:
    """The link after a segment's last line; ``None`` where it does not end in a complete line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE_BYTES - 2))
        end = file.read()
    if not end.endswith(b"\n"):
        return None
    line = end[:-1].rpartition(b"\n")[2]
    body = parse(line)
    seq = body.get("seq") if body else None
    return Link(seq, "").after(line) if isinstance(seq, int) else None
