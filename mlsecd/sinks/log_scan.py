"""Walks one segment of a forensic log in bounded memory and checks every link of its chain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from mlsecd.sinks.chain import FORMAT, GENESIS, MAX_LINE_BYTES, MAX_SEQ, Link, Tree, first_seq

__all__ = ["Problem", "Scan", "parse", "scan"]

_BLOCK: Final = 1 << 18
_MAX_PROBLEMS: Final = 20  # kept a segment: after the first, most are echoes
_MAX_CONTROLS: Final = 1_000
_FINDING: Final = b'"activity_id":'  # what follows seq and prev in a finding's line, and in no other


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that does not hold, and where."""

    file: str
    line: int  # 1 is the first; 0 is the file as a whole
    what: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: {self.what}"
        return f"{where}: expected {self.expected}, found {self.found}" if self.expected else where


@dataclass(slots=True)
class Scan:
    """What a walk over one segment found."""

    path: Path
    start: Link  # what the first line says that it carries
    link: Link  # after the last complete line
    lines: int = 0
    findings: int = 0
    header: dict[str, Any] | None = None
    sealed: bool = False
    size: int = 0  # bytes of complete lines
    torn_bytes: int = 0  # bytes after the last newline
    torn_sha256: str = ""
    last: bytes = b""  # the last complete line
    tree: Tree = field(default_factory=Tree)
    controls: list[dict[str, Any]] = field(default_factory=list)  # repair, break, dropped, retention; with "line"
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0

    def complain(self, what: str, expected: object = "", found: object = "", line: int | None = None) -> None:
        """Note a problem at the current line."""
        self.problem_count += 1
        if len(self.problems) < _MAX_PROBLEMS:
            at = self.lines if line is None else line
            self.problems.append(Problem(str(self.path), at, what, str(expected), str(found)))

    def join(self, link: Link) -> None:
        """Check that the segment goes on from ``link``, where the one before it ends."""
        if not self.lines:
            return
        if self.start.prev != link.prev:
            what = "the chain is broken: the end of the segment before was changed, or this prev"
            self._put_first(Problem(str(self.path), 1, what, link.prev, self.start.prev))
        if self.start.seq != link.seq:
            what = "segments or lines are missing, doubled or out of order: seq"
            self._put_first(Problem(str(self.path), 1, what, str(link.seq), str(self.start.seq)))

    def _put_first(self, problem: Problem) -> None:
        self.problem_count += 1
        self.problems.insert(0, problem)


def parse(line: bytes) -> dict[str, Any] | None:
    """A line's object; ``None`` where it is none."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def scan(path: Path) -> Scan:
    """Walk a segment. What its first line says of the segment before is believed: :meth:`Scan.join` checks it.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    start = Link(first_seq(path) or 0, GENESIS)
    result = Scan(path, start, start)
    with path.open("rb", buffering=0) as file:
        for data in _pieces(file, result):
            start_of_rest = 0
            if not result.lines:
                start_of_rest = data.find(b"\n") + 1
                _head(result, data[: start_of_rest - 1])
            _check(result, data, start_of_rest)
    _check_end(result)
    return result


def _pieces(file: BinaryIO, result: Scan) -> Iterator[bytes]:
    """Complete lines, some at a time; the rest goes to the result. A line without end is skipped and told."""
    rest = b""
    skipped = 0  # bytes so far of a line that is too long to hold
    torn = hashlib.sha256()
    while block := file.read(_BLOCK):
        data = rest + block
        if skipped and (stop := block.find(b"\n") + 1):
            result.size += skipped + stop
            result.lines += 1
            torn, skipped = hashlib.sha256(), 0
            data = block[stop:]
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        if len(rest) > MAX_LINE_BYTES or skipped:
            if not skipped:
                at = result.lines + data.count(b"\n", 0, end) + 1
                result.complain(f"a line is longer than {MAX_LINE_BYTES} bytes", line=at)
            torn.update(rest)
            skipped, rest = skipped + len(rest), b""
        if end:
            yield data[:end]
    torn.update(rest)
    result.torn_bytes = skipped + len(rest)
    result.torn_sha256 = torn.hexdigest() if result.torn_bytes else ""


