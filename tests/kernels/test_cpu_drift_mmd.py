from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlsecd.kernels import select
from mlsecd.kernels.cpu_drift_mmd import _keep

KERNELS = select("cpu")
ALONE = np.zeros(1)  # concedes nothing, to the Gaussian kernels alone


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
    found = KERNELS.drift_mmd(x, y, gammas, draw(9), 100, ALONE)
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
    assert found.apart[1] > 0.0 < found.apart[0]
    granted = KERNELS.drift_mmd(x, y, gammas, draw(1), 999, np.array(found.apart) + 0.001)
    assert granted.p > 0.3
    alone = KERNELS.drift_mmd(x, y, gammas, draw(1), 999, ALONE)
    assert alone.apart == (pytest.approx(alone.mmd2, abs=1e-6),)
    assert KERNELS.drift_mmd(x, y, gammas, draw(1), 999, np.array([found.mmd2 + 0.001])).p > 0.3


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


def correlated(seed: int, rows: int, rho: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    common = np.sqrt(rho) * rng.standard_normal((rows, 1))
    return (np.sqrt(1.0 - rho) * rng.standard_normal((rows, 32)) + common).astype(np.float32)


def test_the_three_distances_are_what_their_definitions_give() -> None:
    """Products of standardised columns, the farthest column and squared lengths; in float64, term by term."""
    x, y = sample(1, 90, 5, 0.2), 1.4 * sample(2, 50, 5)
    gammas, n, m = KERNELS.drift_mmd_widths(x), 90, 50
    found = KERNELS.drift_mmd(x, y, gammas, draw(1), 0)
    both = np.concatenate((x, y)).astype(float)
    scores = np.clip((both - both.mean(axis=0)) / both.std(axis=0), -3.0, 3.0)
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    lengths = (scores**2).sum(axis=1)
    lengths = (lengths - lengths.mean()) / lengths.std()
    means = scores[n:].mean(axis=0) - scores[:n].mean(axis=0)
    unit = (n + m) ** 2 / (n * m * (n + m - 1))
    usual = 2.0 * np.log(10) - np.log(np.log(10)) - 1.4
    assert found.apart[1] == pytest.approx((means**2).max() - unit * usual, rel=1e-4)
    assert found.apart[2] == pytest.approx((lengths[n:].mean() - lengths[:n].mean()) ** 2 - unit, rel=1e-4)
    k, products = gram(both, gammas), (scores @ scores.T) ** 2
    off = ~np.eye(n + m, dtype=bool)
    means_of_rows = (k * off).sum(axis=1) / (n + m - 1)
    deviation = np.sqrt((k[off] ** 2).mean() - 2.0 * (means_of_rows**2).mean() + means_of_rows.mean() ** 2)
    r = scores.T @ scores / (n + m)
    k += 0.15 * deviation / np.sqrt(2.0 * np.trace(r @ r) ** 2 + 2.0 * np.trace(r @ r @ r @ r)) * products
    inside, outside = (part[~np.eye(len(part), dtype=bool)].mean() for part in (k[:n, :n], k[n:, n:]))
    assert found.apart[0] == pytest.approx(inside + outside - 2.0 * k[:n, n:].mean(), abs=2e-6)


@pytest.mark.parametrize(
    ("window", "found_of_20", "more"),
    [
        (lambda seed: np.float32(1.1**0.5) * sample(seed, 300, 32), 16, 8),
        (lambda seed: correlated(seed, 300, 0.08), 16, 8),
        (lambda seed: sample(seed, 300, 32) + np.float32(0.3) * (np.arange(32) == 3).astype(np.float32), 10, 2),
    ],
    ids=["variance", "correlation", "one column"],
)
def test_it_sees_what_gaussian_kernels_hardly_do(window: Any, found_of_20: int, more: int) -> None:
    """Twenty pairs of 600 and 300 rows, each at level .05."""
    hits, alone = 0, 0
    for seed in range(20):
        reference, later = sample(seed + 1_000, 600, 32), window(seed + 2_000)
        gammas = KERNELS.drift_mmd_widths(reference)
        hits += KERNELS.drift_mmd(reference, later, gammas, draw(seed), 199).p <= 0.05
        alone += KERNELS.drift_mmd(reference, later, gammas, draw(seed), 199, ALONE).p <= 0.05
    assert hits >= found_of_20
    assert hits >= alone + more


@pytest.mark.parametrize("d", [1, 2, 40])
def test_heavy_tails_and_any_width_keep_the_level(d: int) -> None:
    """Uniform p of 200 pairs of samples with infinite fourth moments: within four standard errors."""
    ps = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, y = (rng.standard_t(3, (rows, d)).astype(np.float32) for rows in (60, 40))
        ps.append(KERNELS.drift_mmd(x, y, KERNELS.drift_mmd_widths(x), draw(seed), 199).p)
    assert np.mean(np.array(ps) <= 0.05) <= 0.05 + 4.0 * (0.05 * 0.95 / 200) ** 0.5
    assert np.mean(np.array(ps) <= 0.2) <= 0.2 + 4.0 * (0.2 * 0.8 / 200) ** 0.5
    assert 0.42 <= np.mean(ps) <= 0.62


def test_what_it_makes_of_chance_is_about_how_rare_it_is() -> None:
    """Twenty to one is about log 20: the three weigh what they are meant to."""
    pooled = sample(8, 300, 12)
    kept, _, _ = _keep(pooled[:200], pooled[200:], KERNELS.drift_mmd_widths(pooled[:200]), moments=True)
    divided = np.zeros((300, 2_000), np.float32)
    chosen = np.argpartition(np.random.default_rng(4).random((300, 2_000)), 100, axis=0)[:100]
    np.put_along_axis(divided, chosen, 1.0, axis=0)
    apart = kept.apart(divided)
    assert apart[0].std() == pytest.approx(kept.moments.scale, rel=0.15)
    assert np.quantile(kept.evidence(apart), [0.9, 0.95, 0.99]) == pytest.approx(np.log([10.0, 20.0, 100.0]), abs=0.4)
