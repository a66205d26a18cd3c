"""What the sources that are POSTed to share: a receiver, a bounded queue of record lines, a decoder."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Final

from mlsecd.adapters.base import Adapted, Context
from mlsecd.errors import SourceError
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, RequestBatch
from mlsecd.sources.base import Poll, Source
from mlsecd.sources.fair_queue import FairQueue
from mlsecd.sources.http_exchange import Answer, Refused, Request
from mlsecd.sources.http_receiver import Gate, HttpReceiver, ReceiverParams
from mlsecd.taps.identity import Hasher, key_path, load_key

__all__ = ["PostedSource"]

_TAKE_BYTES: Final = 4 << 20
_PIECE_BYTES: Final = 1 << 16


class PostedSource(Source):
    """A receiver whose bodies an adapter turns into record lines."""

    emits = frozenset({Kind.REQUEST})
    paths: ClassVar[frozenset[str]]
    types: ClassVar[frozenset[str]]
    gate: Gate | None = None  # set by who wires it, where config_file asks for one

    def __init__(self, params: ReceiverParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._params: ReceiverParams = params
        self._decoder = Decoder(meters, self.name, accept=self.emits)
        self._queue = FairQueue(params.max_queue_bytes)
        self._receiver: HttpReceiver | None = None
        key, self._key_trouble = load_key(key_path())
        self._hasher = Hasher(key)

    def supported(self) -> str | None:
        """``None`` where it was told where to listen."""
        return None if self._params.listen else f"sources.{self.name}.listen is not set"

    @property
    def address(self) -> Any:
        """Where it listens now."""
        if self._receiver is None:
            raise SourceError("it does not listen")
        return self._receiver.address

    @abstractmethod
    def adapt(self, request: Request, context: Context) -> tuple[Adapted, Answer]:
        """A body's record lines, and what its sender is told. Runs in the receiver's threads, one at a time.

        Raises :class:`~mlsecd.sources.http_exchange.Refused`.
        """

    def poll(self, deadline: float) -> Poll:
        """Decode what was posted since the last poll."""
        if self._receiver is None:
            self._receiver = HttpReceiver(
                self.name, self._params, self.meters, self._take, paths=self.paths, types=self.types, gate=self.gate
            )
        elif not self._receiver.alive:
            self.close()
            raise SourceError("the receiving thread ended")
        self.meters.gauge("mlsecd_queue_depth", self._queue.depth, queue=self.name)
        self.meters.gauge("mlsecd_queue_capacity", self._queue.capacity, queue=self.name)
        return Poll(list(self._drain(deadline)))

    def _take(self, request: Request) -> Answer:
        if self._queue.depth > self._queue.capacity // 2:
            raise Refused(429, "too much waits; send it again later")
        context = Context(self._hasher, self._params.model, now=time.time())
        adapted, answer = self.adapt(request, context)
        if adapted.bad:
            self.meters.drop(self.name, "record", adapted.bad)
        for piece in _pieces(adapted.lines):
            if lost := self._queue.put(0, 0, piece):
                self.meters.drop(self.name, "queue_full", lost)
        return answer

    def _drain(self, deadline: float) -> Iterator[Records]:
        while time.monotonic() < deadline and (taken := self._queue.take(_TAKE_BYTES)):
            for records in self._decoder.decode([piece for _, piece in taken]):
                if isinstance(records, RequestBatch):
                    yield RequestBatch(records.columns)

    def samples(self) -> dict[str, str]:
        """One refused line a reason and minute."""
        samples, self._decoder.samples = self._decoder.samples, {}
        if self._key_trouble:
            samples["key"], self._key_trouble = self._key_trouble, None  # once
        return samples

    def close(self) -> None:
        """Stop listening; may be called more than once."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None
            self.meters.forget("mlsecd_queue_depth", queue=self.name)


def _pieces(lines: bytes) -> Iterator[bytes]:
    """Whole lines, about 64 KiB at a time: the queue makes room a piece at a time."""
    at = 0
    while at < len(lines):
        end = lines.find(b"\n", min(at + _PIECE_BYTES, len(lines) - 1)) + 1
        yield lines[at : end or len(lines)]
        at = end or len(lines)
