"""CUDA kernels in numba's simulator, against the CPU and its float64 oracles: same names, same answers.

With ``MLSECD_TEST_GPU=1`` the same tests run on the first real GPU instead.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
import pytest
from numba import config

from mlsecd.errors import KernelError
from mlsecd.kernels import counters, cpu
from mlsecd.kernels.polite import GpuState, Limits, Polite
from mlsecd.kernels.rings import make_ring
from mlsecd.kernels.work import WORK
from tests.kernels import batches
from tests.kernels.batches import draw

pytest.importorskip("numba_cuda", reason="the CUDA target is the extra mlsecd[cuda]")
# a GPU neither warns of NaN nor of a product that wraps; the simulator computes with numpy's scalars, which do
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def target() -> Any:
    """The CUDA target, simulated or real: which of the two is settled when it is first imported."""
    real = os.environ.get("MLSECD_TEST_GPU") == "1"
    if not real:
        config.ENABLE_CUDASIM = 1
    module = importlib.import_module("mlsecd.kernels.cuda")
    assert module.simulated() is not real
    return module


@pytest.fixture(scope="module")
def gpu(target: Any) -> Any:
    """The CUDA backend on a device whose memory holds rubbish wherever nothing was written."""
    kernels = importlib.import_module("mlsecd.kernels.cuda_backend")

    class Poisoned(target.Device):
        def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
            made = super().empty(shape, dtype)
            if made.size:
                made.copy_to_device(np.full(shape, np.frombuffer(b"\x7f" * np.dtype(dtype).itemsize, dtype)[0]))
            return made

    return kernels.on(Poisoned())


@pytest.mark.parametrize("dtype", ["int8", "float16"])
@pytest.mark.parametrize(("rows", "dims"), [(0, 8), (1, 8), (33, 9), (129, 33), (300, 64)])
def test_ring(gpu: Any, rows: int, dims: int, dtype: str) -> None:
    rng = draw(rows)
    ring = make_ring(256, dims, dtype)
    held = np.clip(rng.normal(0, 40, (rows, dims)), -127, 127).astype(dtype)
    cpu.ring_push(ring, held, rng.integers(0, 4, rows).astype(np.int32))
    queries = np.concatenate((held[:2] if rows > 1 else held, np.zeros((1, dims), dtype)))
    owners = np.arange(len(queries), dtype=np.int32)
    wanted, got = cpu.ring_nearest(ring, queries, owners, 10), gpu.ring_nearest(ring, queries, owners, 10)
    np.testing.assert_allclose(got[0], wanted[0], rtol=0 if dtype == "int8" else 1e-5)
    if dtype == "int8":
        assert got[1].tolist() == wanted[1].tolist()


def test_a_ring_of_float16_ignores_what_is_not_finite(gpu: Any) -> None:
    ring = make_ring(128, 8, "float16")
    rows = np.zeros((4, 8), np.float16)
    rows[1, 3], rows[2, 0] = np.nan, np.inf
    cpu.ring_push(ring, rows, np.zeros(4, np.int32))
    squares, slots = gpu.ring_nearest(ring, rows[:3], np.ones(3, np.int32), 3)
    assert slots.tolist() == [[0, 3, -1], [-1, -1, -1], [-1, -1, -1]]
    assert np.isinf(squares[1]).all()


def test_the_device_follows_a_ring_that_goes_on(gpu: Any) -> None:
    """Only tiles that were pushed to are sent again; what is found is as if all were."""
    rng = draw(9)
    ring = make_ring(384, 8)
    for step in (100, 29, 0, 900):
        rows = rng.integers(-127, 128, (step, 8)).astype(np.int8)
        cpu.ring_push(ring, rows, rng.integers(0, 3, step).astype(np.int32))
        query, owner = rng.integers(-127, 128, (1, 8)).astype(np.int8), np.zeros(1, np.int32)
        wanted, got = cpu.ring_nearest(ring, query, owner, 10), gpu.ring_nearest(ring, query, owner, 10)
        assert got[1].tolist() == wanted[1].tolist()


@pytest.mark.parametrize("dims", [1, 33])
def test_windows(gpu: Any, dims: int) -> None:
    asked = batches.windows(dims, dims, [0, 1, 9, 33, 257])
    wanted, got = cpu.window_neighbours(asked), gpu.window_neighbours(asked)
    assert got.squares.tolist() == wanted.squares.tolist()
    assert got.counts.tolist() == wanted.counts.tolist()


@pytest.mark.parametrize(("n", "dims", "divisions"), [(2, 1, 0), (31, 3, 1), (33, 33, 3)])
def test_kernel_sums(gpu: Any, n: int, dims: int, divisions: int) -> None:
    case = batches.mmd_case(n, n, dims, divisions)
    got, wanted = gpu.mmd_sums(*case), batches.mmd_oracle(*case)
    np.testing.assert_allclose(got.rows, wanted[1], rtol=1e-6)
    np.testing.assert_allclose(got.inside, wanted[0], rtol=1e-6, atol=1e-9)


def test_divisions_beyond_one_round(gpu: Any) -> None:
    case = batches.mmd_case(5, 20, 2, 257)
    np.testing.assert_allclose(gpu.mmd_sums(*case).inside, batches.mmd_oracle(*case)[0], rtol=1e-6, atol=1e-9)


def test_random_features(gpu: Any) -> None:
    rng = draw(4)
    x, w = rng.normal(size=(17, 33)).astype(np.float32), rng.normal(size=(33, 15)).astype(np.float32)
    phases = rng.uniform(0, 6, 15).astype(np.float32)
    np.testing.assert_allclose(gpu.random_features(x, w, phases), cpu.random_features(x, w, phases), atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 33, 257])
def test_features(gpu: Any, n: int) -> None:
    values, reference, edges = (rows[1:] for rows in batches.feature_case(n, n, 70, 33))
    assert gpu.histograms(values, edges).tolist() == cpu.histograms(values, edges).tolist()
    wanted, got = cpu.ks_distances(reference, values), gpu.ks_distances(reference, values)
    assert got[0].tolist() == wanted[0].tolist()
    assert got[1].tolist() == wanted[1].tolist()


def test_sketches(gpu: Any) -> None:
    rng = draw(6)
    slots, hashes = rng.integers(0, 3, 257).astype(np.int32), rng.integers(0, 2**64, 257, dtype=np.uint64)
    hashes[:2] = 0, 2**64 - 1
    values = np.concatenate((rng.lognormal(0, 6, 250), [0, -1, np.nan, np.inf, -np.inf, 1e-30, 2.0**32]))
    calls: list[tuple[str, np.ndarray, tuple[Any, ...]]] = [
        ("hll_add", rng.integers(0, 3, (3, 64)).astype(np.uint8), (slots, hashes)),
        ("countmin_add", rng.integers(0, 9, (4, 64)), (hashes, rng.integers(-5, 2**40, 257))),
        ("quantile_add", np.ones((3, counters.BINS), np.int64), (slots, values.astype(np.float32))),
    ]
    for name, state, batch in calls:
        wanted = state.copy()
        getattr(cpu, name)(wanted, *batch)
        getattr(gpu, name)(state, *batch)
        assert np.array_equal(state, wanted), name


def test_moments(gpu: Any) -> None:
    rng = draw(7)
    slots, codes = np.array([2, 0, 2, 2, 0] * 7, np.int32), rng.integers(-128, 128, (35, 17)).astype(np.int8)
    made = [[np.ones(4, np.int64), np.ones((4, 17), np.int64), np.ones((4, 17, 17), np.int64)] for _ in range(2)]
    cpu.moments_add(*made[0], slots, codes)
    gpu.moments_add(*made[1], slots, codes)
    for one, other in zip(*made, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("failing", range(4, 9))
def test_a_device_that_fails_in_the_middle_of_a_batch_costs_nothing(target: Any, failing: int) -> None:
    """Each transfer in its turn: the CPU scores the batch, and counters are not added to twice."""
    backend = importlib.import_module("mlsecd.kernels.cuda_backend")
    told: list[str] = []
    steps = iter(range(1, 100))

    class Failing(target.Device):
        def receive(self, there: Any) -> Any:
            if next(steps) == failing:
                raise RuntimeError("an illegal memory access was encountered")
            return super().receive(there)

    kernels = Polite(
        cpu, lambda _uuid: backend.on(Failing()), WORK, limits=Limits(least_work=0.0, seconds_per_second=100.0),
        told=lambda where, _why: told.append(where), start=lambda warm: warm(),
    )  # fmt: skip
    kernels.note(GpuState("GPU-a", "ok", 0.0, 20 << 30, None, None))
    case = batches.mmd_case(5, 20, 2, 3)
    slots, codes = np.array([2, 0, 2, 2, 0], np.int32), np.arange(40, dtype=np.int8).reshape(5, 8)
    state = np.zeros(3, np.int64), np.zeros((3, 8), np.int64), np.zeros((3, 8, 8), np.int64)
    sums = kernels.mmd_sums(*case)
    kernels.moments_add(*state, slots, codes)
    np.testing.assert_allclose(sums.rows, batches.mmd_oracle(*case)[1], rtol=1e-6)
    assert state[0].tolist() == [2, 0, 3]
    assert state[1].sum() == codes.sum()
    assert told == ["cuda", "cpu"][failing == 4 :], "the first four transfers are the warm-up's and the first batch's"


def small(name: str, rng: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of a kernel, new ones each time: some are written to."""
    slots, hashes = np.array([2, 0, 2, 1, 0], np.int32), rng.integers(0, 2**64, 5, dtype=np.uint64)
    values, reference, edges = batches.feature_case(3, 8, 7, 5)
    if name == "ring_nearest":
        ring = make_ring(128, 8)
        cpu.ring_push(ring, rng.integers(-9, 9, (20, 8)).astype(np.int8), np.zeros(20, np.int32))
        return ring, rng.integers(-9, 9, (2, 8)).astype(np.int8), np.ones(2, np.int32)
    made: dict[str, Any] = {
        "window_neighbours": lambda: (batches.windows(3, 4, [0, 12]),),
        "mmd_sums": lambda: batches.mmd_case(3, 6, 2, 3),
        "random_features": lambda: tuple(rng.normal(size=s).astype(np.float32) for s in ((3, 2), (2, 4), (4,))),
        "histograms": lambda: (values, edges),
        "ks_distances": lambda: (reference, values),
        "hll_add": lambda: (np.zeros((3, 16), np.uint8), slots, hashes),
        "countmin_add": lambda: (np.zeros((2, 16), np.int64), hashes, np.ones(5, np.int64)),
        "quantile_add": lambda: (np.zeros((3, counters.BINS), np.int64), slots, np.arange(5, dtype=np.float32)),
        "moments_add": lambda: (
            np.zeros(3, np.int64), np.zeros((3, 8), np.int64), np.zeros((3, 8, 8), np.int64),
            slots, rng.integers(-9, 9, (5, 8)).astype(np.int8),
        ),
    }  # fmt: skip
    return made[name]()


