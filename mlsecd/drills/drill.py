"""What a drill is, and the records that drills are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors.base import Params
from mlsecd.records import (
    FIELDS,
    Field,
    GpuProcess,
    GpuSample,
    Process,
    ProcessTable,
    Ragged,
    Records,
    RequestBatch,
    SourceStatus,
    Text,
    Texts,
)

__all__ = ["GPU", "Drill", "bundled", "column_batch", "fits", "program", "sample", "status", "table"]

GPU: Final = "GPU-00000000-d211-4000-8000-000000000000"


@dataclasses.dataclass(frozen=True)
class Drill:
    """An attack, and what it needs of the detector that should see it."""

    what: str
    records: Callable[[], list[Records]]
    params: dict[str, Any] = dataclasses.field(default_factory=dict)  # in place of what is configured
    bundled: bool = False  # whether it is about the bundled recording's model, and needs that baseline
    ordinary: Callable[[], list[Records]] | None = None  # what the detector learns from first, in place of a baseline


def bundled(name: str) -> Path:
    """A file of the bundled recording."""
    return Path(str(resources.files("mlsecd"))) / "data" / "demo" / name


def fits(drill: Drill, params: Params) -> Params:
    """The configured parameters as the drill needs them."""
    return msgspec.structs.replace(params, **drill.params) if drill.params else params


def column_batch(ts: Sequence[float] | NDArray[np.float64], **columns: Any) -> RequestBatch:
    """Synthetic requests; a scalar stands for every row, and the rows come out in order of completion."""
    n = len(ts)
    made: dict[str, Any] = {"ts": np.asarray(ts, float), "synthetic": np.ones(n, np.int8)}
    for name, value in {"model": "drill", **columns}.items():
        made[name] = _column(FIELDS[name], value, n)
    batch = RequestBatch(made)
    return batch.take(np.argsort(batch.completion, kind="stable"))


def _column(kind: Field, value: Any, n: int) -> Any:
    match kind:
        case Field.NUMBER:
            return np.broadcast_to(np.asarray(value, float), n).copy()
        case Field.FLAG:
            return np.broadcast_to(np.asarray(value, np.int8), n).copy()
        case Field.TEXT:
            return _text([value] * n if isinstance(value, str) else list(value))
        case Field.TEXTS:
            coded = _text([word for row in value for word in row])
            return Texts(_ragged(value, coded.codes), coded.values)
        case Field.VECTOR:
            return _ragged(value, np.concatenate([np.asarray(row, np.float32) for row in value]))
        case Field.IDS:
            return _ragged(value, np.concatenate([np.asarray(row, np.int64) for row in value]))


def _text(values: Sequence[str]) -> Text:
    known: dict[str, int] = {}
    codes = [known.setdefault(value, len(known)) for value in values]
    return Text(np.array(codes, np.int32), tuple(known))


def _ragged(rows: Sequence[Any], flat: Any) -> Ragged:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Ragged(offsets, flat)


def sample(ts: float, *processes: GpuProcess, **fields: Any) -> GpuSample:
    """A sample of the drill's GPU."""
    return GpuSample(ts=ts, gpu=GPU, index=0, processes=processes, synthetic=True, **fields)


def program(pid: int, exe: str, **fields: Any) -> Process:
    """A process that systemd started under an ordinary user."""
    return Process(
        pid=pid, exe=exe, **{"start_ticks": pid, "ppid": 1, "uid": 997, "cgroup": "/system.slice/x", **fields}
    )


def table(ts: float, *processes: Process) -> ProcessTable:
    """A whole process table of a host."""
    host = (
        Process(pid=1, start_ticks=1, ppid=0, uid=0, exe="/usr/lib/systemd/systemd", name="systemd"),
        Process(pid=2, start_ticks=1, ppid=0, uid=0, name="kthreadd"),
    )
    return ProcessTable(ts=ts, processes=(*host, *processes), synthetic=True)


def status(ts: float, source: str = "recording") -> SourceStatus:
    """A source that lives."""
    return SourceStatus(ts=ts, source=source, ok=True, synthetic=True)
