"""The CUDA target: the only module that imports ``numba.cuda``, so that another compiler is an import swap.

Kernels are written in the subset that every numba target and the simulator know: shared and local
arrays, ``syncthreads``, integer atomics; no warp intrinsics, no cooperative groups. Importing this
neither looks for a GPU nor makes a context: the first launch does.
"""

from __future__ import annotations

import re
import time
import weakref
from typing import Any, Final, NamedTuple

import numpy as np
from numba import config, types
from numba import cuda as _target
from numpy.typing import NDArray

from mlsecd.errors import KernelError

__all__ = ["FAST", "Device", "Report", "Shape", "array_type", "compile_ptx", "compile_report", "cuda", "simulated"]

cuda: Any = _target  # what kernels are written against
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # type: ignore[attr-defined]  # a guest's grids are small on purpose
FAST: Final = {"contract", "nsz"}
_PATIENCE_SECONDS: Final = 5.0
_SPIN_SECONDS: Final = 100e-6  # most transfers are done by then; a sleep takes as long by itself
_REPORT: Final = re.compile(r"used (\d+) registers.*?(\d+) stack, (\d+) bytes smem")
_SPILLS: Final = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


class Shape(NamedTuple):
    """A kernel as it is launched: what the compiler and the occupancy are asked about."""

    kernel: Any
    arguments: tuple[Any, ...]  # numba types
    threads: int
    intensity: str  # its arithmetic intensity, in words, for docs/performance.md


class Report(NamedTuple):
    """What the compiler says of one kernel for one architecture."""

    registers: int
    spilled: int  # bytes stored and loaded
    stack: int  # bytes of local memory a thread
    shared: int  # bytes a block
    cubin: bytes


def array_type(dtype: Any, dims: int) -> Any:
    """The type of a contiguous array as kernels are compiled for."""
    return types.Array(getattr(types, np.dtype(dtype).name), dims, "C")


def simulated() -> bool:
    """Whether kernels run in the simulator (``NUMBA_ENABLE_CUDASIM=1``): exact, and thousands of times too slow."""
    return "simulator" in cuda.jit.__module__


def compile_ptx(shape: Shape, arch: tuple[int, int]) -> str:
    """PTX for an architecture that need not be here, as a launch would have it compiled."""
    fast = shape.kernel.targetoptions.get("fastmath", False)
    return cuda.compile_ptx(shape.kernel.py_func, shape.arguments, cc=arch, fastmath=fast)[0]


def compile_report(ptx: str, arch: tuple[int, int]) -> Report:
    """A cubin by nvJitLink, and what its assembler says of it.

    Raises
    ------
    ValueError
        The report is of a form that is not known.
    """
    from cuda.core import Linker, LinkerOptions, ObjectCode  # noqa: PLC0415 - of the compiler's wheels

    options = LinkerOptions(arch=f"sm_{arch[0]}{arch[1]}", ptxas_options=["-v"], verbose=True)
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    cubin = linker.link("cubin").code
    log = linker.get_info_log()
    found, spills = _REPORT.search(log), _SPILLS.findall(log)
    if found is None or not spills:
        raise ValueError(f"the compiler's report is of another form: {log}")
    registers, stack, shared = map(int, found.groups())
    return Report(registers, sum(int(a) + int(b) for a, b in spills), stack, shared, cubin)


class _Copy(NamedTuple):
    there: Any  # a device array
    pushed: int  # rows pushed when it was brought up to date
    of: Any  # a weak reference to the host's array


