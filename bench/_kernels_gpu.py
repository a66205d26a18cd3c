"""The GPU's part of bench.kernels: batches checked against the CPU, and their kernels beside this card's floor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numba import float32, int32

from bench._kernel_cases import CASES, Case
from bench.rows import Row
from mlsecd.kernels import select
from mlsecd.kernels.cuda import FAST, Device, cuda, simulated
from mlsecd.kernels.cuda_backend import on

__all__ = ["computed", "on_gpu", "there_is_one"]

_THREADS: Final = 256
_LOADS: Final = 32  # of shared memory, a round and thread
_ROWS: Final = 33  # one more than they are: a number, since the compiler takes no sums here


class Card(NamedTuple):
    """Published peaks, as remembered; nothing here was measured or looked up."""

    name: str
    flops: float  # float32, a multiply-add counts as two
    bandwidth: float  # bytes/s
    processors: int
    clock: float  # Hz, boost


CARDS = (
    Card("L4", 30.3e12, 300e9, 58, 2.04e9),
    Card("A100", 19.5e12, 1555e9, 108, 1.41e9),
    Card("H100", 67e12, 3350e9, 132, 1.98e9),
)


class Ceilings(NamedTuple):
    """What a card was measured to do at most, a second."""

    multiply_adds: float  # of float32
    copied: float  # bytes, read and written
    words: float  # of shared memory, without conflicts


def there_is_one() -> bool:
    """Whether a GPU can be used."""
    return not simulated() and cuda.is_available()


@cuda.jit(fastmath=FAST)
def _multiply_adds(out: Any, a: Any, rounds: Any) -> None:
    """Eight chains of multiply-adds a thread, 16 steps a round."""
    thread = cuda.grid(1)
    x0, x1, x2, x3 = float32(thread), float32(1), float32(2), float32(3)
    x4, x5, x6, x7 = float32(4), float32(5), float32(6), float32(7)
    for _ in range(rounds):
        for _step in range(16):
            x0 = x0 * a + a
            x1 = x1 * a + a
            x2 = x2 * a + a
            x3 = x3 * a + a
            x4 = x4 * a + a
            x5 = x5 * a + a
            x6 = x6 * a + a
            x7 = x7 * a + a
    out[thread] = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7


@cuda.jit
def _read_shared(out: Any, rounds: Any) -> None:
    """Each thread reads a word of its own bank, 32 a round, at places that the compiler cannot foresee."""
    tile = cuda.shared.array((_ROWS, _THREADS), int32)
    thread = cuda.threadIdx.x
    for j in range(_ROWS):
        tile[j, thread] = int32(rounds >> 30)
    cuda.syncthreads()
    total = int32(0)
    for _ in range(rounds):
        first = total & 1
        for j in range(_LOADS):
            total += tile[first + j, thread]
    out[cuda.grid(1)] = total


@cuda.jit
def _hold_up(out: Any, rounds: Any) -> None:
    """Keeps the stream busy while launches queue up behind it: their own time alone is then between two events."""
    x = float32(1)
    for _ in range(rounds):
        x = x * float32(0.999) + float32(1)
    out[0] = x


class _Timed(Device):
    """A device that knows what its kernels took, without transfers and without the time of a launch."""

    def __init__(self) -> None:
        super().__init__(memory_limit=1 << 30)
        self._sink = cuda.device_array(1, np.float32)
        self._between: list[tuple[Any, Any]] = []

    def launch(self, kernel: Any, blocks: tuple[int, int], threads: int, *arguments: Any) -> None:
        began, ended = cuda.event(), cuda.event()
        super().launch(_hold_up, (1, 1), 1, self._sink, int32(200_000))
        began.record(self._stream)
        super().launch(kernel, blocks, threads, *arguments)
        ended.record(self._stream)
        self._between.append((began, ended))

    def seconds(self) -> float:
        """Of all kernels since it was asked last."""
        self._wait()
        taken = sum(cuda.event_elapsed_time(*pair) for pair in self._between) / 1e3
        self._between.clear()
        return float(taken)


def _ceilings() -> Ceilings:
    device = _Timed()
    blocks, rounds = 16 * cuda.get_current_device().MULTIPROCESSOR_COUNT, 2_000
    out = cuda.device_array(blocks * _THREADS, np.float32)
    counts = cuda.device_array(blocks * _THREADS, np.int32)
    threads = float(blocks * _THREADS * rounds)
    fused = _fastest(device, _multiply_adds, (blocks, 1), _THREADS, out, float32(0.5), int32(rounds))
    read = _fastest(device, _read_shared, (blocks, 1), _THREADS, counts, int32(rounds))
    one, other = (cuda.device_array(1 << 28, np.uint8) for _ in range(2))
    times = []
    for _ in range(5):
        began, ended = cuda.event(), cuda.event()
        began.record()
        other.copy_to_device(one)
        ended.record()
        ended.synchronize()
        times.append(cuda.event_elapsed_time(began, ended) / 1e3)
    return Ceilings(threads * 128 / fused, 2.0 * one.nbytes / min(times), threads * _LOADS / read)


def _fastest(device: _Timed, kernel: Any, *arguments: Any) -> float:
    times = []
    for _ in range(6):  # the first compiles
        device.launch(kernel, *arguments)
        times.append(device.seconds())
    return min(times[1:])


def card_floor(case: Case, card: Card) -> tuple[float, str]:
    """Seconds, and what they are spent on: arithmetic, memory, or loads from shared memory (a warp's a clock)."""
    return max(
        (2 * case.operations / card.flops, "arithmetic"),
        (case.moved / card.bandwidth, "memory"),
        (case.loads / 32 / (card.processors * card.clock), "shared memory"),
    )


def computed() -> Iterator[Row]:
    for make in CASES:
        for case in make():
            for card in CARDS:
                seconds, what = card_floor(case, card)
                yield Row(f"{case.name}, {card.name}, {what}", seconds * 1e6, "us/batch computed")


def _copies(case: Case) -> list[Any]:
    """Arguments of its own for each backend, since some are written to; a ring's mirror needs the ring itself."""
    if case.kernel == "ring_nearest":
        return list(case.arguments)
    return [one.copy() if isinstance(one, np.ndarray) else one for one in case.arguments]


def _differ(case: Case, gpu: Any, kernels: Any) -> str | None:
    mine, its = _copies(case), _copies(case)
    wanted, got = getattr(kernels, case.kernel)(*mine), getattr(gpu, case.kernel)(*its)
    pairs = [*zip(mine, its, strict=True)]
    if isinstance(wanted, tuple):
        pairs += zip(wanted[: 1 if case.tolerance else None], got, strict=False)
    elif wanted is not None:
        pairs.append((wanted, got))
    for one, other in pairs:
        if isinstance(one, np.ndarray) and not np.allclose(one, other, rtol=case.tolerance, atol=case.tolerance):
            return f"{case.name}: the GPU's answer is another than the CPU's"
    return None


def _measured(case: Case, gpu: Any, device: _Timed) -> tuple[float, float]:
    """Seconds of a whole batch, transfers included, and of its kernels alone: the best of ten each."""
    arguments = _copies(case)
    whole, alone = [], []
    plain = on(Device(memory_limit=1 << 30))
    for _ in range(11):
        began = time.perf_counter()
        getattr(plain, case.kernel)(*arguments)
        whole.append(time.perf_counter() - began)
    for _ in range(11):
        getattr(gpu, case.kernel)(*arguments)
        alone.append(device.seconds())
    return min(whole[1:]), min(alone[1:])


def _one_core(case: Case, kernels: Any) -> float:
    arguments, times = _copies(case), []
    for _ in range(4):
        began = time.perf_counter()
        getattr(kernels, case.kernel)(*arguments)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _floor(case: Case, most: Ceilings) -> tuple[float, str]:
    return max(
        (case.operations / most.multiply_adds, "arithmetic"),
        (case.moved / most.copied, "memory"),
        (case.loads / most.words, "shared memory"),
    )


def on_gpu() -> Iterator[Row]:
    """Every batch on the first GPU.

    Raises
    ------
    SystemExit
        Its answer is another than the CPU's.
    """
    most = _ceilings()
    name = cuda.get_current_device().name
    name = name.decode() if isinstance(name, bytes) else name
    yield Row(f"{name}: multiply-adds of float32", most.multiply_adds / 1e12, "T/s")
    yield Row("copy on the device, read and written", most.copied / 1e9, "GB/s")
    yield Row("words of shared memory", most.words / 1e12, "T/s")
    kernels, device = select("cpu"), _Timed()
    gpu = on(device)
    for make in CASES:
        for case in make():
            if wrong := _differ(case, gpu, kernels):
                raise SystemExit(wrong)
            whole, alone = _measured(case, gpu, device)
            yield Row(case.name, whole * 1e6, "us/batch", "one core", _one_core(case, kernels) / whole)
            floor, what = _floor(case, most)
            yield Row(
                f"  its kernels; floor {floor * 1e6:.4g} us, {what}", alone * 1e6, "us/batch", "floor", alone / floor
            )
