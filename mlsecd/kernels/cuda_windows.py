"""Ragged windows in CUDA: a block a query, its threads striding over the window's rows.

Reads are coalesced (a coordinate's values lie side by side) and the query sits in shared memory. A
thread keeps its ten smallest squares and its counts in registers; then lists are joined two by two
and counts summed in shared memory, in a fixed order. All of it is whole numbers, so a GPU gives
exactly what the CPU gives.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import int32

from mlsecd.kernels.cuda import Device, Shape, array_type, cuda
from mlsecd.kernels.ragged import FAR, NEAREST, RECENT, Near, Windows, check_windows

__all__ = ["shapes", "window_neighbours"]

_THREADS: Final = 128
_DIMS: Final = 1024


@cuda.jit
def _neighbours(codes: Any, labels: Any, queries: Any, starts: Any, near: Any, squares: Any, counts: Any) -> None:
    query = cuda.shared.array(_DIMS, int32)
    lists = cuda.shared.array((_THREADS, NEAREST), int32)
    sums = cuda.shared.array((_THREADS, 4), int32)
    kept = cuda.local.array(NEAREST, int32)
    joined = cuda.local.array(NEAREST, int32)
    thread, me = cuda.threadIdx.x, cuda.blockIdx.x
    start, at = starts[me], queries[me]
    held = at - start
    for j in range(thread, codes.shape[0], _THREADS):
        query[j] = int32(codes[j, at])
    for r in range(NEAREST):
        kept[r] = int32(FAR)
    radius, far_radius, label = near[held], near[max(held - RECENT, 0)], labels[at]
    close, flipped, far, far_flipped = int32(0), int32(0), int32(0), int32(0)
    cuda.syncthreads()
    for i in range(thread, held, _THREADS):
        value = int32(0)
        for j in range(codes.shape[0]):
            step = int32(codes[j, start + i]) - query[j]
            value += step * step
        its = labels[start + i]
        differs = label >= 0 and its >= 0 and its != label
        if value <= radius:
            close += int32(1)
            flipped += int32(1) if differs else int32(0)
        if value <= far_radius and i < held - RECENT:
            far += int32(1)
            far_flipped += int32(1) if differs else int32(0)
        if value < kept[NEAREST - 1]:
            for r in range(NEAREST):
                if value < kept[r]:
                    pushed_out = kept[r]
                    kept[r] = value
                    value = pushed_out
    for r in range(NEAREST):
        lists[thread, r] = kept[r]
    sums[thread, 0], sums[thread, 1], sums[thread, 2], sums[thread, 3] = close, flipped, far, far_flipped
    step = 1
    while step < _THREADS:
        cuda.syncthreads()
        if thread % (2 * step) == 0:
            a, b = 0, 0
            for r in range(NEAREST):
                if lists[thread + step, b] < lists[thread, a]:
                    joined[r] = lists[thread + step, b]
                    b += 1
                else:
                    joined[r] = lists[thread, a]
                    a += 1
            for r in range(NEAREST):
                lists[thread, r] = joined[r]
            for c in range(4):
                sums[thread, c] += sums[thread + step, c]
        step *= 2
    if thread == 0:
        for r in range(NEAREST):
            squares[me, r] = lists[0, r]
        for c in range(4):
            counts[me, c] = sums[0, c]


def window_neighbours(device: Device, asked: Windows) -> Near:
    """As ``signatures.BatchKernels.window_neighbours``."""
    check_windows(asked)
    n = len(asked.queries)
    if n == 0:
        return Near(np.empty((0, NEAREST), np.int32), np.empty((0, 4), np.int32))
    squares, counts = device.empty((n, NEAREST), np.int32), device.empty((n, 4), np.int32)
    device.launch(_neighbours, (n, 1), _THREADS, *(device.send(one) for one in asked), squares, counts)
    return Near(device.receive(squares), device.receive(counts))


def shapes() -> dict[str, Shape]:
    """What is compiled, for the compiler's report."""
    ints = array_type("int32", 1), array_type("int32", 1), array_type("int32", 1)
    types = array_type("int8", 2), array_type("int16", 1), *ints, array_type("int32", 2), array_type("int32", 2)
    return {
        "window_neighbours": Shape(_neighbours, types, _THREADS, "3 operations for each byte, which the L2 cache holds")
    }