class Device:
    """One GPU as a guest uses it: a stream of the lowest priority, pinned staging, and a cap on memory.

    Parameters
    ----------
    memory_limit
        Bytes that arrays may take together, the context not included.

    Raises
    ------
    KernelError
        From any method: the cap would be passed. What the driver raises goes through as it is.
    """

    def __init__(self, memory_limit: int = 256 << 20) -> None:
        self._limit = memory_limit
        self._stream = _gentle_stream()
        self._staging: dict[int, Any] = {}
        self._copies: dict[int, _Copy] = {}
        self._live: list[weakref.ref[Any]] = []
        self._given_up: list[Any] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array on the device, its content undefined."""
        wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._live = [one for one in self._live if one() is not None]
        held = sum(array.nbytes for one in self._live if (array := one()) is not None)
        if held + wanted > self._limit:
            raise KernelError(f"{held + wanted} bytes on the GPU would pass the limit of {self._limit}")
        made = cuda.device_array(shape, dtype, stream=self._stream)
        self._live.append(weakref.ref(made))
        return made

    def send(self, array: NDArray[Any]) -> Any:
        """A copy on the device, through pinned memory."""
        made = self.empty(array.shape, array.dtype)
        self._write(made, array)
        return made

    def _write(self, there: Any, array: NDArray[Any]) -> None:
        if array.size:
            staged = self._staged(array.shape, array.dtype)
            staged[...] = array
            there.copy_to_device(staged, stream=self._stream)
            self._wait()  # the staging buffer is used again

    def _staged(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Pinned memory, one buffer for each power of two: copies from it do not pass through the driver's own."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole = max(1 << max(size - 1, 0).bit_length(), 4096)
        if whole not in self._staging:
            self._staging[whole] = cuda.pinned_array(whole, np.uint8)
        return self._staging[whole][:size].view(dtype).reshape(shape)

    def receive(self, there: Any) -> NDArray[Any]:
        """A copy on the host, once all that was launched before is done."""
        staged = self._staged(there.shape, there.dtype)
        if staged.size:
            there.copy_to_host(staged, stream=self._stream)
            self._wait()
        return np.array(staged)

    def _wait(self) -> None:
        """Until the stream is idle; a driver that does not answer must not hold up the daemon.

        Raises
        ------
        TimeoutError
            It is not after five seconds. What lies on the device is then never freed: that would wait as well.
        """
        if simulated():
            self._stream.synchronize()
            return
        done = cuda.event(timing=False)
        done.record(self._stream)
        began, pause = time.monotonic(), 20e-6
        while not done.query():
            waited = time.monotonic() - began
            if waited > _PATIENCE_SECONDS:
                self._given_up += [one() for one in self._live]
                raise TimeoutError("the GPU did not answer")
            if waited > _SPIN_SECONDS:
                time.sleep(pause)
                pause = min(2.0 * pause, 1e-3)

    def mirror(self, array: NDArray[Any], pushed: NDArray[np.int64], used: int, rows: int) -> Any:
        """A copy that is kept on the device; only blocks of ``rows`` that were pushed since are sent again.

        ``array`` has a block a first index, of which ``used`` hold anything; ``pushed[0]`` counts rows ever pushed.
        """
        held, now = self._copies.get(id(array)), int(pushed[0])
        if held is None or held.of() is not array or now - held.pushed >= rows * len(array) or now < held.pushed:
            held = None
        if held is None:
            made = self.empty(array.shape, array.dtype)
            self._write(made[:used], array[:used])
        else:
            made = held.there
            for block in range(held.pushed // rows, -(-now // rows)):
                at = block % len(array)
                self._write(made[at : at + 1], array[at : at + 1])
        key = id(array)
        self._copies[key] = _Copy(made, now, weakref.ref(array, lambda _: self._copies.pop(key, None) and None))
        return made

    def launch(self, kernel: Any, blocks: tuple[int, int], threads: int, *arguments: Any) -> None:
        """Start a kernel on the stream."""
        kernel[blocks, threads, self._stream](*arguments)


def _gentle_stream() -> Any:
    """A stream of the lowest priority: the tenants' kernels go first wherever a multiprocessor becomes free."""
    if simulated():
        return cuda.stream()
    from cuda.bindings import driver  # noqa: PLC0415 - comes with numba-cuda

    cuda.current_context()
    error, least, _ = driver.cuCtxGetStreamPriorityRange()
    if error == driver.CUresult.CUDA_SUCCESS:
        error, stream = driver.cuStreamCreateWithPriority(driver.CUstream_flags.CU_STREAM_NON_BLOCKING, least)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise KernelError(f"no low-priority stream: {error.name}")
    return cuda.external_stream(int(stream))
