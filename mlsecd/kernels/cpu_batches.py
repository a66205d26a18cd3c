"""The CPU's batch kernels in one place: see ``signatures`` for what each does."""

from __future__ import annotations

from mlsecd.kernels.cpu_counters import countmin_add, countmin_read, hll_add, moments_add, quantile_add
from mlsecd.kernels.cpu_features import histograms, ks_distances
from mlsecd.kernels.cpu_mmd import mmd_sums, random_features
from mlsecd.kernels.cpu_ring import ring_nearest, ring_push
from mlsecd.kernels.cpu_windows import window_neighbours

__all__ = [
    "countmin_add",
    "countmin_read",
    "histograms",
    "hll_add",
    "ks_distances",
    "mmd_sums",
    "moments_add",
    "quantile_add",
    "random_features",
    "ring_nearest",
    "ring_push",
    "window_neighbours",
]
