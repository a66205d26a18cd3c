from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import atoms, regroup, requests

from mlsecd.engines.gate import Gate
from mlsecd.meters import Meters
from mlsecd.records import GpuSample, Records, RequestBatch, SourceStatus

HOUR = 3600.0


def gate(meters: Meters | None = None) -> Gate:
    return Gate(2.0, HOUR, meters or Meters())


def source(ts: float) -> SourceStatus:
    return SourceStatus(ts=ts, source="nvml", ok=True)


def times(admitted: list[Records | None]) -> list[float | None]:
    """Every admitted row's time; None where time was set back."""
    flat: list[float | None] = []
    for one in admitted:
        if one is None:
            flat.append(None)
        elif isinstance(one, RequestBatch):
            flat += one.completion.tolist()
        else:
            flat.append(one.ts)
    return flat


def test_rows_within_lateness_enter_and_later_ones_are_counted() -> None:
    meters = Meters()
    admitted = gate(meters).admit(requests([10, 12, 10.5, 9.9, 13]))
    assert times(admitted) == [10, 12, 10.5, 13]
    assert meters.value("mlsecd_dropped_total", where="fold", reason="late") == 1


def test_order_is_by_completion_not_by_start() -> None:
    one = gate()
    one.admit(requests([100.0], duration_s=[50.0]))
    assert one.now == 150.0


def test_one_wild_time_does_not_move_the_stream() -> None:
    meters = Meters()
    one = gate(meters)
    assert times(one.admit(requests([10, 1e9, 11, 12]))) == [10, 11, 12]
    assert one.now == 12
    assert meters.value("mlsecd_dropped_total", where="fold", reason="ahead") == 1


def test_a_real_gap_loses_nothing() -> None:
    one = gate()
    late = [1e6 + i for i in range(8)]
    assert times(one.admit(requests([10, *late[:5]]))) == [10]
    assert times(one.admit(requests(late[5:]))) == late
    assert one.now == 1e6 + 7


def test_a_short_tail_after_a_gap_enters_at_the_end_of_input() -> None:
    one = gate()
    one.admit(requests([10.0, 1e6, 1e6 + 1]))
    assert times(one.settle()) == [1e6, 1e6 + 1]


def test_a_clock_that_is_set_back_is_followed_and_marked() -> None:
    meters = Meters()
    one = gate(meters)
    one.admit(requests([1e6]))
    back = [5e5 + i for i in range(9)]
    assert times(one.admit(requests(back))) == [None, *back]
    assert one.now == back[-1]
    assert meters.value("mlsecd_clock_steps_total") == 1


def test_the_hosts_own_clock_is_believed_at_once() -> None:
    one = gate()
    assert times(one.admit(source(1e6))) == [1e6]
    assert times(one.admit(source(1e6 - 30))) == [None, 1e6 - 30]
    assert times(one.admit(requests([1e6 - 29.5]))) == [1e6 - 29.5]
    assert times(one.admit(source(1e6 - 31))) == [1e6 - 31]  # polls overtake each other


def test_a_flood_of_far_future_rows_cannot_move_the_hosts_clock() -> None:
    one = gate()
    one.admit(source(1000.0))
    for ts in range(1001, 1010):
        one.admit(requests([1e9] * 7))
        one.admit(source(float(ts)))
    assert one.now == 1009


def test_recorded_rows_are_not_judged_again() -> None:
    one = gate()
    one.admit(RequestBatch(requests([100.0]).columns, np.array([0])))
    recorded = RequestBatch(requests([90.0]).columns, np.array([1]))
    assert times(one.admit(recorded)) == [None, 90.0]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_recording_over_a_set_back_does_not_depend_on_chunks(size: int) -> None:
    stamps = [198.0, 200.0, 49.5, 50.0, 51.0, 10.0, 11.0]
    batch = RequestBatch(requests(stamps).columns, np.arange(len(stamps)))
    one = gate()
    got = [row for at in range(0, 7, size) for row in times(one.admit(batch.slice(at, min(at + size, 7))))]
    assert got == [198.0, 200.0, None, 49.5, 50.0, 51.0, None, 10.0, 11.0]


def test_samples_are_judged_like_rows() -> None:
    meters = Meters()
    one = gate(meters)
    one.admit(requests([100.0]))
    assert one.admit(GpuSample(ts=90.0, gpu="GPU-0")) == []
    assert meters.value("mlsecd_dropped_total", where="fold", reason="late") == 1


def test_an_empty_batch_is_nothing() -> None:
    assert gate().admit(requests([])) == []


@given(
    st.lists(
        st.one_of(
            st.floats(0, 20),
            st.floats(1e6, 1e6 + 20),
            st.floats(-1e6, -1e6 + 20),
        ),
        min_size=1,
        max_size=60,
    ),
    st.lists(st.integers(1, 9), max_size=60),
    st.lists(st.integers(0, 59), max_size=6),
)
def test_what_enters_does_not_depend_on_batches(stamps: list[float], sizes: list[int], clocks: list[int]) -> None:
    stream: list[Records] = [source(ts) if at in clocks else requests([ts]) for at, ts in enumerate(stamps)]
    one, other = gate(), gate()
    straight = [row for atom in stream for row in times(one.admit(atom))]
    cut = [row for push in regroup(atoms(stream), sizes) for part in push for row in times(other.admit(part))]
    assert straight == cut
    assert one.now == other.now
    assert times(one.settle()) == times(other.settle())


@pytest.mark.parametrize("n", [1, 1000])
def test_waiting_strangers_do_not_hold_whole_batches(n: int) -> None:
    one = gate()
    one.admit(requests([10.0] * n + [1e8]))
    (stranger,) = one._strangers
    assert isinstance(stranger[1], RequestBatch)
    assert len(stranger[1]) == 1
