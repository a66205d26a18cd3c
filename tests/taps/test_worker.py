"""The tap's thread: bounded, fair, and poor in processor time."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from asgi_drive import Lines

from mlsecd.taps import worker as module
from mlsecd.taps.worker import Worker


def made(render: Any, share: float = 1.0) -> tuple[Worker, Lines]:
    out = Lines()
    return Worker(render, out, share), out  # type: ignore[arg-type]


def text(exchange: Any, sketch: bool, _lost: int) -> bytes:
    return f"{exchange}:{sketch}".encode()


def still(worker: Worker) -> Worker:
    """Without its thread: everything waits."""
    worker._start = lambda: None  # type: ignore[method-assign]
    return worker


def test_lines_come_out_and_the_thread_ends() -> None:
    worker, out = made(text)
    for at in range(10):
        worker.put("a", at, 10)
    worker.close(10)
    assert out.lines == [b"%d:True" % at for at in range(10)]
    assert (worker.made, worker.waiting, out.closed) == (10, 0, True)
    worker.put("a", 1, 1)
    worker.close(0)


def test_a_flood_of_one_client_costs_that_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 100)
    worker, out = made(text)
    still(worker)
    for at in range(1_000):
        worker.put("loud", f"loud{at}", 10)
    for at in range(20):
        worker.put("quiet", f"quiet{at}", 10)
    assert worker.waiting == 120
    assert worker.dropped["overload"] == 900
    worker.close(30)
    assert sum(line.startswith(b"quiet") for line in out.lines) == 20
    assert b"quiet19" in out.lines[39] or b"quiet19" in out.lines[38]  # in turns, not at the end


def test_what_a_client_lost_is_told_with_its_next_record_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 100)

    def tell(exchange: str, _sketch: bool, lost: int) -> bytes | None:
        return None if exchange == "probe" else f"{exchange}:{lost}".encode()

    worker, out = made(tell)
    still(worker)
    worker.put("loud", "probe", 10)
    for at in range(1_000):
        worker.put("loud", f"loud{at}", 10)
    worker.put("quiet", "quiet", 10)
    worker.close(30)
    told = [line for line in out.lines if not line.endswith(b":0")]
    assert told == [b"loud0:901"], "a probe has no record, and takes no count with it"
    assert b"quiet:0" in out.lines


def test_an_exchange_that_cannot_be_read_takes_no_count_with_it() -> None:
    def tell(exchange: str, _sketch: bool, lost: int) -> bytes:
        if exchange == "broken":
            raise ValueError
        return f"{exchange}:{lost}".encode()

    worker, out = made(tell)
    still(worker)
    worker.put("a", "broken", 10)
    worker.put("a", "next", 10)
    worker._lost["a"] = 7
    worker.close(30)
    assert out.lines == [b"next:7"]


def test_the_clients_whose_losses_are_counted_are_bounded_the_greatest_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CAPACITY", 10)
    monkeypatch.setattr(module, "_MAX_LANES", 50)
    worker, _ = made(text)
    still(worker)
    for at in range(1_000):
        worker.put("thief", at, 10)
    for at in range(1_000):
        worker.put(f"c{at}", at, 10)
    assert 25 <= len(worker._lost) <= 50
    assert worker._lost["thief"] > 900


def test_a_flood_of_many_clients_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 100)
    worker, _ = made(text)
    still(worker)
    for at in range(1_000):
        worker.put(at, at, 10)
    assert worker.waiting == 200
    worker.close(0)
    assert worker.dropped["closed"] + worker.made == 200


def test_bodies_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY_BYTES", 1_000)
    worker, _ = made(text)
    still(worker)
    for at in range(100):
        worker.put(at % 3, at, 100)
    assert worker.waiting <= 20
    worker.close(0)


def test_what_cannot_be_read_is_counted() -> None:
    def broken(exchange: Any, _sketch: bool, _lost: int) -> bytes | None:
        if exchange == 2:
            raise RecursionError
        return b"x" if exchange else None

    worker, out = made(broken)
    for at in range(4):
        worker.put("a", at, 1)
    worker.close(10)
    assert worker.dropped == {"error": 1, "closed": 0}
    assert len(out.lines) == 2


def test_it_keeps_to_its_share_and_leaves_sketches_out_first() -> None:
    spent: list[bool] = []

    def busy(_exchange: Any, sketch: bool, _lost: int) -> bytes:
        until = time.thread_time() + (0.02 if sketch else 0.001)
        while time.thread_time() < until:
            pass
        spent.append(sketch)
        return b"x"

    worker, _ = made(busy, share=0.02)
    began = time.monotonic()
    for at in range(400):
        worker.put("a", at, 1)
    time.sleep(1.5)
    wall = time.monotonic() - began
    used = sum(0.02 if sketch else 0.001 for sketch in spent)
    assert used <= module._BURST_SECONDS + 0.02 * wall + 0.05
    assert 0 < sum(spent) < len(spent)
    assert len(spent) < 400
    worker.close(0)


def test_sketches_are_shared_among_clients() -> None:
    worker, _ = made(text)
    still(worker)
    worker._budget = module._BURST_SECONDS / 3  # tight
    granted = {lane: sum(worker._may_sketch(lane) for _ in range(50)) for lane in ("loud", "quiet")}
    assert worker._may_sketch("new")
    for _ in range(100):
        worker._may_sketch("loud")
    assert granted["quiet"] > 0
    assert worker._sketched["loud"] <= 2 * worker._sketched.total() / len(worker._sketched) + 1
    worker.close(0)


def test_a_forked_child_begins_anew() -> None:
    worker, out = made(text)
    still(worker)
    worker.put("a", "parent", 1)
    worker._lock.acquire()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, str(worker.waiting).encode())
        os._exit(0)
    worker._lock.release()
    os.waitpid(pid, 0)
    assert os.read(reading, 8) == b"0"
    assert worker.waiting == 1
    for fd in (reading, writing):
        os.close(fd)
    worker.close(5)
    assert out.lines == [b"parent:True"]


def test_no_thread_to_be_had_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    worker, _ = made(text)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        worker.put("a", 1, 1)
    assert worker.waiting == 1
    worker.close(5)
    assert worker.made == 1
