"""Who opens a file, as the kernel tells it (fanotify): by process, at once, for as long as the process lives.

It takes CAP_SYS_ADMIN. Without it, :mod:`mlsecd.sources.file_uses` finds who has a file open when it looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Events"]

_CLOEXEC_NONBLOCK: Final = 0x1 | 0x2
_MARK_ADD: Final = 0x1
_OPEN: Final = 0x20
_AT_FDCWD: Final = -100
_METADATA: Final = struct.Struct("=IBBHQii")  # event_len, version, reserved, metadata_len, mask, fd, pid
_NO_FD: Final = -1
_HELD_MAX: Final = 4_096
_READ_BYTES: Final = 1 << 16
_POLL_SECONDS: Final = 0.5


class Events:
    """Watches files for opens; each is handed to ``resolve`` in its thread, while the process is still there.

    Parameters
    ----------
    resolve
        Called with path, device, inode and pid.
    """

    def __init__(self, resolve: Callable[[str, int, int, int], None]) -> None:
        self._resolve = resolve
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        self._marked: dict[tuple[int, int], str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = 0  # events that the kernel's queue had no room for

    def start(self) -> str | None:
        """Begin; the reason where it cannot."""
        try:
            self._fd = self._libc.fanotify_init(_CLOEXEC_NONBLOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE)
        except AttributeError:
            return "the C library has no fanotify"
        if self._fd < 0:
            return f"{os.strerror(ctypes.get_errno())} (CAP_SYS_ADMIN)"
        self._thread = threading.Thread(target=self._run, name="weights-events", daemon=True)
        self._thread.start()
        return None

    def watch(self, path: str, device: int, inode: int) -> None:
        """Watch this file, once for each inode."""
        if self._fd < 0 or self._marked.get((device, inode)) == path:
            return
        for old in [key for key, name in self._marked.items() if name == path]:
            del self._marked[old]  # it was replaced: the kernel forgets the mark with the file
        if len(self._marked) >= _HELD_MAX:
            return
        mask = ctypes.c_uint64(_OPEN)
        if self._libc.fanotify_mark(self._fd, _MARK_ADD, mask, _AT_FDCWD, os.fsencode(path)) == 0:
            self._marked[device, inode] = path

    def close(self) -> None:
        """End; bounded."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(4 * _POLL_SECONDS)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not self._stop.is_set():
            if poll.poll(_POLL_SECONDS * 1000):
                with contextlib.suppress(OSError):
                    self._take(os.read(self._fd, _READ_BYTES))

    def _take(self, data: bytes) -> None:
        at = 0
        while at + _METADATA.size <= len(data):
            length, _, _, _, _, fd, pid = _METADATA.unpack_from(data, at)
            at += max(length, _METADATA.size)
            if fd == _NO_FD:
                self.lost += 1
                continue
            try:
                found = os.fstat(fd)
                path = self._marked.get((found.st_dev, found.st_ino))
                if path is not None and pid != os.getpid():
                    self._resolve(path, found.st_dev, found.st_ino, pid)
            except OSError:
                pass  # the file went away while we looked
            finally:
                os.close(fd)
