from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from support import requests

from mlsecd.engines.hold import Hold
from mlsecd.meters import Meters
from mlsecd.records import GpuSample, Kind, ProcessTable, Records, RequestBatch, SourceStatus

ALL = frozenset(Kind)


def gpu(ts: float) -> GpuSample:
    return GpuSample(ts=ts, gpu="GPU-0")


def table(ts: float) -> ProcessTable:
    return ProcessTable(ts=ts, processes=())


def source(ts: float) -> SourceStatus:
    return SourceStatus(ts=ts, source="nvml", ok=True)


def flat(pieces: list[Records]) -> list[tuple[str, float, int]]:
    rows = []
    for piece in pieces:
        if isinstance(piece, RequestBatch):
            rows += [
                ("request", ts, seq) for ts, seq in zip(piece.completion.tolist(), piece.seq.tolist(), strict=True)
            ]
        else:
            rows.append((str(piece.kind), piece.ts, piece.seq))
    return rows


def released(*records: Records, until: float = math.inf) -> list[tuple[str, float, int]]:
    hold = Hold(1000, Meters())
    for one in records:
        hold.add(one)
    ordered = hold.release(until)
    ordered.stamp(0)
    return flat(list(ordered.pieces(ALL)))


def test_one_instant_is_ordered_by_kind_then_arrival() -> None:
    got = released(source(5), gpu(5), requests([5, 4, 5]), table(5))
    assert got == [
        ("request", 4, 0),
        ("process", 5, 1),
        ("request", 5, 2),
        ("request", 5, 3),
        ("gpu", 5, 4),
        ("source", 5, 5),
    ]


def test_what_is_not_due_stays() -> None:
    hold = Hold(1000, Meters())
    hold.add(requests([1, 3]))
    hold.add(gpu(2))
    assert [row[:2] for row in flat(list(hold.release(2.5).pieces(ALL)))] == [("request", 1), ("gpu", 2)]
    assert [row[:2] for row in flat(list(hold.release(9).pieces(ALL)))] == [("request", 3)]
    assert not hold.release(9)


def test_requests_are_cut_only_for_what_is_consumed() -> None:
    hold = Hold(1000, Meters())
    hold.add(requests([1, 3]))
    hold.add(gpu(2))
    ordered = hold.release(9)
    assert [len(piece) for piece in ordered.pieces(frozenset({Kind.REQUEST})) if isinstance(piece, RequestBatch)] == [2]
    assert [piece.kind for piece in ordered.pieces(frozenset({Kind.REQUEST, Kind.GPU}))] == [
        "request",
        "gpu",
        "request",
    ]


def test_the_excess_is_dropped_and_counted() -> None:
    meters = Meters()
    hold = Hold(3, meters)
    hold.add(requests([1, 2, 3, 4, 5]))
    hold.add(requests([6]))
    assert len(hold.release(99)) == 3
    assert meters.value("mlsecd_dropped_total", where="fold", reason="held_full") == 3


def test_a_recorded_number_is_kept_and_counted_on() -> None:
    hold = Hold(10, Meters())
    batch = requests([1, 2])
    batch.seq[:] = [40, 41]
    hold.add(batch)
    ordered = hold.release(9)
    assert ordered.stamp(0) == 42
    assert [seq for _, _, seq in flat(list(ordered.pieces(ALL)))] == [40, 41]


@given(st.lists(st.tuples(st.sampled_from("rgps"), st.integers(0, 30)), max_size=40))
def test_intervals_and_pieces_keep_the_order(spec: list[tuple[str, int]]) -> None:
    make = {"r": lambda ts: requests([ts]), "g": gpu, "p": table, "s": source}
    hold = Hold(1000, Meters())
    for kind, ts in spec:
        hold.add(make[kind](float(ts)))
    ordered = hold.release(math.inf)
    assert ordered.stamp(7) == 7 + len(spec)
    whole = flat(list(ordered.pieces(ALL)))
    assert [seq for _, _, seq in whole] == list(range(7, 7 + len(spec)))
    assert [ts for _, ts, _ in whole] == sorted(ts for _, ts in spec)
    parts = [(tick, row) for tick, part in ordered.by_interval(10.0) for row in flat(list(part.pieces(ALL)))]
    assert [row for _, row in parts] == whole
    assert all(tick == row[1] // 10 for tick, row in parts)
