"""Triton's trace files with TENSORS: class probabilities and embeddings of each request. docs/integrations/triton.md.

A file is a JSON array of events, several a request, tied by ``id``; its times are CLOCK_MONOTONIC. A request of a
batch becomes one record a row. Of tensors, outputs named like probabilities (or whose rows sum to 1) become
``scores``, those named like a class ``predicted``, like an embedding ``features``; the first input that is no text
becomes ``input_features``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from mlsecd.adapters.base import BAD, MAX_COUNT, Adapted, Adapter, Context, clean, render

__all__ = ["ADAPTER"]

_MAX_ITEMS: Final = 1024
_MAX_ROWS: Final = 256
_SCORES: Final = ("prob", "score", "softmax")
_CLASS: Final = ("label", "class", "predict")
_EMBEDDING: Final = ("embed", "feature", "hidden", "pool")
_FLOATS: Final = ("FP16", "FP32", "FP64", "BF16")


class _Tensor(msgspec.Struct, gc=False):
    name: str = ""
    data: str = ""
    shape: str = ""
    dtype: str = ""


class _Stamp(msgspec.Struct, gc=False):
    name: str = ""
    ns: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class _Event(msgspec.Struct, gc=False):
    id: int
    model_name: str | None = None
    request_id: str = ""
    timestamps: list[_Stamp] = []
    activity: str = ""
    tensor: _Tensor | None = None


class _Request:
    """What the events of one trace say."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.request_id: str | None = None
        self.times: dict[str, int] = {}
        self.inputs: list[_Tensor] = []
        self.outputs: list[_Tensor] = []

    def see(self, event: _Event) -> None:
        self.model = self.model or clean(event.model_name)
        self.request_id = self.request_id or clean(event.request_id)
        self.times.update((stamp.name, stamp.ns) for stamp in event.timestamps)
        if event.tensor is not None and event.activity == "TENSOR_QUEUE_INPUT":
            self.inputs.append(event.tensor)
        elif event.tensor is not None and event.activity == "TENSOR_BACKEND_OUTPUT":
            self.outputs.append(event.tensor)


_decode: Final = msgspec.json.Decoder(list[_Event]).decode


def adapt(data: bytes, context: Context) -> Adapted:
    """A whole file to request records."""
    try:
        events = _decode(data)
    except BAD:
        return Adapted(b"", 1)
    requests: dict[int, _Request] = {}
    for event in events:
        requests.setdefault(event.id, _Request()).see(event)
    rows: list[dict[str, Any] | None] = []
    for request in requests.values():
        rows += _rows(request, context)
    return render(rows)


def _rows(request: _Request, context: Context) -> list[dict[str, Any] | None]:
    start = request.times.get(
        "HTTP_RECV_START", request.times.get("GRPC_WAITREAD_START", request.times.get("REQUEST_START"))
    )
    if start is None or request.model is None:
        return [None]
    end = request.times.get(
        "HTTP_SEND_END", request.times.get("GRPC_SEND_END", request.times.get("REQUEST_END", start))
    )
    common = {
        "ts": round(start / 1e9 + context.monotonic_offset, 6),
        "model": request.model,
        "source": "triton",
        "status": 200,  # what was refused leaves no trace
        "duration_s": round(max(0, end - start) / 1e9, 9),
    }
    if request.request_id:
        common["request_id"] = request.request_id
    columns = _columns(request)
    size = min(max([1, *map(len, columns.values())]), _MAX_ROWS)
    rows: list[dict[str, Any] | None] = []
    for at in range(size):
        row = common | {name: values[at] for name, values in columns.items() if at < len(values)}
        if size > 1 and request.request_id:
            row["request_id"] = f"{request.request_id}#{at}"[-256:]  # a row each: not one request told twice
        rows.append(row)
    return rows


def _columns(request: _Request) -> dict[str, list[Any]]:
    """Tensors by the field that they become: a list of rows each."""
    columns: dict[str, list[Any]] = {}
    for tensor in request.outputs:
        rows, name = _split(tensor), tensor.name.lower()
        if not rows:
            continue
        if tensor.dtype not in _FLOATS:
            if any(word in name for word in _CLASS) or "predicted" not in columns:
                columns["predicted"] = [int(row[0]) for row in rows]
        elif any(word in name for word in _EMBEDDING):
            columns["features"] = rows
        elif any(word in name for word in _SCORES) or all(abs(math.fsum(row) - 1) < 0.01 for row in rows):
            columns["scores"] = rows
        else:
            columns.setdefault("features", rows)
    for tensor in request.inputs:
        if tensor.dtype in _FLOATS and (rows := _split(tensor)):
            columns["input_features"] = rows
            break
    if "scores" in columns and "predicted" not in columns:
        columns["predicted"] = [max(range(len(row)), key=row.__getitem__) for row in columns["scores"]]
    return columns


def _split(tensor: _Tensor) -> list[list[float]]:
    """Rows of a tensor of shape [rows, ...]; none where it is text, ragged, too wide, or of numbers too large."""
    try:
        shape = [int(part) for part in tensor.shape.split(",")]
        values = [float(part) for part in tensor.data.split(",")]
    except ValueError:
        return []
    width = math.prod(shape[1:]) if len(shape) > 1 else 1
    if not 0 < width <= _MAX_ITEMS or not shape[0] > 0 or width * shape[0] != len(values):
        return []
    if not all(-MAX_COUNT <= value <= MAX_COUNT for value in values):  # NaN is in no range
        return []
    return [values[at : at + width] for at in range(0, min(len(values), width * _MAX_ROWS), width)]


ADAPTER = Adapter("triton", "Triton trace files, TIMESTAMPS and TENSORS", adapt, whole=True)
