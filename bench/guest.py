"""What a tenant's kernels notice of mlsecd on the same GPU: their latency, alone and beside it.

Usage: python -m bench.guest [--seconds 15] [--json]

The tenant is a process of its own that launches a kernel of some milliseconds, waits for it, and rests for two. Beside
it, batches go to the ring's kernel as often as a budget of 5 % of a second allows, then without a budget: the worst.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import float32, int32

from bench._kernel_cases import ring
from bench.rows import Row, report
from mlsecd.kernels.cuda import Device, cuda
from mlsecd.kernels.cuda_backend import on
from mlsecd.kernels.polite import Budget

_ROUNDS = 300_000


@cuda.jit
def _serve(out: Any, rounds: Any) -> None:
    """A tenant's work: every multiprocessor is busy with it."""
    x = float32(cuda.threadIdx.x)
    for _ in range(rounds):
        x = x * float32(0.5) + float32(1)
    out[cuda.grid(1)] = x


def tenant(seconds: float) -> None:
    """Print what each of its kernels took, milliseconds."""
    out, blocks = cuda.device_array(1 << 20, np.float32), 4 * cuda.get_current_device().MULTIPROCESSOR_COUNT
    _serve[blocks, 256](out, int32(_ROUNDS))
    cuda.synchronize()
    taken, ends = [], time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.perf_counter()
        _serve[blocks, 256](out, int32(_ROUNDS))
        cuda.synchronize()
        taken.append((time.perf_counter() - began) * 1e3)
        time.sleep(0.002)
    print(json.dumps(taken))


def _score(stop: threading.Event, share: float | None) -> None:
    gpu, case = on(Device()), ring(65_536, 32, "int8", 256)
    budget = Budget(1.0 if share is None else share, time.monotonic)
    while not stop.is_set():
        if share is not None and not budget.left():
            time.sleep(0.001)
            continue
        began = time.monotonic()
        gpu.ring_nearest(*case.arguments)
        budget.spend(time.monotonic() - began)


def _latencies(seconds: float) -> np.ndarray:
    command = [sys.executable, "-m", "bench.guest", "--tenant", str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return np.array(json.loads(done.stdout))


def measure(seconds: float) -> Iterator[Row]:
    alone = np.percentile(_latencies(seconds), [50, 99])
    yield Row("tenant's kernel alone: p50", alone[0], "ms")
    yield Row("tenant's kernel alone: p99", alone[1], "ms")
    for name, share in (("beside 5 % of a second", 0.05), ("beside batches without a budget", None)):
        stop = threading.Event()
        scoring = threading.Thread(target=_score, args=(stop, share))
        scoring.start()
        time.sleep(3)  # a context and a kernel
        taken = np.percentile(_latencies(seconds), [50, 99])
        stop.set()
        scoring.join()
        yield Row(f"{name}: p50", taken[0], "ms", "alone", taken[0] / alone[0])
        yield Row(f"{name}: p99", taken[1], "ms", "alone", taken[1] / alone[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--tenant", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.tenant is not None:
        tenant(options.tenant)
    else:
        report(measure(options.seconds), as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
