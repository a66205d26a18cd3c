"""Batched updates of sketches on the CPU. What each sketch is stands in ``counters``."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels.counters import BINS, FIRST_BIN, check_countmin, check_hll, check_moments, check_quantile

__all__ = ["countmin_add", "countmin_read", "hll_add", "moments_add", "quantile_add"]

_RUN: Final = 65_536  # rows whose products an int32 can take: 2^16 * 128^2 is 2^30


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


@njit(nogil=True, cache=True)
def _hll(registers: Any, precision: int, slots: Any, hashes: Any) -> None:
    rest = np.uint64(64 - precision)
    for i in range(slots.shape[0]):
        value = hashes[i] << np.uint64(precision)
        rank = 1
        while rank <= rest and not value >> np.uint64(63):
            value <<= np.uint64(1)
            rank += 1
        at = np.int64(hashes[i] >> rest)
        registers[slots[i], at] = max(registers[slots[i], at], rank)


@njit(nogil=True, cache=True)
def _countmin(table: Any, hashes: Any, amounts: Any) -> None:
    mask = np.uint64(table.shape[1] - 1)
    for i in range(hashes.shape[0]):
        step = (hashes[i] >> np.uint64(32)) | np.uint64(1)  # odd: rows of the table differ (Kirsch & Mitzenmacher 2006)
        for row in range(table.shape[0]):
            table[row, np.int64((hashes[i] + np.uint64(row) * step) & mask)] += amounts[i]


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
    for i in range(slots.shape[0]):
        if (bits[i] & 0x7FFFFFFF) > 0x7F800000:  # NaN is no value
            continue
        at = (bits[i] >> 18) - FIRST_BIN + 1 if bits[i] > 0 else 0
        counts[slots[i], min(max(at, 0), BINS - 1)] += 1


@njit(nogil=True, cache=True)
def _moments(counts: Any, sums: Any, products: Any, slots: Any, codes: Any) -> None:
    """Rows of one key in a row share int32 sums, twice as many to a register; they join the key's when it ends."""
    n, dims = codes.shape
    part, crosses = np.zeros(dims, np.int32), np.zeros((dims, dims), np.int32)
    begun = 0
    for i in range(n):
        for j in range(dims):
            value = np.int32(codes[i, j])
            part[j] += value
            for k in range(dims):
                crosses[j, k] += value * np.int32(codes[i, k])
        if i + 1 == n or slots[i + 1] != slots[i] or i + 1 - begun == _RUN:
            counts[slots[i]] += i + 1 - begun
            sums[slots[i]] += part
            products[slots[i]] += crosses
            part[:] = 0
            crosses[:] = 0
            begun = i + 1
