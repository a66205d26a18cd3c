"""Plays a recording in real time, over and over: requests through the real socket, samples as they are.

What it plays is marked synthetic, so nothing that comes of it ever reads as a real alarm.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from msgspec import Meta

from mlsecd.errors import RecordError, SourceError
from mlsecd.jsonlines import RECORDED_LINE_BYTES, Decoder, encode
from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, RequestBatch, SourceStatus
from mlsecd.sources import base
from mlsecd.sources.files import read_chunks
from mlsecd.taps.client import SocketClient

__all__ = ["SOURCE", "Recording", "RecordingParams"]

_BUNDLED: Final = ("data", "demo", "recording.jsonl.gz")


class RecordingParams(base.Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to play, and where to."""

    enabled: bool = False
    path: Annotated[str, Meta(description='JSON lines, plain or .gz; "" is the bundled recording')] = ""
    socket: Annotated[str, Meta(description="the request socket that it sends requests to")] = (
        "/run/mlsecd/ingest.seqpacket"
    )
    loop: Annotated[bool, Meta(description="start again at the end")] = True
    interval_seconds: Annotated[float, Meta(ge=0.05, le=10, description="seconds between polls")] = 0.25


class Recording(base.Source):
    """A recording, as if it happened now."""

    name = "recording"
    emits = frozenset({Kind.REQUEST, Kind.GPU, Kind.PROCESS})
    summary = "plays a recording in real time; everything that comes of it is marked synthetic"
    Params = RecordingParams

    def __init__(self, params: RecordingParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._client = SocketClient(params.socket)
        self._pieces: list[Records] = []
        self._playing: Iterator[tuple[float, Records]] | None = None
        self._next: tuple[float, Records] | None = None
        self._began = 0.0

    def supported(self) -> str | None:
        """It needs its file."""
        return None if self._path().is_file() else f"no recording at {self._path()}"

    def _path(self) -> Path:
        if self.params.path:
            return Path(self.params.path)
        return Path(str(resources.files("mlsecd").joinpath(*_BUNDLED)))

    def poll(self, deadline: float) -> base.Poll:
        """Play what is due. A request that the socket does not take is dropped and counted, like a tap's."""
        if self._playing is None:
            self._pieces = self._load()
            self._start()
        out: list[Records] = []
        played = 0
        while self._next is not None and self._next[0] <= time.time() and time.monotonic() < deadline:
            due, piece = self._next
            played += 1
            if isinstance(piece, RequestBatch):
                self._client.send(encode(piece))
            else:
                out.append(dataclasses.replace(piece, ts=due, synthetic=True, seq=-1))
            self._advance()
        self._client.flush()
        # what it plays is a host of its own, and that host's request source is this one
        out.append(SourceStatus(ts=time.time(), source=self.name, ok=True, synthetic=True))
        return base.Poll(records=out, seen=played)

    def _load(self) -> list[Records]:
        decoder = Decoder(self.meters, self.name, max_line_bytes=RECORDED_LINE_BYTES)
        chunks = read_chunks(self._path(), max_line_bytes=RECORDED_LINE_BYTES)
        try:
            pieces = [piece for lines in chunks for piece in decoder.decode(lines)]
        except RecordError as error:
            raise SourceError(str(error)) from error
        if not pieces:
            raise SourceError(f"{self._path()}: holds no records")
        return pieces

    def _start(self) -> None:
        self._began = time.time()
        self._playing = self._timeline()
        self._advance()

    def _advance(self) -> None:
        assert self._playing is not None  # noqa: S101 - set by _start
        self._next = next(self._playing, None)
        if self._next is None and self.params.loop:
            self._start()

    def _timeline(self) -> Iterator[tuple[float, Records]]:
        """Single requests and records with the wall time at which each is due, in order."""
        shift = self._began - _first_time(self._pieces[0])
        for piece in self._pieces:
            if isinstance(piece, RequestBatch):
                for row, completion in enumerate(piece.completion.tolist()):
                    yield completion + shift, _as_now(piece.take(np.array([row])), shift)
            elif not isinstance(piece, SourceStatus):
                yield piece.ts + shift, piece

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _first_time(piece: Records) -> float:
    return float(piece.completion[0]) if isinstance(piece, RequestBatch) else piece.ts


def _as_now(batch: RequestBatch, shift: float) -> RequestBatch:
    columns = dict(batch.columns)
    columns["ts"] = batch.ts + shift
    columns["synthetic"] = np.ones(len(batch), np.int8)
    return RequestBatch(columns)


SOURCE = Recording
