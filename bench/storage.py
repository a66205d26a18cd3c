"""What a ring of bytes or of half floats loses against one of float32: error of distances, and neighbours not found.

    python -m bench.storage [--data DIR] [--json]

Vectors are rounded as baselines round them (a step of 1.5 times the 99.9 % quantile of what is ordinary, over 127), and
every query looks for its ten nearest among rows of others, by the kernel and by float64 on the float32 vectors. Without
--data the vectors are random; DIR holds traces as `bench/extraction.py` takes them: ordinary clients fill the ring and
fix the step, then a tenth of them and every attack asks. A neighbour as near as the tenth counts as found.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.rows import Row, report
from mlsecd.jsonlines import Decoder
from mlsecd.kernels import select
from mlsecd.kernels.rings import make_ring
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch

__all__ = ["Loss", "loss", "main", "nearest", "vectors"]

F4 = NDArray[np.float32]
NEIGHBOURS = 10
ORDINARY = ("benign_calib", "baseline")
COLUMNS = ("features", "input_features")
_MOST = 2_000  # queries of a set
_BLOCK = 64  # of them, whose distances to all rows are held at once


class Loss(NamedTuple):
    """What storing costs, over all queries of a set."""

    median: float  # relative error of the distance to a neighbour that was found, half of them are within
    worst: float  # and 99 % of them
    recall: float  # of the ten nearest by float32, how many are found
    nearest: float  # queries whose nearest neighbour is the right one, or as near
    crowding: float  # relative error of the mean distance to the ten nearest, 99 % of queries are within


def stored(kernels: Any, x: F4, dtype: str, step: float) -> NDArray[Any]:
    """Vectors as a ring keeps them."""
    made: NDArray[Any] = kernels.quantise(x, step) if dtype == "int8" else x.astype(np.float16)
    return made


def step_of(ordinary: F4) -> float:
    """As `_extraction_calibration` fixes it."""
    return max(float(np.quantile(np.abs(ordinary), 0.999)) * 1.5 / 127.0, 1e-6)


def nearest(held: F4, queries: F4) -> NDArray[np.float64]:
    """Distances to the ten nearest in float64, ascending: float64[n, 10]."""
    wide = held.astype(np.float64)
    length = (wide**2).sum(axis=1)
    out = np.empty((len(queries), NEIGHBOURS))
    for first in range(0, len(queries), _BLOCK):
        asked = queries[first : first + _BLOCK].astype(np.float64)
        squares = length - 2.0 * asked @ wide.T  # less what is the same for all rows: enough to choose candidates
        candidates = np.argpartition(squares, 3 * NEIGHBOURS, axis=1)[:, : 3 * NEIGHBOURS]
        exact = ((wide[candidates] - asked[:, None]) ** 2).sum(axis=2)
        out[first : first + _BLOCK] = np.sqrt(np.sort(exact, axis=1)[:, :NEIGHBOURS])
    return out


def loss(kernels: Any, held: F4, queries: F4, dtype: str, step: float, true: NDArray[np.float64]) -> Loss:
    """Search by the kernel, in storage, against ``true``, what :func:`nearest` finds in what came in."""
    ring = make_ring(-(-len(held) // 128) * 128, held.shape[1], dtype)
    kernels.ring_push(ring, stored(kernels, held, dtype, step), np.zeros(len(held), np.int32))
    asked = stored(kernels, queries, dtype, step)
    squares, slots = kernels.ring_nearest(ring, asked, np.ones(len(queries), np.int32), NEIGHBOURS)
    seen = np.sqrt(squares.astype(np.float64)) * (step if dtype == "int8" else 1.0)
    mine = np.sqrt(((held[slots].astype(np.float64) - queries[:, None].astype(np.float64)) ** 2).sum(axis=2))
    slack = 1e-6 * np.maximum(true[:, -1:], 1e-6)
    errors = np.abs(seen - mine)[mine > 0.0] / mine[mine > 0.0]
    means = true.mean(axis=1)
    crowding = np.abs(seen.mean(axis=1) - means)[means > 0.0] / means[means > 0.0]
    return Loss(
        _quantile(errors, 0.5),
        _quantile(errors, 0.99),
        float((mine <= true[:, -1:] + slack).mean()),
        float((mine[:, 0] <= true[:, 0] + slack[:, 0]).mean()),
        _quantile(crowding, 0.99),
    )


def _quantile(values: NDArray[np.float64], q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else 0.0


def drawn() -> Iterator[tuple[str, F4, F4, F4]]:
    """Random sets: name, ordinary rows, what the ring holds, queries."""
    for dims in (32, 64):
        rng = np.random.default_rng(dims)
        rows = rng.normal(size=(20_000, dims)).astype(np.float32)
        yield f"normal, {dims}-d", rows, rows, rng.normal(size=(1_000, dims)).astype(np.float32)
        centres = rng.normal(size=(50, dims))
        near = (centres[rng.integers(0, 50, 20_000)] + 0.1 * rng.normal(size=(20_000, dims))).astype(np.float32)
        asked = (centres[rng.integers(0, 50, 1_000)] + 0.1 * rng.normal(size=(1_000, dims))).astype(np.float32)
        yield f"50 tight groups, {dims}-d", near, near, asked


def vectors(path: Path, column: str) -> F4:
    """A column of vectors of one trace, its finite rows: float32[n, d], d 0 where there is none."""
    decoder = Decoder(Meters(), "bench")
    parts = [
        part for part in decoder.decode(gzip.decompress(path.read_bytes())) if isinstance(part, RequestBatch)
    ]  # fmt: skip
    ragged = RequestBatch.concat(parts).ragged(column)
    lengths = np.diff(ragged.offsets)
    width = int(lengths.max(initial=0))
    if width == 0:
        return np.zeros((0, 0), np.float32)
    starts = ragged.offsets[:-1][lengths == width]
    rows = ragged.values[starts[:, None] + np.arange(width)].astype(np.float32)
    return np.ascontiguousarray(rows[np.isfinite(rows).all(axis=1)])


def traced(directory: Path) -> Iterator[tuple[str, F4, F4, F4]]:
    """Real sets: ordinary clients hold the ring; a tenth of them, left out of it, and every attack asks."""
    names = {path.name.removesuffix(".jsonl.gz"): path for path in directory.glob("*.jsonl.gz")}
    attacks = sorted(name for name in names if name.startswith("atk_"))
    for column in COLUMNS:
        parts = [vectors(names[name], column) for name in ORDINARY if name in names]
        if not parts or not parts[0].size:
            continue
        ordinary = np.concatenate(parts)
        asks = np.arange(len(ordinary)) % 10 == 0
        held = ordinary[~asks]
        yield f"{column}: ordinary", ordinary, held, ordinary[asks][:_MOST]
        for name in attacks:
            queries = vectors(names[name], column)
            yield f"{column}: {name}", ordinary, held, queries[:: max(1, len(queries) // 500)]


def measure(data: Path | None) -> Iterator[Row]:
    kernels = select("cpu")
    for name, ordinary, held, queries in traced(data) if data else drawn():
        # a detector projects to coordinates of spread 1 or less, with the means taken off
        centre, spread = ordinary.mean(axis=0), max(float(ordinary.std(axis=0).max()), 1e-9)
        mine, its, own = ((part - centre) / spread for part in (ordinary, held, queries))
        mine, its, own = (np.ascontiguousarray(part, np.float32) for part in (mine, its, own))
        true = nearest(its, own)
        for dtype in ("int8", "float16"):
            found = loss(kernels, its, own, dtype, step_of(mine), true)
            yield Row(f"{name}, {dtype}: ten nearest found", found.recall, "of 1")
            yield Row(f"{name}, {dtype}: nearest found", found.nearest, "of 1")
            yield Row(f"{name}, {dtype}: distance error, median", 100.0 * found.median, "%")
            yield Row(f"{name}, {dtype}: distance error, 99 % within", 100.0 * found.worst, "%")
            yield Row(f"{name}, {dtype}: mean of ten, 99 % within", 100.0 * found.crowding, "%")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.data and not options.data.is_dir():
        print(f"no traces in {options.data}", file=sys.stderr)
        return 0
    report(measure(options.data), as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
