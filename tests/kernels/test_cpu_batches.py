from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from mlsecd.errors import KernelError
from mlsecd.kernels import counters, cpu, signatures
from mlsecd.kernels.mmd import mmd_squares
from mlsecd.kernels.ragged import FAR, Windows, nearest_means
from tests.kernels import batches
from tests.kernels.batches import draw

EDGES = (1, 31, 32, 33, 255, 256, 257)


def test_the_backend_has_what_the_signatures_ask_for() -> None:
    for name, asked in inspect.getmembers(signatures.BatchKernels, inspect.isfunction):
        if not name.startswith("_"):
            there = inspect.signature(getattr(cpu, name)).parameters
            assert list(there) == list(inspect.signature(asked).parameters)[1:], name


# windows


@pytest.mark.parametrize("dims", [1, 3, 4, 32, 33, 64])
def test_windows_are_what_looking_at_every_row_gives(dims: int) -> None:
    asked = batches.windows(dims, dims, [0, 1, 9, 10, 11, *EDGES, 1024])
    found = cpu.window_neighbours(asked)
    squares, counts = batches.window_oracle(asked)
    assert found.squares.tolist() == squares.tolist()
    assert found.counts.tolist() == counts.tolist()
    assert counts.any(axis=0).all()


def test_the_furthest_rows_of_the_widest_window_do_not_overflow() -> None:
    codes = np.full((1024, 12), -128, np.int8)
    codes[:, 11] = 127
    near = np.full(12, FAR, np.int32)
    one = np.array([11], np.int32)
    found = cpu.window_neighbours(Windows(codes, np.zeros(12, np.int16), one, np.zeros(1, np.int32), near))
    assert found.squares[0].tolist() == [1024 * 255**2] * 10
    assert found.counts[0].tolist() == [11, 0, 0, 0]


def test_the_mean_of_ten_needs_ten() -> None:
    asked = batches.windows(1, 8, [9, 10, 40])
    squares = cpu.window_neighbours(asked).squares
    means = nearest_means(squares)
    assert np.isnan(means[0])
    assert means[1:] == pytest.approx(np.sqrt(squares[1:].astype(float)).mean(axis=1))
    assert means[2] == pytest.approx(
        cpu.nearest_mean(np.concatenate((squares[2], squares[2][-1:] + 1)).astype(np.int32), 10)
    )


def test_no_query_is_no_work() -> None:
    asked = batches.windows(1, 8, [5])._replace(queries=np.zeros(0, np.int32), starts=np.zeros(0, np.int32))
    assert cpu.window_neighbours(asked).squares.shape == (0, 10)


@pytest.mark.parametrize(("change", "word"), [
    ({"near": np.zeros(40, np.int32)}, "longer than the limit of 39"),
    ({"queries": np.array([10_000], np.int32), "starts": np.zeros(1, np.int32)}, "queries"),
    ({"queries": np.array([-1], np.int32), "starts": np.zeros(1, np.int32)}, "queries"),
    ({"queries": np.array([5], np.int32), "starts": np.array([-1], np.int32)}, "starts"),
    ({"queries": np.array([5], np.int32), "starts": np.array([6], np.int32)}, "starts"),
    ({"labels": np.zeros(3, np.int16)}, "labels"),
    ({"codes": np.zeros((8, 400), np.uint8)}, "codes"),
    ({"codes": np.zeros((400, 8), np.int8).T}, "contiguous"),
    ({"codes": np.zeros(400, np.int8)}, "codes"),
])  # fmt: skip
def test_windows_that_cannot_be_answered_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(KernelError, match=word):
        cpu.window_neighbours(batches.windows(1, 8, [100])._replace(**change))


# kernel sums


@pytest.mark.parametrize(("n", "dims", "divisions"), [
    (2, 1, 1), (31, 3, 0), (63, 5, 127), (64, 4, 128), (65, 33, 129), (257, 64, 300),
])  # fmt: skip
def test_kernel_sums_are_those_of_the_whole_matrix(n: int, dims: int, divisions: int) -> None:
    case = batches.mmd_case(n, n, dims, divisions)
    sums, wanted = cpu.mmd_sums(*case), batches.mmd_oracle(*case)
    np.testing.assert_allclose(sums.rows, wanted[1], rtol=1e-6)
    np.testing.assert_allclose(sums.inside, wanted[0], rtol=1e-6, atol=1e-9)


