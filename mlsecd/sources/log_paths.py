"""Paths of logs: patterns, and opening with care for what may have been put there."""

from __future__ import annotations

import errno
import fnmatch
import glob
import itertools
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["MAX_NAMES", "expand", "matches", "open_log", "reason"]

MAX_NAMES: Final = 10_000  # looked at, of one pattern or directory

_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".zip")
_FOLLOWED: Final = ".gz"  # a server may write packed logs itself
_PATTERN: Final = frozenset("*?[")


def expand(pattern: str) -> list[str]:
    """The files that a pattern means now; packed ones were read before they were packed, unless it asks for them."""
    if _PATTERN.isdisjoint(pattern):
        return [pattern]
    found = itertools.islice(glob.iglob(pattern, recursive=True), MAX_NAMES)  # noqa: PTH207 - patterns are absolute
    left_out = () if pattern.endswith(_FOLLOWED) else _PACKED
    return sorted(path for path in found if not path.endswith(left_out) and Path(path).is_file())


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern could have meant this path."""
    return path == pattern or fnmatch.fnmatchcase(path, pattern)


def reason(error: OSError) -> str:
    """Why a log cannot be read, for a person."""
    if error.errno == errno.ELOOP:
        return "is a symbolic link (and follow_symlinks is off)"
    return (error.strerror or "cannot be read").lower()


def open_log(path: str, *, follow_symlinks: bool) -> int:
    """Open a regular file for reading, and nothing else.

    Whoever may write to the directory of a log could put a FIFO there to hang us, or a link to a file
    that only we may read: the one is not waited for, the other not followed.

    Raises
    ------
    OSError
        It cannot be opened, or is no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags if follow_symlinks else flags | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "not a regular file")
    return fd
