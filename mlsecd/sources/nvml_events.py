"""Xid errors as the driver reports them: a thread of the NVML child that waits for them.

All event calls are made in that one thread, since NVML does not say whether a set may be added to while
another thread waits on it. It also notices when the parent is gone while the main thread hangs in a call.
The standard library only; ``pynvml`` is handed in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mlsecd.sources.nvml_fields import TIMEOUT, reason

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Events"]

SLICE_SECONDS: Final = 0.5  # a wait cannot be interrupted, so this is how long an orderly end may take
_ORPHAN_SECONDS: Final = 2.0  # how long a main thread that hangs is let be once the parent is gone
_MAX_PER_SECOND: Final = 50  # an Xid storm has been seen to bring hundreds: the rest is counted


def _address(handle: Any) -> int:
    """What tells two handles apart: an event names its GPU by the handle's address."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


class Events:
    """Registers GPUs for Xid errors and tells each error once, as ``{"type": "xid", "uuid", "xid", "ts"}``.

    Parameters
    ----------
    nvml
        The ``pynvml`` module, initialised.
    tell
        Called in this thread for each error; it may raise ``SystemExit`` where nobody listens any more.
    """

    def __init__(self, nvml: ModuleType, tell: Callable[[dict[str, Any]], None]) -> None:
        self._nvml = nvml
        self._tell = tell
        self._parent = os.getppid()
        self._lock = threading.Lock()
        self._gpus: dict[int, tuple[Any, str]] = {}  # by address: handle, UUID
        self._refused: dict[str, str] = {}  # by UUID: why it cannot report
        self._lost = 0
        self._told: list[float] = []
        self._stale = False
        self._set: Any = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml-events", daemon=True)

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def stop(self) -> None:
        """Let the wait in progress run out, so that nvmlShutdown meets no other call; bounded."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(3 * SLICE_SECONDS)

    def add(self, handle: Any, uuid: str) -> None:
        """Wait for this GPU's errors too, from the next slice on."""
        with self._lock:
            self._gpus[_address(handle)] = (handle, uuid)
            self._stale = True
        self._wake.set()

    def start_over(self) -> None:
        """Forget every GPU: they have been enumerated anew."""
        with self._lock:
            self._gpus.clear()
            self._refused.clear()
            self._stale = True

    def blind(self, uuid: str) -> list[str]:
        """Why this GPU's errors would not be seen, if so: an empty list of errors must not look like health."""
        why = self._refused.get(uuid)
        return [f"xid: {why}"] if why else []

    def take_lost(self) -> int:
        """Errors that were not told since the last call: beyond the limit a second."""
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):
            while not self._stop.is_set():
                if os.getppid() != self._parent:
                    self._orphaned()
                if self._stale:
                    self._register()
                if self._set is None:
                    self._wake.wait(SLICE_SECONDS)
                    self._wake.clear()
                else:
                    self._wait()
        self._free()

    def _orphaned(self) -> None:
        """Ask the main thread to end; where it cannot, because the driver holds it, end without it."""
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._stop.wait(_ORPHAN_SECONDS):
            os._exit(1)

    def _register(self) -> None:
        """Make a new set of all GPUs known now: a set that holds a lost GPU may fail for every other."""
        nvml = self._nvml
        with self._lock:
            gpus, self._stale = list(self._gpus.values()), False
        self._free()
        refused = {}
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError as error:
            self._refused = {uuid: reason(error) for _, uuid in gpus}
            return
        for handle, uuid in gpus:
            try:
                if not nvml.nvmlDeviceGetSupportedEventTypes(handle) & nvml.nvmlEventTypeXidCriticalError:
                    refused[uuid] = "the driver does not report Xid errors of this GPU"
                    continue
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
            except nvml.NVMLError as error:
                refused[uuid] = reason(error)
        self._refused = refused
        self._set = events

    def _wait(self) -> None:
        nvml = self._nvml
        try:
            event = nvml.nvmlEventSetWait_v2(self._set, int(SLICE_SECONDS * 1000))
        except nvml.NVMLError as error:
            if error.value != TIMEOUT:
                self._stop.wait(SLICE_SECONDS)  # it may fail at once, and again
                self._stale = True
            return
        if event.eventType != nvml.nvmlEventTypeXidCriticalError:
            return
        now = time.time()
        self._told = [at for at in self._told if now - at < 1.0]
        with self._lock:
            _, uuid = self._gpus.get(_address(event.device), (None, None))
            if len(self._told) >= _MAX_PER_SECOND:
                self._lost += 1
                return
        self._told.append(now)
        self._tell({"type": "xid", "uuid": uuid, "xid": event.eventData, "ts": now})

    def _free(self) -> None:
        if self._set is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(self._set)
            self._set = None
