from __future__ import annotations

import math

import numpy as np
import pytest

from bench.peers import PEERS, Query, clopper_pearson, threshold
from bench.peers.base import Window

WIDTH = 16


def ordinary(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


def scores(name: str, x: np.ndarray, labels: np.ndarray | None = None) -> list[float | None]:
    peer = PEERS[name](ordinary(0, 2_000), np.zeros(2_000, np.int64))
    account = peer.account()
    given = np.zeros(len(x), np.int64) if labels is None else labels
    return [account.add(Query(row, int(label))) for row, label in zip(x, given, strict=True)]


def highest(name: str, x: np.ndarray) -> float:
    return max((score for score in scores(name, x) if score is not None), default=-math.inf)


def test_prada_holds_its_tongue_until_a_hundred_distances_and_then_tells_two_scales_apart() -> None:
    x = ordinary(1, 300)
    assert all(score is None for score in scores("PRADA", x)[:100])
    pairs = np.repeat(x[:150], 2, axis=0)
    pairs[1::2] += 0.01
    assert highest("PRADA", pairs) > 5 * highest("PRADA", x)


def test_knn_is_minus_the_mean_distance_to_fifty() -> None:
    x = ordinary(2, 80)
    got = scores("Chen kNN", x)
    assert got[49] is None
    apart = np.sort(np.linalg.norm(x[:79] - x[79], axis=1))[:50]
    assert got[79] == pytest.approx(-apart.mean(), rel=1e-5)


def test_seat_counts_pairs() -> None:
    x = ordinary(3, 40)
    x[20:] = x[:20] + 1e-4
    assert scores("SEAT-like", x)[-1] == pytest.approx(20, abs=3)


def test_blacklight_matches_across_accounts_and_forgets() -> None:
    peer = PEERS["Blacklight-like"](ordinary(0, 2_000), np.zeros(2_000, np.int64))
    first, second = peer.account(), peer.account()
    x = ordinary(4, 30)
    assert [first.add(Query(row, 0)) for row in x][-1] == 0
    assert [second.add(Query(row + 1e-4, 0)) for row in x][-1] >= 28  # a coordinate may fall on an edge


def test_blacklights_index_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.blacklight.KEPT", 50)
    peer = PEERS["Blacklight-like"](ordinary(0, 2_000), np.zeros(2_000, np.int64))
    account = peer.account()
    for row in ordinary(5, 400):
        account.add(Query(row, 0))
    assert len(peer._last) <= 51 * WIDTH


def test_add_sees_a_shift_from_thirty_queries_on() -> None:
    x = ordinary(6, 60)
    assert all(score is None for score in scores("ADD-like", x)[:29])
    assert highest("ADD-like", x + 1.0) > 3 * highest("ADD-like", x)


@pytest.mark.parametrize("name", PEERS)
def test_state_is_counted_and_scores_are_finite(name: str) -> None:
    peer = PEERS[name](ordinary(0, 2_000), np.zeros(2_000, np.int64))
    account = peer.account()
    got = [account.add(Query(row, i % 3)) for i, row in enumerate(ordinary(7, 250))]
    assert all(score is None or math.isfinite(score) for score in got)
    assert account.nbytes > 0


def test_a_window_keeps_the_last_rows() -> None:
    window = Window(20)
    x = ordinary(8, 50)
    for row in x:
        window.push(row)
    assert {row.tobytes() for row in window.rows} == {row.tobytes() for row in x[30:]}
    assert window.distances(x[49]).min() == 0


def test_the_threshold_is_the_conformal_quantile() -> None:
    assert threshold(range(99), 0.01) == 98  # the 99th smallest of 99
    assert threshold(range(98), 0.01) == math.inf  # too few to certify one in a hundred
    assert threshold(range(100), 0.1) == 90
    assert threshold([-math.inf] * 60, 0.02) == -math.inf


def test_the_threshold_keeps_its_level() -> None:
    rng = np.random.default_rng(9)
    above = [rng.standard_cauchy() > threshold(rng.standard_cauchy(120), 0.05) for _ in range(4_000)]
    assert 0.03 < np.mean(above) < 0.06


def test_intervals_are_exact() -> None:
    assert clopper_pearson(0, 20) == pytest.approx((0.0, 0.1684), abs=1e-4)
    assert clopper_pearson(20, 20) == pytest.approx((0.8316, 1.0), abs=1e-4)
    assert clopper_pearson(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
