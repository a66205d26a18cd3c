"""What flows through the house: request batches, samples, and findings. numpy and the standard library only.

Requests come in columns (:class:`RequestBatch`), because there are many; everything else comes as one
small frozen object a record, because there are few.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FIELDS",
    "MERGE_ORDER",
    "Column",
    "Declared",
    "Depth",
    "Field",
    "FileSample",
    "FileUse",
    "Finding",
    "GpuJob",
    "GpuProcess",
    "GpuSample",
    "Kind",
    "Process",
    "ProcessTable",
    "Ragged",
    "Record",
    "Records",
    "RequestBatch",
    "ServerSample",
    "Severity",
    "SocketSample",
    "SourceStatus",
    "Status",
    "Text",
    "Texts",
    "Traffic",
    "WatchedFile",
    "XidEvent",
    "rows_of",
]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
I4 = NDArray[np.int32]
I1 = NDArray[np.int8]


class Kind(enum.StrEnum):
    """What a record tells of: the ``kind`` of its JSON line."""

    REQUEST = "request"
    GPU = "gpu"
    PROCESS = "process"
    SERVER = "server"
    FILE = "file"
    SOCKET = "socket"
    SOURCE = "source"


# Records of one instant are folded in this order: what the host looks like comes before what it is
# judged for, and the watermark (``source``) comes last.
MERGE_ORDER: Final = {
    kind: rank
    for rank, kind in enumerate(
        (Kind.PROCESS, Kind.FILE, Kind.SOCKET, Kind.SERVER, Kind.REQUEST, Kind.GPU, Kind.SOURCE)
    )
}


class Field(enum.Enum):
    """How a request field is held in a column, and what "absent" looks like in it."""

    NUMBER = "number"  # float64, NaN where absent
    FLAG = "flag"  # int8: 1 true, 0 false, -1 absent
    TEXT = "text"  # Text, code -1 where absent
    TEXTS = "texts"  # Texts, an empty row where absent
    VECTOR = "vector"  # Ragged of float32, an empty row where absent
    IDS = "ids"  # Ragged of int64, an empty row where absent


# Every field of a request record, version 1. ``seq`` is apart: the fold gives it.
FIELDS: Final[dict[str, Field]] = {
    "ts": Field.NUMBER,
    "model": Field.TEXT,
    "client": Field.TEXT,
    "request_id": Field.TEXT,
    "source": Field.TEXT,
    "host": Field.TEXT,
    "identity": Field.TEXT,
    "network": Field.TEXT,
    "user_agent": Field.TEXT,
    "user": Field.TEXT,
    "route": Field.TEXT,
    "status": Field.NUMBER,
    "aborted": Field.FLAG,
    "duration_s": Field.NUMBER,
    "ttft_s": Field.NUMBER,
    "input_tokens": Field.NUMBER,
    "output_tokens": Field.NUMBER,
    "cached_tokens": Field.NUMBER,
    "reasoning_tokens": Field.NUMBER,
    "features": Field.VECTOR,
    "input_features": Field.VECTOR,
    "predicted": Field.TEXT,
    "scores": Field.VECTOR,
    "body_hash": Field.TEXT,
    "n": Field.NUMBER,
    "logprobs": Field.NUMBER,
    "prompt_logprobs": Field.NUMBER,
    "logit_bias": Field.IDS,
    "logit_bias_count": Field.NUMBER,
    "allowed_tokens": Field.NUMBER,
    "max_tokens": Field.NUMBER,
    "temperature": Field.NUMBER,
    "finish_reason": Field.TEXT,
    "template": Field.TEXT,
    "sketch": Field.IDS,
    "flags": Field.TEXTS,
    "principal": Field.TEXT,
    "resources": Field.TEXTS,
    "labels": Field.TEXT,
    "server_pid": Field.NUMBER,
    "synthetic": Field.FLAG,
}


@dataclass(frozen=True, slots=True)
class Text:
    """Dictionary-encoded strings: row i reads ``values[codes[i]]``; code -1 is absent."""

    codes: I4
    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def at(self, row: int) -> str | None:
        """The string of one row."""
        code = int(self.codes[row])
        return None if code < 0 else self.values[code]

    def take(self, rows: I8) -> Text:
        """These rows; the dictionary is shared."""
        return Text(self.codes[rows], self.values)

    def slice(self, start: int, stop: int) -> Text:
        """Rows ``start:stop``, a view."""
        return Text(self.codes[start:stop], self.values)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    offsets: I8
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> I8:
        """Items a row, int64[n]."""
        return np.diff(self.offsets)

    def at(self, row: int) -> NDArray[Any]:
        """One row, a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def matrix(self, rows: I8, width: int) -> NDArray[Any]:
        """These rows as ``(len(rows), width)``; each must hold exactly ``width`` items."""
        starts = self.offsets[rows]
        if len(rows) and np.array_equal(starts, starts[0] + width * np.arange(len(rows))):
            return self.values[starts[0] : starts[0] + width * len(rows)].reshape(-1, width)
        return self.values[starts[:, None] + np.arange(width)]

    def take(self, rows: I8) -> Ragged:
        """These rows, packed anew."""
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(offsets, self.values[np.repeat(self.offsets[rows], lengths) + within])

    def slice(self, start: int, stop: int) -> Ragged:
        """Rows ``start:stop``, a view."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])


@dataclass(frozen=True, slots=True)
class Texts:
    """Lists of strings: a ragged column of codes and their dictionary."""

    codes: Ragged
    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def at(self, row: int) -> tuple[str, ...]:
        """The strings of one row."""
        return tuple(self.values[code] for code in self.codes.at(row))

    def take(self, rows: I8) -> Texts:
        """These rows; the dictionary is shared."""
        return Texts(self.codes.take(rows), self.values)

    def slice(self, start: int, stop: int) -> Texts:
        """Rows ``start:stop``, a view."""
        return Texts(self.codes.slice(start, stop), self.values)


Column = F8 | I1 | Text | Texts | Ragged


def _absent(kind: Field, n: int) -> Column:
    """A column of ``n`` absent values."""
    match kind:
        case Field.NUMBER:
            return np.full(n, np.nan)
        case Field.FLAG:
            return np.full(n, -1, np.int8)
        case Field.TEXT:
            return Text(np.full(n, -1, np.int32), ())
        case Field.TEXTS:
            return Texts(Ragged(np.zeros(n + 1, np.int64), np.zeros(0, np.int32)), ())
        case Field.VECTOR:
            return Ragged(np.zeros(n + 1, np.int64), np.zeros(0, np.float32))
        case Field.IDS:
            return Ragged(np.zeros(n + 1, np.int64), np.zeros(0, np.int64))


class RequestBatch:
    """Requests in columns of equal length. A field that no row has costs nothing: it is not held.

    Parameters
    ----------
    columns
        Column by field name, as :data:`FIELDS` types it. ``ts`` is required.
    seq
        int64[n]; the number that the fold gave each row, -1 where it has not yet.
    """

    __slots__ = ("columns", "seq")

    kind: Final = Kind.REQUEST

    def __init__(self, columns: dict[str, Column], seq: I8 | None = None) -> None:
        self.columns = columns
        self.seq = np.full(len(columns["ts"]), -1, np.int64) if seq is None else seq

    def __len__(self) -> int:
        return len(self.seq)

    def __repr__(self) -> str:
        return f"RequestBatch({len(self)} rows: {', '.join(self.columns)})"

    def has(self, name: str) -> bool:
        """Whether any row may hold this field."""
        return name in self.columns

    def _column(self, name: str, *kinds: Field) -> Any:
        if FIELDS[name] not in kinds:
            raise TypeError(f"{name} is a {FIELDS[name].value} column")
        held = self.columns.get(name)
        return _absent(FIELDS[name], len(self)) if held is None else held

    def number(self, name: str) -> F8:
        """float64[n], NaN where absent."""
        column: F8 = self._column(name, Field.NUMBER)
        return column

    def flag(self, name: str) -> I1:
        """int8[n]: 1 true, 0 false, -1 absent."""
        column: I1 = self._column(name, Field.FLAG)
        return column

    def text(self, name: str) -> Text:
        """Dictionary-encoded strings."""
        column: Text = self._column(name, Field.TEXT)
        return column

    def texts(self, name: str) -> Texts:
        """Lists of strings."""
        column: Texts = self._column(name, Field.TEXTS)
        return column

    def ragged(self, name: str) -> Ragged:
        """Vectors (float32) or ids (int64) of any length."""
        column: Ragged = self._column(name, Field.VECTOR, Field.IDS)
        return column

    @property
    def ts(self) -> F8:
        """Start times, seconds since the epoch."""
        return self.number("ts")

    @property
    def completion(self) -> F8:
        """When each request was over, the time that the fold orders by: ``ts + duration_s``."""
        if not self.has("duration_s"):
            return self.ts
        completed: F8 = self.ts + np.nan_to_num(self.number("duration_s"), nan=0.0)
        return completed

    @property
    def synthetic(self) -> NDArray[np.bool_]:
        """bool[n]: rows that no real caller sent."""
        return self.flag("synthetic") == 1

    def take(self, rows: I8) -> RequestBatch:
        """These rows, in this order."""
        columns: dict[str, Column] = {
            name: column[rows] if isinstance(column, np.ndarray) else column.take(rows)
            for name, column in self.columns.items()
        }
        return RequestBatch(columns, self.seq[rows])

    def slice(self, start: int, stop: int) -> RequestBatch:
        """Rows ``start:stop``, ``0 <= start <= stop <= n``: a view, nobody writes into a column."""
        columns: dict[str, Column] = {
            name: column[start:stop] if isinstance(column, np.ndarray) else column.slice(start, stop)
            for name, column in self.columns.items()
        }
        return RequestBatch(columns, self.seq[start:stop])

    @staticmethod
    def concat(batches: Sequence[RequestBatch]) -> RequestBatch:
        """One batch of all rows, in order. Dictionaries are merged and keep only what is used."""
        if len(batches) == 1:
            return batches[0]
        names = [name for name in FIELDS if any(name in batch.columns for batch in batches)]
        columns: dict[str, Column] = {}
        for name in names:
            parts = [batch._column(name, FIELDS[name]) for batch in batches]  # noqa: SLF001 - its own class
            columns[name] = _concat(FIELDS[name], parts)
        if not names:
            columns["ts"] = np.zeros(0)
        seqs = [batch.seq for batch in batches]
        return RequestBatch(columns, np.concatenate(seqs) if seqs else np.zeros(0, np.int64))


def _concat(kind: Field, parts: list[Any]) -> Column:
    match kind:
        case Field.NUMBER | Field.FLAG:
            joined: F8 = np.concatenate(parts)
            return joined
        case Field.TEXT:
            codes, values = _merge_codes([(part.codes, part.values) for part in parts])
            return Text(np.concatenate(codes), values)
        case Field.TEXTS:
            codes, values = _merge_codes([(part.codes.values, part.values) for part in parts])
            joined_codes = [Ragged(part.codes.offsets, code) for part, code in zip(parts, codes, strict=True)]
            return Texts(_concat_ragged(joined_codes), values)
        case Field.VECTOR | Field.IDS:
            return _concat_ragged(parts)


def _concat_ragged(parts: list[Ragged]) -> Ragged:
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = [part.values[part.offsets[0] : part.offsets[-1]] for part in parts]
    return Ragged(offsets, np.concatenate(values))


def _merge_codes(parts: list[tuple[I4, tuple[str, ...]]]) -> tuple[list[I4], tuple[str, ...]]:
    """Recode every part into one dictionary, in order of first part and code; unused values go."""
    merged: dict[str, int] = {}
    recoded = []
    for codes, values in parts:
        table = np.full(len(values) + 1, -1, np.int32)  # the last entry serves code -1
        for code in np.unique(codes[codes >= 0]):
            table[code] = merged.setdefault(values[code], len(merged))
        recoded.append(table[codes])
    return recoded, tuple(merged)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that NVML shows on a GPU. ``None`` is "NVML does not say", never 0."""

    pid: int
    exe: str | None = None
    used_memory_bytes: int | None = None
    type: str = "compute"  # compute, graphics or mps
    instances: tuple[int, ...] = ()  # GPU instances (MIG) that it runs on; empty: the whole GPU
    own: bool = False  # the daemon itself, as a guest: it owns memory there, and is nobody's to judge


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuJob:
    """A process that has ended, as the driver's accounting remembers it."""

    pid: int
    start_ts: float
    seconds: float
    max_memory_bytes: int | None = None
    utilization: float | None = None  # 0..1, its mean


