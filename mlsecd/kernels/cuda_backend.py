"""The batch kernels of one GPU, under the names and signatures of ``signatures.BatchKernels``."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from mlsecd.errors import KernelError
from mlsecd.kernels import cuda_counters, cuda_features, cuda_mmd, cuda_ring, cuda_windows
from mlsecd.kernels.cuda import Device, Shape

__all__ = ["KERNELS", "on", "open_gpu", "shapes"]

_MODULES: Final = (cuda_ring, cuda_windows, cuda_mmd, cuda_features, cuda_counters)
KERNELS: Final[dict[str, Callable[..., Any]]] = {
    "countmin_add": cuda_counters.countmin_add,
    "hll_add": cuda_counters.hll_add,
    "histograms": cuda_features.histograms,
    "ks_distances": cuda_features.ks_distances,
    "mmd_sums": cuda_mmd.mmd_sums,
    "moments_add": cuda_counters.moments_add,
    "quantile_add": cuda_counters.quantile_add,
    "random_features": cuda_mmd.random_features,
    "ring_nearest": cuda_ring.ring_nearest,
    "window_neighbours": cuda_windows.window_neighbours,
}


def on(device: Device) -> Any:
    """The kernels of a device; ``ring_push`` and ``countmin_read`` touch memory of the host alone."""
    return SimpleNamespace(**{name: functools.partial(kernel, device) for name, kernel in KERNELS.items()})


def open_gpu(uuid: str, memory_bytes: int) -> Any:
    """The kernels of the GPU with this UUID, and of no other: the driver gets to see that one alone.

    Raises
    ------
    KernelError
        The operator gave this process other GPUs (``CUDA_VISIBLE_DEVICES``).
    """
    given = os.environ.setdefault("CUDA_VISIBLE_DEVICES", uuid)
    if uuid not in given.split(","):
        raise KernelError(f"CUDA_VISIBLE_DEVICES does not name {uuid}")
    return on(Device(memory_bytes))


def shapes() -> dict[str, Shape]:
    """Every kernel as it is launched, by name."""
    return {name: shape for module in _MODULES for name, shape in module.shapes().items()}
