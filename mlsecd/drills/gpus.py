"""Attacks on GPUs, as NVML and the process table would show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

import numpy as np

from mlsecd.drills.drill import Drill, column_batch, program, sample, status, table
from mlsecd.records import MERGE_ORDER, Depth, GpuJob, GpuProcess, Records, RequestBatch, XidEvent

__all__ = ["GPUS"]

_GIB: Final = 1 << 30
_SERVER: Final = GpuProcess(pid=100, used_memory_bytes=_GIB)
_POSTURE: Final = {
    "accounting_mode": "enabled",
    "driver_version": "590.48.01",
    "ecc_mode": "enabled",
    "vbios_version": "96.00.A5.00.01",
}


def _ordered(records: list[Records]) -> list[Records]:
    return sorted(records, key=lambda one: (_when(one), MERGE_ORDER[one.kind]))


def _when(one: Records) -> float:
    return float(one.completion[0]) if isinstance(one, RequestBatch) else one.ts


def _foreign_process() -> list[Records]:
    """A program that runs from a deleted file takes a GPU."""
    miner = program(4_242, "/tmp/.x/kworker (deleted)", uid=33)  # noqa: S108 - that is the drill
    held = GpuProcess(pid=4_242, used_memory_bytes=6 * _GIB)
    pairs = [(table(float(ts), miner), sample(ts + 0.5, held, utilization=0.99)) for ts in range(30)]
    return [one for pair in pairs for one in pair]


def _unlisted() -> list[Records]:
    """A program has the GPU's devices open for minutes, and NVML lists the server alone."""
    opened = Depth(devices=("/dev/nvidia0", "/dev/nvidia-uvm", "/dev/nvidiactl"))
    server = program(100, "/opt/server/bin/python", depth=opened)
    ghost = program(4_242, "/tmp/.x/kworker", uid=33, depth=opened)  # noqa: S108 - that is the drill
    records: list[Records] = [sample(float(ts), _SERVER) for ts in range(300)]
    return _ordered([*records, *(table(ts + 0.5, server, ghost) for ts in range(0, 300, 5))])


