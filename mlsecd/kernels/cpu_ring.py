"""Nearest neighbours of other accounts on the CPU: a ring of recent vectors, searched in batches.

The ring lies in tiles, each coordinate's values side by side ([tiles, d, 128]), so that pushing a
vector touches one tile and searching runs along lanes. A search takes tile by tile, widens it to
float32 once and holds every query against it while it is in the first-level cache; each tile of
distances is dropped as soon as the k best have been taken, so the matrix of all distances never is.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mlsecd.kernels.cpu_vectors import squared_distances
from mlsecd.kernels.rings import MAX_NEIGHBOURS, RING_TILE, Ring, check_queries, check_vectors

__all__ = ["ring_nearest", "ring_push"]

_FAST: Final = {"contract", "nsz"}  # NaN and infinity keep their meaning, sums their order
_QUERIES: Final = 4  # that a tile is held against in one pass
_TWICE: Final = np.float32(2.0)


def ring_push(ring: Ring, vectors: NDArray[Any], owners: NDArray[np.int32]) -> None:
    """Put rows into the ring, over the oldest; the signature is ``signatures.BatchKernels.ring_push``."""
    check_vectors(ring, vectors, owners)
    _push(_bits(ring.codes), ring.owners, ring.pushed, _bits(vectors), owners)


def ring_nearest(
    ring: Ring, queries: NDArray[Any], owners: NDArray[np.int32], k: int = MAX_NEIGHBOURS
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The k nearest rows of other accounts; the signature is ``signatures.BatchKernels.ring_nearest``."""
    check_queries(ring, queries, owners, k)
    squares = np.full((len(queries), k), np.inf, np.float32)
    slots = np.full((len(queries), k), -1, np.int32)
    held = min(int(ring.pushed[0]), ring.owners.size)
    if ring.codes.dtype == np.int8:
        _search_int8(ring.codes, ring.owners, held, queries, owners, squares, slots)
    else:
        _search_half(_bits(ring.codes), ring.owners, held, _bits(queries), owners, squares, slots)
    return squares, slots


def _bits(stored: NDArray[Any]) -> NDArray[Any]:
    """What numba gets to see: it knows no float16 on the CPU."""
    return stored if stored.dtype == np.int8 else stored.view(np.uint16)


@njit(nogil=True, cache=True)
def _push(codes: Any, kept: Any, pushed: Any, vectors: Any, owners: Any) -> None:
    capacity = kept.shape[0] * RING_TILE
    for i in range(vectors.shape[0]):
        tile, lane = divmod(pushed[0] % capacity, RING_TILE)
        for j in range(vectors.shape[1]):
            codes[tile, j, lane] = vectors[i, j]
        kept[tile, lane] = owners[i]
        pushed[0] += 1