def test_mmd_is_the_unbiased_estimate() -> None:
    x, members, gammas = batches.mmd_case(3, 40, 4, 6)
    members[:, 5] = 0  # nobody on one side
    found = mmd_squares(cpu.mmd_sums(x, members, gammas), members)
    wide = x.astype(float)
    kernel = np.mean([np.exp(-g * ((wide[:, None] - wide[None]) ** 2).sum(axis=2)) for g in gammas], axis=0)
    for p in range(5):
        a, b = np.flatnonzero(members[:, p]), np.flatnonzero(members[:, p] == 0)
        inside = [kernel[np.ix_(s, s)].sum() - len(s) for s in (a, b)]
        wanted = inside[0] / (len(a) * (len(a) - 1)) + inside[1] / (len(b) * (len(b) - 1))
        assert found[p] == pytest.approx(wanted - 2 * kernel[np.ix_(a, b)].mean(), abs=1e-7)
    assert np.isnan(found[5])


def test_equal_rows_have_kernel_one_and_distant_ones_zero() -> None:
    members = np.ones((5, 1), np.uint8)
    equal = np.full((5, 8), 3.0, np.float32)
    assert cpu.mmd_sums(equal, members, np.ones(1)).inside[0] == 10.0
    assert cpu.mmd_sums(equal * np.arange(5)[:, None].astype(np.float32) * 1e4, members, np.ones(1)).inside[0] == 0.0


@pytest.mark.parametrize("features", [1, 33, 257])
def test_random_features_approximate_the_kernel(features: int) -> None:
    rng = draw(features)
    x, w = rng.normal(size=(31, 5)).astype(np.float32), rng.normal(size=(5, features)).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, features).astype(np.float32)
    wanted = np.sqrt(2 / features) * np.cos(x.astype(float) @ w.astype(float) + phases)
    np.testing.assert_allclose(cpu.random_features(x, w, phases), wanted, atol=1e-5)


def test_wrong_samples_are_refused() -> None:
    x, members, gammas = batches.mmd_case(1, 10, 4, 3)
    bad = x.copy()
    bad[3, 2] = np.nan
    wrong: list[tuple[Any, Any, Any]] = [
        (x.astype(np.float64), members, gammas), (bad, members, gammas), (x[:1], members[:1], gammas),
        (x, members[:9], gammas), (x, members * 2, gammas), (x, members.astype(bool), gammas),
        (x, members, -gammas), (x, members, np.zeros(0)), (x, members, np.ones(5)), (x, members, np.array([np.nan])),
        (np.asfortranarray(x), members, gammas), (x[:, 0], members, gammas),
    ]  # fmt: skip
    for case in wrong:
        with pytest.raises(KernelError):
            cpu.mmd_sums(*case)
    with pytest.raises(KernelError):
        cpu.random_features(x, np.zeros((5, 3), np.float32), np.zeros(3, np.float32))


# features


@pytest.mark.parametrize("n", [0, *EDGES])
def test_histograms_and_distances_are_what_counting_gives(n: int) -> None:
    values, reference, edges = batches.feature_case(n, n, 3 * n + 1, min(n + 1, 300))
    assert cpu.histograms(values, edges).tolist() == batches.histogram_oracle(values, edges).tolist()
    numerators, used = cpu.ks_distances(reference, values)
    assert numerators.tolist() == batches.ks_oracle(reference, values).tolist()
    assert used.tolist() == (~np.isnan(values)).sum(axis=1).tolist()


HUGE, TINY = np.float32(3e38), np.float32(1e-45)


@pytest.mark.parametrize("limits", [
    [-HUGE, -1.0, 0.0, 1.0, HUGE], [-np.inf, -3.0, 3.0], [-3.0, 3.0, np.inf], [-np.inf, np.inf], [np.inf, np.inf],
    [0.0, TINY, 2 * TINY, 3 * TINY], [5.0] * 9, [7.0], [0.0, *([1e-7] * 20), 1.0], [1.0, 1.0000001, 1e30],
    [-1e-30, -0.0, 0.0, 1e-30, HUGE],
], ids=str)  # fmt: skip
def test_a_grid_finds_the_place_of_every_value(limits: list[float]) -> None:
    """Whatever the limits are: all in one cell, without width, wider than float32 or next to each other."""
    edges = np.array([limits], np.float32)
    near = np.concatenate([np.nextafter(edges[0], np.float32(way)) for way in (-np.inf, 0.0, np.inf)])
    extra = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, HUGE, -HUGE, TINY, -TINY, 1.0], np.float32)
    values = np.tile(np.concatenate((edges[0], near, extra, draw(1).normal(0, 4, 40).astype(np.float32))), 30)[None]
    assert cpu.histograms(values, edges).tolist() == batches.histogram_oracle(values, edges).tolist()
    numerators, _ = cpu.ks_distances(edges, values)
    assert numerators.tolist() == batches.ks_oracle(edges, values).tolist()


