"""Kernels beside the floor of the machine they run on: microseconds, and how many times the floor.

    python -m bench.kernels [--json] [--device cpu|cuda]

The floor of a batch is the larger of its arithmetic and its bytes over what one core does at most, measured here too:
multiply-adds of float32 and of int32 in registers, look-ups in a table of 16 KiB, bytes copied. A step that has no such
measure (exponentials, cosines, counters at random places) is timed alone and added. ``--device cuda`` runs the same
batches on the first GPU, checks them against the CPU and fails where they differ: whole batches with their transfers,
and the kernels alone beside the floor by what that card was measured to do at most; without a GPU it prints the floors
that are computed for three cards from published peaks.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from bench._kernel_cases import CASES, Case
from bench.rows import Row, report
from mlsecd.kernels import select


@njit(nogil=True, fastmath={"contract"})
def _multiply_adds(values: Any, factors: Any, rounds: int) -> None:
    """Eight chained multiply-adds a load: 16 vectors of eight hide their latency."""
    a, b = factors[0], factors[1]
    for _ in range(rounds):
        for i in range(values.shape[0]):
            x = values[i]
            x = x * a + b
            x = x * a + b
            x = x * a + b
            x = x * a + b
            x = x * a + b
            x = x * a + b
            x = x * a + b
            values[i] = x * a + b


@njit(nogil=True)
def _look_up(table: Any, places: Any, out: Any, rounds: int) -> None:
    for _ in range(rounds):
        for i in range(places.shape[0]):
            out[i] = table[places[i]]


def best(times: int, run: Callable[[], Any], clock: Callable[[], float]) -> float:
    """The fastest of some runs, after one that compiles."""
    run()
    taken = []
    for _ in range(times):
        began = clock()
        run()
        taken.append(clock() - began)
    return min(taken)


class Ceilings(NamedTuple):
    """What one core does at most, a second."""

    floats: float  # multiply-adds of float32
    integers: float  # of int32
    lookups: float  # reads of a table that the first-level cache holds, at places that depend on data
    copied: float  # bytes, read and written


def ceilings() -> Ceilings:
    rounds = 20_000
    rates = []
    for values in (np.ones(128, np.float32), np.ones(128, np.int32)):
        seconds = best(7, lambda: _multiply_adds(values, values[:2], rounds), time.thread_time)  # noqa: B023
        rates.append(rounds * 128 * 8 / seconds)
    table, places = np.arange(4_096, dtype=np.int32), np.random.default_rng(0).integers(0, 4_096, 4_096)
    looked = best(7, lambda: _look_up(table, places, np.empty(4_096, np.int32), 100), time.thread_time)
    one, other = np.ones(8 << 20), np.ones(8 << 20)
    copied = best(5, lambda: np.copyto(one, other), time.thread_time)
    return Ceilings(*rates, 100 * 4_096 / looked, 2 * one.nbytes / copied)


def floor_of(case: Case, most: Ceilings) -> float:
    """Seconds."""
    work = case.operations / most.floats if case.integers is None else case.integers / most.integers
    if case.lookups:
        work = case.lookups / most.lookups
    step = best(5, case.step[1], time.thread_time) if case.step else 0.0
    return max(work + step, case.moved / most.copied)


def on_cpu() -> Iterator[Row]:
    kernels = select("cpu")
    most = ceilings()
    yield Row("one core: multiply-adds of float32", most.floats / 1e9, "G/s")
    yield Row("one core: multiply-adds of int32", most.integers / 1e9, "G/s")
    yield Row("one core: look-ups in 16 KiB", most.lookups / 1e9, "G/s")
    yield Row("one core: copy", most.copied / 1e9, "GB/s")
    for make in CASES:
        for case in make():
            seconds = best(5, lambda case=case: getattr(kernels, case.kernel)(*case.arguments), time.thread_time)
            floor = floor_of(case, most)
            yield Row(case.name, seconds / case.per * 1e6, f"us/{case.unit}", budget=case.budget)
            yield Row(
                f"  its floor {floor / case.per * 1e6:.4g} us", seconds / floor, "times", "floor", seconds / floor
            )


def _on_gpu() -> Iterator[Row]:
    from bench._kernels_gpu import computed, on_gpu, there_is_one  # noqa: PLC0415 - the extra mlsecd[cuda]

    if there_is_one():
        return on_gpu()
    print("no GPU: what follows is computed from published peaks, not measured", file=sys.stderr)
    return computed()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    with threadpool_limits(1):  # as the daemon has it: BLAS beside another process would wait for its second thread
        report(on_cpu() if options.device == "cpu" else _on_gpu(), as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
