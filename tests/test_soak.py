"""Floods and long runs: memory stays bounded. `make soak` runs the long ones, `make test` a short one."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from support import fold_of

from mlsecd import app, demo
from mlsecd.meters import Meters
from mlsecd.records import Ragged, RequestBatch, SourceStatus, Text


def flood(first: int, count: int, ts: float, draw: np.random.Generator) -> RequestBatch:
    """Requests of ``count`` clients that were never seen and never come back."""
    names = tuple(f"k-{number:032x}" for number in range(first, first + count))
    features = draw.normal(size=(count, 32)).astype(np.float32)
    return RequestBatch(
        {
            "ts": ts + np.arange(count) / count,
            "client": Text(np.arange(count, dtype=np.int32), names),
            "model": Text(np.zeros(count, np.int32), ("digits",)),
            "predicted": Text((np.arange(count) % 10).astype(np.int32), tuple("0123456789")),
            "features": Ragged(np.arange(0, 32 * count + 1, 32), features.ravel()),
            "input_features": Ragged(np.arange(0, 32 * count + 1, 32), features.ravel()),
            "scores": Ragged(np.arange(0, 2 * count + 1, 2), np.tile(np.float32([0.9, 0.1]), count)),
        }
    )


def grown_mib(clients: int, batch: int = 20_000) -> float:
    """How much the process grew over the second half of a flood of ``clients``, MiB."""
    pipeline = app.make_pipeline(demo.configuration(Path("/nonexistent")), Meters())
    folds = [fold_of(detector) for detector in pipeline.fold.detectors]
    draw = np.random.default_rng(0)
    half = 0.0
    for first in range(0, clients, batch):
        ts = float(first // batch)
        rows = flood(first, batch, ts, draw)
        for fold in folds:
            fold.push([rows, SourceStatus(ts=ts + 1.0, source="request_socket", ok=True)])
        if first <= clients // 2:
            half = resident_mib()
    return resident_mib() - half


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.timeout(300)
def test_two_hundred_thousand_clients_fill_a_bounded_table() -> None:
    assert grown_mib(200_000) < 120  # 100,000 accounts are held; the second half only replaces


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_million_clients_fill_a_bounded_table() -> None:
    assert grown_mib(10_000_000) < 120