def test_wrong_features_are_refused() -> None:
    values, reference, edges = batches.feature_case(1, 50, 40, 7)
    holed = reference.copy()
    holed[1, -1] = np.nan
    for one in (reference[:, ::-1].copy(), holed, reference[:2], reference.astype(np.float64), reference[:, :0]):
        with pytest.raises(KernelError):
            cpu.ks_distances(one, values)
    for one in (edges[:, ::-1].copy(), edges[:2], edges[:, :0], np.zeros((3, 1025), np.float32), edges[0]):
        with pytest.raises(KernelError):
            cpu.histograms(values, one)
    with pytest.raises(KernelError):
        cpu.histograms(values.T.copy().T, edges)


# sketches


@pytest.mark.parametrize("precision", [4, 6, 12, 16])
def test_distinct_counts_keep_the_highest_rank(precision: int) -> None:
    rng = draw(precision)
    registers = rng.integers(0, 3, (3, 1 << precision)).astype(np.uint8)
    slots, hashes = rng.integers(0, 3, 500).astype(np.int32), rng.integers(0, 2**64, 500, dtype=np.uint64)
    hashes[:4] = 0, 2**64 - 1, 1, 1 << (64 - precision)
    wanted = batches.hll_oracle(registers, slots, hashes)
    cpu.hll_add(registers, slots, hashes)
    assert np.array_equal(registers, wanted)


@pytest.mark.parametrize("seen", [0, 1, 10, 300, 5_000, 200_000])
def test_distinct_counts_are_right_at_every_size(seen: int) -> None:
    registers = np.zeros((20, 1024), np.uint8)
    for key in range(20):
        hashes = draw(key).integers(0, 2**64, seen, dtype=np.uint64)
        cpu.hll_add(registers, np.full(seen, key, np.int32), hashes)
        cpu.hll_add(registers, np.full(seen, key, np.int32), hashes)  # what was seen does not count again
    counts = counters.hll_count(registers)
    assert abs(counts.mean() - seen) <= 4 * 1.04 / np.sqrt(1024) * seen / np.sqrt(20) + 1e-9
    assert np.abs(counts - seen).max() <= 4 * 1.04 / np.sqrt(1024) * seen + 1e-9


def test_full_registers_are_read_as_infinitely_many() -> None:
    assert counters.hll_count(np.full((1, 16), 61, np.uint8))[0] == np.inf
    assert np.isfinite(counters.hll_count(np.full((1, 16), 60, np.uint8))[0])


def test_counts_of_frequent_items_are_never_too_low() -> None:
    rng = draw(1)
    table = np.zeros((4, 256), np.int64)
    hashes = rng.integers(0, 2**64, 40, dtype=np.uint64)[rng.integers(0, 40, 3000)]
    amounts = rng.integers(0, 9, 3000)
    wanted = batches.countmin_oracle(table, hashes, amounts)
    cpu.countmin_add(table, hashes, amounts)
    assert np.array_equal(table, wanted)
    for item in np.unique(hashes):
        true = int(amounts[hashes == item].sum())
        read = int(cpu.countmin_read(table, np.array([item]))[0])
        assert true <= read <= true + 2.72 / 256 * amounts.sum()


def test_bins_are_32_to_an_octave() -> None:
    rng = draw(2)
    odd = [0.0, -0.0, -1.0, np.inf, -np.inf, 2.0**-32, 2.0**32, 1e-30, 1e30, 1.0, 2.0, np.float32(1.99999)]
    values = np.concatenate((rng.lognormal(0, 6, 3000), odd)).astype(np.float32)
    counts, wanted = np.zeros((1, counters.BINS), np.int64), np.zeros(counters.BINS, int)
    for value in values.tolist():
        wanted[batches.bin_oracle(value)] += 1
    with_nan = np.concatenate((values, np.full(5, np.nan), -np.full(5, np.nan))).astype(np.float32)
    cpu.quantile_add(counts, np.zeros(len(with_nan), np.int32), with_nan)
    assert counts[0].tolist() == wanted.tolist()


