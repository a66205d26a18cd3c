"""Kernel sums over many divisions of the rows at once, on the CPU, without ever storing the kernel.

A tile of 64 x 64 kernel values is made and used up while it is in the first-level cache: against 128
divisions at a time, whose membership lies as float32 along lanes. Only tiles on and above the diagonal
are made, which is half the work of the product of matrices.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels.mmd import MmdSums, centred, check_features, check_mmd

__all__ = ["mmd_sums", "random_features"]

_FAST: Final = {"contract", "nsz"}
_TILE: Final = 64
_LANES: Final = 128


def mmd_sums(x: NDArray[np.float32], members: NDArray[np.uint8], gammas: NDArray[np.float64]) -> MmdSums:
    """As ``signatures.BatchKernels.mmd_sums``."""
    check_mmd(x, members, gammas)
    n, divisions = members.shape
    rows, lanes = -(-n // _TILE) * _TILE, -(-divisions // _LANES)
    z = np.zeros((lanes, rows, _LANES), np.float32)
    for lane in range(lanes):
        part = members[:, lane * _LANES : (lane + 1) * _LANES]
        z[lane, :n, : part.shape[1]] = part
    padded = np.zeros((rows, -(-x.shape[1] // 4) * 4), np.float32)
    padded[:n, : x.shape[1]] = centred(x)
    tiles = np.ascontiguousarray(padded.reshape(-1, _TILE, padded.shape[1]).transpose(0, 2, 1))
    inside, sums = np.zeros((lanes, _LANES)), np.zeros(rows)
    _sums(tiles, n, z, gammas.astype(np.float32), inside, sums)
    return MmdSums(inside.ravel()[:divisions].copy(), sums[:n].copy())


@njit(nogil=True, cache=True, fastmath=_FAST)
def _kernel_tile(tiles: Any, n: int, above: int, beside: int, gammas: Any, tile: Any) -> None:  # noqa: PLR0913, PLR0917
    """Mean of Gaussian kernels between two stretches of 64 rows; only i < j < n, zero elsewhere."""
    left, right = tiles[above // _TILE], tiles[beside // _TILE]
    tile[:] = 0
    for j in range(0, left.shape[0], 4):
        r0, r1, r2, r3 = right[j], right[j + 1], right[j + 2], right[j + 3]
        for i in range(_TILE):
            a0, a1, a2, a3 = left[j, i], left[j + 1, i], left[j + 2, i], left[j + 3, i]
            for k in range(_TILE):
                s0, s1, s2, s3 = r0[k] - a0, r1[k] - a1, r2[k] - a2, r3[k] - a3
                tile[i, k] += s0 * s0 + s1 * s1 + s2 * s2 + s3 * s3
    share = np.float32(1.0) / np.float32(len(gammas))
    for i in range(_TILE):
        for k in range(_TILE):
            total = np.float32(0.0)
            if above + i < beside + k < n:
                for g in range(len(gammas)):
                    total += np.exp(-gammas[g] * tile[i, k])
            tile[i, k] = total * share


@njit(nogil=True, cache=True, fastmath=_FAST)
def _inside_tile(tile: Any, upper: Any, right: Any, part: Any, inside: Any) -> None:
    """Add ``sum_i z_i sum_k K_ik z_k`` of one tile for 128 divisions."""
    for i in range(_TILE):
        part[:] = 0
        for k in range(0, _TILE, 4):
            k0, k1, k2, k3 = tile[i, k], tile[i, k + 1], tile[i, k + 2], tile[i, k + 3]
            for p in range(_LANES):
                part[p] += k0 * right[k, p] + k1 * right[k + 1, p] + k2 * right[k + 2, p] + k3 * right[k + 3, p]
        for p in range(_LANES):
            inside[p] += upper[i, p] * part[p]


@njit(nogil=True, cache=True)
def _sums(tiles: Any, n: int, z: Any, gammas: Any, inside: Any, sums: Any) -> None:  # noqa: PLR0913, PLR0917
    tile, part = np.empty((_TILE, _TILE), np.float32), np.empty(_LANES, np.float32)
    for above in range(0, n, _TILE):
        for beside in range(above, n, _TILE):
            _kernel_tile(tiles, n, above, beside, gammas, tile)
            for i in range(_TILE):
                for k in range(_TILE):
                    sums[above + i] += tile[i, k]
                    sums[beside + k] += tile[i, k]
            for lane in range(z.shape[0]):
                upper, right = z[lane, above : above + _TILE], z[lane, beside : beside + _TILE]
                _inside_tile(tile, upper, right, part, inside[lane])


def random_features(
    x: NDArray[np.float32], directions: NDArray[np.float32], phases: NDArray[np.float32]
) -> NDArray[np.float32]:
    """As ``signatures.BatchKernels.random_features``."""
    check_features(x, directions, phases)
    out = np.empty((len(x), len(phases)), np.float32)
    _waves(x, directions, phases, out)
    return out


@njit(nogil=True, cache=True, fastmath=_FAST)
def _waves(x: Any, directions: Any, phases: Any, out: Any) -> None:
    dims, features = directions.shape
    scale = np.float32(np.sqrt(2.0 / max(features, 1)))
    for i in range(x.shape[0]):
        row = out[i]
        row[:] = phases
        for j in range(dims):
            value = x[i, j]
            for f in range(features):
                row[f] += value * directions[j, f]
        for f in range(features):
            row[f] = scale * np.cos(row[f])