def _short_jobs() -> list[Records]:
    """Every ten seconds a job that begins and ends between two samples."""
    records: list[Records] = []
    for ts in range(0, 200, 10):
        ended = GpuJob(pid=4_000 + ts, start_ts=ts - 5.0, seconds=2.0, max_memory_bytes=_GIB, utilization=0.9)
        jobs = (ended,) if ts else ()
        records.append(sample(float(ts), _SERVER, accounted=5 + ts // 10, jobs=jobs, posture=_POSTURE))
    return records


def _hidden_memory() -> list[Records]:
    """Four more GiB are in use than any listed process accounts for."""
    known = {"memory_reserved_bytes": _GIB // 2, "memory_total_bytes": 80 * _GIB}
    return [sample(float(ts), _SERVER, memory_used_bytes=_GIB if ts < 20 else 5 * _GIB, **known) for ts in range(600)]


def _load() -> list[Records]:
    """Requests for a while, then ten minutes of load without any."""
    served = column_batch([float(ts) for ts in range(0, 100, 2)], client="k-drill", duration_s=0.1)
    records: list[Records] = [served.slice(row, row + 1) for row in range(len(served))]
    records += [sample(float(ts), _SERVER, utilization=0.95) for ts in range(700)]
    return _ordered([*records, *(status(ts + 0.9) for ts in range(0, 700, 5))])


def _power_day(minutes: int, start: float, seed: int, extra: float = 0.0) -> Iterator[Records]:
    """Power that follows the requests of each minute, ``extra`` watts on top; utilization says nothing of them."""
    rng = np.random.default_rng(seed)
    for minute in range(minutes):
        at = start + 60.0 * minute
        count = int(rng.integers(0, 40))
        watts = 80.0 + 5.0 * count + extra
        if count:
            yield column_batch(
                at + np.sort(rng.uniform(0.0, 50.0, count)),
                client="k-drill",
                duration_s=1.0,
                input_tokens=100.0,
                output_tokens=50.0,
            )
        for step in range(0, 60, 5):
            drawn = float(watts + rng.normal(0.0, 2.0))
            yield sample(at + step, _SERVER, power_watts=drawn, power_limit_watts=700.0, utilization=0.5)
            yield status(at + step + 0.5, "request_log")


def _power_learnt() -> list[Records]:
    """Five hours in which requests explain the power; real ones, since a baseline is not fitted on drills."""
    return _ordered([_real(one) for one in _power_day(300, 0.0, 1)])


def _real(one: Records) -> Records:
    if isinstance(one, RequestBatch):
        return RequestBatch({**one.columns, "synthetic": np.zeros(len(one), np.int8)})
    return dataclasses.replace(one, synthetic=False)


def _power() -> list[Records]:
    """The same service, and an hour of 200 W that nobody asked for."""
    return _ordered([*_power_day(30, 86_400.0, 2), *_power_day(60, 88_200.0, 3, extra=200.0)])


def _answers(minutes: int, start: float, seed: int, extra: float = 0.0) -> Iterator[Records]:
    """A GPU whose load, clock and heat follow its requests; ``extra`` watts on top."""
    rng = np.random.default_rng(seed)
    for minute in range(minutes):
        at = start + 60.0 * minute
        count = int(rng.integers(5, 60))
        yield column_batch(at + np.sort(rng.uniform(0.5, 59.0, count)), client="k-drill")
        busy = 0.1 + 0.012 * count + rng.normal(0.0, 0.02)
        power = 80.0 + 300.0 * busy + extra + rng.normal(0.0, 5.0)
        for step in (0.0, 20.0, 40.0):
            yield sample(
                at + step,
                _SERVER,
                utilization=float(busy),
                power_watts=float(power),
                sm_clock_hz=(1_900.0 - 200.0 * busy + rng.normal(0.0, 10.0)) * 1e6,
                temperature_celsius=float(30.0 + 0.1 * power + rng.normal(0.0, 0.5)),
                memory_used_bytes=60 * _GIB,
            )


def _drift() -> list[Records]:
    """A GPU is learnt for two hours, and then takes 150 W more for the same requests."""
    return _ordered([*_answers(130, 0.0, 4), *_answers(60, 7_800.0, 5, extra=150.0)])


def _lost() -> list[Records]:
    """A GPU that answers for a while, and then is gone from the bus."""
    states = ["ok"] * 30 + ["lost"] * 30
    return [sample(float(ts), state=state, utilization=0.5) for ts, state in enumerate(states)]


def _health() -> list[Records]:
    """A GPU that reports an uncontained memory error, as after a row-hammer attack."""
    fell = XidEvent(xid=95, ts=30.0)
    return [sample(float(ts), _SERVER, xid=(fell,) if ts == 30 else ()) for ts in range(60)]


def _posture() -> list[Records]:
    """Somebody switches error correction off."""
    off = {**_POSTURE, "ecc_mode": "disabled"}
    return [sample(float(ts), _SERVER, posture=_POSTURE if ts < 60 else off) for ts in range(0, 120, 5)]


GPUS: Final = {
    "gpu_foreign_process": Drill("a program runs on a GPU from a deleted file", _foreign_process),
    "gpu_unlisted_process": Drill("a program has a GPU open, and NVML does not list it", _unlisted),
    "gpu_short_jobs": Drill("jobs come and go between two samples", _short_jobs),
    "gpu_hidden_memory": Drill("4 GiB of GPU memory belong to no listed process", _hidden_memory),
    "gpu_load_without_requests": Drill("a GPU works for ten minutes without a request", _load),
    "gpu_power_unexplained": Drill("a GPU draws 200 W that no request explains", _power, ordinary=_power_learnt),
    "gpu_lost": Drill("a GPU drops off the bus", _lost),
    "gpu_health": Drill("a GPU reports a memory error that was not contained", _health),
    "gpu_posture": Drill("error correction is switched off", _posture),
    "drift_gpu": Drill("a GPU takes 150 W more for the same requests", _drift, {"arm_minutes": 60}),
}
