"""An event that a signal handler may set."""

from __future__ import annotations

import contextlib
import queue

__all__ = ["Waker"]


class Waker:
    """Like ``threading.Event``, but safe in a signal handler.

    An Event's lock is not reentrant: a handler that runs while the main thread is inside ``wait`` or
    ``clear`` would wait for itself. ``SimpleQueue.put`` is documented to be reentrant.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Wake whoever waits, now or next."""
        self._queue.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, this long at the most; whether it was. It is unset afterwards."""
        try:
            self._queue.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return False
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        return True
