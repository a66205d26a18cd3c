"""Raw reads of one process under /proc: small, without psutil's detours, and sure of whose facts they are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from mlsecd.sources.cgroups import Placement, placement
from mlsecd.sources.redact import redact

__all__ = ["DENIED", "Facts", "Stat", "exe_link", "facts", "own_pid", "parse_stat", "read_stat", "readable"]

DENIED: Final = "\0"  # no link's text: NUL cannot stand in a path

_KERNEL_THREAD: Final = 0x00200000  # PF_KTHREAD
_STATUS_BYTES: Final = 4096  # Uid stands in the first few hundred bytes
_CGROUP_BYTES: Final = 16384
_STAT_BYTES: Final = 4096
_MAX_ARGUMENTS: Final = 256
_ITEM_BYTES: Final = 64  # what a Python string costs beside its text
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_HOST_PIDS: Final = 0xEFFFFFFC  # inode of the first pid namespace: PROC_PID_INIT_INO, part of the kernel's interface


class Stat(NamedTuple):
    """What /proc/PID/stat says, as far as we use it."""

    name: str
    ppid: int
    kernel: bool
    start_ticks: int
    cpu_seconds: float
    rss_bytes: int
    # What an exec changes: the name, the "forked but did not exec" flag, and where code and stack lie,
    # which address randomisation moves on every exec (0 or 1 for processes that we may not trace).
    image: tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Facts:
    """What seldom changes in a process's life."""

    uid: int | None
    cmdline: tuple[str, ...]
    placement: Placement
    weight: int  # bytes of memory that these texts hold, about


def own_pid() -> int | None:
    """The daemon's pid as the host and its drivers number it; ``None`` within a container's own numbers."""
    try:
        return os.getpid() if Path("/proc/self/ns/pid").stat().st_ino == _HOST_PIDS else None
    except OSError:
        return None


def readable(text: bytes) -> str:
    r"""Decode what the kernel gave; bytes that are not UTF-8 stay apart as ``\xNN``."""
    return text.decode("utf-8", "backslashreplace")


def read(path: str, limit: int, dir_fd: int | None = None) -> bytes:
    """Up to ``limit`` bytes of a file that the kernel gives in one read.

    Raises
    ------
    OSError
        It cannot be read, or the process is gone.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


def _read_lines(path: str, limit: int, dir_fd: int) -> bytes:
    """Up to ``limit`` bytes of a file of several lines: a read may end at any of them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        data = b""
        while len(data) < limit and (more := os.read(fd, limit - len(data))):
            data += more
        return data
    finally:
        os.close(fd)


def read_stat(path: str, dir_fd: int | None = None) -> bytes:
    """The stat line."""
    return read(path, _STAT_BYTES, dir_fd)


def parse_stat(line: bytes) -> Stat:
    """Parse a stat line. The name is the process's own choice: ``) 0 (`` and newlines may stand in it.

    Raises
    ------
    ValueError
        It is not a stat line.
    """
    opening, closing = line.index(b"("), line.rindex(b")")
    fields = line[closing + 1 :].split(None, 26)
    if len(fields) < 26:
        raise ValueError("a stat line of too few fields")
    name = readable(line[opening + 1 : closing])
    flags = int(fields[6])
    return Stat(
        name=name,
        ppid=int(fields[1]),
        kernel=bool(flags & _KERNEL_THREAD),
        start_ticks=int(fields[19]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
        image=(name, flags & 0x40, int(fields[23]), int(fields[25])),
    )


def exe_link(path: str, dir_fd: int | None = None) -> str | None:
    """Where ``exe`` points to: ``None`` for kernel threads and zombies, ``DENIED`` where it is not for us."""
    try:
        link = os.readlink(path, dir_fd=dir_fd)
    except PermissionError:
        return DENIED
    except OSError:
        return None
    return link if link.isascii() else readable(os.fsencode(link))


def _uid(dir_fd: int) -> int | None:
    """The effective user. The directory's owner would not do: root owns it where dumping is off."""
    try:
        status = read("status", _STATUS_BYTES, dir_fd)
    except PermissionError:
        return None
    _, _, rest = status.partition(b"\nUid:")
    ids = rest.split(None, 2)
    return int(ids[1]) if len(ids) > 1 and ids[1].isdigit() else None


def _cmdline(dir_fd: int, limit: int) -> tuple[str, ...]:
    """The arguments, secrets redacted; ``[cut]`` stands last where a limit cut them."""
    try:
        raw = read("cmdline", limit + 1, dir_fd)
    except PermissionError:
        return ()
    cut = len(raw) > limit
    texts = raw[:limit].rstrip(b"\0").split(b"\0", _MAX_ARGUMENTS) if raw else []
    if len(texts) > _MAX_ARGUMENTS:
        cut = True
        del texts[_MAX_ARGUMENTS:]
    arguments = redact([readable(text) for text in texts])
    return (*arguments, "[cut]") if cut else arguments


def facts(dir_fd: int, cmdline_bytes: int) -> Facts:
    """Read the slow facts of the process whose /proc directory is open.

    Relative to the open directory all reads speak of one process: once it is gone they fail, even
    where its number was given to another.

    Raises
    ------
    OSError
        The process is gone.
    """
    cmdline = _cmdline(dir_fd, cmdline_bytes)
    try:
        placed = placement(_read_lines("cgroup", _CGROUP_BYTES, dir_fd))
    except PermissionError:
        placed = Placement(None, None, None)
    weight = sum(map(len, cmdline)) + _ITEM_BYTES * len(cmdline)
    return Facts(_uid(dir_fd), cmdline, placed, weight)
