"""The batches that bench.kernels measures, with their least number of operations and bytes, and what a GPU issues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from mlsecd.kernels import cpu, cpu_ring
from mlsecd.kernels.counters import BINS
from mlsecd.kernels.ragged import Windows
from mlsecd.kernels.rings import Ring, make_ring

__all__ = ["CASES", "Case"]


class Case(NamedTuple):
    """One batch. ``operations`` are vector lanes that multiply-add (or add, where the method has no product).

    On the CPU they are counted in float32, ``integers`` in int32 and ``lookups`` one by one; ``step`` is a part of the
    work that is timed by itself, since nothing simpler tells what it must cost: it comes on top of the others.
    """

    name: str
    kernel: str
    arguments: tuple[Any, ...]
    per: int  # queries, rows or values of the batch
    unit: str
    operations: float
    moved: float  # bytes that have to come from memory or go there, once
    loads: float  # of shared memory on a GPU, a word for each thread
    budget: float | None = None  # us
    tolerance: float = 0.0  # relative; 0: equal
    integers: float | None = None  # of the CPU, where its kernel works on whole numbers: in place of ``operations``
    lookups: float = 0.0  # reads of a small table at places that depend on data
    step: tuple[str, Callable[[], Any]] | None = None


def ring(rows: int, dims: int, dtype: str, batch: int, budget: float | None = None) -> Case:
    rng = np.random.default_rng(1)
    made = make_ring(rows, dims, dtype)
    vectors = np.clip(rng.normal(0, 30, (rows, dims)), -127, 127).astype(dtype)
    cpu.ring_push(made, vectors, rng.integers(0, 1_000, rows).astype(np.int32))
    queries, owners = vectors[:batch].copy(), rng.integers(0, 1_000, batch).astype(np.int32)
    pairs = float(rows * batch * dims)
    return Case(
        f"ring_nearest {rows:,} x {dims} {dtype}, batches of {batch}",
        "ring_nearest",
        (made, queries, owners, 10),
        batch,
        "query",
        pairs * (1 if dtype == "int8" else 2),  # products, or differences and their squares
        float(made.codes.nbytes),
        pairs,
        budget,
        0.0 if dtype == "int8" else 1e-5,
        integers=2 * pairs if dtype == "int8" and batch < 4 else None,
        step=("widening the ring", lambda: _widen(made)) if dtype == "float16" else None,
    )


def _widen(made: Ring) -> None:
    """What no search in float16 can do without, once a batch."""
    wide, halves = np.empty(made.codes.shape[1:], np.float32), made.codes.view(np.uint16)
    _widen_all(halves, wide)


_widen_tile = cpu_ring._widen_halves  # noqa: SLF001 - a part of a kernel, timed by itself


@njit(nogil=True)
def _widen_all(halves: Any, wide: Any) -> None:
    for tile in range(halves.shape[0]):
        _widen_tile(halves[tile], wide)


def windows() -> Case:
    rng = np.random.default_rng(2)
    length, dims, accounts, each = 1024, 32, 40, 25
    rows = length + each
    codes = rng.integers(-127, 128, (dims, accounts * rows)).astype(np.int8)
    queries = np.concatenate([a * rows + length + np.arange(each) for a in range(accounts)]).astype(np.int32)
    near = np.full(length + 1, 200_000, np.int32)
    labels = rng.integers(0, 10, accounts * rows).astype(np.int16)
    asked = Windows(codes, labels, queries, queries - np.int32(length), near)
    work = float(len(queries) * length * dims)
    name = "window_neighbours W = 1,024, d = 32, 40 accounts"
    return Case(
        name, "window_neighbours", (asked,), len(queries), "query", 2 * work, float(codes.nbytes), work, 15.0,
        integers=2 * work,
    )  # fmt: skip


def mmd() -> Case:
    rng = np.random.default_rng(3)
    n, dims, divisions = 2_000, 384, 1_000
    members = (rng.random((n, divisions)) < 0.5).astype(np.uint8)
    x = rng.normal(size=(n, dims)).astype(np.float32)
    pairs = n * n / 2.0
    exponents, powers = np.full((3, n, n // 2), -1.0, np.float32), np.empty((3, n, n // 2), np.float32)
    return Case(
        "mmd_sums n = m = 1,000, d = 384, 1,000 divisions",
        "mmd_sums",
        (x, members, np.array([0.25, 1.0, 4.0]) / dims),
        1,
        "test",
        pairs * (2 * dims + divisions),
        float(x.nbytes + members.nbytes),
        pairs * (1.125 * dims + divisions / 2),
        None,
        1e-5,
        step=("exponentials", lambda: np.exp(exponents, out=powers)),
    )


def features() -> list[Case]:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(64, 4_000)).astype(np.float32)
    edges = np.sort(rng.normal(size=(64, 255)), axis=1).astype(np.float32)
    reference = np.sort(rng.normal(size=(64, 5_000)), axis=1).astype(np.float32)
    x, w = rng.normal(size=(2_000, 64)).astype(np.float32), rng.normal(size=(64, 256)).astype(np.float32)
    size = values.size
    turns = rng.normal(0, 8, (2_000, 256)).astype(np.float32)
    # a value's cell, three comparisons of a search within it, and its counter
    reads = 5.0 * size
    # the same, whether it equals what lies below it, two counters; of the reference, a cell and a gap for each
    walked = 7.0 * size + 2.0 * reference.size
    angles = 2_000 * 64 * 256.0
    return [
        Case("histograms 64 features, 255 edges", "histograms", (values, edges), size, "value", 8.0 * size,
             values.nbytes, 9.0 * size, lookups=reads),
        Case("ks_distances 64 features, 4,000 against 5,000", "ks_distances", (reference, values), size, "value",
             12.0 * size, values.nbytes + reference.nbytes, 200.0 * size, lookups=walked),
        Case("random_features 64 to 256", "random_features", (x, w, np.zeros(256, np.float32)), 2_000, "row", angles,
             x.nbytes + 2_000 * 256 * 4.0, 2 * angles, None, 1e-3, step=("cosines", lambda: np.cos(turns))),
    ]  # fmt: skip


@njit(nogil=True)
def _add_at(table: Any, places: Any) -> None:
    for i in range(places.shape[0]):
        table[places[i]] += 1


def _additions(rng: np.random.Generator, size: int, n: int, dtype: Any) -> tuple[str, Callable[[], Any]]:
    """Counters of one table at random places that are known beforehand."""
    table, places = np.zeros(size, dtype), rng.integers(0, size, n)
    return "counters at random places", lambda: _add_at(table, places)


def counters() -> list[Case]:
    rng = np.random.default_rng(5)
    n = 200_000
    slots, hashes = rng.integers(0, 1_000, n).astype(np.int32), rng.integers(0, 2**64, n, dtype=np.uint64)
    values, ones = rng.lognormal(0, 3, n).astype(np.float32), np.ones(n, np.int64)
    codes = rng.integers(-127, 128, (20_000, 32)).astype(np.int8)
    keys = np.sort(rng.integers(0, 50, 20_000)).astype(np.int32)
    state = np.zeros(50, np.int64), np.zeros((50, 32), np.int64), np.zeros((50, 32, 32), np.int64)
    crosses = 20_000 * 1024.0
    return [
        Case("hll_add p = 12, 1,000 keys", "hll_add", (np.zeros((1_000, 4_096), np.uint8), slots, hashes), n, "row",
             0.0, 13.0 * n, 0.0, step=_additions(rng, 1_000 * 4_096, n, np.uint8)),
        Case("countmin_add 4 x 4,096", "countmin_add", (np.zeros((4, 4_096), np.int64), hashes, ones), n, "row",
             0.0, 16.0 * n, 0.0, step=_additions(rng, 4 * 4_096, 4 * n, np.int64)),
        Case("quantile_add 1,000 keys", "quantile_add", (np.zeros((1_000, BINS), np.int64), slots, values), n, "row",
             0.0, 16.0 * n, 0.0, step=_additions(rng, 1_000 * BINS, n, np.int64)),
        Case("moments_add d = 32, 50 keys", "moments_add", (*state, keys, codes), 20_000, "row", crosses,
             float(codes.nbytes), 2.0 * crosses),
    ]  # fmt: skip


CASES: list[Callable[[], list[Case]]] = [
    lambda: [ring(65_536, 32, "int8", 256, 150.0)],
    lambda: [ring(65_536, 32, "int8", 1)],
    lambda: [ring(65_536, 32, "float16", 256)],
    lambda: [ring(65_536, 32, "float16", 1)],
    lambda: [ring(1 << 19, 64, "int8", 256)],
    lambda: [windows()],
    lambda: [mmd()],
    features,
    counters,
]
