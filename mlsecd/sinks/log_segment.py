"""One segment file, open for appending: one write(2) a line, and a way back when the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from mlsecd.sinks.chain import Link, Tree, segment_name

__all__ = ["Mark", "Segment", "sync_directory"]

_MODE: Final = 0o640  # the daemon writes, the group of auditors reads


@dataclass(frozen=True, slots=True)
class Mark:
    """A segment's state at a moment when everything in it was durable."""

    size: int
    link: Link
    tree: Tree


class Segment:
    """A segment that grows. Every method may raise :class:`OSError`; none leaves half a line behind.

    Parameters
    ----------
    fd
        Open with ``O_APPEND``; owned from here on.
    created
        Wall-clock time of its header, seconds since the epoch.
    """

    def __init__(self, path: Path, fd: int, mark: Mark, number: int, created: float) -> None:
        self.path = path
        self.number = number
        self.created = created
        self.size = mark.size
        self.link = mark.link
        self.tree = mark.tree.copy()
        self._fd = fd
        self._stray = False  # bytes beyond ``size`` that could not be cut off yet

    @classmethod
    def create(cls, directory: Path, link: Link, number: int, created: float) -> Self:
        """A new, empty segment, its name durable; the caller writes the header.

        An empty file of this name is what an earlier try left, and is taken over.
        """
        path = directory / segment_name(link.seq)
        fd = _open(path, os.O_CREAT)
        try:
            if os.fstat(fd).st_size:
                raise FileExistsError(errno.EEXIST, "the next segment's file is there already", str(path))
            sync_directory(directory)
        except OSError:
            os.close(fd)
            raise
        return cls(path, fd, Mark(0, link, Tree()), number, created)

    @classmethod
    def reopen(cls, path: Path, mark: Mark, number: int, created: float) -> Self:
        """A segment that an earlier run left open; what lies beyond the mark is cut off."""
        fd = _open(path, 0)
        try:
            if os.fstat(fd).st_size > mark.size:
                os.ftruncate(fd, mark.size)
                os.fsync(fd)
        except OSError:
            os.close(fd)
            raise
        return cls(path, fd, mark, number, created)

    def msg(self, line: bytes) -> None:
        """Append one line (given without newline)."""
        self._cut_stray()
        data = line + b"\n"
        self._stray = True
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._stray = False
        digest = hashlib.sha256(line).digest()
        self.size += len(data)
        self.tree.append(digest)
        self.link = Link(self.link.seq + 1, digest.hex())

    def undo(self) -> None:
        """Cut off what a failed write left; tried again before the next write where it fails."""
        with contextlib.suppress(OSError):
            self._cut_stray()

    def _cut_stray(self) -> None:
        if self._stray:
            os.ftruncate(self._fd, self.size)
            self._stray = False

    def mark(self) -> Mark:
        """Where to roll back to."""
        return Mark(self.size, self.link, self.tree.copy())

    def sync(self) -> None:
        """Make everything written durable."""
        os.fdatasync(self._fd)

    def roll_back(self, mark: Mark) -> None:
        """Forget what was written since ``mark``: after a failed sync nobody knows what reached the disk.

        The lines are written anew later; only then are their pages dirty again, and a sync means something.
        """
        self.size, self.link, self.tree = mark.size, mark.link, mark.tree.copy()
        self._stray = True
        self.undo()

    def foreign_hand(self) -> str | None:
        """What someone else did to the file, in words; ``None`` where it is as we left it."""
        ours = os.fstat(self._fd)
        try:
            named = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return "the open segment was deleted or renamed"
        if (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino):
            return "the open segment was replaced by another file"
        if ours.st_size < self.size:
            return f"the open segment was cut from {self.size} to {ours.st_size} bytes"
        if ours.st_size > self.size and not self._stray:
            return f"{ours.st_size - self.size} bytes were added to the open segment by someone else"
        return None

    def close(self) -> None:
        """Close the file; what was not synced may be lost."""
        os.close(self._fd)


def _open(path: Path, flags: int) -> int:
    """Open for appending, never through a symbolic link, and with the mode that the umask may have narrowed."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags, _MODE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "a segment must be a regular file", str(path))
    with contextlib.suppress(OSError):  # a log that was restored under another owner can still be written
        os.fchmod(fd, _MODE)
    return fd


def sync_directory(directory: Path) -> None:
    """Make the directory's entries durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
