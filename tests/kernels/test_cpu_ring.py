from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlsecd.errors import KernelError
from mlsecd.kernels import cpu
from mlsecd.kernels.rings import RING_TILE, Ring, make_ring

STORED = ("int8", "float16")


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def vectors(rng: np.random.Generator, n: int, dims: int, dtype: str) -> np.ndarray:
    return np.clip(rng.normal(0, 40, (n, dims)), -127, 127).astype(dtype)


def filled(seed: int, rows: int, *, dims: int = 32, dtype: str = "int8", accounts: int = 5) -> tuple[Ring, Any, Any]:
    """A ring of 256 rows, poisoned where nothing was pushed; and by slot what it should hold."""
    rng, capacity = draw(seed), 256
    ring = make_ring(capacity, dims, dtype)
    ring.codes[:] = 1
    made, owners = vectors(rng, rows, dims, dtype), rng.integers(0, accounts, rows).astype(np.int32)
    cpu.ring_push(ring, made, owners)
    slots = np.arange(max(rows - capacity, 0), rows)
    slots = slots[np.argsort(slots % capacity)]
    return ring, made[slots], owners[slots]


def oracle(held: Any, kept: Any, queries: Any, owners: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition in float64, all distances at once."""
    squares, slots = np.full((len(queries), k), np.inf), np.full((len(queries), k), -1)
    for i, query in enumerate(queries.astype(np.float64)):
        with np.errstate(invalid="ignore"):
            distances = ((held.astype(np.float64) - query) ** 2).sum(axis=1)
        candidates = np.flatnonzero((kept != owners[i]) & np.isfinite(distances))
        best = candidates[np.argsort(distances[candidates], kind="stable")][:k]
        squares[i, : len(best)], slots[i, : len(best)] = distances[best], best
    return squares, slots


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("rows", [0, 1, 31, 33, 127, 128, 129, 255, 256, 257, 700])
def test_it_finds_what_looking_at_every_row_finds(rows: int, dtype: str) -> None:
    ring, held, kept = filled(rows, rows, dtype=dtype)
    rng = draw(1000 + rows)
    queries, owners = vectors(rng, 33, 32, dtype), rng.integers(0, 7, 33).astype(np.int32)
    squares, slots = cpu.ring_nearest(ring, queries, owners, 10)
    wanted = oracle(held, kept, queries, owners, 10)
    np.testing.assert_allclose(squares, wanted[0], rtol=0 if dtype == "int8" else 1e-5)
    if dtype == "int8" or not rows:
        assert slots.tolist() == wanted[1].tolist()
    else:
        assert (slots == wanted[1]).mean() > 0.99  # neighbours closer to each other than rounding may change places


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("dims", [8, 9, 10, 11, 13, 31, 33, 63, 64])
def test_any_width_and_any_number_of_neighbours(dims: int, dtype: str) -> None:
    ring, held, kept = filled(dims, 200, dims=dims, dtype=dtype)
    queries, owners = vectors(draw(1), 5, dims, dtype), np.arange(5, dtype=np.int32)
    for k in (1, 2, 10):
        squares, _ = cpu.ring_nearest(ring, queries, owners, k)
        np.testing.assert_allclose(squares, oracle(held, kept, queries, owners, k)[0], rtol=1e-5)


def test_the_furthest_int8_distance_is_exact() -> None:
    ring = make_ring(128, 64)
    cpu.ring_push(ring, np.full((1, 64), -128, np.int8), np.zeros(1, np.int32))
    squares, _ = cpu.ring_nearest(ring, np.full((1, 64), 127, np.int8), np.ones(1, np.int32), 1)
    assert squares[0, 0] == 64 * 255**2


@pytest.mark.parametrize("dtype", STORED)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(dtype: str) -> None:
    ring, _, _ = filled(3, 256, dtype=dtype)
    queries, owners = vectors(draw(4), 257, 32, dtype), draw(5).integers(0, 5, 257).astype(np.int32)
    whole = cpu.ring_nearest(ring, queries, owners, 10)
    for start, stop in ((0, 1), (1, 3), (3, 6), (6, 100), (100, 257), (17, 17)):
        piece = cpu.ring_nearest(ring, queries[start:stop].copy(), owners[start:stop].copy(), 10)
        for one, other in zip(piece, whole, strict=True):
            assert one.tobytes() == other[start:stop].tobytes()


def test_an_account_never_meets_itself_and_the_lower_slot_wins_a_tie() -> None:
    ring = make_ring(256, 8)
    same = np.full((200, 8), 5, np.int8)
    cpu.ring_push(ring, same, (np.arange(200) % 2).astype(np.int32))
    squares, slots = cpu.ring_nearest(ring, same[:3], np.array([0, 1, 2], np.int32), 3)
    assert slots.tolist() == [[1, 3, 5], [0, 2, 4], [0, 1, 2]]
    assert not squares.any()


def test_near_duplicates_far_from_the_origin_keep_their_accuracy_in_float16() -> None:
    rng = draw(6)
    base = (2000 + rng.normal(0, 1, (50, 16))).astype(np.float16)
    ring = make_ring(128, 16, "float16")
    cpu.ring_push(ring, base, np.zeros(50, np.int32))
    queries = base + rng.integers(0, 3, base.shape).astype(np.float16)
    squares, _ = cpu.ring_nearest(ring, queries, np.ones(50, np.int32), 1)
    np.testing.assert_allclose(squares, oracle(base, np.zeros(50), queries, np.ones(50), 1)[0], rtol=1e-6)


def test_every_float16_is_widened_as_numpy_widens_it() -> None:
    from mlsecd.kernels import cpu_ring  # noqa: PLC0415

    every = np.arange(2**16, dtype=np.uint16).reshape(512, 128)
    out = np.full(every.shape, np.nan, np.float32)
    cpu_ring._widen_halves(every, out)
    wanted = every.view(np.float16).astype(np.float32)
    ordinary = ~np.isnan(wanted)
    assert np.array_equal(out[ordinary].view(np.uint32), wanted[ordinary].view(np.uint32))
    assert np.isnan(out[~ordinary]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_nobodys_neighbour(value: float) -> None:
    ring, held, kept = filled(8, 100, dtype="float16")
    poison = np.full((3, 32), value, np.float16)
    cpu.ring_push(ring, poison, np.full(3, 9, np.int32))
    queries = np.concatenate((held[:4], poison[:1]))
    owners = np.full(5, 8, np.int32)
    squares, slots = cpu.ring_nearest(ring, queries, owners, 10)
    wanted = oracle(held, kept, queries, owners, 10)
    np.testing.assert_allclose(squares, wanted[0], rtol=1e-5)
    assert slots.max() < 100
    assert slots[4].tolist() == [-1] * 10


def test_zero_vectors_lie_on_each_other() -> None:
    ring = make_ring(128, 8)
    cpu.ring_push(ring, np.zeros((2, 8), np.int8), np.zeros(2, np.int32))
    squares, slots = cpu.ring_nearest(ring, np.zeros((1, 8), np.int8), np.ones(1, np.int32), 3)
    assert squares.tolist() == [[0.0, 0.0, np.inf]]
    assert slots.tolist() == [[0, 1, -1]]


@pytest.mark.parametrize(("capacity", "dims", "dtype"), [
    (0, 32, "int8"), (100, 32, "int8"), (2**20 + 128, 32, "int8"), (128, 7, "int8"), (128, 65, "int8"),
    (128, 32, "float32"),
])  # fmt: skip
def test_a_ring_of_the_wrong_kind_is_refused(capacity: int, dims: int, dtype: str) -> None:
    with pytest.raises(KernelError):
        make_ring(capacity, dims, dtype)


def test_wrong_arguments_are_refused_before_any_arithmetic() -> None:
    ring, held, _ = filled(2, 50)
    owners = np.zeros(50, np.int32)
    wrong: list[tuple[Any, Any, str]] = [
        (held.astype(np.float32), owners, "int8"),
        (held.astype(np.uint8), owners, "int8"),
        (held[:, :31], owners, "32"),
        (np.asfortranarray(held), owners, "contiguous"),
        (np.repeat(held, 2, axis=0)[::2], owners, "contiguous"),
        (held, owners[:49], "owners"),
        (held, owners.astype(np.int64), "owners"),
        (held.tolist(), owners, "list"),
        (held[0], owners, "vectors"),
    ]
    for made, whose, word in wrong:
        for call in (cpu.ring_push, cpu.ring_nearest):
            with pytest.raises(KernelError, match=word):
                call(ring, made, whose)
    for k in (0, 11, -1):
        with pytest.raises(KernelError, match="neighbours"):
            cpu.ring_nearest(ring, held, owners, k)
    broken = [
        ring._replace(codes=ring.codes[:, :, :64]),
        ring._replace(codes=ring.codes.astype(np.int16)),
        ring._replace(owners=ring.owners[:1]),
        ring._replace(pushed=np.zeros(1, np.int32)),
        ring._replace(codes=np.ones((4, 32, RING_TILE), np.int8)[::2]),
    ]
    for one in broken:
        with pytest.raises(KernelError):
            cpu.ring_nearest(one, held, owners)
    assert ring.pushed[0] == 50
