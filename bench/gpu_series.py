"""GPU power and utilization beside requests, made from captured boards: ordinary days, and days with foreign work.

A board's idle and busy power are those of the captures in the stand-in's profiles (tests/fakenvml/README.md says
whose); how power follows load in between, and its noise, are a model of ours: saturating, with slow drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlsecd.records import GpuProcess, GpuSample, Records, RequestBatch, SourceStatus, Text

__all__ = ["BOARDS", "WORKLOADS", "Board", "Foreign", "Workload", "day"]

STEP = 5  # seconds between samples
DAY = 86_400

F8 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Board:
    """What a GPU draws, watts."""

    name: str
    idle: float
    busy: float
    limit: float


@dataclass(frozen=True, slots=True)
class Workload:
    """Who asks, how much, and what it takes."""

    name: str
    per_second: float  # requests, the day's mean
    input_tokens: float  # median
    output_tokens: float  # median
    tokens_per_second: float  # of one request's answer
    capacity: float  # output tokens a second that fill the GPU
    night: float  # share of the mean rate at 4 a.m.
    bursts: bool = False


@dataclass(frozen=True, slots=True)
class Foreign:
    """Work that no request explains: from, to (seconds of the day), share of the busy span, only beside traffic."""

    start: int
    end: int
    share: float
    beside_traffic: bool = False
    pid: int | None = None  # listed by NVML from its start on; None: hidden in the server's own


BOARDS = (
    Board("H100", 69.85, 631.95, 700.0),
    Board("RTX 4080 SUPER", 26.2, 300.0, 320.0),
    Board("RTX 2080 SUPER", 39.32, 240.0, 250.0),
)
WORKLOADS = (
    Workload("chat", 0.8, 600, 250, 45, 900, 0.15),
    Workload("embed", 12.0, 300, 1, 50, 60, 0.3),
    Workload("code", 2.0, 1500, 40, 70, 400, 0.05, bursts=True),
)


@dataclass(slots=True)
class _Day:
    """One day second by second."""

    starts: F8
    ends: F8
    inputs: F8
    outputs: F8
    load: F8 = field(default_factory=lambda: np.zeros(DAY))


def _requests(work: Workload, rng: np.random.Generator) -> _Day:
    hours = np.arange(DAY) / 3600
    rate = work.per_second * (work.night + (1 - work.night) * (0.5 - 0.5 * np.cos((hours - 4) / 24 * 2 * np.pi)) * 1.8)
    if work.bursts:
        rate = rate * rng.choice([0.3, 2.5], DAY // 300, p=[0.7, 0.3]).repeat(300)
    starts = np.repeat(np.arange(DAY), rng.poisson(rate)) + 0.0
    starts = np.sort(starts + rng.uniform(0, 1, len(starts)))
    outputs = np.clip(work.output_tokens * rng.lognormal(0, 0.6, len(starts)), 1, 4000).round()
    inputs = np.clip(work.input_tokens * rng.lognormal(0, 0.7, len(starts)), 1, 32_000).round()
    ends = starts + 0.05 + inputs / 8000 + outputs / work.tokens_per_second
    made = _Day(starts, ends, inputs, outputs)
    tokens = np.zeros(DAY + 1)
    speed = (outputs + inputs / 20) / (ends - starts)
    np.add.at(tokens, np.clip(starts.astype(int), 0, DAY), speed)
    np.add.at(tokens, np.clip(ends.astype(int) + 1, 0, DAY), -speed)
    made.load = np.cumsum(tokens)[:DAY] / work.capacity
    return made


def _power(board: Board, made: _Day, foreign: tuple[Foreign, ...], rng: np.random.Generator) -> tuple[F8, F8]:
    """Watts and utilization of each second."""
    span = board.busy - board.idle
    work = 1 - np.exp(-1.6 * np.maximum(made.load, 0))
    for one in foreign:
        here = np.zeros(DAY, bool)
        here[one.start : one.end] = True
        work = work + np.where(here & ((made.load > 0.05) | (not one.beside_traffic)), one.share, 0.0)
    noise = np.zeros(DAY)
    drawn = rng.normal(0, 0.01, DAY)
    for at in range(1, DAY):  # AR(1): fans, temperature and batching do not change from second to second
        noise[at] = 0.95 * noise[at - 1] + drawn[at]
    drift = 0.01 * np.sin(np.arange(DAY) / DAY * 2 * np.pi + rng.uniform(0, 6))
    watts = board.idle * (1 + drift + rng.normal(0, 0.004, DAY)) + span * work * (1 + drift + noise)
    return np.minimum(watts, board.limit), np.clip(work * (1 + rng.normal(0, 0.03, DAY)), 0, 1)


def day(
    board: Board, work: Workload, seed: int, *, start: float = 0.0, hours: float = 24, foreign: tuple[Foreign, ...] = ()
) -> Iterator[Records]:
    """Records of a day, in order of event time: samples each 5 s, requests by completion, a live source."""
    rng = np.random.default_rng(seed)
    made = _requests(work, rng)
    watts, busy = _power(board, made, foreign, rng)
    order = np.argsort(made.ends, kind="stable")
    ends = made.ends[order]
    at = 0
    for second in range(0, int(hours * 3600), STEP):
        stop = int(np.searchsorted(ends, second))
        if stop > at:
            yield _batch(made, order[at:stop], work.name, start)
            at = stop
        pids = [100, *(one.pid for one in foreign if one.pid is not None and one.start <= second < one.end)]
        yield GpuSample(
            ts=start + second,
            gpu="GPU-1",
            name=board.name,
            power_watts=float(watts[second : second + STEP].mean()),
            power_limit_watts=board.limit,
            utilization=float(busy[second : second + STEP].mean()),
            processes=tuple(GpuProcess(pid=pid) for pid in pids),
        )
        if second % 10 == 0:
            yield SourceStatus(ts=start + second, source="request_log", ok=True)


def _batch(made: _Day, rows: NDArray[np.int64], model: str, start: float) -> RequestBatch:
    return RequestBatch(
        {
            "ts": start + made.starts[rows],
            "model": Text(np.zeros(len(rows), np.int32), (model,)),
            "duration_s": made.ends[rows] - made.starts[rows],
            "input_tokens": made.inputs[rows],
            "output_tokens": made.outputs[rows],
        }
    )
