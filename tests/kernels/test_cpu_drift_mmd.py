from __future__ import annotations

import numpy as np
import pytest

from mlsecd.kernels import select

KERNELS = select("cpu")


def gram(x: np.ndarray, gammas: np.ndarray) -> np.ndarray:
    """The definition, in float64."""
    squares = ((x[:, None].astype(float) - x[None].astype(float)) ** 2).sum(axis=2)
    return np.mean([np.exp(-gamma * squares) for gamma in gammas], axis=0)


def mmd2(x: np.ndarray, y: np.ndarray, gammas: np.ndarray) -> float:
    """Gretton et al. 2012, equation 3, term by term."""
    n, m = len(x), len(y)
    k = gram(np.concatenate((x, y)), gammas)
    inside, outside, between = k[:n, :n], k[n:, n:], k[:n, n:]
    return float(
        (inside.sum() - np.trace(inside)) / (n * (n - 1))
        + (outside.sum() - np.trace(outside)) / (m * (m - 1))
        - 2.0 * between.mean()
    )


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def sample(seed: int, rows: int, d: int = 6, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, d)) + shift).astype(np.float32)


@pytest.mark.parametrize(("n", "m", "d", "offset"), [(40, 25, 3, 0.0), (60, 60, 16, 0.0), (30, 50, 4, 1000.0)])
def test_the_distance_is_what_the_definition_gives(n: int, m: int, d: int, offset: float) -> None:
    """At a large common offset too: squared distances must not drown in the rows' own length."""
    x, y = sample(1, n, d) + np.float32(offset), sample(2, m, d, 0.5) + np.float32(offset)
    gammas = KERNELS.drift_mmd_widths(x)
    found = KERNELS.drift_mmd(x, y, gammas, draw(1), 10)
    assert found.mmd2 == pytest.approx(mmd2(x, y, gammas), abs=2e-4 if offset else 2e-6)
    k = gram(x, gammas)
    assert found.spread == pytest.approx(1.0 - (k.sum() - n) / (n * (n - 1)), abs=2e-4 if offset else 1e-6)


def test_bandwidths_are_of_the_reference_s_median_distance() -> None:
    x = sample(3, 200)
    squares = ((x[:, None].astype(float) - x[None].astype(float)) ** 2).sum(axis=2)[np.triu_indices(200, 1)]
    widths = 1.0 / np.sqrt(2.0 * KERNELS.drift_mmd_widths(x))
    assert widths == pytest.approx(np.sqrt(np.median(squares)) * np.array([0.25, 1.0, 4.0]), rel=1e-5)


def test_a_permutation_is_judged_by_the_same_formula() -> None:
    """The p-value of a plain count over the very divisions that were drawn."""
    x, y = sample(4, 30), sample(5, 20, shift=0.25)
    gammas = KERNELS.drift_mmd_widths(x)
    found = KERNELS.drift_mmd(x, y, gammas, draw(9), 100)
    again, both, hits = draw(9), np.concatenate((x, y)), 0
    chosen = np.argpartition(again.random((50, 100), np.float32), 20, axis=0)[:20]
    hit = []
    for b in range(100):
        window = np.zeros(50, bool)
        window[chosen[:, b]] = True
        hit.append(mmd2(both[~window], both[window], gammas) >= found.mmd2 - 2e-7)
    hits = int(np.sum(hit))
    if hits < 20:
        assert (found.exceeded, found.drawn, found.p) == (hits, 100, (hits + 1) / 101)
    else:
        assert (found.exceeded, found.drawn) == (20, int(np.flatnonzero(hit)[19]) + 1)


def test_without_a_difference_it_stops_early_and_p_is_uniform() -> None:
    ps, drawn = [], []
    gammas = KERNELS.drift_mmd_widths(sample(0, 60))
    for seed in range(150):
        found = KERNELS.drift_mmd(sample(2 * seed + 10, 60), sample(2 * seed + 11, 40), gammas, draw(seed), 999)
        ps.append(found.p)
        drawn.append(found.drawn)
    assert np.median(drawn) <= 100
    assert np.mean(np.array(ps) <= 0.1) <= 0.18  # four standard errors above a tenth
    assert 0.38 <= np.mean(ps) <= 0.66


def test_a_difference_has_the_smallest_p_there_is_and_a_concession_takes_it_away() -> None:
    x, y = sample(1, 80), sample(2, 60, shift=0.8)
    gammas = KERNELS.drift_mmd_widths(x)
    found = KERNELS.drift_mmd(x, y, gammas, draw(1), 999)
    assert (found.exceeded, found.drawn, found.p) == (0, 999, 1e-3)
    granted = KERNELS.drift_mmd(x, y, gammas, draw(1), 999, found.mmd2 + 0.001)
    assert granted.p > 0.3


def test_the_same_draws_give_the_same_answer() -> None:
    x, y = sample(1, 80), sample(2, 60, shift=0.1)
    gammas = KERNELS.drift_mmd_widths(x)
    assert KERNELS.drift_mmd(x, y, gammas, draw(3), 300) == KERNELS.drift_mmd(x, y, gammas, draw(3), 300)


def test_constant_vectors_are_no_difference() -> None:
    same = np.ones((50, 4), np.float32)
    gammas = KERNELS.drift_mmd_widths(same)
    found = KERNELS.drift_mmd(same, same[:30], gammas, draw(1), 99)
    assert np.isfinite(gammas).all()
    assert (found.mmd2, found.exceeded) == (pytest.approx(0.0, abs=1e-6), 20)
