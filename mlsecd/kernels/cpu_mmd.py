"""Kernel sums over many divisions of the rows at once, on the CPU, without ever storing the kernel.

A row of tiles, 64 rows of the kernel, is made and used up against all divisions before the next: distances from
differences, then numpy's exponentials, which are vectors, then a product of matrices for 256 columns at a time, float32
within it and float64 beyond. Only tiles on and above the diagonal are made, half the work of the whole product.
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
_COLUMNS: Final = 256  # of the kernel, in one product: more would add up too many numbers in float32


def mmd_sums(x: NDArray[np.float32], members: NDArray[np.uint8], gammas: NDArray[np.float64]) -> MmdSums:
    """As ``signatures.BatchKernels.mmd_sums``."""
    check_mmd(x, members, gammas)
    n, divisions = members.shape
    across = -(-n // _TILE)
    rows = across * _TILE
    z = np.zeros((rows, divisions), np.float32)
    z[:n] = members
    padded = np.zeros((rows, -(-x.shape[1] // 4) * 4), np.float32)
    padded[:n, : x.shape[1]] = centred(x)
    tiles = np.ascontiguousarray(padded.reshape(-1, _TILE, padded.shape[1]).transpose(0, 2, 1))
    inside, sums = np.zeros(divisions), np.zeros(rows)
    rooms = np.empty((3, _TILE * rows), np.float32)
    for row in range(across):
        above = row * _TILE
        kernel = _kernel_row(tiles, row, gammas.astype(np.float32), rooms[:, : _TILE * (rows - above)])
        _settle(kernel, above, n, sums)
        for first in range(0, kernel.shape[1], _COLUMNS):
            beside = z[above + first : above + first + _COLUMNS]
            _add_inside(z[above : above + _TILE], kernel[:, first : first + _COLUMNS] @ beside, inside)
    return MmdSums(inside, sums[:n].copy())


def _kernel_row(tiles: Any, row: int, gammas: NDArray[np.float32], rooms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of Gaussian kernels between one stretch of 64 rows and all from it on: float32[64, rows - 64 row]."""
    squares, part, total = rooms.reshape(3, _TILE, -1)
    _squares(tiles, row, np.empty((_TILE, _TILE), np.float32), squares)
    for i, gamma in enumerate(gammas):
        made = part if i else total
        np.exp(np.multiply(squares, -gamma, out=made), out=made)
        if i:
            total += part
    total *= np.float32(1.0) / np.float32(len(gammas))
    return total


@njit(nogil=True, cache=True, fastmath=_FAST)
def _squares(tiles: Any, row: int, tile: Any, squares: Any) -> None:
    """Squared distances between one stretch of rows and all from it on, tile by tile in ``tile``."""
    for b in range(squares.shape[1] // _TILE):
        left, right = tiles[row], tiles[row + b]
        tile[:] = 0
        for j in range(0, left.shape[0], 4):
            r0, r1, r2, r3 = right[j], right[j + 1], right[j + 2], right[j + 3]
            for i in range(_TILE):
                a0, a1, a2, a3, to = left[j, i], left[j + 1, i], left[j + 2, i], left[j + 3, i], tile[i]
                for k in range(to.shape[0]):  # a loop of known length would be unrolled before it is vectorised
                    s0, s1, s2, s3 = r0[k] - a0, r1[k] - a1, r2[k] - a2, r3[k] - a3
                    to[k] += s0 * s0 + s1 * s1 + s2 * s2 + s3 * s3
        squares[:, b * _TILE : (b + 1) * _TILE] = tile


@njit(nogil=True, cache=True)
def _settle(kernel: Any, above: int, n: int, sums: Any) -> None:
    """Clear all but pairs i < j < n, and add the rest to the sums of both its rows."""
    kernel[max(n - above, 0) :] = 0
    kernel[:, n - above :] = 0
    down = sums[above:]
    for i in range(_TILE):
        line, total = kernel[i], 0.0
        line[: i + 1] = 0
        for k in range(line.shape[0]):
            total += line[k]
            down[k] += line[k]
        sums[above + i] += total


@njit(nogil=True, cache=True, fastmath=_FAST)
def _add_inside(upper: Any, products: Any, inside: Any) -> None:
    """Add ``sum_i z_i (K z)_i`` for every division."""
    for i in range(upper.shape[0]):
        mine, its = upper[i], products[i]
        for p in range(inside.shape[0]):
            inside[p] += mine[p] * its[p]


def random_features(
    x: NDArray[np.float32], directions: NDArray[np.float32], phases: NDArray[np.float32]
) -> NDArray[np.float32]:
    """As ``signatures.BatchKernels.random_features``."""
    check_features(x, directions, phases)
    out = np.empty((len(x), len(phases)), np.float32)
    _angles(x, directions, phases, out)
    np.cos(out, out=out)  # numpy's cosines are vectors, the ones that numba knows are not
    out *= np.float32(np.sqrt(2.0 / max(len(phases), 1)))
    return out


@njit(nogil=True, cache=True, fastmath=_FAST)
def _angles(x: Any, directions: Any, phases: Any, out: Any) -> None:
    dims, features = directions.shape
    for i in range(x.shape[0]):
        row = out[i]
        row[:] = phases
        for j in range(0, dims - dims % 4, 4):
            a0, a1, a2, a3 = x[i, j], x[i, j + 1], x[i, j + 2], x[i, j + 3]
            d0, d1, d2, d3 = directions[j], directions[j + 1], directions[j + 2], directions[j + 3]
            for f in range(features):
                row[f] = row[f] + a0 * d0[f] + a1 * d1[f] + a2 * d2[f] + a3 * d3[f]
        for j in range(dims - dims % 4, dims):
            for f in range(features):
                row[f] += x[i, j] * directions[j, f]