def flat(found: Any, arguments: tuple[Any, ...]) -> list[list[Any]]:
    """What a call returned and what it left in its arguments."""
    arrays = found if isinstance(found, tuple) else (found,)
    return [
        np.round(np.asarray(one, float), 5).ravel().tolist() for one in (*arrays, *arguments[:3]) if one is not None
    ]


@pytest.mark.parametrize("name", sorted(WORK))
def test_a_failure_at_any_step_of_any_kernel_loses_nothing(target: Any, name: str) -> None:
    """Launches and transfers either way, each in its turn: the answer is the CPU's, and counters count once."""
    backend = importlib.import_module("mlsecd.kernels.cuda_backend")
    plain = small(name, draw(4))
    if name == "ring_nearest":  # a tuple of arrays is no array
        wanted = [flat(cpu.ring_nearest(*plain), ())]
    else:
        wanted = [flat(getattr(cpu, name)(*plain), plain if name.endswith("_add") else ())]
    steps = failing = 0

    class Failing(target.Device):
        def _step(self) -> None:
            nonlocal steps
            steps += 1
            if steps == failing:
                raise RuntimeError("an illegal memory access was encountered")

        def launch(self, *arguments: Any) -> None:
            self._step()
            super().launch(*arguments)

        def receive(self, there: Any) -> Any:
            self._step()
            return super().receive(there)

        def _write(self, there: Any, array: Any) -> None:
            self._step()
            super()._write(there, array)

    told: list[str] = []
    failing = last = 1_000
    while failing > 0:
        steps = 0
        told.clear()
        kernels = Polite(
            cpu, lambda _uuid: None, WORK, limits=Limits(least_work=0.0, seconds_per_second=100.0),
            told=lambda where, why: told.append(f"{where}: {why}"),
        )  # fmt: skip
        kernels.note(GpuState("GPU-a", "ok", 0.0, 20 << 30, None, None))
        kernels._gpu, kernels._uuid = backend.on(Failing()), "GPU-a"  # as after the warm-up
        kernels._ready.add(name)
        arguments = small(name, draw(4))
        found = getattr(kernels, name)(*arguments)
        assert [flat(found, arguments if name.endswith("_add") else ())] == wanted, failing
        if failing == 1_000:
            assert told == ["cuda: free"]
            last = failing = steps
        else:
            assert told == ["cpu: failed: RuntimeError"]
        failing -= 1
    assert last >= 4


def test_memory_has_a_cap(target: Any) -> None:
    device = target.Device(memory_limit=1000)
    held = device.empty((100,), np.float64)
    with pytest.raises(KernelError, match="would pass the limit"):
        device.empty((201,), np.uint8)
    del held
    device.empty((1000,), np.uint8)
