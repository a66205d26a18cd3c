from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlsecd.kernels import drift_layout as at
from mlsecd.kernels import select

KERNELS = select("cpu")
CEILING = np.exp(1.0)


# ranks


def rank(value: float, reference: np.ndarray) -> float:
    """The definition, one comparison at a time."""
    x = np.float32(value)
    return (float((reference < x).sum()) + 0.5 * (float((reference == x).sum()) + 1.0)) / (len(reference) + 1) - 0.5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_ranks_are_what_counting_gives(size: int) -> None:
    rng = np.random.default_rng(size)
    ties = np.sort(rng.integers(0, 5, size).astype(np.float32))
    smooth = np.sort(rng.standard_normal(size).astype(np.float32))
    values = np.column_stack((rng.integers(-1, 7, 200), rng.standard_normal(200), rng.integers(0, 2, 200))).astype(
        float
    )
    values[::7, 1] = smooth[rng.integers(0, size, len(values[::7]))]
    values[3], values[4] = np.nan, np.inf
    offsets = np.array([0, size, 2 * size, 2 * size])
    pair = np.array([[0.0, 0.0], [0.0, 0.0], [-0.05, 0.45]])
    ranks = KERNELS.drift_ranks(values, np.concatenate((ties, smooth)), offsets, pair)
    for row, got in zip(values, ranks, strict=True):
        if not np.isfinite(row).all():
            assert np.isnan(got).all()
            continue
        assert got == pytest.approx([rank(row[0], ties), rank(row[1], smooth), pair[2, int(row[2])]], abs=1e-15)


def test_one_more_ordinary_value_has_a_mean_rank_of_exactly_one_half() -> None:
    """The ground of it all: over which of n + 1 values is the new one, ranks average to 0, ties or not."""
    for values in (np.arange(30.0), np.repeat([1.0, 2.0, 5.0], 10), np.zeros(30)):
        ranks = [
            KERNELS.drift_ranks(
                values[i : i + 1, None],
                np.sort(np.delete(values, i)).astype(np.float32),
                np.array([0, len(values) - 1]),
                np.zeros((1, 2)),
            )[0, 0]
            for i in range(len(values))
        ]
        assert abs(np.mean(ranks)) < 1e-15


# bets


class Oracle:
    """The e-detectors as they are written, one stream, one bet and one row at a time."""

    def __init__(self, bets: np.ndarray, threshold: float) -> None:
        self.bets, self.c = bets, threshold
        self.s = np.zeros(bets.shape[1])
        self.w = np.zeros(bets.shape[1])
        self.begun = np.zeros(bets.shape[1])
        self.latched = False

    def step(self, x: float, time: float) -> bool:
        most = len(self.s) * self.c * CEILING
        self.begun = np.where(self.w <= 1.0, time, self.begun)
        self.w = np.minimum(np.maximum(self.w, 1.0) * (self.bets[0] + self.bets[1] * x), most)
        self.s = np.minimum((self.s + 1.0) * (self.bets[0] + self.bets[1] * x), most)
        evidence = self.s.mean()
        if evidence >= self.c:
            self.latched = True
            return True
        if self.latched and (evidence**2 <= self.c or self.w.mean() ** 4 <= self.c):
            self.latched, self.s, self.w = False, np.zeros_like(self.s), np.zeros_like(self.w)
        return False


def bets(deltas: list[float]) -> np.ndarray:
    sizes = np.array([0.2, 0.45, 1.0, -0.2, -0.45, -1.0])
    return np.array([[1 / (1 + abs(sizes) * d), sizes / (1 + abs(sizes) * d)] for d in deltas])


