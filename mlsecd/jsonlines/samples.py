"""Samples of GPUs, processes, files and sockets, and polls of sources: between their dataclasses and JSON objects.

For each dataclass there is a mirror, a msgspec Struct with the same fields, where every text, list and
number has a limit, and null stands for the default.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache, reduce
from math import isnan
from operator import or_
from types import UnionType
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from mlsecd.records import FileSample, GpuSample, Kind, ProcessTable, Record, ServerSample, SocketSample, SourceStatus

from .wire import MAX_ITEMS, Time, seconds

__all__ = ["MAX_STRING", "SAMPLES", "from_wire", "sample_type", "to_dict"]

SAMPLES: Final[dict[Kind, Any]] = {
    Kind.GPU: GpuSample,
    Kind.PROCESS: ProcessTable,
    Kind.FILE: FileSample,
    Kind.SOCKET: SocketSample,
    Kind.SERVER: ServerSample,
    Kind.SOURCE: SourceStatus,
}
MAX_STRING: Final = 4_096  # characters: a path, an argument
# Longest lists, where it is not MAX_ITEMS, by the class and field that hold them.
MAX_LISTED: Final = {
    (GpuSample, "processes"): 4_096,
    (GpuSample, "jobs"): 4_096,
    (ProcessTable, "processes"): 65_536,
    (FileSample, "files"): 4_096,
    (FileSample, "uses"): 4_096,
    (SocketSample, "traffic"): 4_096,
}
# What stands in ``GpuSample.posture`` and, in a JSON line, beside the other fields.
POSTURE: Final = (
    "ecc_mode",
    "ecc_mode_pending",
    "mig_mode",
    "compute_mode",
    "persistence_mode",
    "accounting_mode",
    "driver_version",
    "vbios_version",
    "inforom_version",
    "serial",
    "pci_bus_id",
)
_STRING = Annotated[str, Meta(max_length=MAX_STRING)]
_PLAIN: Final[dict[Any, Any]] = {
    str: _STRING,
    dict[str, str]: Annotated[dict[_STRING, _STRING], Meta(max_length=MAX_ITEMS)],
}
_SHARES: Final = (
    "utilization",
    "memory_utilization",
    "encoder_utilization",
    "decoder_utilization",
    "graphics_active",
    "sm_active",
    "tensor_active",
    "dram_active",
    "kv_cache_usage",
)  # 0 to 1: more is a percentage
_mirrored: Final[dict[Any, type[Any]]] = {}


@cache
def sample_type(dataclass: Any) -> Any:
    """The mirror of a dataclass, a Struct type; unknown keys are let through."""
    hints = get_type_hints(dataclass)
    types = {one.name: _bounded(hints[one.name], dataclass, one.name) for one in fields(dataclass)}
    held: list[Any] = [
        (one.name, types[one.name]) if _required(one) else (one.name, types[one.name] | None, None)
        for one in fields(dataclass)
    ]
    if dataclass is GpuSample:
        held += [(name, _STRING | None, None) for name in POSTURE]
    struct = msgspec.defstruct(dataclass.__name__, held, gc=False, kw_only=True)
    _mirrored[struct] = dataclass
    return struct


def _required(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _bounded(hint: Any, owner: type[Any], name: str) -> Any:
    """A field's type with limits: nothing without end, none negative but temperatures and ``seq``."""
    if get_origin(hint) is UnionType:
        return reduce(or_, (_bounded(part, owner, name) for part in get_args(hint)))
    if get_origin(hint) is tuple:
        item: Any = _bounded(get_args(hint)[0], owner, name)
        return Annotated[tuple[item, ...], Meta(max_length=MAX_LISTED.get((owner, name), MAX_ITEMS))]
    if hasattr(hint, "__dataclass_fields__"):
        return sample_type(hint)
    if hint is float:
        return _number(name)
    if hint is int:
        return Annotated[int, Meta(ge=-1 if name == "seq" else 0, le=2**63 - 1)]
    return _PLAIN.get(hint, hint)


def _number(name: str) -> Any:
    if name == "ts":
        return Time
    if name.endswith("temperature_celsius"):
        return float
    return Annotated[float, Meta(ge=0, le=1.0 if name in _SHARES else 2.0**63)]


def from_wire(row: Any) -> Record:
    """The record that a mirror shows. Raises :class:`msgspec.ValidationError` for a time out of range."""
    record: Record = _revived(row)
    return record


def _revived(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_revived, value))
    if type(value) not in _mirrored:
        return value
    dataclass = _mirrored[type(value)]
    given = {name: _revived(held) for name in value.__struct_fields__ if (held := getattr(value, name)) is not None}
    if "ts" in given:
        given["ts"] = seconds(given["ts"])
        if isnan(given["ts"]):
            raise msgspec.ValidationError("ts: out of range")
    if dataclass is GpuSample:
        posture = {name: given.pop(name) for name in POSTURE if name in given}
        given["posture"] = given.get("posture", {}) | posture
    return dataclass(**given)


def to_dict(record: Record) -> dict[str, Any]:
    """A record as a JSON object; what is as by default is left out."""
    line = {"kind": str(record.kind), **_shown(record)}
    for name, value in line.pop("posture", {}).items():
        if name in POSTURE:
            line[name] = value
        else:
            line.setdefault("posture", {})[name] = value
    return line


def _shown(value: Any) -> Any:
    """Plain JSON values; a field as by default is left out."""
    if isinstance(value, tuple):
        return list(map(_shown, value))
    if not is_dataclass(value):
        return value
    shown = {}
    for one in fields(value):
        held = getattr(value, one.name)
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if held != default:
            shown[one.name] = _shown(held)
    return shown
