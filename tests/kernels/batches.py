"""Inputs and float64 oracles of the batch kernels, for the CPU's tests and the CUDA simulator's alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlsecd.kernels.counters import BINS, FIRST_BIN
from mlsecd.kernels.ragged import FAR, NEAREST, RECENT, Windows


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def windows(seed: int, dims: int, lengths: list[int], longest: int | None = None) -> Windows:
    """One query for each length, its window right before it; other accounts' rows lie around."""
    rng = draw(seed)
    total = sum(lengths) + 3 * len(lengths) + 3
    starts = np.cumsum([3, *(length + 3 for length in lengths[:-1])]).astype(np.int32)
    queries = (starts + np.array(lengths)).astype(np.int32)
    codes = rng.integers(-127, 128, (dims, total)).astype(np.int8)
    near_by = rng.random(total) < 0.3  # a third of the rows lie close to one point, and most queries
    near_by[queries[::2]] = near_by[queries[-1]] = True
    codes[:, near_by] = (codes[:, :1] // 2 + rng.integers(-3, 4, (dims, int(near_by.sum())))).astype(np.int8)
    near = (dims * rng.integers(10, 8_000, (longest or max(lengths)) + 1)).astype(np.int32)
    labels = rng.integers(-1, 4, total).astype(np.int16)
    labels[queries[-1]] = 2
    return Windows(codes, labels, queries, starts, near)


def window_oracle(asked: Windows) -> tuple[np.ndarray, np.ndarray]:
    squares = np.full((len(asked.queries), NEAREST), FAR)
    counts = np.zeros((len(asked.queries), 4), int)
    for i, (start, at) in enumerate(zip(asked.starts, asked.queries, strict=True)):
        rows = asked.codes[:, start:at].astype(np.float64)
        found = ((rows - asked.codes[:, at : at + 1].astype(np.float64)) ** 2).sum(axis=0)
        label, labels, held = asked.labels[at], asked.labels[start:at], at - start
        squares[i, : min(held, NEAREST)] = np.sort(found)[:NEAREST]
        differs = (label >= 0) & (labels >= 0) & (labels != label)
        far = (np.arange(held) < held - RECENT) & (found <= asked.near[max(held - RECENT, 0)])
        near = found <= asked.near[held]
        counts[i] = near.sum(), (near & differs).sum(), far.sum(), (far & differs).sum()
    return squares, counts


def mmd_case(seed: int, n: int, dims: int, divisions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = draw(seed)
    x = (5.0 + rng.normal(size=(n, dims))).astype(np.float32)
    return x, (rng.random((n, divisions)) < 0.5).astype(np.uint8), np.array([0.25, 1.0, 4.0]) / dims


def mmd_oracle(x: np.ndarray, members: np.ndarray, gammas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = x.astype(np.float64)
    distances = ((wide[:, None, :] - wide[None, :, :]) ** 2).sum(axis=2)
    kernel = np.mean([np.exp(-gamma * distances) for gamma in gammas], axis=0)
    np.fill_diagonal(kernel, 0.0)
    z = members.astype(np.float64)
    return np.einsum("ip,ij,jp->p", z, kernel, z) / 2.0, kernel.sum(axis=1)


def feature_case(seed: int, n: int, m: int, edges: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values with ties, NaN and infinities; a sorted reference; edges, some of them equal."""
    rng = draw(seed)
    values = rng.integers(0, 40, (3, n)).astype(np.float32)
    values[1] += rng.random(n).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[2, n // 2 :] = np.inf
    return (
        values,
        np.sort(rng.integers(0, 40, (3, m)), axis=1).astype(np.float32),
        np.sort(rng.integers(0, 40, (3, edges)), axis=1).astype(np.float32),
    )


def histogram_oracle(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts = np.zeros((len(edges), edges.shape[1] + 2), int)
    for f, row in enumerate(values):
        for value in row:
            counts[f, -1 if math.isnan(value) else int((edges[f] <= value).sum())] += 1
    return counts


def ks_oracle(reference: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """By the definition, at every value of either sample."""
    out = []
    for theirs, row in zip(reference, sample, strict=True):
        ours = row[~np.isnan(row)]
        gaps = [
            abs(int((theirs <= value).sum()) * len(ours) - int((ours <= value).sum()) * len(theirs))
            for value in (np.concatenate((theirs, ours)) if len(ours) else ())
        ]
        out.append(max(gaps, default=0))
    return np.array(out)


def rank_oracle(value: int, precision: int) -> tuple[int, int]:
    bits = f"{value:064b}"
    rest = bits[precision:]
    return int(bits[:precision], 2), (rest.index("1") if "1" in rest else len(rest)) + 1


def hll_oracle(registers: np.ndarray, slots: Any, hashes: Any) -> np.ndarray:
    out = registers.copy()
    precision = registers.shape[1].bit_length() - 1
    for slot, value in zip(slots, hashes, strict=True):
        at, rank = rank_oracle(int(value), precision)
        out[slot, at] = max(out[slot, at], rank)
    return out


def countmin_oracle(table: np.ndarray, hashes: Any, amounts: Any) -> np.ndarray:
    out = table.copy()
    for value, amount in zip(hashes, amounts, strict=True):
        for row in range(len(out)):
            out[row, (int(value) + row * ((int(value) >> 32) | 1)) % out.shape[1]] += amount
    return out


def bin_oracle(value: float) -> int:
    """Which bin a number falls into, from its logarithm: 32 to an octave, linear within it."""
    if not value >= 2.0**-32:
        return 0
    if value >= 2.0**32:
        return BINS - 1
    mantissa, exponent = math.frexp(value)
    return (exponent - 1 + 32) * 32 + int((mantissa * 2.0 - 1.0) * 32) + 1


assert FIRST_BIN == 95 * 32
