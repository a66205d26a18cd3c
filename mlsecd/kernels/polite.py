"""When a GPU may be used, and what happens when it no longer may. The GPU belongs to the tenants.

No numba here and no driver: whether to begin is decided from what NVML's samples said (they come from
another process), and only then is the CUDA target imported, in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mlsecd.errors import KernelError

__all__ = ["Budget", "GpuState", "Limits", "Polite", "Told", "refusal"]

Told = Callable[[str, str], None]  # backend ("cpu" or "cuda"), why

_CONTEXT_BYTES: Final = 600 << 20  # what a CUDA context takes besides our arrays: 300 to 500 MiB on data-centre cards
_FRESH_SECONDS: Final = 15.0  # a sample older than this tells nothing
_PAUSE_SECONDS: Final = 60.0  # after the GPU was busy: no flapping


class Limits(NamedTuple):
    """What a guest may take."""

    memory_bytes: int = 256 << 20  # arrays, at most
    spare_bytes: int = 2 << 30  # memory that must stay free for the tenants, besides context and arrays
    utilization: float = 0.5  # of the GPU by all: above it, it is busy
    seconds_per_second: float = 0.05  # of GPU time
    least_work: float = 2e10  # operations of a call: below it the CPU is as quick, and disturbs nobody


class GpuState(NamedTuple):
    """The last NVML sample of one GPU, as far as it matters here; ``None`` is unknown."""

    uuid: str
    state: str  # ok, lost, hung, reset_required
    utilization: float | None
    free_bytes: int | None
    mig_mode: str | None
    compute_mode: str | None


def refusal(gpu: GpuState, limits: Limits, holding: bool = False) -> str | None:
    """Why this GPU may not be used now, or ``None``. Unknown is a reason: a guest does not guess.

    Parameters
    ----------
    holding
        Context and arrays are there already, so their memory need not be free as well.
    """
    if gpu.state != "ok":
        return f"gpu_{gpu.state}"
    if gpu.mig_mode not in {"disabled", None}:
        return "mig"
    if gpu.compute_mode not in {"default", None}:
        return "exclusive_mode"
    if gpu.utilization is None or gpu.free_bytes is None:
        return "unknown_load"
    if gpu.utilization > limits.utilization:
        return "busy"
    own = 0 if holding else _CONTEXT_BYTES + limits.memory_bytes
    return "memory" if gpu.free_bytes < limits.spare_bytes + own else None


class Budget:
    """Seconds of GPU time: they come in steadily, at most ten seconds' worth is saved up."""

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self._share = share
        self._clock = clock
        self._held = 10.0 * share
        self._last = clock()
        self._spent = False

    def left(self) -> bool:
        """Whether another call may start; one may overdraw. Then half is saved up first: no call by call to and fro."""
        now = self._clock()
        self._held = min(self._held + (now - self._last) * self._share, 10.0 * self._share)
        self._last = now
        self._spent = self._held < 5.0 * self._share if self._spent else self._held <= 0.0
        return not self._spent

    def spend(self, seconds: float) -> None:
        """Take what a call took."""
        self._held -= seconds


