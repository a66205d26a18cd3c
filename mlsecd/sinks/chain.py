"""The chain of the forensic log: what every line carries, and the Merkle tree that seals a segment.

A log is a directory of segments ``mlsecd-<first seq, 20 digits>.jsonl``. Every line, control lines
included, is one JSON object that begins ``{"seq":N,"prev":"<hex>",``: ``seq`` grows by one a line and
``prev`` is the SHA-256 of the bytes of the line before, without its newline; both go on across
segments. A segment begins with a ``header`` and, when it is finished, ends with a ``seal`` that holds
the number of lines before it and the root of a Merkle tree (RFC 6962) whose entries are the
SHA-256 hashes of these lines.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "FORMAT",
    "GENESIS",
    "MAX_LINE_BYTES",
    "MAX_SEQ",
    "Link",
    "Tree",
    "first_seq",
    "segment_name",
    "segments",
]

FORMAT: Final = 1
GENESIS: Final = "0" * 64  # what the very first line follows
MAX_LINE_BYTES: Final = 1 << 20  # a longer line is nobody's: the writer stays far below
MAX_SEQ: Final = 2**63 - 1

_NAME = re.compile(r"mlsecd-(\d{20})\.jsonl")


@dataclass(frozen=True, slots=True)
class Link:
    """What the next line must carry."""

    seq: int
    prev: str  # hex

    def after(self, line: bytes) -> Link:
        """The link that follows ``line`` (without newline)."""
        return Link(self.seq + 1, hashlib.sha256(line).hexdigest())

    @property
    def opening(self) -> bytes:
        """The bytes that the next line must begin with."""
        return b'{"seq":%d,"prev":"%b",' % (self.seq, self.prev.encode())


class Tree:
    """A Merkle tree hash (RFC 6962, SHA-256) that grows by its end and keeps O(log n) hashes."""

    __slots__ = ("_waiting", "count")

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[bytes | None] = []  # by level: a left half that has no right half yet

    def append(self, entry: bytes) -> None:
        """Add one entry."""
        sha256, waiting = hashlib.sha256, self._waiting
        node = sha256(b"\x00" + entry).digest()
        self.count += 1
        for level, left in enumerate(waiting):
            if left is None:
                waiting[level] = node
                return
            node = sha256(b"\x01" + left + node).digest()
            waiting[level] = None
        waiting.append(node)

    def extend(self, entries: Sequence[bytes]) -> None:
        """Add many entries, in order: the same tree, at half the cost each."""
        sha256 = hashlib.sha256
        nodes = [sha256(b"\x00" + entry).digest() for entry in entries]
        self.count += len(nodes)
        waiting = self._waiting
        level = 0
        while nodes:
            if level == len(waiting):
                waiting.append(None)
            if (left := waiting[level]) is not None:
                nodes.insert(0, left)
            waiting[level] = nodes.pop() if len(nodes) % 2 else None
            pairs = iter(nodes)
            nodes = [sha256(b"\x01" + one + two).digest() for one, two in zip(pairs, pairs, strict=True)]
            level += 1

    def root(self) -> str:
        """The root, hex; of no entry at all it is the hash of nothing."""
        node: bytes | None = None
        for left in self._waiting:
            if left is not None:
                node = left if node is None else hashlib.sha256(b"\x01" + left + node).digest()
        return (hashlib.sha256(b"").digest() if node is None else node).hex()

    def copy(self) -> Tree:
        """An independent copy."""
        twin = Tree()
        twin.count, twin._waiting = self.count, self._waiting.copy()
        return twin


def segment_name(seq: int) -> str:
    """The file name of the segment whose first line has this ``seq``."""
    return f"mlsecd-{seq:020d}.jsonl"


def first_seq(path: Path) -> int | None:
    """The ``seq`` that a segment's name promises; ``None`` where the name is no segment's."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def segments(directory: Path) -> list[Path]:
    """The segments of a log, the oldest first. Only regular files: a pipe or a link by such a name is no evidence.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    return sorted(path for name in names if first_seq(path := directory / name) is not None)
