"""Follows a log that is written as gzip members, one after the other, each of whole lines: Dynamo's segments."""

from __future__ import annotations

import os
import zlib
from typing import Final

from mlsecd.sources.tail import Place, Tail

__all__ = ["GzipTail"]

_READ_BYTES: Final = 64 << 10  # of the file, at a time
_TEXT_BYTES: Final = 1 << 20  # unpacked, at a time
_MEMBER_BYTES: Final = 16 << 20  # unpacked; what is longer is no log, and left out
_MAGIC: Final = b"\x1f\x8b\x08"
_LOST: Final = b"a gzip member that cannot be read\n"  # no adapter takes it: so it is counted


class GzipTail(Tail):
    """A :class:`Tail` whose ``position`` is where a member begins.

    The lines of a member are handed on once it is whole: a member that is still written is read again
    after a restart, and none of its lines twice. A damaged or oversized one counts as one bad line, and
    reading goes on with what looks like the next.
    """

    def __init__(self, path: str, fd: int, max_line_bytes: int) -> None:
        super().__init__(path, fd, max_line_bytes)
        self._lost = False  # the last member was damaged
        self._begin(0)

    def _begin(self, position: int, *, seeking: bool = False) -> None:
        """A member begins here, or somewhere behind."""
        self.position = self._at = position  # _at: of the next read
        self._seeking = seeking
        self._unpack = zlib.decompressobj(wbits=31)
        self._text = bytearray()
        self._too_long = False

    def start_at_end(self) -> None:
        """Begin with the member that is written next; one that is half there cannot be read."""
        self._begin(os.fstat(self.fd).st_size, seeking=True)

    def resume(self, place: Place) -> bool:
        """As :meth:`Tail.resume`."""
        resumed = super().resume(place)
        self._begin(self.position)
        return resumed

    def check(self) -> bool:
        """As :meth:`Tail.check`."""
        truncated = super().check()
        if truncated:
            self._begin(0)
        return truncated

    def read(self) -> bytes:
        """The lines of the members that are whole now, of at most 64 KiB of the file; about 17 MiB at the most."""
        data = os.pread(self.fd, _READ_BYTES, self._at)
        self.at_end = len(data) < _READ_BYTES
        lines = bytearray()
        more = True
        while (data or not more) and len(lines) < _TEXT_BYTES:
            if self._seeking and not (data := self._seek(data)):
                break
            try:
                text = self._unpack.decompress(data, _TEXT_BYTES)
            except zlib.error:
                self._pass_over(lines)
                break
            more = len(text) < _TEXT_BYTES  # else some may be left, also where no byte of the file is
            left = self._unpack.unused_data if self._unpack.eof else self._unpack.unconsumed_tail
            self._at += len(data) - len(left)
            data = left
            self._keep(text)
            if self._unpack.eof:
                lines += self._whole()
                self._begin(self._at)
                self._lost = False
                more = True
        if data:
            self.at_end = False
        return bytes(lines)

    def _seek(self, data: bytes) -> bytes:
        """Go to what looks like the beginning of a member; the bytes from there on, none where there is none."""
        found = data.find(_MAGIC)
        self._begin(self._at + (found if found >= 0 else max(0, len(data) - len(_MAGIC) + 1)), seeking=found < 0)
        return data[found:] if found >= 0 else b""

    def _pass_over(self, lines: bytearray) -> None:
        """A member is damaged: look for the next, with larger steps where it is not the first in a row."""
        if not self._lost:
            lines += _LOST
        step = _READ_BYTES if self._lost else 1
        self._lost = True
        self._begin(min(self.position + step, os.fstat(self.fd).st_size), seeking=True)

    def _keep(self, text: bytes) -> None:
        self._too_long = self._too_long or len(self._text) + len(text) > _MEMBER_BYTES
        if self._too_long:
            self._text.clear()
        else:
            self._text += text

    def _whole(self) -> bytes:
        """A member's lines."""
        if self._too_long:
            return _LOST
        return bytes(self._text) if self._text.endswith(b"\n") or not self._text else bytes(self._text) + b"\n"

    def finish(self) -> bytes:
        """The whole lines of a member that nobody will finish any more."""
        rest = bytes(self._text[: self._text.rfind(b"\n") + 1])
        self._begin(self._at)
        return rest
