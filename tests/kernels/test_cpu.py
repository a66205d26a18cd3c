from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import numpy as np
import pytest

from mlsecd.kernels import cpu, formulas

SIZES = (1, 31, 32, 33, 255, 257)
NAMES = cpu.CHANNELS
WINDOW = 48
ROW_CHANNELS = NAMES.index("knn")


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_backend_has_what_the_signatures_ask_for() -> None:
    for name, asked in inspect.getmembers(formulas.AccountKernels, inspect.isfunction):
        if not name.startswith("_"):
            there = getattr(cpu, name).py_func
            assert list(inspect.signature(there).parameters) == list(inspect.signature(asked).parameters)[1:], name


# Vectors


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("width", SIZES)
def test_project_is_a_matrix_product(rows: int, width: int) -> None:
    rng = draw(width)
    x, offset = rng.normal(size=(rows, width)).astype(np.float32), rng.normal(size=width).astype(np.float32)
    matrix = rng.normal(size=(width, min(width, 64))).astype(np.float32)
    wanted = (x.astype(np.float64) - offset.astype(np.float64)) @ matrix.astype(np.float64)
    np.testing.assert_allclose(cpu.project(x, offset, matrix), wanted, rtol=2e-5, atol=2e-4)


def test_a_row_is_projected_alike_in_any_batch() -> None:
    rng = draw(0)
    x, matrix = rng.normal(size=(257, 33)).astype(np.float32), rng.normal(size=(33, 31)).astype(np.float32)
    offset = np.zeros(33, np.float32)
    whole = cpu.project(x, offset, matrix)
    for start, stop in ((0, 1), (3, 8), (100, 257)):
        assert np.array_equal(cpu.project(x[start:stop].copy(), offset, matrix), whole[start:stop])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_no_vector_gets_past_the_limits(value: float) -> None:
    x = np.array([[value, -value, 1.0, 0.0]], np.float32)
    u = cpu.project(x, np.zeros(4, np.float32), np.full((4, 3), 1e3, np.float32))
    assert np.isfinite(u).all()
    assert (np.abs(u) <= 1e4).all()
    assert (np.abs(cpu.quantise(u, 0.1).astype(int)) == 127).all()


@pytest.mark.parametrize("size", SIZES)
def test_quantise_rounds_and_clips(size: int) -> None:
    u = draw(size).normal(0, 4, (3, size)).astype(np.float32)
    wanted = np.clip(np.rint(u.astype(np.float64) / 0.07), -127, 127)
    assert np.array_equal(cpu.quantise(u, 0.07), wanted.astype(np.int8))
    assert not cpu.quantise(np.zeros((2, size), np.float32), 0.07).any()


