from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mlsecd.kernels import cpu
from mlsecd.windows.recent import Recent


@pytest.mark.parametrize("n", [0, 1, 31, 33])
@pytest.mark.parametrize("dims", [1, 7, 32])
def test_spread_is_the_whitened_row_cut_to_ordinary_length(n: int, dims: int) -> None:
    rng = np.random.default_rng(n + dims)
    u = rng.normal(0, 2, (n, dims)).astype(np.float32)
    whiten = rng.normal(0, 0.5, (dims, dims)).astype(np.float32)
    centroids = rng.normal(0, 1, (3, dims)).astype(np.float32)
    classes = rng.integers(0, 3, n).astype(np.int32)
    out = np.full((n, dims), np.nan, np.float32)
    squares = cpu.spread(u, whiten, centroids, classes, out)
    wanted = u.astype(np.float64) @ whiten.astype(np.float64) - centroids[classes]
    lengths = (wanted**2).sum(axis=1)
    np.testing.assert_allclose(squares, lengths, rtol=2e-5, atol=1e-5)
    wanted *= np.minimum(1.0, math.sqrt(dims) / np.sqrt(np.maximum(lengths, 1e-30)))[:, None]
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)


def test_spread_writes_into_columns_of_a_wider_array() -> None:
    values = np.zeros((2, 5), np.float32)
    eye = np.eye(2, dtype=np.float32)
    cpu.spread(np.ones((2, 2), np.float32), eye, np.zeros((1, 2), np.float32), np.zeros(2, np.int32), values[:, 1:3])
    assert values.tolist() == [[0, 1, 1, 0, 0]] * 2


def test_grades_of_a_score() -> None:
    grid = np.array([-np.inf, 1.0, 2.0, 3.0, np.inf])
    scores = np.array([0.5, 1.0, 1.5, 2.5, 99.0, np.nan, np.inf])
    out = np.zeros((7, 3), np.float32)
    cpu.grade(scores, np.array([1.5, 3.0]), grid, out)
    assert out[:, 0] == pytest.approx([0, 0, 0, 1, 1, 0.05, 1])
    assert out[:, 1] == pytest.approx([0, 0, 0, 0, 1, 0.005, 1])
    assert out[:, 2] == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.43, 0.3])


def oracle(codes: Any, labels: Any, keys: Any, near: int, limit: int) -> list[int]:
    """The docstring of `revisit`, row by row."""
    held: list[tuple[Any, int, int, bool]] = []
    out = []
    for code, label, key in zip(codes.astype(int), labels.tolist(), keys.tolist(), strict=True):
        trail = held[-limit:]
        squares = [int(((code - other) ** 2).sum()) for other, *_ in trail]
        repeat = any(s <= len(code) and key == k for s, (_, _, k, _) in zip(squares, trail, strict=True))
        if repeat:
            out.append(-1)
            continue
        close = [(place, one) for place, (s, one) in enumerate(zip(squares, trail, strict=True)) if s <= near]
        goes_on = any(place >= len(trail) - 3 for place, _ in close)
        left = [one for place, one in close if place < len(trail) - 3 and not one[3]]
        flipped = any(label >= 0 and one[1] >= 0 and one[1] != label for one in left)
        out.append(0 if goes_on or not left else 3 if flipped else 1)
        held.append((code, label, key, goes_on))
    return out


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("step", [1, 7, 500])
def test_revisits_are_told_as_the_oracle_tells_them(seed: int, step: int) -> None:
    rng = np.random.default_rng(seed)
    places = rng.integers(-60, 60, (12, 4))
    at = rng.integers(0, 12, 400)
    codes = (places[at] + rng.integers(-2, 3, (400, 4))).astype(np.int8)
    labels = rng.integers(-1, 3, 400).astype(np.int16)
    keys = rng.integers(0, 8, 400).astype(np.uint32)
    recent = Recent(4, 16)
    out = np.full(400, 99, np.int8)
    for start in range(0, 400, step):
        stop = min(start + step, 400)
        recent.make_room(stop - start)
        trail = cpu.Trail(recent.codes, recent.labels, recent.keys, recent.pushed)
        cpu.revisit(trail, 16, codes, labels, keys, 30, out, start, stop)
    wanted = oracle(codes, labels, keys, 30, 16)
    assert out.tolist() == wanted
    assert {-1, 0, 1, 3} <= set(wanted), "the draw shows every kind"


def test_sums_are_whole_numbers_and_leave_repeats_out() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 3, (100, 5)).astype(np.float32)
    kinds = rng.choice([-1, 0, 1, 3], 100).astype(np.int8)
    whole, halves = np.zeros(5, np.int64), np.zeros(5, np.int64)
    assert cpu.add_rows(values, kinds, 0, 100, whole) == (kinds >= 0).sum()
    order = rng.permutation(100)
    count = sum(cpu.add_rows(values[order], kinds[order], at, at + 25, halves) for at in range(0, 100, 25))
    assert count == (kinds >= 0).sum()
    assert (whole == halves).all()
    np.testing.assert_allclose(whole / cpu.FIXED_POINT, values[kinds >= 0].sum(axis=0), atol=1e-4)
