"""Whom a fit learns from, and which of their rows: for ``baseline fit``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

__all__ = ["SAMPLE_ROWS", "evenly", "split", "thirds"]

SAMPLE_ROWS: Final = 200  # of one client: no client's habits become everybody's reference


def thirds(clients: Sequence[str]) -> list[list[str]]:
    """Three parts, the last the smallest: by hash, so the same for the same clients."""
    order = sorted(clients, key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest())
    third = math.ceil(len(order) / 3)
    return [order[:third], order[third : 2 * third], order[2 * third :]]


def split(clients: Sequence[str]) -> tuple[list[str], list[str]]:
    """A third for the reference, the rest for the calibration."""
    reference, *others = thirds(clients)
    return reference, [name for part in others for name in part]


def evenly(values: Any, most: int = SAMPLE_ROWS) -> Any:
    """At most so many of one client's rows or values, evenly spread."""
    return values[np.unique(np.linspace(0, len(values) - 1, most).astype(np.int64))] if len(values) else values