def fresh(streams: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    state, runs = np.zeros((streams, at.STREAM)), np.zeros((streams, 6, at.RUN))
    return state, runs, np.zeros(at.CLOCK), np.zeros((streams, 2, at.BINS))


def fold(ranks: np.ndarray, c: np.ndarray, held: Any, cuts: list[int], repeat: float = 0.0) -> list[int]:
    """Rows that it stops at, in absolute terms, over batches that end at ``cuts``."""
    stops, times = [], 1000.0 + np.arange(len(ranks)) * 1.0
    for low, high in zip([0, *cuts], [*cuts, len(ranks)], strict=True):
        piece, row = ranks[low:high], -1
        while True:
            row = KERNELS.drift_fold(
                piece + 10.0, times[low:high], row + 1, piece, c, bets([0.01] * len(c)), repeat, *held
            )
            if row >= len(piece):
                break
            stops.append(low + row)
    return stops


def moving(rows: int = 5000) -> np.ndarray:
    """Ranks of three streams: steady; up between 1,000 and 1,400; down from 2,000 on, with gaps."""
    rng = np.random.default_rng(5)
    ranks = rng.random((rows, 3)) - 0.5
    ranks[1000:1400, 1] = np.clip(ranks[1000:1400, 1] + 0.25, -0.49, 0.49)
    ranks[2000:, 2] = np.clip(ranks[2000:, 2] - 0.2, -0.49, 0.49)
    ranks[::5, 2] = np.nan
    return ranks


def test_the_fold_is_what_the_definition_gives() -> None:
    ranks, c = moving(), np.array([1e6, 1e6, 1e4])
    held = fresh(3)
    stops = fold(ranks, c, held, [])
    oracles = [Oracle(one, threshold) for one, threshold in zip(bets([0.01] * 3), c, strict=True)]
    expected = []
    for i, row in enumerate(ranks):
        said = [one.step(x, 1000.0 + i) for one, x in zip(oracles, row, strict=True) if not np.isnan(x)]
        if any(said):
            expected.append(i)
    assert stops == expected
    assert 1000 < stops[0] < 1200
    state, runs, clock, _ = held
    for stream, one in enumerate(oracles):
        assert runs[stream, :, at.S] == pytest.approx(one.s, rel=1e-12)
        assert runs[stream, :, at.W] == pytest.approx(one.w, rel=1e-12)
        assert (one.w <= one.s).all()
        assert runs[stream, :, at.START].tolist() == one.begun.tolist()
        assert state[stream, at.COUNT] == np.isfinite(ranks[:, stream]).sum()
        assert state[stream, at.SUM_X] == pytest.approx(np.nansum(ranks[:, stream]), abs=1e-9)
        assert state[stream, at.SUM_VALUE] == pytest.approx(np.nansum(ranks[:, stream] + 10.0), abs=1e-8)
    assert state[:, at.LATCHED].tolist() == [0.0, 0.0, 1.0]
    assert clock[at.LATCHES] == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_any_cut_of_the_stream_gives_the_same_state_to_the_last_bit(seed: int) -> None:
    ranks, c = moving(), np.full(3, 1e5)
    cuts = sorted(np.random.default_rng(seed).choice(np.arange(1, len(ranks)), 200, replace=False).tolist())
    whole, pieces = fresh(3), fresh(3)
    assert fold(ranks, c, whole, [], 30.0) == fold(ranks, c, pieces, cuts, 30.0)
    for one, other in zip(whole, pieces, strict=True):
        assert one.tobytes() == other.tobytes()


def test_it_speaks_at_a_bounded_pace() -> None:
    stops = np.array(fold(moving(), np.full(3, 1e4), fresh(3), [], 60.0))
    assert np.diff(stops).min() == 60  # a row a second
    assert 20 < len(stops) <= (5000 - 1000) // 60


def test_where_it_leaves_a_run_the_sums_are_of_that_run() -> None:
    ranks = moving()
    state, runs, clock, bins = fresh(3)
    fold(ranks[:1200], np.full(3, 1e12), (state, runs, clock, bins), [])
    run = runs[1, int(runs[1, :, at.W].argmax())]
    onset = int(run[at.START] - 1000.0)
    assert 960 <= onset <= 1030
    assert state[1, at.COUNT] - run[at.COUNT_0] == 1200 - onset
    assert state[1, at.SUM_X] - run[at.SUM_X_0] == pytest.approx(ranks[onset:1200, 1].sum(), abs=1e-9)


def test_the_mean_time_to_a_false_alarm_keeps_its_bound() -> None:
    """Exchangeable ranks without concession, 400 streams: an e-detector needs c rows in the mean."""
    rng = np.random.default_rng(11)
    c, rows, streams = 300.0, 3000, 400
    ranks = rng.random((rows, streams)) - 0.5
    plain = bets([0.0] * streams)
    state, runs, clock, bins = fresh(streams)
    first = np.full(streams, rows)
    row = -1
    while (
        row := KERNELS.drift_fold(
            ranks, np.arange(rows) * 1.0, row + 1, ranks, np.full(streams, c), plain, 0.0, state, runs, clock, bins
        )
    ) < rows:
        hit = np.flatnonzero(runs[:, :, at.S].mean(axis=1) >= c)
        first[hit] = np.minimum(first[hit], row)
    assert c < first.mean() < 1.5 * c, "the theorem says at least c, and it is not wasteful"
    assert first.max() < rows


def test_days_are_counted() -> None:
    clock = np.zeros(at.CLOCK)
    times = np.array([0.0, 1.0, 86_400.0, 86_401.0, 86_402.0, 5 * 86_400.0])
    nothing = np.zeros((6, 0))
    for stop, today, yesterday in ((2, 2, 0), (5, 3, 2), (6, 1, 0)):
        low = int(clock[at.TODAY] + clock[at.YESTERDAY]) if stop < 6 else 5
        KERNELS.drift_fold(
            nothing[low:stop],
            times[low:stop],
            0,
            nothing[low:stop],
            np.zeros(0),
            np.zeros((0, 2, 6)),
            0.0,
            np.zeros((0, at.STREAM)),
            np.zeros((0, 6, at.RUN)),
            clock,
            np.zeros((0, 2, at.BINS)),
        )
        assert (clock[at.TODAY], clock[at.YESTERDAY]) == (today, yesterday)


def test_the_latest_ranks_are_counted_by_sixteenth_in_two_blocks() -> None:
    ranks = np.random.default_rng(6).random((1_000, 2)) - 0.5
    ranks[::3, 1] = np.nan
    ranks[5, 0], ranks[6, 0] = -0.7, 0.9  # a season's hour may carry a rank beyond its ends
    held = fresh(2)
    fold(ranks, np.full(2, 1e12), held, [3, 500])
    for stream in range(2):
        own = ranks[np.isfinite(ranks[:, stream]), stream]
        begun = (len(own) - 1) // at.BLOCK * at.BLOCK
        for block, part in ((0, own[begun:]), (1, own[begun - at.BLOCK : begun])):
            places = np.clip(np.floor((part + 0.5) * at.BINS), 0, at.BINS - 1).astype(int)
            assert held[3][stream, block].tolist() == np.bincount(places, minlength=at.BINS).tolist()


# rows


def admit(rows: list[tuple[int, int, float]], limits: tuple[float, float, float], slots: int = 64) -> list[bool]:
    clients, bodies, times = (np.array(column) for column in zip(*rows, strict=True))
    table, window = np.zeros((slots, 4), np.uint64), np.array([0.0, -np.inf, 0.0])
    return KERNELS.drift_admit(
        clients.astype(np.uint64), bodies.astype(np.uint64), times.astype(float), table, window, np.array(limits)
    ).tolist()


def test_an_exact_retry_does_not_count() -> None:
    rows = [(1, 7, 0.0), (1, 7, 1.0), (2, 7, 2.0), (1, 7, 3.0), (1, 8, 4.0), (1, 7, 5.0), (1, 0, 6.0), (1, 0, 7.0)]
    assert admit(rows, (100, 60, 100)) == [True, False, True, False, True, True, True, True]


def test_a_client_counts_with_its_share_of_a_window() -> None:
    rows = [(1, 0, float(i)) for i in range(5)] + [(2, 0, 5.0), (1, 0, 6.0), (1, 0, 59.9), (1, 0, 60.0), (1, 0, 61.0)]
    assert admit(rows, (100, 60, 2)) == [True, True, False, False, False, True, False, False, True, True]
    # a window is over when it is full, however short
    busy = [(1, 0, 0.0), (1, 0, 0.1), (1, 0, 0.2), (2, 0, 0.3), (1, 0, 0.4)]
    assert admit(busy, (3, 60, 2)) == [True, True, False, True, True]


def test_unknown_clients_have_no_share_to_exceed_but_do_retry() -> None:
    rows = [(0, 0, float(i)) for i in range(5)] + [(0, 9, 5.0), (0, 9, 6.0)]
    assert admit(rows, (100, 60, 2)) == [True] * 6 + [False]


def test_clients_of_one_slot_push_each_other_out() -> None:
    assert admit([(1, 7, 0.0), (65, 7, 1.0), (1, 7, 2.0)], (100, 60, 1)) == [True, True, True]


def test_time_that_goes_back_opens_a_window() -> None:
    rows = [(1, 0, 1000.0), (1, 0, 1001.0), (1, 0, 500.0)]
    assert admit(rows, (100, 60, 1)) == [True, False, True]


def test_projection_is_what_the_definition_gives() -> None:
    rng = np.random.default_rng(2)
    n, d, m = 50, 8, 5
    vectors = rng.standard_normal((n, d)).astype(np.float32)
    vectors[7, 3], vectors[9, 0] = np.nan, np.inf
    centre, medians, axes = rng.standard_normal(d), rng.standard_normal(d), rng.standard_normal((d, m))
    widths = rng.random(d) + 0.5
    widths[2] = np.inf
    got = KERNELS.drift_project(vectors, centre, medians, widths, axes, 4.0)
    with np.errstate(invalid="ignore"):  # whether infinity times what is not finite is told hangs on the processor
        z = (vectors.astype(float) - centre) @ axes
    distance = (z**2).sum(axis=1)
    expected = np.column_stack(
        (
            z,
            (np.abs(vectors - medians) / widths).mean(axis=1),
            distance,
            (z[:, :3] ** 2).sum(axis=1),
            (z[:, 3:] ** 2).sum(axis=1),
            np.abs(distance - 4.0),
        )
    )
    expected[[7, 9]] = np.nan
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_long_vectors_fold_into_a_sketch_that_keeps_inner_products() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.standard_normal((2, 4000, 384)).astype(np.float32)
    folded = [KERNELS.drift_sketch(side, 64) for side in (one, other)]
    assert folded[0].shape == (4000, 64)
    before, after = (one * other).sum(axis=1), (folded[0] * folded[1]).sum(axis=1)
    assert abs((after - before).mean()) < 5 * (after - before).std() / np.sqrt(4000)
    assert (folded[0] ** 2).sum() == pytest.approx((one**2).sum(), rel=0.02)
    # every process, and every later version, must fold alike: SplitMix64's published outputs from seed 0
    unit = KERNELS.drift_sketch(np.eye(128, dtype=np.float32)[:4], 64)
    assert [(int(np.flatnonzero(row)[0]), int(row.sum())) for row in unit] == [(47, 1), (52, -1), (15, -1), (44, 1)]
