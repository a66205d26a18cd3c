"""What the request records carry: without identity, features or tokens, detectors are blind, and must say so."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.adapters.base import adapters
from mlsecd.engines.hold import Ordered
from mlsecd.meters import Meters
from mlsecd.records import FIELDS, Field, RequestBatch

__all__ = ["FIELDS_BY_ORIGIN", "FIELDS_COUNTED", "ModelsSeen", "count_fields"]

OTHER: Final = "other"
ORIGINS: Final = frozenset({"tap", "otlp", "recording", *adapters()})
FIELDS_BY_ORIGIN: Final = (
    "client",
    "features",
    "input_features",
    "predicted",
    "scores",
    "input_tokens",
    "output_tokens",
)
_MAX_PARTS: Final = 3
_MODELS: Final = 50

FIELDS_COUNTED: Final = (
    "client",
    "features",
    "input_features",
    "predicted",
    "scores",
    "input_tokens",
    "output_tokens",
    "body_hash",
    "template",
    "status",
    "duration_s",
)


def count_fields(ordered: Ordered, meters: Meters) -> None:
    """Add these requests to ``mlsecd_requests_total`` and ``mlsecd_requests_with_field_total{field}``."""
    batch = ordered.requests
    if batch is None:
        return
    real = np.flatnonzero(~batch.synthetic)
    meters.count("mlsecd_requests_total", len(real), synthetic="false")
    meters.count("mlsecd_requests_total", len(batch) - len(real), synthetic="true")
    for name in FIELDS_COUNTED:
        meters.count("mlsecd_requests_with_field_total", int(_present(batch, name).sum()), field=name)
    _count_origins(batch, real, meters)


def _count_origins(batch: RequestBatch, real: NDArray[np.int64], meters: Meters) -> None:
    """The same by where real requests come from, for doctor: which source brings what."""
    column = batch.text("source")
    names = np.array([*map(_origin, column.values), OTHER], object)[column.codes[real]]
    held = {name: _present(batch, name)[real] for name in FIELDS_BY_ORIGIN}
    for origin in sorted(set(names.tolist())):
        mine = names == origin
        meters.count("mlsecd_origin_requests_total", int(mine.sum()), origin=origin)
        for name, rows in held.items():
            meters.count("mlsecd_origin_requests_with_field_total", int(rows[mine].sum()), origin=origin, field=name)


@functools.lru_cache(4096)
def _origin(source: str) -> str:
    """A ``source`` as a label: records may say anything, and only names that are ours become one."""
    parts = source.split("+")
    if all(part in ORIGINS for part in parts) and len(parts) <= _MAX_PARTS:
        return "+".join(sorted(set(parts)))
    return "socket" if source.startswith("uid:") else OTHER


def _present(batch: RequestBatch, name: str) -> NDArray[np.bool_]:
    """bool[n]: rows, synthetic ones included, that hold this field."""
    if not batch.has(name):
        return np.zeros(len(batch), np.bool_)
    match FIELDS[name]:
        case Field.NUMBER:
            return np.isfinite(batch.number(name))
        case Field.FLAG:
            return batch.flag(name) >= 0
        case Field.TEXT:
            return batch.text(name).codes >= 0
        case Field.TEXTS:
            return batch.texts(name).codes.lengths > 0
        case Field.VECTOR | Field.IDS:
            return batch.ragged(name).lengths > 0


class ModelsSeen:
    """How many requests each model got since the start, and when it was last asked; a bounded number of models."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}  # name -> requests, event time of the last

    def count(self, batch: RequestBatch) -> None:
        """Add these requests."""
        model = batch.text("model")
        counts = np.bincount(model.codes[model.codes >= 0], minlength=len(model.values))
        for code in np.flatnonzero(counts).tolist():
            name = model.values[code]
            if name in self._seen or len(self._seen) < _MODELS:
                last = float(batch.completion[model.codes == code].max())
                before, earlier = self._seen.get(name, (0, last))
                self._seen[name] = (before + int(counts[code]), max(last, earlier))

    def rows(self) -> tuple[tuple[str, int, float], ...]:
        """Name, requests, last event time; the most asked first."""
        ranked = sorted(self._seen.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple((name, requests, last) for name, (requests, last) in ranked)
