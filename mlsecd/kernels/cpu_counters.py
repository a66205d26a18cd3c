"""Batched updates of sketches on the CPU. What each sketch is stands in ``counters``."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mlsecd.kernels.counters import BINS, FIRST_BIN, check_countmin, check_hll, check_moments, check_quantile

__all__ = ["countmin_add", "countmin_read", "hll_add", "moments_add", "quantile_add"]

_FAST: Final = {"contract", "nsz"}
_RUN: Final = 1_024  # rows whose products float32 adds exactly: 2^10 * 128^2 is 2^24


def hll_add(registers: NDArray[np.uint8], slots: NDArray[np.int32], hashes: NDArray[np.uint64]) -> None:
    """As ``signatures.BatchKernels.hll_add``."""
    check_hll(registers, slots, hashes)
    _hll(registers, registers.shape[1].bit_length() - 1, slots, hashes)


def countmin_add(table: NDArray[np.int64], hashes: NDArray[np.uint64], amounts: NDArray[np.int64]) -> None:
    """As ``signatures.BatchKernels.countmin_add``."""
    check_countmin(table, hashes, amounts)
    _countmin(table, hashes, amounts)


def countmin_read(table: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """As ``signatures.BatchKernels.countmin_read``."""
    check_countmin(table, hashes, None)
    return _least(table, hashes)


def quantile_add(counts: NDArray[np.int64], slots: NDArray[np.int32], values: NDArray[np.float32]) -> None:
    """As ``signatures.BatchKernels.quantile_add``."""
    check_quantile(counts, slots, values)
    _bins(counts, slots, values.view(np.int32))


def moments_add(
    counts: NDArray[np.int64],
    sums: NDArray[np.int64],
    products: NDArray[np.int64],
    slots: NDArray[np.int32],
    codes: NDArray[np.int8],
) -> None:
    """As ``signatures.BatchKernels.moments_add``."""
    check_moments(counts, sums, products, slots, codes)
    _moments(counts, sums, products, slots, codes)


def _count_zeros(_typing: Any, _value: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), emit


# leading zeros of 64 bits: one instruction, where a loop over bits would be guessed wrong at every other value
_leading_zeros: Any = intrinsic(_count_zeros)


@njit(nogil=True, cache=True)
def _hll(registers: Any, precision: int, slots: Any, hashes: Any) -> None:
    rest = np.uint64(64 - precision)
    flat, width = registers.ravel(), np.int64(registers.shape[1])
    for i in range(slots.shape[0]):
        zeros = min(_leading_zeros(hashes[i] << np.uint64(precision)), rest)
        at = np.int64(slots[i]) * width + np.int64(hashes[i] >> rest)
        flat[at] = max(flat[at], np.uint8(zeros + np.uint64(1)))


@njit(nogil=True, cache=True)
def _countmin(table: Any, hashes: Any, amounts: Any) -> None:
    mask, width = np.uint64(table.shape[1] - 1), np.uint64(table.shape[1])
    flat, depth = table.ravel(), table.shape[0]
    for i in range(hashes.shape[0]):
        place, line = hashes[i], np.uint64(0)
        step = (hashes[i] >> np.uint64(32)) | np.uint64(1)  # odd: rows of the table differ (Kirsch & Mitzenmacher 2006)
        for _ in range(depth):
            flat[line + (place & mask)] += amounts[i]
            place += step
            line += width


@njit(nogil=True, cache=True)
def _least(table: Any, hashes: Any) -> Any:
    out = np.empty(hashes.shape[0], np.int64)
    mask = np.uint64(table.shape[1] - 1)
    for i in range(hashes.shape[0]):
        step = (hashes[i] >> np.uint64(32)) | np.uint64(1)
        least = table[0, np.int64(hashes[i] & mask)]
        for row in range(1, table.shape[0]):
            least = min(least, table[row, np.int64((hashes[i] + np.uint64(row) * step) & mask)])
        out[i] = least
    return out


@njit(nogil=True, cache=True)
def _bins(counts: Any, slots: Any, bits: Any) -> None:
    flat, width = counts.ravel(), np.int64(counts.shape[1])
    for i in range(slots.shape[0]):
        value: Any = np.int64(bits[i])
        if (value & 0x7FFFFFFF) > 0x7F800000:  # NaN is no value
            continue
        at = min(max((value >> 18) - FIRST_BIN + 1, 0), BINS - 1) if value > 0 else 0
        flat[np.int64(slots[i]) * width + at] += 1


@njit(nogil=True, cache=True, fastmath=_FAST)
def _cross_eight(rows: Any, crosses: Any) -> None:
    """Add the products of eight rows to float32 sums, each of which is then loaded and stored once for all eight."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    for j in range(rows.shape[1]):
        a0, a1, a2, a3, a4, a5, a6, a7 = r0[j], r1[j], r2[j], r3[j], r4[j], r5[j], r6[j], r7[j]
        to = crosses[j]
        for k in range(rows.shape[1]):
            first = a0 * r0[k] + a1 * r1[k] + a2 * r2[k] + a3 * r3[k]
            to[k] = to[k] + first + a4 * r4[k] + a5 * r5[k] + a6 * r6[k] + a7 * r7[k]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _cross_one(row: Any, crosses: Any) -> None:
    for j in range(row.shape[0]):
        for k in range(row.shape[0]):
            crosses[j, k] += row[j] * row[k]


@njit(nogil=True, cache=True)
def _moments(counts: Any, sums: Any, products: Any, slots: Any, codes: Any) -> None:
    """Up to 1,024 rows of one key in a row share float32 sums, which are then exact; they join the key's at its end."""
    n, dims = codes.shape
    wide, part, crosses = np.empty((8, dims), np.float32), np.empty(dims, np.int32), np.empty((dims, dims), np.float32)
    begun = 0
    while begun < n:
        key, end = slots[begun], begun + 1
        while end < n and end - begun < _RUN and slots[end] == key:
            end += 1
        part[:] = 0
        crosses[:] = 0
        for first in range(begun, end, 8):
            held = min(8, end - first)
            for r in range(held):
                row, to = codes[first + r], wide[r]
                for j in range(dims):
                    to[j] = np.float32(row[j])
                    part[j] += np.int32(row[j])
            if held == 8:
                _cross_eight(wide, crosses)
            else:
                for r in range(held):
                    _cross_one(wide[r], crosses)
        counts[key] += end - begun
        sums[key] += part
        for j in range(dims):
            for k in range(dims):
                products[key, j, k] += np.int64(crosses[j, k])
        begun = end
