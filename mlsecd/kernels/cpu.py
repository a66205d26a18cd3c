"""The CPU backend: every kernel that a detector may call, compiled by numba when it is first called.

Each area keeps its kernels in a module of its own; this one joins them.
"""

from __future__ import annotations

from mlsecd.kernels.cpu_accounts import CHANNELS, Account, Plan, Rows, mark, scan, tails
from mlsecd.kernels.cpu_batches import *  # noqa: F403 - what `signatures` asks for
from mlsecd.kernels.cpu_drift import *  # noqa: F403 - it declares its own names
from mlsecd.kernels.cpu_drift_mmd import drift_mmd, drift_mmd_widths
from mlsecd.kernels.cpu_sketches import FIXED_POINT, GRADES, Trail, add_rows, grade, revisit, spread
from mlsecd.kernels.cpu_vectors import (
    mahalanobis,
    nearest_mean,
    project,
    quantise,
    squared_distances,
    squared_lengths,
    top_scores,
    vector_keys,
)

__all__ = [
    "CHANNELS",
    "FIXED_POINT",
    "GRADES",
    "Account",
    "Plan",
    "Rows",
    "Trail",
    "add_rows",
    "drift_mmd",
    "drift_mmd_widths",
    "grade",
    "mahalanobis",
    "mark",
    "nearest_mean",
    "project",
    "quantise",
    "revisit",
    "scan",
    "spread",
    "squared_distances",
    "squared_lengths",
    "tails",
    "top_scores",
    "vector_keys",
]