def _head(result: Scan, line: bytes) -> None:
    """The first line: it must be a header."""
    result.lines = 1
    header = parse(line)
    named = first_seq(result.path)
    if header is None or header.get("type") != "header":
        result.complain("the first line is no segment header")
    elif header.get("format") != FORMAT:
        result.complain("another format", FORMAT, header.get("format"))
    else:
        result.header = header
    if header is not None and named is not None and header.get("seq") != named:
        result.complain("the header's seq is not the file name's", named, header.get("seq"))
    if header is not None and isinstance(header.get("prev"), str):
        result.start = result.link = Link(_seq_of(header, result.start.seq), header["prev"])
    if not line.startswith(result.link.opening):
        _explain(result, line)
    _advance(result, line)


def _advance(result: Scan, line: bytes) -> None:
    digest = hashlib.sha256(line).digest()
    result.tree.append(digest)
    result.link = Link(result.link.seq + 1, digest.hex())
    result.size += len(line) + 1
    result.last = line


def _check(result: Scan, data: bytes, at: int) -> None:
    """The fast path: the opening of every finding, byte for byte; anything else goes the slow way.

    ``data`` holds complete lines; the first to check begins at ``at``. No line is copied.
    """
    sha256, view = hashlib.sha256, memoryview(data)
    link, sealed = result.link, result.sealed
    seq, prev = link.seq, link.prev.encode()
    digests: list[bytes] = []
    usual, begin, last = 0, at, at
    while (end := data.find(b"\n", at)) >= 0:
        if data.startswith(b'{"seq":%d,"prev":"%b",%b' % (seq, prev, _FINDING), at) and not sealed:
            usual += 1
        else:
            result.lines += usual + 1
            result.findings += usual
            result.link = Link(seq, prev.decode())
            result.tree.extend(digests)
            usual = 0
            digests.clear()
            _slow(result, data[at:end])
            seq, sealed = result.link.seq, result.sealed
        digest = sha256(view[at:end]).digest()
        digests.append(digest)
        seq += 1
        prev = digest.hex().encode()
        last, at = at, end + 1
    result.tree.extend(digests)
    result.lines += usual
    result.findings += usual
    result.link = Link(seq, prev.decode())
    result.size += at - begin
    result.last = data[last : at - 1] if digests else result.last


def _slow(result: Scan, line: bytes) -> None:
    """A control line, or one that does not follow."""
    if result.sealed:
        result.complain("a line after the seal")
        result.sealed = False
    body = parse(line)
    if not line.startswith(result.link.opening):
        _explain(result, line)
    if body is None or "type" not in body:
        result.findings += body is not None
        return
    if body["type"] == "seal":
        _check_seal(result, body)
    elif len(result.controls) < _MAX_CONTROLS:
        result.controls.append({**body, "line": result.lines})


def _check_seal(result: Scan, seal: dict[str, Any]) -> None:
    result.sealed = True
    if seal.get("count") != result.tree.count:
        result.complain("the seal counts other lines", result.tree.count, seal.get("count"))
    if seal.get("root") != result.tree.root():
        result.complain("the seal's root is of other lines", result.tree.root(), seal.get("root"))


def _explain(result: Scan, line: bytes) -> None:
    """Say what is wrong with a line that does not open as it must, and go on from what it says."""
    body = parse(line)
    if body is None:
        result.complain("the line is no JSON object")
        return
    expected = result.link
    if body.get("seq") != expected.seq:
        result.complain("lines are missing, doubled or out of order: seq", expected.seq, body.get("seq"))
        result.link = Link(_seq_of(body, expected.seq), expected.prev)
    if body.get("prev") != expected.prev:
        result.complain(
            "the chain is broken: the line before was changed, or this prev", expected.prev, body.get("prev")
        )
    elif body.get("seq") == expected.seq:
        result.complain("the line does not begin with its seq and prev", expected.opening.decode())


def _seq_of(body: dict[str, Any], otherwise: int) -> int:
    seq = body.get("seq")
    return seq if isinstance(seq, int) and not isinstance(seq, bool) and 0 <= seq < MAX_SEQ else otherwise


def _check_end(result: Scan) -> None:
    """No line follows the last one to vouch for it, so at least it must be one."""
    if result.lines > 1 and parse(result.last) is None and not result.problem_count:
        result.complain("the last line is no JSON object")
