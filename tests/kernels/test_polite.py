from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlsecd import kernels
from mlsecd.errors import KernelError
from mlsecd.kernels import cpu, polite
from mlsecd.kernels.polite import GpuState, Limits, Polite, refusal
from mlsecd.kernels.work import WORK
from tests.kernels import batches

FREE = GpuState("GPU-a", "ok", 0.1, 20 << 30, "disabled", "default")
LIMITS = Limits(least_work=100.0)


class Bench:
    """A polite backend over a pretended GPU that counts its calls and can be told to fail."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 1000.0
        self.told: list[tuple[str, str]] = []
        self.opened: list[str] = []
        self.calls: list[str] = []
        self.fail: Callable[[int], Exception | None] = lambda _call: None
        self.seconds = 0.0
        self.kernels = Polite(
            cpu, self.open, WORK, limits=limits, told=lambda *told: self.told.append(told),
            clock=lambda: self.now, start=lambda warm: warm(),
        )  # fmt: skip

    def open(self, uuid: str) -> Any:
        self.opened.append(uuid)
        return SimpleNamespace(**{name: self.kernel(name) for name in WORK})

    def kernel(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            if error := self.fail(len(self.calls)):
                raise error
            self.now += self.seconds
            return getattr(cpu, name)(*arguments, **named)

        return call

    def histograms(self) -> Any:
        values, _, edges = batches.feature_case(1, 50, 10, 33)
        found = self.kernels.histograms(values, edges)
        assert found.tolist() == cpu.histograms(values, edges).tolist()
        return found


@pytest.mark.parametrize(("change", "why"), [
    ({}, None),
    ({"state": "lost"}, "gpu_lost"),
    ({"state": "hung"}, "gpu_hung"),
    ({"mig_mode": "enabled"}, "mig"),
    ({"mig_mode": None, "compute_mode": None}, None),
    ({"compute_mode": "exclusive_process"}, "exclusive_mode"),
    ({"compute_mode": "prohibited"}, "exclusive_mode"),
    ({"utilization": None}, "unknown_load"),
    ({"free_bytes": None}, "unknown_load"),
    ({"utilization": 0.51}, "busy"),
    ({"free_bytes": (2 << 30) + (855 << 20)}, "memory"),
    ({"free_bytes": (2 << 30) + (856 << 20)}, None),
])  # fmt: skip
def test_what_speaks_against_a_gpu(change: dict[str, Any], why: str | None) -> None:
    assert refusal(FREE._replace(**change), LIMITS) == why


def test_what_it_holds_already_need_not_be_free_as_well() -> None:
    tight = FREE._replace(free_bytes=2 << 30)
    assert refusal(tight, LIMITS) == "memory"
    assert refusal(tight, LIMITS, holding=True) is None


def test_it_takes_the_idlest_free_gpu_and_says_so() -> None:
    bench = Bench()
    for state in (
        FREE._replace(uuid="GPU-c", utilization=0.3), FREE._replace(uuid="GPU-b", utilization=0.05), FREE,
        FREE._replace(uuid="GPU-d", utilization=0.0, mig_mode="enabled"),
    ):  # fmt: skip
        bench.kernels.note(state)
    bench.histograms()
    assert bench.opened == ["GPU-b"]
    assert bench.calls == ["histograms", "histograms"]  # once to warm up, then for the batch
    assert bench.told == [("cuda", "free")]
    assert bench.kernels.backend == "cuda"


def test_nothing_is_opened_without_a_fresh_sample_or_for_a_small_batch() -> None:
    bench = Bench()
    bench.histograms()
    bench.kernels.note(FREE)
    bench.now += 16.0
    bench.histograms()
    assert not bench.opened
    bench.kernels.note(FREE)
    bench.kernels.histograms(np.zeros((1, 2), np.float32), np.zeros((1, 1), np.float32))
    assert not bench.opened
    assert not bench.told


@pytest.mark.parametrize(("later", "why"), [
    (FREE._replace(utilization=0.9), "busy"), (FREE._replace(free_bytes=1 << 30), "memory"),
    (FREE._replace(state="lost"), "gpu_lost"), (FREE._replace(mig_mode="enabled"), "mig"),
])  # fmt: skip
def test_it_gives_way(later: GpuState, why: str) -> None:
    bench = Bench()
    bench.kernels.note(FREE)
    bench.histograms()
    bench.kernels.note(later)
    bench.histograms()
    assert bench.told == [("cuda", "free"), ("cpu", why)]
    assert len(bench.calls) == 2
    bench.kernels.note(FREE)
    bench.histograms()
    pauses = why in {"busy", "memory"}
    assert len(bench.calls) == (2 if pauses else 3)  # a busy GPU is left alone for a minute
    bench.now += 61.0
    bench.kernels.note(FREE)
    bench.histograms()
    assert bench.told[-1] == ("cuda", "free")


def test_it_takes_no_more_than_its_share_of_time() -> None:
    bench = Bench()
    bench.seconds = 0.1
    bench.kernels.note(FREE)
    for _ in range(1000):
        bench.kernels.note(FREE)
        bench.histograms()
        bench.now += 0.05
    used = 0.1 * len(bench.calls)
    assert used <= 0.05 * (bench.now - 1000.0) + 0.5 + 0.2  # a share, what was saved up, and one overdraft
    assert used >= 0.04 * (bench.now - 1000.0)
    assert ("cpu", "time_budget") in bench.told


def test_a_failure_loses_nothing_and_ends_it() -> None:
    """In each call that there is: the first opens and warms up, the others score."""
    for failing in range(1, 6):
        bench = Bench()
        bench.fail = lambda call, failing=failing: RuntimeError("an illegal access") if call == failing else None
        for _ in range(8):
            bench.kernels.note(FREE)
            bench.histograms()
        assert len(bench.calls) == failing
        assert bench.told == [("cuda", "free"), ("cpu", "failed: RuntimeError")][failing <= 2 :]
        assert bench.kernels.backend == "cpu"


def test_counters_are_not_added_to_twice_when_it_fails() -> None:
    bench = Bench()
    bench.fail = lambda call: RuntimeError("gone") if call == 3 else None
    table, hashes, ones = np.zeros((2, 64), np.int64), np.arange(40, dtype=np.uint64), np.ones(40, np.int64)
    for step in range(1, 5):
        bench.kernels.note(FREE)
        bench.kernels.countmin_add(table, hashes, ones)
        assert table[0].sum() == 40 * step  # warming up has worked on copies
    assert bench.told[-1] == ("cpu", "failed: RuntimeError")


def test_no_driver_is_no_trouble() -> None:
    bench = Bench()

    def open_gpu(_: str) -> Any:
        raise ImportError("libcuda.so.1")

    bench.kernels._open = open_gpu
    bench.kernels.note(FREE)
    for _ in range(3):
        bench.histograms()
    assert bench.kernels._dead == "failed: ImportError"


def test_what_a_gpu_refuses_goes_to_the_cpu_and_the_gpu_stays() -> None:
    bench = Bench()
    bench.kernels.note(FREE)
    bench.histograms()
    bench.fail = lambda call: KernelError("too much") if call == 3 else None
    bench.histograms()
    bench.histograms()
    assert bench.told == [("cuda", "free"), ("cpu", "refused"), ("cuda", "free")]


def test_wrong_arguments_are_still_refused() -> None:
    bench = Bench()
    bench.kernels.note(FREE)
    for wrong in ((None, None), (np.zeros(3), np.zeros(3)), (np.zeros((2, 400)), np.zeros((2, 9), np.float32))):
        with pytest.raises(KernelError):
            bench.kernels.histograms(*wrong)
    assert not any(why.startswith("failed") for _, why in bench.told)


def test_everything_else_is_the_cpus() -> None:
    bench = Bench()
    assert bench.kernels.scan is cpu.scan
    assert bench.kernels.CHANNELS == cpu.CHANNELS
    assert bench.kernels.__name__.rpartition(".")[2] == "auto"


def test_every_kernel_knows_its_work() -> None:
    asked = batches.windows(1, 8, [100, 50])
    assert WORK["window_neighbours"](asked) == 3 * 8 * 150
    x, members, gammas = batches.mmd_case(1, 40, 5, 7)
    assert WORK["mmd_sums"](x, members, gammas) == 800 * (15 + 14 + 60)
    counts = np.zeros(4, np.int64)
    assert WORK["moments_add"](counts, counts, counts, counts, np.zeros((10, 8), np.int8)) == 2 * 80 * 8
    assert WORK["random_features"](np.zeros((5, 3)), np.zeros((3, 9)), np.zeros(9)) == 2 * 15 * 9 + 20 * 45
    assert WORK["ks_distances"](np.zeros((2, 9)), np.zeros((2, 8))) == 2 * 16 * 4 + 18


def test_selecting_a_backend() -> None:
    assert kernels.select("cpu") is cpu
    with pytest.raises(KernelError, match="no kernel backend"):
        kernels.select("metal")
    pytest.importorskip("numba_cuda")
    for name, least in (("auto", 2e10), ("cuda", 0.0)):
        chosen = kernels.select(name)
        assert isinstance(chosen, Polite)
        assert chosen._limits.least_work == least
        assert chosen.backend == "cpu"


def test_without_numba_cuda_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.util, "find_spec", lambda _name: None)
    assert kernels.select("auto") is cpu
    with pytest.raises(KernelError, match="mlsecd\\[cuda\\]"):
        kernels.select("cuda")


def test_cuda_is_not_even_imported_before_a_gpu_is_free() -> None:
    code = """if True:
        import sys, numpy as np
        from mlsecd import kernels
        chosen = kernels.select("cuda")
        chosen.histograms(np.zeros((2, 40), np.float32), np.zeros((2, 9), np.float32))
        loaded = [name for name in sys.modules if name.startswith(("numba.cuda.", "numba_cuda", "cuda."))]
        print(sorted(loaded), "libcuda" in open("/proc/self/maps").read())
    """
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[] False"


def test_arrays_within_tuples_are_copied_for_the_warm_up() -> None:
    asked = batches.windows(1, 8, [5])
    copy, plain = polite._copied((asked, 3))
    assert type(copy) is type(asked)
    assert copy.codes is not asked.codes
    assert plain == 3