def test_quantiles_are_within_the_width_of_half_a_bin() -> None:
    values = np.sort(draw(3).lognormal(0, 3, 4001)).astype(np.float32)
    counts = np.zeros((2, counters.BINS), np.int64)
    cpu.quantile_add(counts, np.zeros(4001, np.int32), values)
    for q in (0.0, 0.01, 0.5, 0.99, 1.0):
        true = values[max(int(np.ceil(q * 4001)), 1) - 1]
        assert counters.quantile_read(counts, q)[0] == pytest.approx(true, rel=1 / 64)
        assert np.isnan(counters.quantile_read(counts, q)[1])
    with pytest.raises(KernelError):
        counters.quantile_read(counts, 1.5)


@pytest.mark.parametrize("dims", [1, 31, 33, 64])
def test_moments_are_exact_and_merge(dims: int) -> None:
    rng = draw(dims)
    slots, codes = rng.integers(0, 4, 700).astype(np.int32), rng.integers(-128, 128, (700, dims)).astype(np.int8)
    made = [(np.zeros(4, np.int64), np.zeros((4, dims), np.int64), np.zeros((4, dims, dims), np.int64))] * 1
    whole, parts = made[0], tuple(array.copy() for array in made[0])
    cpu.moments_add(*whole, slots, codes)
    for start, stop in ((0, 1), (1, 1), (1, 400), (400, 700)):
        cpu.moments_add(*parts, slots[start:stop].copy(), codes[start:stop].copy())
    for key in range(4):
        rows = codes[slots == key].astype(np.int64)
        assert whole[0][key] == len(rows)
        assert np.array_equal(whole[1][key], rows.sum(axis=0))
        assert np.array_equal(whole[2][key], rows.T @ rows)
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one, other)


def test_many_rows_of_one_key_do_not_overflow() -> None:
    counts, sums, products = np.zeros(1, np.int64), np.zeros((1, 2), np.int64), np.zeros((1, 2, 2), np.int64)
    cpu.moments_add(counts, sums, products, np.zeros(150_000, np.int32), np.full((150_000, 2), -128, np.int8))
    assert products[0].tolist() == [[150_000 * 128**2] * 2] * 2
    assert sums[0].tolist() == [-150_000 * 128] * 2


def test_wrong_sketches_are_refused() -> None:
    slots, hashes = np.zeros(3, np.int32), np.zeros(3, np.uint64)
    good = np.zeros((2, 64), np.uint8)
    for registers, whose in (
        (good[:, :8].copy(), slots), (good[:, :48].copy(), slots), (good.astype(np.int8), slots), (good[0], slots),
        (good, slots - 1), (good, slots + 2), (good, slots.astype(np.int64)), (good, slots[:2]),
        (good.T.copy().T, slots),
    ):  # fmt: skip
        with pytest.raises(KernelError):
            cpu.hll_add(registers, whose, hashes)
    for table in (np.zeros((9, 64), np.int64), np.zeros((2, 48), np.int64), np.zeros((2, 64), np.int32), np.zeros(64)):
        with pytest.raises(KernelError):
            cpu.countmin_add(table, hashes, np.zeros(3, np.int64))
    with pytest.raises(KernelError):
        cpu.countmin_read(np.zeros((2, 64), np.int64), hashes.astype(np.int64))
    with pytest.raises(KernelError):
        cpu.quantile_add(np.zeros((2, 100), np.int64), slots, np.zeros(3, np.float32))
    with pytest.raises(KernelError):
        cpu.quantile_add(np.zeros((2, counters.BINS), np.int64), slots + 5, np.zeros(3, np.float32))
    state = np.zeros(2, np.int64), np.zeros((2, 8), np.int64), np.zeros((2, 8, 8), np.int64)
    for rows in (np.zeros((3, 7), np.int8), np.zeros((2, 8), np.int8), np.zeros((3, 65), np.int8), np.zeros((3, 8))):
        with pytest.raises(KernelError):
            cpu.moments_add(*state, slots, rows)
