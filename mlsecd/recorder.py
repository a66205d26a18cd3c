"""``mlsecd record``: what the sources deliver, in the fold's order and with its ``seq``, to a file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO

from mlsecd.engines.hold import Ordered
from mlsecd.errors import RecordError
from mlsecd.jsonlines import encode
from mlsecd.records import Kind

__all__ = ["Recorder"]

_EVERY_KIND = frozenset(Kind)


class Recorder:
    """Writes ordered records as JSON lines; a path that ends in ``.gz`` is compressed.

    Raises :class:`~mlsecd.errors.RecordError` where the file exists already or cannot be written:
    a recording is evidence, and is not overwritten by accident.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        try:
            raw = path.open("xb")
        except FileExistsError as error:
            raise RecordError(f"{path}: exists already; a recording is never overwritten") from error
        except OSError as error:
            raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
        path.chmod(0o600)
        self._raw = raw
        self._file: IO[bytes] = gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else raw  # type: ignore[assignment]

    def write(self, ordered: Ordered) -> None:
        """Append these records."""
        try:
            for records in ordered.pieces(_EVERY_KIND):
                self._file.write(encode(records))
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be written: {error.strerror}") from error
        self.rows += len(ordered)

    def close(self) -> None:
        """Finish the file: what waits is written now, so this may be what finds the disk full."""
        try:
            try:
                self._file.close()
            finally:
                self._raw.close()
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be finished: {error.strerror}") from error
