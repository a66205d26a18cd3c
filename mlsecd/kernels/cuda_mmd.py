"""Kernel sums for the maximum mean discrepancy in CUDA: made, used against all divisions, and dropped.

A block makes a tile of 32 x 32 kernel values in shared memory, then its 128 threads take two divisions
each: membership comes as bits, 32 rows to a word, and sits in registers as 0 or 1. Each block sums what
is its own, tile by tile, in float64; a second kernel adds the blocks in order. So there is no float
atomic, and every run gives the same sums.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import float32, float64, int32
from numpy.typing import NDArray

from mlsecd.kernels.cuda import FAST, Device, Shape, array_type, cuda
from mlsecd.kernels.mmd import MmdSums, centred, check_features, check_mmd

__all__ = ["mmd_sums", "random_features", "shapes"]

_TILE: Final = 32
_PADDED: Final = 33  # columns fall into banks of their own
_THREADS: Final = 128
_ROWS: Final = 8  # of a tile, that a thread makes: 32 * 32 / 128
_BLOCKS: Final = 512  # at most; fixed, so that every GPU adds in the same order
_SQUARE: Final = 16
_BESIDE: Final = 17


@cuda.jit(fastmath=FAST)
def _tiles(x: Any, gammas: Any, words: Any, inside: Any, sums: Any) -> None:
    left = cuda.shared.array((_TILE, _PADDED), float32)
    right = cuda.shared.array((_TILE, _PADDED), float32)
    tile = cuda.shared.array((_TILE, _PADDED), float32)
    squares = cuda.local.array(_ROWS, float32)
    ones = cuda.local.array(_TILE, float32)
    others = cuda.local.array(_TILE, float32)
    thread, block = cuda.threadIdx.x, cuda.blockIdx.x
    column, first = thread % _TILE, thread // _TILE
    n, dims, across = x.shape[0], x.shape[1], (x.shape[0] + _TILE - 1) // _TILE
    for p in range(thread, words.shape[1], _THREADS):
        inside[block, p] = float64(0)
    for i in range(thread, sums.shape[1], _THREADS):
        sums[block, i] = float64(0)
    cuda.syncthreads()
    above, beside = 0, int32(block)
    while True:
        while beside >= across:  # tile number `beside` of row `above` of tiles, counted from the diagonal
            above += 1
            beside += above - across
            if above >= across:
                return
        for r in range(_ROWS):
            squares[r] = float32(0)
        for slab in range(0, dims, _TILE):
            cuda.syncthreads()
            for r in range(_ROWS):
                row = first + 4 * r
                deep = slab + column < dims
                here, there = above * _TILE + row, beside * _TILE + row
                left[row, column] = x[here, slab + column] if deep and here < n else float32(0)
                right[row, column] = x[there, slab + column] if deep and there < n else float32(0)
            cuda.syncthreads()
            for j in range(_TILE):
                value = right[column, j]
                for r in range(_ROWS):
                    step = left[first + 4 * r, j] - value
                    squares[r] += step * step
        for r in range(_ROWS):
            row = first + 4 * r
            total = float32(0)
            if above * _TILE + row < beside * _TILE + column < n:
                for g in range(gammas.shape[0]):
                    total += math.exp(-gammas[g] * squares[r])
            tile[row, column] = total / float32(gammas.shape[0])
        cuda.syncthreads()
        if thread < _TILE:
            down, along = float64(0), float64(0)
            for i in range(_TILE):
                along += float64(tile[thread, i])
                down += float64(tile[i, thread])
            sums[block, above * _TILE + thread] += along
            sums[block, beside * _TILE + thread] += down
        for p in range(thread, words.shape[1], 2 * _THREADS):
            upper, lower = words[above, p], words[above, p + _THREADS]
            its, theirs = words[beside, p], words[beside, p + _THREADS]
            for k in range(_TILE):
                ones[k] = float32((its >> k) & 1)
                others[k] = float32((theirs >> k) & 1)
            total, rest = float32(0), float32(0)
            for i in range(_TILE):
                part, other = float32(0), float32(0)
                for k in range(_TILE):
                    value = tile[i, k]
                    part += value * ones[k]
                    other += value * others[k]
                total += part * float32((upper >> i) & 1)
                rest += other * float32((lower >> i) & 1)
            inside[block, p] += float64(total)
            inside[block, p + _THREADS] += float64(rest)
        beside += cuda.gridDim.x


@cuda.jit
def _fold(parts: Any, out: Any) -> None:
    """Add what the blocks found, in their order: a thread a column, read coalesced."""
    at = cuda.grid(1)
    if at < out.shape[0]:
        total = float64(0)
        for block in range(parts.shape[0]):
            total += parts[block, at]
        out[at] = total


def _packed(members: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Bits of 32 rows to a word, and divisions filled up to whole rounds: uint32[N / 32, P']."""
    n, divisions = members.shape
    whole = np.zeros((-(-n // _TILE) * _TILE, -(-max(divisions, 1) // (2 * _THREADS)) * 2 * _THREADS), np.uint8)
    whole[:n, :divisions] = members
    octets = np.packbits(whole, axis=0, bitorder="little").reshape(-1, 4, whole.shape[1])
    return np.ascontiguousarray(octets.transpose(0, 2, 1)).view("<u4")[..., 0].copy()


def mmd_sums(
    device: Device, x: NDArray[np.float32], members: NDArray[np.uint8], gammas: NDArray[np.float64]
) -> MmdSums:
    """As ``signatures.BatchKernels.mmd_sums``."""
    check_mmd(x, members, gammas)
    n, divisions = members.shape
    words, across = _packed(members), -(-n // _TILE)
    blocks = min(across * (across + 1) // 2, _BLOCKS)
    inside = device.empty((blocks, words.shape[1]), np.float64)
    sums = device.empty((blocks, across * _TILE), np.float64)
    given = device.send(centred(x)), device.send(gammas.astype(np.float32)), device.send(words)
    device.launch(_tiles, (blocks, 1), _THREADS, *given, inside, sums)
    found = []
    for parts in (inside, sums):
        out = device.empty((parts.shape[1],), np.float64)
        device.launch(_fold, (-(-parts.shape[1] // _THREADS), 1), _THREADS, parts, out)
        found.append(device.receive(out))
    return MmdSums(found[0][:divisions].copy(), found[1][:n].copy())


@cuda.jit(fastmath=FAST)
def _waves(x: Any, directions: Any, phases: Any, out: Any) -> None:
    """A block 16 rows by 16 features, in slabs of 16 coordinates."""
    left = cuda.shared.array((_SQUARE, _BESIDE), float32)
    right = cuda.shared.array((_SQUARE, _BESIDE), float32)
    row, column = cuda.threadIdx.x // _SQUARE, cuda.threadIdx.x % _SQUARE
    i, f = cuda.blockIdx.x * _SQUARE + row, cuda.blockIdx.y * _SQUARE + column
    total = phases[f] if f < out.shape[1] else float32(0)
    for slab in range(0, x.shape[1], _SQUARE):
        deep, down = slab + column < x.shape[1], slab + row < x.shape[1]
        left[row, column] = x[i, slab + column] if i < x.shape[0] and deep else float32(0)
        right[row, column] = directions[slab + row, f] if f < out.shape[1] and down else float32(0)
        cuda.syncthreads()
        for j in range(_SQUARE):
            total += left[row, j] * right[j, column]
        cuda.syncthreads()
    if i < out.shape[0] and f < out.shape[1]:
        out[i, f] = math.sqrt(float32(2) / float32(out.shape[1])) * math.cos(total)


def random_features(
    device: Device, x: NDArray[np.float32], directions: NDArray[np.float32], phases: NDArray[np.float32]
) -> NDArray[np.float32]:
    """As ``signatures.BatchKernels.random_features``."""
    check_features(x, directions, phases)
    n, features = len(x), len(phases)
    if not n or not features:
        return np.empty((n, features), np.float32)
    out = device.empty((n, features), np.float32)
    blocks = -(-n // _SQUARE), -(-features // _SQUARE)
    sent = device.send(x), device.send(directions), device.send(phases)
    device.launch(_waves, blocks, _SQUARE * _SQUARE, *sent, out)
    return device.receive(out)


def shapes() -> dict[str, Shape]:
    """What is compiled, for the compiler's report."""
    floats, doubles, line = array_type("float32", 2), array_type("float64", 2), array_type("float32", 1)
    tiles = floats, line, array_type("uint32", 2), doubles, doubles
    busy = "at P = 1,000: 2,000 FLOP a kernel value, which never leaves shared memory"
    return {
        "mmd_tiles": Shape(_tiles, tiles, _THREADS, busy),
        "mmd_fold": Shape(
            _fold, (doubles, array_type("float64", 1)), _THREADS, "one addition for 8 bytes: bandwidth, 1 % of the work"
        ),
        "random_features": Shape(
            _waves, (floats, floats, line, floats), _SQUARE * _SQUARE, "16 multiply-adds for each word read"
        ),
    }
