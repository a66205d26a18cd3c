"""Cuts a stream of bytes into whole lines, in bounded memory."""

from __future__ import annotations

__all__ = ["LineCutter"]


class LineCutter:
    """Holds the last, unfinished line until its newline comes.

    A line longer than ``max_line_bytes`` is handed on as its first ``max_line_bytes + 1`` bytes, which
    the decoder refuses and counts as it does every line that is too long; the rest of it is skipped. So
    memory is bounded by the limit and the size of one piece, and every such line is counted once.

    Parameters
    ----------
    max_line_bytes
        The longest line, without its newline, that the decoder takes.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self._max = max_line_bytes
        self._held = bytearray()
        self.skipping = False  # inside a line that was too long

    @property
    def pending(self) -> int:
        """Bytes of the unfinished line that are held."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Take the next piece, give the lines that are whole now, each with its newline."""
        if self.skipping:
            newline = data.find(b"\n")
            if newline < 0:
                return b""
            self.skipping = False
            data = data[newline + 1 :]
        end = data.rfind(b"\n") + 1
        whole = data[:end]
        if end and self._held:
            whole = bytes(self._held) + whole
            self._held.clear()
        self._held += data[end:]
        if len(self._held) > self._max:
            whole += bytes(self._held[: self._max + 1]) + b"\n"
            self._held = bytearray()
            self.skipping = True
        return whole

    def finish(self) -> bytes:
        """The stream is over: the last line, even where its newline is missing."""
        rest = bytes(self._held) + b"\n" if self._held else b""
        self.reset()
        return rest

    def reset(self) -> None:
        """Forget the unfinished line: another stream begins."""
        self._held = bytearray()
        self.skipping = False
