"""Histograms and Kolmogorov-Smirnov distances of many features at once: what may be asked; no numba."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlsecd.errors import KernelError
from mlsecd.kernels.checks import plain, rows_of

__all__ = ["MAX_EDGES", "check_histograms", "check_ks"]

MAX_EDGES: Final = 1_024
_VALUES: Final = 2**30  # products of two counts fit an int64


def _ascending(array: Any, what: str) -> None:
    if np.isnan(array).any() or (array[:, 1:] < array[:, :-1]).any():
        raise KernelError(f"{what}: every row must ascend, without NaN")


def check_histograms(values: Any, edges: Any) -> None:
    """Refuse what is not float32[F, n] with float32[F, 1 to 1,024], rows of edges ascending.

    Raises
    ------
    KernelError
        One of them is something else.
    """
    features = rows_of(edges)
    width = edges.shape[1] if isinstance(edges, np.ndarray) and edges.ndim == 2 else 0
    if not 1 <= width <= MAX_EDGES:
        raise KernelError(f"edges: float32[F, 1 to {MAX_EDGES}] is wanted")
    plain(edges, np.float32, (features, width), "edges")
    length = values.shape[1] if isinstance(values, np.ndarray) and values.ndim == 2 else 0
    plain(values, np.float32, (features, length), "values")
    _ascending(edges, "edges")


def check_ks(reference: Any, sample: Any) -> None:
    """Refuse what is not float32[F, m] with ascending rows, m at least 1, and float32[F, n].

    Raises
    ------
    KernelError
        One of them is something else.
    """
    features = rows_of(reference)
    width = reference.shape[1] if isinstance(reference, np.ndarray) and reference.ndim == 2 else 0
    if not 1 <= width <= _VALUES:
        raise KernelError("reference: float32[F, m] with m at least 1 is wanted")
    plain(reference, np.float32, (features, width), "reference")
    length = sample.shape[1] if isinstance(sample, np.ndarray) and sample.ndim == 2 else 0
    plain(sample, np.float32, (features, length), "sample")
    _ascending(reference, "reference")
