"""The ring's nearest neighbours in CUDA: a thread a query, a block 128 queries and one part of the ring.

Each thread keeps its query and its ten best in registers. The block carries tile after tile into
shared memory, read coalesced and widened to float32; all its threads then read the same word at once,
which is a broadcast. A second kernel joins the parts' lists, two by two. No distance leaves a register.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import numpy as np
from numba import float32, int32
from numpy.typing import NDArray

from mlsecd.kernels.cuda import FAST, Device, Shape, array_type, cuda
from mlsecd.kernels.rings import MAX_NEIGHBOURS, RING_TILE, Ring, check_queries

__all__ = ["ring_nearest", "shapes"]

_BEST: Final = MAX_NEIGHBOURS
_PARTS: Final = 256  # of a ring, at most: enough blocks for every multiprocessor from 128 queries on
_WIDTHS: Final = (32, 64)
_INF: Final = math.inf


@functools.cache
def _nearest(width: int) -> Any:
    """The kernel for up to ``width`` coordinates: registers hold arrays of known size only."""

    @cuda.jit(fastmath=FAST)
    def kernel(codes: Any, kept: Any, held: Any, per: Any, queries: Any, whose: Any, squares: Any, slots: Any) -> None:
        tile = cuda.shared.array((width, RING_TILE), float32)
        names = cuda.shared.array(RING_TILE, int32)
        query = cuda.local.array(width, float32)
        best = cuda.local.array(_BEST, float32)
        where = cuda.local.array(_BEST, int32)
        thread = cuda.threadIdx.x
        me = cuda.blockIdx.x * RING_TILE + thread
        dims, there = codes.shape[1], me < queries.shape[0]
        own = whose[me] if there else int32(0)
        for j in range(width):
            query[j] = float32(queries[me, j]) if there and j < dims else float32(0)
        for r in range(_BEST):
            best[r] = float32(_INF)
            where[r] = int32(-1)
        first = cuda.blockIdx.y * per
        for part in range(first, min(first + per, (held + RING_TILE - 1) // RING_TILE)):
            cuda.syncthreads()  # nobody is still reading the tile before
            for j in range(width):
                tile[j, thread] = float32(codes[part, j, thread]) if j < dims else float32(0)
            names[thread] = kept[part, thread]
            cuda.syncthreads()
            for i in range(0, min(RING_TILE, held - part * RING_TILE), 4):
                sum0, sum1, sum2, sum3 = float32(0), float32(0), float32(0), float32(0)
                for j in range(width):
                    at = query[j]
                    step0 = tile[j, i] - at
                    step1 = tile[j, i + 1] - at
                    step2 = tile[j, i + 2] - at
                    step3 = tile[j, i + 3] - at
                    sum0 += step0 * step0
                    sum1 += step1 * step1
                    sum2 += step2 * step2
                    sum3 += step3 * step3
                for lane in range(4):
                    value = sum0 if lane == 0 else sum1 if lane == 1 else sum2 if lane == 2 else sum3
                    slot = int32(part * RING_TILE + i + lane)
                    if value < best[_BEST - 1] and names[i + lane] != own and slot < held:
                        for r in range(_BEST):
                            if value < best[r]:
                                pushed_out, from_where = best[r], where[r]
                                best[r] = value
                                where[r] = slot
                                value, slot = pushed_out, from_where
        if there:
            for r in range(_BEST):
                squares[cuda.blockIdx.y, r, me] = best[r]
                slots[cuda.blockIdx.y, r, me] = where[r]

    return kernel


@cuda.jit(fastmath=FAST)
def _join(squares: Any, slots: Any, lists: Any, best: Any, where: Any) -> None:
    """A block a query, a thread a list (``lists`` of them, a power of two): sorted lists joined two by two."""
    values = cuda.shared.array((_PARTS, _BEST), float32)
    places = cuda.shared.array((_PARTS, _BEST), int32)
    mine = cuda.local.array(_BEST, float32)
    its = cuda.local.array(_BEST, int32)
    thread, query = cuda.threadIdx.x, cuda.blockIdx.x
    for r in range(_BEST):
        values[thread, r] = squares[thread, r, query] if thread < squares.shape[0] else float32(_INF)
        places[thread, r] = slots[thread, r, query] if thread < squares.shape[0] else int32(-1)
    step = 1
    while step < lists:
        cuda.syncthreads()
        if thread % (2 * step) == 0:
            a, b = 0, 0
            for r in range(_BEST):
                if values[thread + step, b] < values[thread, a]:  # of equals the lower slot: its part comes first
                    mine[r] = values[thread + step, b]
                    its[r] = places[thread + step, b]
                    b += 1
                else:
                    mine[r] = values[thread, a]
                    its[r] = places[thread, a]
                    a += 1
            for r in range(_BEST):
                values[thread, r] = mine[r]
                places[thread, r] = its[r]
        step *= 2
    if thread == 0:
        for r in range(_BEST):
            best[query, r] = values[0, r]
            where[query, r] = places[0, r]


def ring_nearest(
    device: Device, ring: Ring, queries: NDArray[Any], owners: NDArray[np.int32], k: int = MAX_NEIGHBOURS
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """As ``signatures.BatchKernels.ring_nearest``, on a device that holds a copy of the ring."""
    check_queries(ring, queries, owners, k)
    n, held = len(queries), min(int(ring.pushed[0]), ring.owners.size)
    if n == 0 or held == 0:
        return np.full((n, k), np.inf, np.float32), np.full((n, k), -1, np.int32)
    tiles = -(-held // RING_TILE)
    per = -(-tiles // _PARTS)
    parts = -(-tiles // per)
    lists = 1 << (parts - 1).bit_length()
    codes, kept = (
        device.mirror(ring.codes, ring.pushed, tiles, RING_TILE),
        device.mirror(ring.owners, ring.pushed, tiles, RING_TILE),
    )
    squares, slots = device.empty((parts, _BEST, n), np.float32), device.empty((parts, _BEST, n), np.int32)
    best, where = device.empty((n, _BEST), np.float32), device.empty((n, _BEST), np.int32)
    width = next(width for width in _WIDTHS if width >= ring.codes.shape[1])
    arguments = codes, kept, np.int32(held), np.int32(per), device.send(queries), device.send(owners), squares, slots
    device.launch(_nearest(width), (-(-n // RING_TILE), parts), RING_TILE, *arguments)
    device.launch(_join, (n, 1), lists, squares, slots, np.int32(lists), best, where)
    found = device.receive(best), device.receive(where)
    return np.ascontiguousarray(found[0][:, :k]), np.ascontiguousarray(found[1][:, :k])


def shapes() -> dict[str, Shape]:
    """What is compiled, for the compiler's report."""
    made = {}
    for width in _WIDTHS:
        for stored in ("int8", "float16"):
            sent = (
                array_type(stored, 3),
                array_type("int32", 2),
                int32,
                int32,
                array_type(stored, 2),
                array_type("int32", 1),
            )
            lists = array_type("float32", 3), array_type("int32", 3)
            text = f"{RING_TILE * 3 * width} FLOP for {width} bytes of int8 that a block reads: far above any ridge"
            made[f"ring_nearest {stored} d={width}"] = Shape(_nearest(width), (*sent, *lists), RING_TILE, text)
    joined = array_type("float32", 3), array_type("int32", 3), int32, array_type("float32", 2), array_type("int32", 2)
    made["ring_join"] = Shape(_join, joined, _PARTS, "a few comparisons for each byte; 1 % of the work")
    return made
