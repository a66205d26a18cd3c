"""Request records out of files that a server finishes and does not touch again: Triton's traces."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from mlsecd.errors import StateError
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, RequestBatch
from mlsecd.sources.adapting import Formats
from mlsecd.sources.base import Params, Poll, Source
from mlsecd.sources.log_paths import expand, open_log, reason

__all__ = ["SOURCE", "TraceFiles", "TraceFilesParams"]

_MAX_DONE: Final = 4_096
_MAX_FILES: Final = 1_024  # looked at in a poll
_TAIL: Final = 64
_MAX_TOLD: Final = 3

_Identity = tuple[int, int, int]  # device, inode, time of the last change
_Path = Annotated[str, Meta(min_length=1)]


class TraceFilesParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the trace files."""

    enabled: bool = False
    paths: Annotated[
        tuple[_Path, ...],
        Meta(max_length=64, description='files, with their format: "triton:/var/log/triton/trace.json.*"'),
    ] = ()
    model: Annotated[str, Meta(min_length=1, max_length=256, description="the model of requests that name none")] = (
        "unknown"
    )
    interval_seconds: Annotated[float, Meta(gt=0, le=3600, description="seconds between two looks")] = 1.0
    from_start: Annotated[
        bool, Meta(description="read what is there already; else only files that are finished while we watch")
    ] = False
    max_file_bytes: Annotated[int, Meta(ge=1 << 16, le=256 << 20, description="largest file, bytes")] = 8 << 20


class _Saved(msgspec.Struct, frozen=True):
    done: tuple[_Identity, ...] = ()


class TraceFiles(Source):
    """Reads each file once, when its JSON array is closed."""

    name = "trace_files"
    emits = frozenset({Kind.REQUEST})
    summary = "class probabilities and embeddings out of Triton's trace files"
    Params = TraceFilesParams

    def __init__(self, params: TraceFilesParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._params = params
        self._formats = Formats(params.paths, params.model, meters, self.name, whole=True)
        self._decoder = Decoder(meters, self.name, max_line_bytes=1 << 20, accept=self.emits)
        self._done: OrderedDict[_Identity, None] = OrderedDict()
        self._begun = params.from_start

    def supported(self) -> str | None:
        """``None`` where it was told what to read."""
        return self._formats.unknown() if self._params.paths else "sources.trace_files.paths is empty"

    def poll(self, deadline: float) -> Poll:
        """Read the files that were finished since the last poll, oldest first."""
        troubles: list[str] = []
        records: list[Records] = []
        files = self._waiting(troubles)
        for path, identity, size in files:
            if time.monotonic() > deadline:
                break
            try:
                records += self._read(path, identity, size)
            except OSError as error:
                troubles.append(f"{path!a}: {reason(error)}")
        self._begun = True
        return Poll(records, seen=len(files), error="; ".join(troubles[:_MAX_TOLD]) or None)

    def _waiting(self, troubles: list[str]) -> list[tuple[str, _Identity, int]]:
        found = []
        paths = dict.fromkeys(path for pattern in self._formats.patterns for path in expand(pattern))
        if len(paths) > _MAX_FILES:
            troubles.append(f"more than {_MAX_FILES} files match; the newest are read: delete what was read")
        for path in paths:
            try:
                status = Path(path).lstat()
            except OSError:
                continue
            identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if identity not in self._done and status.st_size:
                found.append((path, identity, status.st_size))
        found.sort(key=lambda one: one[1][2])
        return found[-_MAX_FILES:]

    def _read(self, path: str, identity: _Identity, size: int) -> Iterator[Records]:
        """The records of a finished file; nothing where its array is still open."""
        if not self._begun:
            self._finish(identity)
            return
        if size > self._params.max_file_bytes:
            self._finish(identity)
            self.meters.drop(self.name, "too_long")
            return
        fd = open_log(path, follow_symlinks=False)
        with os.fdopen(fd, "rb") as file:
            if not os.pread(fd, _TAIL, max(0, size - _TAIL)).rstrip().endswith(b"]"):
                return
            data = file.read(self._params.max_file_bytes)
        self._finish(identity)
        for records in self._decoder.decode(self._formats.ours(path, data)):
            if isinstance(records, RequestBatch):
                yield RequestBatch(records.columns)

    def _finish(self, identity: _Identity) -> None:
        self._done[identity] = None
        while len(self._done) > _MAX_DONE:
            self._done.popitem(last=False)

    def state(self) -> dict[str, Any]:
        """Which files were read."""
        built: dict[str, Any] = msgspec.to_builtins(_Saved(tuple(self._done)))
        return built

    def resume(self, state: dict[str, Any]) -> None:
        """Do not read again what an earlier life read; what was finished meanwhile is new."""
        try:
            saved = msgspec.convert(state, _Saved)
        except ValueError as error:
            raise StateError(f"{self.name}: {error}") from error
        self._done = OrderedDict.fromkeys(saved.done[-_MAX_DONE:])
        self._begun = True

    def samples(self) -> dict[str, str]:
        """One refused line a reason and minute."""
        samples, self._decoder.samples = self._decoder.samples, {}
        return samples | self._formats.troubles()

    def close(self) -> None:
        """Nothing is held between polls."""


SOURCE = TraceFiles
