"""What account scoring costs: microseconds a query with full windows, and bytes an account.

    python bench/accounts.py [--json]

One core, W = 1,024, d = 32, requests with both vectors, from columns to findings. The peer is the plain numpy form
of the distances alone: float32, one query against the window.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from mlsecd.detectors.base import Fit
from mlsecd.detectors.extraction_account import ExtractionAccount
from mlsecd.kernels import select
from mlsecd.records import Ragged, RequestBatch, Text

DIMS, CLASSES = 32, 10


def requests(rng: np.random.Generator, clients: np.ndarray, start: float = 0.0) -> RequestBatch:
    """One request for each entry of ``clients``, 100 a second."""
    n = len(clients)
    label = rng.integers(0, CLASSES, n)
    centres = np.random.default_rng(0).normal(0, 2, (CLASSES, DIMS))
    x = (centres[label] + rng.normal(0, 1, (n, DIMS))).astype(np.float32)
    offsets = np.arange(0, (n + 1) * DIMS, DIMS)
    scores = np.sort(rng.dirichlet(np.ones(3), n), axis=1)[:, ::-1].astype(np.float32)
    columns: dict[str, Any] = {
        "ts": start + np.arange(n) / 100.0,
        "model": Text(np.zeros(n, np.int32), ("m",)),
        "client": Text(clients.astype(np.int32), tuple(f"client{i}" for i in range(int(clients.max()) + 1))),
        "features": Ragged(offsets, np.tanh(x).ravel()),
        "input_features": Ragged(offsets, x.ravel()),
        "predicted": Text(label.astype(np.int32), tuple(map(str, range(CLASSES)))),
        "scores": Ragged(np.arange(0, 3 * n + 1, 3), scores.ravel()),
        "body_hash": Text(np.arange(n, dtype=np.int32), tuple(f"{start}-{i:016x}" for i in range(n))),
    }
    return RequestBatch(columns)


def fitted() -> Fit:
    rng = np.random.default_rng(1)
    order = np.repeat(np.arange(120), 100)
    rng.shuffle(order)
    return ExtractionAccount.fit([requests(rng, order)], ExtractionAccount.Params(), select("cpu"))


def best_of(times: int, run: Callable[[int], None]) -> float:
    """The fastest of some runs, seconds of CPU: other processes on the machine do not count."""
    taken = []
    for i in range(times):
        began = time.thread_time()
        run(i)
        taken.append(time.thread_time() - began)
    return min(taken)


def per_query(section: Any, clients: int, batch: int) -> float:
    """Microseconds a query: ``clients`` accounts with full windows, in batches of ``batch`` rows."""
    rng = np.random.default_rng(2)
    detector = ExtractionAccount(ExtractionAccount.Params(), select("cpu"), section)
    fill = np.tile(np.arange(clients), 1_100)
    detector.observe(requests(rng, fill, 0.0))
    made = [
        [
            requests(rng, rng.integers(0, clients, batch), 20_000.0 + 100.0 * (run * 40 + i))
            for i in range(4_000 // batch)
        ]
        for run in range(5)
    ]

    def run(i: int) -> None:
        for one in made[i]:
            detector.observe(one)

    return best_of(5, run) / (4_000 // batch * batch) * 1e6


def naive() -> float:
    """Microseconds for one float32 query against 1,024: distances alone."""
    rng = np.random.default_rng(3)
    window = rng.normal(size=(1_024, DIMS)).astype(np.float32)
    query = window[0] + 1.0

    def run(_: int) -> None:
        for _ in range(1_000):
            np.sqrt(((window - query) ** 2).sum(axis=1)).min()

    return best_of(3, run) / 1_000 * 1e6


def bytes_an_account(section: Any, hot: bool) -> float:
    """Bytes that one account more takes: with a full window, or with counts alone."""
    rng = np.random.default_rng(4)
    params = ExtractionAccount.Params(max_hot_clients=1_000 if hot else 1)
    detector = ExtractionAccount(params, select("cpu"), section)
    rows, accounts = (1_100, 200) if hot else (1, 2_000)
    detector.observe(requests(rng, np.zeros(1, np.int64)))
    made = requests(rng, np.tile(np.arange(accounts), rows), 1_000.0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    detector.observe(made)
    gc.collect()  # what hangs in cycles is no account's
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return taken / accounts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args()
    fit = fitted()
    peer = naive()
    rows = []
    for name, clients, batch in (
        ("one account, batches of 1,000", 1, 1_000),
        ("64 accounts, batches of 1,000", 64, 1_000),
        ("64 accounts, batches of 100", 64, 100),
    ):
        value = per_query(fit.section, clients, batch)
        rows.append(
            {"name": name, "value": value, "unit": "us/query", "peer": "numpy distances", "ratio": peer / value}
        )
    for name, hot in (("hot account, full window", True), ("cold account", False)):
        value = bytes_an_account(fit.section, hot) / 1_024
        rows.append({"name": name, "value": value, "unit": "KiB", "peer": None, "ratio": None})
    rows.append({"name": "numpy distances alone", "value": peer, "unit": "us/query", "peer": None, "ratio": None})
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(f"{row['name']:32s} {row['value']:9.3f} {row['unit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
