"""Histograms and Kolmogorov-Smirnov distances in CUDA: a block a feature.

Counts of a histogram lie in shared memory; they are whole numbers, so the order of its atomics does
not show. A sample is sorted in shared memory (Batcher's bitonic network), then each of its values is
looked up in both rows by halving, and the widest gap found by a reduction.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import float32, int32, int64
from numpy.typing import NDArray

from mlsecd.errors import KernelError
from mlsecd.kernels.cuda import Device, Shape, array_type, cuda
from mlsecd.kernels.features import MAX_EDGES, check_histograms, check_ks

__all__ = ["MAX_SAMPLE", "histograms", "ks_distances", "shapes"]

MAX_SAMPLE: Final = 4_096  # values of a sample: what is sorted lies in shared memory
_THREADS: Final = 512
_BINS: Final = MAX_EDGES + 2
_INF: Final = math.inf


@cuda.jit
def _histograms(values: Any, edges: Any, counts: Any) -> None:
    bins = cuda.shared.array(_BINS, int32)
    limits = cuda.shared.array(MAX_EDGES, float32)
    thread, f = cuda.threadIdx.x, cuda.blockIdx.x
    width = edges.shape[1]
    for i in range(thread, width + 2, _THREADS):
        bins[i] = int32(0)
    for i in range(thread, width, _THREADS):
        limits[i] = edges[f, i]
    cuda.syncthreads()
    for i in range(thread, values.shape[1], _THREADS):
        value = values[f, i]
        at, left = 0, width
        while left > 0:
            half = (left + 1) >> 1
            if limits[at + half - 1] <= value:
                at += half
            left -= half
        if value != value:  # noqa: PLR0124 - NaN
            at = width + 1
        cuda.atomic.add(bins, at, int32(1))
    cuda.syncthreads()
    for i in range(thread, width + 2, _THREADS):
        counts[f, i] = bins[i]


@cuda.jit
def _ks(reference: Any, sample: Any, padded: Any, used: Any, out: Any) -> None:
    """``padded`` is a power of two that holds the sample; NaN and the rest become infinity and stay at the end."""
    ours = cuda.shared.array(MAX_SAMPLE, float32)
    gaps = cuda.shared.array(_THREADS, int64)
    thread, f = cuda.threadIdx.x, cuda.blockIdx.x
    n, m = int64(used[f]), int64(reference.shape[1])
    for i in range(thread, padded, _THREADS):
        value = sample[f, i] if i < sample.shape[1] else float32(_INF)
        ours[i] = value if value == value else float32(_INF)  # noqa: PLR0124 - NaN
    size = 2
    while size <= padded:
        step = size >> 1
        while step > 0:
            cuda.syncthreads()
            for i in range(thread, padded, _THREADS):
                other = i ^ step
                if other > i:
                    one, two = ours[i], ours[other]
                    if (one > two) == ((i & size) == 0):
                        ours[i] = two
                        ours[other] = one
            step >>= 1
        size <<= 1
    cuda.syncthreads()
    widest = int64(0)
    for i in range(thread, 2 * n, _THREADS):  # each value twice: what lies below it, and what does not lie above it
        value, over = ours[i >> 1], i & 1
        theirs, left = int64(0), m
        while left > 0:
            half = (left + 1) >> 1
            seen = reference[f, theirs + half - 1]
            if seen < value or (over and seen == value):
                theirs += half
            left -= half
        its, left = int64(0), n
        while left > 0:
            half = (left + 1) >> 1
            seen = ours[its + half - 1]
            if seen < value or (over and seen == value):
                its += half
            left -= half
        widest = max(widest, abs(theirs * n - its * m))
    gaps[thread] = widest
    half = _THREADS >> 1
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            gaps[thread] = max(gaps[thread], gaps[thread + half])
        half >>= 1
    if thread == 0:
        out[f] = gaps[0]


def histograms(device: Device, values: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.int64]:
    """As ``signatures.BatchKernels.histograms``."""
    check_histograms(values, edges)
    shape = len(edges), edges.shape[1] + 2
    if not len(edges):
        return np.zeros(shape, np.int64)
    counts = device.empty(shape, np.int32)
    device.launch(_histograms, (len(edges), 1), _THREADS, device.send(values), device.send(edges), counts)
    return device.receive(counts).astype(np.int64)


def ks_distances(
    device: Device, reference: NDArray[np.float32], sample: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """As ``signatures.BatchKernels.ks_distances``, for samples of up to 4,096 values."""
    check_ks(reference, sample)
    if sample.shape[1] > MAX_SAMPLE:
        raise KernelError(f"a sample of {sample.shape[1]} values is more than the GPU sorts, {MAX_SAMPLE}")
    used = (sample.shape[1] - np.isnan(sample).sum(axis=1)).astype(np.int32)
    if not sample.size:
        return np.zeros(len(sample), np.int64), used
    padded = max(1 << (sample.shape[1] - 1).bit_length(), 2)
    out = device.empty((len(sample),), np.int64)
    sent = device.send(reference), device.send(sample), np.int32(padded), device.send(used)
    device.launch(_ks, (len(sample), 1), _THREADS, *sent, out)
    return device.receive(out), used


def shapes() -> dict[str, Shape]:
    """What is compiled, for the compiler's report."""
    floats = array_type("float32", 2)
    ks = floats, floats, int32, array_type("int32", 1), array_type("int64", 1)
    return {
        "histograms": Shape(
            _histograms, (floats, floats, array_type("int32", 2)), _THREADS, "10 comparisons for 4 bytes"
        ),
        "ks_distances": Shape(_ks, ks, _THREADS, "78 exchanges and 48 comparisons a value, in shared memory"),
    }
