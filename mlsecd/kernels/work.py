"""How many operations a batch is, from its arguments alone: what decides whether a GPU is worth waking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["WORK"]


def _ring(ring: Any, queries: Any, *_: Any) -> float:
    return 3.0 * len(queries) * queries.shape[1] * min(int(ring.pushed[0]), ring.owners.size)


def _windows(asked: Any) -> float:
    return 3.0 * asked.codes.shape[0] * float((asked.queries.astype(float) - asked.starts).sum())


def _mmd(x: Any, members: Any, gammas: Any) -> float:
    return len(x) ** 2 / 2.0 * (3.0 * x.shape[1] + 2.0 * members.shape[1] + 20.0 * len(gammas))


def _random_features(x: Any, directions: Any, phases: Any) -> float:
    return 2.0 * x.size * len(phases) + 20.0 * len(x) * len(directions[0])


def _histograms(values: Any, edges: Any) -> float:
    return 3.0 * values.size * edges.shape[1].bit_length()


def _ks(reference: Any, sample: Any) -> float:
    return 2.0 * sample.size * sample.shape[1].bit_length() + reference.size


def _moments(counts: Any, sums: Any, products: Any, slots: Any, codes: Any) -> float:  # noqa: ARG001
    return 2.0 * codes.size * codes.shape[1]


def _additions(table: Any, keys: Any, values: Any) -> float:  # noqa: ARG001
    return 10.0 * len(keys)


WORK: Final[dict[str, Callable[..., float]]] = {
    "countmin_add": _additions,
    "histograms": _histograms,
    "hll_add": _additions,
    "ks_distances": _ks,
    "mmd_sums": _mmd,
    "moments_add": _moments,
    "quantile_add": _additions,
    "random_features": _random_features,
    "ring_nearest": _ring,
    "window_neighbours": _windows,
}
