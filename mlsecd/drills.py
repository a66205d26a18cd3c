"""Synthetic attacks, one for each detector that has one: records that it must find something in.

All of them are marked synthetic, so nothing that comes of them ever pages. A detector that is not here is reported as
untried, never as passed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from mlsecd.detectors.base import Params
from mlsecd.engines.replay import records_of
from mlsecd.meters import Meters
from mlsecd.records import GpuProcess, GpuSample, Process, ProcessTable, Ragged, Records, RequestBatch, SourceStatus

__all__ = ["DRILLS", "Drill", "bundled", "fits"]

_GPU: Final = "GPU-00000000-d211-4000-8000-000000000000"


@dataclasses.dataclass(frozen=True)
class Drill:
    """An attack, and what it needs of the detector that should see it."""

    what: str
    records: Callable[[], list[Records]]
    params: dict[str, Any] = dataclasses.field(default_factory=dict)  # in place of what is configured
    bundled: bool = False  # whether it is about the bundled recording's model, and needs that baseline


def bundled(name: str) -> Path:
    """A file of the bundled recording."""
    return Path(str(resources.files("mlsecd"))) / "data" / "demo" / name


def fits(drill: Drill, params: Params) -> Params:
    """The configured parameters as the drill needs them."""
    return msgspec.structs.replace(params, **drill.params) if drill.params else params


def _requests() -> list[RequestBatch]:
    pieces = records_of([str(bundled("recording.jsonl.gz"))], Meters())
    return [_synthetic(piece) for piece in pieces if isinstance(piece, RequestBatch)]


def _synthetic(batch: RequestBatch) -> RequestBatch:
    columns = dict(batch.columns)
    columns["synthetic"] = np.ones(len(batch), np.int8)
    return RequestBatch(columns)


def _extraction() -> list[Records]:
    """The recording: fifteen ordinary accounts, and one that copies the model."""
    return list(_requests())


def _drift() -> list[Records]:
    """The recording until it is known, then the same requests with every vector moved."""
    before = RequestBatch.concat(_requests())
    columns = dict(before.columns)
    for name in ("features", "input_features"):
        vectors = before.ragged(name)
        columns[name] = Ragged(vectors.offsets, (vectors.values + 3.0).astype(vectors.values.dtype))
    columns["ts"] = before.ts + 300.0
    return [before, RequestBatch(columns)]


def _sample(ts: float, *processes: GpuProcess, **fields: Any) -> GpuSample:
    return GpuSample(ts=ts, gpu=_GPU, index=0, processes=processes, synthetic=True, **fields)


def _table(ts: float, *processes: Process) -> ProcessTable:
    host = (
        Process(pid=1, start_ticks=1, ppid=0, uid=0, exe="/usr/lib/systemd/systemd", name="systemd"),
        Process(pid=2, start_ticks=1, ppid=0, uid=0, name="kthreadd"),
    )
    return ProcessTable(ts=ts, processes=(*host, *processes), synthetic=True)


def _foreign_process() -> list[Records]:
    """A program that runs from a deleted file takes a GPU."""
    miner = Process(pid=4_242, start_ticks=42, ppid=1, uid=33, exe="/tmp/.x/kworker (deleted)")  # noqa: S108 - that is the drill
    held = GpuProcess(pid=4_242, used_memory_bytes=6 << 30)
    pairs = [(_table(float(ts), miner), _sample(ts + 0.5, held, utilization=0.99)) for ts in range(30)]
    return [one for pair in pairs for one in pair]


def _load() -> list[Records]:
    """Requests for a while, then ten minutes of load without any."""
    held = GpuProcess(pid=100, used_memory_bytes=1 << 30)
    seconds = range(600)
    rest: list[GpuSample | SourceStatus] = [_sample(float(ts), held, utilization=0.95) for ts in seconds]
    rest += [SourceStatus(ts=ts + 0.9, source="recording", ok=True, synthetic=True) for ts in seconds[::5]]
    batch = RequestBatch.concat(_requests())
    served = batch.take(np.flatnonzero(batch.completion < 100))
    return [served, *sorted(rest, key=_when)]


def _when(one: GpuSample | SourceStatus) -> float:
    return one.ts


def _lost() -> list[Records]:
    """A GPU that answers for a while, and then is gone from the bus."""
    states = ["ok"] * 30 + ["lost"] * 30
    return [_sample(float(ts), state=state, utilization=0.5) for ts, state in enumerate(states)]


DRILLS: Final = {
    "extraction_account": Drill(
        "an account copies the bundled model", _extraction, {"client_alpha": 0.02}, bundled=True
    ),
    "drift_requests": Drill("every vector of a model's requests moves", _drift, bundled=True),
    "gpu_foreign_process": Drill("a program runs on a GPU from a deleted file", _foreign_process),
    "gpu_load_without_requests": Drill("a GPU works for ten minutes without a request", _load),
    "gpu_lost": Drill("a GPU drops off the bus", _lost),
}
