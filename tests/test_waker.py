from __future__ import annotations

import signal
import time

from mlsecd.waker import Waker


def test_it_wakes_once_and_is_unset_then() -> None:
    waker = Waker()
    waker.set()
    waker.set()
    assert waker.wait(0.0)
    assert not waker.wait(0.0)


def test_signals_may_set_it_at_any_moment() -> None:
    waker = Waker()
    before = signal.signal(signal.SIGALRM, lambda *_: waker.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        end, woken = time.monotonic() + 1.0, 0
        while time.monotonic() < end:
            woken += waker.wait(0.001)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert woken > 100