@dataclass(frozen=True, slots=True, kw_only=True)
class XidEvent:
    """One Xid error that the driver reported since the last sample."""

    xid: int
    ts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one instant. Units as NVML's, in base units; ``None`` where NVML has no answer."""

    kind = Kind.GPU

    ts: float
    gpu: str  # UUID
    state: str = "ok"  # ok, lost, hung, reset_required
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    index: int | None = None
    name: str | None = None
    model: str | None = None  # the served model, where known
    utilization: float | None = None  # 0..1
    memory_utilization: float | None = None  # 0..1
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    fan_ratio: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: int | None = None  # NVML's clocks event reason bits
    ecc_corrected: int | None = None  # volatile, total
    ecc_uncorrected: int | None = None
    remapped_rows_pending: bool | None = None
    remapped_rows_failure: bool | None = None
    pcie_replays: int | None = None
    recovery_action: int | None = None
    encoder_utilization: float | None = None  # 0..1
    decoder_utilization: float | None = None  # 0..1
    remapped_rows_corrected: int | None = None  # rows replaced after corrected errors
    remapped_rows_uncorrected: int | None = None
    nvlink_crc_errors: int | None = None  # flits and data, all links
    nvlink_replays: int | None = None
    nvlink_recoveries: int | None = None
    nvlink_sent_bytes: int | None = None  # data, all links, since the driver was loaded
    nvlink_received_bytes: int | None = None
    pcie_sent_bytes: int | None = None  # since the driver was loaded, by drivers that count them
    pcie_received_bytes: int | None = None
    graphics_active: float | None = None  # 0..1, the share of time in which any engine worked (GPM, from Hopper on)
    sm_active: float | None = None  # 0..1, the share of multiprocessors that worked
    tensor_active: float | None = None  # 0..1, the share of time in which tensor cores worked
    dram_active: float | None = None  # 0..1, the share of the memory's bandwidth
    accounted: int | None = None  # processes that the driver's accounting remembers; None: it is off
    jobs: tuple[GpuJob, ...] = ()  # those that ended since the last sample
    processes: tuple[GpuProcess, ...] | None = None  # None: NVML would not say
    xid: tuple[XidEvent, ...] = ()
    # ecc_mode, ecc_mode_pending, mig_mode, compute_mode, persistence_mode, accounting_mode,
    # driver_version, vbios_version, inforom_version, serial, pci_bus_id, ...
    posture: dict[str, str] = field(default_factory=dict)
    blind: tuple[str, ...] = ()  # what NVML refused, as "field: reason"

    @property
    def tenants(self) -> tuple[GpuProcess, ...] | None:
        """Its processes without the daemon itself."""
        return None if self.processes is None else tuple(one for one in self.processes if not one.own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a service's unit files declare of its privileges."""

    file: str  # the unit's fragment
    capabilities: int = 0  # the most that its processes may hold, as the kernel's bits
    private: tuple[str, ...] = ()  # namespaces that are to be its own: mnt, net, pid, user
    odd: bool = False  # it may start programs with more than this says: nothing can be judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """What is read of a process that holds a GPU or listens; ``None`` where it may not be read."""

    devices: tuple[str, ...] | None = None  # GPU device nodes that it has open or mapped
    sha256: str | None = None  # of its executable; hex
    tracer: int | None = None  # pid of who traces it; 0: nobody
    capabilities: int | None = None  # effective ones, as the kernel's bits
    namespaces: tuple[str, ...] | None = None  # "mnt:[4026531841]", ...: mnt, net, pid, user
    preload: tuple[str, ...] | None = None  # LD_PRELOAD and LD_AUDIT, as NAME=VALUE, where they are set
    own_network: bool | None = None  # it is in another network namespace than the daemon
    unauthenticated: bool | None = None  # a Jupyter server whose runtime file, or answer, says so; None: not known
    mappings: tuple[str, ...] | None = None  # executable ones of deleted files, of memory, of places all may write to
    declared: Declared | None = None  # by its unit's files; None: it has no unit, or they may not be read
    host_namespaces: tuple[str, ...] | None = None  # of mnt, net, pid, user: those that it shares with pid 1
    software: tuple[str, ...] = ()  # "vllm 0.8.5", "triton 25.07": what it serves with, where that is told
    shared_memory: tuple[str, ...] = ()  # Triton's regions that it has mapped, as "path mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process; (pid, start_ticks) is its identity. ``exe`` is ``None`` where it may not be read."""

    pid: int
    start_ticks: int
    ppid: int | None = None
    uid: int | None = None
    exe: str | None = None  # as /proc shows it: "... (deleted)", "/memfd:..."
    name: str | None = None
    cmdline: tuple[str, ...] = ()  # secrets redacted in the source
    cgroup: str | None = None
    unit: str | None = None  # systemd unit, from the cgroup
    container: str | None = None  # container id, from the cgroup
    listen: tuple[str, ...] = ()
    cpu_seconds: float | None = None
    rss_bytes: int | None = None
    depth: Depth | None = None  # None: it neither holds a GPU nor listens, or was not looked at yet


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTable:
    """The host's processes at one instant."""

    kind = Kind.PROCESS

    ts: float
    processes: tuple[Process, ...]
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    complete: bool = True  # False: a limit or a deadline cut it
    blind: tuple[str, ...] = ()  # what could not be read, as "field: reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedFile:
    """One model file: what tells it from another of the same name. ``None`` where it may not be read."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int  # permission bits
    uid: int
    sampled: str | None = None  # digest of 64 blocks over the whole file; hex
    sha256: str | None = None  # of all of it, once the background pass has read it
    honey: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUse:
    """A process that has a model file open or mapped, or opened it a moment ago."""

    path: str
    pid: int
    how: str  # open, mapped, opened (an event of the kernel's), mapped_deleted
    start_ticks: int | None = None
    uid: int | None = None
    exe: str | None = None
    unit: str | None = None
    container: str | None = None
    cgroup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSample:
    """The model files of a host at one instant, and who uses them."""

    kind = Kind.FILE

    ts: float
    files: tuple[WatchedFile, ...] = ()
    uses: tuple[FileUse, ...] = ()
    missing: tuple[str, ...] = ()  # watched before, and gone
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    blind: tuple[str, ...] = ()  # what could not be read, as "field: reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one process that holds a GPU, or reads model files, sent since the last sample, by TCP."""

    pid: int
    sent_bytes: int
    start_ticks: int | None = None
    exe: str | None = None
    uid: int | None = None
    unit: str | None = None
    peers: tuple[str, ...] = ()  # "address:port" of connections that it made or took, busiest first
    peer_bytes: tuple[int, ...] = ()  # sent to each of them


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketSample:
    """What left a host by its network in one stretch of time."""

    kind = Kind.SOCKET

    ts: float
    seconds: float  # how long the stretch was
    traffic: tuple[Traffic, ...] = ()
    interface_bytes: int | None = None  # sent by all interfaces but loopback
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    blind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSample:
    """One model of an inference server at one scrape of its /metrics. ``None`` is "it does not say", never 0.

    ``requests``, ``failed`` and the tokens are what was added in the ``interval_s`` before ``ts``.
    """

    kind = Kind.SERVER

    ts: float
    server: str  # address:port, as configured
    model: str | None = None
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    interval_s: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None  # 0..1
    requests: float | None = None
    failed: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """One poll of one source: the watermark, and the only evidence of absence."""

    kind = Kind.SOURCE

    ts: float
    source: str
    ok: bool
    error: str | None = None
    expected: int | None = None
    seen: int | None = None
    host: str = ""
    synthetic: bool = False
    seq: int = -1


Record = GpuSample | ProcessTable | FileSample | SocketSample | ServerSample | SourceStatus
Records = RequestBatch | Record


class Severity(enum.StrEnum):
    """How loud a finding is: critical and high page, medium warns, low is a ticket, info is context."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info to 4 for critical."""
        return list(Severity).index(self)


class Status(enum.StrEnum):
    """Where a finding stands in its life."""

    NEW = "new"
    UPDATE = "update"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a detector says about one subject. The ledger (:mod:`mlsecd.findings`) adds id and status.

    ``ts`` is the event time of the record that triggered it; an estimated onset goes into evidence.
    """

    ts: float
    detector: str
    version: int
    subject_kind: str  # client, model, gpu, process, campaign, host, file, source
    subject: str
    severity: Severity
    score: float
    threshold: float
    reason: str
    action: str
    evidence: dict[str, Any] = field(default_factory=dict)
    certified: bool = False
    synthetic: bool = False
    atlas: tuple[str, ...] = ()
    owasp: tuple[str, ...] = ()
    id: str = ""
    status: Status = Status.NEW

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What de-duplication goes by."""
        return (self.detector, self.subject_kind, self.subject, self.synthetic)

    def line(self) -> dict[str, Any]:
        """The finding as ``replay``, ``hunt`` and ``log query`` print it."""
        return {
            "ts": self.ts,
            "id": self.id,
            "detector": self.detector,
            "version": self.version,
            "severity": str(self.severity),
            "status": str(self.status),
            "subject": {self.subject_kind: self.subject},
            "score": self.score,
            "threshold": self.threshold,
            "certified": self.certified,
            "reason": self.reason,
            "action": self.action,
            "evidence": self.evidence,
            "atlas": list(self.atlas),
            "owasp": list(self.owasp),
            "synthetic": self.synthetic,
        }


def rows_of(codes: I4) -> Iterator[tuple[int, I8]]:
    """Group rows by code, in order of each code's first appearance; code -1 is left out.

    Yields ``(code, rows)`` with ``rows`` ascending. The order matters: state that is bounded by
    recency then does not depend on how a stream was cut into batches.
    """
    order = np.argsort(codes, kind="stable")
    grouped = codes[order]
    starts = np.flatnonzero(np.diff(grouped, prepend=grouped[:1] - 1)) if len(codes) else np.zeros(0, np.int64)
    ends = np.append(starts[1:], len(codes))
    for at in np.argsort(order[starts], kind="stable"):
        rows = order[starts[at] : ends[at]]
        if grouped[starts[at]] >= 0:
            yield int(grouped[starts[at]]), rows
