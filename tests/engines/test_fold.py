from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from support import fold_of, lines, requests

from mlsecd.detectors.base import Detector, DetectorState, Interval, Maturity, Params, Standing
from mlsecd.engines.fold import Fold
from mlsecd.findings.ledger import Ledger
from mlsecd.meters import Meters
from mlsecd.records import Finding, GpuSample, Kind, ProcessTable, Records, RequestBatch, Severity, SourceStatus


class Probe(Detector):
    """Notes what it is given; finds every request of client ``thief``."""

    name = "access_probe"
    consumes = frozenset({Kind.REQUEST, Kind.SOURCE})
    key = "client"
    maturity = Maturity.SANDBOX
    summary = action = "for tests"
    blind_spots = ("everything",)
    Params = Params

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.seen: list[float] = []
        self.closed: list[Interval] = []

    def observe(self, records: Records) -> list[Finding]:
        if self.fails:
            raise ZeroDivisionError("oops")
        if not isinstance(records, RequestBatch):
            return []
        self.seen += records.completion.tolist()
        return [
            self.finding(
                ts=ts,
                subject_kind="client",
                subject="thief",
                severity=Severity.LOW,
                score=1,
                threshold=1,
                reason="seen",
                evidence={},
            )
            for row, ts in enumerate(records.completion.tolist())
            if records.text("client").at(row) == "thief"
        ]

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        self.closed.append(interval)
        return []

    def standing(self) -> Standing:
        return Standing(DetectorState.ARMED)

    def snapshot(self) -> bytes:
        return b""

    def restore(self, blob: bytes) -> None:
        self.seen = []


def clock(ts: float) -> SourceStatus:
    return SourceStatus(ts=ts, source="s", ok=True)


def test_rows_wait_for_earlier_ones_and_come_in_order() -> None:
    probe = Probe()
    fold = fold_of(probe)
    fold.push([requests([10.0, 11.0])])
    assert probe.seen == []
    fold.push([requests([10.5])])
    fold.push([clock(13.1)])
    assert probe.seen == [10.0, 10.5, 11.0]


def test_an_interval_closes_before_the_first_record_after_it_and_never_at_the_end() -> None:
    probe = Probe()
    fold = fold_of(probe)
    fold.push([requests([5.0]), clock(9.0), clock(12.0), clock(20.0)])
    assert probe.closed == [Interval(0.0, 10.0)]
    fold.finish()
    assert probe.closed == [Interval(0.0, 10.0), Interval(10.0, 20.0)]


def test_a_stretch_without_records_is_one_interval() -> None:
    probe = Probe()
    lines(fold_of(probe), [[requests([5.0])], [requests([3000.0])]])
    assert probe.closed == [Interval(0.0, 10.0), Interval(10.0, 3000.0)]


def test_time_that_is_set_back_goes_on_from_there() -> None:
    probe = Probe()
    fold = fold_of(probe)
    fold.push([requests([1000.0]), clock(1010.0), requests([500.0]), clock(500.0), clock(520.0)])
    assert probe.seen == [1000.0], "it came before the clock said so: late"
    fold.push([requests([521.0]), clock(530.0)])
    assert probe.seen[-1] == 521.0
    assert probe.closed[-1].end <= 530.0


def test_one_failing_detector_costs_the_others_nothing() -> None:
    bad, good, meters = Probe(fails=True), Probe(), Meters()
    good.name = "access_good"  # type: ignore[misc]
    told = []
    fold = Fold([bad, good], Ledger(), meters)
    fold.on_failed = lambda detector, error: told.append((detector.name, str(error)))
    fold.push([requests([1.0]), requests([2.0]), clock(9.0)])
    assert good.seen == [1.0, 2.0]
    assert fold.failures["access_probe"] >= 1
    assert told[0] == ("access_probe", "oops")
    assert meters.value("mlsecd_detector_errors_total", detector="access_probe") == len(told)
    bad.fails = False
    fold.push([clock(19.0), clock(29.0)])
    assert fold.failures == {}


def test_findings_get_a_life_and_are_resolved_by_silence_in_event_time() -> None:
    fold = fold_of(Probe())
    got = lines(fold, [[requests([10.0], client="thief")], [clock(20.0)], [clock(1000.0)], [clock(1100.0)]])
    assert [line["status"] for line in got] == ["new", "resolved"]
    assert got[0]["id"] == got[1]["id"]


def test_what_is_held_survives_a_restart() -> None:
    first = fold_of(Probe())
    first.push([requests([10.0, 11.0], client="thief")])
    probe = Probe()
    second = fold_of(probe)
    assert second.restore(first.snapshot()) == []
    second.push([clock(20.0)])
    assert probe.seen == [10.0, 11.0]


def test_old_lines_cannot_set_a_live_clock_back_and_resolve_findings() -> None:
    fold = fold_of(Probe())
    now = 1e6
    got = lines(fold, [[requests([now + i], client="thief"), clock(now + i)] for i in range(20)], finish=False)
    for _ in range(3):
        got += lines(fold, [[requests([now - 9000.0] * 8)], [clock(now + 21)]], finish=False)
    assert [line["status"] for line in got] == ["new"]


def test_records_of_one_instant_come_in_one_order_however_they_arrive() -> None:
    order = []
    for pushes in ([[0, 1, 2]], [[0], [1], [2]]):
        probe = Probe()
        probe.consumes = frozenset(Kind)  # type: ignore[misc]
        kinds: list[str] = []
        probe.observe = lambda one, kinds=kinds: kinds.append(str(one.kind)) or []  # type: ignore[method-assign, misc]
        fold = fold_of(probe)
        parts = [GpuSample(ts=10.0, gpu="GPU-0"), clock(12.0), ProcessTable(ts=10.0, processes=())]
        for push in pushes:
            fold.push([parts[at] for at in push])
        fold.push([clock(20.0), clock(30.0)])
        order.append(kinds[:2])
    assert order == [["process", "gpu"], ["process", "gpu"]]


def test_another_interval_length_starts_its_own_count() -> None:
    first = fold_of(Probe())
    first.push([requests([1e9]), clock(1e9 + 5)])
    probe = Probe()
    second = Fold([probe], Ledger(), Meters(), interval_seconds=60.0)
    assert second.restore(first.snapshot()) == []
    second.push([clock(1e9 + 100), clock(1e9 + 200)])
    assert all(interval.end - interval.start <= 120 for interval in probe.closed)


@pytest.mark.parametrize("size", [1, 100, 20_000])
def test_a_small_hold_drops_nothing_that_could_go(size: int) -> None:
    probe, meters = Probe(), Meters()
    fold = Fold([probe], Ledger(), meters, max_held_rows=1000)
    rows = requests([i / 10 for i in range(20_000)])
    for at in range(0, len(rows), size):
        fold.push([rows.slice(at, at + size)] if at + size <= len(rows) else [rows.slice(at, len(rows))])
    fold.finish()
    assert len(probe.seen) == 20_000
    assert meters.value("mlsecd_dropped_total", where="fold", reason="held_full") == 0


@pytest.mark.parametrize("blob", [b"", b"nonsense"])
def test_a_damaged_snapshot_starts_afresh_and_says_so(blob: bytes) -> None:
    fold = fold_of(Probe())
    assert len(fold.restore({"fold": blob})) == 1
    assert fold.push([requests([1.0])]) == []
