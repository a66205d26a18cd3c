"""Bounded in bytes, and unfair only to the greedy."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mlsecd.sources.fair_queue import FairQueue

CAPACITY = 4096

puts = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 30)) | st.just("take"), min_size=1, max_size=120
)


@given(puts)
def test_bounded_and_nothing_goes_uncounted(steps: list[tuple[int, int, int] | str]) -> None:
    queue = FairQueue(CAPACITY)
    added = lost = 0
    taken: list[tuple[int, bytes]] = []
    for step in steps:
        if isinstance(step, str):
            taken += queue.take(300)
        else:
            producer, lane, count = step
            added += count
            lost += queue.put(producer, lane, b"%d:line\n" % producer * count)
        assert 0 <= queue.depth <= CAPACITY
    while piece := queue.take(1000):
        taken += piece
    assert queue.depth == 0
    assert sum(piece.count(b"\n") for _, piece in taken) + lost == added
    assert all(piece.startswith(b"%d:" % producer) for producer, piece in taken)
    assert queue._held == {}
    assert queue._lanes == {}


def test_order_within_a_lane_and_turns_between_them() -> None:
    queue = FairQueue(1 << 20)
    for number in range(3):
        queue.put(1, 0, b"a%d\n" % number)
    queue.put(1, 1, b"b0\n")
    queue.put(2, 0, b"c0\n")
    assert [piece for _, piece in queue.take(1 << 20)] == [b"a0\n", b"b0\n", b"c0\n", b"a1\n", b"a2\n"]


def test_who_floods_loses_and_others_do_not() -> None:
    queue = FairQueue(CAPACITY)
    lost = Counter[str]()
    for number in range(200):
        lost["flood"] += queue.put(1, 0, b"f" * 99 + b"\n")
        if number % 20 == 0:
            assert queue.put(1, 1, b"quiet\n") <= 1  # what goes is the flood's
    assert lost["flood"] > 150
    taken = Counter(piece[:1] for _, piece in queue.take(1 << 20))
    assert taken[b"q"] == 10


def test_a_user_with_many_connections_is_one_user() -> None:
    queue = FairQueue(CAPACITY)
    for number in range(400):
        queue.put(1, number % 100, b"f" * 99 + b"\n")
    for _ in range(8):
        queue.put(2, 0, b"q" * 99 + b"\n")
    for number in range(400):
        queue.put(1, number % 100, b"f" * 99 + b"\n")
    taken = Counter(producer for producer, _ in queue.take(1 << 20))
    assert taken[2] == 8
    assert taken[1] >= 8


def test_a_piece_that_cannot_fit_is_lost_alone() -> None:
    queue = FairQueue(CAPACITY)
    queue.put(1, 0, b"small\n")
    assert queue.put(2, 0, b"x\n" * CAPACITY) == CAPACITY
    assert queue.take(1 << 20) == [(1, b"small\n")]