@njit(nogil=True, cache=True)
def _widen_halves(halves: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """IEEE 754 half to single by moving its bits: numba knows no float16 on the CPU, and this vectorises.

    Shifting puts the exponent 112 too low, also for subnormal numbers; the product mends both.
    """
    bits = out.view(np.int32)
    for j in range(halves.shape[0]):
        row, to, made = halves[j], bits[j], out[j]
        for i in range(row.shape[0]):  # the casts keep numba from computing in 64 bits, half as many to a register
            size = np.int32(np.int32(row[i]) & np.int32(0x7FFF))
            special = np.int32(0x7F800000) if size >= np.int32(0x7C00) else np.int32(0)
            to[i] = np.int32(np.int32(size << np.int32(13)) | special)
        for i in range(row.shape[0]):
            value = made[i] * np.float32(2.0**112) if made[i] < np.float32(1.0) else made[i]
            made[i] = -value if row[i] >> 15 else value


@njit(nogil=True, cache=True, fastmath=_FAST)
def _widen_int8(codes: NDArray[np.int8], out: NDArray[np.float32], squares: NDArray[np.float32]) -> None:
    """Widen one tile, and take the squared length of each vector of it."""
    squares[:] = 0
    for j in range(codes.shape[0]):
        row, to = codes[j], out[j]
        for i in range(row.shape[0]):
            value = np.float32(np.int32(row[i]))
            to[i] = value
            squares[i] += value * value


@njit(nogil=True, cache=True, fastmath=_FAST)
def _doubled(query: Any, j: int) -> tuple[Any, Any, Any, Any]:
    return _TWICE * query[j], _TWICE * query[j + 1], _TWICE * query[j + 2], _TWICE * query[j + 3]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _products(tile: NDArray[np.float32], lengths: Any, wanted: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Squared distances of four queries, ``|x|^2 + |q|^2 - 2 x.q``: exact, since int8 gives whole numbers < 2^24.

    Four coordinates of four queries a pass measured fastest: 1 x 8 takes 1.5 times as long, 2 x 8 twice.
    """
    dims = tile.shape[0]
    out0, out1, out2, out3 = out[0], out[1], out[2], out[3]
    for q in range(_QUERIES):
        length = np.float32(0.0)
        for j in range(dims):
            length += wanted[q, j] * wanted[q, j]
        for i in range(RING_TILE):
            out[q, i] = lengths[i] + length
    for j in range(0, dims - dims % 4, 4):
        a0, a1, a2, a3 = _doubled(wanted[0], j)
        b0, b1, b2, b3 = _doubled(wanted[1], j)
        c0, c1, c2, c3 = _doubled(wanted[2], j)
        e0, e1, e2, e3 = _doubled(wanted[3], j)
        for i in range(RING_TILE):
            x0, x1, x2, x3 = tile[j, i], tile[j + 1, i], tile[j + 2, i], tile[j + 3, i]
            out0[i] = out0[i] - a0 * x0 - a1 * x1 - a2 * x2 - a3 * x3
            out1[i] = out1[i] - b0 * x0 - b1 * x1 - b2 * x2 - b3 * x3
            out2[i] = out2[i] - c0 * x0 - c1 * x1 - c2 * x2 - c3 * x3
            out3[i] = out3[i] - e0 * x0 - e1 * x1 - e2 * x2 - e3 * x3
    for j in range(dims - dims % 4, dims):
        for q in range(_QUERIES):
            for i in range(RING_TILE):
                out[q, i] -= _TWICE * wanted[q, j] * tile[j, i]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _differences(tile: NDArray[np.float32], wanted: NDArray[np.float32], count: int, out: NDArray[np.float32]) -> None:
    """Squared distances of ``count`` (1 to 4) queries, ``sum (x - q)^2``: what is nearly equal keeps its accuracy."""
    dims = tile.shape[0]
    out[:] = 0
    for q in range(0, count, 2):
        one, other, to, too = wanted[q], wanted[q + 1], out[q], out[q + 1]
        for j in range(0, dims - dims % 4, 4):
            a0, a1, a2, a3 = one[j], one[j + 1], one[j + 2], one[j + 3]
            b0, b1, b2, b3 = other[j], other[j + 1], other[j + 2], other[j + 3]
            for i in range(RING_TILE):
                x0, x1, x2, x3 = tile[j, i], tile[j + 1, i], tile[j + 2, i], tile[j + 3, i]
                s0, s1, s2, s3 = x0 - a0, x1 - a1, x2 - a2, x3 - a3
                t0, t1, t2, t3 = x0 - b0, x1 - b1, x2 - b2, x3 - b3
                to[i] = to[i] + s0 * s0 + s1 * s1 + s2 * s2 + s3 * s3
                too[i] = too[i] + t0 * t0 + t1 * t1 + t2 * t2 + t3 * t3
        for j in range(dims - dims % 4, dims):
            for i in range(RING_TILE):
                s, t = tile[j, i] - one[j], tile[j, i] - other[j]
                to[i] += s * s
                too[i] += t * t


@njit(nogil=True, cache=True)
def _absorb(  # noqa: PLR0913, PLR0917
    distances: Any, owners: Any, owner: Any, first: int, held: int, squares: Any, slots: Any
) -> None:
    """Take what is nearer than the worst of the k best, other accounts' only; of equals the lower slot stays."""
    last = squares.shape[0] - 1
    worst = squares[last]
    nearer = 0
    for i in range(RING_TILE):
        nearer += (distances[i] < worst) & (owners[i] != owner)
    if nearer == 0:
        return
    for i in range(min(RING_TILE, held - first)):
        value = distances[i]
        if not value < squares[last] or owners[i] == owner:
            continue
        at = last
        while at > 0 and squares[at - 1] > value:
            squares[at] = squares[at - 1]
            slots[at] = slots[at - 1]
            at -= 1
        squares[at] = value
        slots[at] = first + i


@njit(nogil=True, cache=True)
def _fours(queries: NDArray[np.float32]) -> Any:
    """Queries in fours; the last is repeated to fill, so that every query goes through the same arithmetic."""
    n, dims = queries.shape
    out = np.empty(((n + _QUERIES - 1) // _QUERIES, _QUERIES, dims), np.float32)
    for i in range(out.shape[0] * _QUERIES):
        out[i // _QUERIES, i % _QUERIES] = queries[min(i, n - 1)]
    return out


@njit(nogil=True, cache=True)
def _absorb_four(  # noqa: PLR0913, PLR0917
    out: Any, kept: Any, owners: Any, four: int, tile: int, held: int, squares: Any, slots: Any
) -> None:
    for q in range(four * _QUERIES, min(four * _QUERIES + _QUERIES, owners.shape[0])):
        _absorb(out[q % _QUERIES], kept[tile], owners[q], tile * RING_TILE, held, squares[q], slots[q])


@njit(nogil=True, cache=True)
def _search_int8(  # noqa: PLR0913, PLR0917
    codes: Any, kept: Any, held: int, queries: Any, owners: Any, squares: Any, slots: Any
) -> None:
    """Queries in fours share a widened tile; the one to three that are left are held against the bytes themselves.

    Both ways are exact, so a query gets the same answer on either.
    """
    wide, lengths = np.empty(codes.shape[1:], np.float32), np.empty(RING_TILE, np.float32)
    whole = queries.shape[0] // _QUERIES
    wanted = _fours(queries[: whole * _QUERIES].astype(np.float32))
    out, whole_numbers = np.empty((_QUERIES, RING_TILE), np.float32), np.empty(RING_TILE, np.int32)
    for tile in range((held + RING_TILE - 1) // RING_TILE):
        if whole:
            _widen_int8(codes[tile], wide, lengths)
        for four in range(whole):
            _products(wide, lengths, wanted[four], out)
            _absorb_four(out, kept, owners, four, tile, held, squares, slots)
        for q in range(whole * _QUERIES, queries.shape[0]):
            squared_distances(codes[tile], queries[q], whole_numbers)
            _absorb(whole_numbers, kept[tile], owners[q], tile * RING_TILE, held, squares[q], slots[q])


@njit(nogil=True, cache=True)
def _search_half(  # noqa: PLR0913, PLR0917
    codes: Any, kept: Any, held: int, queries: Any, owners: Any, squares: Any, slots: Any
) -> None:
    wide, plain = np.empty(codes.shape[1:], np.float32), np.empty(queries.shape, np.float32)
    _widen_halves(queries, plain)
    wanted = _fours(plain)
    out = np.empty((_QUERIES, RING_TILE), np.float32)
    for tile in range((held + RING_TILE - 1) // RING_TILE):
        _widen_halves(codes[tile], wide)
        for four in range(wanted.shape[0]):
            _differences(wide, wanted[four], min(_QUERIES, queries.shape[0] - four * _QUERIES), out)
            _absorb_four(out, kept, owners, four, tile, held, squares, slots)
