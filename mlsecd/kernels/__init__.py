"""Numbers only: numpy in, numpy out. One backend is chosen once, in ``app.py``, and handed down.

Nothing heavy is imported here: numba comes with the backend that :func:`select` loads.
"""

from __future__ import annotations

import importlib
import sys
from importlib import util
from typing import Any

from mlsecd.errors import KernelError
from mlsecd.kernels.polite import Limits, Polite, Told

__all__ = ["Kernels", "select"]

# A backend has functions with the names and signatures of `formulas` and `signatures`: the module
# `cpu`, or `Polite`, which has the same and lends itself a GPU. Float64 oracles stand in the tests.
Kernels = Any


def select(backend: str = "auto", told: Told = lambda _backend, _why: None) -> Kernels:
    """Load a backend.

    Parameters
    ----------
    backend
        ``cpu``; ``auto``, where large batches go to a GPU while it is free, if the extra ``mlsecd[cuda]``
        is there; ``cuda``, the same for batches of any size.
    told
        Called with "cpu" or "cuda" and a reason whenever batches move from one to the other.

    Raises
    ------
    KernelError
        The backend that was asked for does not exist or cannot run on this host.
    """
    if backend not in {"auto", "cpu", "cuda"}:
        raise KernelError(f'no kernel backend "{backend}": use "auto", "cpu" or "cuda"')
    there = util.find_spec("numba_cuda") is not None
    if backend == "cuda" and not there:
        raise KernelError('kernels = "cuda" needs numba-cuda: pip install "mlsecd[cuda]", or use "auto"')
    _load_numba_without_scipy()
    from mlsecd.kernels import cpu  # noqa: PLC0415 - numba is heavy

    if backend == "cpu" or not there:
        return cpu
    return _polite(cpu, Limits() if backend == "auto" else Limits(least_work=0.0), told)


def _polite(cpu: Any, limits: Limits, told: Told) -> Polite:
    from mlsecd.kernels.work import WORK  # noqa: PLC0415 - only where there may be a GPU

    def open_gpu(uuid: str) -> Any:
        backend = importlib.import_module("mlsecd.kernels.cuda_backend")  # imports numba.cuda: never before now
        return backend.open_gpu(uuid, limits.memory_bytes)

    return Polite(cpu, open_gpu, WORK, limits=limits, told=told)


def _load_numba_without_scipy() -> None:
    """Keep numba from importing scipy: it does where scipy is installed, for ``np.dot`` in kernels.

    Ours use none (BLAS would round differently for other batch sizes), and scipy costs a daemon
    0.3 s at its start and 13 MiB for good. Fitting, on the command line, may import it all the same.
    """
    if "scipy" in sys.modules:
        return
    sys.modules["scipy"] = None  # type: ignore[assignment]  # importing it fails, as if it were absent
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules["scipy"]
