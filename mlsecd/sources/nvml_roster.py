"""What is known of each GPU from one sample to the next: who is silent, and whom to leave alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from mlsecd.records import GpuJob, GpuProcess, GpuSample, XidEvent
from mlsecd.sources.nvml_link import Gpu, Process, Xid

__all__ = ["Roster", "Suspects"]

MAX_RETRY_FACTOR: Final = 20
MAX_GPUS: Final = 256
MAX_XIDS: Final = 256  # a GPU, between two of its samples


class Suspects:
    """GPUs that NVML hung at, by index: each is left alone for a while, so that the others can be read.

    Parameters
    ----------
    retry_seconds
        How long at first; it doubles with each hang, up to 20 times this.
    """

    def __init__(self, retry_seconds: float) -> None:
        self._retry_seconds = retry_seconds
        self._held: dict[int, tuple[float, int]] = {}  # until when, how often it hung

    def hung(self, index: int, now: float) -> None:
        """NVML hung at this GPU."""
        times = self._held.get(index, (0.0, 0))[1]
        self._held[index] = (now + self._retry_seconds * min(2**times, MAX_RETRY_FACTOR), times + 1)

    def answered(self, indexes: Iterable[int]) -> None:
        """These GPUs are well."""
        for index in indexes:
            self._held.pop(index, None)

    def left_alone(self, now: float) -> frozenset[int]:
        """The GPUs not to be touched now."""
        return frozenset(index for index, (until, _) in self._held.items() if now < until)

    def clear(self) -> None:
        """Indexes mean other GPUs now."""
        self._held.clear()


class _Known:
    """One GPU that has been seen in this run."""

    def __init__(self) -> None:
        self.index: int | None = None
        self.name: str | None = None
        self.posture: dict[str, str] = {}
        self.xids: deque[XidEvent] = deque(maxlen=MAX_XIDS)


class Roster:
    """Turns the child's messages into samples; adds what the message leaves out because it did not change.

    Parameters
    ----------
    own
        The daemon's pid as NVML numbers processes, if that is known.
    """

    def __init__(self, own: int | None = None) -> None:
        self._own = own
        self._known: dict[str, _Known] = {}
        self.dropped = 0  # Xid errors of no known GPU, or beyond the limit

    @property
    def uuids(self) -> list[str]:
        """Every GPU seen in this run."""
        return list(self._known)

    def at(self, index: int) -> str | None:
        """The GPU that was last seen at this NVML index."""
        return next((uuid for uuid, known in self._known.items() if known.index == index), None)

    def index(self, uuid: str) -> int | None:
        """Where a GPU was last seen."""
        return self._known[uuid].index

    def _meet(self, uuid: str) -> _Known:
        known = self._known.get(uuid)
        if known is None:
            if len(self._known) >= MAX_GPUS:
                del self._known[next(iter(self._known))]
            known = self._known[uuid] = _Known()
        return known

    def sample(self, gpu: Gpu) -> GpuSample | None:
        """One GPU's answer as a sample; None where it could not be opened and was never seen at its place."""
        uuid = gpu.uuid or self.at(gpu.index)
        if uuid is None:
            return None
        known = self._meet(uuid)
        if known.index != gpu.index:  # it has moved: nobody else is at its new place any more
            for other in self._known.values():
                other.index = None if other.index == gpu.index else other.index
            known.index = gpu.index
        if gpu.posture is not None:
            known.name, known.posture = gpu.name, gpu.posture
        rows = gpu.processes
        return GpuSample(
            ts=gpu.ts,
            gpu=uuid,
            state=gpu.state,
            index=gpu.index,
            name=known.name,
            processes=None if rows is None else tuple(map(self._process, rows)),
            xid=self._take_xids(known),
            accounted=gpu.accounted,
            jobs=tuple(GpuJob(**msgspec.structs.asdict(job)) for job in gpu.jobs),
            posture=known.posture,
            blind=tuple(gpu.blind),
            **msgspec.structs.asdict(gpu.values),
        )

    def _process(self, row: Process) -> GpuProcess:
        return GpuProcess(**msgspec.structs.asdict(row), own=row.pid == self._own)

    def silent(self, uuids: Iterable[str], state: str, ts: float, why: str) -> list[GpuSample]:
        """Samples of GPUs that gave no answer: their state, what is known, and no readings."""
        return [
            GpuSample(
                ts=ts,
                gpu=uuid,
                state=state,
                index=self._known[uuid].index,
                name=self._known[uuid].name,
                xid=self._take_xids(self._known[uuid]),
                posture=self._known[uuid].posture,
                blind=(f"gpu: {why}",),
            )
            for uuid in uuids
        ]

    def xid(self, event: Xid) -> None:
        """Keep an error for the next sample of its GPU, whatever that sample is."""
        known = self._known.get(event.uuid or "")
        if known is None or len(known.xids) == MAX_XIDS:
            self.dropped += 1
        if known is not None:
            known.xids.append(XidEvent(xid=event.xid, ts=event.ts))

    @staticmethod
    def _take_xids(known: _Known) -> tuple[XidEvent, ...]:
        taken = tuple(known.xids)
        known.xids.clear()
        return taken
