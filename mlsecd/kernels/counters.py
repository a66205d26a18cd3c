"""Sketches that merge: what they hold, how they are read, and what may be asked of them; no numba.

Distinct counts (HyperLogLog, Flajolet et al. 2007, read as Ertl 2017 does: no bias correction, no
switch), frequencies (count-min, Cormode & Muthukrishnan 2005), quantiles (bins of float32's own bits,
32 to an octave: at most 1.6 % off) and moments of int8 vectors. All are whole numbers, so any order
and any cut into batches gives the same, and merging is a maximum or a sum.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.errors import KernelError
from mlsecd.kernels.checks import plain, rows_of, within

__all__ = [
    "BINS",
    "FIRST_BIN",
    "check_countmin",
    "check_hll",
    "check_moments",
    "check_quantile",
    "hll_count",
    "quantile_read",
]

BINS: Final = 64 * 32 + 2  # 2^-32 to 2^32; below it (and what is not positive) the first, above it the last
FIRST_BIN: Final = (127 - 32) << 5  # of float32's bits >> 18, the bin of 2^-32
_PRECISION: Final = (4, 16)
_DEPTH: Final = 8
_ALPHA: Final = 0.5 / math.log(2.0)


def check_hll(registers: Any, slots: Any, hashes: Any) -> None:
    """``registers`` uint8[keys, 2^p], p 4 to 16; ``slots`` int32[n], the key of each hash; ``hashes`` uint64[n].

    Raises
    ------
    KernelError
        One of them is something else.
    """
    width = registers.shape[1] if isinstance(registers, np.ndarray) and registers.ndim == 2 else 0
    if not 1 << _PRECISION[0] <= width <= 1 << _PRECISION[1] or width & (width - 1):
        raise KernelError("registers: uint8[keys, 2^p] with p from 4 to 16 is wanted")
    plain(registers, np.uint8, registers.shape, "registers")
    _check_rows(slots, len(registers), hashes, np.uint64, "hashes")


def _check_rows(slots: Any, keys: int, values: Any, dtype: Any, what: str) -> None:
    n = rows_of(slots)
    plain(slots, np.int32, (n,), "slots")
    plain(values, dtype, (n,), what)
    within(slots, keys, "slots")


def hll_count(registers: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How many distinct hashes each row of registers has seen: standard error 1.04 / sqrt(width)."""
    keys, width = registers.shape
    top = 64 - (width.bit_length() - 1) + 1
    counts = np.zeros((keys, top + 1), np.int64)
    np.add.at(counts, (np.repeat(np.arange(keys), width), np.minimum(registers, top).ravel()), 1)
    shares = counts / width
    total = np.array([_sigma(share) for share in shares[:, 0]])
    weights = np.ldexp(1.0, -np.arange(1, top))
    total += shares[:, 1:top] @ weights
    total += np.array([_tau(1.0 - share) for share in shares[:, top]]) * 2.0 ** (1 - top)
    return np.divide(_ALPHA * width, total, out=np.full(keys, np.inf), where=total > 0)


def _sigma(x: float) -> float:
    """``x + sum x^(2^k) 2^(k-1)``: what empty registers tell (Ertl 2017, eq. 10)."""
    if x >= 1.0:
        return math.inf
    total, y = x, 1.0
    while True:
        x *= x
        before, total = total, total + x * y
        y += y
        if total == before:
            return total


def _tau(x: float) -> float:
    """What full registers tell (Ertl 2017, eq. 14)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0
    total, y = 1.0 - x, 1.0
    while True:
        x = math.sqrt(x)
        y *= 0.5
        before, total = total, total - (1.0 - x) ** 2 * y
        if total == before:
            return total / 3.0


def check_countmin(table: Any, hashes: Any, amounts: Any | None) -> None:
    """``table`` int64[1 to 8, 2^w]; ``hashes`` uint64[n]; ``amounts`` int64[n].

    Raises
    ------
    KernelError
        One of them is something else.
    """
    shape = table.shape if isinstance(table, np.ndarray) and table.ndim == 2 else (0, 0)
    if not 1 <= shape[0] <= _DEPTH or shape[1] < 1 or shape[1] & (shape[1] - 1) or shape[1] > 1 << 24:
        raise KernelError("table: int64[1 to 8, a power of two up to 2^24] is wanted")
    plain(table, np.int64, shape, "table")
    n = rows_of(hashes)
    plain(hashes, np.uint64, (n,), "hashes")
    if amounts is not None:
        plain(amounts, np.int64, (n,), "amounts")


def check_quantile(counts: Any, slots: Any, values: Any) -> None:
    """``counts`` int64[keys, BINS]; ``slots`` int32[n]; ``values`` float32[n].

    Raises
    ------
    KernelError
        One of them is something else.
    """
    plain(counts, np.int64, (rows_of(counts), BINS), "counts")
    _check_rows(slots, len(counts), values, np.float32, "values")


def quantile_read(counts: NDArray[np.int64], q: float) -> NDArray[np.float64]:
    """The q-quantile of each row (the lower one): the middle of its bin, 0 in the first, NaN without values."""
    if not 0.0 <= q <= 1.0:
        raise KernelError(f"a quantile is from 0 to 1, not {q}")
    sums = counts.cumsum(axis=1)
    rank = np.maximum(np.ceil(q * sums[:, -1]), 1)
    at = (sums < rank[:, None]).sum(axis=1)
    edges = ((np.arange(FIRST_BIN, FIRST_BIN + BINS - 1, dtype=np.uint32)) << np.uint32(18)).view(np.float32)
    middles = np.concatenate(([0.0], (edges[:-1].astype(np.float64) + edges[1:]) / 2.0, [float(edges[-1])], [np.nan]))
    return middles[at]


def check_moments(counts: Any, sums: Any, products: Any, slots: Any, codes: Any) -> None:
    """``counts`` int64[keys], ``sums`` int64[keys, d], ``products`` int64[keys, d, d]; d is 1 to 64.

    Raises
    ------
    KernelError
        One of them is something else, or ``codes`` is not int8[n, d].
    """
    n, keys = rows_of(slots), rows_of(counts)
    dims = codes.shape[1] if isinstance(codes, np.ndarray) and codes.ndim == 2 else 0
    if not 1 <= dims <= 64:
        raise KernelError("codes: int8[n, 1 to 64] is wanted")
    plain(codes, np.int8, (n, dims), "codes")
    plain(counts, np.int64, (keys,), "counts")
    plain(sums, np.int64, (keys, dims), "sums")
    plain(products, np.int64, (keys, dims, dims), "products")
    plain(slots, np.int32, (n,), "slots")
    within(slots, keys, "slots")
