"""The child process that calls NVML, so that a driver call that never returns blinds nothing else.

``python -m mlsecd.sources.nvml_child`` reads one JSON request a line on its standard input and answers with
JSON lines: ``begin``, one line a GPU as soon as it is read (so the parent knows at which GPU a silence began),
then ``end``.
Xid errors come in between, when they happen. It ends when its input does, on SIGTERM, and when its parent is
gone. It imports the standard library and pynvml only, to stay small.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mlsecd.sources.nvml_events import Events
from mlsecd.sources.nvml_fields import (
    RESET_ACTIONS,
    RESET_REQUIRED,
    GpuLostError,
    Library,
    Reader,
    SessionLostError,
    reason,
)
from mlsecd.sources.nvml_gpm import Activity
from mlsecd.sources.nvml_jobs import Jobs
from mlsecd.sources.nvml_posture import Names, gpu_posture, host_posture, pid_max, processes

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["main"]

MAX_GPUS: Final = 128
_JOBS_EVERY: Final = 10  # samples between two looks into accounting, which forgets the oldest of thousands


class Channel:
    """Writes messages, one JSON line each, whole even when two threads write."""

    def __init__(self) -> None:
        # Libraries may print: what they say must not land among the messages.
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Write one message; waits while the pipe is full. Raises ``SystemExit`` where nobody reads."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            while line:
                try:
                    line = line[os.write(self._out, line) :]
                except BrokenPipeError:
                    raise SystemExit(0) from None


class Gpu:
    """One GPU that was opened: its reader, and what is told of it again only when it changed."""

    def __init__(self, library: Library, handle: Any, index: int, uuid: str) -> None:
        self.reader = Reader(library, handle)
        self.activity = Activity(library)
        self.jobs = Jobs(library)
        self.index = index
        self.uuid = uuid
        self.name: str | None = None
        self.posture: dict[str, str] | None = None
        self.posture_blind: tuple[str, ...] = ()


class Session:
    """NVML from ``nvmlInit`` to ``nvmlShutdown``: opens GPUs, reads them, tells the parent.

    Parameters
    ----------
    nvml
        The ``pynvml`` module, initialised.
    channel
        Where messages go.
    posture_seconds
        How often settings, names and capabilities are read anew.
    """

    def __init__(self, nvml: ModuleType, channel: Channel, posture_seconds: float) -> None:
        self._nvml = nvml
        self._library = Library(nvml)
        self._channel = channel
        self._gpus: dict[int, Gpu] = {}
        self._count = 0
        self._names = Names(self._library)
        self._largest_pid = pid_max()
        self._posture_seconds = posture_seconds
        self._posture_at = 0.0
        self._turn = -1  # samples so far
        self._with_activity = False
        self.events = Events(nvml, channel.send)

    def count(self) -> int:
        """How many GPUs NVML enumerates; opened ones are let go when that changes, for their places did too.

        Raises :class:`SessionLostError` where NVML will not say.
        """
        try:
            count = min(int(self._nvml.nvmlDeviceGetCount()), MAX_GPUS)
        except self._library.error as error:
            raise SessionLostError(error.value, reason(error)) from None  # type: ignore[attr-defined]
        if count != self._count:
            self.close()
            self.events.start_over()
            self._count = count
        return count

    def close(self) -> None:
        """Let the opened GPUs go, with what they hold of NVML's memory."""
        for gpu in self._gpus.values():
            gpu.activity.close()
        self._gpus.clear()

    def sample(self, skip: Iterable[int], *, with_processes: bool, with_activity: bool = False) -> None:
        """Read every GPU but those at the indexes to skip, which must not be touched at all."""
        now = time.monotonic()
        posture_due = now >= self._posture_at
        if posture_due:
            self._posture_at = now + self._posture_seconds
        self._with_activity = with_activity
        self._turn += 1
        count = self.count()
        self._channel.send({"type": "begin", "count": count})
        for index in sorted(set(range(count)).difference(skip)):
            self._channel.send(self._message(index, posture_due=posture_due, with_processes=with_processes))
        self._names.sweep(ask_anew=posture_due)
        self._channel.send({"type": "end", "count": count, "xids_lost": self.events.take_lost()})

    def _message(self, index: int, *, posture_due: bool, with_processes: bool) -> dict[str, Any]:
        gpu = self._gpus.get(index)
        message: dict[str, Any] = {"type": "gpu", "ts": time.time(), "index": index}
        try:
            if gpu is None:
                gpu = self._open(index)
            message |= self._read(gpu, posture_due=posture_due, with_processes=with_processes)
        except GpuLostError:
            message["state"] = "lost"
        except self._library.error as error:  # it could not be opened: the device node is not ours to use, say
            reset = error.value == RESET_REQUIRED  # type: ignore[attr-defined]
            message |= {"state": "reset_required" if reset else "refused", "error": reason(error)}
        if gpu is not None:
            message["uuid"] = gpu.uuid
        return message

    def _open(self, index: int) -> Gpu:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = self._nvml.nvmlDeviceGetUUID(handle)
        except self._library.error as error:
            Reader(self._library, None).refused("gpu", error.value, reason(error))  # type: ignore[attr-defined]
            raise
        gpu = self._gpus[index] = Gpu(self._library, handle, index, uuid)
        self.events.add(handle, uuid)
        return gpu

    def _read(self, gpu: Gpu, *, posture_due: bool, with_processes: bool) -> dict[str, Any]:
        message: dict[str, Any] = {}
        gpu.reader.begin()
        if posture_due or gpu.posture is None:
            message |= self._read_posture(gpu)
        gpu.reader.begin()
        message["values"] = gpu.reader.readings()
        if self._with_activity:
            message["values"] |= gpu.activity.read(gpu.reader)
        if with_processes and self._turn % _JOBS_EVERY == 0:
            message["accounted"], message["jobs"] = gpu.jobs.read(gpu.reader)
        if with_processes:
            message["processes"] = processes(gpu.reader, self._names, self._largest_pid)
        message["blind"] = [*gpu.reader.blind, *gpu.posture_blind, *self.events.blind(gpu.uuid)]
        reset = gpu.reader.reset_required or message["values"].get("recovery_action") in RESET_ACTIONS
        message["state"] = "reset_required" if reset else "ok"
        return message

    def _read_posture(self, gpu: Gpu) -> dict[str, Any]:
        """Name and settings, where they are new; the refusals are kept for every sample."""
        reader = gpu.reader
        reader.probe_again()
        name = reader.guard("name", lambda: self._nvml.nvmlDeviceGetName(reader.handle))
        posture = host_posture(self._library, reader) | gpu_posture(self._library, reader)
        gpu.posture_blind = tuple(reader.blind)
        if (name, posture) == (gpu.name, gpu.posture):
            return {}
        gpu.name, gpu.posture = name, posture
        return {"name": name, "posture": posture}


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End by way of ``finally``: nvmlShutdown must run. A call into a hung driver is not interrupted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked once is enough: the way out must not be cut short
    raise SystemExit(0)


def _serve(nvml: ModuleType, channel: Channel, posture_seconds: float) -> None:
    session = Session(nvml, channel, posture_seconds)
    try:
        channel.send({"type": "hello", "count": session.count()})
        session.events.start()
        for line in sys.stdin.buffer:
            request = json.loads(line)
            with_activity = request.get("activity", False)
            session.sample(request["skip"], with_processes=request["processes"], with_activity=with_activity)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        session.events.stop()
        session.close()


def main() -> None:
    """Serve until the input ends. The one argument: seconds between readings of the settings."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then asks us to go
    signal.signal(signal.SIGTERM, _terminated)
    channel = Channel()
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        channel.send({"type": "failed", "code": 0, "error": f"nvidia-ml-py is not installed: {error}"})
        return
    try:
        nvml.nvmlInit()
        _serve(nvml, channel, float(sys.argv[1]))
    except nvml.NVMLError as error:
        channel.send({"type": "failed", "code": error.value, "error": reason(error)})
    except SessionLostError as error:
        channel.send({"type": "failed", "code": error.code, "error": str(error)})
    finally:
        with contextlib.suppress(nvml.NVMLError):  # it may never have been initialised
            nvml.nvmlShutdown()


if __name__ == "__main__":
    main()
