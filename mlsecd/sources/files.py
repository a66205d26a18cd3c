"""Reads whole recordings: plain, gzip, or standard input, as pieces of whole lines in bounded memory.

Gzip is recognised by its first bytes, not by a name, and is unpacked a chunk at a time: a small file that
unpacks to terabytes takes time, never memory.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from mlsecd.errors import RecordError
from mlsecd.sources.lines import LineCutter

__all__ = ["Progress", "read_chunks"]

Progress = Callable[[int, int], None]  # bytes read, bytes in all (0 where unknown)

_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
_HEAD_BYTES: Final = 4096  # where binary data betrays itself
_OTHER_FORMATS: Final = {
    b"\x28\xb5\x2f\xfd": "zstd data; pipe it through `zstd -dc` and read `-`",
    b"\xfd7zXZ\x00": "xz data; pipe it through `xz -dc` and read `-`",
    b"BZh": "bzip2 data; pipe it through `bzip2 -dc` and read `-`",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"PAR1": "a Parquet file; export it as JSON lines first",
    b"\x93NUMPY": "a numpy array",
}


def read_chunks(
    path: str | Path,
    chunk_bytes: int = 1 << 20,
    max_line_bytes: int = 1 << 20,
    progress: Progress | None = None,
) -> Iterator[bytes]:
    """Yield a recording in pieces of whole lines, each piece at most about a chunk and a line long.

    Lines longer than ``max_line_bytes`` are cut, see :class:`~mlsecd.sources.lines.LineCutter`.

    Parameters
    ----------
    path
        A file, or ``-`` for standard input.
    chunk_bytes
        How much is read, and unpacked, at a time.
    max_line_bytes
        The decoder's limit.
    progress
        Told after every read: bytes read and bytes in all, of the file as it lies on disk.

    Raises
    ------
    RecordError
        It cannot be read, or not to its end; what was readable before has been yielded.
    """
    cutter = LineCutter(max_line_bytes)
    with closing(_raw(path, chunk_bytes, progress)) as raw:
        first = next(raw, b"")
        while 0 < len(first) < len(_GZIP) and (more := next(raw, b"")):  # a pipe may bring single bytes
            first += more
        pieces = _gunzip(path, first, raw, chunk_bytes) if first.startswith(_GZIP) else _chain(first, raw)
        text, complaint = _checked(next(pieces, b""))
        yield from filter(None, (cutter.feed(text),))
        if complaint:
            raise RecordError(f"{path}: {complaint}")
        for piece in pieces:
            yield from filter(None, (cutter.feed(piece),))
    yield from filter(None, (cutter.finish(),))


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _raw(path: str | Path, chunk_bytes: int, progress: Progress | None) -> Generator[bytes]:
    """The file's bytes as they lie on disk."""
    try:
        fd = os.dup(0) if str(path) == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RecordError(f"{path}: {_reason(error)}") from error
    done = 0
    try:
        status = os.fstat(fd)
        total = status.st_size if stat.S_ISREG(status.st_mode) else 0
        while data := os.read(fd, chunk_bytes):
            done += len(data)
            if progress is not None:
                progress(done, total)
            yield data
    except OSError as error:
        raise RecordError(f"{path}: {_reason(error)}" + (f" after {done} bytes" if done else "")) from error
    finally:
        os.close(fd)


def _gunzip(path: str | Path, first: bytes, raw: Iterator[bytes], chunk_bytes: int) -> Iterator[bytes]:
    """Unpack gzip data of one member or several; zeros behind the last one are padding."""
    unpacker = zlib.decompressobj(wbits=31)
    done = 0
    for data in _chain(first, raw):
        rest = data
        while rest:
            if unpacker.eof:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                unpacker = zlib.decompressobj(wbits=31)
            try:
                piece = unpacker.decompress(rest, chunk_bytes)
            except zlib.error as error:
                raise RecordError(f"{path}: damaged gzip data after {done} unpacked bytes ({error})") from error
            rest = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            done += len(piece)
            yield piece
    yield unpacker.flush()  # what the last bytes still unpack to, less than a window
    if not unpacker.eof:
        raise RecordError(f"{path}: the gzip data ends early, the file is cut off")


def _checked(opening: bytes) -> tuple[bytes, str | None]:
    """The text that can be used of a recording's beginning, and what is wrong with the rest."""
    for magic, what in _OTHER_FORMATS.items():
        if opening.startswith(magic):
            return b"", f"not JSON lines: {what}"
    nul = opening.find(b"\0", 0, _HEAD_BYTES)
    if nul >= 0:
        return opening[: opening.rfind(b"\n", 0, nul) + 1], f"not JSON lines: binary data at byte {nul}"
    return opening.removeprefix(_BOM), None


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
