"""Reading a file without changing what of it is in the page cache: a server's weights stay, and nothing is put in."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import struct
from collections.abc import Iterator
from typing import Final

__all__ = ["Reading", "absent", "opened"]

_CACHESTAT: Final = 451  # the system call's number on every architecture (Linux 6.5)
_PAGE: Final = mmap.PAGESIZE
_RANGE: Final = struct.Struct("=QQ")
_STAT: Final = struct.Struct("=5Q")  # pages that are cached, dirty, under writeback, evicted, evicted lately
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ (Linux 5.14); the module mmap does not name it
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
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # of this descriptor alone: what is read is no more than asked for
    return fd


class Reading:
    """Reads pieces of one file, and leaves the page cache as it was.

    Where the kernel tells what is cached (cachestat: Linux 6.5, in newer ones of files that we own or may write), the
    rest is put out of the cache again after it was read. Where it does not, the file is read around the cache
    (O_DIRECT): nothing is put in, but a tampered page that is only in the cache is not seen then. Where that cannot be
    done either (some network file systems) pages are touched one by one, and those that the kernel had to fetch, which
    it counts as major faults, are put out. An older kernel than 5.14 that has neither keeps what was read.

    What is in the cache is read through a mapping, not by read(2): the first page of somebody else's read-ahead is
    marked, and who reads that one starts the next, whatever it said of its own descriptor. A mapping may say no.

    Parameters
    ----------
    fd
        From :func:`opened`; it stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._around: int | None = None
        self._buffer: mmap.mmap | None = None
        self._copy: int | None = None
        try:
            next(absent(fd, 0, _PAGE), None)
            self._how = self._looked
        except _UnknownError:
            self._how = self._direct if self._open_around() else self._touched

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
        """Give back what the ways take."""
        for fd in (self._around, self._copy):
            if fd is not None:
                os.close(fd)
        self._around = self._copy = None

    def read(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes, at most 1 MiB, at ``offset``; fewer only at the file's end. Raises OSError."""
        length = min(length, _CHUNK_BYTES, os.fstat(self._fd).st_size - offset)
        return self._how(length, offset) if length > 0 else b""

    def _looked(self, length: int, offset: int) -> bytes:
        start = offset - offset % _PAGE
        try:
            missing = list(absent(self._fd, start, length + offset - start))
        except _UnknownError as error:
            raise OSError(errno.EIO, str(error)) from error
        for at, size in missing:
            _whole(self._fd, size, at)  # fetched at once: through the mapping each page would be waited for
        try:
            with _mapped(self._fd, length + offset - start, start) as pages:
                data = self._copied(pages, length, offset - start)
        except OSError:  # it cannot be mapped
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

    def _touched(self, length: int, offset: int) -> bytes:
        start = offset - offset % _PAGE
        try:
            with _mapped(self._fd, length + offset - start, start) as pages:
                fetched = [start + at for at in range(0, len(pages), _PAGE) if _fetched(pages, at)]
                data = self._copied(pages, length, offset - start)
        except OSError:  # an older kernel, or it cannot be mapped
            return _whole(self._fd, length, offset)
        for at in fetched:
            os.posix_fadvise(self._fd, at, _PAGE, os.POSIX_FADV_DONTNEED)
        return data

    def _copied(self, pages: mmap.mmap, length: int, offset: int) -> bytes:
        """A piece of mapped memory, by way of a file in memory.

        A file that is cut short under us is an error to the kernel that copies. To us, who touch it, it is SIGBUS.
        """
        if self._copy is None:
            self._copy = os.memfd_create("mlsecd-copy", os.MFD_CLOEXEC)
        with memoryview(pages) as view, view[offset : offset + length] as piece:
            return os.pread(self._copy, os.pwrite(self._copy, piece, 0), 0)


@contextlib.contextmanager
def _mapped(fd: int, length: int, offset: int) -> Iterator[mmap.mmap]:
    """A range of a file, from a page on, as memory: what of it is touched is fetched, and no more. Raises OSError."""
    try:
        pages = mmap.mmap(fd, length, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=offset)
    except ValueError as error:
        raise OSError(errno.ENODATA, "the file became shorter") from error
    with pages:  # and gone before anything is put out of the cache: a mapped page stays
        pages.madvise(mmap.MADV_RANDOM)
        yield pages


def _fetched(pages: mmap.mmap, at: int) -> bool:
    """Touch a page; whether it was not in the cache.

    To ask by a read that does not wait (RWF_NOWAIT) would not do: since Linux 5.10 the asking starts the fetching, and
    a disk that is quick enough, or a machine so busy that we are, makes the page look as if it had been there.
    """
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
    pages.madvise(_POPULATE_READ, at, _PAGE)  # not by hand, see _copied
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt != before


def _whole(fd: int, length: int, offset: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(fd, length, offset)):
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return b"".join(parts)
