"""Follows one log file that grows, is truncated, or is replaced under our feet."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import Final, NamedTuple

from mlsecd.sources.lines import LineCutter

__all__ = ["Identity", "Place", "Tail"]

_HEAD_BYTES: Final = 256
_READ_BYTES: Final = 256 << 10
_BACK_BYTES: Final = 64 << 10  # how far back the last newline is looked for

Identity = tuple[int, int]  # device and inode


class Place(NamedTuple):
    """How far a file was read, in what a state file can hold."""

    path: str
    device: int
    inode: int
    offset: int  # of the first byte that was not handed on
    skipping: bool  # inside a line that was too long
    head_bytes: int
    head: str  # a hash of the first bytes: an inode's number may be given to another file

    @property
    def identity(self) -> Identity:
        """Which file it was."""
        return (self.device, self.inode)


class Tail:
    """One open file and how far it was read. It owns the descriptor."""

    def __init__(self, path: str, fd: int, max_line_bytes: int) -> None:
        status = os.fstat(fd)
        self.path = path
        self.fd = fd
        self.identity: Identity = (status.st_dev, status.st_ino)
        self.at_end = False
        self.left: float | None = None  # time.monotonic() when its path began to mean another file
        self._cutter = LineCutter(max_line_bytes)
        self._head = os.pread(fd, _HEAD_BYTES, 0)
        self.position = 0  # of the next read

    def start_at_end(self) -> None:
        """Begin with the line that is written next, or just now: behind the last newline."""
        size = os.fstat(self.fd).st_size
        start = max(0, size - _BACK_BYTES)
        newline = os.pread(self.fd, size - start, start).rfind(b"\n")
        self.position = start + newline + 1 if newline >= 0 else size if start else 0
        self._cutter.skipping = newline < 0 and start > 0

    def resume(self, place: Place) -> bool:
        """Go on where ``place`` says; False where this is another file, or was truncated since."""
        if self.identity != place.identity or os.fstat(self.fd).st_size < place.offset:
            return False
        if _digest(os.pread(self.fd, place.head_bytes, 0)) != place.head:
            return False
        self.position = place.offset
        self._cutter.skipping = place.skipping
        return True

    def place(self) -> Place:
        """Where to go on after a restart: an unfinished line is read again."""
        offset = self.position - self._cutter.pending
        return Place(self.path, *self.identity, offset, self._cutter.skipping, len(self._head), _digest(self._head))

    def lag(self) -> int:
        """Bytes that wait to be read."""
        return 0 if self.at_end else max(0, os.fstat(self.fd).st_size - self.position)

    def check(self) -> bool:
        """Begin again where the file was truncated, and say so: it is shorter, or begins with other bytes.

        Raises
        ------
        OSError
            The file cannot be read.
        """
        head = os.pread(self.fd, _HEAD_BYTES, 0)
        truncated = os.fstat(self.fd).st_size < self.position or not head.startswith(self._head)
        if truncated:
            self.position = 0
            self._cutter.reset()
        self._head = head
        self.at_end = False
        return truncated

    def read(self) -> bytes:
        """The next whole lines, of at most 256 KiB of the file; ``at_end`` says that no more is there.

        Raises
        ------
        OSError
            The file cannot be read.
        """
        data = os.pread(self.fd, _READ_BYTES, self.position)
        self.position += len(data)
        self.at_end = len(data) < _READ_BYTES
        if data and not data.strip(b"\0"):
            self._skip_hole()
        return self._cutter.feed(data)

    def _skip_hole(self) -> None:
        """A file may hold terabytes of nothing: ``truncate`` makes them in no time. Jump to the next data."""
        try:
            self.position = os.lseek(self.fd, self.position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but the hole, to the end
                self.position = os.fstat(self.fd).st_size

    def finish(self) -> bytes:
        """The last line, though its newline is missing: nobody will write it any more."""
        return self._cutter.finish()

    def close(self) -> None:
        """Close the file; may be called more than once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _digest(head: bytes) -> str:
    return hashlib.blake2b(head, digest_size=16).hexdigest()
