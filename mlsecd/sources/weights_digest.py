"""Digests of large files: samples now, all of it slowly, without taking the page cache from whoever serves them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from typing import Final

from mlsecd.sources.page_cache import Reading, opened

__all__ = ["BLOCKS", "Hasher", "sampled"]

BLOCKS: Final = 64
_BLOCK_BYTES: Final = 4096
_CHUNK_BYTES: Final = 1 << 20
_QUEUE: Final = 4_096

Stamp = tuple[int, int, int, int, int]  # device, inode, size, mtime_ns, ctime_ns


def stamp_of(found: os.stat_result) -> Stamp:
    """What tells one version of a file from another, without reading it."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def sampled(fd: int, size: int) -> str:
    """Digest of the size and of BLOCKS blocks, evenly over the file, its beginning and end among them.

    ``fd`` is from :func:`~mlsecd.sources.page_cache.opened`. A change of fewer bytes than the blocks leave between them
    may be missed: the full digest is for that.
    """
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
    last = max(0, size - _BLOCK_BYTES)
    with contextlib.closing(Reading(fd)) as reading:
        for at in sorted({last * block // (BLOCKS - 1) for block in range(BLOCKS)}):
            digest.update(reading.read(_BLOCK_BYTES, at))
    return digest.hexdigest()


class Hasher:
    """One thread that reads files whole, at a bounded rate, and keeps the SHA-256 of each version.

    Parameters
    ----------
    bytes_per_second
        The most that it reads.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Condition()
        self._waiting: deque[tuple[str, Stamp]] = deque()
        self._known: dict[Stamp, str | None] = {}  # None: wanted, or could not be read
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def want(self, path: str, stamp: Stamp) -> str | None:
        """The digest of this version, if it is known; else it is put in the queue."""
        with self._lock:
            if stamp in self._known:
                return self._known[stamp]
            if len(self._waiting) >= _QUEUE:
                return None
            self._known[stamp] = None
            while len(self._known) > 2 * _QUEUE:
                del self._known[next(iter(self._known))]
            self._waiting.append((path, stamp))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="weights-hasher", daemon=True)
                self._thread.start()
            self._lock.notify()
        return None

    def stop(self) -> None:
        """End the thread; bounded."""
        self._stop.set()
        with self._lock:
            self._lock.notify()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                if not self._waiting:
                    self._lock.wait(1.0)
                    continue
                path, stamp = self._waiting.popleft()
            digest = self._hash(path, stamp)
            with self._lock:
                self._known[stamp] = digest

    def _hash(self, path: str, stamp: Stamp) -> str | None:
        """None where the file changed under us, or cannot be read."""
        try:
            fd = opened(path)
        except OSError:
            return None
        digest = hashlib.sha256()
        reading = Reading(fd)
        try:
            if os.fstat(fd).st_blocks * 512 < stamp[2] // 2:
                return None  # mostly holes: a file of this kind can be made as large as somebody likes, to keep us busy
            started, at = time.monotonic(), 0
            while at < stamp[2] and not self._stop.is_set():
                data = reading.read(min(_CHUNK_BYTES, stamp[2] - at), at)
                if not data:
                    break
                digest.update(data)
                at += len(data)
                ahead = at / self._rate - (time.monotonic() - started)
                if ahead > 0:
                    self._stop.wait(ahead)
            whole = at == stamp[2] and stamp_of(os.fstat(fd)) == stamp
        except OSError:
            return None
        finally:
            reading.close()
            os.close(fd)
        return digest.hexdigest() if whole else None
