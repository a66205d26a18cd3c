"""Batched updates of sketches in CUDA: a batch's own sketch is made on the GPU and merged on the host.

Counters at random places are what atomics are for; they are whole numbers, so their order does not
show. The moments need none: a block holds 16 x 16 entries of one key's matrix and walks its rows.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import int32, int64, uint64
from numpy.typing import NDArray

from mlsecd.kernels.counters import BINS, FIRST_BIN, check_countmin, check_hll, check_moments, check_quantile
from mlsecd.kernels.cuda import Device, Shape, array_type, cuda

__all__ = ["countmin_add", "hll_add", "moments_add", "quantile_add", "shapes"]

_THREADS: Final = 256
_TILE: Final = 16
_PADDED: Final = _TILE + 1  # columns fall into banks of their own


@cuda.jit
def _hll(registers: Any, precision: Any, slots: Any, hashes: Any) -> None:
    i = cuda.grid(1)
    if i < slots.shape[0]:
        value = hashes[i] << uint64(precision)
        rank = int32(1)
        while rank <= 64 - precision and not value >> uint64(63):
            value <<= uint64(1)
            rank += int32(1)
        cuda.atomic.max(registers, (slots[i], int64(hashes[i] >> uint64(64 - precision))), rank)


@cuda.jit
def _countmin(table: Any, hashes: Any, amounts: Any) -> None:
    i = cuda.grid(1)
    if i < hashes.shape[0]:
        step = (hashes[i] >> uint64(32)) | uint64(1)
        mask = uint64(table.shape[1] - 1)
        for row in range(table.shape[0]):
            cuda.atomic.add(table, (row, int64((hashes[i] + uint64(row) * step) & mask)), amounts[i])


@cuda.jit
def _bins(counts: Any, slots: Any, bits: Any) -> None:
    i = cuda.grid(1)
    if i < slots.shape[0] and (bits[i] & int32(0x7FFFFFFF)) <= int32(0x7F800000):
        at = (bits[i] >> 18) - FIRST_BIN + 1 if bits[i] > 0 else 0
        cuda.atomic.add(counts, (slots[i], min(max(at, 0), BINS - 1)), 1)


@cuda.jit
def _moments(starts: Any, codes: Any, sums: Any, products: Any) -> None:
    """Block (x, y): key x, and tile y of its matrix; ``codes`` lie by key, a key's from ``starts[key]``."""
    left = cuda.shared.array((_TILE, _PADDED), int32)
    right = cuda.shared.array((_TILE, _PADDED), int32)
    key, dims = cuda.blockIdx.x, codes.shape[1]
    tiles = (dims + _TILE - 1) // _TILE
    row, column = cuda.threadIdx.x // _TILE, cuda.threadIdx.x % _TILE
    above, beside = (cuda.blockIdx.y // tiles) * _TILE, (cuda.blockIdx.y % tiles) * _TILE
    total, part = int64(0), int64(0)
    for first in range(starts[key], starts[key + 1], _TILE):
        there = first + row < starts[key + 1]
        left[row, column] = int32(codes[first + row, above + column]) if there and above + column < dims else int32(0)
        right[row, column] = (
            int32(codes[first + row, beside + column]) if there and beside + column < dims else int32(0)
        )
        cuda.syncthreads()
        for i in range(_TILE):
            total += left[i, row] * right[i, column]
            part += right[i, column]
        cuda.syncthreads()
    if above + row < dims and beside + column < dims:
        products[key, above + row, beside + column] = total
        if above == 0 and row == 0:
            sums[key, beside + column] = part


def hll_add(device: Device, registers: NDArray[np.uint8], slots: NDArray[np.int32], hashes: NDArray[np.uint64]) -> None:
    """As ``signatures.BatchKernels.hll_add``."""
    check_hll(registers, slots, hashes)
    if len(slots):
        made = device.send(np.zeros(registers.shape, np.int32))
        precision = np.int32(registers.shape[1].bit_length() - 1)
        device.launch(
            _hll, (-(-len(slots) // _THREADS), 1), _THREADS, made, precision, device.send(slots), device.send(hashes)
        )
        np.maximum(registers, device.receive(made).astype(np.uint8), out=registers)


def countmin_add(
    device: Device, table: NDArray[np.int64], hashes: NDArray[np.uint64], amounts: NDArray[np.int64]
) -> None:
    """As ``signatures.BatchKernels.countmin_add``."""
    check_countmin(table, hashes, amounts)
    if len(hashes):
        made = device.send(np.zeros(table.shape, np.int64))
        device.launch(
            _countmin, (-(-len(hashes) // _THREADS), 1), _THREADS, made, device.send(hashes), device.send(amounts)
        )
        table += device.receive(made)


def quantile_add(
    device: Device, counts: NDArray[np.int64], slots: NDArray[np.int32], values: NDArray[np.float32]
) -> None:
    """As ``signatures.BatchKernels.quantile_add``."""
    check_quantile(counts, slots, values)
    if len(slots):
        made = device.send(np.zeros(counts.shape, np.int32))
        bits = device.send(values.view(np.int32))
        device.launch(_bins, (-(-len(slots) // _THREADS), 1), _THREADS, made, device.send(slots), bits)
        counts += device.receive(made)


def moments_add(
    device: Device,
    counts: NDArray[np.int64],
    sums: NDArray[np.int64],
    products: NDArray[np.int64],
    slots: NDArray[np.int32],
    codes: NDArray[np.int8],
) -> None:
    """As ``signatures.BatchKernels.moments_add``."""
    check_moments(counts, sums, products, slots, codes)
    if not len(slots):
        return
    keys, rows = np.unique(slots, return_counts=True)
    starts = np.concatenate(([0], rows.cumsum())).astype(np.int32)
    dims, tiles = codes.shape[1], -(-codes.shape[1] // _TILE)
    made = device.empty((len(keys), dims), np.int64), device.empty((len(keys), dims, dims), np.int64)
    ordered = device.send(codes[np.argsort(slots, kind="stable")])
    device.launch(_moments, (len(keys), tiles * tiles), _TILE * _TILE, device.send(starts), ordered, *made)
    found = device.receive(made[0]), device.receive(made[1])  # all of it, or nothing is added
    counts[keys] += rows
    sums[keys] += found[0]
    products[keys] += found[1]


def shapes() -> dict[str, Shape]:
    """What is compiled, for the compiler's report."""
    slots, hashes, few = (
        array_type("int32", 1),
        array_type("uint64", 1),
        "one counter for 12 to 16 bytes read: bandwidth alone",
    )
    ints, longs = array_type("int32", 2), array_type("int64", 2)
    moments = slots, array_type("int8", 2), longs, array_type("int64", 3)
    return {
        "hll_add": Shape(_hll, (ints, int32, slots, hashes), _THREADS, few),
        "countmin_add": Shape(_countmin, (longs, hashes, array_type("int64", 1)), _THREADS, few),
        "quantile_add": Shape(_bins, (ints, slots, slots), _THREADS, few),
        "moments_add": Shape(_moments, moments, _TILE * _TILE, "16 multiply-adds for each byte read"),
    }