class Polite:
    """The CPU's kernels; of batches that are worth it, some on a GPU while it is free.

    Parameters
    ----------
    cpu
        The module that has every kernel.
    open_gpu
        Called once in a thread with a GPU's UUID; returns GPU kernels by name, each compiled when first called.
    work
        By name, the operations of a call from its arguments; kernels that are not here stay on the CPU.
    told
        Called at every switch, and once at the start.
    """

    def __init__(  # noqa: PLR0913 - what it stands on
        self,
        cpu: Any,
        open_gpu: Callable[[str], Any],
        work: dict[str, Callable[..., float]],
        *,
        limits: Limits,
        told: Told,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self.__name__ = "mlsecd.kernels.auto"
        self._cpu = cpu
        self._open = open_gpu
        self._limits = limits
        self._told = told
        self._clock = clock
        self._start = start or _in_thread
        self._budget = Budget(limits.seconds_per_second, clock)
        self._states: dict[str, tuple[float, GpuState]] = {}
        self._uuid = ""  # of the GPU that was chosen; it is never changed for another
        self._gpu: Any = None
        self._ready: set[str] = set()  # kernels that have run once, and so are compiled
        self._warming = threading.Lock()
        self._dead = ""  # why the GPU is given up for good
        self._paused_until = -1.0
        self._backend = "cpu"
        for name in dir(cpu):
            if not name.startswith("_"):
                setattr(self, name, getattr(cpu, name))
        for name, operations in work.items():
            setattr(self, name, self._either(name, operations))

    @property
    def backend(self) -> str:
        """Where the last batch that was worth it ran: ``cpu`` or ``cuda``."""
        return self._backend

    def note(self, gpu: GpuState) -> None:
        """Take in a sample."""
        self._states[gpu.uuid] = self._clock(), gpu
        if len(self._states) > 64:
            del self._states[next(iter(self._states))]

    def _either(self, name: str, operations: Callable[..., float]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            on_cpu = getattr(self._cpu, name)
            try:
                worth_it = operations(*arguments) >= self._limits.least_work
            except (AttributeError, IndexError, TypeError, ValueError):
                worth_it = False  # wrong arguments: the CPU's kernel says what is wrong with them
            if not worth_it:
                return on_cpu(*arguments, **named)
            why = self._why_not(name, arguments, named)
            if why is None:
                try:
                    return self._on_gpu(name, arguments, named)
                except KernelError:
                    why = "refused"  # its arguments, or the cap on memory: the GPU itself is well
                except Exception as error:  # noqa: BLE001 - whatever the driver raises, the batch is scored
                    why = self._give_up(error)
            self._switch("cpu", why)
            return on_cpu(*arguments, **named)

        return call

    def _on_gpu(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        began = self._clock()
        try:
            found = getattr(self._gpu, name)(*arguments, **named)
        finally:
            self._budget.spend(self._clock() - began)
        self._switch("cuda", "free")
        return found

    def _give_up(self, error: Exception) -> str:
        """For good: after a fault a context is of no use, and a new one needs a new process."""
        self._dead = f"failed: {type(error).__name__}"
        self._backend = "cpu"
        self._told("cpu", self._dead)
        return self._dead

    def _switch(self, backend: str, why: str) -> None:
        if backend != self._backend:
            self._backend = backend
            self._told(backend, why)

    def _why_not(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> str | None:
        now = self._clock()
        if self._dead:
            return self._dead
        if now < self._paused_until:
            return "busy"
        why = self._choose(now)
        if why in {"busy", "memory"}:
            self._paused_until = now + _PAUSE_SECONDS
        if why is None and name not in self._ready:
            self._warm(name, arguments, named)
            why = self._dead or ("warming_up" if name not in self._ready else None)
        if why is None and not self._budget.left():
            why = "time_budget"
        return why

    def _choose(self, now: float) -> str | None:
        """Why the GPU that was chosen, or every one, may not be used; chooses the idlest where none is."""
        fresh = [gpu for at, gpu in self._states.values() if now - at <= _FRESH_SECONDS]
        if self._uuid:
            mine = [gpu for gpu in fresh if gpu.uuid == self._uuid]
            return refusal(mine[0], self._limits, holding=self._gpu is not None) if mine else "no_sample"
        reasons = {gpu.uuid: refusal(gpu, self._limits) for gpu in fresh}
        free = [gpu for gpu in fresh if reasons[gpu.uuid] is None]
        if not free:
            return next(iter(reasons.values()), "no_sample")
        self._uuid = min(free, key=lambda gpu: (gpu.utilization or 0.0, gpu.uuid)).uuid
        return None

    def _warm(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Open the GPU and compile one kernel beside the daemon's work: both take seconds.

        The kernel runs on copies, for those that write into what they are given.
        """
        copies = _copied(arguments)

        def warm() -> None:
            with self._warming:
                if self._dead or name in self._ready:
                    return
                try:
                    if self._gpu is None:
                        self._gpu = self._open(self._uuid)
                    getattr(self._gpu, name)(*copies, **named)
                except Exception as error:  # noqa: BLE001 - as above: no driver, another version, no memory
                    if self._gpu is None or not isinstance(error, KernelError):
                        self._give_up(error)
                    return
                self._ready.add(name)

        if not self._warming.locked():
            self._start(warm)


def _copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arrays copied, tuples of arrays too; the rest as it is."""
    made: list[Any] = []
    for one in arguments:
        if isinstance(one, tuple):
            made.append(type(one)(*map(_copy, one)) if hasattr(one, "_fields") else tuple(map(_copy, one)))
        else:
            made.append(_copy(one))
    return tuple(made)


def _copy(one: Any) -> Any:
    return one.copy() if hasattr(one, "__array__") else one


def _in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="mlsecd-cuda-warm-up", daemon=True).start()
