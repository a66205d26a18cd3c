"""Reading a file without changing what of it is in the page cache: a server's weights stay, and nothing is put in."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final

__all__ = ["Reading", "absent", "opened"]

_CACHESTAT: Final = 451  # the system call's number on every architecture (Linux 6.5)
_PAGE: Final = mmap.PAGESIZE
_RANGE: Final = struct.Struct("=QQ")
_STAT: Final = struct.Struct("=5Q")  # pages that are cached, dirty, under writeback, evicted, evicted lately
_CHUNK_BYTES: Final = 1 << 20
_libc: Final = ctypes.CDLL(None, use_errno=True)


class _UnknownError(Exception):
    """What is cached cannot be told: an older kernel, or a file that is not ours."""


def _cached(fd: int, offset: int, length: int) -> int:
    """Pages of this range that are in the page cache. It looks only: nothing is read, and nothing read ahead."""
    asked, told = ctypes.create_string_buffer(_RANGE.pack(offset, length)), ctypes.create_string_buffer(_STAT.size)
    if _libc.syscall(_CACHESTAT, ctypes.c_int(fd), asked, told, ctypes.c_uint(0)) != 0:
        raise _UnknownError(os.strerror(ctypes.get_errno()))
    count: int = _STAT.unpack(told.raw)[0]
    return count


def absent(fd: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Ranges ``(offset, length)``, whole pages, of what is not in the page cache, in order.

    The range must begin at a page.

    Raises
    ------
    _UnknownError
        The kernel does not tell.
    """
    pages = -(-length // _PAGE)
    if not pages:
        return
    held = _cached(fd, offset, pages * _PAGE)
    if held >= pages:
        return
    if not held:
        yield offset, pages * _PAGE
        return
    half = pages // 2 * _PAGE
    yield from absent(fd, offset, half)
    yield from absent(fd, offset + half, pages * _PAGE - half)


def opened(path: str) -> int:
    """A descriptor for :class:`Reading`; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # of this descriptor alone: no read-ahead, which fills the cache
    return fd


class Reading:
    """Reads pieces of one file, and leaves the page cache as it was.

    Where the kernel tells what is cached (cachestat: Linux 6.5, in newer ones of files that we own or may write), the
    rest is put out of the cache again after it was read. Where it does not, the file is read around the cache
    (O_DIRECT): nothing is put in, but a tampered page that is only in the cache is not seen then. Where that cannot be
    done either (tmpfs, some network file systems) pages are asked for one by one without waiting, and those that had
    to be waited for are put out.

    Parameters
    ----------
    fd
        From :func:`opened`; it stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._around: int | None = None
        self._buffer: mmap.mmap | None = None
        try:
            next(absent(fd, 0, _PAGE), None)
            self._how = self._looked
        except _UnknownError:
            self._how = self._direct if self._open_around() else self._probed

    def _open_around(self) -> bool:
        try:
            self._around = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            self._buffer = mmap.mmap(-1, _CHUNK_BYTES + _PAGE)  # memory that begins at a page, as O_DIRECT wants it
            os.preadv(self._around, [memoryview(self._buffer)[:_PAGE]], 0)
        except OSError:
            self.close()
            return False
        return True

    def close(self) -> None:
        """Give back what the way around the cache takes."""
        if self._around is not None:
            os.close(self._around)
            self._around = None

    def read(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes, at most 1 MiB, at ``offset``; fewer only at the file's end. Raises OSError."""
        return self._how(min(length, _CHUNK_BYTES), offset)

    def _looked(self, length: int, offset: int) -> bytes:
        start = offset - offset % _PAGE
        try:
            missing = list(absent(self._fd, start, length + offset - start))
        except _UnknownError as error:
            raise OSError(errno.EIO, str(error)) from error
        data = _whole(self._fd, length, offset)
        for at, size in missing:
            os.posix_fadvise(self._fd, at, size, os.POSIX_FADV_DONTNEED)
        return data

    def _direct(self, length: int, offset: int) -> bytes:
        if self._around is None or self._buffer is None:
            raise OSError(errno.EBADF, "closed")
        start = offset - offset % _PAGE
        want = -(-(length + offset - start) // _PAGE) * _PAGE
        view = memoryview(self._buffer)[:want]
        got = os.preadv(self._around, [view], start)
        return bytes(view[offset - start : min(got, length + offset - start)])

    def _probed(self, length: int, offset: int) -> bytes:
        parts: list[bytes] = []
        while length > 0:
            step = min(length, _PAGE - offset % _PAGE)
            try:
                part = _now(self._fd, step, offset)
            except OSError:  # this file system cannot tell what is cached: leave all of it in
                return b"".join((*parts, _whole(self._fd, length, offset)))
            if part is None:
                part = os.pread(self._fd, step, offset)
                os.posix_fadvise(self._fd, offset - offset % _PAGE, _PAGE, os.POSIX_FADV_DONTNEED)
            parts.append(part)
            length, offset = length - step, offset + step
            if len(part) < step:
                break
        return b"".join(parts)


def _now(fd: int, length: int, offset: int) -> bytes | None:
    """What can be had without waiting for the disk; None: nothing."""
    buffer = bytearray(length)
    try:
        got = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return None
    return bytes(buffer[:got])


def _whole(fd: int, length: int, offset: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(fd, length, offset)):
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return b"".join(parts)
