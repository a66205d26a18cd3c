from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import requests

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import GpuSample, Kind, RequestBatch, SourceStatus
from mlsecd.runner import Health, Inbox, Runner
from mlsecd.sources.base import Params, Poll, Source


class Scripted(Source):
    """Polls by a list of callables, then goes on with the last."""

    name = "scripted"
    emits = frozenset({Kind.GPU})
    summary = "for tests"
    Params = Params
    interval_seconds = 0.01

    def __init__(self, *steps: Callable[[], Poll], reason: str | None = None) -> None:
        super().__init__(Params(), Meters())
        self.steps = list(steps)
        self.reason = reason
        self.closed = False

    def supported(self) -> str | None:
        return self.reason

    def poll(self, deadline: float) -> Poll:
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        return step()

    def close(self) -> None:
        self.closed = True


def fail(error: Exception) -> Callable[[], Poll]:
    def step() -> Poll:
        raise error

    return step


def run_until(source: Scripted, done: Callable[[list[Any], Runner], bool]) -> tuple[list[Any], list[Health], Meters]:
    meters = Meters()
    inbox = Inbox(1000, meters)
    told: list[Health] = []
    runner = Runner(source, inbox, meters, told.append)
    runner.start()
    records: list[Any] = []
    end = time.monotonic() + 10
    while not done(records, runner) and time.monotonic() < end:
        records += inbox.take()
        time.sleep(0.005)
    runner.stop()
    assert runner.join(5)
    records += inbox.take()
    assert source.closed
    assert time.monotonic() < end, "the condition never came true"
    return records, told, meters


def test_each_poll_yields_its_records_and_one_status() -> None:
    sample = GpuSample(ts=1.0, gpu="GPU-0")
    source = Scripted(lambda: Poll(records=[sample], seen=1, expected=2))
    records, told, _ = run_until(source, lambda records, _: len(records) >= 4)
    assert records[0] == sample
    assert isinstance(records[1], SourceStatus)
    assert (records[1].ok, records[1].seen, records[1].expected) == (True, 1, 2)
    assert [health.up for health in told] == [True]


def test_failures_are_told_once_a_change_and_never_end_it() -> None:
    source = Scripted(
        fail(SourceError("no driver")),
        fail(SourceError("no driver")),
        fail(ZeroDivisionError("oops")),
        lambda: Poll(seen=1),
    )
    records, told, _ = run_until(source, lambda _, runner: bool(runner.health.up))
    assert [(health.up, health.why) for health in told] == [
        (False, "no driver"),
        (False, "ZeroDivisionError: oops"),
        (True, None),
    ]
    assert [record.ok for record in records[:4]] == [False, False, False, True]


def test_what_this_host_lacks_is_no_failure() -> None:
    source = Scripted(Poll, reason="no GPU here")
    records, told, _ = run_until(source, lambda _, runner: runner.health.unsupported)
    assert records == []
    assert told[0].why == "no GPU here"


def test_requests_of_the_future_and_foreign_numbers_are_refused() -> None:
    now = time.time()
    batch = RequestBatch(requests([now - 1, now + 3600]).columns, np.array([7, 8]))
    source = Scripted(lambda: Poll(records=[batch]))
    records, _, meters = run_until(source, lambda records, _: len(records) >= 2)
    assert records[0].ts.tolist() == [now - 1]
    assert records[0].seq.tolist() == [-1]
    assert meters.value("mlsecd_dropped_total", where="scripted", reason="future") >= 1


def test_this_hosts_own_name_is_blanked() -> None:
    source = Scripted(lambda: Poll(records=[requests([1.0, 2.0], host=["here", "there"])]))
    inbox = Inbox(10, Meters())
    runner = Runner(source, inbox, Meters(), lambda _: None, host="here")
    runner.start()
    runner.stop()
    assert runner.join(5)
    (batch, _) = inbox.take()[:2]
    assert isinstance(batch, RequestBatch)
    assert [batch.text("host").at(row) for row in range(2)] == ["", "there"]


def test_a_source_that_hangs_is_left_behind() -> None:
    gate = threading.Event()
    source = Scripted(lambda: Poll(seen=int(gate.wait(30))))
    runner = Runner(source, Inbox(10, Meters()), Meters(), lambda _: None)
    runner.start()
    runner.stop()
    assert not runner.join(0.05)
    gate.set()
    assert runner.join(5)


def test_a_flood_of_requests_costs_no_other_record_its_place() -> None:
    meters = Meters()
    inbox = Inbox(100, meters, max_rows=1000)
    sample, status = GpuSample(ts=1.0, gpu="GPU-0"), SourceStatus(ts=1.0, source="x", ok=True)
    inbox.put([sample, status])
    for _ in range(5):
        inbox.put([requests([1.0] * 600), status])
    records = inbox.take()
    assert records[:2] == [sample, status]
    assert sum(isinstance(one, SourceStatus) for one in records) == 6
    assert sum(len(one) for one in records if isinstance(one, RequestBatch)) == 600
    assert meters.value("mlsecd_dropped_total", where="inbox", reason="full") == 2400


def test_a_backlog_is_taken_in_portions() -> None:
    inbox = Inbox(100, Meters())
    for number in range(4):
        inbox.put([requests([float(number)] * 10)])
    assert len(inbox.take(rows=15)) == 2
    assert len(inbox.take()) == 2


def test_whatever_goes_wrong_in_a_turn_the_thread_lives_on() -> None:
    class Odd(Scripted):
        asked = 0

        def supported(self) -> str | None:
            self.asked += 1
            if self.asked < 3:
                raise PermissionError("no")
            return None

    _, told, _ = run_until(Odd(lambda: Poll(seen=1)), lambda _, runner: bool(runner.health.up))
    assert [(health.up, health.why) for health in told] == [(False, "PermissionError: no"), (True, None)]


@pytest.mark.parametrize("limit", [1, 3])
def test_a_full_inbox_gives_up_the_oldest(limit: int) -> None:
    meters = Meters()
    inbox = Inbox(limit, meters)
    for number in range(limit + 2):
        inbox.put([requests([float(number)] * 5)])
    assert [batch.ts[0] for batch in inbox.take()] == list(map(float, range(2, limit + 2)))  # type: ignore[union-attr]
    assert meters.value("mlsecd_dropped_total", where="inbox", reason="full") == 10
    assert inbox.take() == []