@pytest.mark.parametrize("dims", SIZES)
def test_mahalanobis_is_the_quadratic_form(dims: int) -> None:
    rng = draw(dims)
    spread = rng.normal(size=(dims, dims + 3))
    precision = np.linalg.inv(spread @ spread.T / dims + np.eye(dims))
    whiten = np.linalg.cholesky(precision)
    means = rng.normal(size=(4, dims))
    u = rng.normal(size=(9, dims)).astype(np.float32)
    classes = rng.integers(0, 4, 9).astype(np.int32)
    away = u.astype(np.float64) - means[classes]
    got = cpu.mahalanobis(u, whiten.astype(np.float32), (means @ whiten).astype(np.float32), classes)
    np.testing.assert_allclose(got, np.einsum("ni,ij,nj->n", away, precision, away), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dims", SIZES)
def test_squared_lengths(dims: int) -> None:
    u = draw(dims).normal(0, 3, (7, dims)).astype(np.float32)
    whole = cpu.squared_lengths(u)
    np.testing.assert_allclose(whole, (u.astype(np.float64) ** 2).sum(axis=1), rtol=1e-12)
    assert cpu.squared_lengths(u[3:5].copy()).tolist() == whole[3:5].tolist()
    assert cpu.squared_lengths(np.zeros((1, dims), np.float32)).tolist() == [0.0]


def test_top_scores() -> None:
    values = np.array([0.2, 0.7, 0.1, 0.9, np.nan, 0.3], np.float32)
    np.testing.assert_array_equal(cpu.top_scores(np.array([0, 3, 3, 4]), values), np.float32([0.7, np.nan, 0.9]))
    assert len(cpu.top_scores(np.array([0]), values)) == 0


def test_mark_sets_the_bits_of_its_cuts() -> None:
    fired, tried = np.array([1, 0, 0, 0], np.uint16), np.array([1, 0, 0, 0], np.uint16)
    cpu.mark(fired, tried, 4, np.array([0.5, 1.0, 2.5, np.nan]), np.array([1.0, 2.0]))
    assert fired.tolist() == [1, 0, 16 + 32, 0]
    assert tried.tolist() == [1 + 16 + 32, 16 + 32, 16 + 32, 0]


def test_vector_keys_tell_vectors_apart_and_zeros_not() -> None:
    x = draw(1).normal(size=(2_000, 5)).astype(np.float32)
    assert len(np.unique(cpu.vector_keys(x))) == 2_000
    zeros = np.array([[0.0, 0.0], [-0.0, 0.0]], np.float32)
    assert len(np.unique(cpu.vector_keys(zeros))) == 1
    state = 3
    for word in np.array([1.5, -2.0, 0.0], np.float32).view(np.uint32).tolist():
        state = formulas.mix(state, word)
    assert cpu.vector_keys(np.array([[1.5, -2.0, 0.0]], np.float32)).tolist() == [state]


def test_the_hash_is_murmur3s() -> None:
    # MurmurHash3_x86_32 of the four bytes 21 43 65 87, seed 0, before its final mix
    state = formulas.mix(0, 0x87654321)
    state ^= 4
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
        state = ((state ^ (state >> shift)) * multiplier) & 0xFFFFFFFF
    assert state == 0xF55B516B


@pytest.mark.parametrize("dims", SIZES)
@pytest.mark.parametrize("size", SIZES)
def test_squared_distances(size: int, dims: int) -> None:
    rng = draw(size * 1000 + dims)
    window = rng.integers(-127, 128, (dims, size + 5)).astype(np.int8)
    query = rng.integers(-127, 128, dims).astype(np.int8)
    out = np.empty(size, np.int32)
    cpu.squared_distances(window, query, out)
    assert np.array_equal(out, ((window[:, :size].astype(float) - query[:, None]) ** 2).sum(axis=0))


@pytest.mark.parametrize("size", [10, *SIZES[1:]])
def test_nearest_mean(size: int) -> None:
    squares = draw(size).integers(0, 50, size).astype(np.int32)  # with ties and zeros
    assert cpu.nearest_mean(squares, 10) == pytest.approx(np.sqrt(np.sort(squares)[:10]).mean(), rel=1e-12)
    assert cpu.nearest_mean(squares, 1) == math.sqrt(squares.min())


# Counts


def oracle_tail(k: int, n: int, a: float, b: float) -> float:
    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    terms = [math.exp(math.log(math.comb(n, j)) + log_beta(j + a, n - j + b) - log_beta(a, b)) for j in range(k, n + 1)]
    return -math.log10(math.fsum(terms))


@pytest.mark.parametrize(("a", "b"), [(5.0, 95.0), (0.02, 4.0), (1e-3, 10.0), (0.7, 1.0), (400.0, 600.0)])
@pytest.mark.parametrize("n", SIZES)
def test_beta_binomial_tails(n: int, a: float, b: float) -> None:
    for k in sorted({0, 1, n // 4, n // 2, n - 1, n}):
        got = formulas.beta_binomial_tail(k, n, a, b)
        if k * (a + b) <= n * a:
            assert got == 0.0
        else:
            assert got == pytest.approx(max(oracle_tail(k, n, a, b), 0.0), rel=1e-6, abs=1e-6)


def test_tails_stay_below_their_ceiling() -> None:
    assert formulas.beta_binomial_tail(2_047, 2_048, 1.0, 1e4) == formulas.MAX_TAIL


def test_tails_are_scaled() -> None:
    null = np.array([[5.0, 0.1], [95.0, 4.0], [2.0, 0.5]])
    tally = np.array([[20, 3], [100, 10]], np.int32)
    wanted = [2.0 * oracle_tail(20, 100, 5.0, 95.0), 0.5 * oracle_tail(3, 10, 0.1, 4.0)]
    np.testing.assert_allclose(cpu.tails(tally, null), wanted, rtol=1e-6)


# The whole scan, against a plain retelling of it


def plan(window: int = WINDOW) -> Any:
    null = np.tile(np.array([[0.5], [9.5], [0.8]]), len(NAMES))
    fills = np.arange(window + 1)
    near = (4_000 - 30 * fills).astype(np.int32)
    law, shares = np.array([4.1, -0.2]), np.array([0.2, 0.3, 1.0])  # labels 0 and 1 are known classes
    return cpu.Plan(null, near, 5.0 - 0.01 * fills, np.array([0.1, 0.4]), law, shares, np.array([0.1, 0.6]))


def rows(seed: int, n: int, dims: int = 5) -> Any:
    rng = draw(seed)
    codes = rng.normal(0, 30, (n, dims)).round().clip(-127, 127).astype(np.int8)
    for i in range(1, n):  # variants, returns to long ago, and exact repeats
        kind = rng.random()
        back = i - int(rng.integers(1, min(i, 60) + 1))
        if kind < 0.3:
            codes[i] = np.clip(codes[back].astype(int) + rng.integers(-8, 9, dims), -127, 127)
        elif kind < 0.4:
            codes[i] = codes[back]
    keys = np.array([hash(tuple(code)) & 0xFFFF for code in codes.tolist()], np.uint32)
    labels = rng.integers(-1, 3, n).astype(np.int16)
    tried, some, others = rng.integers(0, 1 << ROW_CHANNELS, (3, n)).astype(np.uint16)
    fired = tried & some & others
    written = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, bool)
    return cpu.Rows(codes, labels, keys, fired, tried, np.arange(n) * 10.0, *written)


def account(window: int = WINDOW, dims: int = 5) -> Any:
    zeros = np.zeros
    channels = len(NAMES)
    return cpu.Account(
        zeros((dims, window), np.int8), zeros(window, np.int16), zeros(window, np.uint32), zeros(1, np.int64),
        zeros(2, np.int64), zeros((2, channels), np.int16), zeros(channels),
    )  # fmt: skip


def comes_back(held: list[Any], squares: Any, label: int, plan: Any) -> float:
    """How much nearer than expected the nearest row but the last 32 is."""
    far = len(held) - 32
    among = float(far)
    if 0 <= label < len(plan.shares) - 1:
        among = max(among, sum(one[1] == label for one in held[:far]) / plan.shares[label])
    nearest = max(math.sqrt(squares[:far].min()), 0.5)
    return float(plan.law[0] + plan.law[1] * math.log(among) - math.log(nearest))


def window_bits(held: list[Any], code: Any, label: int, plan: Any) -> tuple[set[str], set[str], bool, list[float]]:
    """What fires, what is tried, whether it is an echo, crowding and coming back; ``held`` from oldest to newest."""
    count = len(held)
    if not count:
        return set(), set(), False, [math.nan, math.nan]
    squares = np.array([((one[0].astype(float) - code) ** 2).sum() for one in held])
    ages = count - 1 - np.arange(count)
    other = np.array([label >= 0 and one[1] >= 0 and one[1] != label for one in held])
    close = squares <= plan.near[count]
    far = (squares <= plan.near[max(count - 32, 0)]) & (ages >= 32)
    echo = bool(((squares <= plan.near[-1]) & (ages < 32)).any())
    if count < 10:
        return set(), set(), echo, [math.nan, math.nan]
    crowding = plan.typical[count] - math.log(max(np.sqrt(np.sort(squares)[:10]).mean(), 0.5))
    truths = {
        "knn": crowding > plan.cuts[0],
        "knn_tail": crowding > plan.cuts[1],
        "neardup": close.any(),
        "crowd": close.sum() >= 16,
        "flip": (close & other).any(),
        "far": far.any(),
        "farflip": (far & other).any(),
    }
    back = math.nan
    tried = {"knn", "knn_tail", "neardup", "crowd"} | ({"flip"} if label >= 0 else set())
    if count >= 42:
        tried |= {"far"} | ({"farflip"} if label >= 0 else set())
        if not echo:
            back = comes_back(held, squares, label, plan)
            truths |= {"back_tail": back > plan.back_cuts[0], "back_rare": back > plan.back_cuts[1]}
            tried |= {"back_tail", "back_rare"}
    return {name for name in tried if truths[name]}, tried, echo, [crowding, back]


def retell(rows: Any, plan: Any, window: int = WINDOW) -> tuple[Any, Any, int, list[float]]:
    """Tally, best, distinct rows and each row's score."""
    tally, best = np.zeros((2, len(NAMES)), int), np.zeros(len(NAMES))
    held: list[Any] = []
    distinct, scores = 0, []
    for i in range(len(rows.ts)):
        code, label, key = rows.codes[i].astype(float), int(rows.labels[i]), int(rows.keys[i])
        scores.append(0.0)
        if any(one[2] == key and ((one[0].astype(float) - code) ** 2).sum() <= len(code) for one in held):
            continue
        distinct += 1
        fired, tried, echo, measured = window_bits(held, code, label, plan)
        if not echo:
            fired |= {NAMES[c] for c in range(ROW_CHANNELS) if rows.fired[i] >> c & 1}
            tried |= {NAMES[c] for c in range(ROW_CHANNELS) if rows.tried[i] >> c & 1}
        np.testing.assert_allclose([rows.crowding[i], rows.back[i]], measured, rtol=1e-9)
        held = [*held, (rows.codes[i], label, key)][-window:]
        for c, name in enumerate(NAMES):
            tally[0, c] += name in fired
            tally[1, c] += name in tried
            if tally[1, c] >= 2_048:
                tally[:, c] //= 2
            if distinct == 10 or (distinct > 10 and name in fired):
                k, n = int(tally[0, c]), int(tally[1, c])
                tail = 0.8 * oracle_tail(k, n, 0.5, 9.5) if k / max(n, 1) > 0.05 else 0.0
                best[c] = max(best[c], tail)
                scores[-1] = max(scores[-1], tail)
    return tally, best, distinct, scores


@pytest.mark.parametrize("n", [1, 9, 10, 11, 33, 47, 48, 49, 97, 400])
def test_scan_counts_what_a_plain_retelling_counts(n: int) -> None:
    made, held, how = rows(n, n), account(), plan()
    assert cpu.scan(held, made, how, np.array([np.inf, 0.0, 0.0, 10.0]), 0, n) == (n, -1.0)
    tally, best, distinct, _ = retell(made, how)
    assert held.seen.tolist() == [n, distinct]
    assert held.pushed[0] == distinct
    assert np.array_equal(held.tally, tally)
    assert n < 400 or all(tally[0, NAMES.index(name)] for name in ("far", "back_tail", "back_rare"))
    np.testing.assert_allclose(held.best, best, rtol=1e-6, atol=1e-6)


@functools.cache
def scored() -> tuple[Any, list[float]]:
    """300 rows and the plain retelling's score of each."""
    made, how = rows(5, 300), plan()
    cpu.scan(account(), made, how, np.array([np.inf, 0.0, 0.0, 10.0]), 0, 300)
    return made, retell(made, how)[3]


def test_scan_stops_at_each_row_that_should_be_told() -> None:
    made, scores = scored()
    threshold = float(np.quantile(scores, 0.97))
    held, told, at = account(), [], 0
    while True:
        at, score = cpu.scan(held, made, plan(), np.array([threshold - 1e-9, 0.0, np.inf, 10.0]), at, 300)
        if score < 0:
            break
        told.append(at - 1)
        assert score == pytest.approx(scores[at - 1], rel=1e-6)
    assert told == [i for i, score in enumerate(scores) if score >= threshold]
    assert len(told) > 3


@pytest.mark.parametrize(("rise", "wait"), [(0.3, 1e9), (1e9, 300.0), (0.3, 300.0)])
def test_scan_waits_for_a_rise_or_for_time(rise: float, wait: float) -> None:
    made, scores = scored()
    threshold = float(np.quantile(scores, 0.7))
    over = [i for i, score in enumerate(scores) if score >= threshold]
    first = over[0]
    due = [i for i in over[1:] if scores[i] >= scores[first] + rise or made.ts[i] >= made.ts[first] + wait]
    held = account()
    end, _ = cpu.scan(held, made, plan(), np.array([threshold - 1e-9, 0.0, np.inf, 10.0]), 0, 300)
    assert end == first + 1
    gate = np.array([threshold - 1e-9, scores[first] + rise, made.ts[first] + wait, 10.0])
    end, score = cpu.scan(held, made, plan(), gate, end, 300)
    assert (end - 1, score >= 0) == ((due[0], True) if due else (299, False))


def test_scan_may_be_cut_anywhere() -> None:
    made, how, gate = rows(8, 200), plan(), np.array([np.inf, 0.0, 0.0, 10.0])
    whole, pieces = account(), account()
    cpu.scan(whole, made, how, gate, 0, 200)
    for start, stop in ((0, 1), (1, 50), (50, 50), (50, 163), (163, 200)):
        cpu.scan(pieces, made, how, gate, start, stop)
    for one, other in zip(whole, pieces, strict=True):
        assert np.array_equal(one, other)


def test_an_account_without_a_window_counts_the_rows_own_channels() -> None:
    made, held = rows(3, 100), account(window=0)
    cpu.scan(held, made, plan(), np.array([np.inf, 0.0, 0.0, 10.0]), 0, 100)
    assert held.pushed[0] == 0
    assert held.tally[1, :ROW_CHANNELS].all()
    assert not held.tally[1, ROW_CHANNELS:].any()


def test_old_counts_are_halved() -> None:
    n = 5_000
    rng = draw(4)
    made = rows(4, n, dims=2)._replace(
        codes=rng.integers(-127, 128, (n, 2)).astype(np.int8), tried=np.full(n, 1, np.uint16),
        fired=(np.arange(n) >= 4_000).astype(np.uint16), keys=np.arange(n, dtype=np.uint32),
    )  # fmt: skip
    held, how = account(dims=2), plan()._replace(near=np.full(WINDOW + 1, -1, np.int32))  # nothing is near
    cpu.scan(held, made, how, np.array([np.inf, 0.0, 0.0, 10.0]), 0, n)
    fired = tried = 0
    for i in range(n):
        fired, tried = fired + (i >= 4_000), tried + 1
        if tried >= 2_048:
            fired, tried = fired // 2, tried // 2
    assert held.tally[:, 0].tolist() == [fired, tried]
    assert fired > 0.4 * tried  # a thousand new ones outweigh four thousand old
